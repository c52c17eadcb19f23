"""Who may call what: every route walked, every scope tried."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.openapi import document
from api.routes import sandbox
from api.security import presented_key
from core.runtime.views import Scope
from core.settings import Settings
from tests.api.conftest import MakeClient
from tests.api.fakes import FakeRelay
from tests.support.database import MovableClock

OPEN = {
    ("GET", "/docs"),
    ("GET", "/docs/{file}"),
    ("GET", "/openapi.json"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
}
RANKS = ("read", "operate", "admin")


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of everything that the application answers, in the document or not."""
    from fastapi.routing import iter_route_contexts

    for context in iter_route_contexts(app.routes):
        assert context.path is not None
        assert context.methods is not None
        for method in context.methods:
            yield method, context.path


def filled(path: str) -> str:
    return re.sub(r"\{\w+\}", "1", path)


def documented() -> list[tuple[str, str, str | None]]:
    app = create_app(Settings.model_validate({}))
    return [
        (method.upper(), path, entry.get("x-required-scope"))
        for path, methods in document(app)["paths"].items()
        for method, entry in methods.items()
    ]


async def test_none_but_the_named_routes_answer_without_a_key(app: FastAPI, nobody: httpx.AsyncClient) -> None:
    answered = set()
    everything = list(routes(app))
    assert len(everything) > 50
    for method, path in everything:
        answer = await nobody.request(method, filled(path))
        if answer.status_code != 401:
            answered.add((method, path))
        else:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answered == OPEN


async def test_mounted_applications_would_escape_the_guard(app: FastAPI) -> None:
    assert {type(route).__name__ for route in app.routes} <= {"_IncludedRouter", "GuardedRoute"}


@pytest.mark.parametrize(("method", "path", "required"), documented())
async def test_each_scope_opens_what_it_says(
    client_of: MakeClient, method: str, path: str, required: str | None
) -> None:
    for scope in RANKS:
        answer = await (await client_of(scope)).request(method, filled(path))
        enough = required in (None, "submit") or RANKS.index(scope) >= RANKS.index(required or "")
        if required == "submit":
            enough = scope != "read"
        if enough:
            assert answer.status_code not in (401, 403), (scope, answer.text)
        else:
            assert answer.status_code == 403, (scope, answer.text)
            assert answer.json()["required_scope"] == required


async def test_submit_opens_nothing_but_the_submission(client_of: MakeClient) -> None:
    client = await client_of("submit")
    for method, path, required in documented():
        answer = await client.request(method, filled(path))
        expected = required in (None, "submit")
        assert (answer.status_code not in (401, 403)) is expected, path


async def test_a_submit_key_reaches_its_directories_only(client_of: MakeClient, relay: FakeRelay) -> None:
    client = await client_of("submit", directories=("shop",))
    assert (await client.post("/messages?directory=shop", content=b"a: b\n\n")).status_code == 202
    refused = await client.post("/messages?directory=other", content=b"a: b\n\n")
    assert refused.status_code == 403
    assert [name for name, _, _ in relay.messages.submitted] == ["shop"]


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer mpu_wrong", "Basic x", "Token abc", "Bearer " + "x" * 5000, "Bearer \xff\xfe"],
)
async def test_what_is_no_key_is_refused(nobody: httpx.AsyncClient, header: str) -> None:
    answer = await nobody.get("/accounts", headers=[(b"Authorization", header.encode("latin-1"))])
    assert answer.status_code == 401
    assert answer.json()["type"] == "urn:mpu:problem:unauthorized"


async def test_the_body_is_not_looked_at_without_a_key(nobody: httpx.AsyncClient) -> None:
    answer = await nobody.post("/accounts", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 401


async def test_an_expired_key_is_refused(relay: FakeRelay, nobody: httpx.AsyncClient, clock: MovableClock) -> None:
    from core.store import keys

    _, secret = await relay.store.write(
        lambda session: keys.create(session, name="k", scopes=["admin"], expires_at=clock.now() + 10, now=clock.now())
    )
    headers = {"Authorization": f"Bearer {secret}"}
    assert (await nobody.get("/accounts", headers=headers)).status_code == 200
    clock.move(10)
    assert (await nobody.get("/accounts", headers=headers)).status_code == 401


async def test_the_sandbox_takes_the_key_as_a_password(client_of: MakeClient, nobody: httpx.AsyncClient) -> None:
    client = await client_of("admin")
    secret = client.headers["authorization"].removeprefix("Bearer ")
    basic = {"Authorization": "Basic " + base64.b64encode(f"me:{secret}".encode()).decode(), "Accept": "text/html"}
    assert (await nobody.get("/sandbox", headers=basic)).status_code == 404  # no demo, but let in
    assert (await nobody.get("/accounts", headers=basic)).status_code == 401
    asked = await nobody.get("/sandbox", headers={"Accept": "text/html"})
    assert asked.status_code == 401
    assert asked.headers["www-authenticate"].startswith("Basic")
    assert (await nobody.get("/sandbox")).headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("header", "basic", "key"),
    [
        ("Bearer abc", False, "abc"),
        ("bearer  abc ", False, "abc"),
        ("Basic " + base64.b64encode(b"u:p:q").decode(), True, "p:q"),
        ("Basic " + base64.b64encode(b"u:p").decode(), False, None),
        ("Basic " + base64.b64encode(b"u").decode(), True, None),
        ("Basic \xe9", True, None),
        ("", True, None),
    ],
)
def test_keys_in_headers(header: str, basic: bool, key: str | None) -> None:
    assert presented_key(header, basic=basic) == key


def test_every_route_says_its_scope() -> None:
    for method, path, required in documented():
        assert (required is None) == ((method, path) in OPEN), path
        assert required is None or Scope(required)
    assert sandbox.router.routes
