"""Accounts over HTTP: create, replace, merge, delete; passwords that never come back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet

from core.runtime.views import CheckStepView
from core.settings import Settings
from tests.api.conftest import MakeClient
from tests.api.fakes import FakeRelay
from tests.support.database import MovableClock

PASSWORD = "planted-secret-4711"
ACCOUNT: dict[str, Any] = {"name": "office", "host": "smtp.example.org", "username": "u", "password": PASSWORD}
BODY: dict[str, Any] = {"host": "smtp.example.org", "username": "u"}
MERGE = {"Content-Type": "application/merge-patch+json"}


def pointers(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {error["pointer"]: error["code"] for error in answer.json()["errors"]}


async def test_create_show_delete(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    made = await admin.post("/accounts", json=ACCOUNT)
    assert made.status_code == 201
    assert made.headers["location"] == "/accounts/office"
    shown = await admin.get("/accounts/office")
    assert shown.json() == made.json()
    assert shown.headers["etag"] == made.headers["etag"]
    body = shown.json()
    assert body["password_set"] is True
    assert body["password_changed_at"] == "2027-01-15T08:00:00.000Z"
    assert body["port"] == 587
    assert body["security"] == "starttls"
    assert body["used_by"] == []
    assert body["pause"] is None
    assert relay.applied == ["account office"]
    gone = await admin.delete("/accounts/office")
    assert (gone.status_code, gone.content, "content-type" in gone.headers) == (204, b"", False)
    assert (await admin.get("/accounts/office")).status_code == 404
    assert (await admin.delete("/accounts/office")).status_code == 404
    assert relay.applied == ["account office", "account office"]


async def test_the_password_is_in_no_answer(admin: httpx.AsyncClient) -> None:
    answers = [
        await admin.post("/accounts", json=ACCOUNT),
        await admin.post("/accounts", json=ACCOUNT),
        await admin.get("/accounts/office"),
        await admin.get("/accounts"),
        await admin.patch("/accounts/office", json={"password": PASSWORD + "2"}),
        await admin.put("/accounts/office", json={**BODY, "password": PASSWORD, "port": "x"}),
        await admin.put("/accounts/office", json={**BODY, "password": [PASSWORD]}),
        await admin.post("/accounts", content=f'{{"name": "x", "password": "{PASSWORD}"'.encode()),
        await admin.get("/audit"),
    ]
    assert [answer.status_code for answer in answers] == [201, 409, 200, 200, 200, 422, 422, 422, 200]
    for answer in answers:
        assert PASSWORD not in answer.text


async def test_a_taken_name_is_a_conflict(admin: httpx.AsyncClient) -> None:
    await admin.post("/accounts", json=ACCOUNT)
    answer = await admin.post("/accounts", json=ACCOUNT)
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:mpu:problem:already_exists"


async def test_put_creates_replaces_and_keeps_still(
    admin: httpx.AsyncClient, relay: FakeRelay, clock: MovableClock
) -> None:
    made = await admin.put("/accounts/office", json={**BODY, "max_connections": 9, "password": PASSWORD})
    assert made.status_code == 201
    assert made.headers["location"] == "/accounts/office"
    clock.move(1)
    same = await admin.put("/accounts/office", json={**BODY, "max_connections": 9})
    assert (same.status_code, same.headers["etag"]) == (200, made.headers["etag"])
    again = await admin.put("/accounts/office", json={**BODY, "max_connections": 9, "password": PASSWORD})
    assert again.headers["etag"] == made.headers["etag"]
    assert relay.applied == ["account office"]
    replaced = await admin.put("/accounts/office", json=BODY)
    assert replaced.status_code == 200
    assert replaced.headers["etag"] != made.headers["etag"]
    assert replaced.json()["max_connections"] == 5
    assert replaced.json()["password_set"] is True
    assert (await relay.accounts.value("office")).password == PASSWORD
    removed = await admin.put("/accounts/office", json={**BODY, "password": None})
    assert removed.json()["password_set"] is False


async def test_put_takes_the_name_of_its_path_only(admin: httpx.AsyncClient) -> None:
    assert (await admin.put("/accounts/office", json={**BODY, "name": "office"})).status_code == 201
    assert pointers(await admin.put("/accounts/office", json={**BODY, "name": "other"})) == {"/name": "read_only"}


async def test_a_merge_patch_changes_what_it_names(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    await admin.post("/accounts", json={**ACCOUNT, "max_connections": 9, "helo_name": "mx.example.org"})
    changed = await admin.patch("/accounts/office", json={"max_connections": None, "helo_name": None, "enabled": False})
    body = changed.json()
    assert (body["max_connections"], body["helo_name"], body["enabled"]) == (5, None, False)
    assert (await relay.accounts.value("office")).password == PASSWORD
    merged = await admin.patch("/accounts/office", content=b'{"password": null}', headers=MERGE)
    assert merged.json()["password_set"] is False
    assert merged.json()["password_changed_at"] is None
    assert pointers(await admin.patch("/accounts/office", json={"host": None})) == {"/host": "required"}
    empty = await admin.patch("/accounts/office", json={})
    assert empty.headers["etag"] == merged.headers["etag"]
    assert (await admin.patch("/accounts/none", json={})).status_code == 404


async def test_if_match(admin: httpx.AsyncClient) -> None:
    stale = (await admin.post("/accounts", json=ACCOUNT)).headers["etag"]
    fresh = (await admin.patch("/accounts/office", json={"max_connections": 3})).headers["etag"]
    for call in (
        admin.patch("/accounts/office", json={"max_connections": 4}, headers={"If-Match": stale}),
        admin.put("/accounts/office", json=BODY, headers={"If-Match": stale}),
        admin.delete("/accounts/office", headers={"If-Match": stale}),
        admin.delete("/accounts/office", headers={"If-Match": '"*"'}),
        admin.put("/accounts/other", json=BODY, headers={"If-Match": "*"}),
        admin.patch("/accounts/office", json={"max_connections": 4}, headers={"If-Match": f"W/{fresh}"}),
        admin.patch("/accounts/office", json={"max_connections": 4}, headers={"If-Match": f"{stale}, W/{fresh}"}),
    ):
        answer = await call
        assert answer.status_code == 412, answer.text
        assert answer.json()["type"] == "urn:mpu:problem:precondition_failed"
    for match in (fresh, "*", f'"1", {fresh}', f"W/{stale}, {fresh}", f'"1",,{fresh}, '):
        answer = await admin.patch("/accounts/office", json={}, headers={"If-Match": match})
        assert answer.status_code == 200, match
    assert (await admin.patch("/accounts/office", json={}, headers={"If-Match": fresh.strip('"')})).status_code == 200
    for wrong in ('a"b"c', '"unfinished', 'unfinished"', f'{fresh}, "', f"{fresh}, *", f"{fresh} {stale}", "W/3", ""):
        broken = await admin.patch("/accounts/office", json={}, headers={"If-Match": wrong})
        assert pointers(broken) == {"header/If-Match": "wrong_form"}, wrong


async def test_what_a_get_shows_and_nobody_sets_is_told_so(admin: httpx.AsyncClient) -> None:
    oauth = {"provider": "microsoft", "grant": "client_credentials", "tenant": "t", "client_id": "c"}
    account = {**BODY, "auth": "xoauth2", "oauth": {**oauth, "client_secret": "s"}}
    made = await admin.put("/accounts/office", json=account)
    assert made.status_code == 201, made.text
    shown = made.json()
    of_account = ("password_set", "password_changed_at", "password_lost", "created_at", "updated_at", "used_by")
    of_oauth = ("client_secret_set", "refresh_token_set", "service_account_key_set", "secrets_lost")
    pointed = [*of_account, "pause", "usage", *(f"oauth/{name}" for name in of_oauth)]
    expected = {f"/{name}": "read_only" for name in pointed}
    assert pointers(await admin.put("/accounts/office", json=shown)) == expected
    del shown["name"]
    assert pointers(await admin.patch("/accounts/office", json={**shown, "name": "x"})) == {
        "/name": "read_only",
        **expected,
    }
    assert pointers(await admin.patch("/accounts/office", json={"id": 1, "usage": {}, "oauth": {"usage": 1}})) == {
        "/id": "unknown_field",
        "/usage": "read_only",
        "/oauth/usage": "unknown_field",
    }


async def test_put_may_create_only(admin: httpx.AsyncClient) -> None:
    absent = {"If-None-Match": "*"}
    made = await admin.put("/accounts/office", json=BODY, headers=absent)
    assert made.status_code == 201, made.text
    again = await admin.put("/accounts/office", json={**BODY, "max_connections": 9}, headers=absent)
    assert (again.status_code, again.json()["type"]) == (412, "urn:mpu:problem:precondition_failed")
    assert "If-None-Match" in again.json()["remedy"]
    assert (await admin.get("/accounts/office")).headers["etag"] == made.headers["etag"]
    race = await asyncio.gather(*(admin.put("/accounts/other", json=BODY, headers=absent) for _ in range(4)))
    assert sorted(answer.status_code for answer in race) == [201, 412, 412, 412]
    named = await admin.put("/accounts/office", json=BODY, headers={"If-None-Match": made.headers["etag"]})
    assert pointers(named) == {"header/If-None-Match": "wrong_form"}


async def test_a_new_host_or_port_asks_for_the_password_again(admin: httpx.AsyncClient) -> None:
    await admin.post("/accounts", json=ACCOUNT)
    for change in ({"host": "evil.example.org"}, {"port": 465}):
        answer = await admin.patch("/accounts/office", json=change)
        assert pointers(answer) == {"/password": "password_needed"}
    assert pointers(await admin.put("/accounts/office", json={**BODY, "host": "evil.example.org"})) == {
        "/password": "password_needed"
    }
    assert (await admin.patch("/accounts/office", json={"port": 465, "password": "again"})).status_code == 200
    assert (await admin.patch("/accounts/office", json={"port": 587, "password": None})).status_code == 200
    assert (await admin.patch("/accounts/office", json={"port": 465})).status_code == 200  # nothing to leak any more


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"port": 0}, {"/port": "out_of_range"}),
        ({"port": 22}, {"/port": "not_allowed"}),
        ({"port": "587"}, {"/port": "wrong_type"}),
        ({"port": True}, {"/port": "wrong_type"}),
        ({"host": "169.254.169.254"}, {"/host": "not_allowed"}),
        ({"host": "::ffff:169.254.169.254"}, {"/host": "not_allowed"}),
        ({"host": "fe80::1"}, {"/host": "not_allowed"}),
        ({"host": "fd00:ec2::254"}, {"/host": "not_allowed"}),
        ({"host": "metadata.google.internal"}, {"/host": "not_allowed"}),
        ({"host": "2852039166"}, {"/host": "not_allowed"}),
        ({"host": "127.1"}, {"/host": "not_allowed"}),
        ({"host": "0.0.0.0"}, {"/host": "not_allowed"}),
        ({"host": "a b"}, {"/host": "wrong_form"}),
        ({"host": "[::1]"}, {"/host": "not_allowed"}),
        ({"host": "a/b"}, {"/host": "not_allowed"}),
        ({"username": "a\0b"}, {"/username": "wrong_form"}),
        ({"password": "a\r\nb"}, {"/password": "wrong_form"}),
        ({"host": "a..b"}, {"/host": "not_allowed"}),
        ({"host": ""}, {"/host": "too_short"}),
        ({"host": "x\r\nRCPT"}, {"/host": "wrong_form"}),
        ({"security": "ssl"}, {"/security": "not_allowed"}),
        ({"security": "none"}, {"/security": "plaintext_login"}),
        ({"auth": "plain", "username": None}, {"/username": "required"}),
        ({"from_policy": "replace"}, {"/from_address": "required"}),
        ({"from_address": "a@b@c"}, {"/from_address": "wrong_form"}),
        ({"from_address": "a@b> SIZE=1"}, {"/from_address": "wrong_form"}),
        ({"helo_name": "a\r\nMAIL"}, {"/helo_name": "wrong_form"}),
        ({"tls_ca_file": "/nonexistent.pem"}, {"/tls_ca_file": "not_found"}),
        ({"tls_ca_file": "relative.pem"}, {"/tls_ca_file": "wrong_form"}),
        ({"tls_ca_file": "/etc/hostname"}, {"/tls_ca_file": "wrong_form"}),
        ({"max_connections": 0}, {"/max_connections": "out_of_range"}),
        ({"connect_timeout_seconds": 1e400}, {"/connect_timeout_seconds": "out_of_range"}),
        ({"nonsense": 1}, {"/nonsense": "unknown_field"}),
        ({"password_set": True}, {"/password_set": "read_only"}),
        ({"pause": None}, {"/pause": "read_only"}),
        ({"name": "UPPER"}, {"/name": "wrong_form"}),
        ({"name": "-a"}, {"/name": "wrong_form"}),
        ({"name": "a" * 64}, {"/name": "wrong_form"}),
        ({"name": "a\n"}, {"/name": "wrong_form"}),
        ({"a/b~c": 1}, {"/a~1b~0c": "unknown_field"}),
    ],
)
async def test_wrong_settings_name_the_field(
    admin: httpx.AsyncClient, change: dict[str, Any], expected: dict[str, str]
) -> None:
    import json

    content = json.dumps({**ACCOUNT, **change}).replace("Infinity", "1e400")
    assert pointers(await admin.post("/accounts", content=content.encode())) == expected
    assert (await admin.get("/accounts")).json()["items"] == []


@pytest.mark.parametrize(
    "change",
    [
        {"host": "127.0.0.1", "port": 31337, "security": "none"},
        {"host": "localhost", "port": 1},
        {"host": "::1", "port": 1, "security": "none"},
        {"host": "10.1.2.3"},
        {"host": "post.östlich.example"},
        {"security": "none", "allow_plaintext_login": True},
        {"security": "none", "username": None, "password": None},
        {"max_connections": 1, "idle_timeout_seconds": 0},
    ],
)
async def test_good_settings(admin: httpx.AsyncClient, change: dict[str, Any]) -> None:
    answer = await admin.post("/accounts", json={**ACCOUNT, **change})
    assert answer.status_code == 201, answer.text


async def test_an_account_in_use_stays(admin: httpx.AsyncClient, roots: Path) -> None:
    await admin.post("/accounts", json=ACCOUNT)
    await admin.post("/directories", json={"name": "shop", "path": str(roots / "a"), "accounts": ["office"]})
    answer = await admin.delete("/accounts/office")
    assert answer.status_code == 409
    assert answer.json()["used_by"] == ["shop"]
    assert (await admin.get("/accounts/office")).json()["used_by"] == ["shop"]


async def test_a_check_before_saving(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    relay.checks.steps = (
        CheckStepView("connect", ok=True, seconds=0.1),
        CheckStepView("login", ok=False, seconds=0.2, cause="535 no", remedy="another password"),
    )
    refused = await admin.post("/accounts?check=true", json=ACCOUNT)
    assert refused.status_code == 422
    problem = refused.json()
    assert problem["type"] == "urn:mpu:problem:check_failed"
    assert problem["check"]["steps"][1]["step"] == "login"
    assert problem["remedy"] == "another password"
    assert (await admin.get("/accounts/office")).status_code == 404
    assert (await admin.post("/accounts", json=ACCOUNT)).status_code == 201
    assert (await admin.patch("/accounts/office?check=true", json={"max_connections": 2})).status_code == 422
    assert (await admin.put("/accounts/office?check=true", json=BODY)).status_code == 422
    assert (await admin.get("/accounts/office")).json()["max_connections"] == 5
    assert relay.checks.accounts[-1].password == PASSWORD  # the saved one is tried
    relay.checks.steps = relay.checks.steps[:1]
    assert (await admin.patch("/accounts/office?check=true", json={"max_connections": 2})).status_code == 200


async def test_checks(client_of: MakeClient, admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    await admin.post("/accounts", json=ACCOUNT)
    operator = await client_of("operate")
    saved = await operator.post("/accounts/office/check")
    step = {"step": "connect", "ok": True, "required": True, "seconds": 0.01}
    assert saved.json() == {"ok": True, "steps": [{**step, "detail": "", "code": "", "cause": "", "remedy": ""}]}
    assert relay.checks.accounts[-1].password == PASSWORD
    assert (await operator.post("/accounts/none/check")).status_code == 404
    unsaved = await operator.post("/accounts/check", json={"host": "smtp.example.net", "port": 465})
    assert unsaved.json()["ok"] is True
    assert relay.checks.accounts[-1].host == "smtp.example.net"
    assert pointers(await operator.post("/accounts/check", json={"host": "169.254.1.1"})) == {"/host": "not_allowed"}
    for to in ("p@example.org", '"a \\" b"@example.org'):
        sent = await operator.post("/accounts/office/test-message", json={"to": to})
        assert (sent.status_code, sent.json()["status"], sent.json()["phase"]) == (200, "sent", "dot")


async def test_pages_show_each_account_once(admin: httpx.AsyncClient) -> None:
    names = [f"a{number:02}" for number in range(7)]
    for name in reversed(names):
        await admin.post("/accounts", json={"name": name, "host": "h.example"})
    seen: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = (await admin.get("/accounts", params=params)).json()
        seen += [item["name"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == names
    for wrong in ("%%%", "\xff", "a" * 399):
        assert pointers(await admin.get("/accounts", params={"cursor": wrong})) == {"query/cursor": "bad_cursor"}
    for limit in ("0", "501", "x"):
        assert list(pointers(await admin.get("/accounts", params={"limit": limit}))) == ["query/limit"]


async def test_pauses_show_in_the_account(admin: httpx.AsyncClient) -> None:
    await admin.post("/accounts", json=ACCOUNT)
    etag = (await admin.get("/accounts/office")).headers["etag"]
    paused = await admin.post(
        "/accounts/office/pause", json={"reason": "maintenance", "until": "2099-01-01T06:00:00+02:00"}
    )
    assert paused.json()["pause"] == {
        "by": "operator",
        "code": "operator",
        "reason": "maintenance",
        "since": "2027-01-15T08:00:00.000Z",
        "until": "2099-01-01T04:00:00.000Z",
        "remedy": "",
    }
    shown = await admin.get("/accounts/office")
    assert shown.json()["pause"] == paused.json()["pause"]
    assert shown.headers["etag"] == etag  # a pause is an act, not a setting
    assert (await admin.post("/accounts/office/resume")).json() == {"pause": None}
    assert (await admin.post("/accounts/office/pause")).json()["pause"]["until"] is None


@pytest.mark.parametrize("until", ["2001-01-01T00:00:00Z", "2099-01-01T00:00:00", "2099-02-30T00:00:00Z", "x", 4e9, ""])
async def test_the_end_of_a_pause_is_a_time_to_come(admin: httpx.AsyncClient, until: object) -> None:
    assert pointers(await admin.post("/pause", json={"until": until})) == {"/until": "wrong_form"}


async def test_changes_are_in_the_audit(admin: httpx.AsyncClient) -> None:
    await admin.post("/accounts", json=ACCOUNT)
    await admin.patch("/accounts/office", json={"password": "other", "max_connections": 3})
    await admin.put("/accounts/office", json={**BODY, "max_connections": 3})  # no difference, no row
    await admin.delete("/accounts/office")
    rows = (await admin.get("/audit")).json()["items"]
    assert [(row["action"], row["target"], row["key"]) for row in rows] == [
        ("account.delete", "office", "admin"),
        ("account.update", "office", "admin"),
        ("account.create", "office", "admin"),
    ]
    assert rows[1]["changes"] == {"max_connections": [5, 3], "password": ["***", "***"]}
    assert rows[2]["changes"]["password"] == [None, "***"]


async def test_savers_that_meet_lose_nothing(admin: httpx.AsyncClient) -> None:
    await admin.post("/accounts", json=ACCOUNT)
    changes = [{"max_connections": 7}, {"helo_name": "mx"}, {"enabled": False}, {"idle_timeout_seconds": 1}]
    answers = await asyncio.gather(*(admin.patch("/accounts/office", json=change) for change in changes))
    assert [answer.status_code for answer in answers] == [200] * 4
    body = (await admin.get("/accounts/office")).json()
    assert (body["max_connections"], body["helo_name"], body["enabled"], body["idle_timeout_seconds"]) == (
        7, "mx", False, 1
    )  # fmt: skip
    made = await asyncio.gather(*(admin.put("/accounts/other", json=BODY) for _ in range(4)))
    assert sorted(answer.status_code for answer in made) == [200, 200, 200, 201]
    matched = (await admin.get("/accounts/other")).headers["etag"]
    race = await asyncio.gather(
        *(
            admin.patch("/accounts/other", json={"max_connections": number}, headers={"If-Match": matched})
            for number in (2, 3, 4)
        )
    )
    assert sorted(answer.status_code for answer in race) == [200, 412, 412]


async def test_an_account_whose_password_does_not_open(
    admin: httpx.AsyncClient, relay: FakeRelay, settings: Settings
) -> None:
    await admin.post("/accounts", json=ACCOUNT)
    relay.store.secrets._use([Fernet.generate_key().decode()])  # as after a lost key file
    shown = await admin.get("/accounts/office")
    assert (shown.status_code, shown.json()["password_set"]) == (200, True)
    checked = await admin.post("/accounts/office/check")
    assert (checked.status_code, checked.json()["type"]) == (503, "urn:mpu:problem:secret_key_lost")
    again = await admin.patch("/accounts/office", json={"password": PASSWORD})
    assert again.status_code == 200
    assert (await admin.post("/accounts/office/check")).status_code == 200


async def test_an_unreadable_file_of_authorities(admin: httpx.AsyncClient, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for path, code in (("", "wrong_form"), ("fifo", "wrong_form"), ("file/in", "unreadable")):
        answer = await admin.post("/accounts", json={**ACCOUNT, "tls_ca_file": str(tmp_path / path)})
        assert pointers(answer) == {"/tls_ca_file": code}
