"""Who may do what. Closed by default: a route without a scope can't be made, only one marked as open.

`Authorization: Bearer KEY`. The key is looked up by its SHA-256 before anything else of a request is read, so neither
a body nor a parameter is looked at without one. The pages of the sandbox take the key as password of HTTP Basic too,
since a browser can show them then. Scopes: read < operate < admin; submit stands by itself, limited to directories.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request as StarletteRequest

from api.body import JsonRequest, refuse_body
from api.errors import Forbidden, Unauthorized, printable
from api.schemas.base import read_only_of
from core.errors import FieldError, InvalidSettings
from core.runtime.facade import RelayFacade
from core.runtime.views import Actor, Scope

SCOPE = "x-required-scope"  # in the OpenAPI document, and what the guard goes by
OPEN = "x-open"  # no key needed
PAGE = "x-page"  # HTTP Basic is taken too
RANK = {Scope.READ: 1, Scope.OPERATE: 2, Scope.ADMIN: 3}
MAX_KEY_LENGTH = 512
_UNKNOWN = ("unknown_field", "there is no such parameter here")


class GuardedRoute(APIRoute):
    """Asks for the key and its scope first, then refuses what would be dropped in silence:

    query parameters that nobody knows or that come twice, a body that nobody reads, members of JSON that stand twice.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        extra = self.openapi_extra or {}
        required = None if extra.get(OPEN) else Scope(extra[SCOPE])
        page = bool(extra.get(PAGE))
        known = set(_query_names(self.dependant))
        takes_json = self.body_field is not None
        takes_body = takes_json or "requestBody" in extra
        read_only = read_only_of(self.body_field.field_info.annotation) if self.body_field is not None else frozenset()

        async def guarded(request: Request) -> Response:
            if required is not None:
                request.state.actor = await authorize(request, required, page=page)
            _check_query(request, known)
            if takes_json:
                request = JsonRequest(request.scope, request.receive)
                request.state.read_only = read_only  # for api/errors.py
                await request.json()
            elif not takes_body:
                await refuse_body(request)
            return await handle(request)

        return guarded


def _check_query(request: Request, known: Collection[str]) -> None:
    """Raises InvalidSettings for parameters that nobody knows, or that come twice: which of them counts?"""
    given = Counter(name for name, _ in request.query_params.multi_items())
    wrong = [
        FieldError(f"query/{printable(name)}", *("twice", "is given more than once") if name in known else _UNKNOWN)
        for name, count in given.items()
        if count > 1 or name not in known
    ]
    if wrong:
        raise InvalidSettings(wrong[:100])


def _query_names(dependant: Dependant) -> Iterator[str]:
    for field in dependant.query_params:
        yield field.alias
    for child in dependant.dependencies:
        yield from _query_names(child)


async def authorize(request: StarletteRequest, required: Scope, *, page: bool = False) -> Actor:
    """The actor behind the request's key. Raises Unauthorized, Forbidden."""
    presented = presented_key(request.headers.get("authorization", ""), basic=page)
    asks_user = page and "text/html" in request.headers.get("accept", "")
    if presented is None:
        raise Unauthorized("no API key was given", basic=asks_user)
    relay: RelayFacade = request.app.state.relay
    actor = await relay.keys.authenticate(presented) if len(presented) <= MAX_KEY_LENGTH else None
    if actor is None:
        raise Unauthorized("the API key is unknown, expired or deleted", basic=asks_user)
    if not allows(actor, required):
        has = ", ".join(sorted(actor.scopes))
        detail = f"this needs the scope {required}; the key {actor.key_name!r} has {has}"
        raise Forbidden(detail, required_scope=required)
    return actor


def presented_key(header: str, *, basic: bool = False) -> str | None:
    """The key in an Authorization header; None where there is none that can be read."""
    kind, _, rest = header.partition(" ")
    rest = rest.strip()
    if kind.lower() == "bearer" and rest:
        return rest
    if basic and kind.lower() == "basic":
        try:
            _, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
        except ValueError:
            return None
        return password or None
    return None


def allows(actor: Actor, required: Scope) -> bool:
    """Whether one of the actor's scopes is enough; operate and admin may submit too."""
    best = max((RANK.get(scope, 0) for scope in actor.scopes), default=0)
    if required is Scope.SUBMIT:
        return Scope.SUBMIT in actor.scopes or best >= RANK[Scope.OPERATE]
    return best >= RANK[required]


def may_submit_to(actor: Actor, directory: str) -> bool:
    """Operate and admin to every directory, submit to the key's own (none named: every one)."""
    if allows(actor, Scope.OPERATE):
        return True
    return not actor.directories or directory in actor.directories
