"""The settings of the service on this machine, for commands that work without it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from core.errors import DatabaseUnavailable
from core.settings import DEMO_DATA_DIR, Settings, load_settings

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Database and keys. [env: MPU_DATA_DIR]")]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file with settings. [env: MPU_CONFIG]")]


def local_settings(data_dir: Path | None, config: Path | None, *, become_owner: bool = True) -> Settings:
    """As `mpu serve` would read them, but that in a folder where `make run` ran ./var is used by itself.

    With `become_owner` root goes on as the owner of the data directory: files that root leaves there would lock the
    service out. Raises SettingsError, DatabaseUnavailable.
    """
    options: dict[str, object] = {"data_dir": data_dir}
    here = (DEMO_DATA_DIR / "mpu.sqlite3").is_file()
    if data_dir is None and not os.environ.get("MPU_DATA_DIR") and config is None and here:
        options["demo"] = True
    settings = load_settings(options, config=config).settings
    if become_owner:
        _become_owner(settings.data_dir)
    return settings


def prepare_data_dir(data_dir: Path) -> None:
    """Make it, and keep others out (0700). Raises DatabaseUnavailable."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if data_dir.stat().st_mode & 0o077:
            data_dir.chmod(0o700)
    except OSError as error:
        raise _unusable(
            data_dir, error, "Make it and give it to the service's user, or choose another: --data-dir or MPU_DATA_DIR."
        ) from None


def _become_owner(data_dir: Path) -> None:
    try:
        status = data_dir.stat()
    except OSError as error:
        raise _unusable(
            data_dir, error, "Name the right one: --data-dir or MPU_DATA_DIR; run it as root or as the service's user."
        ) from None
    if os.geteuid() == 0 and status.st_uid != 0:
        os.setgroups([])
        os.setresgid(status.st_gid, status.st_gid, status.st_gid)
        os.setresuid(status.st_uid, status.st_uid, status.st_uid)


def _unusable(data_dir: Path, error: OSError, remedy: str) -> DatabaseUnavailable:
    why = error.strerror
    for path in (data_dir, *data_dir.parents):  # of a link without an end mkdir says that it exists
        if path.is_symlink() and not path.exists():
            why = f"{path} is a link to {path.readlink()}, which is not there"
    return DatabaseUnavailable(f"the data directory {data_dir} can't be used: {why}", remedy=remedy)
