"""`mpu serve`: the service. Settings, log, port, then uvicorn with the application on one event loop.

The relay hears of SIGTERM (or SIGHUP, or Ctrl-C) first: it stops claiming and answers open drains, and only then
uvicorn waits for open requests (it would otherwise wait for a drain that waits for mail). A second signal ends the
waiting. systemd is told when the service is ready, stopping and alive. Exit codes: 0 stopped as asked, 1 could not
start, 2 settings are wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import structlog
import typer
import uvicorn
from fastapi import FastAPI

from api.cli.connection import Connection
from api.cli.output import EXIT_FAILED, complain, greet
from api.cli.reception import Guests, Reception, places
from api.cli.settings import Config, DataDir, prepare_data_dir
from core.errors import RelayError
from core.logs import configure_logs, logs_written
from core.runtime.instance import DataDirLock, ServiceLock
from core.runtime.notify import notify, watchdog
from core.runtime.threads import hanging
from core.settings import Settings, SettingsError, load_settings

log = structlog.get_logger()


def serve(
    demo: Annotated[bool, typer.Option("--demo", help="Sandbox account and pickup directory in ./var.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [env: MPU_HOST; 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any. [env: MPU_PORT; 8025]")] = None,
    data_dir: DataDir = None,
    config: Config = None,
    pickup_root: Annotated[
        list[Path] | None, typer.Option(help="Pickup directories lie under it; repeatable. [env: MPU_PICKUP_ROOTS]")
    ] = None,
    new_database: Annotated[
        bool, typer.Option("--new-database", help="Start empty although there was a database before.")
    ] = False,
    log_format: Annotated[str | None, typer.Option(help="auto, json or console. [env: MPU_LOG_FORMAT]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [env: MPU_LOG_LEVEL]")] = None,
    grace_seconds: Annotated[
        float | None, typer.Option(help="How long a stop waits for what is in flight. [env: MPU_GRACE_SECONDS; 25]")
    ] = None,
) -> None:
    """Run the service until SIGTERM or Ctrl-C. All settings can also come from a TOML file or the environment."""
    loaded = load_settings(
        {
            "demo": demo or None,
            "host": host,
            "port": port,
            "data_dir": data_dir,
            "pickup_roots": tuple(pickup_root) if pickup_root else None,
            "new_database": new_database or None,
            "log_format": log_format,
            "log_level": log_level,
            "grace_seconds": grace_seconds,
        },
        config=config,
    )
    settings = loaded.settings
    configure_logs(log_format=settings.log_format, log_level=settings.log_level, final=True)
    for variable in loaded.unknown_variables:
        log.warning("unknown variable", variable=variable, remedy="There is no such setting; is it misspelt?")
    with contextlib.ExitStack() as held:
        try:
            prepare_data_dir(settings.data_dir)
            held.enter_context(ServiceLock(settings.data_dir))
            held.enter_context(DataDirLock(settings.data_dir))
            listener = held.enter_context(listen(settings.host, settings.port))
        except RelayError as error:
            complain(f"can't start: {error.detail}", error.remedy)
            raise typer.Exit(EXIT_FAILED) from None
        url = url_of(settings, listener)
        log.info("starting", url=url, data_dir=str(settings.data_dir), config=str(loaded.config_file or "none"))
        code = run_loop(_serve(settings, listener, url))
    log.info("ended", exit_code=code)
    left = hanging()
    if left:  # Python would wait for them, as long as a file system hangs
        log.warning("threads that do not end are left", threads=left, remedy="see which file system hangs")
        logs_written()
        os._exit(code)
    raise typer.Exit(code)


async def _serve(settings: Settings, listener: socket.socket, url: str) -> int:
    from api.app import create_app
    from core.runtime.relay import Relay

    relay = Relay(settings)
    app = create_app(settings, relay)

    def begin_stop() -> None:
        relay.begin_stop()
        app.state.bodies.begin_stop()  # else the stop would wait for what their clients do not send

    def ready() -> None:
        log.info("listening", url=url)
        _settle_collector()
        if settings.demo:
            greet(welcome(settings, url))

    return await serve_app(app, settings, listener, begin_stop=begin_stop, ready=ready)


def _settle_collector() -> None:
    """What the start made stays for good: looking through it again and again took a seventh of a busy relay's time.

    Cycles, which exceptions make, are still collected, only not after every 700 new objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def serve_app(
    app: FastAPI,
    settings: Settings,
    listener: socket.socket,
    *,
    begin_stop: Callable[[], None],
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Serve until a signal; the exit code. `begin_stop` is called once, before open requests are waited for.

    Raises SettingsError for a certificate or key that can't be used.
    """
    tls = settings.tls_certificate_file is not None
    guests = Guests(
        most=places(settings.max_http_connections),
        header_seconds=settings.request_header_timeout_seconds,
        answer_seconds=settings.answer_timeout_seconds,
    )
    connection = functools.partial(Connection, max_header_bytes=settings.max_request_header_bytes, guests=guests)
    server = Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=settings.log_level == "debug",
            root_path=settings.root_path,
            proxy_headers=True,
            forwarded_allow_ips=settings.forwarded_allow_ips,
            server_header=False,
            lifespan="on",
            ssl_certfile=str(settings.tls_certificate_file) if tls else None,
            ssl_keyfile=str(settings.tls_key_file) if tls else None,
            timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
            http=cast("Any", connection),  # it is only called
            ws="none",
        ),
        guests=guests,
        begin_stop=begin_stop,
        ready=ready,
    )
    if tls:
        _load_certificate(server.config, settings)
    feeding = asyncio.create_task(watchdog())
    try:
        await server.serve(sockets=[listener])
    except SystemExit:  # uvicorn's way to say that the application's start failed; the log has the reason
        return EXIT_FAILED
    finally:
        feeding.cancel()
        listener.close()
    return 0 if server.started else EXIT_FAILED


def _load_certificate(config: uvicorn.Config, settings: Settings) -> None:
    files = {"tls_certificate_file": settings.tls_certificate_file, "tls_key_file": settings.tls_key_file}
    problems = []
    for name, file in files.items():
        try:
            if file is not None:
                file.open("rb").close()
        except OSError as error:
            problems.append(f"{name}: {file} can't be read: {error.strerror}")
    if problems:
        raise SettingsError(problems)
    try:
        config.load()
    except OSError as error:
        names, paths = " and ".join(files), " and ".join(map(str, files.values()))
        raise SettingsError([f"{names}: {paths} are no certificate and its key: {error.strerror or error}"]) from None


def _is_no_cut_off(record: logging.LogRecord) -> bool:
    """Requests that a stop cuts off are no faults of the application, as which uvicorn tells them."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


class Server(uvicorn.Server):
    """uvicorn, with connections and signals of our own, and word to the service manager."""

    def __init__(
        self, config: uvicorn.Config, *, guests: Guests, begin_stop: Callable[[], None], ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._guests = guests
        self._reception: Reception | None = None
        self._begin_stop = begin_stop
        self._ready = ready
        logging.getLogger("uvicorn.error").addFilter(_is_no_cut_off)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # uvicorn would accept without a limit
        if self.started and not self.should_exit:
            assert sockets is not None
            self._reception = Reception(self._guests, sockets[0], self._connection, self.config.ssl)
            notify("READY=1")
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._reception is not None:
            await self._reception.close()
        await super().shutdown(sockets=sockets)

    def _connection(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        made: Connection = make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return made

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The loop's handlers instead of uvicorn's, which would end the process by the signal after a clean stop."""
        loop = asyncio.get_running_loop()
        signals = stop_signals()
        for number in signals:
            loop.add_signal_handler(number, self.stop, number)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def stop(self, number: int) -> None:
        """First signal: stop in order. Second: wait for nothing more but what the relay has in flight."""
        if self.should_exit and number == signal.SIGHUP:
            return  # the session ends: its other signals say no more than the first
        if self.should_exit:
            log.warning("stopping at once: open requests are cut off", signal=signal.Signals(number).name)
            for task in list(self.server_state.tasks):
                task.cancel()
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            return
        log.info("signal taken", signal=signal.Signals(number).name)  # what follows the relay says
        notify("STOPPING=1")
        self.should_exit = True
        self._begin_stop()


def stop_signals() -> list[signal.Signals]:
    """Those that end the process in order; SIGHUP not where it was to be ignored, as under nohup."""
    ends = [signal.SIGTERM, signal.SIGINT]
    return ends if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [*ends, signal.SIGHUP]


def listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket; it takes connections once the application has started. Raises RelayError."""
    remedy = "Choose another: --host and --port, or MPU_HOST and MPU_PORT."
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
    except OSError as error:
        raise RelayError(f"{host!r} is no address of this machine: {error.strerror}", remedy=remedy) from None
    except UnicodeError:  # an empty part, or one of over 63 characters
        raise RelayError(f"{host!r} is no address of this machine: it is no host name", remedy=remedy) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        listener.close()
        raise RelayError(f"can't listen on {host} port {port}: {error.strerror}", remedy=remedy) from None
    listener.setblocking(False)
    return listener


def url_of(settings: Settings, listener: socket.socket) -> str:
    """Where a person on this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - only shown
    kind = "https" if settings.tls_certificate_file else "http"
    host = f"[{host}]" if ":" in host else host
    return f"{kind}://{host}:{listener.getsockname()[1]}{settings.root_path}"


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run on uvloop where there is one."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def welcome(settings: Settings, url: str) -> str:
    """What to do next, to be copied line by line."""
    data = _short(settings.data_dir)
    key = f'-H "Authorization: Bearer $(cat {data}/api-key)"'
    if settings.api_key is not None:
        key = '-H "Authorization: Bearer $MPU_API_KEY"'
    return f"""
MPU is ready. A sandbox takes the mail: a mail server in this process that keeps what it gets.

Hand a mail over, as an application would, from another terminal:
  cp examples/dotnet.eml {data}/pickup/

See it arrive, see the queue and the history:
  curl {key} {url}/sandbox
  curl {key} {url}/queue
  curl {key} {url}/history

In a browser: {url}/docs configures everything (Authorize: the key in {data}/api-key),
{url}/sandbox shows the mails (any user name; the key is the password).
Ctrl-C ends it."""


def _short(path: Path) -> str:
    """Relative to where we are, if it lies there."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
