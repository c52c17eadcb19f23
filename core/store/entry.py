"""What is told to the ledger of one message, and what is to become of its file once that is committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from core.domain.outcome import Attempt, RecipientOutcome


class Status(StrEnum):
    """How a message, or one of its recipients, stands in the history."""

    SENT = "sent"
    DEFERRED = "deferred"
    FAILED = "failed"
    UNKNOWN = "unknown"
    DELETED = "deleted"  # by an operator


class Disposer(Protocol):
    """Does to files what was decided, after the commit; a spool. Called in the ledger's threads."""

    def before_commit(self, disposals: Sequence[Any]) -> None:
        """The group is about to be committed: make what is known of it last. At the same time as it is written."""
        ...

    def dispose(self, disposals: Sequence[Any]) -> Sequence[Any]:
        """Carry out one group; one result for each disposal, in order. A result may be an exception.

        What it raises is the result of all of them.
        """
        ...


@dataclass(slots=True)  # one a message (core/domain)
class Entry:
    """One settlement of one message. Times in seconds since the epoch.

    A finished one that names no recipient (no attempts, outcomes, rest) speaks of all that are known and not sent to.
    """

    message_id: str  # MessageIdentity.id
    directory: str
    sender: str  # "" is the null sender
    size_bytes: int
    arrived_at: float
    status: Status  # of the message as a whole
    finished: bool  # True: nothing is tried any more unless an operator says so
    internet_message_id: str | None = None
    subject: str | None = None  # kept to 200 characters
    attempts: tuple[Attempt, ...] = ()  # the new ones; the time that one started is what it is known by
    outcomes: tuple[RecipientOutcome, ...] = ()  # that no attempt tells: decided here, such as expired. They win
    rest: tuple[str, ...] = ()  # further recipients, that share the message's status and `reason` (deleted, rejected)
    reason: str = ""  # for `rest`, and for a message of which no recipient is known
    code: int | None = None  # likewise
    enhanced_code: str | None = None  # likewise
    attempts_counted: int = 0  # so far
    first_attempt_at: float | None = None  # None: the first of `attempts`
    possible_duplicate: bool = False
    disposal: object | None = None  # None: nothing to do with the file
    disposer: Disposer | None = None
