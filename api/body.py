"""Bodies of requests: none where none is read, and JSON by stricter rules than Python's.

A member that stands twice in an object is an error: the last one would win, in silence. What can't be read is told in
full: where it is no JSON, no UTF-8, or holds what nobody means.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.errors import hung_up, pointer_to
from core.errors import FieldError, InvalidSettings


class JsonRequest(Request):
    """A request whose JSON is read by these rules, once."""

    async def json(self) -> Any:
        """None where there is no body. Raises InvalidSettings, and HTTPException 400 for what can't be read at all."""
        if not hasattr(self, "_json"):
            try:
                data = await self.body()
            except ClientDisconnect:
                raise hung_up() from None
            self._json = _read(data) if data else None
        return self._json


_NOTHING = (b"", b"{}")
_NOTHING_OCTETS = 64  # with the blanks around it


async def refuse_body(request: Request) -> None:
    """Raises InvalidSettings where there is one that says anything; `{}` doesn't, as tools send it."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return
    held = b""
    try:
        async for chunk in request.stream():
            held += chunk
            if len(held) > _NOTHING_OCTETS:
                break
    except ClientDisconnect:
        raise hung_up() from None
    if len(held) > _NOTHING_OCTETS or held.strip() not in _NOTHING:
        raise InvalidSettings([FieldError("", "no_body", "this call takes no body")], remedy="Send it without one.")


def _read(data: bytes) -> Any:
    try:
        value = json.loads(data, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        detail = f"no JSON: {error.msg} at character {error.pos}"
        raise InvalidSettings([FieldError("", "malformed_json", detail)], remedy="Send one JSON object.") from None
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"octet {error.start} of the body is no UTF-8") from None
    except RecursionError:
        raise HTTPException(400, "the body is nested beyond measure") from None
    except ValueError:  # of int(), which reads no number of so many digits
        wrong = FieldError("", "out_of_range", "a number in the body has thousands of digits")
        raise InvalidSettings([wrong], remedy="Send numbers within the ranges that /docs names.") from None
    place = _twice(value)
    if place is not None:
        wrong = FieldError(pointer_to(place), "twice", "stands twice in the same object")
        raise InvalidSettings([wrong], remedy="Leave one of the two out.")
    return value


class _Object(dict[str, Any]):
    """A JSON object in which a member stands twice."""

    twice: str


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(members)
    if len(made) == len(members):
        return made
    marked = _Object(made)
    marked.twice = Counter(name for name, _ in members).most_common(1)[0][0]
    return marked


_Way = tuple[Any, Any]  # the way to the parent (None: it is the whole), and the member's name or number


def _twice(value: Any) -> list[str] | None:
    """The way to a member that stands twice; None: there is none."""
    open_ones: list[tuple[_Way | None, Any]] = [(None, value)] if isinstance(value, (dict, list)) else []
    while open_ones:
        way, value = open_ones.pop()
        if isinstance(value, _Object):
            place = [value.twice]
            while way is not None:
                way, name = way
                place.insert(0, str(name))
            return place
        members = value.items() if isinstance(value, dict) else enumerate(value)
        # linked, not copied, and only what has members: a body may be deep and wide
        open_ones += [((way, name), member) for name, member in members if isinstance(member, (dict, list))]
    return None
