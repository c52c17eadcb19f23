"""The HTTP application: made by `create_app`, never at import.

Its lifespan starts the relay and stops it, whatever happens in between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from api import errors, openapi
from api.middleware import Bodies, RequestRules
from api.routes import (
    accounts,
    directories,
    docs,
    drain,
    health,
    history,
    messages,
    pauses,
    presets,
    queue,
    sandbox,
    service,
)
from core.runtime.facade import RelayFacade
from core.settings import Settings

ROUTERS = (
    health.start_router,
    accounts.router,
    presets.router,
    directories.router,
    pauses.router,
    queue.router,
    drain.router,
    messages.router,
    history.router,
    health.router,
    service.router,
    sandbox.router,
    docs.router,
)


def create_app(settings: Settings, relay: RelayFacade | None = None) -> FastAPI:
    """The application for these settings. `relay`: not started yet; None: the lifespan makes one."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        own = relay or _new_relay(settings)
        app.state.relay = own
        try:
            await own.start()
            yield
        finally:
            await own.stop()

    app = FastAPI(
        title="Mail Processing Unit",
        version=own_version(),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.settings = settings
    if relay is not None:
        app.state.relay = relay
    errors.install(app)
    app.state.bodies = Bodies(
        idle_seconds=settings.request_body_timeout_seconds, whole_seconds=settings.request_deadline_seconds
    )
    app.add_middleware(
        RequestRules,
        bodies=app.state.bodies,
        max_request_bytes=settings.max_request_bytes,
        max_mail_bytes=settings.max_submit_bytes,
    )
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]  # as FastAPI's documentation does it
    return app


def _new_relay(settings: Settings) -> RelayFacade:
    from core.runtime.relay import Relay  # the document and its tests need no relay

    return Relay(settings)


def own_version() -> str:
    """Of the installed distribution."""
    try:
        return version("mail-processing-unit")
    except PackageNotFoundError:
        return "0"
