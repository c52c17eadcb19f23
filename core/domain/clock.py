"""Time as a value that is passed in, so that tests move it."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Wall time for what is shown and stored, monotonic time for waits (a jump of the wall clock moves no wait)."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds since some point; never goes back."""
        ...
