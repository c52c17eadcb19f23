"""Cursors of lists: opaque to clients, octets to us."""

from __future__ import annotations

import base64

from core.errors import FieldError, InvalidSettings


def write(position: bytes) -> str:
    """Text that is safe in a URL."""
    return base64.urlsafe_b64encode(position).rstrip(b"=").decode()


def read(cursor: str) -> bytes:
    """The position. Raises InvalidSettings for what `write` didn't make."""
    try:
        position = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise refused() from None
    if not position or write(position) != cursor:  # other spellings of the same octets
        raise refused()
    return position


def refused() -> InvalidSettings:
    """The answer to a cursor that no list gave."""
    return InvalidSettings(
        [FieldError("query/cursor", "bad_cursor", "is none that a list gave")], remedy="begin the list again without it"
    )
