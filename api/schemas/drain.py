"""Drains over the wire."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from api.schemas.base import NAME_PATTERN, In, Out, Seconds, Time
from core.runtime.views import DrainRequest


class DrainIn(In):
    """What to work off. All optional, the body too."""

    directories: list[Annotated[str, Field(pattern=NAME_PATTERN)]] | None = Field(
        default=None, max_length=1000, description="Names; omitted: every directory."
    )
    include_deferred: bool = Field(default=False, description="Deferred mail is due once, now.")
    timeout_seconds: float = Field(
        default=300,
        ge=0,
        le=3600,
        description="How long the answer waits for the end. The drain goes on after it. Default 300.",
    )

    def value(self) -> DrainRequest:
        return DrainRequest(
            directories=None if self.directories is None else tuple(dict.fromkeys(self.directories)),
            include_deferred=self.include_deferred,
            timeout_seconds=self.timeout_seconds,
        )


class OutcomesPublic(Out):
    """Counts by outcome."""

    sent: int
    deferred: int
    failed: int
    unknown: int


class BlockedPublic(Out):
    """Why messages couldn't go."""

    reason: str
    account: str | None
    until: Time | None
    count: int


class _OfDirectory(Out):
    directory: str


class DrainRowPublic(OutcomesPublic, _OfDirectory):
    """What the drain did in one directory (messages)."""

    skipped: Literal["paused", "disabled", "unavailable"] | None
    remaining: int
    blocked: list[BlockedPublic]


class _DrainState(Out):
    id: str
    state: Literal["running", "done", "stopped"]
    complete: bool = Field(description="It ended, and nothing that was due and could go is left.")
    stopped: bool = Field(description="Ended early: by DELETE, or because the service stops.")


class DrainPublic(OutcomesPublic, _DrainState):
    """A drain as it stands; the counts are messages."""

    started_at: Time
    duration_seconds: Seconds
    recipients: OutcomesPublic
    directories: list[DrainRowPublic]
