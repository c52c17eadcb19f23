"""Time as a value that is passed in, so that tests move it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time for what is shown and stored, monotonic time for waits (a jump of the wall clock moves no wait)."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds since some point; never goes back."""
        ...


def utc_text(seconds: float | None) -> str | None:
    """A time in seconds since the epoch as people read it, to the second (RFC 3339, UTC); None stays None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
