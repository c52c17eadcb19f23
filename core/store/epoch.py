"""Times in the database: whole microseconds since the epoch, UTC. Outside the store they are seconds, as float."""

from __future__ import annotations

_MICROSECONDS = 1_000_000
_FAR = 1e12  # seconds: file systems know times that SQLite's integers can't hold as microseconds


def to_database(seconds: float) -> int:
    """Microseconds since the epoch of seconds since the epoch."""
    return round(min(max(seconds, -_FAR), _FAR) * _MICROSECONDS)


def optional_to_database(seconds: float | None) -> int | None:
    """As `to_database`; None stays None."""
    return None if seconds is None else to_database(seconds)


def from_database(microseconds: int) -> float:
    """Seconds since the epoch of microseconds since the epoch."""
    return microseconds / _MICROSECONDS


def optional_from_database(microseconds: int | None) -> float | None:
    """As `from_database`; None stays None."""
    return None if microseconds is None else microseconds / _MICROSECONDS
