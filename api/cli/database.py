"""`mpu migrate`, `rotate-secrets`, `secret-key`: what is done to the database and its key without a service."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from api.cli.output import EXIT_FAILED, complain, say
from api.cli.settings import Config, DataDir, local_settings
from core.runtime.clock import SystemClock
from core.runtime.instance import DataDirLock
from core.store import engine
from core.store.store import Store


def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Touch nothing: do the tables match what the migrations make?")
    ] = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Bring the database to this version's schema. `mpu serve` does it at each start."""
    if check:
        _check()
        return
    settings = local_settings(data_dir, config)
    path = str(settings.database_file)
    with DataDirLock(settings.data_dir):
        engine.prepare(path, create=settings.may_create_database)
        engine.migrate(path)
    say(f"{path} is up to date")


def _check() -> None:
    """`alembic check` on a scratch database that all migrations made."""
    from alembic import command
    from alembic.util import CommandError

    with tempfile.TemporaryDirectory(prefix="mpu-schema-") as folder:
        path = os.path.join(folder, "scratch.sqlite3")
        engine.prepare(path, create=True)
        engine.migrate(path)
        writer = engine.writer_engine(path)
        configuration = engine.alembic_config()
        configuration.stdout = io.StringIO()  # it says the same as we do below
        try:
            with writer.begin() as connection:
                configuration.attributes["connection"] = connection
                command.check(configuration)
        except CommandError as error:
            complain(str(error), "Add a migration: alembic -c migrations/alembic.ini revision --autogenerate")
            raise typer.Exit(EXIT_FAILED) from None
        finally:
            writer.dispose()
    say("the tables are what the migrations make")


def rotate_secrets(data_dir: DataDir = None, config: Config = None) -> None:
    """Make a new encryption key and seal all passwords anew. Stop the service first; a kill harms nothing."""
    settings = local_settings(data_dir, config)
    with DataDirLock(settings.data_dir, exclusive=True):
        asyncio.run(_rotate(settings.data_dir, settings.secret_key.get_secret_value() if settings.secret_key else None))
    say(f"all passwords are sealed with a new key in {settings.secret_key_file}; keep a copy of it elsewhere")


async def _rotate(data_dir: Path, secret_key: str | None) -> None:
    store = Store.open(str(data_dir), clock=SystemClock(), create=False, secret_key=secret_key)
    try:
        await store.rotate_secret_key()
    finally:
        await asyncio.to_thread(store.close)


def secret_key() -> None:
    """Print a new key for MPU_SECRET_KEY."""
    from cryptography.fernet import Fernet

    typer.echo(Fernet.generate_key().decode())
