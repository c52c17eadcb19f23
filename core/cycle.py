"""The cycle of one directory: scan, claim, deliver, settle, in bounded batches; and what wakes it.

`run` works off one whole scan. `offer` takes a single name, from an event or because it became due, and delivers it at
once. Both share one table of what is being worked on, so that overlapping runs, drains and events never touch a message
twice, and one bound on how many messages are open. A name that isn't ready, or is due later, comes back by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import structlog

from core.delivery import Delivered, Outlets, block_of
from core.domain.account import Directory
from core.domain.clock import Clock
from core.domain.limits import PATIENCE_SECONDS
from core.domain.message import State
from core.domain.outcome import Outcome
from core.domain.routing import QUOTA, Refusal
from core.errors import (
    DirectoryUnavailable,
    MessageBusy,
    MessageError,
    MessageGone,
    MessageNotDue,
    MessageNotReady,
    NotRunning,
    RelayError,
    StorageBroken,
    StorageFull,
)
from core.slots import OpenMessages
from core.spool.directory import DirectorySpool, Opened, Recovered

log = structlog.get_logger()
T = TypeVar("T")
_SENT = Outcome.SENT  # with every message (core/domain)

STOPPED = "stopped"  # the run that wanted it, or the whole directory
PROBLEMS_KEPT = 1000  # of which the alerts name examples; of more only the number is told
RETRY_MAX = 200_000  # names that wait for their time in memory; the others are found by the next scan
OFFERED_MAX = 100_000  # names that wait for a slot, likewise
SETTLING_MAX = 192  # messages that are sent and wait for their commit: what a power cut could repeat
CONTENDED_SECONDS = 1.0  # until a name that somebody else holds is looked at again
LOST_SECONDS = 30.0  # until a directory that can't be reached is looked for again, whatever its interval
ROUNDING_SECONDS = 0.002  # by which a timer may be early
KNOWN_SECONDS = 900.0  # until a name that waits for its sender's account is opened again: it may be another file
LINGER_SECONDS = 60.0  # so long a run that comes by itself sees to mail that its accounts keep, before the next scan
STORAGE_SECONDS = 15.0  # until a directory without room, or one whose outcomes can't be recorded, is tried again


class Deliverer(Protocol):
    """What delivers a message (core/delivery.py)."""

    async def deliver(
        self,
        spool: DirectorySpool,
        directory: Directory,
        opened: Opened,
        settling: Callable[[], None],
        in_the_way: Callable[[], Refusal | None],
    ) -> Delivered: ...

    async def settle_recovered(
        self, spool: DirectorySpool, directory: Directory, recovered: Recovered
    ) -> Delivered: ...


class Blocks:
    """Why messages could not go, and how many; one row a reason and account, with the latest time that was told."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[Refusal, int]] = {}

    def add(self, refusal: Refusal, count: int = 1) -> None:
        """So many more; the times that are told of one account move on while a run lasts."""
        before, number = self._found.get((refusal.account, refusal.reason), (refusal, 0))
        if before.until is not None and (refusal.until is None or refusal.until < before.until):
            refusal = before
        self._found[refusal.account, refusal.reason] = refusal, number + count

    def items(self) -> Iterable[tuple[Refusal, int]]:
        """In the order in which they were met."""
        return self._found.values()

    def total(self) -> int:
        """Of all reasons."""
        return sum(count for _, count in self._found.values())


@dataclass(slots=True)
class Report:
    """What one run did: messages and recipients by outcome, and why others couldn't go."""

    messages: Counter[Outcome] = field(default_factory=Counter)
    recipients: Counter[Outcome] = field(default_factory=Counter)
    blocked: Blocks = field(default_factory=Blocks)
    unavailable: str | None = None
    stopped: bool = False
    complete: bool = True

    def add(self, delivered: Delivered) -> None:
        """Count one message."""
        if delivered.outcome is not None:
            self.messages[delivered.outcome] += 1
        elif delivered.blocked is not None and delivered.blocked.reason != STOPPED:
            self.blocked.add(delivered.blocked)
        for outcome in delivered.recipients:
            self.recipients[outcome.outcome] += 1


class Waiting(NamedTuple):
    """A message whose sender's accounts can't be used now. `since`: when it was opened, a monotonic time."""

    sender: str
    refusal: Refusal
    since: float


class _Run:
    """One run's tasks. `returned`: put back meanwhile; a rename may show such a name to the same scan again.

    `later`: by account, names and senders that the scan met before there was room, which there is in a moment.
    """

    __slots__ = ("ended", "is_soon", "later", "report", "returned", "tasks")

    def __init__(self, report: Report, is_soon: Callable[[Refusal], bool], ended: Callable[[], bool]) -> None:
        self.report = report
        self.ended = ended  # it wants no more claims
        self.is_soon = is_soon
        self.returned: set[bytes] = set()
        self.later: dict[str, deque[tuple[bytes, str]]] = {}
        self.tasks: set[asyncio.Task[Delivered | None]] = set()

    def blocked(self, name: bytes, sender: str, block: Refusal) -> None:
        """It was not tried: at the end of this run, where that is soon enough, or in another."""
        if block.reason == QUOTA and self.is_soon(block):
            self.later.setdefault(block.account, deque()).append((name, sender))
        else:
            self.report.blocked.add(block)

    def follow(self, name: bytes, task: asyncio.Task[Delivered | None]) -> None:
        """Count what comes of it."""
        if task in self.tasks:
            return

        def done(task: asyncio.Task[Delivered | None]) -> None:
            self.tasks.discard(task)
            delivered = None if task.cancelled() or task.exception() is not None else task.result()
            if delivered is None or delivered.outcome is not _SENT:
                self.returned.add(name)
            if delivered is None:
                return
            if delivered.blocked is not None and delivered.sender is not None and not delivered.attempts:
                self.blocked(name, delivered.sender, delivered.blocked)
            else:
                self.report.add(delivered)

        self.tasks.add(task)
        task.add_done_callback(done)


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is left where it is, and why. Times in seconds since the epoch."""

    file_name: bytes
    error: MessageError
    since: float


class Cycle:
    """One directory's work. All methods belong to the event loop."""

    def __init__(
        self,
        directory: Directory,
        spool: DirectorySpool,
        deliverer: Deliverer,
        outlets: Outlets,
        *,
        clock: Clock,
        open_messages: OpenMessages,
        look_ahead: int = 64,
        scan_batch: int = 1000,
        on_delivered: Callable[[Directory, Delivered], None] | None = None,
    ) -> None:
        self.directory = directory
        self.spool = spool
        self.problems: dict[bytes, Problem] = {}
        self.unavailable: DirectoryUnavailable | None = None
        self.storage: StorageFull | StorageBroken | None = None
        self.writing: dict[bytes, float] = {}  # names that aren't ready yet, since when
        self.blocked: dict[bytes, Waiting] = {}  # names whose sender's accounts can't be used now, others' could
        self.unrecorded = 0  # messages whose outcomes the database did not take before the stop
        self.paused: Callable[[], bool] = lambda: False
        self._deliverer = deliverer
        self._outlets = outlets
        self._clock = clock
        self._open = open_messages.join()  # its part of what the whole process may have open
        self._look_ahead = look_ahead
        self._unsettled = 0  # messages that are worked on and not with the ledger yet
        self._slot_freed = asyncio.Event()
        self._nudged = asyncio.Event()
        self._offered: dict[bytes, bool] = {}  # names that wait for a slot, and whether their event was seen
        self._scan_batch = scan_batch
        self._on_delivered = on_delivered
        self._working: dict[bytes, asyncio.Task[Delivered | None]] = {}
        self._wanted: dict[bytes, list[Callable[[], bool]]] = {}  # whether each who wants it wants no more claims
        self._settling: set[bytes] = set()  # only the commit is waited for
        self._scanning: set[_Run] = set()
        self._came: set[bytes] = set()  # names that an event told of while they were worked on
        self._later: list[tuple[float, bytes]] = []  # monotonic time, name
        self._later_at: dict[bytes, float] = {}  # the one that counts, where a name is there more than once
        self._timer: asyncio.TimerHandle | None = None
        self._recovered = False
        self._recovering = asyncio.Lock()
        self._untold = 0  # problems over PROBLEMS_KEPT, since the end of the last run
        self._stopping = False

    # --- whole runs ---

    async def run(
        self,
        *,
        include_deferred: bool = False,
        stop: Callable[[], bool] = lambda: False,
        linger_seconds: float = math.inf,
    ) -> Report:
        """Work off one whole scan, begun now; each message is tried at most once. Ends when all of it is settled.

        `linger_seconds`: how long, after the scan, mail is seen to that its own accounts are short of room for.
        """
        report, trouble, began = Report(), self.storage, self._clock.now()

        def ended() -> bool:
            return self._stopping or stop()

        try:
            await self.ready()
            await self._take_orphans(report)
            if include_deferred:
                await self._make_due(ended)
            began = self._clock.now()  # what becomes due behind the scan's back is for the next run
            await self._work_off(report, ended, linger_seconds)
        except DirectoryUnavailable as error:
            self._lost(error)
            report.unavailable, report.complete = error.detail, False
        except (StorageFull, StorageBroken) as error:
            self._storage(error)
            report.complete = False
        report.stopped = ended()
        report.complete = report.complete and not report.stopped
        if report.unavailable is None:
            self._wake_when_due(began)
            if self.storage is trouble and self.spool.claims_allowed and not self.spool.pending():
                self.storage = None  # it did not come again
            if self._short_of_storage:
                self._look_again(b"", STORAGE_SECONDS)
        return report

    async def ready(self) -> None:
        """Open it, and recover what dead owners left before anything is claimed. Raises DirectoryUnavailable."""
        async with self._recovering:
            try:
                await asyncio.to_thread(self.spool.open)
                if not self._is_recovered:
                    async for recovered in _threaded(self.spool.recover(), self._scan_batch):
                        await self._recover(recovered, None)
                    self._recovered = True
                    self.opened()
            except DirectoryUnavailable as error:
                self._lost(error)
                raise
            if self.unavailable is not None:
                log.info("directory is back", directory=self.directory.name)
            self.unavailable = None

    def late(self, seconds: float) -> None:
        """Tell that `ready` did not end within so long. It goes on, and the next run waits for it."""
        self._lost(
            DirectoryUnavailable(
                f"{self.directory.path} was not recovered within {seconds:g} s",
                remedy="see whether its file system hangs; the directory joins in once it answers",
            )
        )

    @property
    def _is_recovered(self) -> bool:
        """Since it was opened, whoever did that, and since it was lost."""
        return self._recovered and self.spool.recovered

    async def _take_orphans(self, report: Report) -> None:
        """`.lck` files whose owner died while we live; and disposals that waited for room or a right."""
        async with self._recovering:
            async for recovered in _threaded(self.spool.orphans(), self._scan_batch):
                await self._recover(recovered, report)
        for disposed in await asyncio.to_thread(self.spool.retry_pending):
            if disposed.ok:
                log.info(
                    "disposed of at last", directory=self.directory.name, file=disposed.file_name, remark=disposed.error
                )

    async def _recover(self, recovered: Recovered, report: Report | None) -> None:
        name = recovered.claim.file_name
        try:
            delivered = await self._deliverer.settle_recovered(self.spool, self.directory, recovered)
        except DirectoryUnavailable as error:
            self._lost(error)
            return
        except (StorageFull, StorageBroken) as error:
            self._storage(error)
            return
        except NotRunning:
            self.unrecorded += 1
            return
        except Exception:  # it stays claimed, with its log; nothing that one file does may stop the others
            log.exception("recovery failed", directory=self.directory.name, file=name, remedy="report this as a fault")
            return
        if report is not None:
            report.add(delivered)
        if self._on_delivered is not None:
            self._on_delivered(self.directory, delivered)

    async def _make_due(self, ended: Callable[[], bool]) -> None:
        async for entry in _threaded(self.spool.entries({State.DEFERRED}), self._scan_batch):
            if ended():
                return
            with contextlib.suppress(RelayError):  # it moved on meanwhile
                await asyncio.to_thread(self.spool.retry, entry)  # it syncs

    async def _work_off(self, report: Report, ended: Callable[[], bool], linger_seconds: float) -> None:
        run = _Run(report, self._is_soon, ended)
        for name, task in self._working.items():
            self._join(run, name, task)  # what an event brought just before belongs to it
        seen: set[bytes] | None = set() if self.problems or self.writing or self.blocked else None
        self._scanning.add(run)
        try:
            async for name in _threaded(self.spool.scan(), self._scan_batch):
                if ended():
                    break
                if seen is not None:
                    seen.add(name)
                if name not in run.returned:
                    await self._work_on(name, run, ended)
        finally:
            self._scanning.discard(run)
        await self._work_off_later(run, ended, self._clock.monotonic() + linger_seconds)
        if seen is not None and not ended():
            self._forget(seen)
        if self._untold:
            log.warning(
                "more left alone", directory=self.directory.name, files=self._untold, remedy="see to the others first"
            )
            self._untold = 0

    async def _work_off_later(self, run: _Run, ended: Callable[[], bool], last: float) -> None:
        """What waits for accounts of its own, in order, as those have room; until all that the run began is done."""
        while run.later or run.tasks:
            if ended() or self._clock.monotonic() >= last:
                for account, names in run.later.items():
                    run.report.blocked.add(self._block(names[0][1]) or Refusal(account, QUOTA), len(names))
                run.later.clear()
            started, nearest = False, None
            for account in list(run.later):
                began, block = await self._work_on_later(account, run, ended)
                started = started or began
                if block is not None and (nearest is None or (block.until or 0) < (nearest.until or 0)):
                    nearest = block
            if nearest is not None and not started:
                await self._soon(nearest)
            elif run.tasks and not run.later:
                await asyncio.wait(run.tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _work_on_later(self, account: str, run: _Run, ended: Callable[[], bool]) -> tuple[bool, Refusal | None]:
        """Start as many of the account's as there is room for. Whether there was any, and what the next waits for."""
        names, started = run.later[account], False
        while names and not ended():
            name, sender = names[0]
            block = self._block(sender)
            if block is None and name not in self._working and self._full:
                await self._free_slot()
                block = self._block(sender)
            if block is not None:
                if block.reason == QUOTA and self._is_soon(block):
                    return started, block
                run.report.blocked.add(block, len(names))
                names.clear()
                break
            names.popleft()
            self._join(run, name)
            started = True
            await asyncio.sleep(0)  # it takes its room before the next one asks
        if not names:
            del run.later[account]
        return started, None

    async def _work_on(self, name: bytes, run: _Run, ended: Callable[[], bool]) -> None:
        """Start the name as soon as there is a slot, or join whoever works on it."""
        block = self._block()
        if block is None and name in self.blocked and name not in self._working and self._still_waits(name, run):
            return
        if block is None and self._full and name not in self._working:
            await self._free_slot()
            block = self._block()  # time has passed
        while block is not None and block.reason == QUOTA and not ended() and await self._soon(block):
            block = self._block()
        if block is not None:
            run.report.blocked.add(block)
        elif not ended():
            self._join(run, name)
            if self._outlets.limited and self._outlets.limits(self.directory):
                await asyncio.sleep(0)  # it takes its room before the next one asks whether there is any

    def _still_waits(self, name: bytes, run: _Run) -> bool:
        """Whether its sender's accounts are as much in the way as when it was opened last; then it isn't opened."""
        waiting = self.blocked[name]
        if self._clock.monotonic() - waiting.since > KNOWN_SECONDS:
            return False
        block = self._block(waiting.sender)
        if block is None:
            return False
        self.blocked[name] = waiting._replace(refusal=block)
        run.blocked(name, waiting.sender, block)
        return True

    def _is_soon(self, block: Refusal) -> bool:
        """Whether it is waited for."""
        return block.until is not None and block.until - self._clock.now() <= PATIENCE_SECONDS

    async def _soon(self, block: Refusal) -> bool:
        """Wait until the account has room again, if that is in a moment; without opening anything meanwhile."""
        if block.until is None or not self._is_soon(block):
            return False
        self._nudged.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(block.until - self._clock.now(), 0.0) + ROUNDING_SECONDS):
                await self._nudged.wait()
        return True

    def nudge(self) -> None:
        """An account may be used again; or the run that waits for it is to end."""
        self._nudged.set()

    @property
    def _full(self) -> bool:
        return self._unsettled >= self._look_ahead or len(self._working) >= self._look_ahead + SETTLING_MAX

    async def _free_slot(self) -> None:
        while self._full:
            self._slot_freed.clear()
            await self._slot_freed.wait()

    def _block(self, sender: str | None = None) -> Refusal | None:
        """Why no message of this directory (or of this envelope sender) could go now, without opening any."""
        closed = self._closed()
        if closed is not None:
            return closed
        if self.storage is not None and not self.spool.claims_allowed:
            return Refusal("", self.storage.code)
        route = self._outlets.route(self.directory, frozenset(), sender)
        return block_of(route) if route.account is None else None

    def _closed(self) -> Refusal | None:
        if not self.directory.enabled:
            return Refusal("", "disabled")
        return Refusal("", "directory_paused") if self.paused() else None

    # --- single names ---

    def offer(self, name: bytes, *, event_seen: bool = True) -> None:
        """A file was closed or moved here, or is due: deliver it at once."""
        if self._stopping:
            return
        if name in self._working:
            if event_seen:
                self._came.add(name)  # another file, perhaps
            return
        if not self._is_recovered:
            self.wake()
            return
        if not self._matches(name) or self._block() is not None:
            return  # a resume or the next run finds it
        if not self._full:
            self._start(name, event_seen=event_seen)
        elif len(self._offered) < OFFERED_MAX:  # else the next run finds it
            self._offered.setdefault(name, event_seen)

    def _matches(self, name: bytes) -> bool:
        try:
            return self.spool.matches(name)
        except DirectoryUnavailable:  # just now; the next run says so
            return False

    async def let_go(self, name: bytes) -> None:
        """An operator wants the file: what only waits for its turn here gives it up, and is looked at again later."""
        task = self._working.get(name)
        if task is None or name in self._settling or self.spool.has_claimed(name):
            return
        task.cancel()
        await asyncio.wait({task})
        if self._working.get(name) is task:  # it had not begun: nothing of it ran, not even its end
            del self._working[name], self._wanted[name]
            self._slot_is_free()
        self._look_again(name, CONTENDED_SECONDS)

    def _slot_is_free(self) -> None:
        self._unsettled -= 1
        self._slot_freed.set()
        self._start_offered()

    def _start_offered(self) -> None:
        """A slot is free: the next name that was offered, first come, first served."""
        while self._offered and not self._full:
            name = next(iter(self._offered))
            event_seen = self._offered.pop(name)
            if not self._stopping and name not in self._working and self._block() is None:
                self._start(name, event_seen=event_seen)

    def _join(self, run: _Run, name: bytes, task: asyncio.Task[Delivered | None] | None = None) -> None:
        """The run wants this name: whoever works on it already goes on for it too."""
        task = task or self._working.get(name)
        if task is None:
            task = self._start(name, event_seen=False, ended=run.ended)
        else:
            self._wanted[name].append(run.ended)
        run.follow(name, task)

    def _start(
        self, name: bytes, *, event_seen: bool, ended: Callable[[], bool] = lambda: False
    ) -> asyncio.Task[Delivered | None]:
        """`ended`: whether the run that it is started for wants no more claims."""
        wanted = self._wanted[name] = [ended]

        def in_the_way() -> Refusal | None:
            if self._stopping or all(ended() for ended in wanted):
                return Refusal("", STOPPED)
            return self._closed()

        task = asyncio.get_running_loop().create_task(self._one(name, in_the_way, event_seen=event_seen))
        self._working[name] = task
        self._unsettled += 1
        for run in self._scanning:  # an event was faster than its scan, which finds it claimed
            if name not in run.returned:
                wanted.append(run.ended)
                run.follow(name, task)
        return task

    async def _one(
        self, name: bytes, in_the_way: Callable[[], Refusal | None], *, event_seen: bool
    ) -> Delivered | None:
        unsettled = True

        def settling() -> None:
            """Its way is over but for the commit: the next one may begin, so that groups don't wait for one another."""
            nonlocal unsettled
            if unsettled:
                unsettled = False
                self._settling.add(name)
                self._slot_is_free()

        try:
            await self._open.acquire()
            try:
                delivered = await self._deliver(name, settling, in_the_way, event_seen=event_seen)
            finally:
                self._open.release()
        except NotRunning:  # a stop did not wait for a database that fails; the next start settles it by its log
            self.unrecorded += 1
            return None
        except Exception as error:  # nothing that one file does may stop the others
            log.exception("delivery failed", directory=self.directory.name, file=name, remedy="report this as a fault")
            self._problem(name, MessageError(f"a fault of this service: {error!r}", remedy="report this as a fault"))
            self._look_again(name, 60.0)
            return None
        finally:
            settling()
            self._settling.discard(name)
            del self._working[name], self._wanted[name]
            self.blocked.pop(name, None)
            self._slot_freed.set()
            self._start_offered()
            if name in self._came:
                self._came.discard(name)
                self.offer(name)
        if delivered is not None:
            self.problems.pop(name, None)
            self.writing.pop(name, None)
            self._come_back(name, delivered)
            if self._on_delivered is not None:
                self._on_delivered(self.directory, delivered)
        return delivered

    def _come_back(self, name: bytes, delivered: Delivered) -> None:
        """See to it that a message that waits again is looked at again."""
        if self._short_of_storage:
            self._look_again(b"", STORAGE_SECONDS)
        if delivered.due_at is not None:
            self._when_due(name, delivered.due_at)
        elif delivered.outcome is None and delivered.blocked is not None:
            if delivered.blocked.reason == STOPPED:
                if self.by_itself():  # another run, or its event, may have wanted it too
                    self._look_again(name, CONTENDED_SECONDS)
            elif delivered.blocked.reason in ("storage_full", "database_unavailable"):
                self._look_again(b"", STORAGE_SECONDS)
            elif self._block(delivered.sender) is None:
                # what was in its way is over by now: who told of that came too early for it
                self._look_again(name, CONTENDED_SECONDS)
            elif delivered.sender is not None and len(self.blocked) < RETRY_MAX:
                self.blocked[name] = Waiting(delivered.sender, delivered.blocked, self._clock.monotonic())

    async def _deliver(
        self,
        name: bytes,
        settling: Callable[[], None],
        in_the_way: Callable[[], Refusal | None],
        *,
        event_seen: bool,
    ) -> Delivered | None:
        try:
            opened = self.spool.examine(name, event_seen=event_seen)
            delivered = await self._deliverer.deliver(self.spool, self.directory, opened, settling, in_the_way)
        except MessageGone:
            self.problems.pop(name, None)
            self.writing.pop(name, None)
        except MessageNotDue as error:
            self._when_due(name, error.due_at)
        except MessageNotReady as error:
            self.writing.setdefault(name, self._clock.now())
            self._look_again(name, error.retry_after_seconds)
        except MessageBusy:
            self._look_again(name, CONTENDED_SECONDS)
        except MessageError as error:
            self.writing.pop(name, None)
            self._problem(name, error)
        except DirectoryUnavailable as error:
            self._lost(error)
        except (StorageFull, StorageBroken) as error:
            self._storage(error)
        else:
            self.storage = None
            return delivered
        return None

    # --- later ---

    def _look_again(self, name: bytes, seconds: float) -> None:
        """Offer the name again after so many seconds, or sooner if that was asked for before; b"": all of them."""
        at = self._clock.monotonic() + seconds
        if self._stopping or self._later_at.get(name, math.inf) <= at or len(self._later) >= RETRY_MAX:
            return
        self._later_at[name] = at
        heapq.heappush(self._later, (at, name))
        self._set_timer()

    def _when_due(self, name: bytes, due_at: float) -> None:
        if self.by_itself():
            self._look_again(name, max(due_at - self._clock.now(), 0.0))

    def _wake_when_due(self, since: float) -> None:
        """Deferred mail of an earlier life is only known by its sidecar: the earliest due time wakes the cycle."""
        due_at = self.spool.next_due_at(since)
        if due_at is not None:
            self._when_due(b"", due_at)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._later and not self._stopping:
            delay = max(self._later[0][0] - self._clock.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self._offer_due)

    def _offer_due(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        while self._later and self._later[0][0] <= now:
            at, name = heapq.heappop(self._later)
            if self._later_at.get(name) != at:
                continue  # it was asked for sooner, and had
            del self._later_at[name]
            if name:
                self.offer(name, event_seen=False)
            elif not self.paused():
                self.wake()
        self._set_timer()

    wake: Callable[[], None] = staticmethod(lambda: None)  # runs the cycle soon
    opened: Callable[[], None] = staticmethod(lambda: None)  # told when the directory was opened, or came back
    by_itself: Callable[[], bool] = staticmethod(lambda: True)  # False: deferred mail waits for a scheduled run too

    # --- what is left alone ---

    def _problem(self, name: bytes, error: MessageError) -> None:
        before = self.problems.get(name)
        if before is None and len(self.problems) >= PROBLEMS_KEPT:
            self._untold += 1
            return
        since = self._clock.now() if before is None else before.since
        self.problems[name] = Problem(name, error, since)
        if before is None or before.error.code != error.code:
            log.warning(
                "left alone",
                directory=self.directory.name,
                file=name,
                code=error.code,
                reason=error.detail,
                remedy=error.remedy,
            )

    def _forget(self, seen: set[bytes]) -> None:
        """What a whole scan didn't show is gone."""
        known = {*self.problems, *self.writing, *self.blocked}
        for name in [name for name in known if name not in seen and name not in self._working]:
            self.problems.pop(name, None)
            self.writing.pop(name, None)
            self.blocked.pop(name, None)

    def _lost(self, error: DirectoryUnavailable) -> None:
        if self.unavailable is None:
            log.error("directory unavailable", directory=self.directory.name, reason=error.detail, remedy=error.remedy)
        self.unavailable = error
        self._recovered = False
        self._look_again(b"", LOST_SECONDS)

    def _storage(self, error: StorageFull | StorageBroken) -> None:
        if self.storage is None:
            log.error("no new claims", directory=self.directory.name, reason=error.detail, remedy=error.remedy)
        self.storage = error
        if self._short_of_storage:
            self._look_again(b"", STORAGE_SECONDS)

    @property
    def _short_of_storage(self) -> bool:
        """Whether there is something to be done as soon as there is room, or the right; EIO wants a restart."""
        if isinstance(self.storage, StorageBroken):
            return False
        return self.storage is not None or not self.spool.claims_allowed or bool(self.spool.pending())

    # --- the end ---

    @property
    def in_flight(self) -> int:
        """Messages that are being worked on."""
        return len(self._working)

    def begin_stop(self) -> None:
        """Start nothing more."""
        self._stopping = True
        self.nudge()
        if self._timer is not None:
            self._timer.cancel()

    async def answered(self, timeout_seconds: float) -> bool:
        """Wait until what is in flight has its outcomes, which only wait to be committed. False: time was up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._unsettled:
                    self._slot_freed.clear()
                    await self._slot_freed.wait()
        return not self._unsettled

    async def drained(self, timeout_seconds: float) -> bool:
        """Wait for what is in flight. False: time was up."""
        if not self._working:
            return True
        _, pending = await asyncio.wait(list(self._working.values()), timeout=timeout_seconds)
        return not pending

    async def close(self) -> None:
        """Let go of the directory."""
        self._open.leave()
        await asyncio.to_thread(self.spool.close)


async def _threaded(items: Iterator[T], batch: int) -> AsyncIterator[T]:
    """Pull an iterator that blocks in a thread, `batch` items at a time."""

    def pull() -> list[T]:
        return list(itertools.islice(items, batch))

    while chunk := await asyncio.to_thread(pull):
        for item in chunk:
            yield item
