"""Alerts and health: what needs a person; what supervisors and Prometheus ask."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.deps import Relay
from api.openapi import HEALTH, START, operation
from api.schemas.service import AlertPublic, AlertsPublic, HealthPublic, LivePublic, ReadyPublic, VersionPublic
from api.security import GuardedRoute
from core.runtime.views import Scope

router = APIRouter(tags=[HEALTH], route_class=GuardedRoute)
start_router = APIRouter(tags=[START], route_class=GuardedRoute)


@start_router.get("/version", **operation("get_version", Scope.READ, "Show what runs here"))
async def get_version(relay: Relay) -> VersionPublic:
    return VersionPublic.model_validate(await relay.version())


@router.get(
    "/alerts",
    **operation("list_alerts", Scope.READ, "What needs a person now", text="Worst first; gone when its cause is."),
)
async def list_alerts(relay: Relay) -> AlertsPublic:
    return AlertsPublic(items=[AlertPublic.model_validate(row) for row in await relay.alerts.list()])


@router.get("/health", **operation("get_health", Scope.READ, "Show the health part by part"))
async def get_health(relay: Relay) -> HealthPublic:
    return HealthPublic.model_validate(relay.health())


@router.get(
    "/health/live",
    **operation("get_live", None, "Is the process alive", text="Answers as long as the event loop does."),
)
async def get_live() -> LivePublic:
    return LivePublic()


@router.get(
    "/health/ready",
    response_model_exclude_none=True,
    **operation(
        "get_ready",
        None,
        "Is it ready for work",
        text="`ready`; `degraded` (200 too) when a provider or directory is lost and the rest goes on.",
        answers={
            503: {
                "description": "`unavailable`: starting, stopping, or database, key, writer or scheduler fail. "
                "Remedy: GET /health and the log name the part.",
                "model": ReadyPublic,
            }
        },
    ),
)
async def get_ready(relay: Relay, response: Response) -> ReadyPublic:
    health = relay.health()
    if health.status == "unavailable":
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    return ReadyPublic(status=health.status, reason=health.reason)


@router.get(
    "/metrics",
    response_class=Response,
    **operation(
        "get_metrics",
        Scope.READ,
        "Metrics for Prometheus",
        text="Text exposition 0.0.4; no addresses in labels. Prometheus sends the key by `authorization`.",
        answers={200: {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    ),
)
async def get_metrics(relay: Relay) -> Response:
    return Response(await relay.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")
