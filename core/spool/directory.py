"""A pickup directory as a spool: the one thing of this room that others use.

All methods are synchronous and short, but for scan, counts, entries and recover, whose time grows with the directory:
call those from a thread. Safe to call from several threads; `dispose` is meant for one, the ledger's.
Raises DirectoryUnavailable wherever the directory can't be reached: that is not the same as empty.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace

from core.domain.account import Directory, DotStuffing
from core.domain.clock import Clock
from core.domain.message import MessageId, State
from core.errors import DirectoryUnavailable
from core.spool import check as checking
from core.spool import claim as claiming
from core.spool import dispose as disposal
from core.spool import operate
from core.spool import recover as recovery
from core.spool.kernel import Features
from core.spool.operate import Before
from core.spool.place import Place, open_place, unavailable
from core.spool.scan import Scan, count, entries, find
from core.spool.submission import Submission
from core.spool.values import (
    CheckStep,
    Claim,
    Counts,
    Delete,
    Disposal,
    Disposed,
    Entry,
    Hold,
    Opened,
    PutBack,
    Recovered,
    ToBadmail,
    Verdict,
)

__all__ = [
    "CheckStep",
    "Claim",
    "Counts",
    "Delete",
    "DirectorySpool",
    "Disposal",
    "Disposed",
    "Entry",
    "Hold",
    "Opened",
    "PutBack",
    "Recovered",
    "ToBadmail",
    "Verdict",
]


_PENDING_LIMIT = 100  # each keeps a descriptor


def _nothing() -> None:
    """Nothing is to be done before."""


class DirectorySpool:
    """One pickup directory."""

    def __init__(self, settings: Directory, *, clock: Clock, features: Features | None = None) -> None:
        self.clock = clock
        self.features = features or Features()
        self._settings = settings
        self._place: Place | None = None
        self._recovered: Place | None = None
        self._retired: list[Place] = []  # replaced or unmounted meanwhile, with messages still in flight
        self._scans = 0
        self._opening = threading.Lock()  # two that open it at once would each have a log, and one stay behind
        self._state = threading.Lock()  # of what follows; never held while the file system is waited for
        self._closed = False

    @property
    def settings(self) -> Directory:
        """What it goes by. May be replaced at any time; another path or format needs `open` again."""
        return self._settings

    @settings.setter
    def settings(self, settings: Directory) -> None:
        self._settings = settings
        if self._place is not None and self._fits(self._place):
            self._place.replace_settings(settings)

    def _fits(self, place: Place) -> bool:
        return (place.settings.path, place.settings.format) == (self._settings.path, self._settings.format)

    @property
    def place(self) -> Place:
        """The open directory. Raises DirectoryUnavailable if it isn't open."""
        if self._place is None:
            raise DirectoryUnavailable(f"{self.settings.path} is not open", remedy="it is opened at the next run")
        return self._place

    def open(self) -> None:
        """Open it, make `.mpu/`; anew if the path leads elsewhere now, else harmless.

        Raises DirectoryUnavailable, after `close` too.
        """
        with self._opening:
            if self._place is not None:
                with suppress(DirectoryUnavailable):
                    self._place.check_path()
                    if self._fits(self._place):
                        return
                self._retire()
            if self._is_closed():
                raise self._closed_error()
            place = open_place(self.settings, clock=self.clock, features=replace(self.features))
            with self._state:
                if not self._is_closed():
                    self._place = place
                    return
        place.close()
        raise self._closed_error()

    def _is_closed(self) -> bool:
        return self._closed

    def _closed_error(self) -> DirectoryUnavailable:
        return DirectoryUnavailable(f"{self.settings.path} is closed", remedy="the service ends, or it was removed")

    def close(self) -> None:
        """Let go of everything, for good. Messages in flight stay `.lck`, for the next start's recovery."""
        with self._state:
            self._closed = True
        self._retire()
        with self._state:
            retired, self._retired = self._retired, []
        for place in retired:
            for claimed in list(place.claimed.values()):
                claiming.release(claimed.opened)
            place.close()

    def _retire(self) -> None:
        with self._state:
            if self._place is not None:
                self._retired.append(self._place)
                self._place = None
        self._sweep()

    def _sweep(self) -> None:
        """Close places that were replaced, once nothing of them is in flight, or waits for its turn."""
        with self._state:
            idle = [place for place in self._retired if not place.claimed and not place.handles]
            self._retired = [place for place in self._retired if place not in idle]
        for place in idle:
            place.close()

    @property
    def claims_allowed(self) -> bool:
        """False after an append failed: until one works again (no space), or for good (EIO).

        And while disposals wait for room, or many for anything else: see `retry_pending`.
        """
        place = self._place
        return place is not None and not self.pending_stops and place.log.usable

    @property
    def pending_stops(self) -> bool:
        """Whether claims have stopped for disposals that wait, for room, or many for anything else."""
        place = self._place
        return place is not None and (bool(place.short_of_space) or len(place.pending) >= _PENDING_LIMIT)

    def recover(self) -> Iterator[Recovered]:
        """Take over what dead owners left. Before the first claim: it compares waiting names with their logs too."""
        with self.place as place:
            yield from _reached(place, recovery.recover(place))
            self._recovered = place

    @property
    def recovered(self) -> bool:
        """Whether it is open and `recover` came to its end since; opened anew by anybody, it must be run again."""
        return self._place is not None and self._place is self._recovered

    def orphans(self) -> Iterator[Recovered]:
        """The same for `.lck` files that the last scan saw and nobody holds (another process died while we live)."""
        with self.place as place:
            yield from _reached(place, recovery.orphans(place))

    def scan(self) -> Iterator[bytes]:
        """Names that wait and are due, streaming, unsorted, without a stat. Raises DirectoryUnavailable."""
        with self.place as place:
            self._scans += 1
            yield from Scan(place, self._scans).names()

    def matches(self, name: bytes) -> bool:
        """Whether a name (from an event) is that of a waiting message."""
        return self.place.matches(name)

    def next_due_at(self, since: float | None = None) -> float | None:
        """Earliest due time of deferred messages that lies ahead, or came after `since`; seconds since the epoch."""
        place = self.place
        times = place.sidecars.due_times()
        if since is None:
            return min(filter(place.lies_ahead, times), default=None)
        return min(
            (at for at in times if at > since and (at <= place.clock.now() or place.lies_ahead(at))), default=None
        )

    def examine(self, name: bytes, *, event_seen: bool = False) -> Opened:
        """Claim, steps 1 to 4: open, look, no writer any more, lock.

        `event_seen`: a CLOSE_WRITE or MOVED_TO for this name was seen. Opened.reject: it must go to badmail.
        Raises MessageNotDue, MessageNotReady, MessageGone, MessageBusy, MessageUnreadable, MessageRefused.
        """
        with self.place as place:
            return claiming.examine(place, name, event_seen=event_seen)

    def release(self, opened: Opened) -> None:
        """Let go of it unclaimed. Harmless if closed."""
        claiming.release(opened)
        if self._retired:
            self._sweep()

    def claim(self, opened: Opened) -> Claim:
        """Step 6: rename to `.lck`. On any error `opened` is closed.

        Raises MessageGone, MessageBusy, MessageNotReady (it changed), StorageFull, StorageBroken, DirectoryUnavailable.
        """
        try:
            with opened.place as place:
                return claiming.claim(place, opened)
        except DirectoryUnavailable:
            claiming.release(opened)
            raise

    def put_back_now(self, claim: Claim) -> None:
        """Rename back, no attempt counted, nothing synced; closes the claim. For faults of the account and stops."""
        disposal.put_back_now(claim.opened.place, claim)
        self._sweep()

    def discard_now(self, claim: Claim) -> None:
        """Unlink a wholly sent message whose outcome could not be logged. Still dispose of it with Delete."""
        with suppress(DirectoryUnavailable), claim.opened.place as place:
            disposal.discard_now(place, claim)

    def before_commit(self, disposals: Sequence[Disposal]) -> None:
        """A group is about to be committed: its outcomes survive a power cut from here on, whatever comes of it."""
        for place in {d.claim.opened.place for d in disposals}:
            disposal.before_commit(place)

    def dispose(self, disposals: Sequence[Disposal]) -> list[Disposed]:
        """Act on one group, after its commit. One answer a disposal, in order; closes all claims but pending ones.

        Raises StorageBroken if a sync failed with EIO.
        """
        places = {d.claim.opened.place for d in disposals}
        if len(places) == 1:
            answers = disposal.dispose(places.pop(), disposals)
        else:
            of_claim = {}
            for place in places:
                for answer in disposal.dispose(place, [d for d in disposals if d.claim.opened.place is place]):
                    of_claim[answer.disposal.claim.token] = answer
            answers = [of_claim[d.claim.token] for d in disposals]
        if self._retired:
            self._sweep()
        return answers

    def pending(self) -> list[Disposal]:
        """Disposals that could not be carried out (no space, no right), kept for `retry_pending`."""
        return [d for place in self._places() for d in list(place.pending.values())]

    def retry_pending(self) -> list[Disposed]:
        """Try those again."""
        answers = [a for place in self._places() for a in disposal.retry_pending(place)]
        self._sweep()
        return answers

    def _places(self) -> list[Place]:
        return [*self._retired, *([self._place] if self._place is not None else [])]

    def has_claimed(self, name: bytes) -> bool:
        """Whether the message of this name is claimed by us now."""
        return any(name in place.claimed for place in self._places())

    @property
    def in_flight(self) -> int:
        """Claims that were not disposed of yet."""
        return sum(len(place.claimed) for place in self._places())

    def counts(self, *, stat_limit: int = 10_000) -> Counts:
        """Count by name, streaming. Sizes and ages only if there are at most `stat_limit` messages."""
        with self.place as place:
            return count(place, stat_limit=stat_limit)

    def entries(self, states: Collection[State] | None = None) -> Iterator[Entry]:
        """All messages (in these states), streaming, in no order."""
        with self.place as place:
            yield from entries(place, states)

    def find(self, message_id: MessageId) -> Entry:
        """In whatever state it is. Raises NotFound."""
        with self.place as place:
            return find(place, message_id)

    def open_raw(self, entry: Entry) -> int:
        """A read-only descriptor of the message; the caller closes it. Raises NotFound, MessageUnreadable."""
        with self.place as place:
            return operate.open_raw(place, entry)

    def hold(self, entry: Entry, before: Before = _nothing) -> Entry:
        """Waiting or deferred to held. Raises StateConflict, NotFound. `before`: see operate.py, here and below."""
        with self.place as place:
            return operate.hold(place, entry, before)

    def release_hold(self, entry: Entry, before: Before = _nothing) -> Entry:
        """Held to waiting. Raises StateConflict, NotFound."""
        with self.place as place:
            return operate.release_hold(place, entry, before)

    def retry(self, entry: Entry, before: Before = _nothing) -> Entry:
        """Deferred becomes due; badmail waits again, attempts and age restarted. Raises StateConflict, NotFound."""
        with self.place as place:
            return operate.retry(place, entry, before)

    def delete(self, entry: Entry, before: Before = _nothing) -> None:
        """Remove it for good. Raises StateConflict while claimed, NotFound."""
        with self.place as place:
            operate.delete(place, entry, before)

    def submit(self, chunks: Iterable[bytes], name: bytes | str | None = None) -> Entry:
        """Write one, durable and atomic. Raises MessageRejected (empty, too large), StorageFull, StorageBroken."""
        with closing(self.submission(name)) as submission:
            for chunk in chunks:
                submission.write(chunk)
            submission.stage()
            return submission.put_in()

    def submission(self, name: bytes | str | None = None) -> Submission:
        """One to be written piece by piece; opens nothing yet."""
        return Submission(self.place, name)

    def holds(self, message_id: MessageId) -> bool:
        """Whether it is here, in whatever state, or in flight. Raises DirectoryUnavailable."""
        with self.place as place:
            return operate.holds(place, message_id)

    def proven(self) -> DotStuffing | None:
        """What was proved of this directory's writers before."""
        return self.place.proven

    def set_proven(self, dot_stuffing: DotStuffing) -> None:
        """Remember it in `.mpu/`, if it is new."""
        self.place.set_proven(dot_stuffing)

    def check(self) -> list[CheckStep]:
        """What is possible there (spool.md, "Permissions"). Leaves nothing behind."""
        try:
            self.open()
            with self.place as place:
                return checking.check(place)
        except DirectoryUnavailable as error:
            return checking.unreachable(error)


def _reached(place: Place, recovered: Iterator[Recovered]) -> Iterator[Recovered]:
    try:
        yield from recovered
    except OSError as error:
        raise unavailable(place.settings.path, error) from None
