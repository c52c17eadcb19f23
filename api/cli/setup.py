"""`mpu setup`: asks for a pickup directory, its interval and an account, checks them and saves them.

Everything can also be given as options; then nothing is asked. With a service on this machine it goes through its HTTP
interface and takes effect at once; without one straight into the database, by the same rules. All that can be checked
is checked before anything is made, and where the rest fails what was made is taken back.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from api.cli import account as options
from api.cli.client import KeyFile, Url, base_url, complain_of, find_key
from api.cli.output import EXIT_ACCOUNT, EXIT_FAILED, EXIT_UNREACHABLE, EXIT_USAGE, complain, say
from api.cli.settings import Config, DataDir, local_settings, prepare_data_dir
from api.cli.undo import Undo, make_folder
from core.domain.presets import PRESETS, Preset
from core.logs import configure_logs
from core.settings import Settings

CHECK_TIMEOUT_SECONDS = 120


def setup(
    directory: Annotated[
        list[Path] | None, typer.Option("--directory", "-d", help="Pickup directory; repeatable. Made if missing.")
    ] = None,
    interval: Annotated[
        float | None, typer.Option(help="Seconds between scans, beside the watch.", min=1, max=86_400)
    ] = None,
    account: Annotated[str | None, typer.Option("--account", "-a", help="The account's name.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = None,
    host: options.Host = None,
    port: Annotated[int | None, typer.Option(envvar="MPU_SMTP_PORT", min=1, max=65535, help="Its port.")] = None,
    security: options.SecurityOption = None,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    from_address: Annotated[str | None, typer.Option(help="The address it may send as.")] = None,
    tls_ca_file: options.CaFile = None,
    check: Annotated[bool, typer.Option(help="Log in to the account before it is saved.")] = True,
    url: Url = None,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Set up pickup directories and the account they send through: asked for one by one, or given as options.

    Exit codes: 0 saved, 1 not saved, 2 usage, 3 the account's check failed, 4 the service does not answer.
    """
    configure_logs(log_format="console", log_level="error")
    asking = sys.stdin.isatty() and not (directory and (host or preset))
    if preset is not None and preset not in PRESETS:
        raise typer.BadParameter(f"is none of {', '.join(PRESETS)}", param_hint="--preset")
    if not asking and not (directory and (host or (preset and PRESETS[preset].host))):
        hint = PRESETS[preset].host_hint if preset else None
        raise typer.BadParameter(
            f"without a terminal both are needed; the host is {hint}" if hint else "without a terminal both are needed",
            param_hint="--directory and --host (or --preset)",
        )
    paths = [os.path.realpath(path) for path in directory or _ask_directories()]
    every = interval if interval is not None else (_ask_interval() if asking else 60.0)
    chosen = PRESETS[preset or ("smtp" if host or not asking else _ask_preset())]
    if asking:
        say(f"{chosen.title}: {chosen.note}")
    host = host or (_ask_host(chosen) if asking else chosen.host) or ""
    usual = chosen.defaults(port, security)["port"]
    port = port or (int(typer.prompt("Port", default=usual)) if asking else usual)
    if username is None and asking:
        username = str(typer.prompt("User name (empty: no login)", default="", show_default=False)) or None
    security = security or dict(chosen.ports).get(port)
    given = options.account_of(host, port, security, username, password_file, tls_ca_file)
    body: dict[str, Any] = {
        "host": given.host,
        "port": given.port,
        "security": given.security.value,
        "auth": given.auth.value,
        "username": given.username,
        "password": given.password,
        "tls_ca_file": given.tls_ca_file,
        "preset": chosen.name,
        "from_address": from_address,
    }
    name = account or (preset if preset and preset != "smtp" else _name(host))
    body = {key: value for key, value in body.items() if value is not None}
    code = asyncio.run(_set_up(paths, every, name, body, url, key_file, data_dir, config, check=check, asking=asking))
    raise typer.Exit(code)


def _ask_directories() -> list[Path]:
    paths = [Path(typer.prompt("Pickup directory"))]
    while more := str(typer.prompt("Another one (empty: no more)", default="", show_default=False)):
        paths.append(Path(more))
    return paths


def _ask_interval() -> float:
    return float(typer.prompt("Seconds between scans (new files are seen at once all the same)", default=60.0))


def _ask_preset() -> str:
    while True:
        answer = str(typer.prompt(f"Kind of account ({', '.join(PRESETS)})", default="smtp"))
        if answer in PRESETS:
            return answer


def _ask_host(preset: Preset) -> str:
    hint = f" ({preset.host_hint})" if preset.host_hint else ""
    return str(typer.prompt(f"Mail server{hint}", default=preset.host))


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63] or "mail"


async def _set_up(
    paths: list[str],
    interval: float,
    name: str,
    account: dict[str, Any],
    url: str | None,
    key_file: Path | None,
    data_dir: Path | None,
    config: Path | None,
    *,
    check: bool,
    asking: bool,
) -> int:
    undo = Undo()
    async with _service(url, key_file, data_dir, config) as http:
        code = EXIT_FAILED
        try:
            code = await _check(http, paths, name, account, check=check, asking=asking)
            if code == 0:
                code = await _save(http, paths, interval, name, account, undo)
        except httpx.HTTPError as error:
            complain(f"{http.base_url} does not answer: {str(error) or type(error).__name__}")
            code = EXIT_UNREACHABLE
        finally:  # Ctrl-C too
            if code:
                await undo.run()
    return code


async def _check(
    http: httpx.AsyncClient, paths: list[str], name: str, account: dict[str, Any], *, check: bool, asking: bool
) -> int:
    """All that can be known before anything is made."""
    code = await _check_paths(http, paths)
    if code or not check:
        return code
    answer = await http.post("/accounts/check", json={"name": name, **account})
    if not answer.is_success:
        return _refused(answer)
    options.show_check(name, answer.json())
    if answer.json()["ok"] or (asking and typer.confirm("Save it all the same?", default=False)):
        return 0
    complain("the account can't be used", "Correct it, or save it unchecked: --no-check.")
    return EXIT_ACCOUNT


async def _check_paths(http: httpx.AsyncClient, paths: list[str]) -> int:
    """Where the service would refuse a folder, none is made."""
    from core.runtime.directory_rules import path_rules, remedy_of

    answer = await http.get("/settings")
    if not answer.is_success:
        return _refused(answer)
    known = answer.json()["read_only"]
    settings = Settings.model_validate({field: known[field] for field in ("data_dir", "pickup_roots", "demo")})
    for path in paths:
        errors = [error for error in path_rules(path, settings) if error.code != "not_found"]  # it can be made
        if errors:
            complain(f"{path}: {'; '.join(error.detail for error in errors)}", remedy_of(errors))
            return EXIT_FAILED
    return 0


async def _save(
    http: httpx.AsyncClient, paths: list[str], interval: float, name: str, account: dict[str, Any], undo: Undo
) -> int:
    for path in paths:
        try:
            make_folder(path, undo)
        except OSError as error:
            complain(f"{path} can't be made: {error.strerror}", "Make it, owned by the group that writes mail there.")
            return EXIT_USAGE
    answer = await http.put(f"/accounts/{name}", json=account)
    if not answer.is_success:
        return _refused(answer)
    created = answer.status_code == HTTPStatus.CREATED
    undo.add(f"account {name} as given", _call(http, "DELETE", f"/accounts/{name}") if created else None)
    done = [f"account {name}: {account['host']} port {account['port']}, {account['security']}"]
    for path in paths:
        saved = await _save_directory(http, path, interval, name, undo)
        if isinstance(saved, int):
            return saved
        done.append(f"directory {saved}: {path}, through {name}, every {interval:g} s and at once")
    say("\n".join(done))
    return 0


async def _save_directory(http: httpx.AsyncClient, path: str, interval: float, account: str, undo: Undo) -> str | int:
    """Its name, or the exit code where it was refused, which was said."""
    answer = await http.get("/directories", params={"limit": 500})
    if not answer.is_success:
        return _refused(answer)
    known = next((d for d in answer.json()["items"] if _same(d["path"], path)), None)
    settings = {"accounts": [account], "interval_seconds": interval}
    name: str = known["name"] if known is not None else _name(os.path.basename(path))
    if known is not None:
        before = {field: known[field] for field in ("accounts", "interval_seconds", "schedule")}
        take_back = _call(http, "PATCH", f"/directories/{name}", json=before)
        answer = await http.patch(f"/directories/{name}", json=settings)
    else:
        take_back = _call(http, "DELETE", f"/directories/{name}")
        answer = await http.post("/directories", json={"name": name, "path": path, **settings})
    if not answer.is_success:
        return _refused(answer)
    undo.add(f"directory {name} as given", take_back)
    return name


def _call(http: httpx.AsyncClient, method: str, path: str, **content: Any) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        (await http.request(method, path, **content)).raise_for_status()

    return call


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == other


def _refused(answer: httpx.Response) -> int:
    complain_of(answer)
    return EXIT_FAILED


@asynccontextmanager
async def _service(
    url: str | None, key_file: Path | None, data_dir: Path | None, config: Path | None
) -> AsyncIterator[httpx.AsyncClient]:
    """The running service where one answers; else its application on the database of this machine, not started."""
    where = base_url(url)
    if url is not None or await _answers(where):
        headers = {"Authorization": f"Bearer {find_key(key_file)}"}
        async with httpx.AsyncClient(
            base_url=where, headers=headers, timeout=CHECK_TIMEOUT_SECONDS, trust_env=False
        ) as client:
            yield client
        return
    from api.app import create_app
    from core.runtime.instance import DataDirLock
    from core.runtime.offline import OfflineRelay

    settings = local_settings(data_dir, config, become_owner=False)
    prepare_data_dir(settings.data_dir)
    settings = local_settings(data_dir, config)
    with DataDirLock(settings.data_dir):
        relay = OfflineRelay(settings)
        await relay.open()
        try:
            transport = httpx.ASGITransport(create_app(settings, relay))
            headers = {"Authorization": "Bearer none"}  # whoever may write the database needs no key
            async with httpx.AsyncClient(transport=transport, base_url="http://mpu", headers=headers) as client:
                yield client
        finally:
            await relay.close()


async def _answers(where: str) -> bool:
    """Whether a service is there. Nothing secret is sent and nothing believed but that, so any certificate will do."""
    try:
        async with httpx.AsyncClient(timeout=2, verify=False, trust_env=False) as client:  # noqa: S501  # nosec B501
            return (await client.get(f"{where}/health/live")).is_success
    except httpx.HTTPError:
        return False
