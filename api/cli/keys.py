"""`mpu key create|list|revoke`: API keys, straight in the database, so that no key is needed to make the first one.

Whoever may read and write the data directory may do this; a running service takes a new key at once, and refuses a
revoked one within a second. What is done here is in the audit as by `command line`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError
from sqlmodel import Session

from api.cli.client import Json
from api.cli.output import local_time, out, say, show_json, table
from api.cli.settings import Config, DataDir, local_settings
from api.schemas.service import KeyIn
from core.runtime.clock import SystemClock
from core.runtime.first_key import write_new_key
from core.runtime.instance import DataDirLock
from core.runtime.views import Scope
from core.store import audit, directories, keys
from core.store.store import Store

T = TypeVar("T")
ACTOR = "command line"
CLOCK = SystemClock()

app = typer.Typer(help="API keys, straight in the database of this machine.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for; shown in the audit.")],
    scope: Annotated[list[Scope] | None, typer.Option(help="What it may do; repeatable. Default: admin.")] = None,
    directory: Annotated[
        list[str] | None, typer.Option(help="With scope submit: only to these directories; repeatable.")
    ] = None,
    expires: Annotated[datetime | None, typer.Option(help="When it ends, as 2027-01-31.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to this new file (0600).")] = None,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make a key and show it, this once. The rules are those of POST /keys."""
    wanted = _checked(name, scope or [Scope.ADMIN], directory or [])
    name, scopes = wanted.name, [str(word) for word in wanted.scopes]
    expires_at = expires.astimezone().timestamp() if expires else None
    if expires_at is not None and expires_at <= CLOCK.now():
        raise typer.BadParameter("lies in the past", param_hint="--expires")
    if wanted.directories and scopes != [Scope.SUBMIT.value]:
        raise typer.BadParameter("goes with --scope submit alone", param_hint="--directory")
    written: list[Path] = []

    def make(session: Session) -> tuple[keys.KeyRecord, str]:
        now = CLOCK.now()
        for known in wanted.directories:
            directories.get(session, known)  # NotFound
        record, secret = keys.create(
            session, name=name, scopes=scopes, directories=wanted.directories, expires_at=expires_at, now=now
        )
        facts = keys.created_facts(record)
        audit.record(session, key=ACTOR, action="key.create", target=str(record.id), now=now, changes=facts)
        if output is not None:
            write_new_key(output, secret)
            written.append(output)
        return record, secret

    try:
        record, secret = in_database(make, data_dir, config)
    except BaseException:  # not committed: the file holds no key
        for path in written:
            path.unlink(missing_ok=True)
        raise
    if as_json:
        show_json({**_shown(record), **({} if output else {"key": secret})})
    elif output is not None:
        say(f"key {record.id} ({', '.join(record.scopes)}) written to {output}")
    else:
        typer.echo(secret)


@app.command("list")
def list_keys(data_dir: DataDir = None, config: Config = None, as_json: Json = False) -> None:
    """All keys, but not what they are: that is shown only when one is made."""
    records = in_database(keys.load, data_dir, config)
    if as_json:
        show_json({"items": [_shown(record) for record in records]})
        return
    columns = ("id", "name", "begins with", "scopes", "directories", "created", "expires", "last used")
    rows = [
        (
            record.id,
            record.name,
            record.prefix,
            record.scopes,
            record.directories,
            *(local_time(_time(at)) for at in (record.created_at, record.expires_at, record.last_used_at)),
        )
        for record in records
    ]
    out().print(table(columns, rows, right=("id",)))


@app.command()
def revoke(
    key_id: Annotated[int, typer.Argument(metavar="ID", help="As `mpu key list` shows it.")],
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Make a key useless: a running service refuses it within a second. The last admin key stays: make one first."""

    def remove(session: Session) -> keys.KeyRecord:
        now = CLOCK.now()
        record = keys.delete(session, key_id, now=now)
        facts = keys.deleted_facts(record)
        audit.record(session, key=ACTOR, action="key.delete", target=str(key_id), now=now, changes=facts)
        return record

    record = in_database(remove, data_dir, config)
    say(f"key {record.id} ({record.name}) is revoked")


def in_database(run: Callable[[Session], T], data_dir: Path | None, config: Path | None) -> T:
    """Run this in one writing transaction on this machine's database. Raises RelayError."""
    settings = local_settings(data_dir, config)
    secret_key = settings.secret_key.get_secret_value() if settings.secret_key else None

    async def inside() -> T:
        store = Store.open(str(settings.data_dir), clock=CLOCK, create=False, secret_key=secret_key)
        try:
            return await store.write(run)
        finally:
            await asyncio.to_thread(store.close)

    with DataDirLock(settings.data_dir):
        return asyncio.run(inside())


def _checked(name: str, scopes: list[Scope], names: list[str]) -> KeyIn:
    try:
        return KeyIn.model_validate({"name": name, "scopes": [str(scope) for scope in scopes], "directories": names})
    except ValidationError as error:
        hints = {"name": "NAME", "scopes": "--scope", "directories": "--directory"}
        item = error.errors()[0]
        detail = item["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(detail, param_hint=hints.get(str(item["loc"][0]))) from None


def _shown(record: keys.KeyRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "name": record.name,
        "scopes": record.scopes,
        "directories": record.directories,
        "created_at": _time(record.created_at),
        "expires_at": _time(record.expires_at),
        "last_used_at": _time(record.last_used_at),
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
