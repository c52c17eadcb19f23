"""What every request is asked and every answer says: bodies, kinds, limits, headers, wrong paths."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from core.settings import Settings
from tests.api.conftest import MAX_REQUEST_BYTES
from tests.api.fakes import MESSAGE_ID, FakeRelay
from tests.api.test_accounts import pointers
from tests.api.test_security import filled, routes

JSON = {"Content-Type": "application/json"}
BODY = b'{"name": "office", "host": "smtp.example.org"}'


@pytest.mark.parametrize(
    "kind", [None, "application/json", "application/json; charset=utf-8", "application/x-www-form-urlencoded"]
)
async def test_json_as_curl_sends_it(admin: httpx.AsyncClient, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = await admin.post("/accounts", content=BODY, headers=headers)
    assert answer.status_code == 201, answer.text


async def test_other_kinds_are_refused(admin: httpx.AsyncClient) -> None:
    answer = await admin.post("/accounts", content=BODY, headers={"Content-Type": "text/xml"})
    assert (answer.status_code, answer.json()["type"]) == (415, "urn:mpu:problem:unsupported_media_type")


@pytest.mark.parametrize("path", ["/messages", "/messages/explain"])
async def test_a_mail_comes_as_one_or_without_a_kind(admin: httpx.AsyncClient, path: str) -> None:
    async def sent(kind: str) -> httpx.Response:
        headers = {"Content-Type": kind} if kind else {}
        return await admin.post(f"{path}?directory=pickup", content=b"a: b\n\n", headers=headers)

    for kind in ("", "message/rfc822", "text/plain; charset=utf-8", "application/octet-stream"):
        assert (await sent(kind)).is_success, kind
    for kind in (
        "application/json",
        "text/html",
        "multipart/form-data; boundary=x",
    ):
        answer = await sent(kind)
        assert (answer.status_code, answer.json()["type"]) == (415, "urn:mpu:problem:unsupported_media_type"), kind
        assert "message/rfc822" in answer.json()["remedy"]


@pytest.mark.parametrize("path", ["/accounts", "/messages?directory=pickup", "/messages/explain?directory=pickup"])
async def test_coded_bodies_are_refused(admin: httpx.AsyncClient, path: str) -> None:
    kind = JSON if path == "/accounts" else {}
    for coding in ("gzip", "br", "identity, gzip"):
        answer = await admin.post(path, content=gzip.compress(BODY), headers={**kind, "Content-Encoding": coding})
        assert (answer.status_code, answer.json()["type"]) == (415, "urn:mpu:problem:unsupported_media_type")
        assert answer.headers["accept-encoding"] == "identity"
        assert "Content-Encoding" in answer.json()["remedy"]
    plain = await admin.post(path, content=BODY, headers={**kind, "Content-Encoding": "Identity"})
    assert plain.is_success, plain.text


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 422),
        (b"", 422),
        (b"null", 422),
        (b"[]", 422),
        (b'"x"', 422),
        (b"{'name': 1}", 422),
        (b'{"name": "\xff"}', 400),
        (b"[" * 30_000, 400),
        (b'{"name": "\\ud800", "host": "h"}', 422),
        (b'{"\\ud800": 1, "name": "a", "host": "h"}', 422),
        (b'{"name": "a", "host": "h", "port": 1' + b"0" * 4000 + b"}", 422),
        (b'{"name": "a", "host": "h", "port": 1' + b"0" * 5000 + b"}", 422),
        (b'{"name": "a", "host": "h", "port": NaN}', 422),
        (b'{"name": "a", "host": "h", "port": -Infinity}', 422),
    ],
)
async def test_bodies_that_are_none(admin: httpx.AsyncClient, content: bytes, status: int) -> None:
    answer = await admin.post("/accounts", content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert not answer.json()["detail"].startswith(":")
    if status == 400:
        assert answer.json()["type"] == "urn:mpu:problem:malformed_body"
        assert answer.json()["remedy"]


@pytest.mark.parametrize(
    ("method", "path", "content", "wrong"),
    [
        ("PATCH", "/settings", b'{"history_days": 10, "history_days": 20}', "/history_days"),
        ("POST", "/queue/messages/retry", b'{"filter": {"code": 450, "code": 451}}', "/filter/code"),
        ("POST", "/queue/messages/retry", b'{"filter": {"code": 450, "code": 450}, "all": true}', "/filter/code"),
        ("PATCH", "/settings", b'{"sender_routes": [{}, {"a~/": 1, "a~/": 2}]}', "/sender_routes/1/a~0~1"),
        ("PATCH", "/settings", b'{"x": {"y": 1, "y": 2}, "x": 1, "z": {}}', "/x"),
        ("PATCH", "/settings", b'{"\\u0061": 1, "a": 1}', "/a"),
    ],
)
async def test_a_member_that_stands_twice_is_refused(
    admin: httpx.AsyncClient, relay: FakeRelay, method: str, path: str, content: bytes, wrong: str
) -> None:
    answer = await admin.request(method, path, content=content)
    assert pointers(answer) == {wrong: "twice"}
    assert answer.json()["remedy"]
    assert (relay.runtime_settings.days, relay.operations.started) == (90, [])


async def test_a_number_of_thousands_of_digits_is_told(admin: httpx.AsyncClient) -> None:
    answer = await admin.patch("/settings", content=b'{"history_days": ' + b"1" * 5000 + b"}")
    assert pointers(answer) == {"": "out_of_range"}
    assert "digits" in answer.json()["detail"]
    assert answer.json()["remedy"]


async def test_short_and_long_texts_are_counted_in_characters(admin: httpx.AsyncClient) -> None:
    short = await admin.get("/history?recipient=x")
    assert short.json()["detail"] == "query/recipient: String should have at least 2 characters"
    long = await admin.post("/pause", json={"reason": "x" * 501})
    assert long.json()["detail"] == "/reason: String should have at most 500 characters"
    missing = await admin.post("/accounts", content=b"")
    assert missing.json()["detail"] == "a body is needed"


async def test_an_unknown_field_of_a_filter_is_unknown(admin: httpx.AsyncClient) -> None:
    names = ("id", "name", "pause", "created_at")
    answer = await admin.post("/queue/messages/retry", json={"filter": dict.fromkeys(names), "id": 1})
    assert pointers(answer) == {f"/filter/{name}": "unknown_field" for name in names} | {"/id": "unknown_field"}


@pytest.mark.parametrize("content", [b'{"x": 1}', b"[[[", b"[]", b" " * 65, b"x" * MAX_REQUEST_BYTES])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/accounts/office/check"),
        ("POST", "/accounts/office/resume"),
        ("POST", "/directories/shop/check"),
        ("POST", "/resume"),
        ("POST", f"/queue/messages/{MESSAGE_ID}/retry"),
        ("DELETE", f"/queue/messages/{MESSAGE_ID}"),
        ("DELETE", "/accounts/office"),
        ("GET", "/accounts"),
        ("GET", "/health/live"),
    ],
)
async def test_a_body_where_none_is_read_is_refused(
    admin: httpx.AsyncClient, relay: FakeRelay, method: str, path: str, content: bytes
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b""
        yield content

    await admin.post("/accounts", content=BODY, headers=JSON)
    for sent in (content, pieces()):
        answer = await admin.request(method, path, content=sent)
        assert pointers(answer) == {"": "no_body"}, answer.text
        assert answer.json()["detail"] == "this call takes no body"
        assert answer.json()["remedy"]
    assert relay.queue.deleted == []
    assert (await admin.get("/accounts/office", headers={"Content-Length": "0"})).status_code == 200
    for nothing in (b"{}", b" {}\n"):
        assert (await admin.request("GET", "/accounts/office", content=nothing)).status_code == 200


async def test_a_body_that_is_deep_and_wide_costs_what_it_weighs(admin: httpx.AsyncClient) -> None:
    """The way to each member copied would be gigabytes."""
    wide = "[" * 400 + "0," * 25_000 + '{"a": 1, "a": 2}' + "]" * 400
    tracemalloc.start()
    answer = await admin.post("/accounts", content=f'{{"name": {wide}}}', headers=JSON)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(pointers(answer).values()) == ["twice"]
    assert next(iter(pointers(answer))).endswith("/0/25000/a")
    assert peak < 10_000_000


async def test_broken_json_says_where(admin: httpx.AsyncClient) -> None:
    answer = await admin.post("/accounts", content=b'{"name": }', headers=JSON)
    assert pointers(answer) == {"": "malformed_json"}
    assert "character 9" in answer.json()["errors"][0]["detail"]


async def test_large_bodies_are_refused(admin: httpx.AsyncClient, settings: Settings) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 10_000

    size = settings.max_request_bytes
    fits = b'{"name": "office", "host": "smtp.example.org"' + b" " * (size - len(BODY)) + b"}"
    assert len(fits) == size
    assert (await admin.post("/accounts", content=fits, headers=JSON)).status_code == 201
    for content in (fits + b" ", endless()):
        answer = await admin.post("/accounts", content=content, headers=JSON)
        assert (answer.status_code, answer.json()["type"]) == (413, "urn:mpu:problem:too_large")
        assert "MPU_MAX_REQUEST_BYTES" in answer.text


async def test_wrong_paths_and_methods(admin: httpx.AsyncClient) -> None:
    nothing = await admin.get("/nothing/here")
    assert (nothing.status_code, nothing.json()["type"]) == (404, "urn:mpu:problem:no_such_path")
    assert "/docs" in nothing.json()["remedy"]
    assert (await admin.get("/")).status_code == 404
    wrong = await admin.put("/queue", json={})
    assert (wrong.status_code, wrong.json()["type"]) == (405, "urn:mpu:problem:method_not_allowed")
    assert (await admin.get("/accounts/")).status_code == 404
    assert list(pointers(await admin.get("/accounts/NO"))) == ["path/name"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/queue", "GET, HEAD"),
        ("OPTIONS", "/accounts", "GET, HEAD, POST"),
        ("POST", "/accounts/office", "DELETE, GET, HEAD, PATCH, PUT"),
        ("GET", "/drain", "POST"),
        ("HEAD", "/drain", "POST"),
        ("PUT", "/queue/messages/retry", "DELETE, GET, HEAD, POST"),
        ("POST", "/docs", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_all_right_ones(
    app: FastAPI, admin: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    answer = await admin.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    transport = httpx.ASGITransport(app, root_path="/mpu")
    async with httpx.AsyncClient(transport=transport, base_url="http://mpu.test") as proxied:
        assert (await proxied.request(method, f"/mpu{path}")).headers["allow"] == allow


async def test_head_is_answered_wherever_get_is(
    app: FastAPI, admin: httpx.AsyncClient, nobody: httpx.AsyncClient, relay: FakeRelay
) -> None:
    await admin.post("/accounts", content=BODY, headers=JSON)
    paths = {filled(path) for method, path in routes(app) if method == "GET"}
    paths |= {"/accounts/office", "/docs/swagger-ui.css", "/accounts?limit=0", f"/queue/messages/{MESSAGE_ID}/raw"}
    assert len(paths) > 25
    for path in paths:
        for client in (admin, nobody):
            shown, head = await client.get(path), await client.head(path)
            assert (head.status_code, head.content) == (shown.status_code, b""), path
            assert head.headers == shown.headers, path
    assert all(raw.closed for raw in relay.queue.raws)


async def test_answers_tell_browsers_to_be_careful(admin: httpx.AsyncClient, nobody: httpx.AsyncClient) -> None:
    for answer in (await admin.get("/accounts"), await nobody.get("/accounts"), await admin.get("/nothing")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


async def test_an_unexpected_error_shows_nothing(
    app: FastAPI, admin: httpx.AsyncClient, relay: FakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("the secret is planted")

    monkeypatch.setattr(relay.queue, "counts", broken)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://mpu.test", headers=admin.headers)
    with capture_logs() as logs:
        async with client:
            answer = await client.get("/queue")
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:mpu:problem:internal")
    assert "planted" not in answer.text
    assert [entry["event"] for entry in logs] == ["request_crashed"]


async def test_locations_go_by_the_proxys_prefix(app: FastAPI, admin: httpx.AsyncClient) -> None:
    transport = httpx.ASGITransport(app, root_path="/mpu")
    async with httpx.AsyncClient(transport=transport, base_url="http://mpu.test", headers=admin.headers) as client:
        answer = await client.post("/mpu/accounts", content=BODY, headers=JSON)
        assert answer.headers["location"] == "/mpu/accounts/office"
        assert (await client.get("/mpu/accounts/office")).status_code == 200
        assert (await client.post("/mpu/messages?directory=pickup", content=b"x")).status_code == 202
        assert (await client.get("/mpu/docs/swagger-ui.css")).status_code == 200
