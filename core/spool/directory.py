"""A pickup directory as a spool: the one thing of this room that others use.

All methods are synchronous and short, but for scan, counts, entries and recover, whose time grows with the directory:
call those from a thread. Safe to call from several threads; `dispose` is meant for one, the ledger's.
Raises DirectoryUnavailable wherever the directory can't be reached: that is not the same as empty.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from core.domain.account import Directory, DotStuffing
from core.domain.clock import Clock
from core.domain.message import MessageId, State
from core.spool.kernel import Features
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


class DirectorySpool:
    """One pickup directory. `settings` may be replaced at any time (`settings` is an attribute)."""

    def __init__(self, settings: Directory, *, clock: Clock, features: Features | None = None) -> None:
        self.settings = settings
        self.clock = clock
        self.features = features or Features()

    def open(self) -> None:
        """Open it, make `.mpu/`; anew if the path leads elsewhere now, else harmless. Raises DirectoryUnavailable."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of everything. Messages in flight stay `.lck`, for the next start's recovery."""
        raise NotImplementedError

    @property
    def claims_allowed(self) -> bool:
        """False after an append to the log failed: until one works again (no space), or for good (EIO)."""
        raise NotImplementedError

    def recover(self) -> Iterator[Recovered]:
        """Take over what dead owners left. Before the first claim: it compares waiting names with their logs too."""
        raise NotImplementedError

    def orphans(self) -> Iterator[Recovered]:
        """The same for `.lck` files that the last scan saw and nobody holds (another process died while we live)."""
        raise NotImplementedError

    def scan(self) -> Iterator[bytes]:
        """Names that wait and are due, streaming, unsorted, without a stat. Raises DirectoryUnavailable."""
        raise NotImplementedError

    def matches(self, name: bytes) -> bool:
        """Whether a name (from an event) is that of a waiting message."""
        raise NotImplementedError

    def next_due_at(self) -> float | None:
        """Earliest due time among deferred messages that lies ahead, seconds since the epoch."""
        raise NotImplementedError

    def examine(self, name: bytes, *, event_seen: bool = False) -> Opened:
        """Claim, steps 1 to 4: open, look, no writer any more, lock.

        `event_seen`: a CLOSE_WRITE or MOVED_TO for this name was seen. Opened.reject: it must go to badmail.
        Raises MessageNotDue, MessageNotReady, MessageGone, MessageBusy, MessageUnreadable, MessageRefused.
        """
        raise NotImplementedError

    def release(self, opened: Opened) -> None:
        """Let go of it unclaimed. Harmless if closed."""
        raise NotImplementedError

    def claim(self, opened: Opened) -> Claim:
        """Step 6: rename to `.lck`. On any error `opened` is closed.

        Raises MessageGone, MessageBusy, MessageNotReady (it changed), StorageFull, StorageBroken, DirectoryUnavailable.
        """
        raise NotImplementedError

    def put_back_now(self, claim: Claim) -> None:
        """Rename back, no attempt counted, nothing synced; closes the claim. For faults of the account and stops."""
        raise NotImplementedError

    def discard_now(self, claim: Claim) -> None:
        """Unlink a wholly sent message whose outcome could not be logged. Still dispose of it with Delete."""
        raise NotImplementedError

    def dispose(self, disposals: Sequence[Disposal]) -> list[Disposed]:
        """Act on one group, after its commit. One answer a disposal, in order; closes all claims but pending ones.

        Raises StorageBroken if a sync failed with EIO.
        """
        raise NotImplementedError

    def pending(self) -> list[Disposal]:
        """Disposals that could not be carried out (no space, no right), kept for `retry_pending`."""
        raise NotImplementedError

    def retry_pending(self) -> list[Disposed]:
        """Try those again."""
        raise NotImplementedError

    @property
    def in_flight(self) -> int:
        """Claims that were not disposed of yet."""
        raise NotImplementedError

    def counts(self, *, stat_limit: int = 10_000) -> Counts:
        """Count by name, streaming. Sizes and ages only if there are at most `stat_limit` messages."""
        raise NotImplementedError

    @property
    def last_counts(self) -> Counts | None:
        """By name alone, from the last whole scan."""
        raise NotImplementedError

    def entries(self, states: Collection[State] | None = None) -> Iterator[Entry]:
        """All messages (in these states), streaming, in no order."""
        raise NotImplementedError

    def find(self, message_id: MessageId) -> Entry:
        """In whatever state it is. Raises NotFound."""
        raise NotImplementedError

    def open_raw(self, entry: Entry) -> int:
        """A read-only descriptor of the message; the caller closes it. Raises NotFound, MessageUnreadable."""
        raise NotImplementedError

    def hold(self, entry: Entry) -> Entry:
        """Waiting or deferred to held. Raises StateConflict, NotFound."""
        raise NotImplementedError

    def release_hold(self, entry: Entry) -> Entry:
        """Held to waiting. Raises StateConflict, NotFound."""
        raise NotImplementedError

    def retry(self, entry: Entry) -> Entry:
        """Deferred becomes due; badmail waits again, attempts and age restarted. Raises StateConflict, NotFound."""
        raise NotImplementedError

    def delete(self, entry: Entry) -> None:
        """Remove it for good. Raises StateConflict while claimed, NotFound."""
        raise NotImplementedError

    def submit(self, chunks: Iterable[bytes], name: bytes | str | None = None) -> Entry:
        """Write one, durable and atomic. Raises MessageRejected (empty, too large), StorageFull, StorageBroken."""
        raise NotImplementedError

    def proven(self) -> DotStuffing | None:
        """What was proved of this directory's writers before."""
        raise NotImplementedError

    def set_proven(self, dot_stuffing: DotStuffing) -> None:
        """Remember it in `.mpu/`, if it is new."""
        raise NotImplementedError

    def check(self) -> list[CheckStep]:
        """What is possible there (spool.md, "Permissions"). Leaves nothing behind."""
        raise NotImplementedError
