"""The `oauth` of an account over HTTP: what it may be, what is shown of it, and when its secrets are needed again."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.api.fakes import FakeRelay
from tests.support.token_server import service_key

OAUTH = {
    "provider": "microsoft",
    "grant": "refresh_token",
    "tenant": "example.org",
    "client_id": "app",
    "client_secret": "PLANTED-secret",
    "refresh_token": "PLANTED-refresh",
}
BODY = {"host": "smtp.office365.com", "username": "relay@example.org", "oauth": OAUTH}
SHOWN = {
    "provider": "microsoft",
    "grant": "refresh_token",
    "tenant": "example.org",
    "client_id": "app",
    "token_url": None,
    "scope": None,
    "client_secret_from": None,
    "refresh_token_from": None,
    "service_account_key_from": None,
    "client_secret_set": True,
    "refresh_token_set": True,
    "service_account_key_set": False,
    "secrets_lost": False,
}
ROBOT = {"provider": "google", "grant": "service_account", "service_account_key": service_key()}


async def put(admin: httpx.AsyncClient, **changes: Any) -> httpx.Response:
    return await admin.put("/accounts/office", json={**BODY, **changes})


async def kept(relay: FakeRelay) -> tuple[str | None, str | None]:
    oauth = (await relay.accounts.value("office")).oauth
    assert oauth is not None
    return oauth.client_secret, oauth.refresh_token


BOTH = ("PLANTED-secret", "PLANTED-refresh")


async def test_it_is_shown_without_its_secrets(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    answer = await put(admin)
    assert answer.status_code == 201, answer.text
    assert answer.json()["oauth"] == SHOWN
    audit = await admin.get("/audit")
    (row,) = audit.json()["items"]
    assert row["changes"]["oauth.client_secret"] == [None, "***"]
    assert row["changes"]["oauth.tenant"] == [None, "example.org"]
    for text in (answer.text, audit.text, (await admin.get("/accounts")).text):
        assert "PLANTED" not in text
    assert await kept(relay) == BOTH


PATCHES: list[tuple[dict[str, Any] | None, dict[str, Any] | None, tuple[str | None, str | None]]] = [
    ({}, SHOWN, BOTH),
    ({"scope": "s"}, {**SHOWN, "scope": "s"}, BOTH),
    ({"refresh_token": "next"}, SHOWN, ("PLANTED-secret", "next")),
    ({"client_secret": None}, {**SHOWN, "client_secret_set": False}, (None, "PLANTED-refresh")),
    ({"tenant": "x", "client_secret": "a", "refresh_token": "b"}, {**SHOWN, "tenant": "x"}, ("a", "b")),
    (
        {"tenant": None, "client_secret": None, "refresh_token": None},
        {**SHOWN, "tenant": None, "client_secret_set": False, "refresh_token_set": False},
        (None, None),
    ),
]


@pytest.mark.parametrize(("patch", "shown", "secrets"), PATCHES)
async def test_merge_patches_go_into_it(
    admin: httpx.AsyncClient, relay: FakeRelay, patch: Any, shown: Any, secrets: Any
) -> None:
    first = await put(admin)
    answer = await admin.patch("/accounts/office", json={"oauth": patch})
    assert answer.status_code == 200, answer.text
    assert answer.json()["oauth"] == shown
    assert (answer.headers["ETag"] == first.headers["ETag"]) == (patch == {})
    assert await kept(relay) == secrets
    assert ("account office" in relay.applied[1:]) == (patch != {})


async def test_null_removes_it_and_an_object_brings_it_back(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    await put(admin)
    assert (await admin.patch("/accounts/office", json={"oauth": None})).json()["oauth"] is None
    answer = await admin.patch("/accounts/office", json={"oauth": {"client_id": "app"}})
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/oauth/provider", "/oauth/grant"]
    answer = await admin.patch("/accounts/office", json={"oauth": {**OAUTH, "client_secret": None}})
    assert answer.json()["oauth"] == {**SHOWN, "client_secret_set": False}
    assert await kept(relay) == (None, "PLANTED-refresh")


async def test_a_replacement_keeps_the_secrets_that_it_does_not_name(
    admin: httpx.AsyncClient, relay: FakeRelay
) -> None:
    first = await put(admin)
    named = {name: value for name, value in OAUTH.items() if name not in ("client_secret", "refresh_token")}
    again = await put(admin, oauth=named)
    assert (again.json()["oauth"], again.headers["ETag"]) == (SHOWN, first.headers["ETag"])
    assert await kept(relay) == BOTH
    answer = await put(admin, oauth={**named, "client_secret": None})
    assert answer.json()["oauth"] == {**SHOWN, "client_secret_set": False}
    assert await kept(relay) == (None, "PLANTED-refresh")
    assert (await put(admin, oauth=None)).json()["oauth"] is None


@pytest.mark.parametrize("named", [{"host": "smtp.example.org"}, {"port": 2525}])
async def test_the_token_goes_only_to_where_it_was_meant_for(admin: httpx.AsyncClient, named: dict[str, Any]) -> None:
    await put(admin)
    oauth = {name: value for name, value in OAUTH.items() if name not in ("client_secret", "refresh_token")}
    for answer in (await admin.patch("/accounts/office", json=named), await put(admin, **{**named, "oauth": oauth})):
        assert answer.status_code == 422
        codes = {error["pointer"]: error["code"] for error in answer.json()["errors"]}
        assert codes == {"/oauth/client_secret": "secret_needed", "/oauth/refresh_token": "secret_needed"}
    secrets = {"client_secret": "PLANTED-secret", "refresh_token": "PLANTED-refresh"}
    assert (await admin.patch("/accounts/office", json={**named, "oauth": secrets})).status_code == 200


@pytest.mark.parametrize(
    "moved",
    [
        {"tenant": "elsewhere.example"},
        {"client_id": "another"},
        {"token_url": "https://id.example/token"},
        {"provider": "other", "tenant": None, "token_url": "https://id.example/token"},
    ],
)
async def test_secrets_go_only_to_where_they_were_given_for(
    admin: httpx.AsyncClient, relay: FakeRelay, moved: dict[str, Any]
) -> None:
    await put(admin)
    answer = await admin.patch("/accounts/office", json={"oauth": moved})
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/oauth/client_secret", "/oauth/refresh_token"]
    answer = await admin.patch(
        "/accounts/office", json={"oauth": {**moved, "client_secret": "n", "refresh_token": None}}
    )
    assert answer.status_code == 200, answer.text
    assert await kept(relay) == ("n", None)


async def test_what_changed_is_in_the_audit_masked(admin: httpx.AsyncClient) -> None:
    await put(admin)
    await admin.patch("/accounts/office", json={"oauth": {"refresh_token": "PLANTED-next", "scope": "s"}})
    newest = (await admin.get("/audit")).json()["items"][0]
    assert newest["changes"] == {"oauth.scope": [None, "s"], "oauth.refresh_token": ["***", "***"]}


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"oauth": {**OAUTH, "grant": "service_account"}}, "/oauth/grant", "not_offered"),
    ({"oauth": {**OAUTH, "client_id": None}}, "/oauth/client_id", "required"),
    ({"oauth": {**OAUTH, "grant": "client_credentials", "tenant": None}}, "/oauth/tenant", "required"),
    ({"oauth": {**OAUTH, "grant": "client_credentials", "client_secret": None}}, "/oauth/client_secret", "required"),
    ({"oauth": {**OAUTH, "grant": "client_credentials", "tenant": "common"}}, "/oauth/tenant", "wrong_form"),
    ({"oauth": {**OAUTH, "provider": "google"}}, "/oauth/tenant", "conflict"),
    ({"oauth": {**OAUTH, "provider": "other", "tenant": None}}, "/oauth/token_url", "required"),
    ({"oauth": {**OAUTH, "service_account_key": service_key()}}, "/oauth/service_account_key", "conflict"),
    ({"oauth": {**ROBOT, "service_account_key": "{"}}, "/oauth/service_account_key", "wrong_form"),
    ({"oauth": {**ROBOT, "service_account_key": {"client_email": "a"}}}, "/oauth/service_account_key", "wrong_form"),
    (
        {"oauth": {**ROBOT, "service_account_key": {**service_key(), "private_key": "no PEM"}}},
        "/oauth/service_account_key",
        "wrong_form",
    ),
    ({"auth": "plain"}, "/auth", "conflict"),
    ({"auth": "none"}, "/auth", "conflict"),
    ({"username": None}, "/username", "required"),
    ({"username": None, "auth": "xoauth2"}, "/username", "required"),
    *(
        ({"oauth": {**OAUTH, "token_url": url}}, "/oauth/token_url", "not_allowed")
        for url in (
            "http://id.example/token",
            "ftp://127.0.0.1/token",
            "https:///token",
            "https://u:p@id.example/token",
            "https://id.example/token#x",
            "https://169.254.169.254/token",
            "https://metadata.google.internal/token",
            "https://[fd00:ec2::254]/token",
            "https://id.example:99999/token",
            "https://id.ex\\ample/token",
        )
    ),
]


@pytest.mark.parametrize(("changes", "pointer", "code"), WRONG)
async def test_what_it_may_not_be(admin: httpx.AsyncClient, changes: dict[str, Any], pointer: str, code: str) -> None:
    answer = await put(admin, **changes)
    assert answer.status_code == 422, answer.text
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [(pointer, code)]


async def test_private_targets_may_be_closed_for_it_too(
    admin: httpx.AsyncClient, relay: FakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://127.0.0.1:1/token"
    assert (await put(admin, oauth={**OAUTH, "token_url": url})).status_code == 201
    monkeypatch.setitem(relay.settings.__dict__, "allow_private_targets", False)
    assert (await admin.patch("/accounts/office", json={"max_connections": 2})).status_code == 200, "it was saved once"
    other = {**OAUTH, "token_url": "http://127.0.0.1:2/token"}
    assert (await put(admin, oauth=other)).json()["errors"][0]["pointer"] == "/oauth/token_url"


@pytest.mark.parametrize("form", ["object", "text"])
async def test_a_key_file_comes_as_an_object_or_as_text(admin: httpx.AsyncClient, relay: FakeRelay, form: str) -> None:
    key = service_key()
    answer = await put(admin, oauth={**ROBOT, "service_account_key": key if form == "object" else json.dumps(key)})
    assert answer.status_code == 201, answer.text
    assert answer.json()["oauth"]["service_account_key_set"] is True
    oauth = (await relay.accounts.value("office")).oauth
    assert oauth is not None
    assert json.loads(oauth.service_account_key or "") == key
