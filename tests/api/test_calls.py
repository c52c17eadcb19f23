"""The other calls, each in its plain form and its wrong ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from core.domain.message import State
from core.domain.outcome import Outcome
from core.errors import (
    DatabaseUnavailable,
    DirectoryUnavailable,
    MessageRejected,
    NotFound,
    NotRunning,
    RelayError,
    StorageFull,
    TooMany,
)
from core.runtime.views import BulkAct, DrainRequest, QueueFilter
from core.settings import Settings
from tests.api.conftest import MakeClient
from tests.api.fakes import CLAIMED_ID, MESSAGE_ID, FakeRelay
from tests.api.test_accounts import pointers
from tests.support import database

# --- queue -----------------------------------------------------------------------------------------------------------


async def test_counts(admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/queue")).json() == {
        "items": [
            {
                "directory": "pickup",
                "waiting": 2,
                "claimed": 1,
                "deferred": 0,
                "held": 0,
                "badmail": 0,
                "bytes": None,
                "oldest_seconds": 3.25,
                "as_of": "2027-01-15T08:00:00.000Z",
            }
        ],
        "totals": {
            "waiting": 2,
            "claimed": 1,
            "deferred": 0,
            "held": 0,
            "badmail": 0,
            "bytes": None,
            "oldest_seconds": 3.25,
            "as_of": "2027-01-15T08:00:00.000Z",
        },
    }


async def test_queued_messages_with_all_filters(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    query = "state=deferred&directory=pickup&account=office&recipient=@example.org&code=450&limit=2&cursor=abc"
    page = (await admin.get(f"/queue/messages?{query}")).json()
    wanted = QueueFilter(State.DEFERRED, "pickup", "office", "@example.org", 450)
    assert relay.queue.asked == [(wanted, 2, "abc")]
    assert page["next"] is None
    assert page["items"][0]["due_at"] == "2027-01-15T08:01:00.000Z"
    assert (await admin.get("/queue/messages")).json()["next"] == "more"


@pytest.mark.parametrize(
    ("query", "pointer", "code"),
    [
        ("state=gone", "query/state", "not_allowed"),
        ("directory=A", "query/directory", "wrong_form"),
        ("code=99", "query/code", "out_of_range"),
        ("code=x", "query/code", "wrong_type"),
        ("recipient=", "query/recipient", "too_short"),
        ("recipient=a%20b@example.org", "query/recipient", "wrong_form"),
        ("recipient=%22a%20b%22%20@example.org", "query/recipient", "wrong_form"),
        ("recipient=%22a%20b%22@exam%20ple.org", "query/recipient", "wrong_form"),
        ("recipient=%22a%01b%22@example.org", "query/recipient", "wrong_form"),
        ("directoy=pickup", "query/directoy", "unknown_field"),
        ("directory=a&directory=b", "query/directory", "twice"),
        ("limit=1&limit=1", "query/limit", "twice"),
        ("x=1&x=2", "query/x", "unknown_field"),
        ("limit=", "query/limit", "wrong_type"),
    ],
)
async def test_wrong_filters_name_the_parameter(admin: httpx.AsyncClient, query: str, pointer: str, code: str) -> None:
    assert pointers(await admin.get(f"/queue/messages?{query}")) == {pointer: code}


async def test_one_message(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    assert (await admin.get(f"/queue/messages/{MESSAGE_ID}")).json()["state"] == "deferred"
    assert (await admin.post(f"/queue/messages/{MESSAGE_ID}/retry")).json()["state"] == "waiting"
    assert (await admin.post(f"/queue/messages/{MESSAGE_ID}/hold")).json()["state"] == "held"
    assert (await admin.post(f"/queue/messages/{MESSAGE_ID}/release")).json()["state"] == "waiting"
    assert (await admin.delete(f"/queue/messages/{MESSAGE_ID}")).status_code == 204
    assert relay.queue.deleted == [MESSAGE_ID]
    for act in ("retry", "hold", "release"):
        claimed = await admin.post(f"/queue/messages/{CLAIMED_ID}/{act}")
        assert (claimed.status_code, claimed.json()["state"]) == (409, "claimed")
    assert (await admin.get("/queue/messages/none")).status_code == 404


async def test_raw_is_the_file_and_is_closed(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    answer = await admin.get(f"/queue/messages/{MESSAGE_ID}/raw")
    assert answer.content == b"From: a@example.org\r\n\r\nhi\r\n"
    assert answer.headers["content-type"] == "message/rfc822"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"a____udcff.eml\"; filename*=UTF-8''a%22%0D%0A%5Cudcff.eml"
    )
    assert relay.queue.raws[0].closed


async def test_bulk_acts(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    answer = await admin.post(
        "/queue/messages/retry", json={"filter": {"state": "badmail", "account": "office"}, "dry_run": True}
    )
    assert answer.status_code == 202
    assert answer.headers["location"] == "/operations/o1"
    assert answer.json()["filter"] == {
        "state": "badmail", "directory": None, "account": "office", "recipient": None, "code": None
    }  # fmt: skip
    await admin.post("/queue/messages/hold", json={"all": True})
    await admin.post("/queue/messages/release", json={"filter": {"recipient": "a@b.c"}})
    await admin.post("/queue/messages/delete", json={"filter": {"code": 550}})
    assert [(act, empty, dry) for act, _, empty, dry in relay.operations.started] == [
        (BulkAct.RETRY, False, True),
        (BulkAct.HOLD, True, False),
        (BulkAct.RELEASE, False, False),
        (BulkAct.DELETE, False, False),
    ]
    assert relay.operations.started[0][1] == QueueFilter(state=State.BADMAIL, account="office")
    assert pointers(await admin.post("/queue/messages/delete", json={})) == {"/filter": "empty"}
    wrong = await admin.post("/queue/messages/delete", json={"filter": {"stat": "x"}})
    assert pointers(wrong) == {"/filter/stat": "unknown_field"}
    done = (await admin.get("/operations/o1")).json()
    assert (done["matched"], done["done"], done["skipped"], done["failed"]) == (3, 2, 1, 0)
    assert (await admin.get("/operations/o2")).status_code == 404


async def test_reasons_and_alerts(admin: httpx.AsyncClient) -> None:
    reasons = (await admin.get("/queue/reasons")).json()
    assert reasons["items"][0] == {
        "blame": "account",
        "account": "office",
        "code": 535,
        "enhanced_code": "5.7.8",
        "text": "no",
        "messages": 7,
        "oldest_seconds": 60,
        "remedy": "give the right password",
    }
    assert (await admin.get("/alerts")).json()["items"][0]["severity"] == "error"


# --- drain -----------------------------------------------------------------------------------------------------------


async def test_a_drain_waits_for_its_end(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    answer = await admin.post("/drain")
    assert answer.status_code == 200
    assert answer.json() == {
        "id": "d1",
        "state": "done",
        "complete": True,
        "stopped": False,
        "sent": 1,
        "deferred": 0,
        "failed": 0,
        "unknown": 0,
        "started_at": "2027-01-15T08:00:00.000Z",
        "duration_seconds": 0.123,
        "recipients": {"sent": 2, "deferred": 0, "failed": 0, "unknown": 0},
        "directories": [
            {
                "directory": "pickup",
                "sent": 1,
                "deferred": 0,
                "failed": 0,
                "unknown": 0,
                "skipped": None,
                "remaining": 1,
                "blocked": [{"reason": "account_paused", "account": "office", "until": None, "count": 1}],
            }
        ],
    }
    wanted = {"directories": ["b", "a", "b"], "include_deferred": True, "timeout_seconds": 5}
    await admin.post("/drain", json=wanted)
    assert relay.drains.requests == [DrainRequest(None, False, 300), DrainRequest(("b", "a"), True, 5)]
    assert relay.drains.waited == [300, 5]


async def test_a_drain_that_goes_on(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    at_once = await admin.post("/drain?wait=false")
    assert (at_once.status_code, at_once.headers["location"]) == (202, "/drains/d1")
    assert relay.drains.waited == []
    relay.drains.instant = True  # over by the time of the answer: scripts look for Location all the same
    assert (await admin.post("/drain?wait=false")).status_code == 202
    relay.drains.instant = False
    relay.drains.slow = True
    late = await admin.post("/drain", json={"timeout_seconds": 0})
    assert (late.status_code, late.headers["location"], late.json()["state"]) == (202, "/drains/d1", "running")
    assert (await admin.get("/drains/d1")).json()["state"] == "done"
    assert (await admin.delete("/drains/d1")).json()["stopped"] is True
    assert (await admin.get("/drains/x")).status_code == 404
    assert pointers(await admin.post("/drain", json={"directories": ["a", "none"]})) == {
        "/directories/1": "unknown_directory"
    }


# --- messages --------------------------------------------------------------------------------------------------------


async def test_a_mail_is_handed_in_as_it_comes(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"From: a@b.c\n"
        yield b""
        yield b"\nhi\xff"

    answer = await admin.post(
        "/messages?directory=pickup",
        content=stream(),
        headers={"Idempotency-Key": "k-1", "Content-Type": "Message/RFC822"},
    )
    assert answer.status_code == 202, answer.text
    assert answer.json() == {"id": MESSAGE_ID, "directory": "pickup", "size_bytes": 16, "replayed": False}
    assert relay.messages.submitted == [("pickup", b"From: a@b.c\n\nhi\xff", "k-1")]


async def test_mails_that_are_not_taken(admin: httpx.AsyncClient, relay: FakeRelay, settings: Settings) -> None:
    assert pointers(await admin.post("/messages?directory=pickup")) == {"": "required"}
    assert pointers(await admin.post("/messages", content=b"x")) == {"query/directory": "required"}
    bad_key = await admin.post("/messages?directory=pickup", content=b"x", headers={"Idempotency-Key": "a b"})
    assert pointers(bad_key) == {"header/idempotency-key": "wrong_form"}
    large = await admin.post("/messages?directory=pickup", content=b"x" * (1 << 21))
    assert (large.status_code, large.json()["type"]) == (413, "urn:mpu:problem:too_large")
    headers = {"Content-Length": str(settings.max_submit_bytes + 1)}
    assert (await admin.post("/messages?directory=pickup", content=b"x", headers=headers)).status_code == 413
    assert relay.messages.submitted == []


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (NotFound("directory", "pickup"), 404, None),
        (StorageFull("no space left"), 507, "5"),
        (DirectoryUnavailable("unmounted"), 503, "5"),
        (NotRunning("stopping"), 503, "5"),
        (TooMany("100 drains are open"), 429, "5"),
        (DatabaseUnavailable("locked"), 503, "5"),
        (MessageRejected("5.6.0", "no mail"), 422, None),
        (MessageRejected("5.3.4", "too large"), 413, None),
        (RelayError("odd"), 500, None),
    ],
)
async def test_errors_of_the_relay(
    admin: httpx.AsyncClient, relay: FakeRelay, error: RelayError, status: int, retry_after: str | None
) -> None:
    relay.messages.error = error
    answer = await admin.post("/messages?directory=pickup", content=b"x")
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry_after)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == error.detail


async def test_life_and_explanation(admin: httpx.AsyncClient) -> None:
    life = (await admin.get(f"/messages/{MESSAGE_ID}")).json()
    assert life["attempts"][0]["phase"] == "rcpt"
    assert life["recipients"][0]["status"] == "deferred"
    assert life["acts"] == [{"at": "2027-01-15T08:00:00.000Z", "key": "first key", "act": "retry", "detail": ""}]
    assert (await admin.get("/messages/none")).status_code == 404
    explained = await admin.post("/messages/explain?directory=pickup", content=b"a: b\n\n")
    assert explained.json()["stripped"] == ["Bcc"]
    assert pointers(await admin.post("/messages/explain?directory=pickup")) == {"": "required"}


# --- history ---------------------------------------------------------------------------------------------------------


async def test_history(admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    for number in range(5):
        await relay.store.ledger.settle(
            database.entry(f"{number}.eml", ("anna@example.com", "bert@example.org"), at=database.START + number)
        )
    await relay.store.ledger.settle(database.entry("quoted.eml", ('"a b"@example.org',)))
    await relay.store.ledger.settle(database.entry("no.eml", ("carl@example.org",), what=Outcome.FAILED))

    async def rows(query: str) -> list[str]:
        answer = await admin.get(f"/history?{query}")
        assert answer.status_code == 200, answer.text
        return [row["recipient"] for row in answer.json()["items"]]

    assert len(await rows("")) == 12
    assert await rows("status=failed") == ["carl@example.org"]
    assert len(await rows("recipient=@example.org")) == 7
    assert len(await rows("recipient=anna@example.com&sender=shop@example.net&directory=web&account=main")) == 5
    assert await rows("recipient=%22a%20b%22@example.org") == ['"a b"@example.org']
    assert await rows("internet_message_id=%3Cno.eml@example.net%3E") == ["carl@example.org"]
    assert await rows("since=2098-01-01T00:00:00Z") == []
    assert len(await rows("until=2098-01-01T00:00:00%2B01:00")) == 12
    assert await rows("status=deleted") == []
    seen: list[tuple[str, str]] = []
    cursor = ""
    while True:
        page = (await admin.get(f"/history?limit=4{cursor}")).json()
        seen += [(row["message_id"], row["recipient"]) for row in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert len(seen) == len(set(seen)) == 12
    assert seen[0] == (database.message_id("no.eml"), "carl@example.org")


@pytest.mark.parametrize(
    ("query", "pointer", "code"),
    [
        ("status=lost", "query/status", "not_allowed"),
        ("since=yesterday", "query/since", "wrong_form"),
        ("since=2026-01-01T00:00:00", "query/since", "wrong_form"),
        ("since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "query/until", "out_of_range"),
        ("cursor=x", "query/cursor", "bad_cursor"),
    ],
)
async def test_wrong_history_filters(admin: httpx.AsyncClient, query: str, pointer: str, code: str) -> None:
    assert pointers(await admin.get(f"/history?{query}")) == {pointer: code}


# --- health, settings, keys ------------------------------------------------------------------------------------------


async def test_health(nobody: httpx.AsyncClient, admin: httpx.AsyncClient, relay: FakeRelay) -> None:
    assert (await nobody.get("/health/live")).json() == {"status": "live"}
    for status, code in (("ready", 200), ("degraded", 200), ("unavailable", 503)):
        relay.status = status
        answer = await nobody.get("/health/ready")
        assert (answer.status_code, answer.json()) == (code, {"status": status})
    assert (await admin.get("/health")).json() == {"status": "unavailable", "parts": []}
    metrics = await admin.get("/metrics")
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert (await admin.get("/version")).json()["version"] == "1.2.3"


async def test_settings_of_the_service(admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/settings")).json() == {
        "history_days": 90,
        "sender_routes": [],
        "read_only": {"port": 8025},
    }
    changed = await admin.patch("/settings", json={"history_days": 365})
    assert (changed.json()["history_days"], changed.headers["etag"]) == (365, '"365"')
    assert (await admin.patch("/settings", json={"history_days": None})).json()["history_days"] == 90
    routes = [{"senders": ["@x.example"], "accounts": ["office"]}]
    assert (await admin.patch("/settings", json={"sender_routes": routes})).json()["sender_routes"] == routes
    assert pointers(await admin.patch("/settings", json={"read_only": {}})) == {"/read_only": "read_only"}
    assert pointers(await admin.patch("/settings", json={"port": 1, "prot": 1})) == {
        "/port": "read_only",
        "/prot": "unknown_field",
    }


@pytest.mark.parametrize("spelling", ["2%20", "%202", "+2", "02", "2.0", "2_0", "%D9%A2", "1" * 5000])
async def test_a_key_is_deleted_by_its_number_and_no_other_spelling(admin: httpx.AsyncClient, spelling: str) -> None:
    for name in ("second", "third"):
        await admin.post("/keys", json={"name": name, "scopes": ["admin"]})
    assert list(pointers(await admin.delete(f"/keys/{spelling}"))) == ["path/id"]
    assert len((await admin.get("/keys")).json()["items"]) == 3
    assert (await admin.delete("/keys/2")).status_code == 204


@pytest.mark.parametrize("path", ["/accounts", "/directories", "/keys", "/audit", "/history"])
@pytest.mark.parametrize("cursor", ["AAA", "QQ", "YQ==", "YR", "LWE", "YQo", ""])  # "YQ" is a page of accounts behind a
async def test_cursors_that_no_list_gave(admin: httpx.AsyncClient, path: str, cursor: str) -> None:
    assert pointers(await admin.get(path, params={"cursor": cursor})) == {"query/cursor": "bad_cursor"}


async def test_keys_are_shown_once(admin: httpx.AsyncClient, nobody: httpx.AsyncClient, relay: FakeRelay) -> None:
    made = await admin.post("/keys", json={"name": "grafana", "scopes": ["read"], "expires_at": "2099-01-01T00:00:00Z"})
    assert made.status_code == 201
    secret = made.json()["key"]
    assert secret.startswith("mpu_")
    assert len(secret) >= 4 + 43  # 256 bit in base64url
    assert made.json()["prefix"] == secret[:12]
    listed = await admin.get("/keys")
    assert secret not in listed.text
    assert [key["name"] for key in listed.json()["items"]] == ["admin", "grafana"]
    assert listed.json()["items"][1]["last_used_at"] is None
    headers = {"Authorization": f"Bearer {secret}"}
    assert (await nobody.get("/queue", headers=headers)).status_code == 200
    await relay.store.write(lambda _session: None)  # behind the note of its use
    assert (await admin.get("/keys")).json()["items"][1]["last_used_at"] == "2027-01-15T08:00:00.000Z"
    assert made.headers["location"] == f"/keys/{made.json()['id']}"
    assert (await admin.delete(made.headers["location"])).status_code == 204
    assert (await nobody.get("/queue", headers=headers)).status_code == 401
    assert (await admin.delete(made.headers["location"])).status_code == 404


async def test_the_last_admin_key_stays(admin: httpx.AsyncClient, client_of: MakeClient) -> None:
    await client_of("operate")
    own = (await admin.get("/keys")).json()["items"][0]["id"]
    answer = await admin.delete(f"/keys/{own}")
    assert (answer.status_code, answer.json()["state"]) == (409, "last_admin_key")
    await client_of("admin")
    assert (await admin.delete(f"/keys/{own}")).status_code == 204


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"scopes": ["read"]}, {"/name": "required"}),
        ({"name": "x", "scopes": []}, {"/scopes": "too_short"}),
        ({"name": "x", "scopes": ["root"]}, {"/scopes/0": "not_allowed"}),
        ({"name": "x\n", "scopes": ["read"]}, {"/name": "wrong_form"}),
        ({"name": "x", "scopes": ["read"], "directories": ["shop"]}, {"/directories": "conflict"}),
        ({"name": "x", "scopes": ["submit"], "directories": ["shop"]}, {"/directories/0": "unknown_directory"}),
        ({"name": "x", "scopes": ["read"], "expires_at": "2001-01-01T00:00:00Z"}, {"/expires_at": "wrong_form"}),
        ({"name": "x", "scopes": ["read"], "key": "chosen"}, {"/key": "unknown_field"}),
        (
            {"name": "x", "scopes": ["read"], "id": 7, "prefix": "mpu_", "last_used_at": None, "pause": None},
            {"/id": "read_only", "/prefix": "read_only", "/last_used_at": "read_only", "/pause": "unknown_field"},
        ),
    ],
)
async def test_wrong_keys(admin: httpx.AsyncClient, body: dict[str, object], expected: dict[str, str]) -> None:
    assert pointers(await admin.post("/keys", json=body)) == expected


@pytest.mark.parametrize("path", ["/messages", "/messages/explain"])
async def test_a_client_that_hangs_up_in_the_middle(
    app: FastAPI, admin: httpx.AsyncClient, relay: FakeRelay, path: str
) -> None:
    incoming = [
        {"type": "http.request", "body": b"From: a@b.c\n", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", admin.headers["authorization"].encode())]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"directory=pickup", "headers": headers}
    await app({**scope, "scheme": "http", "server": ("mpu.test", 80), "root_path": ""}, receive, send)
    assert sent[0]["status"] == 400
    assert relay.messages.submitted == []


async def test_a_mail_larger_than_all_may_be(
    admin: httpx.AsyncClient, relay: FakeRelay, app: FastAPI, settings: Settings
) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 1000

    app.state.settings = settings.model_copy(update={"max_submit_bytes": 2500})
    answer = await admin.post("/messages?directory=pickup", content=stream())
    assert answer.status_code == 413
    assert "MPU_MAX_SUBMIT_BYTES" in answer.text
