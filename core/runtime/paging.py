"""Pages of what is ordered by a name: each row that is there throughout appears exactly once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from core.domain import cursor as cursors
from core.domain.message import NAME
from core.runtime.views import Page

T = TypeVar("T")
_NAME = re.compile(NAME.encode())


def page_of(rows: Sequence[T], name_of: Callable[[T], str], limit: int, cursor: str | None) -> Page[T]:
    """The rows behind the cursor, by name. Raises InvalidSettings for a cursor that no page gave."""
    after = "" if cursor is None else _name(cursor)
    behind = sorted((row for row in rows if name_of(row) > after), key=name_of)
    more = len(behind) > limit
    return Page(tuple(behind[:limit]), cursors.write(name_of(behind[limit - 1]).encode()) if more else None)


def _name(cursor: str) -> str:
    name = _NAME.fullmatch(cursors.read(cursor))
    if name is None:
        raise cursors.refused()
    return name[0].decode()
