"""What routes ask for: the relay, who acts, pages, versions.

Coroutines, though they wait for nothing: FastAPI would run plain functions in a thread, each a turn of a busy loop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request

from api.schemas.base import NAME_PATTERN
from core.errors import FieldError, InvalidSettings
from core.runtime.facade import RelayFacade
from core.runtime.views import Actor
from core.settings import Settings


async def relay_of(request: Request) -> RelayFacade:
    """The relay that this application was made for."""
    relay: RelayFacade = request.app.state.relay
    return relay


async def settings_of(request: Request) -> Settings:
    """The settings of the start."""
    settings: Settings = request.app.state.settings
    return settings


async def actor_of(request: Request) -> Actor:
    """Who acts; the route's guard found it out."""
    actor: Actor = request.state.actor
    return actor


# one of a list; a strong one without its quotes is taken too, as people write it
_ETAG = re.compile(r'[ \t,]*(?:(W/)?"([\x21\x23-\x7e\x80-\xff]*)"|([0-9A-Za-z]+))[ \t]*(?:,|\Z)')


async def versions_of(
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match",
            max_length=400,
            description="The ETag that you saw: 412 if it was changed since. Optional.",
        ),
    ] = None,
) -> Sequence[str] | None:
    """The versions in If-Match, or ("*",); None: the header is missing. A weak one matches none (RFC 9110, 13.1.1)."""
    if if_match is None:
        return None
    if if_match.strip() == "*":
        return ("*",)
    versions: list[str] = []
    text, position = if_match.strip(" \t,"), 0
    while position < max(len(text), 1):
        match = _ETAG.match(text, position)
        if match is None:
            raise InvalidSettings([FieldError("header/If-Match", "wrong_form", 'is no list of ETags, as "3", "4"')])
        weak, quoted, bare = match.groups()
        if weak is None and quoted != "*":  # with quotes it is a tag like any other, and not ours
            versions.append(bare or quoted)
        position = match.end()
    return tuple(versions)


async def absent_only(
    if_none_match: Annotated[
        str | None,
        Header(
            alias="If-None-Match",
            max_length=400,
            description="`*`: create it only, 412 where it is there already. Optional; no other value is taken.",
            examples=["*"],
        ),
    ] = None,
) -> bool:
    """Whether If-None-Match asks that it is not there yet. Raises InvalidSettings for anything but `*`."""
    if if_none_match is not None and if_none_match.strip() != "*":
        raise InvalidSettings([FieldError("header/If-None-Match", "wrong_form", "only * is taken here")])
    return if_none_match is not None


Relay = Annotated[RelayFacade, Depends(relay_of)]
Start = Annotated[Settings, Depends(settings_of)]
By = Annotated[Actor, Depends(actor_of)]
IfMatch = Annotated[Sequence[str] | None, Depends(versions_of)]
IfAbsent = Annotated[bool, Depends(absent_only)]
NameIn = Annotated[str, Path(pattern=NAME_PATTERN, description="Its name.", examples=["office"])]
MessageIdIn = Annotated[
    str,
    Path(
        alias="id",
        min_length=1,
        max_length=500,
        description="Our id, as in GET /queue/messages and the history.",
        examples=["pickup.bWFpbC5lbWw.e8882366"],
    ),
]
RunIdIn = Annotated[str, Path(alias="id", min_length=1, max_length=100, description="As in Location.")]
Limit = Annotated[int, Query(ge=1, le=500, description="Rows a page. Default 50, at most 500.")]
Cursor = Annotated[  # the longest, in base64, holds names of a directory (63) and a file (255 octets) and its tag: 438
    str | None, Query(max_length=500, description="`next` of the page before. Rows there throughout appear once.")
]


def location(request: Request, path: str) -> str:
    """A path of ours as seen from outside, behind a proxy's prefix too."""
    return str(request.scope.get("root_path", "")).rstrip("/") + path
