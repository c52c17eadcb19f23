"""Cursors of the lists of tables: whole numbers."""

from __future__ import annotations

from core.domain import cursor as cursors

_LARGEST = (1 << 63) - 1


def encode(*numbers: int) -> str:
    """Text that is safe in a URL."""
    return cursors.write(".".join(map(str, numbers)).encode())


def decode(cursor: str, count: int) -> tuple[int, ...]:
    """The numbers. Raises InvalidSettings, pointer "query/cursor", for anything that `encode` didn't make."""
    parts = cursors.read(cursor).split(b".")
    if len(parts) == count and all(part.isdigit() and len(part) < 20 for part in parts):
        numbers = tuple(int(part) for part in parts)
        if max(numbers) <= _LARGEST and encode(*numbers) == cursor:  # which 007 isn't
            return numbers
    raise cursors.refused()
