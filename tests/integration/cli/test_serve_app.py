"""How the service listens, starts and stops, with a small application in the relay's place."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from api.cli.serve import listen, serve_app, url_of, welcome
from api.cli.settings import prepare_data_dir
from core.errors import RelayError
from core.settings import Settings, SettingsError
from tests.support.command import mpu


def application(events: list[str], stopping: asyncio.Event, *, fails: bool = False) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if fails:
            raise RelayError("the start failed")
        yield
        events.append("application stopped")

    app = FastAPI(lifespan=lifespan)

    @app.get("/drain")
    async def drain() -> str:
        events.append("request waits")
        await stopping.wait()
        events.append("request answers")
        return "stopped"

    @app.get("/for-ever")
    async def for_ever() -> None:
        events.append("request waits")
        await asyncio.Event().wait()

    return app


async def until(events: list[str], what: str) -> None:
    async with asyncio.timeout(20):
        while what not in events:
            await asyncio.sleep(0.005)


async def test_the_relay_hears_of_a_stop_before_open_requests_are_waited_for() -> None:
    events: list[str] = []
    stopping = asyncio.Event()
    listener = listen("127.0.0.1", 0)
    settings = Settings(grace_seconds=20)
    url = url_of(settings, listener)

    def begin_stop() -> None:
        events.append("relay stops")
        stopping.set()

    serving = asyncio.create_task(
        serve_app(
            application(events, stopping), settings, listener, begin_stop=begin_stop, ready=lambda: events.append("up")
        )
    )
    await until(events, "up")
    async with httpx.AsyncClient(trust_env=False) as client:
        asking = asyncio.create_task(client.get(url + "/drain"))
        await until(events, "request waits")
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await asyncio.wait_for(asking, 20)).json() == "stopped"
    assert await asyncio.wait_for(serving, 20) == 0
    assert events == ["up", "request waits", "relay stops", "request answers", "application stopped"]


async def test_a_second_signal_cuts_open_requests_off_but_not_the_relays_end(caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []
    listener = listen("127.0.0.1", 0)
    settings = Settings(grace_seconds=20)
    app = application(events, asyncio.Event())
    serving = asyncio.create_task(
        serve_app(
            app,
            settings,
            listener,
            begin_stop=lambda: events.append("relay stops"),
            ready=lambda: events.append("up"),
        )
    )
    await until(events, "up")
    async with httpx.AsyncClient(trust_env=False) as client:
        asking = asyncio.create_task(client.get(url_of(settings, listener) + "/for-ever"))
        await until(events, "request waits")
        os.kill(os.getpid(), signal.SIGTERM)
        await until(events, "relay stops")
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(httpx.HTTPError):
            await asyncio.wait_for(asking, 20)
    assert await asyncio.wait_for(serving, 20) == 0
    assert events == ["up", "request waits", "relay stops", "application stopped"]
    assert "Exception in ASGI application" not in caplog.text


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        (
            "/nope",
            "/nope2",
            "tls_certificate_file: /nope can't be read: No such file or directory; tls_key_file: /nope2",
        ),
        (__file__, __file__, f"tls_certificate_file and tls_key_file: {__file__} and {__file__} are no certificate"),
    ],
)
async def test_a_certificate_that_can_not_be_used_is_named(certificate: str, key: str, said: str) -> None:
    settings = Settings(tls_certificate_file=Path(certificate), tls_key_file=Path(key))
    app = application([], asyncio.Event())
    with listen("127.0.0.1", 0) as listener, pytest.raises(SettingsError) as raised:
        await serve_app(app, settings, listener, begin_stop=lambda: None)
    assert str(raised.value.detail).startswith(said)


def test_a_certificate_that_is_not_there_ends_the_start_with_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPU_TLS_CERTIFICATE_FILE", "/nope")
    monkeypatch.setenv("MPU_TLS_KEY_FILE", str(tmp_path))
    assert mpu("serve", "--port", "0") == 2
    said = capsys.readouterr().err
    assert "mpu: tls_certificate_file: /nope can't be read: No such file or directory\n" in said
    assert f"mpu: tls_key_file: {tmp_path} can't be read: Is a directory\n" in said


async def test_a_start_that_fails_is_an_exit_code() -> None:
    app = application([], asyncio.Event(), fails=True)
    code = await serve_app(app, Settings(), listen("127.0.0.1", 0), begin_stop=lambda: None)
    assert code == 1


def test_a_port_that_is_taken_and_a_host_that_is_not_ours() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(RelayError, match=f"can't listen on 127.0.0.1 port {port}"):
            listen("127.0.0.1", port)
    with pytest.raises(RelayError, match="can't listen on 192"):
        listen("192.0.2.1", 0)
    with pytest.raises(RelayError, match="no address"):
        listen("no.such.host.invalid", 0)
    for host in ("a..b", "a" * 80):
        with pytest.raises(RelayError, match="is no address of this machine: it is no host name"):
            listen(host, 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(host="0.0.0.0"), "http://127.0.0.1:"),
        (Settings(host="::"), "http://[::1]:"),
        (Settings(tls_certificate_file=Path("/c"), tls_key_file=Path("/k"), root_path="/mpu"), "https://127.0.0.1:"),
    ],
)
def test_the_url_is_one_that_can_be_opened_here(settings: Settings, expected: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = url_of(settings, listener)
    assert url.startswith(expected)
    assert url.endswith(settings.root_path)


def test_the_data_directory_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    prepare_data_dir(tmp_path / "open")
    prepare_data_dir(tmp_path / "new" / "deep")
    for path in (tmp_path / "open", tmp_path / "new" / "deep"):
        assert path.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(RelayError, match="can't be used"):
        prepare_data_dir(tmp_path / "file")


def test_what_to_do_next_can_be_copied(tmp_path: Path) -> None:
    text = welcome(Settings(data_dir=tmp_path / "var"), "http://127.0.0.1:8025")
    assert "cp examples/dotnet.eml var/pickup/" in text
    assert '-H "Authorization: Bearer $(cat var/api-key)" http://127.0.0.1:8025/queue' in text
    given = welcome(Settings(data_dir=tmp_path / "var", api_key=SecretStr("k" * 32)), "http://x")
    assert '-H "Authorization: Bearer $MPU_API_KEY"' in given
    assert "k" * 32 not in given
