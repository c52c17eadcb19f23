"""The queue over the wire: counts, messages, reasons, bulk acts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from api.schemas.base import NAME_PATTERN, In, MailboxText, Out, Seconds, Time
from core.domain.message import State
from core.runtime.views import QueueFilter

StateWord = Literal["waiting", "claimed", "deferred", "held", "badmail"]
RecipientFilter = Annotated[str, MailboxText, Field(min_length=2, max_length=320)]


class QueueTotalsPublic(Out):
    """How many messages stand where; the states are disjoint."""

    waiting: int = Field(description="Due, or kept by a pause.")
    claimed: int = Field(description="Being sent now.")
    deferred: int = Field(description="Tried, to be tried again when due.")
    held: int = Field(description="Set aside until released.")
    badmail: int = Field(description="Given up; kept, and one retry away from being sent.")
    bytes: int | None = Field(description="Octets in all; null: not known for all of them.")
    oldest_seconds: Seconds | None = Field(description="Age of the oldest that waits or is deferred; null: none.")
    as_of: Time


class _OfDirectory(Out):
    directory: str


class QueueRowPublic(QueueTotalsPublic, _OfDirectory):
    """One directory's counts."""


class QueuePublic(Out):
    """A row a directory, and the sums."""

    items: list[QueueRowPublic]
    totals: QueueTotalsPublic


class QueuedMessagePublic(Out):
    """One message that is still a file."""

    id: str
    directory: str
    file_name: str
    state: StateWord
    size_bytes: int
    arrived_at: Time
    waiting_for: Literal["account_paused", "quota", "directory_paused", "being_written"] | None = Field(
        description="What keeps it although it is due."
    )
    due_at: Time | None = Field(
        description="When it is tried: of deferred mail, and of what waits for a quota (the rest of a mail whose first "
        "recipients have it, too) or for the end of a pause that has one. Not before then: of a quota it is when the "
        "next mail has room, the same for all that wait. null: it could go now, or nobody knows."
    )
    attempts: int
    first_attempt_at: Time | None
    account: str | None = Field(description="The account that the reason is about.")
    code: int | None
    enhanced_code: str | None
    reason: str = Field(
        description="Why it waits: of a pause or a quota as `GET /queue/reasons` says it, else what its last attempt "
        "ended with (`code` and `enhanced_code` are always the last attempt's)."
    )
    possible_duplicate: bool = Field(description="An attempt ended without a reply after the final dot.")


class ReasonPublic(Out):
    """One reason, and how many messages it keeps."""

    blame: Literal["message", "recipient", "sender", "account", "transient"] | None
    account: str | None
    code: int | None
    enhanced_code: str | None
    text: str
    messages: int
    oldest_seconds: Seconds | None
    remedy: str


class ReasonsPublic(Out):
    """Why mail waits, most messages first."""

    items: list[ReasonPublic]
    next: None = None


class QueueFilterIn(In):
    """Which messages; what is omitted or null doesn't matter."""

    state: StateWord | None = None
    directory: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    account: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    recipient: RecipientFilter | None = Field(default=None, description="An address, or a domain as @example.org.")
    code: Annotated[int, Field(ge=200, le=599)] | None = Field(default=None, description="SMTP code of the last reply.")

    def value(self) -> QueueFilter:
        return QueueFilter(
            state=None if self.state is None else State(self.state),
            directory=self.directory,
            account=self.account,
            recipient=self.recipient,
            code=self.code,
        )


class BulkIn(In):
    """Which messages to act on."""

    filter: QueueFilterIn = QueueFilterIn()
    all: bool = Field(default=False, description="Needed where the filter is empty: really every message.")
    dry_run: bool = Field(default=False, description="Only count what matches.")


class QueueFilterPublic(Out):
    """The filter that was given."""

    state: StateWord | None
    directory: str | None
    account: str | None
    recipient: str | None
    code: int | None


class OperationPublic(Out):
    """A bulk act as it stands."""

    id: str
    act: Literal["retry", "hold", "release", "delete"]
    state: Literal["running", "done", "failed", "stopped"]
    dry_run: bool
    filter: QueueFilterPublic
    matched: int
    done: int
    skipped: int = Field(description="Their state did not allow it any more.")
    failed: int
    started_at: Time
    finished_at: Time | None
    detail: str
