"""Keys, audit and settings of the service."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Request, Response

from api.deps import By, Cursor, IfMatch, Limit, Relay, location
from api.openapi import ETAG, SERVICE, operation
from api.schemas import examples
from api.schemas.base import Digits, ListOut, page_out
from api.schemas.service import (
    AuditPublic,
    KeyIn,
    KeyPublic,
    NewKeyPublic,
    SettingsPublic,
    SettingsUpdate,
)
from api.security import GuardedRoute
from core.runtime.views import RuntimeSettingsView, Scope

router = APIRouter(tags=[SERVICE], route_class=GuardedRoute)


@router.get("/keys", **operation("list_keys", Scope.ADMIN, "List API keys"))
async def list_keys(relay: Relay, limit: Limit = 50, cursor: Cursor = None) -> ListOut[KeyPublic]:
    page = await relay.keys.list(limit, cursor)
    return ListOut[KeyPublic].model_validate(page_out(page, KeyPublic.model_validate))


@router.post(
    "/keys",
    status_code=201,
    **operation(
        "create_key",
        Scope.ADMIN,
        "Make an API key",
        text="`key` in the answer is shown this once; only its SHA-256 is kept.",
        idempotent="Not idempotent: each call makes one.",
        body=True,
        errors={422: "A field is wrong, or a directory unknown (/directories/N). Remedy: `errors` names each."},
        answers={201: {"headers": {"Location": {"description": "For DELETE.", "schema": {"type": "string"}}}}},
    ),
)
async def create_key(
    relay: Relay,
    actor: By,
    request: Request,
    response: Response,
    body: Annotated[KeyIn, Body(openapi_examples=examples.KEY)],
) -> NewKeyPublic:
    made = await relay.keys.create(
        body.name, [Scope(scope) for scope in body.scopes], body.directories, body.expires_at, actor
    )
    response.headers["Location"] = location(request, f"/keys/{made.key.id}")
    return NewKeyPublic(**dict(KeyPublic.model_validate(made.key)), key=made.secret)


@router.delete(
    "/keys/{id}",
    status_code=204,
    **operation(
        "delete_key",
        Scope.ADMIN,
        "Delete an API key",
        text="It is refused from the next request on.",
        idempotent="Not idempotent: a second time it answers 404.",
        errors={
            404: "There is no such key. Remedy: GET /keys lists them.",
            409: "It is the last key with scope admin. Remedy: make another one first.",
        },
    ),
)
async def delete_key(
    relay: Relay, actor: By, key_id: Annotated[int, Digits, Path(alias="id", ge=1, le=2**63 - 1)]
) -> None:
    await relay.keys.delete(key_id, actor)


@router.get(
    "/audit",
    **operation(
        "list_audit", Scope.ADMIN, "Who changed what", text="Every change and act, newest first; secrets masked."
    ),
)
async def list_audit(relay: Relay, limit: Limit = 50, cursor: Cursor = None) -> ListOut[AuditPublic]:
    page = await relay.audit.list(limit, cursor)
    return ListOut[AuditPublic].model_validate(page_out(page, AuditPublic.model_validate))


def _shown(view: RuntimeSettingsView, response: Response) -> SettingsPublic:
    response.headers["ETag"] = f'"{view.version}"'
    return SettingsPublic.model_validate(view)


@router.get(
    "/settings",
    **operation(
        "get_settings",
        Scope.READ,
        "Show the settings of the service",
        text="`read_only` is what only the start can set: TOML file, MPU_... variables, options.",
        answers={200: ETAG},
    ),
)
async def get_settings(relay: Relay, response: Response) -> SettingsPublic:
    return _shown(await relay.runtime_settings.get(), response)


@router.patch(
    "/settings",
    **operation(
        "update_settings",
        Scope.ADMIN,
        "Change settings of the service",
        text="Merge patch (RFC 7396): what is named changes, null puts the default back. What only the start can set "
        "is read-only here (422).",
        mail="A shorter `history_days` forgets older history with the next clean-up. `sender_routes` count from the "
        "next message on, for mail that waits too.",
        body=True,
        errors={
            412: "They were changed since you saw them. Remedy: GET them again, then repeat.",
            422: "A field is wrong: a sender that is no address and no @domain, or stands twice "
            "(/sender_routes/N/senders/M), an account that there is not (/sender_routes/N/accounts/M). Remedy: "
            "`errors` names each.",
        },
        answers={200: ETAG},
    ),
)
async def update_settings(
    relay: Relay,
    actor: By,
    response: Response,
    if_match: IfMatch,
    body: Annotated[SettingsUpdate, Body(openapi_examples=examples.SETTINGS)],
) -> SettingsPublic:
    changes = body.model_dump(exclude_unset=True)
    return _shown(await relay.runtime_settings.update(changes, actor, if_match=if_match), response)
