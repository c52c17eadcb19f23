"""Directories: where applications write their mails."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from api.deps import By, Cursor, IfAbsent, IfMatch, Limit, NameIn, Relay, location
from api.openapi import CREATED, DIRECTORIES, ETAG, STALE, STALE_OR_THERE, operation
from api.schemas import examples
from api.schemas.accounts import CheckPublic
from api.schemas.base import ListOut, page_out
from api.schemas.directories import DirectoryCreate, DirectoryPublic, DirectoryPut, DirectorySaved, DirectoryUpdate
from api.security import GuardedRoute
from core.errors import FieldError, InvalidSettings
from core.runtime.facade import Saved
from core.runtime.views import DirectoryView, Scope

router = APIRouter(tags=[DIRECTORIES], route_class=GuardedRoute)

_NOT_FOUND = "There is no such directory. Remedy: GET /directories lists them."
_WRONG = (
    "A field is wrong or unknown: a path outside MPU_PICKUP_ROOTS, missing, overlapping or without the rights that "
    "are needed (/path), an unknown account (/accounts/N), a schedule. Remedy: `errors` names each."
)
_TAKEN = "The name or the path is taken. Remedy: another one, or PUT to replace."


def _shown(saved: Saved[DirectoryView], response: Response) -> DirectorySaved:
    response.headers["ETag"] = f'"{saved.view.version}"'
    return DirectorySaved.after(saved)


@router.get("/directories", **operation("list_directories", Scope.READ, "List directories"))
async def list_directories(relay: Relay, limit: Limit = 50, cursor: Cursor = None) -> ListOut[DirectoryPublic]:
    page = await relay.directories.list(limit, cursor)
    return ListOut[DirectoryPublic].model_validate(page_out(page, DirectoryPublic.of))


@router.post(
    "/directories",
    status_code=201,
    **operation(
        "create_directory",
        Scope.ADMIN,
        "Add a directory",
        mail="Mail that lies in it goes at once, unless `enabled` is false.",
        idempotent="Not idempotent: a second time it answers 409; PUT is.",
        body=True,
        errors={409: _TAKEN, 422: _WRONG},
        answers={201: CREATED},
    ),
)
async def create_directory(
    relay: Relay,
    actor: By,
    request: Request,
    response: Response,
    body: Annotated[DirectoryCreate, Body(openapi_examples=examples.DIRECTORY_CREATE)],
) -> DirectorySaved:
    saved = await relay.directories.create(body.directory(), actor)
    response.headers["Location"] = location(request, f"/directories/{body.name}")
    return _shown(saved, response)


@router.get(
    "/directories/{name}",
    **operation("get_directory", Scope.READ, "Show a directory", errors={404: _NOT_FOUND}, answers={200: ETAG}),
)
async def get_directory(relay: Relay, name: NameIn, response: Response) -> DirectoryPublic:
    view = await relay.directories.get(name)
    response.headers["ETag"] = f'"{view.version}"'
    return DirectoryPublic.of(view)


@router.put(
    "/directories/{name}",
    **operation(
        "put_directory",
        Scope.ADMIN,
        "Create or replace a directory",
        text="What is omitted takes its default. Without a difference nothing happens: same ETag.",
        mail="Takes effect at once; what is in flight finishes with the old settings.",
        body=True,
        errors={409: _TAKEN, 412: STALE_OR_THERE, 422: _WRONG},
        answers={200: ETAG, 201: {**CREATED, "description": "Created", "model": DirectorySaved}},
    ),
)
async def put_directory(
    relay: Relay,
    actor: By,
    request: Request,
    name: NameIn,
    response: Response,
    if_match: IfMatch,
    if_absent: IfAbsent,
    body: Annotated[DirectoryPut, Body(openapi_examples=examples.DIRECTORY_PUT)],
) -> DirectorySaved:
    if body.name not in (None, name):
        raise InvalidSettings([FieldError("/name", "read_only", f"the path says {name!r}; a name never changes")])
    saved = await relay.directories.replace(body.value(name), actor, if_match=if_match, if_absent=if_absent)
    if saved.created:
        response.status_code = 201
        response.headers["Location"] = location(request, f"/directories/{name}")
    return _shown(saved, response)


@router.patch(
    "/directories/{name}",
    **operation(
        "update_directory",
        Scope.ADMIN,
        "Change a directory",
        text="Merge patch (RFC 7396): what is named changes, null puts the default back.",
        mail="Takes effect at once; what is in flight finishes with the old settings.",
        body=True,
        errors={404: _NOT_FOUND, 409: _TAKEN, 412: STALE, 422: _WRONG},
        answers={200: ETAG},
    ),
)
async def update_directory(
    relay: Relay,
    actor: By,
    name: NameIn,
    response: Response,
    if_match: IfMatch,
    body: Annotated[DirectoryUpdate, Body(openapi_examples=examples.DIRECTORY_UPDATE)],
) -> DirectorySaved:
    return _shown(await relay.directories.change(name, body.changes(), actor, if_match=if_match), response)


@router.delete(
    "/directories/{name}",
    status_code=204,
    **operation(
        "delete_directory",
        Scope.ADMIN,
        "Delete a directory",
        mail="Its files stay where they are, untouched; nothing is sent from it any more. The history keeps its name.",
        idempotent="Not idempotent: a second time it answers 404.",
        errors={404: _NOT_FOUND, 412: STALE},
    ),
)
async def delete_directory(relay: Relay, actor: By, name: NameIn, if_match: IfMatch) -> None:
    await relay.directories.delete(name, actor, if_match=if_match)


@router.post(
    "/directories/{name}/check",
    **operation(
        "check_directory",
        Scope.OPERATE,
        "Try what a directory allows",
        text="Lists, creates, renames, unlinks, syncs; lease, lock, watch; badmail on the same device; free space. "
        "Says what isn't possible and what that costs. The answer is 200 whatever it found; `ok` says it.",
        mail="No mail is touched.",
        errors={404: _NOT_FOUND},
    ),
)
async def check_directory(relay: Relay, name: NameIn) -> CheckPublic:
    view = await relay.directories.get(name)
    return CheckPublic.model_validate(await relay.checks.directory(view.directory))
