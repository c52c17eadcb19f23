"""The ledger: the one thread that writes to the database, and disposes of files once it has.

`settle` puts an entry into a queue and returns at once. The thread takes all that is queued, writes it in one
transaction, commits (synchronous=FULL), hands the disposals to their disposers, and then resolves the futures. So
groups grow with the load and an idle relay waits for nothing.

Guarantees:
- A file is disposed of only after the outcomes it stands for are committed; and they are committed only after the
  disposer made its own record of them last, so that a power cut in between repeats nothing.
- No outcome is dropped. While the database is locked, full or broken the entries wait here and are tried again with
  back-off, without end; `health` says so meanwhile, so that no new message is claimed. It recovers by itself.
- `write` has a transaction of its own; its errors go to the caller. While the database fails it fails at once.
- Nothing is committed to a file that was deleted or replaced meanwhile: it is looked for before each commit, and where
  the health is asked, since without mail there is no commit.

Without a database (`path=None`) entries are disposed of and not recorded.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlmodel import Session

from core.domain.clock import Clock
from core.errors import DatabaseUnavailable, NotRunning, RelayError
from core.store.engine import DatabaseFile, renew, spare_room, translate, writer_engine
from core.store.entry import Disposer, Entry
from core.store.record import record

T = TypeVar("T")
_log = logging.getLogger(__name__)

GROUP = 500  # entries a transaction at most
_SMALL_GROUP = 200  # below this a busy ledger waits a moment for more
_GATHER_STEP_SECONDS = 0.002
_GATHER_STEPS = 15
_LOOK_SECONDS = 0.1  # between looks for the file before claims, of which there are thousands a second
_BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether outcomes can be committed. `since`: seconds since the epoch."""

    healthy: bool = True
    error: RelayError | None = None
    since: float | None = None
    waiting: int = 0  # entries that could not be committed yet


@dataclass(slots=True)
class _Settlement:
    entry: Entry
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[object]


@dataclass(slots=True)
class _Job:
    run: Callable[[Session], Any] | None  # None: only a mark in the queue
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


_Item = _Settlement | _Job


@dataclass(frozen=True, slots=True)
class _Raised:
    """An answer that is to be raised. (A job may also return an exception.)"""

    error: BaseException


class Ledger:
    """See the module's text. Made and closed in the composition root; `settle` and `write` are called in a loop."""

    def __init__(self, path: str | None, *, clock: Clock, readers: Sequence[sa.Engine] = ()) -> None:
        """`readers`: other engines on the file, opened anew together with the ledger's own."""
        self._path = path
        self._clock = clock
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._backlog: deque[_Item] = deque()  # the thread's: taken from the queue, not yet worked on
        self._ended = False  # the thread's: nothing comes any more
        self._health = Health()
        self._closed = False
        self._closing = threading.Lock()  # nothing comes into the queue behind its end
        self._deadline: float | None = None  # of close(), by time.monotonic()
        self._stopping = threading.Event()
        self.on_health: Callable[[Health], None] | None = None  # at every change, in whichever thread
        self._file = DatabaseFile(path) if path is not None else None
        self._lost: RelayError | None = None  # what was told of the file, if a look found it out
        self._reporting = threading.RLock()  # the thread and who asks for the health both tell of it
        self._looked_at = time.monotonic()
        self._engine = writer_engine(path) if path is not None else None
        self._engines = [*readers] if self._engine is None else [self._engine, *readers]
        self._securing = ThreadPoolExecutor(1, "mpu-ledger-sync")  # a sync takes as long as writing the rows
        self._secured: Future[None] | None = None  # of the group at work
        self._thread = threading.Thread(target=self._run, name="mpu-ledger", daemon=True)
        self._thread.start()

    # --- for everybody ---

    @property
    def health(self) -> Health:
        """As of the last transaction, and whether the file is still there now."""
        self._look()
        return self._health

    @property
    def healthy(self) -> bool:
        """False: claim nothing. For each message: the file is looked for now and then."""
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self._look()
        return self._health.healthy

    def settle(self, entry: Entry) -> asyncio.Future[object]:
        """Have this entry committed and disposed of. Doesn't block.

        The future gives the disposer's result (None without one). It raises what the disposer raised or gave as
        result, and NotRunning if the ledger was closed before the entry could be committed: nothing was disposed of.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        self._put(_Settlement(entry, loop, future))
        return future

    def write(self, run: Callable[[Session], T]) -> asyncio.Future[T]:
        """Run this in the writer thread in a transaction of its own; commit, or roll back if it raises.

        Raises what it raised; DatabaseUnavailable and StorageFull for what the driver raised, and at once while the
        database fails. `run` must be short: outcomes wait for it.
        """
        if self._engine is None:
            raise NotRunning("there is no database")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put(_Job(run, loop, future))
        return future

    async def flush(self) -> None:
        """Wait until everything that was queued before is committed and disposed of."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._put(_Job(None, loop, future))
        await future

    def close(self, timeout_seconds: float = 20) -> bool:
        """Finish what is queued and end the thread; blocks. False: time was up and some of it is not committed."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._deadline = time.monotonic() + timeout_seconds
                self._stopping.set()
                self._queue.put(None)
        self._thread.join()
        self._securing.shutdown()
        if self._engine is not None:
            self._engine.dispose()
        return self._health.waiting == 0

    def _look(self) -> None:
        """Whether the file is still there. While entries wait, the thread finds out by itself when it is again."""
        self._looked_at = time.monotonic()
        lost = self._file.problem() if self._file is not None else None
        with self._reporting:
            health = self._health
            if lost is not None and health.healthy:
                self._lost = lost
                self._report(lost)
            elif lost is None and not health.healthy and health.error is self._lost:
                self._report(None)

    def _put(self, item: _Item) -> None:
        with self._closing:
            if self._closed:
                raise NotRunning("the ledger is closed")
            self._queue.put(item)

    # --- the thread ---

    def _run(self) -> None:
        busy = False
        while True:
            items, ended = self._take(busy)
            self._work(items)
            if ended and not self._backlog:
                return
            busy = bool(self._backlog) or not self._queue.empty()

    def _take(self, busy: bool) -> tuple[list[_Item], bool]:
        """What is queued, and whether the end was there.

        After a group that left others waiting, it waits a moment longer, while more come.
        """
        self._receive(block=not self._backlog and not self._ended)
        for _ in range(_GATHER_STEPS if busy else 0):
            before = len(self._backlog)
            if before >= _SMALL_GROUP or self._ended:
                break
            time.sleep(_GATHER_STEP_SECONDS)
            self._receive(block=False)
            if len(self._backlog) == before:
                break
        items = [self._backlog.popleft() for _ in range(min(GROUP, len(self._backlog)))]
        return items, self._ended

    def _receive(self, *, block: bool) -> None:
        """From the queue into the backlog, all that is there."""
        try:
            while True:
                item = self._queue.get(block=block)
                block = False
                if item is None:
                    self._ended = True
                else:
                    self._backlog.append(item)
        except queue.Empty:
            pass

    def _work(self, items: Sequence[_Item]) -> None:
        """In order: entries in groups, jobs between them."""
        group: list[_Settlement] = []
        for item in items:
            if isinstance(item, _Settlement):
                group.append(item)
                continue
            self._settle(group)
            group = []
            self._do(item)
        self._settle(group)

    def _settle(self, group: list[_Settlement]) -> None:
        if self._engine is not None and group:
            self._secured = self._securing.submit(_before_commit, [settlement.entry for settlement in group])
            group = self._commit_at_last(group)
        if group:
            answers = _dispose([settlement.entry for settlement in group])
            _answer((s.loop, s.future, answer) for s, answer in zip(group, answers, strict=True))

    def _commit_at_last(self, group: list[_Settlement]) -> list[_Settlement]:
        """Commit the group, however long it takes; those that are committed. The callers of others have been told."""
        assert self._engine is not None
        tries = 0
        while group:
            try:
                self._commit([settlement.entry for settlement in group])
            except Exception as error:  # noqa: BLE001 - whatever it is, these outcomes must not be lost
                if not _passes(error):
                    return self._commit_apart(group, error)
                renew(error, *self._engines)
                self._report(translate(error, str(self._path)), waiting=len(group) + len(self._backlog))
            else:
                self._report(None)
                spare_room(self._engine, str(self._path))
                break
            pause = _BACKOFF_SECONDS[min(tries, len(_BACKOFF_SECONDS) - 1)]
            tries += 1
            if self._deadline is not None and time.monotonic() + pause > self._deadline:
                stopped = NotRunning("stopped before the database took it; nothing was disposed of")
                _answer((s.loop, s.future, _Raised(stopped)) for s in group)
                return []
            (time.sleep if self._stopping.is_set() else self._stopping.wait)(pause)
            self._refuse_jobs()
        return group

    def _commit_apart(self, group: list[_Settlement], error: Exception) -> list[_Settlement]:
        """One of these can't be written at all, a defect of ours. The others must not wait for it."""
        if len(group) == 1:
            _log.error("the outcome of %r can't be recorded: %r", group[0].entry.message_id, error)
            _answer([(group[0].loop, group[0].future, _Raised(error))])
            return []
        return [settlement for one in group for settlement in self._commit_at_last([one])]

    def _commit(self, entries: Sequence[Entry]) -> None:
        now = self._clock.now()
        try:
            self._write(entries, now)
        except UnicodeEncodeError:
            self._write(entries, now, clean=True)

    def _write(self, entries: Sequence[Entry], now: float, *, clean: bool = False) -> None:
        assert self._engine is not None
        assert self._file is not None
        with self._engine.begin() as connection:
            record(connection, entries, now, clean=clean)
            self._wait_secured()
            self._file.check()

    def _wait_secured(self) -> None:
        if self._secured is not None:
            self._secured.result()

    def _refuse_jobs(self) -> None:
        """The database fails: who waits for a write is told at once, not when it works again."""
        self._receive(block=False)
        refused = [item for item in self._backlog if isinstance(item, _Job) and item.run is not None]
        if refused:
            self._backlog = deque(i for i in self._backlog if not (isinstance(i, _Job) and i.run is not None))
            failing = self._health.error or NotRunning("the database fails")
            _answer((job.loop, job.future, _Raised(failing)) for job in refused)

    def _do(self, job: _Job) -> None:
        answer: Any = None
        if job.run is not None:
            assert self._engine is not None
            assert self._file is not None
            try:
                with self._engine.begin() as connection, Session(bind=connection, expire_on_commit=False) as session:
                    answer = job.run(session)
                    session.flush()
                    self._file.check()
            except (DBAPIError, sqlite3.Error) as error:
                renew(error, *self._engines)
                told = translate(error, str(self._path))
                told.__cause__ = error
                answer = _Raised(told)
            except Exception as error:  # noqa: BLE001 - it is the caller's
                answer = _Raised(error)
        _answer([(job.loop, job.future, answer)])

    def _report(self, error: RelayError | None, waiting: int = 0) -> None:
        with self._reporting:
            before = self._health
            if error is None:
                if before.healthy:
                    return
                self._health = Health()
            else:
                since = self._clock.now() if before.since is None else before.since
                self._health = Health(False, error, since, waiting)
            if self.on_health is not None:
                self.on_health(self._health)


def _passes(error: Exception) -> bool:
    """Whether it is the database's trouble, which may pass, and not the entry's."""
    if isinstance(error, DBAPIError):
        return not isinstance(error.orig, Exception) or _passes(error.orig)
    if isinstance(error, sqlite3.Error):
        never = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError)
        return not isinstance(error, never)
    return isinstance(error, OSError | MemoryError | SQLAlchemyError | DatabaseUnavailable)


def _by_disposer(entries: Sequence[Entry]) -> Iterator[tuple[Disposer, list[int]]]:
    """Each disposer with the places of its entries."""
    places: dict[int, tuple[Disposer, list[int]]] = {}
    for place, entry in enumerate(entries):
        if entry.disposer is not None and entry.disposal is not None:
            places.setdefault(id(entry.disposer), (entry.disposer, []))[1].append(place)
    yield from places.values()


def _before_commit(entries: Sequence[Entry]) -> None:
    for disposer, own in _by_disposer(entries):
        try:
            disposer.before_commit([entries[place].disposal for place in own])
        except Exception as error:  # noqa: BLE001 - the commit is the other record of them, and must not fail for it
            _log.error("outcomes may be repeated after a power cut: %r", error)


def _dispose(entries: Sequence[Entry]) -> list[object]:
    """The result for each entry; each disposer gets all of its own at once."""
    results: list[object] = [None] * len(entries)
    for disposer, own in _by_disposer(entries):
        answers: Sequence[object]
        try:
            answers = disposer.dispose([entries[place].disposal for place in own])
        except Exception as error:  # noqa: BLE001 - goes to all callers
            answers = [error] * len(own)
        if len(answers) != len(own):
            answers = [RuntimeError(f"{len(own)} disposals, {len(answers)} results")] * len(own)
        for place, answer in zip(own, answers, strict=True):
            results[place] = _Raised(answer) if isinstance(answer, BaseException) else answer
    return results


_Answer = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Any]


def _answer(answers: Iterable[_Answer]) -> None:
    """Resolve futures in their loops, one call a loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for loop, future, answer in answers:
        by_loop.setdefault(loop, []).append((future, answer))
    for loop, pairs in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, pairs)


def _resolve(pairs: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, answer in pairs:
        if future.done():  # cancelled by who waited
            continue
        if isinstance(answer, _Raised):
            future.set_exception(answer.error)
        else:
            future.set_result(answer)
