"""What is remembered beside a message that goes back (spool.md, "Sidecar")."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Attempts, due time and accepted recipients of a message that waits again. Times in seconds since the epoch."""

    attempts: int = 0  # counted ones
    unknown: int = 0  # of which no reply came after the final dot
    first_attempt_at: float | None = None
    last_attempt_at: float | None = None
    age_seconds: float = 0.0  # counts towards expiry: see core/domain/lifecycle.py
    due_at: float | None = None
    accepted: frozenset[str] = frozenset()  # mailboxes that a server took: never sent to again
    failed: frozenset[str] = frozenset()  # mailboxes refused for good, while others are still tried
    refusals: tuple[str, ...] = ()  # a line for each of these, for people; the first 100
    message_id: str | None = None  # that was added, so that it stays the same
    date: str | None = None
    possible_duplicate: bool = False
    reason: str = ""  # why it waits or is dead, for people: with the recipient
    text: str = ""  # the same without: the server's words
    blame: str | None = None
    code: int | None = None
    enhanced_code: str | None = None
    account: str | None = None  # that the reason is about
