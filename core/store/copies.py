"""Copies of the database for bad days: made while the service runs, checked before they count, brought back whole.

A copy is one SQLite file (no -wal beside it), mode 0600, and, where asked for, `FILE.key` with the encryption key. A
restore first checks everything in a staged file in the data directory; then the old files go into a folder beside the
database. A kill in between leaves either the old database or none, and with none nothing starts in silence: the same
restore finishes the work.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from core.errors import AlreadyExists, DatabaseNewer, DatabaseUnavailable, SecretKeyLost, StorageFull
from core.store import engine, secrets
from core.store.secrets import KEY_FILE, Secrets, read_keys, write_keys
from core.store.store import DATABASE_FILE, leave_mark

KEY_SUFFIX = ".key"  # of the encryption key beside a copy
_BESIDE = ("-wal", "-shm", "-journal")  # SQLite's own files; they belong to one database and to no other
_STAGED = ".new"  # end of the name of a file that is not finished
_UNTOUCHED = "take another copy; nothing was changed"


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    revision: str  # schema of the copy, before it was migrated
    kept: str | None  # folder with the files that were there before; None: there were none
    lost: tuple[str, ...]  # accounts whose passwords no key at hand opens


# --- backup -----------------------------------------------------------------------------------------------------------


def back_up(data_dir: str, target: str, *, with_key: bool = False, overwrite: bool = False) -> int:
    """Copy the database to the file `target`, checked; its size in octets. Blocks; other connections may write.

    `with_key`: the key file goes to `target`.key. Raises AlreadyExists, DatabaseUnavailable, SecretKeyLost,
    StorageFull.
    """
    path = os.path.join(os.path.abspath(data_dir), DATABASE_FILE)
    engine.prepare(path, create=False)
    if os.path.lexists(target) and os.path.realpath(target) in (path, os.path.realpath(path)):
        raise AlreadyExists(f"{target} is the database itself", remedy="name another file")
    targets = [target, target + KEY_SUFFIX] if with_key else [target]
    for name in targets:
        if not overwrite and os.path.lexists(name):
            raise AlreadyExists(f"{name} exists", remedy="name another file, or overwrite it with --overwrite")
    keys = _keys_for_copy(data_dir) if with_key else ()
    with _writing(target):
        with _staged(os.path.dirname(os.path.abspath(target)), os.path.basename(target)) as staged:
            _copy_online(path, staged)
            _check(staged, "PRAGMA quick_check(1)", "the copy", "look at the disk, then try again")
            size = os.path.getsize(staged)
            _into_place(staged, target, overwrite=overwrite)
        if with_key:
            write_keys(target + KEY_SUFFIX, keys)
    return size


def _keys_for_copy(data_dir: str) -> Sequence[str]:
    path = os.path.join(data_dir, KEY_FILE)
    try:
        return read_keys(path)
    except (OSError, ValueError) as error:
        raise SecretKeyLost(
            f"there is no usable key in {path}: {getattr(error, 'strerror', None) or error}",
            remedy="leave out --with-key; a key of MPU_SECRET_KEY is kept where that comes from",
        ) from None


def _copy_online(path: str, staged: str) -> None:
    try:
        with (
            closing(engine.connect(path)) as source,
            closing(sqlite3.connect(staged, isolation_level=None)) as copy,
        ):
            source.backup(copy)  # in one step: one state of the database, and in WAL mode nobody waits for it
            copy.execute("PRAGMA journal_mode=DELETE").close()  # one file, which opens on read-only media too
    except sqlite3.Error as error:
        raise engine.translate(error, path) from error


# --- restore ----------------------------------------------------------------------------------------------------------


def restore(
    data_dir: str, source: BinaryIO, key_source: BinaryIO | None, *, stamp: str, secret_key: str | None = None
) -> Restored:
    """Put the copy in `source` in the place of the database. Nobody else may use the data directory meanwhile.

    `key_source`: the key file kept with it; `secret_key`: MPU_SECRET_KEY; `stamp` names the folder for the old files.
    Raises DatabaseUnavailable, DatabaseNewer, SecretKeyLost (key_source is no key file), StorageFull; then nothing was
    changed.
    """
    data_dir = os.path.abspath(data_dir)
    path, key_path = os.path.join(data_dir, DATABASE_FILE), os.path.join(data_dir, KEY_FILE)
    with _writing(path):
        _sweep(data_dir)
        with _staged(data_dir, DATABASE_FILE) as staged:
            _read_into(source, staged)
            revision = _examine(staged, str(source.name))
            present = _present_keys(key_path)
            added = _keys_of(key_source) if key_source is not None and not secret_key else []
            keys = list(dict.fromkeys([*added, *present]))
            lost = _lost(staged, secrets.load(data_dir, secret_key) if secret_key else Secrets(keys, key_path))
            _finish(staged)
            leave_mark(data_dir)  # from here on a missing database is a lost one
            kept = _new_folder(data_dir, stamp) if _old(path) or os.path.lexists(key_path) else None
            if kept is not None and os.path.lexists(key_path):
                os.link(key_path, os.path.join(kept, KEY_FILE), follow_symlinks=False)  # write_keys makes a new file
            if keys != present:  # old and new: they open whichever database a kill leaves; the next start drops the old
                write_keys(key_path, keys)
            if kept is not None:
                _set_aside(path, kept)
            os.rename(staged, path)
            _sync(data_dir)
    return Restored(revision, kept, lost)


def _sweep(data_dir: str) -> None:
    """What a restore that was killed left behind."""
    for name in os.listdir(data_dir):
        if name.startswith(f".{DATABASE_FILE}.") and _STAGED in name:
            os.unlink(os.path.join(data_dir, name))


def _read_into(source: BinaryIO, staged: str) -> None:
    name = source.name
    status = os.fstat(source.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise DatabaseUnavailable(f"{name} is no file", remedy=_UNTOUCHED)
    beside = f"{name}-wal"
    if os.path.exists(beside) and os.path.getsize(beside):
        raise DatabaseUnavailable(
            f"{beside} lies beside it: this is no finished copy",
            remedy=f"sqlite3 {name} 'PRAGMA wal_checkpoint(TRUNCATE)' finishes it; `mpu backup` makes finished ones",
        )
    with open(staged, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _examine(staged: str, name: str) -> str:
    """Whole, ours, and not of a newer MPU: then brought to the present schema. The revision that it had."""
    try:
        engine.prepare(staged, create=False)
        with closing(sqlite3.connect(staged)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        _check(staged, "PRAGMA integrity_check(1)", name, _UNTOUCHED)
        engine.migrate(staged)
    except sqlite3.Error as error:
        raise DatabaseUnavailable(f"{name} is damaged or no database of MPU: {error}", remedy=_UNTOUCHED) from None
    except DatabaseNewer as error:
        raise DatabaseNewer(
            error.detail.replace(staged, name), remedy="install the newer version, then restore it"
        ) from None
    except DatabaseUnavailable as error:
        raise DatabaseUnavailable(error.detail.replace(staged, name), remedy=_UNTOUCHED) from None
    if row is None:
        raise DatabaseUnavailable(f"{name} is no database of MPU", remedy=_UNTOUCHED)
    return str(row[0])


def _keys_of(file: BinaryIO) -> list[str]:
    try:
        return secrets.parse_keys(file.read(secrets.MAX_KEY_FILE_CHARACTERS).decode("ascii"))
    except ValueError:
        raise SecretKeyLost(
            f"{file.name} is no key file", remedy="restore without it: --without-key; nothing was changed"
        ) from None


def _present_keys(path: str) -> list[str]:
    try:
        return read_keys(path)
    except (OSError, ValueError):
        return []


def _lost(staged: str, sealed: Secrets) -> tuple[str, ...]:
    writer = engine.writer_engine(staged)
    try:
        with writer.begin() as connection, Session(bind=connection) as session:
            return tuple(secrets.lost(session, sealed))
    except DBAPIError as error:
        raise engine.translate(error, staged) from error
    finally:
        writer.dispose()


def _finish(staged: str) -> None:
    """One file, on the disk."""
    try:
        with closing(sqlite3.connect(staged, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE").close()
    except sqlite3.Error as error:
        raise engine.translate(error, staged) from error
    _sync(staged)


def _old(path: str) -> list[str]:
    return [path + suffix for suffix in ("", *_BESIDE) if os.path.lexists(path + suffix)]


def _new_folder(data_dir: str, stamp: str) -> str:
    for number in range(1, 1000):
        folder = os.path.join(data_dir, f"before-restore-{stamp}" + (f"~{number}" if number > 1 else ""))
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
            return folder
    raise AlreadyExists(f"{folder} exists", remedy="move the old ones away")


def _set_aside(path: str, folder: str) -> None:
    """Move the old database away: the main file first, since without it its -wal is not looked at."""
    for name in _old(path):
        os.rename(name, os.path.join(folder, os.path.basename(name)))
    _sync(folder)
    _sync(os.path.dirname(path))


# --- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """Errors of the file system in our words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no space left for {path}", remedy="make room, then try again") from error
        raise DatabaseUnavailable(
            f"{error.filename or path} can't be used: {error.strerror}", remedy="name another file, or mend its rights"
        ) from error


@contextmanager
def _staged(folder: str, name: str) -> Iterator[str]:
    """A new file of our own (0600) in this folder, gone at the end with what SQLite laid beside it."""
    descriptor, staged = tempfile.mkstemp(prefix=f".{name}.", suffix=_STAGED, dir=os.path.abspath(folder))
    os.close(descriptor)
    try:
        yield staged
    finally:
        for suffix in ("", *_BESIDE):
            with suppress(FileNotFoundError):
                os.unlink(staged + suffix)


def _check(path: str, pragma: str, name: str, remedy: str) -> None:
    """Raises DatabaseUnavailable where SQLite finds it damaged."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            verdict = connection.execute(pragma).fetchone()[0]
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict != "ok":
        raise DatabaseUnavailable(f"{name} is damaged: {verdict}", remedy=remedy)


def _into_place(staged: str, target: str, *, overwrite: bool) -> None:
    _sync(staged)
    if overwrite:
        os.rename(staged, target)
    else:
        try:
            os.link(staged, target)
        except FileExistsError:
            raise AlreadyExists(f"{target} exists", remedy="name another file") from None
        except OSError:  # a file system without hard links
            os.rename(staged, target)
    _sync(os.path.dirname(os.path.abspath(target)))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
