"""The system's clocks."""

from __future__ import annotations

import time


class SystemClock:
    """core.domain.clock.Clock, as the machine tells it."""

    __slots__ = ()

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some point; never goes back, whatever the wall clock does."""
        return time.monotonic()
