"""The commands that talk to a service, against a real HTTP server with laid answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.command import mpu
from tests.support.http_answers import Answers, http_answers

TIME = "2026-03-01T02:03:04.567Z"
COUNTS = {"waiting": 3, "claimed": 0, "deferred": 1, "held": 0, "badmail": 2, "bytes": 2048, "oldest_seconds": 130}
OUTCOMES = {"sent": 3, "deferred": 0, "failed": 0, "unknown": 0}
ROW: dict[str, Any] = {**OUTCOMES, "directory": "inbox", "skipped": None, "remaining": 0, "blocked": []}
DRAIN = {
    **OUTCOMES,
    "id": "d1",
    "state": "done",
    "complete": True,
    "stopped": False,
    "started_at": TIME,
    "duration_seconds": 1.25,
    "recipients": {**OUTCOMES, "sent": 5},
    "directories": [ROW],
}
MESSAGE: dict[str, Any] = {
    "id": "inbox.eC5lbWw.0a1b2c3d",
    "directory": "inbox",
    "file_name": "x.eml",
    "state": "deferred",
    "size_bytes": 700,
    "arrived_at": TIME,
    "waiting_for": None,
    "due_at": TIME,
    "attempts": 2,
    "first_attempt_at": TIME,
    "account": "office",
    "code": 451,
    "enhanced_code": "4.3.0",
    "reason": "try \x1b[2Jlater",
    "possible_duplicate": False,
}
OPERATION = {"id": "o1", "state": "done", "matched": 4, "done": 3, "skipped": 1, "failed": 0, "detail": ""}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    with http_answers() as answers:
        monkeypatch.setenv("MPU_URL", answers.url)
        monkeypatch.setenv("MPU_API_KEY", "k" * 32)
        yield answers


def asked(service: Answers, method: str = "POST") -> list[tuple[str, Any]]:
    assert {call.key for call in service.asked} == {"Bearer " + "k" * 32}
    return [(call.path, call.body) for call in service.asked if call.method == method]


def test_queue_shows_counts(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    service.lay("GET /queue", {"items": [{**COUNTS, "directory": "inbox"}], "totals": COUNTS})
    assert mpu("queue") == 0
    head, row, total = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["directory", "waiting", "claimed", "deferred", "held", "badmail", "size", "oldest"]
    assert row == ["inbox", "3", "0", "1", "0", "2", "2.0", "KiB", "2", "min"]
    assert total[0] == "total"


def test_queue_lists_messages_page_by_page(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    service.lay("GET /queue/messages?state=deferred&limit=3", {"items": [MESSAGE, MESSAGE], "next": "c"})
    service.lay("GET /queue/messages?state=deferred&limit=1&cursor=c", {"items": [MESSAGE], "next": "d"})
    assert mpu("queue", "--state", "deferred", "--limit", "3") == 0
    shown = capsys.readouterr().out
    assert shown.count(MESSAGE["id"]) == 3
    assert "451 4.3.0 try \\x1b[2Jlater" in shown
    assert "only the first 3" in shown


def test_json_is_what_the_service_said(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    service.lay("GET /queue/messages?limit=50", {"items": [MESSAGE], "next": None})
    assert mpu("queue", "--messages", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"items": [MESSAGE]}


def test_reasons(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"blame": "account", "account": "office", "code": 535, "enhanced_code": "5.7.8", "text": "no", "messages": 7}
    service.lay("GET /queue/reasons", {"items": [{**row, "oldest_seconds": 5, "remedy": "set the password"}]})
    assert mpu("queue", "--reasons") == 0
    assert "535 5.7.8 no" in capsys.readouterr().out


def test_drain_follows_to_the_end(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    service.lay("GET /queue", {"items": [], "totals": COUNTS})
    service.lay("POST /drain?wait=false", {**DRAIN, "state": "running", "complete": False}, 202)
    service.lay("GET /drains/d1", {**DRAIN, "state": "running", "complete": False})
    service.lay("GET /drains/d1", DRAIN)
    assert mpu("drain", "inbox", "--include-deferred") == 0
    assert asked(service) == [("/drain?wait=false", {"directories": ["inbox"], "include_deferred": True})]
    assert "3 messages sent (5 recipients)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "left",
    [
        {"deferred": 1},
        {"failed": 1},
        {"unknown": 1},
        {"complete": False, "state": "stopped"},
        {"directories": [{**ROW, "skipped": "paused"}]},
        {
            "directories": [
                {**ROW, "blocked": [{"reason": "account_paused", "account": "office", "until": TIME, "count": 4}]}
            ]
        },
    ],
)
def test_drain_says_when_something_is_left(
    service: Answers, capsys: pytest.CaptureFixture[str], left: dict[str, Any]
) -> None:
    service.lay("GET /queue", {"items": [], "totals": COUNTS})
    service.lay("POST /drain?wait=false", {**DRAIN, **left}, 202)
    assert mpu("drain") == 1
    shown = capsys.readouterr().out
    assert "paused" in shown or "directories" not in left
    assert "4 account paused (office) until" in shown or "office" not in str(left)


def test_drain_without_waiting(service: Answers) -> None:
    service.lay("POST /drain?wait=false", {**DRAIN, "state": "running", "complete": False}, 202)
    assert mpu("drain", "--no-wait", "--json") == 0
    assert [call.path for call in service.asked] == ["/drain?wait=false"]


def test_history(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "message_id": MESSAGE["id"],
        "internet_message_id": "<1@x>",
        "directory": "inbox",
        "sender": "",
        "recipient": "jo@example.org",
        "subject": "=cmd()",
        "status": "sent",
        "account": "office",
        "server": "mx:25",
        "code": 250,
        "enhanced_code": None,
        "text": "ok",
        "attempts": 1,
        "size_bytes": 1,
        "arrived_at": TIME,
        "at": TIME,
        "possible_duplicate": True,
    }
    query = "recipient=%40example.org&since=2026-03-01T00%3A00%3A00%2B00%3A00&limit=50"
    service.lay(f"GET /history?{query}", {"items": [row], "next": None})
    assert mpu("history", "--recipient", "@example.org", "--since", "2026-03-01T00:00:00+00:00") == 0
    shown = capsys.readouterr()
    assert "sent (maybe twice)" in shown.out, shown.err
    assert mpu("history", "--since", "yesterday") == 2


def test_the_life_of_a_message(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    recipient = {"recipient": "jo@x", "status": "sent", "account": "a", "code": 250, "enhanced_code": None, "text": ""}
    attempt = {"number": 1, "started_at": TIME, "server": "mx:25", "phase": "dot", "outcome": "sent", **recipient}
    life = {**MESSAGE, "internet_message_id": "<1@x>", "sender": "a@b", "subject": "hello", "recipients": [recipient]}
    service.lay(f"GET /messages/{MESSAGE['id']}", {**life, "attempts": [attempt]})
    assert mpu("history", "--message", MESSAGE["id"]) == 0
    shown = capsys.readouterr().out
    assert "hello" in shown
    assert "mx:25" in shown


def test_retry_by_id_and_by_filter(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    service.lay(f"POST /queue/messages/{MESSAGE['id']}/retry", MESSAGE)
    assert mpu("retry", MESSAGE["id"]) == 0
    service.lay("POST /queue/messages/retry", {**OPERATION, "state": "running", "done": 0}, 202)
    service.lay("GET /operations/o1", OPERATION)
    assert mpu("retry", "--state", "badmail", "--directory", "inbox") == 0
    body = {"filter": {"state": "badmail", "directory": "inbox"}, "all": False, "dry_run": False}
    assert asked(service)[1] == ("/queue/messages/retry", body)
    assert "3 of 4 messages are tried again; 1 skipped" in capsys.readouterr().out


def test_retry_fails_aloud(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    service.lay("POST /queue/messages/retry", {**OPERATION, "failed": 2, "detail": "no right"}, 202)
    assert mpu("retry", "--all", "--json") == 1
    assert "2 failed" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("id", "--all"), ("id", "--dry-run"), ("id", "--state", "badmail")])
def test_retry_wants_to_know_what(service: Answers, arguments: tuple[str, ...]) -> None:
    assert mpu("retry", *arguments) == 2
    assert service.asked == []


def test_the_check_of_an_account(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    step: dict[str, Any] = {"seconds": 0.012, "required": True, "ok": True, "code": "", "cause": "", "remedy": ""}
    login = {
        "ok": False,
        "detail": "535 5.7.139 \x1b[2J",
        "code": "account_locked",
        "cause": "The user is locked.",
        "remedy": "Unlock him.",
    }
    steps = [
        {**step, "step": "dns", "detail": "192.0.2.1 (1 IPv4)"},
        {**step, "step": "extension_dsn", "ok": False, "required": False, "detail": "no", "cause": "No reports."},
        {**step, "step": "login", "seconds": 2.34, **login},
    ]
    service.lay("POST /accounts/office/check", {"ok": False, "steps": steps})
    service.lay("POST /accounts/office/check", {"ok": True, "steps": steps[:2]})
    assert mpu("account", "check", "office") == 1
    shown = capsys.readouterr().out
    rows = [line.split(maxsplit=4) for line in shown.splitlines()[1:4]]
    assert [row[:4] for row in rows] == [
        ["dns", "ok", "12", "ms"],
        ["extension_dsn", "note", "12", "ms"],
        ["login", "FAILED", "2.3", "s"],
    ]
    assert "\\x1b[2J" in shown
    assert "login FAILED: The user is locked.\n  What to do: Unlock him.\n" in shown
    assert shown.index("login FAILED") < shown.index("extension_dsn note: No reports."), "what matters comes first"
    assert "office does not work" in shown
    assert mpu("account", "check", "office", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_problems_are_told_in_words(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {
        "title": "Something is wrong",
        "detail": "no such state",
        "remedy": "use one of those",
        "errors": [{"pointer": "query/state", "code": "enum", "detail": "is none of waiting, ..."}],
        "required_scope": "read",
    }
    service.lay("GET /queue/messages?state=odd&limit=50", problem, 422)
    assert mpu("queue", "--state", "odd") == 1
    shown = capsys.readouterr().err
    for words in ("no such state (422)", "use one of those", "query/state: is none of", "'read' is needed"):
        assert words in shown
    service.lay("GET /queue", "<html>", 502)
    assert mpu("queue") == 1
    assert "(502)" in capsys.readouterr().err


def test_an_error_is_told_once(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    errors = [{"pointer": "/directories/0", "code": "not_found", "detail": "there is no directory 'nosuch'"}]
    errors.append({"pointer": "/more", "code": "required", "detail": "is needed"})
    problem = {"detail": "/directories/0: there is no directory 'nosuch'", "errors": errors}
    service.lay("GET /queue", problem, 422)
    assert mpu("queue") == 1
    assert capsys.readouterr().err.splitlines() == [
        "mpu: /directories/0: there is no directory 'nosuch' (422)",
        "mpu: /more: is needed",
    ]


def test_another_service_is_told_from_mpu(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    service.lay("GET /queue", "<html>hello")
    assert mpu("queue") == 1
    assert "is not MPU" in capsys.readouterr().err


def test_a_file_that_is_no_key_is_not_shown(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    assert mpu("queue", "--key-file", "/etc/passwd") == 1
    shown = capsys.readouterr()
    assert "holds no API key" in shown.err
    assert "root:" not in shown.out + shown.err
    assert service.asked == []


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with http_answers() as gone:
        url = gone.url
    monkeypatch.setenv("MPU_API_KEY", "k" * 32)
    assert mpu("queue", "--url", url) == 4
    assert "does not answer" in capsys.readouterr().err
    assert mpu("health", "--url", url) == 1


def test_health(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    service.lay("GET /health/ready", {"status": "degraded"})
    assert mpu("health") == 0
    assert capsys.readouterr().out == "degraded\n"
    service.lay("GET /health/live", "<html> bad gateway", 502)
    assert mpu("health", "--live") == 1
    assert capsys.readouterr().out == "<html> bad gateway\n"
