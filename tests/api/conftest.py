"""An application over a fake relay with a real store, and clients with keys of each scope."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from core.runtime.facade import RelayFacade
from core.settings import Settings
from core.store import keys
from core.store.store import Store
from tests.api.fakes import FakeRelay
from tests.support import database
from tests.support.database import MovableClock

MAX_REQUEST_BYTES = 64 << 10

MakeClient = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """A pickup root with two directories."""
    root = tmp_path / "roots"
    (root / "a").mkdir(parents=True)
    (root / "b").mkdir()
    return root


@pytest.fixture
def settings(tmp_path: Path, roots: Path) -> Settings:
    return Settings.model_validate(
        {"data_dir": tmp_path / "data", "pickup_roots": (roots,), "max_request_bytes": MAX_REQUEST_BYTES}
    )


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
async def relay(tmp_path: Path, settings: Settings, clock: MovableClock) -> AsyncIterator[FakeRelay]:
    settings.data_dir.mkdir(mode=0o700)
    store: Store = database.open_store(settings.data_dir, clock=clock)
    yield FakeRelay(store, settings, clock)
    store.close()


@functools.cache
def application() -> FastAPI:
    """Made once, since that takes longer than a test; `app` puts the test's own relay into it."""
    return create_app(Settings.model_validate({"max_request_bytes": MAX_REQUEST_BYTES}))


@pytest.fixture
def app(settings: Settings, relay: FakeRelay) -> FastAPI:
    facade: RelayFacade = relay  # the fake keeps to the facade: mypy proves it
    made = application()
    made.state.settings, made.state.relay = settings, facade
    return made


@pytest.fixture
async def client_of(app: FastAPI, relay: FakeRelay, clock: MovableClock) -> AsyncIterator[MakeClient]:
    """Makes a client with a key of these scopes; without scopes: no key at all."""
    clients: list[httpx.AsyncClient] = []

    async def make(*scopes: str, directories: tuple[str, ...] = ()) -> httpx.AsyncClient:
        headers = {}
        if scopes:
            _, secret = await relay.store.write(
                lambda session: keys.create(
                    session, name="-".join(scopes), scopes=scopes, directories=directories, now=clock.now()
                )
            )
            headers["Authorization"] = f"Bearer {secret}"
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mpu.test", headers=headers)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
async def admin(client_of: MakeClient) -> httpx.AsyncClient:
    return await client_of("admin")


@pytest.fixture
async def nobody(client_of: MakeClient) -> httpx.AsyncClient:
    return await client_of()
