"""Two SQLAlchemy engines on one SQLite file, and what must hold before they may be used.

The writer says BEGIN IMMEDIATE, so that a transaction that reads first can't fail later for a lock; the readers say
plain BEGIN and are `query_only`. With one engine reads would wait for group commits. WAL and synchronous=FULL: what is
committed survives a power cut, which the spool relies on when it unlinks a file.

What is refused, since mail would be sent on the strength of a history that can't be kept: a missing or empty file
(unless it is to be created), one that is damaged or isn't ours, one of a newer MPU, and one on a network file system,
where WAL's shared memory does not work. Only `prepare` creates a file; others open it as it is (`connect`), and a
running service notices when it was deleted or replaced (`DatabaseFile`). All driver errors become errors of
core/errors.py here (`translate`).
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing, suppress
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from core.errors import DatabaseNewer, DatabaseUnavailable, StorageFull
from core.store.tables import REVISION, Row

READERS = 4  # threads, and connections for them
WAL_PAGES = 4000  # 16 MiB until it goes back into the file; a page that many groups touch goes back once
LOW_BYTES = 64 << 20  # of room on the file system: see spare_room
BUSY_TIMEOUT_SECONDS = 2.0  # that SQLite itself waits for another process's lock, before we report it
_CHECKED_BYTES = 32 << 20  # up to here the whole file is checked at the start; a second or so of reading
_MAGIC = b"SQLite format 3\0"
DAMAGED = (
    "stop MPU, then `mpu restore FILE` with a copy of `mpu backup`; without one move the file away and start with "
    "--new-database: settings and history are gone then, all mail is still there"
)
_LOST = (
    "`mpu restore FILE` brings a copy back; `mpu serve --new-database` starts empty: settings and history are gone "
    "then, all mail is still there"
)
_PUT_BACK = (
    "stop MPU, put the file back, or a copy of `mpu backup` with `mpu restore FILE`, and start it again; all mail is "
    "still there"
)
_GIVE = (
    "give the service's user the right to write the file, the -wal and -shm beside it and their folder, or make the "
    "file system writable; it is tried again by itself"
)
_NOT_WRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH)
_NETWORK = ("nfs", "cifs", "smb", "afs", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "davfs")


class DatabaseFile:
    """The file at `path` as it is now, to be known again: what is committed to one that was deleted is lost."""

    def __init__(self, path: str) -> None:
        """Raises DatabaseUnavailable where there is none."""
        self.path = path
        self._identity: tuple[int, int] | None = None
        try:
            self._identity = _identity(path)
        except OSError:
            self.check()  # says what is the matter

    def problem(self) -> DatabaseUnavailable | None:
        """None: the path still leads to this file. A stat."""
        try:
            if _identity(self.path) == self._identity:
                return None
            what = "was replaced by another file"
        except FileNotFoundError:
            what = "is gone"
        except OSError as error:
            what = f"can't be reached: {error.strerror}"
        return DatabaseUnavailable(f"{self.path} {what}", remedy=_PUT_BACK)

    def check(self) -> None:
        """Raises `problem`."""
        problem = self.problem()
        if problem is not None:
            raise problem


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)  # opening it instead would, at the close, take SQLite's locks away
    return status.st_dev, status.st_ino


def connect(path: str, *pragmas: str) -> sqlite3.Connection:
    """A connection to a file that is there; it creates none. Transactions are the caller's. Raises sqlite3.Error."""
    address = f"file://{quote(os.fsencode(os.path.abspath(path)))}?mode=rw"
    connection = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None)
    try:
        for pragma in (f"busy_timeout={int(BUSY_TIMEOUT_SECONDS * 1000)}", *pragmas):
            connection.execute(f"PRAGMA {pragma}").close()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def writer_engine(path: str) -> sa.Engine:
    """The one connection that writes. Use it from one thread at a time. Raises DatabaseUnavailable: no file."""
    return _engine(
        path,
        1,
        "BEGIN IMMEDIATE",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "cache_size=-32768",  # 32 MiB, for the warm ends of the indexes
        f"wal_autocheckpoint={WAL_PAGES}",
        "journal_size_limit=67108864",
    )


def reader_engine(path: str) -> sa.Engine:
    """A small pool of connections that can't write. Raises DatabaseUnavailable: no file.

    Not opened with mode=ro: the connection that closes last puts the WAL back into the file, and may be one of these.
    """
    return _engine(path, READERS, "BEGIN", "query_only=ON", "cache_size=-16384")


def _engine(path: str, size: int, begin: str, *pragmas: str) -> sa.Engine:
    file = DatabaseFile(path)

    def connected() -> sqlite3.Connection:
        file.check()  # a later connection must not be one to another file
        return connect(path, *pragmas)

    url = sa.URL.create("sqlite+pysqlite", database=path)
    engine = sa.create_engine(url, creator=connected, poolclass=QueuePool, pool_size=size, max_overflow=0)

    @sa.event.listens_for(engine, "begin")
    def begins(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def spare_room(engine: sa.Engine, path: str) -> None:
    """Where little room is left, the WAL goes back into the file after each group, and begins anew.

    It would else take the last of the room for itself, and then there is none left for putting it back.
    """
    with suppress(OSError, DBAPIError, sqlite3.Error):  # no room for that either: the commit says so
        found = os.statvfs(path)
        if found.f_bavail * found.f_frsize < LOW_BYTES:
            with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
                cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")  # waits for no reader


def renew(error: Exception, *engines: sa.Engine) -> None:
    """Let the next try open anew where connections keep what is the matter: they would fail for ever.

    All of the process, since they share the -shm: one that was opened read-only stays so for all of them.
    """
    if _code(error) in (*_NOT_WRITABLE, sqlite3.SQLITE_IOERR):
        for engine in engines:
            engine.dispose()


def _code(error: Exception) -> int:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return int(getattr(cause, "sqlite_errorcode", 0)) & 0xFF


def translate(error: Exception, path: str = "the database") -> DatabaseUnavailable | StorageFull:
    """The error of core/errors.py for one of the driver, or of SQLAlchemy around it; one of these as it is."""
    if isinstance(error, DatabaseUnavailable):
        return error
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"no space left for {path}: {cause}", remedy="make room; sending goes on by itself")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseUnavailable(
            f"{path} is locked by another program: {cause}", remedy="end the program that keeps it locked"
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DatabaseUnavailable(
            f"{path} is damaged: {cause}",
            remedy=DAMAGED,
        )
    if code in _NOT_WRITABLE:
        return DatabaseUnavailable(f"{path} can't be opened for writing: {cause}", remedy=_GIVE)
    return DatabaseUnavailable(f"{path} can't be used: {cause}", remedy="see the detail and the log of the system")


def file_system_of(path: str, mountinfo: str = "/proc/self/mountinfo") -> str | None:
    """Type of the file system that `path` lies on, as in mount(8); None where that can't be told (not Linux)."""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    best, found = -1, None
    for line in lines:
        fields = line.split()
        if "-" not in fields[6:]:
            continue
        mount = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= best:  # the later line of one mount point lies on top
            best, found = len(mount), fields[fields.index("-", 6) + 1]
    return found


def prepare(path: str, *, create: bool, mountinfo: str = "/proc/self/mountinfo") -> bool:
    """Make sure that a database may be opened at `path`; says whether it was created just now.

    Raises DatabaseUnavailable with a remedy. The file gets mode 0600; SQLite gives the files beside it the same.
    """
    folder = os.path.dirname(os.path.abspath(path))
    kind = file_system_of(folder, mountinfo)
    if kind is not None and kind.startswith(_NETWORK):
        raise DatabaseUnavailable(
            f"{path} lies on a network file system ({kind}), where SQLite can't keep it whole",
            remedy="put the data directory on a local disk; pickup directories may stay on the network",
        )
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return _create(path, allowed=create)
    except OSError as error:
        raise DatabaseUnavailable(f"{path} can't be reached: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DatabaseUnavailable(f"{path} is not a file", remedy="move it away")
    try:
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.chmod(path, 0o600)
        with open(path, "rb") as file:
            magic = file.read(16)
    except OSError as error:
        raise DatabaseUnavailable(
            f"{path} can't be opened: {error.strerror}", remedy="give the file to the service's user"
        ) from error
    if not magic:  # a start that was killed before it made the tables, or what is left of a lost one
        if not create:
            raise DatabaseUnavailable(f"{path} is empty, the database is lost", remedy=_LOST)
        return True
    if magic != _MAGIC:
        raise DatabaseUnavailable(f"{path} is damaged or no database", remedy=DAMAGED)
    return False


def _create(path: str, *, allowed: bool) -> bool:
    if not allowed:
        raise DatabaseUnavailable(f"there is no database at {path}", remedy=_LOST)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    except OSError as error:
        raise DatabaseUnavailable(
            f"{path} can't be created: {error.strerror}", remedy="give the folder to the service's user"
        ) from error
    return True


def migrate(path: str) -> None:
    """Bring the database at `path` to the present schema, all or nothing.

    Raises DatabaseNewer where it was written by a newer MPU, DatabaseUnavailable where it is damaged, not ours or can
    only be read.
    """
    for name in (path, f"{path}-wal", f"{path}-shm"):  # before SQLite makes a -shm as read-only as the file
        if os.path.exists(name) and not os.access(name, os.W_OK, effective_ids=True):
            raise DatabaseUnavailable(f"{name} can't be written", remedy=_GIVE)
    engine = writer_engine(path)
    try:
        with engine.begin() as connection:
            present = _revision(connection, path)
            if present != REVISION:
                _upgrade(connection, present, path)
            _whole(connection, path)
        with engine.begin() as connection:
            if os.path.getsize(path) <= _CHECKED_BYTES:
                verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                if verdict != "ok":
                    raise DatabaseUnavailable(
                        f"{path} is damaged: {verdict}",
                        remedy=DAMAGED,
                    )
            # Only a write shows that there can be one: on a read-only file BEGIN IMMEDIATE is a plain BEGIN in silence.
            version = connection.exec_driver_sql("PRAGMA user_version").scalar()
            connection.exec_driver_sql(f"PRAGMA user_version = {version}")
    except (DBAPIError, sqlite3.Error) as error:
        raise translate(error, path) from error
    finally:
        engine.dispose()


def _revision(connection: sa.Connection, path: str) -> str | None:
    """None: there is nothing in it yet. Raises DatabaseUnavailable where it isn't ours, or no longer whole."""
    found = _tables(connection)
    if not found:
        return None
    ours = set(Row.metadata.tables)
    if len(found & ours) * 2 < len(ours):  # others have an `account` too, and newer MPUs other tables beside these
        raise DatabaseUnavailable(f"{path} is another program's database", remedy="move it away")
    revision = None
    if "alembic_version" in found:
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if revision is None:
        raise DatabaseUnavailable(f"{path} is damaged: it does not say of which version it is", remedy=DAMAGED)
    return str(revision)


def _whole(connection: sa.Connection, path: str) -> None:
    """Raises DatabaseUnavailable where a table of the present schema is missing."""
    missing = set(Row.metadata.tables) - _tables(connection)
    if missing:
        raise DatabaseUnavailable(f"{path} is damaged: without {', '.join(sorted(missing))}", remedy=DAMAGED)


def _tables(connection: sa.Connection) -> set[str]:
    return set(connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars())


def _upgrade(connection: sa.Connection, present: str | None, path: str) -> None:
    from alembic import command  # only where there is something to do: it takes a while to load
    from alembic.script import ScriptDirectory

    config = alembic_config()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if present is not None and present not in known:
        raise DatabaseNewer(
            f"{path} was written by a newer MPU (its schema is {present}, this one knows {REVISION})",
            remedy="install the newer version again, or restore the copy made before the upgrade",
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def alembic_config() -> Any:
    """Alembic's configuration, which needs no file: it works from an installed package."""
    from alembic.config import Config

    import migrations

    config = Config()
    folder = os.path.dirname(os.path.abspath(str(migrations.__file__)))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
