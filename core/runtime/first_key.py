"""The first API key: of an empty database, or given from outside.

Without MPU_API_KEY the first start makes an admin key and writes it to `api-key` in the data directory (0600), the only
place where it can be read. The file is written inside the transaction, so that a kill leaves no key that nobody knows.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog
from sqlmodel import Session

from core.domain.clock import Clock
from core.errors import AlreadyExists, RelayError
from core.settings import Settings
from core.store import keys

log = structlog.get_logger()

NAME_MADE = "first key"
NAME_GIVEN = "MPU_API_KEY"


def ensure_key(session: Session, settings: Settings, clock: Clock) -> None:
    """Make sure that there is a key to begin with. To be called in one writing transaction at each start."""
    now = clock.now()
    if settings.api_key is not None:
        secret = settings.api_key.get_secret_value()
        if keys.authenticate(session, secret, now=now) is None:
            keys.create(session, name=NAME_GIVEN, scopes=["admin"], now=now, secret=secret)
            log.info("took an admin key over from MPU_API_KEY")
        return
    if keys.load(session):
        return
    _, secret = keys.create(session, name=NAME_MADE, scopes=["admin"], now=now)
    write_key(settings.api_key_file, secret)
    log.info("made a first admin key", file=str(settings.api_key_file))


def write_key(path: Path, secret: str) -> None:
    """Write the key so that only we can read it, whole or not at all. Raises RelayError."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.unlink(missing_ok=True)  # of a start that was killed
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        _fill(descriptor, secret)
        os.replace(temporary, path)
    except OSError as error:
        raise RelayError(
            f"the first API key can't be written to {path}: {error.strerror}",
            remedy="Give the data directory to the service's user, or bring a key along: MPU_API_KEY.",
        ) from None


def write_new_key(path: Path, secret: str) -> None:
    """The same to a file of the caller's choice, which must not be there yet. Raises AlreadyExists, RelayError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise AlreadyExists(f"{path} is there already", remedy="Name a new file, or remove that one first.") from None
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        _fill(descriptor, secret)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> RelayError:
    return RelayError(f"the API key can't be written to {path}: {error.strerror}", remedy="Name another file.")


def _fill(descriptor: int, secret: str) -> None:
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(descriptor)
