"""Presets over HTTP: what an account becomes with each, what wins, and what null goes back to."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from core.domain.account import Account
from tests.api.conftest import MakeClient
from tests.api.fakes import FakeRelay

GENERAL: dict[str, Any] = {
    "port": 587,
    "security": "starttls",
    "auth": "auto",
    "max_connections": 5,
    "recipients_per_message": 100,
    "messages_per_second": None,
    "messages_per_minute": None,
    "messages_per_hour": None,
    "messages_per_day": None,
    "recipients_per_day": None,
}
# what each preset says differently (providers.md)
PRESETS: dict[str, dict[str, Any]] = {
    "office365": {
        "host": "smtp.office365.com",
        "max_connections": 3,
        "messages_per_minute": 30,
        "recipients_per_day": 10_000,
    },
    "gmail": {"host": "smtp.gmail.com", "messages_per_day": 2000, "recipients_per_day": 10_000},
    "google-relay": {"host": "smtp-relay.gmail.com", "recipients_per_day": 10_000},
    "ses": {"host": None, "recipients_per_message": 50},
    "azure": {"host": "smtp.azurecomm.net"},
    "smtp": {"host": None},
}
SES_HOST = "email-smtp.eu-central-1.amazonaws.com"
LOGIN = {"username": "relay@example.org", "password": "planted-secret"}


def resolved(name: str) -> dict[str, Any]:
    return {**GENERAL, **PRESETS[name]}


def errors(answer: httpx.Response) -> list[tuple[str, str]]:
    assert answer.status_code == 422, answer.text
    return [(error["pointer"], error["code"]) for error in answer.json()["errors"]]


def shown(body: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(body[name] for name in names)


async def test_the_list_says_what_each_provider_asks_for(client_of: MakeClient, nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/account-presets")).status_code == 401
    body = (await (await client_of("read")).get("/account-presets")).json()
    assert body["next"] is None
    assert {item["name"]: item["settings"] for item in body["items"]} == {name: resolved(name) for name in PRESETS}
    by_name = {item["name"]: item for item in body["items"]}
    assert by_name["gmail"]["ports"] == [{"port": 587, "security": "starttls"}, {"port": 465, "security": "tls"}]
    assert [port["port"] for port in by_name["ses"]["ports"]] == [587, 465, 2587, 2465]
    assert by_name["ses"]["host_hint"] == "email-smtp.REGION.amazonaws.com"
    for item in body["items"]:
        assert item["title"]
        assert len(item["note"]) > 100
        assert "://" not in item["note"]


@pytest.mark.parametrize("name", PRESETS)
async def test_an_account_takes_what_it_does_not_name(admin: httpx.AsyncClient, relay: FakeRelay, name: str) -> None:
    host = PRESETS[name]["host"] or SES_HOST
    given = {**LOGIN, "preset": name} | ({} if PRESETS[name]["host"] else {"host": host})
    made = await admin.post("/accounts", json={"name": "one", **given})
    assert made.status_code == 201, made.text
    expected = {**resolved(name), "host": host, "preset": name}
    assert {key: made.json()[key] for key in expected} == expected
    put = await admin.put("/accounts/two", json=given)
    assert put.status_code == 201, put.text
    assert {key: put.json()[key] for key in expected} == expected
    again = await admin.put("/accounts/two", json=given)
    assert (again.status_code, again.headers["etag"]) == (200, put.headers["etag"])
    value: Account = await relay.accounts.value("one")
    assert (value.host, value.security.value, value.auth.value) == shown(expected, "host", "security", "auth")


async def test_what_is_named_wins(admin: httpx.AsyncClient) -> None:
    named = {
        "host": "smtp.example.org",
        "auth": "login",
        "max_connections": 1,
        "messages_per_minute": 5,
        "recipients_per_day": None,  # none at all
    }
    made = await admin.post("/accounts", json={"name": "one", "preset": "office365", **LOGIN, **named})
    assert {key: made.json()[key] for key in named} == named
    assert shown(made.json(), "port", "security") == (587, "starttls")


@pytest.mark.parametrize(
    ("preset", "named", "port", "security"),
    [
        ("gmail", {"port": 465}, 465, "tls"),
        ("gmail", {"security": "tls"}, 465, "tls"),
        ("gmail", {"security": "starttls"}, 587, "starttls"),
        ("gmail", {"port": 465, "security": "starttls"}, 465, "starttls"),
        ("ses", {"port": 2587}, 2587, "starttls"),
        ("ses", {"port": 2465}, 2465, "tls"),
        ("smtp", {"port": 465}, 465, "tls"),
        (None, {"port": 465}, 465, "starttls"),  # without a preset all is as it is said
    ],
)
async def test_a_port_takes_its_security_along(
    admin: httpx.AsyncClient, preset: str | None, named: dict[str, Any], port: int, security: str
) -> None:
    made = await admin.post("/accounts", json={"name": "one", "host": SES_HOST, "preset": preset, **named})
    assert made.status_code == 201, made.text
    assert shown(made.json(), "port", "security") == (port, security)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"preset": "ses"}, "email-smtp.REGION.amazonaws.com"),
        ({"preset": "ses", "host": None}, "email-smtp.REGION.amazonaws.com"),
        ({"preset": "smtp"}, "is needed"),
        ({}, "is needed"),
        ({"preset": None}, "is needed"),
    ],
)
async def test_a_host_that_no_preset_has_is_asked_for(
    admin: httpx.AsyncClient, body: dict[str, Any], detail: str
) -> None:
    for answer in (
        await admin.post("/accounts", json={"name": "one", **body}),
        await admin.put("/accounts/one", json=body),
        await admin.post("/accounts/check", json=body),
    ):
        assert errors(answer) == [("/host", "required")]
        assert detail in answer.json()["errors"][0]["detail"]


async def test_an_unknown_preset_is_refused(admin: httpx.AsyncClient) -> None:
    assert errors(await admin.post("/accounts", json={"name": "one", "preset": "hotmail"})) == [
        ("/preset", "not_allowed")
    ]


async def test_an_unsaved_account_is_tried_with_its_preset(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    assert (await admin.post("/accounts/check", json={"preset": "gmail", **LOGIN})).status_code == 200
    assert (relay.checks.accounts[-1].host, relay.checks.accounts[-1].messages_per_day) == ("smtp.gmail.com", 2000)


async def test_null_goes_back_to_the_presets_default(admin: httpx.AsyncClient) -> None:
    named = {"max_connections": 1, "messages_per_minute": 5, "messages_per_hour": 7, "helo_name": "mx", "auth": "login"}
    await admin.post("/accounts", json={"name": "one", "preset": "office365", **LOGIN, **named})
    changed = await admin.patch("/accounts/one", json=dict.fromkeys(named))
    assert changed.status_code == 200, changed.text
    assert shown(changed.json(), *named) == (3, 30, None, None, "auto")


async def test_null_goes_back_to_the_presets_host_port_and_security(admin: httpx.AsyncClient) -> None:
    body = {"name": "one", "preset": "gmail", "host": "smtp.example.org", "port": 465, "security": "starttls"}
    await admin.post("/accounts", json=body)
    changed = await admin.patch("/accounts/one", json={"security": None})
    assert shown(changed.json(), "port", "security") == (465, "tls")
    changed = await admin.patch("/accounts/one", json={"host": None, "port": None, "security": None})
    assert shown(changed.json(), "host", "port", "security") == ("smtp.gmail.com", 587, "starttls")
    await admin.post("/accounts", json={"name": "ses", "preset": "ses", "host": SES_HOST})
    assert errors(await admin.patch("/accounts/ses", json={"host": None})) == [("/host", "required")]


async def test_another_preset_changes_only_what_null_goes_back_to(admin: httpx.AsyncClient) -> None:
    await admin.post("/accounts", json={"name": "one", "preset": "gmail"})
    changed = await admin.patch("/accounts/one", json={"preset": "office365"})
    assert shown(changed.json(), "preset", "host", "messages_per_day") == ("office365", "smtp.gmail.com", 2000)
    moved = await admin.patch("/accounts/one", json={"preset": "google-relay", "host": None, "messages_per_day": None})
    assert shown(moved.json(), "preset", "host", "messages_per_day") == ("google-relay", "smtp-relay.gmail.com", None)
    left = await admin.patch("/accounts/one", json={"preset": None, "recipients_per_day": None})
    assert shown(left.json(), "preset", "host", "recipients_per_day") == (None, "smtp-relay.gmail.com", None)
    assert errors(await admin.patch("/accounts/one", json={"host": None})) == [("/host", "required")]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"blame": "account", "text": "out of (credit"}, [("/reply_rules/1/text", "wrong_form")]),
        ({"blame": "account", "text": "(a+)+$"}, [("/reply_rules/1/text", "wrong_form")]),
        ({"blame": "account", "code": "["}, [("/reply_rules/1/code", "wrong_form")]),
        ({"blame": "account"}, [("/reply_rules/1", "required")]),
        ({"blame": "message", "phase": "auth"}, [("/reply_rules/1/blame", "not_allowed")]),
        ({"blame": "nobody", "text": "x"}, [("/reply_rules/1/blame", "not_allowed")]),
        ({"blame": "account", "text": "x", "phase": "quit"}, [("/reply_rules/1/phase", "not_allowed")]),
        ({"blame": "account", "text": "x" * 501}, [("/reply_rules/1/text", "too_long")]),
        ({"blame": "account", "text": "x", "pause_seconds": 0}, [("/reply_rules/1/pause_seconds", "out_of_range")]),
        ({"text": "x"}, [("/reply_rules/1/blame", "required")]),
    ],
)
async def test_wrong_reply_rules_name_the_rule(
    admin: httpx.AsyncClient, rule: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    good = {"blame": "transient", "text": "fine"}
    body = {"host": "smtp.example.org", "reply_rules": [good, rule]}
    assert errors(await admin.post("/accounts", json={"name": "one", **body})) == expected
    assert errors(await admin.put("/accounts/one", json=body)) == expected
    await admin.post("/accounts", json={"name": "two", "host": "smtp.example.org"})
    assert errors(await admin.patch("/accounts/two", json={"reply_rules": [good, rule]})) == expected


async def test_reply_rules_are_kept_in_order(admin: httpx.AsyncClient) -> None:
    rules = [
        {"blame": "account", "text": "out of credit", "pause_seconds": 3600},
        {"blame": "message", "phase": "dot", "code": "550", "enhanced_code": r"5\.7\.1", "final": True},
    ]
    await admin.post("/accounts", json={"name": "one", "host": "smtp.example.org"})
    changed = await admin.patch("/accounts/one", json={"reply_rules": rules})
    whole = {"phase": None, "code": None, "enhanced_code": None, "text": None, "final": False, "pause_seconds": None}
    assert changed.json()["reply_rules"] == [{**whole, **rule} for rule in rules]
    assert (await admin.get("/accounts/one")).json()["reply_rules"] == changed.json()["reply_rules"]
    again = await admin.patch("/accounts/one", json={"reply_rules": rules})
    assert again.headers["etag"] == changed.headers["etag"]
    assert (await admin.patch("/accounts/one", json={"reply_rules": None})).json()["reply_rules"] == []
