"""`mpu backup` and `mpu restore`: a copy of the database while the service runs, and the way back without it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from api.cli.output import complain, say, size
from api.cli.settings import Config, DataDir, local_settings, prepare_data_dir
from core.errors import DatabaseUnavailable, StateConflict
from core.runtime.instance import DataDirLock
from core.store import copies


def backup(
    file: Annotated[Path, typer.Argument(help="Where the copy goes (0600).", dir_okay=False)],
    with_key: Annotated[
        bool, typer.Option("--with-key", help="The encryption key too, to FILE.key: together they open the passwords.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files if they exist.")] = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Copy the database to FILE and check the copy. The service may run; mail is no part of it."""
    settings = local_settings(data_dir, config, become_owner=False)
    if with_key and settings.secret_key is not None:
        raise StateConflict(
            "the encryption key comes from MPU_SECRET_KEY",
            state="from_environment",
            remedy="leave out --with-key, and keep a copy of that variable elsewhere",
        )
    _refuse_another_users(settings.database_file, settings.data_dir)
    with _shared_lock(settings.data_dir):
        octets = copies.back_up(str(settings.data_dir), str(file), with_key=with_key, overwrite=overwrite)
    say(f"{file}: {size(octets)}, checked")
    if with_key:
        say(f"{file}{copies.KEY_SUFFIX}: the encryption key. Who has both files can read the passwords.")
    elif settings.secret_key is None:
        say(f"The encryption key is not in it: keep a copy of {settings.secret_key_file} elsewhere.")


def restore(
    file: Annotated[Path, typer.Argument(help="What `mpu backup` made.", dir_okay=False)],
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Leave FILE.key alone if there is one: the present key fits.")
    ] = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Put the copy in the place of the database; the old files are kept aside. Stop the service first."""
    with ExitStack() as open_files:
        source = open_files.enter_context(_opened(file))  # as who calls; what follows runs as the service's user
        key_file = Path(f"{file}{copies.KEY_SUFFIX}")
        key_source = None
        if not without_key and key_file.exists():
            key_source = open_files.enter_context(_opened(key_file))
        settings = local_settings(data_dir, config, become_owner=False)
        prepare_data_dir(settings.data_dir)
        settings = local_settings(data_dir, config)
        with DataDirLock(settings.data_dir, exclusive=True):
            done = copies.restore(
                str(settings.data_dir),
                source,
                key_source,
                stamp=datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
                secret_key=settings.secret_key.get_secret_value() if settings.secret_key else None,
            )
    say(f"{settings.database_file} is the copy {file} now; start the service")
    if done.kept is not None:
        say(f"What was there before is kept in {done.kept}; delete it when all is well.")
    if done.lost:
        complain(
            "no key at hand opens the passwords of " + ", ".join(done.lost),
            "Put the secret.key of that time into the data directory, or enter these passwords again after the start.",
        )


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise DatabaseUnavailable(f"{file} can't be read: {error.strerror}", remedy="Name another file.") from None


def _refuse_another_users(database: Path, data_dir: Path) -> None:
    """Root follows no link that the service's user could have laid to a file that isn't his."""
    if os.geteuid() == 0 and database.exists() and database.stat().st_uid != data_dir.stat().st_uid:
        raise DatabaseUnavailable(
            f"{database} does not belong to the owner of {data_dir}", remedy="Give both to the service's user."
        )


def _shared_lock(data_dir: Path) -> DataDirLock:
    """Taken by root too, without leaving a lock file that would keep the service's user out."""
    lock = DataDirLock(data_dir)
    if os.geteuid() == 0:
        status = data_dir.stat()
        os.chown(data_dir / "mpu.lock", status.st_uid, status.st_gid, follow_symlinks=False)
    return lock
