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


_ETAGS = re.compile(r'\s*(?:\*|(W/)?"?([\x21\x23-\x2b\x2d-\x7e]*)"?)\s*(?:,|$)')


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
    position = 0
    while position < len(if_match):
        match = _ETAGS.match(if_match, position)
        if match is None:
            raise InvalidSettings([FieldError("header/If-Match", "wrong_form", 'is no list of ETags, as "3", "4"')])
        if match.group(1) is None:
            versions.append(match.group(2) or "")
        position = max(match.end(), position + 1)
    return tuple(versions)


Relay = Annotated[RelayFacade, Depends(relay_of)]
Start = Annotated[Settings, Depends(settings_of)]
By = Annotated[Actor, Depends(actor_of)]
IfMatch = Annotated[Sequence[str] | None, Depends(versions_of)]
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
