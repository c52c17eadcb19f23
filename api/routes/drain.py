"""Drains: work off what waits, now."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response

from api.deps import By, Relay, RunIdIn, location
from api.openapi import DRAIN, MOVED, operation
from api.schemas import examples
from api.schemas.drain import DrainIn, DrainPublic
from api.security import GuardedRoute
from core.runtime.views import Scope

router = APIRouter(tags=[DRAIN], route_class=GuardedRoute)

_GONE = {404: "There is no such drain, or it ended long ago. Remedy: start another one."}


@router.post(
    "/drain",
    **operation(
        "drain",
        Scope.OPERATE,
        "Work off what waits",
        text="One whole scan of each directory, begun after the request; each message is tried at most once, later "
        "arrivals don't prolong it. Ends when nothing that is due can go now. It goes on if the client hangs up, and "
        "drains may overlap.",
        mail="Everything that is due is sent; with `include_deferred` deferred mail too, once. Nothing paused is "
        "resumed: `blocked` and `skipped` say what stayed and why.",
        idempotent="May be repeated at will.",
        body=True,
        errors={
            422: "A field is wrong, or a directory unknown (/directories/N). Remedy: GET /directories lists them.",
            429: "As many drains run as may at once. Remedy: wait for one to end, or DELETE one.",
        },
        answers={202: {**MOVED, "description": "Still running; ask at Location.", "model": DrainPublic}},
    ),
)
async def start_drain(
    relay: Relay,
    actor: By,
    request: Request,
    response: Response,
    body: Annotated[DrainIn | None, Body(openapi_examples=examples.DRAIN)] = None,
    wait: Annotated[bool, Query(description="false: answer at once with 202.")] = True,
) -> DrainPublic:
    order = (body or DrainIn()).value()
    view = await relay.drains.start(order, actor)
    if wait and view.state == "running":
        view = await relay.drains.wait(view.id, order.timeout_seconds)
    if view.state == "running" or not wait:
        response.status_code = 202
        response.headers["Location"] = location(request, f"/drains/{view.id}")
    return DrainPublic.model_validate(view)


@router.get("/drains/{id}", **operation("get_drain", Scope.READ, "Show how far a drain is", errors=_GONE))
async def get_drain(relay: Relay, drain_id: RunIdIn) -> DrainPublic:
    return DrainPublic.model_validate(await relay.drains.get(drain_id))


@router.delete(
    "/drains/{id}",
    **operation(
        "stop_drain",
        Scope.OPERATE,
        "Stop a drain",
        mail="It claims nothing more; what is in flight finishes. The mail stays and goes with the next cycle.",
        errors=_GONE,
    ),
)
async def stop_drain(relay: Relay, actor: By, drain_id: RunIdIn) -> DrainPublic:
    return DrainPublic.model_validate(await relay.drains.cancel(drain_id, actor))
