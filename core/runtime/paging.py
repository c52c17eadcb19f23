"""Pages of what is ordered by a name: each row that is there throughout appears exactly once."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

from core.errors import FieldError, InvalidSettings
from core.runtime.views import Page

T = TypeVar("T")


def page_of(rows: Sequence[T], name_of: Callable[[T], str], limit: int, cursor: str | None) -> Page[T]:
    """The rows behind the cursor, by name. Raises InvalidSettings for a cursor that no page gave."""
    after = "" if cursor is None else _decode(cursor)
    behind = sorted((row for row in rows if name_of(row) > after), key=name_of)
    more = len(behind) > limit
    return Page(tuple(behind[:limit]), _encode(name_of(behind[limit - 1])) if more else None)


def _encode(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).rstrip(b"=").decode()


def _decode(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidSettings(
            [FieldError("query/cursor", "bad_cursor", "is none that a list gave")],
            remedy="begin the list again without it",
        ) from None
