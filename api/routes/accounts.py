"""Accounts: the ways out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response

from api.deps import By, Cursor, IfAbsent, IfMatch, Limit, NameIn, Relay, location
from api.errors import Forbidden
from api.openapi import ACCOUNTS, CREATED, ETAG, STALE, STALE_OR_THERE, operation
from api.schemas import examples
from api.schemas.accounts import (
    AccountCreate,
    AccountPublic,
    AccountPut,
    AccountTry,
    AccountUpdate,
    CheckPublic,
    TestMessageIn,
    TestMessagePublic,
)
from api.schemas.base import ListOut, page_out
from api.security import GuardedRoute, allows
from core.domain.oauth import outside_of
from core.errors import FieldError, InvalidSettings
from core.runtime.facade import Saved
from core.runtime.views import AccountView, Scope

router = APIRouter(tags=[ACCOUNTS], route_class=GuardedRoute)

CheckFirst = Annotated[
    bool, Query(description="Try connection and login before saving; nothing is saved (422) where that fails.")
]
_NOT_FOUND = "There is no such account. Remedy: GET /accounts lists them."
_STEPS = (
    "Name service, port, banner, TLS and certificate, extensions, login, NOOP, and whether it may send as its address, "
    "where that can be asked without sending; each step with its time and, where it fails, the probable cause and what "
    "to do. Takes 30 seconds at most. The answer is 200 whatever it found; `ok` says whether every required step was."
)
_CHECKED = "A field is wrong or unknown, or the check failed (`check`: each step with its remedy)."


def _shown(saved: Saved[AccountView], response: Response) -> AccountPublic:
    response.headers["ETag"] = f'"{saved.view.version}"'
    return AccountPublic.of(saved.view)


@router.get("/accounts", **operation("list_accounts", Scope.READ, "List accounts"))
async def list_accounts(relay: Relay, limit: Limit = 50, cursor: Cursor = None) -> ListOut[AccountPublic]:
    return ListOut[AccountPublic].model_validate(page_out(await relay.accounts.list(limit, cursor), AccountPublic.of))


@router.post(
    "/accounts",
    status_code=201,
    **operation(
        "create_account",
        Scope.ADMIN,
        "Add an account",
        mail="No mail goes through it before a directory names it.",
        idempotent="Not idempotent: a second time it answers 409; PUT is.",
        body=True,
        errors={409: "The name is taken. Remedy: another name, or PUT to replace.", 422: _CHECKED},
        answers={201: CREATED},
    ),
)
async def create_account(
    relay: Relay,
    actor: By,
    request: Request,
    response: Response,
    body: Annotated[AccountCreate, Body(openapi_examples=examples.ACCOUNT_CREATE)],
    check: CheckFirst = False,
) -> AccountPublic:
    saved = await relay.accounts.create(body.account(), actor, check=check)
    response.headers["Location"] = location(request, f"/accounts/{body.name}")
    return _shown(saved, response)


@router.post(
    "/accounts/check",
    **operation(
        "check_unsaved_account",
        Scope.OPERATE,
        "Try an account that isn't saved",
        text=_STEPS,
        mail="No mail is sent and nothing is saved. With `password_from`, or the like of `oauth`, the scope admin "
        "is needed.",
        body=True,
    ),
)
async def check_unsaved_account(
    relay: Relay, actor: By, body: Annotated[AccountTry, Body(openapi_examples=examples.ACCOUNT_TRY)]
) -> CheckPublic:
    account = body.value(body.name)
    outside = account.password_from is not None or outside_of(account.oauth)
    if outside and not allows(actor, Scope.ADMIN):
        detail = "a secret from outside is tried by admins only: it would go to any server that is named"
        raise Forbidden(detail, required_scope=Scope.ADMIN)
    await relay.accounts.examine(account)
    return CheckPublic.model_validate(await relay.checks.account(account))


@router.get(
    "/accounts/{name}",
    **operation("get_account", Scope.READ, "Show an account", errors={404: _NOT_FOUND}, answers={200: ETAG}),
)
async def get_account(relay: Relay, name: NameIn, response: Response) -> AccountPublic:
    return _shown(Saved(await relay.accounts.get(name)), response)


@router.put(
    "/accounts/{name}",
    **operation(
        "put_account",
        Scope.ADMIN,
        "Create or replace an account",
        text="What is omitted takes its default; an omitted password stays. Without a difference nothing happens: same "
        "ETag, no reconnect.",
        mail="What is in flight finishes with the old settings; a pause by MPU itself ends.",
        body=True,
        errors={412: STALE_OR_THERE, 422: _CHECKED},
        answers={200: ETAG, 201: {**CREATED, "description": "Created", "model": AccountPublic}},
    ),
)
async def put_account(
    relay: Relay,
    actor: By,
    request: Request,
    name: NameIn,
    response: Response,
    if_match: IfMatch,
    if_absent: IfAbsent,
    body: Annotated[AccountPut, Body(openapi_examples=examples.ACCOUNT_PUT)],
    check: CheckFirst = False,
) -> AccountPublic:
    if body.name not in (None, name):
        raise InvalidSettings([FieldError("/name", "read_only", f"the path says {name!r}; a name never changes")])
    saved = await relay.accounts.replace(
        body.value(name),
        actor,
        keep_password=body.keeps_password,
        keep_oauth=body.keeps_oauth,
        if_match=if_match,
        if_absent=if_absent,
        check=check,
    )
    if saved.created:
        response.status_code = 201
        response.headers["Location"] = location(request, f"/accounts/{name}")
    return _shown(saved, response)


@router.patch(
    "/accounts/{name}",
    **operation(
        "update_account",
        Scope.ADMIN,
        "Change an account",
        text="Merge patch (RFC 7396): what is named changes, null puts the default back (the password: removes it).",
        mail="What is in flight finishes with the old settings; a pause by MPU itself ends.",
        body=True,
        errors={404: _NOT_FOUND, 412: STALE, 422: _CHECKED},
        answers={200: ETAG},
    ),
)
async def update_account(
    relay: Relay,
    actor: By,
    name: NameIn,
    response: Response,
    if_match: IfMatch,
    body: Annotated[AccountUpdate, Body(openapi_examples=examples.ACCOUNT_UPDATE)],
    check: CheckFirst = False,
) -> AccountPublic:
    return _shown(await relay.accounts.change(name, body.changes(), actor, if_match=if_match, check=check), response)


@router.delete(
    "/accounts/{name}",
    status_code=204,
    **operation(
        "delete_account",
        Scope.ADMIN,
        "Delete an account",
        mail="The history keeps its name.",
        idempotent="Not idempotent: a second time it answers 404.",
        errors={
            404: _NOT_FOUND,
            409: "Directories or sender routes send through it (`used_by`). Remedy: give them another account first.",
            412: STALE,
        },
    ),
)
async def delete_account(relay: Relay, actor: By, name: NameIn, if_match: IfMatch) -> None:
    await relay.accounts.delete(name, actor, if_match=if_match)


@router.post(
    "/accounts/{name}/check",
    **operation(
        "check_account",
        Scope.OPERATE,
        "Try a saved account",
        text=_STEPS,
        errors={404: _NOT_FOUND},
    ),
)
async def check_account(relay: Relay, name: NameIn) -> CheckPublic:
    return CheckPublic.model_validate(await relay.checks.account(await relay.accounts.value(name)))


@router.post(
    "/accounts/{name}/test-message",
    **operation(
        "send_test_message",
        Scope.OPERATE,
        "Send a test message",
        mail="One small mail goes through the account at once, past every directory and the account's limits, where "
        "they are spent; it counts for them.",
        idempotent="Not idempotent: each call sends one.",
        body=True,
        errors={404: _NOT_FOUND},
    ),
)
async def send_test_message(
    relay: Relay,
    actor: By,
    name: NameIn,
    body: Annotated[TestMessageIn, Body(openapi_examples=examples.TEST_MESSAGE)],
) -> TestMessagePublic:
    return TestMessagePublic.model_validate(await relay.checks.test_message(name, body.to, actor))
