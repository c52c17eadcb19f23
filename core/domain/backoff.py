"""How long a message, or an account, waits before it is tried again."""

from __future__ import annotations

JITTER = 0.1  # a tenth either way, so that what failed together does not come back together


def delay_seconds(attempt: int, *, initial_seconds: float, max_seconds: float, chance: float) -> float:
    """Seconds to wait after the `attempt`th failure in a row (1, 2, ...): doubling, capped, with jitter.

    `chance` is a random number from 0 (a tenth shorter) to 1 (a tenth longer); the cap holds with jitter too.
    """
    doubled = initial_seconds * 2.0 ** min(max(attempt, 1) - 1, 62)
    return min(min(doubled, max_seconds) * (1 + JITTER * (2 * chance - 1)), max_seconds)
