"""One mail over the wire: handed in, explained, followed through its life; and the history's rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas.base import Out, Time

StatusWord = Literal["sent", "deferred", "failed", "unknown", "deleted"]
OutcomeWord = Literal["sent", "deferred", "failed", "unknown"]


class SubmittedPublic(Out):
    """A mail that lies in the directory now, durably."""

    id: str = Field(description="Ours, for GET /messages/{id}.")
    directory: str
    size_bytes: int
    replayed: bool = Field(description="The same Idempotency-Key came before: nothing new was written.")


class RecipientPublic(Out):
    """One recipient and how it stands."""

    recipient: str
    status: StatusWord | None = Field(description="null: not tried yet.")
    account: str | None
    code: int | None
    enhanced_code: str | None
    text: str
    at: Time | None


class AttemptPublic(Out):
    """What one attempt meant for the recipients that it names."""

    number: int
    account: str
    server: str = Field(description="host:port")
    tls: str | None
    started_at: Time
    ended_at: Time | None
    phase: str = Field(description="How far the conversation came: dns, connect, tls, banner, ehlo, auth, ..., dot.")
    outcome: OutcomeWord
    code: int | None
    enhanced_code: str | None
    text: str
    recipients: list[str]
    possible_duplicate: bool = Field(description="No reply came after the final dot: it may have arrived.")


class ActPublic(Out):
    """What an operator did to the message."""

    at: Time
    key: str = Field(description="Name of the API key, or local.")
    act: str
    detail: str


class MessagePublic(Out):
    """The whole life of a mail, queued or gone."""

    id: str
    directory: str
    file_name: str
    state: Literal["waiting", "claimed", "deferred", "held", "badmail", "sent", "failed", "deleted"]
    internet_message_id: str | None = Field(description="The header's Message-ID; `id` is ours.")
    sender: str | None = Field(description="Envelope sender; null: not read yet, empty: the null sender.")
    subject: str | None
    size_bytes: int
    arrived_at: Time | None
    settled_at: Time | None = Field(description="null: still queued.")
    due_at: Time | None
    waiting_for: Literal["account_paused", "quota", "directory_paused", "being_written"] | None
    reason: str
    recipients: list[RecipientPublic]
    attempts: list[AttemptPublic]
    acts: list[ActPublic]


class EnvelopeRecipientPublic(Out):
    """A recipient with its DSN parameters (RFC 3461)."""

    recipient: str
    notify: str | None
    orcpt: str | None


class EnvelopePublic(Out):
    """What SMTP would be told."""

    sender: str
    recipients: list[EnvelopeRecipientPublic]
    ret: str | None
    envid: str | None
    source: Literal["x-headers", "headers", "resent"] = Field(description="Which fields it comes from.")


class DotStuffingPublic(Out):
    """Whether leading dots count as doubled, and why."""

    setting: Literal["auto", "stuffed", "plain"]
    evidence: Literal["none", "plain", "ambiguous"]
    verdict: Literal["stuffed", "plain"]
    why: str


class AccountChoicePublic(Out):
    """One account, in the order in which they are asked, and why it would or wouldn't be taken."""

    account: str
    chosen: bool
    why: str = Field(
        description="Why it stands where it stands (a sender route, the order, its share, its `senders`) and what is "
        "in its way (disabled, paused or out of quota and until when, may not send as the sender)."
    )


class ExplanationPublic(Out):
    """What would happen to the mail and why; nothing was sent or kept."""

    directory: str
    outcome: Literal["send", "wait", "badmail", "left"]
    state: Literal["waiting", "claimed", "deferred", "held", "badmail"]
    why: str
    enhanced_code: str | None
    envelope: EnvelopePublic | None
    internet_message_id: str | None
    subject: str | None
    size_bytes: int
    stripped: list[str] = Field(description="Header fields that leave the mail.")
    added: list[str] = Field(description="Header fields that are added.")
    re_encoded: list[str] = Field(description="What is re-encoded where the server needs it.")
    dot_stuffing: DotStuffingPublic | None
    accounts: list[AccountChoicePublic] = Field(
        description="All that a mail of this sender could go through: a sender route's, else the directory's."
    )
    notes: list[str]
    rewritten: list[str] = Field(
        description="Envelope sender and header lines as the account's `from_policy` makes them; empty: as they are."
    )


class HistoryPublic(Out):
    """One recipient of one message, as it stands after its last attempt."""

    message_id: str = Field(description="Ours, for GET /messages/{id}.")
    internet_message_id: str | None
    directory: str
    sender: str
    recipient: str
    subject: str | None
    status: StatusWord
    account: str | None
    server: str | None
    code: int | None
    enhanced_code: str | None
    text: str
    attempts: int
    size_bytes: int
    arrived_at: Time | None
    at: Time
    possible_duplicate: bool
