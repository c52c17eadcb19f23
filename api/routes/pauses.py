"""Pauses: standing still on purpose; one account, one directory, or the whole relay."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body

from api.deps import By, NameIn, Relay
from api.openapi import ACCOUNTS, DIRECTORIES, QUEUE, operation
from api.schemas import examples
from api.schemas.base import Pause, PauseIn, PauseState
from api.security import GuardedRoute
from core.runtime.views import PauseView, Scope

router = APIRouter(route_class=GuardedRoute)

How = Annotated[PauseIn | None, Body(openapi_examples=examples.PAUSE)]
_MAIL = "What is in flight finishes; the rest waits where it is. Only an operator or its `until` lifts it, no restart."
_RESUMED = "Mail goes again; pauses of another kind stay. Not paused: no change."
_NO_ACCOUNT = {404: "There is no such account. Remedy: GET /accounts lists them."}
_NO_DIRECTORY = {404: "There is no such directory. Remedy: GET /directories lists them."}


def _state(view: PauseView | None) -> PauseState:
    return PauseState(pause=None if view is None else Pause.model_validate(view))


@router.post(
    "/accounts/{name}/pause",
    tags=[ACCOUNTS],
    **operation("pause_account", Scope.OPERATE, "Pause an account", mail=_MAIL, body=True, errors=_NO_ACCOUNT),
)
async def pause_account(relay: Relay, actor: By, name: NameIn, body: How = None) -> PauseState:
    how = body or PauseIn()
    return _state(await relay.pauses.pause_account(name, how.reason, how.until, actor))


@router.post(
    "/accounts/{name}/resume",
    tags=[ACCOUNTS],
    **operation(
        "resume_account",
        Scope.OPERATE,
        "Resume an account",
        mail="Lifts any pause; one message is tried first, the others follow when it went. Not paused: no change.",
        errors=_NO_ACCOUNT,
    ),
)
async def resume_account(relay: Relay, actor: By, name: NameIn) -> PauseState:
    await relay.pauses.resume_account(name, actor)
    return _state(relay.pauses.account(name))


@router.post(
    "/directories/{name}/pause",
    tags=[DIRECTORIES],
    **operation("pause_directory", Scope.OPERATE, "Pause a directory", mail=_MAIL, body=True, errors=_NO_DIRECTORY),
)
async def pause_directory(relay: Relay, actor: By, name: NameIn, body: How = None) -> PauseState:
    how = body or PauseIn()
    return _state(await relay.pauses.pause_directory(name, how.reason, how.until, actor))


@router.post(
    "/directories/{name}/resume",
    tags=[DIRECTORIES],
    **operation("resume_directory", Scope.OPERATE, "Resume a directory", mail=_RESUMED, errors=_NO_DIRECTORY),
)
async def resume_directory(relay: Relay, actor: By, name: NameIn) -> PauseState:
    await relay.pauses.resume_directory(name, actor)
    return _state(relay.pauses.directory(name))


@router.get("/pause", tags=[QUEUE], **operation("get_pause", Scope.READ, "Show whether the whole relay is paused"))
async def get_pause(relay: Relay) -> PauseState:
    return _state(relay.pauses.relay())


@router.post(
    "/pause",
    tags=[QUEUE],
    **operation("pause_relay", Scope.OPERATE, "Pause the whole relay", mail=_MAIL, body=True),
)
async def pause_relay(relay: Relay, actor: By, body: How = None) -> PauseState:
    how = body or PauseIn()
    return _state(await relay.pauses.pause_relay(how.reason, how.until, actor))


@router.post(
    "/resume", tags=[QUEUE], **operation("resume_relay", Scope.OPERATE, "Resume the whole relay", mail=_RESUMED)
)
async def resume_relay(relay: Relay, actor: By) -> PauseState:
    await relay.pauses.resume_relay(actor)
    return _state(relay.pauses.relay())
