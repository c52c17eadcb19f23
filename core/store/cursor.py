"""Cursors of lists: opaque to clients, whole numbers to us."""

from __future__ import annotations

import base64
import binascii

from core.errors import FieldError, InvalidSettings

_LARGEST = (1 << 63) - 1


def encode(*numbers: int) -> str:
    """Text that is safe in a URL."""
    return base64.urlsafe_b64encode(".".join(map(str, numbers)).encode()).rstrip(b"=").decode()


def decode(cursor: str, count: int) -> tuple[int, ...]:
    """The numbers. Raises InvalidSettings, pointer "query/cursor", for anything that `encode` didn't make."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
        parts = text.split(".")
        if len(parts) == count and all(part.isdecimal() and len(part) < 20 for part in parts):
            numbers = tuple(int(part) for part in parts)
            if max(numbers) <= _LARGEST:
                return numbers
    except (binascii.Error, ValueError):
        pass
    raise InvalidSettings(
        [FieldError("query/cursor", "bad_cursor", "is none that a list gave")], remedy="begin the list again without it"
    )
