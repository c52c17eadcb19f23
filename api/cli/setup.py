"""`mpu setup`: asks for a pickup directory, its interval and an account, checks them and saves them.

Everything can also be given as options; then nothing is asked. With a service on this machine it goes through its HTTP
interface and takes effect at once; without one straight into the database, by the same rules.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from api.cli import account as options
from api.cli.client import KeyFile, Url, base_url, complain_of, find_key
from api.cli.output import EXIT_ACCOUNT, EXIT_FAILED, EXIT_USAGE, complain, out, say, table
from api.cli.settings import Config, DataDir, local_settings
from core.domain.account import Security
from core.logs import configure_logs

CHECK_TIMEOUT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Preset:
    """What a provider asks for (providers.md); all of it can be changed."""

    host: str
    port: int = 587
    security: Security = Security.STARTTLS
    settings: tuple[tuple[str, object], ...] = ()


PRESETS = {
    "smtp": Preset(""),
    "office365": Preset("smtp.office365.com", settings=(("max_connections", 3),)),
    "gmail": Preset("smtp.gmail.com"),
    "google-relay": Preset("smtp-relay.gmail.com"),
    "ses": Preset("email-smtp.us-east-1.amazonaws.com", settings=(("recipients_per_message", 50),)),
    "azure": Preset("smtp.azurecomm.net"),
}


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

    Exit codes: 0 saved, 1 not saved, 2 usage, 3 the account's check failed.
    """
    configure_logs(log_format="console", log_level="error")
    asking = sys.stdin.isatty() and not (directory and (host or preset))
    if preset is not None and preset not in PRESETS:
        raise typer.BadParameter(f"is none of {', '.join(PRESETS)}", param_hint="--preset")
    if not asking and not (directory and (host or (preset and PRESETS[preset].host))):
        raise typer.BadParameter(
            "without a terminal both are needed", param_hint="--directory and --host (or --preset)"
        )
    paths = [os.path.realpath(path) for path in directory or _ask_directories()]
    every = interval if interval is not None else (_ask_interval() if asking else 60.0)
    chosen = PRESETS[preset or ("smtp" if host or not asking else _ask_preset())]
    host = host or (str(typer.prompt("Mail server", default=chosen.host or None)) if asking else chosen.host)
    port = port or (int(typer.prompt("Port", default=chosen.port)) if asking else chosen.port)
    if username is None and asking:
        username = str(typer.prompt("User name (empty: no login)", default="", show_default=False)) or None
    given = options.account_of(host, port, security or _usual(chosen, port), username, password_file, tls_ca_file)
    body: dict[str, Any] = {
        "host": given.host,
        "port": given.port,
        "security": given.security.value,
        "auth": given.auth.value,
        "username": given.username,
        "password": given.password,
        "tls_ca_file": given.tls_ca_file,
        **dict(chosen.settings),
        **({"from_address": from_address} if from_address else {}),
    }
    name = account or (preset if preset and preset != "smtp" else _name(host))
    body = {key: value for key, value in body.items() if value is not None}
    code = asyncio.run(_set_up(paths, every, name, body, url, key_file, data_dir, config, check=check, asking=asking))
    raise typer.Exit(code)


def _usual(preset: Preset, port: int) -> Security | None:
    return preset.security if port == preset.port else None


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
    for path in paths:
        _make(path)
    async with _service(url, key_file, data_dir, config) as http:
        if check:
            answer = await http.post("/accounts/check", json={"name": name, **account})
            if not answer.is_success:
                return _refused(answer)
            _show_check(answer.json())
            if not answer.json()["ok"] and not (asking and typer.confirm("Save it all the same?", default=False)):
                complain("nothing was saved", "Correct the account, or save it unchecked: --no-check.")
                return EXIT_ACCOUNT
        answer = await http.put(f"/accounts/{name}", json=account)
        if not answer.is_success:
            return _refused(answer)
        say(f"account {name}: {account['host']} port {account['port']}, {account['security']}")
        for path in paths:
            code = await _save_directory(http, path, interval, name)
            if code:
                return code
    return 0


async def _save_directory(http: httpx.AsyncClient, path: str, interval: float, account: str) -> int:
    saved = await http.get("/directories", params={"limit": 500})
    if not saved.is_success:
        return _refused(saved)
    known = next((d["name"] for d in saved.json()["items"] if _same(d["path"], path)), None)
    settings = {"accounts": [account], "interval_seconds": interval}
    if known is not None:
        answer = await http.patch(f"/directories/{known}", json=settings)
    else:
        known = _name(os.path.basename(path))
        answer = await http.post("/directories", json={"name": known, "path": path, **settings})
    if not answer.is_success:
        return _refused(answer)
    say(f"directory {known}: {path}, through {account}, every {interval:g} s and at once")
    return 0


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == other


def _make(path: str) -> None:
    """The directory with the rights of the README: its group may write, and what is new belongs to the group."""
    if os.path.isdir(path):
        return
    try:
        os.makedirs(path, mode=0o770)
        os.chmod(path, 0o2770)  # noqa: S103 - applications of the group write here
    except OSError as error:
        complain(f"{path} can't be made: {error.strerror}")
        raise typer.Exit(EXIT_USAGE) from None


def _refused(answer: httpx.Response) -> int:
    complain_of(answer)
    return EXIT_FAILED


def _show_check(found: dict[str, Any]) -> None:
    rows = [
        (step["step"], "ok" if step["ok"] else "failed", f"{step['seconds']:.2f} s", step["detail"], step["remedy"])
        for step in found["steps"]
    ]
    out().print(table(("step", "", "time", "", "what to do"), rows))


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
    from api.cli.serve import prepare_data_dir
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
