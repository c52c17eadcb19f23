"""What waits in the directories, as people are shown it, and the acts of operators on single messages.

Everything is read from the directories themselves. A count that is at most forty times as old as it took is shown
again; after that a new one is waited for, for 50 ms where there is one before it (of a small directory: one of the last
second), else for 5 s. All who ask meanwhile share it. `as_of` tells how old it is.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import structlog

from core.delivery import block_of
from core.domain import cursor as cursors
from core.domain.blame import QUOTA_CODES
from core.domain.circuit import Pause
from core.domain.clock import Clock
from core.domain.envelope import Envelope
from core.domain.message import NAME, State, parse_message_id
from core.domain.routing import QUOTA, Refusal
from core.errors import (
    DirectoryUnavailable,
    MessageError,
    NotFound,
    RelayError,
)
from core.runtime.act_record import ActRecord, deleted
from core.runtime.audit import Audit
from core.runtime.inlets import Inlet, Inlets
from core.runtime.outlets import Outlets
from core.runtime.views import (
    Actor,
    Page,
    QueuedMessage,
    QueueFilter,
    QueueRow,
    QueueTotals,
    QueueView,
    WaitingFor,
)
from core.spool.body import prepare
from core.spool.directory import Counts, DirectorySpool, Entry
from core.store import entry as ledger
from core.store.store import Store

CHUNK_BYTES = 1 << 18
_CURSOR = re.compile(rf"({NAME})\0([0-9a-f]{{8}})\0([^/\0]{{1,255}})".encode())
log = structlog.get_logger()

COUNTS_STAT_LIMIT = 10_000  # messages up to which sizes and ages are looked at
COUNTS_WAIT_SECONDS = 0.05  # a count that takes longer is not waited for where there is an earlier one
COUNTS_SMALL_SECONDS = 1.0  # nor is it where a usually quick count has one before that is at most so old
COUNTS_PATIENCE_SECONDS = 5.0  # that any count is waited for; then the one before is shown, or zeros
COUNTS_AGE_FACTOR = 40.0  # counts may be this many times as old as they took: they take a fortieth of the time at most
WAITS = frozenset({State.WAITING, State.DEFERRED})

Block = tuple[Refusal | None, WaitingFor | None]
_QUOTA = "Nothing to do: it goes when there is room again. Or raise the account's limits, or add another account."


@dataclass(frozen=True, slots=True)
class Told:
    """Why mail that is due waits, for people. `until`: when that ends by itself, if it does."""

    text: str
    remedy: str
    until: float | None = None


@dataclass(slots=True)
class _Counted:
    counts: Counts
    at: float  # seconds since the epoch
    monotonic: float
    took: float


class RawFile:
    """An open message file (facade.RawMessage)."""

    def __init__(self, fd: int, size: int, file_name: str) -> None:
        self._fd = fd
        self.size = size
        self.file_name = file_name

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file's octets, untouched."""
        offset = 0
        while data := await asyncio.to_thread(os.pread, self._fd, CHUNK_BYTES, offset):
            yield data
            offset += len(data)

    async def close(self) -> None:
        """Harmless when called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(slots=True)
class Queue:
    """See the module's text."""

    inlets: Inlets
    outlets: Outlets
    store: Store
    audit: Audit
    clock: Clock
    max_header_bytes: int
    _counted: WeakKeyDictionary[DirectorySpool, _Counted] = field(default_factory=WeakKeyDictionary)
    _counting: WeakKeyDictionary[DirectorySpool, asyncio.Task[_Counted]] = field(default_factory=WeakKeyDictionary)
    _counting_since: WeakKeyDictionary[DirectorySpool, float] = field(default_factory=WeakKeyDictionary)  # monotonic

    # --- counts ---

    async def counts(self) -> QueueView:
        """A row a directory, and the sums."""
        rows = await asyncio.gather(*(self._row(inlet) for inlet in self.inlets))
        known = [row.oldest_seconds for row in rows if row.oldest_seconds is not None]
        sizes = [row.bytes for row in rows]
        totals = QueueTotals(
            waiting=sum(row.waiting for row in rows),
            claimed=sum(row.claimed for row in rows),
            deferred=sum(row.deferred for row in rows),
            held=sum(row.held for row in rows),
            badmail=sum(row.badmail for row in rows),
            bytes=None if None in sizes else sum(size for size in sizes if size is not None),
            oldest_seconds=max(known, default=None),
            as_of=min((row.as_of for row in rows), default=self.clock.now()),
        )
        return QueueView(tuple(rows), totals)

    async def _row(self, inlet: Inlet) -> QueueRow:
        counted = await self.count(inlet)
        counts = counted.counts
        oldest = None if counts.oldest_mtime is None else max(self.clock.now() - counts.oldest_mtime, 0.0)
        return QueueRow(
            counts.waiting,
            counts.claimed,
            counts.deferred,
            counts.held,
            counts.badmail,
            counts.size_bytes,
            oldest,
            counted.at,
            inlet.directory.name,
        )

    async def count(self, inlet: Inlet) -> _Counted:
        """Counts that are new enough; zeros where the directory can't be reached (an alert says so)."""
        spool, began = inlet.spool, self.clock.monotonic()
        known = self._counted.get(spool)
        if known is not None and began - known.monotonic < COUNTS_AGE_FACTOR * known.took:
            return known
        # all who ask share one count: a file system that hangs must not take a thread each
        counting = self._counting.get(spool)
        if counting is None:
            counting = self._counting[spool] = asyncio.get_running_loop().create_task(self._count(spool, known))
            counting.add_done_callback(lambda task: self._count_ended(spool, task))
            self._counting_since[spool] = began
        # of a large directory, or one whose drain leaves a count little time, the one before will do
        large = known is not None and known.took >= COUNTS_WAIT_SECONDS
        fresh = known is not None and began - known.monotonic <= COUNTS_SMALL_SECONDS
        patience = 0.0 if large or fresh else self._counting_since[spool] + COUNTS_PATIENCE_SECONDS - began
        await asyncio.wait([counting], timeout=max(patience, COUNTS_WAIT_SECONDS))
        if counting.done():
            return counting.result()
        return known or _Counted(Counts(), self.clock.now(), began, 0.0)

    def _count_ended(self, spool: DirectorySpool, task: asyncio.Task[_Counted]) -> None:
        self._counting.pop(spool, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("counting failed", path=spool.settings.path, exc_info=error, remedy="report this as a fault")

    async def _count(self, spool: DirectorySpool, known: _Counted | None) -> _Counted:
        began = self.clock.monotonic()

        def count() -> Counts:
            spool.open()
            return spool.counts(stat_limit=COUNTS_STAT_LIMIT)

        try:
            counts = await asyncio.to_thread(count)
        except DirectoryUnavailable:
            counts = known.counts if known is not None else Counts()
        end = self.clock.monotonic()
        counted = self._counted[spool] = _Counted(counts, self.clock.now(), end, end - began)
        return counted

    # --- lists ---

    async def messages(self, filter: QueueFilter, limit: int, cursor: str | None) -> Page[QueuedMessage]:  # noqa: A002 - the API's word
        """Ordered by directory and name, which no change of state moves: what is there throughout appears once."""
        after = _read_cursor(cursor)
        inlets = [self.inlets.get(filter.directory)] if filter.directory is not None else list(self.inlets)
        found: list[tuple[tuple[str, bytes, str], QueuedMessage]] = []
        for inlet in inlets:
            if after is not None and inlet.directory.name < after[0]:
                continue
            block = self.block(inlet)
            found += await asyncio.to_thread(self._page, inlet, filter, limit + 1 - len(found), after, block)
            if len(found) > limit:
                break
        items = tuple(message for _, message in found[:limit])
        return Page(items, _write_cursor(found[limit - 1][0]) if len(found) > limit else None)

    def matching(self, inlet: Inlet, wanted: QueueFilter, block: Block) -> Iterator[tuple[Entry, QueuedMessage]]:
        """All of the directory that the filter lets through, streaming; blocks. `block`: the directory's."""
        inlet.spool.open()
        for entry in inlet.spool.entries(None if wanted.state is None else {wanted.state}):
            message = self._message(inlet, entry, block)
            if wanted.account not in (None, message.account) or wanted.code not in (None, message.code):
                continue
            if wanted.recipient is None or self._has_recipient(inlet, entry, wanted.recipient):
                yield entry, message

    def _page(
        self, inlet: Inlet, wanted: QueueFilter, limit: int, after: tuple[str, bytes, str] | None, block: Block
    ) -> list[tuple[tuple[str, bytes, str], QueuedMessage]]:
        name = inlet.directory.name

        def rows() -> Iterator[tuple[tuple[str, bytes, str], QueuedMessage]]:
            for entry, message in self.matching(inlet, wanted, block):
                key = (name, entry.identity.name, entry.identity.tag)
                if after is None or key > after:
                    yield key, message

        try:
            return heapq.nsmallest(limit, rows(), key=lambda row: row[0])
        except DirectoryUnavailable:
            if wanted.directory is not None:
                raise
            return []  # the others are shown; an alert names this one

    def _has_recipient(self, inlet: Inlet, entry: Entry, wanted: str) -> bool:
        envelope, wanted = self.envelope(inlet, entry), wanted.lower()
        names = [r.mailbox.lower() for r in envelope.recipients] if envelope is not None else []
        return any(name == wanted or (wanted.startswith("@") and name.endswith(wanted)) for name in names)

    def envelope(self, inlet: Inlet, entry: Entry) -> Envelope | None:
        """None where it has none that can be read. Blocks."""
        try:
            fd = inlet.spool.open_raw(entry)
        except RelayError:
            return None
        try:
            return prepare(
                fd,
                size=entry.size,
                mtime_ns=entry.identity.mtime_ns,
                dot_stuffing=inlet.directory.dot_stuffing,
                proven=None,
                max_header_bytes=self.max_header_bytes,
                max_recipients=inlet.directory.max_recipients,
            ).envelope
        except MessageError:
            return None
        finally:
            os.close(fd)

    def block(self, inlet: Inlet) -> Block:
        """Why nothing of the directory goes now, if so. Belongs to the event loop."""
        if self.inlets.paused(inlet.directory.name) is not None:
            return None, WaitingFor.DIRECTORY_PAUSED
        route = self.outlets.route(inlet.directory, frozenset())
        if route.account is not None:
            return None, None
        refusal = block_of(route)
        return refusal, self._waits_for(refusal)

    def own_block(self, inlet: Inlet, entry: Entry, block: Block) -> Block:
        """The directory's `block`, or that of the message alone: others' senders may have an account that works."""
        own = inlet.cycle.blocked.get(entry.identity.name) if block[1] is None else None
        return block if own is None else (own.refusal, self._waits_for(own.refusal))

    def told(self, inlet: Inlet, refusal: Refusal | None, waiting_for: WaitingFor | None) -> Told:
        """What a block of the directory or of a message means."""
        if waiting_for is WaitingFor.DIRECTORY_PAUSED or refusal is None:
            pause = self.inlets.paused(inlet.directory.name)
            if pause is None:  # it ended just now
                return Told("paused", "")
            return Told(f"paused: {pause.reason}", pause.remedy, pause.until)
        if refusal.reason == QUOTA:
            return Told("quota: the account's limits are used up for now", _QUOTA, refusal.until)
        pause = self._pause_of(refusal.account)
        if pause is None:
            return Told(refusal.reason, "enable the account or give the directory another", refusal.until)
        return Told(f"{pause.code}: {pause.reason}", pause.remedy, pause.until)

    def _waits_for(self, refusal: Refusal) -> WaitingFor:
        quota = refusal.reason == QUOTA or self._code_of(refusal.account) in QUOTA_CODES
        return WaitingFor.QUOTA if quota else WaitingFor.ACCOUNT_PAUSED

    def _code_of(self, account: str) -> str | None:
        pause = self._pause_of(account)
        return pause.code if pause is not None else None

    def _pause_of(self, account: str) -> Pause | None:
        try:
            return self.outlets.pause_of(account)
        except NotFound:
            return None

    def _message(self, inlet: Inlet, entry: Entry, block: Block) -> QueuedMessage:
        was, (refusal, waiting_for) = entry.sidecar, self.own_block(inlet, entry, block)
        problem = inlet.cycle.problems.get(entry.identity.name)
        if entry.state not in WAITS:
            refusal = waiting_for = None
        elif entry.identity.name in inlet.cycle.writing:
            refusal, waiting_for = None, WaitingFor.BEING_WRITTEN
        account = refusal.account if refusal is not None else was.account if was else None
        due_at = was.due_at if was and entry.state is State.DEFERRED else None
        reason = was.reason if was else ""
        if problem is not None:
            reason = problem.error.detail
        elif waiting_for is not None and waiting_for is not WaitingFor.BEING_WRITTEN:
            told = self.told(inlet, refusal, waiting_for)
            reason = told.text
            if told.until is not None:
                due_at = max(due_at or 0.0, told.until)  # when it will go
        return QueuedMessage(
            id=entry.identity.id,
            directory=inlet.directory.name,
            file_name=shown(entry.file_name),
            state=entry.state,
            size_bytes=entry.size,
            arrived_at=entry.mtime,
            waiting_for=waiting_for,
            due_at=due_at,
            attempts=was.attempts if was else 0,
            first_attempt_at=was.first_attempt_at if was else None,
            account=account or None,
            code=was.code if was else None,
            enhanced_code=was.enhanced_code if was else None,
            reason=reason,
            possible_duplicate=bool(was and was.possible_duplicate),
        )

    # --- one ---

    async def entry(self, message_id: str) -> tuple[Inlet, Entry]:
        """Where it lies. Raises NotFound, DirectoryUnavailable."""
        parsed = parse_message_id(message_id)
        try:
            inlet = self.inlets.get(parsed.directory)
        except NotFound:
            raise NotFound("message", message_id) from None

        def find() -> Entry:
            inlet.spool.open()
            return inlet.spool.find(parsed)

        return inlet, await asyncio.to_thread(find)

    async def get(self, message_id: str) -> QueuedMessage:
        inlet, entry = await self.entry(message_id)
        return self._message(inlet, entry, self.block(inlet))

    async def raw(self, message_id: str) -> RawFile:
        inlet, entry = await self.entry(message_id)
        fd = await asyncio.to_thread(inlet.spool.open_raw, entry)
        return RawFile(fd, os.fstat(fd).st_size, shown(entry.identity.name))

    async def retry(self, message_id: str, actor: Actor) -> QueuedMessage:
        return await self._act(message_id, "retry", actor)

    async def hold(self, message_id: str, actor: Actor) -> QueuedMessage:
        return await self._act(message_id, "hold", actor)

    async def release(self, message_id: str, actor: Actor) -> QueuedMessage:
        return await self._act(message_id, "release", actor)

    async def delete(self, message_id: str, actor: Actor) -> None:
        inlet, entry = await self.entry(message_id)
        await self.carry_out(inlet, entry, "delete", actor, audited=True)

    async def _act(self, message_id: str, act: str, actor: Actor) -> QueuedMessage:
        inlet, entry = await self.entry(message_id)
        moved = await self.carry_out(inlet, entry, act, actor, audited=True)
        return self._message(inlet, moved or entry, self.block(inlet))  # as it was left: it may be sent by now

    async def carry_out(
        self, inlet: Inlet, entry: Entry, act: str, actor: Actor, *, audited: bool = False
    ) -> Entry | None:
        """One act on one message, and its line in the message's life. The message after it; None: it was so already.

        What tells of it is written first, under the message's lock. `audited`: in the audit too.
        Raises StateConflict, NotFound; DatabaseUnavailable, StorageFull: nothing was done.
        """
        if act == "release" and entry.state in WAITS:
            return None
        if act == "hold" and entry.state is State.HELD:
            return None
        if act == "retry" and entry.state is State.WAITING:
            inlet.cycle.offer(entry.identity.name, event_seen=False)
            return None
        act_of: dict[str, Callable[[Entry, Callable[[], object]], Entry | None]] = {
            "retry": inlet.spool.retry,
            "hold": inlet.spool.hold,
            "release": inlet.spool.release_hold,
            "delete": inlet.spool.delete,
        }
        if entry.state in WAITS:
            await inlet.cycle.let_go(entry.file_name.rsplit(b"/", 1)[-1])
        end: ledger.Entry | None = None
        if act == "delete":
            envelope = await asyncio.to_thread(self.envelope, inlet, entry)
            end = deleted(inlet.directory.name, entry, envelope, actor)
        record = ActRecord(self.store, self.audit, self.clock, entry, act, actor, audited=audited, end=end)

        async def act_on_it() -> Entry | None:
            try:
                return await asyncio.to_thread(act_of[act], entry, record.write)
            except RelayError as error:
                await record.take_back(error)
                raise

        # who hangs up leaves the thread at work: what comes of it is written down all the same
        moved = await asyncio.shield(asyncio.get_running_loop().create_task(act_on_it())) or entry
        if act in ("retry", "release"):
            inlet.cycle.offer(moved.file_name.rsplit(b"/", 1)[-1], event_seen=False)
        return moved


def shown(name: bytes) -> str:
    """A file name for people; undecodable octets are shown in hexadecimal."""
    return name.decode(errors="backslashreplace")


def _write_cursor(key: tuple[str, bytes, str]) -> str:
    directory, name, tag = key
    return cursors.write(directory.encode() + b"\0" + tag.encode() + b"\0" + name)


def _read_cursor(cursor: str | None) -> tuple[str, bytes, str] | None:
    if cursor is None:
        return None
    match = _CURSOR.fullmatch(cursors.read(cursor))
    if match is None:
        raise cursors.refused()
    directory, tag, name = match.groups()
    return directory.decode(), name, tag.decode()
