"""The store: one SQLite file in the data directory, its ledger, its readers and its secrets. Opened and closed in the
composition root.

`open` blocks (it may migrate); the rest is for the event loop. What happens in `read` and `write` must be short: no
session is open while the network is used.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from core.domain.clock import Clock
from core.errors import DatabaseUnavailable, RelayError, SecretKeyLost
from core.store import engine, secrets
from core.store.ledger import Ledger
from core.store.secrets import Secrets

T = TypeVar("T")

DATABASE_FILE = "mpu.sqlite3"
MARK_FILE = "database-made"  # core/settings.py looks for it before it lets a database be made


class Store:
    """Made by `Store.open`. `secret_error`: the keys don't open all passwords; then nothing may be sent."""

    def __init__(self, path: str, *, clock: Clock, sealed: Secrets) -> None:
        self.path = path
        self.secrets = sealed
        self.secret_error: SecretKeyLost | None = None
        self.created = False  # the database was made just now
        self._readers = engine.reader_engine(path)
        self._threads = ThreadPoolExecutor(engine.READERS, thread_name_prefix="mpu-read")
        self._rotation = asyncio.Lock()
        self.ledger = Ledger(path, clock=clock, readers=[self._readers])

    @staticmethod
    def open(
        data_dir: str,
        *,
        clock: Clock,
        create: bool = True,
        secret_key: str | None = None,
        mountinfo: str = "/proc/self/mountinfo",
    ) -> Store:
        """Check, migrate and open. Blocks. `create`: a missing data directory or database is made.

        Raises DatabaseUnavailable, DatabaseNewer, InvalidSettings (secret_key), StorageFull. A key that doesn't fit is
        no error here: see `secret_error`.
        """
        path = os.path.join(os.path.abspath(data_dir), DATABASE_FILE)
        try:
            if create:
                os.makedirs(data_dir, mode=0o700, exist_ok=True)
            created = engine.prepare(path, create=create, mountinfo=mountinfo)
            engine.migrate(path)
            sealed = secrets.load(os.path.dirname(path), secret_key)
            error = _settle_keys(path, sealed)
            leave_mark(os.path.dirname(path))
        except OSError as failure:
            raise DatabaseUnavailable(
                f"the data directory {data_dir} can't be used: {failure.strerror}",
                remedy="give it to the service's user",
            ) from failure
        store = Store(path, clock=clock, sealed=sealed)
        store.created = created
        store.secret_error = error
        return store

    async def read(self, run: Callable[[Session], T]) -> T:
        """Run this in a thread with a session that can't write, and sees one state of the database throughout.

        Raises what it raised, and DatabaseUnavailable.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.read_now, run)

    def read_now(self, run: Callable[[Session], T]) -> T:
        """As `read`, in the calling thread; blocks."""
        try:
            with self._readers.begin() as connection, Session(bind=connection, expire_on_commit=False) as session:
                return run(session)
        except (DBAPIError, sa.exc.TimeoutError, sqlite3.Error) as error:
            engine.renew(error, self._readers)
            raise engine.translate(error, self.path) from error

    def write(self, run: Callable[[Session], T]) -> asyncio.Future[T]:
        """See Ledger.write."""
        return self.ledger.write(run)

    @property
    def healthy(self) -> bool:
        """Whether outcomes can be recorded and passwords opened: else nothing may be claimed."""
        return self.ledger.healthy and self.secret_error is None

    @property
    def problem(self) -> RelayError | None:
        """What stands in the way of sending."""
        return self.ledger.health.error or self.secret_error

    async def check_secrets(self) -> SecretKeyLost | None:
        """Look again whether the keys open everything; to be called when an account's password was changed."""
        self.secret_error = await self.write(lambda session: secrets.verify(session, self.secrets))
        return self.secret_error

    async def rotate_secret_key(self, *, step: secrets.Step = secrets.no_step) -> None:
        """A new key; everything sealed with it; the old one forgotten. `step` is told what was just done.

        Raises StateConflict where the key comes from the environment, SecretKeyLost while a password doesn't open.
        """
        async with self._rotation:
            error = await self.check_secrets()
            if error is not None:
                raise error
            await asyncio.to_thread(self.secrets.add_key)
            step("added")
            await self.write(lambda session: secrets.reseal(session, self.secrets))
            step("resealed")
            await asyncio.to_thread(self.secrets.drop_old_keys)
            step("dropped")

    def close(self, timeout_seconds: float = 20) -> bool:
        """Finish what is queued, then close; blocks. False: time was up and some of it is not committed."""
        finished = self.ledger.close(timeout_seconds)
        self._threads.shutdown(wait=True)
        self._readers.dispose()
        return finished


def leave_mark(data_dir: str) -> None:
    """Write down that there is a database, so that a lost one is not replaced in silence. Raises OSError."""
    path = os.path.join(data_dir, MARK_FILE)
    if os.path.exists(path):
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write("A database was made here. If it is lost, MPU makes another one only with --new-database.\n")


def _settle_keys(path: str, sealed: Secrets) -> SecretKeyLost | None:
    """Whether the keys fit; and the end of a rotation that was interrupted."""
    writer = engine.writer_engine(path)
    try:
        with writer.begin() as connection, Session(bind=connection) as session:
            error = secrets.verify(session, sealed)
            if error is None and sealed.old_keys:
                secrets.reseal(session, sealed)
            session.flush()
    except (DBAPIError, sqlite3.Error) as failure:
        raise engine.translate(failure, path) from failure
    finally:
        writer.dispose()
    if error is None and sealed.old_keys:
        sealed.drop_old_keys()
    return error
