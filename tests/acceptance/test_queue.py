"""The queue as a list: pages over the files themselves."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from api.schemas.base import show_time
from core.domain.account import Directory
from tests.support.clock import ManualClock
from tests.support.relay import account, mail, running, until
from tests.support.smtp_server import Late, Script, SmtpServer


async def test_each_message_appears_once_over_all_pages_whatever_its_name(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        await bench.http.post("/pause")
        for number, name in enumerate(("b.eml", "a.eml", "ü.eml", "c d.eml")):
            bench.drop(name, mail(number))
        shown: list[str] = []
        query: dict[str, str] = {}
        while True:
            page = await bench.get("/queue/messages", limit=1, **query)
            shown += [message["file_name"] for message in page["items"]]
            if page["next"] is None:
                break
            query = {"cursor": page["next"]}
        assert shown == ["a.eml", "b.eml", "c d.eml", "ü.eml"]


async def test_the_longest_names_make_cursors_that_are_taken(tmp_path: Path) -> None:
    longest = "d" * 63
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        await bench.http.post("/pause")
        bench.paths[longest] = tmp_path / "spool" / longest
        bench.paths[longest].mkdir()
        settings = {"name": longest, "path": str(bench.paths[longest]), "accounts": ["main"]}
        assert (await bench.http.post("/directories", json=settings)).status_code == 201
        names = [letter * 125 + ".eml" for letter in "éü"]  # 254 octets, and one more
        for number, name in enumerate(names):
            bench.drop("x" + name, mail(number), longest)
        shown: list[str] = []
        query: dict[str, str] = {}
        while not shown or query:
            page = await bench.get("/queue/messages", limit=1, **query)
            shown += [message["file_name"] for message in page["items"]]
            query = {} if page["next"] is None else {"cursor": page["next"]}
            assert all(len(cursor) > 400 for cursor in query.values())
        assert shown == ["x" + name for name in names]


@pytest.mark.parametrize("cursor", ["x", "!!", "é", "YQ", "_wAAAA", "AAA", "AAAA", "cABhAGI", ""])
async def test_a_cursor_that_no_page_gave_is_refused_as_in_every_list(tmp_path: Path, cursor: str) -> None:
    async with running(tmp_path) as bench:
        answer = await bench.http.get("/queue/messages", params={"cursor": cursor})
        assert answer.status_code == 422
        assert [(e["pointer"], e["code"]) for e in answer.json()["errors"]] == [("query/cursor", "bad_cursor")]


async def test_a_mail_handed_over_by_http_is_accepted_though_it_is_sent_at_once(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)], watch=True) as bench:
        for number in range(20):
            answer = await bench.http.post(
                "/messages",
                params={"directory": "pickup"},
                content=mail(number),
                headers={"Content-Type": "message/rfc822", "Idempotency-Key": str(number)},
            )
            assert answer.status_code == 202, answer.text
        await until(lambda: len(server.messages) == 20 and not bench.names(), "delivery")
        again = await bench.http.post(
            "/messages",
            params={"directory": "pickup"},
            content=mail(0),
            headers={"Content-Type": "message/rfc822", "Idempotency-Key": "0"},
        )
        assert again.status_code == 202
        await bench.drain()
        assert len(server.messages) == 20


@pytest.mark.parametrize(
    ("path", "word", "code"),
    [
        ("/accounts/main", "account_paused", "operator"),
        ("/directories/pickup", "directory_paused", "paused"),
        ("", "directory_paused", "paused"),
    ],
)
async def test_what_a_pause_keeps_says_why_and_until_when(tmp_path: Path, path: str, word: str, code: str) -> None:
    """In the words of the reasons; of deferred mail the later of both times, and its last attempt's code."""
    clock = ManualClock()
    script = Script(rcpt={"jo@example.org": "450 4.2.0 later"})
    async with SmtpServer(script) as server, running(tmp_path, [account(server)], clock=clock) as bench:

        async def shown() -> tuple[object, ...]:
            (queued,) = (await bench.get("/queue/messages"))["items"]
            (reason,) = (await bench.get("/queue/reasons"))["items"]
            assert queued["reason"] == reason["text"]
            return queued["waiting_for"], queued["reason"], queued["due_at"], queued["code"]

        async def pause(reason: str, until: float | None) -> str | None:
            body = {"reason": reason, "until": None if until is None else show_time(until)}
            answer = await bench.http.post(f"{path}/pause", json=body)
            assert answer.status_code == 200, answer.text
            told = answer.json()
            ends: str | None = told.get("pause", told)["until"]
            return ends

        until = await pause("the provider moves", clock.now() + 86_400)
        assert until is not None
        bench.drop("a.eml", mail(1))
        assert await shown() == (word, f"{code}: the provider moves", until, None)
        await pause("for good", None)
        assert await shown() == (word, f"{code}: for good", None, None)
        await bench.http.post(f"{path}/resume")
        assert (await bench.drain())["deferred"] == 1
        (queued,) = (await bench.get("/queue/messages"))["items"]
        assert (queued["waiting_for"], queued["reason"]) == (None, "jo@example.org: 450 4.2.0 later (rcpt)")
        due = queued["due_at"]
        await pause("a moment", clock.now() + 1)
        assert await shown() == (word, f"{code}: a moment", due, 450)
        until = await pause("a day", clock.now() + 86_400)
        assert await shown() == (word, f"{code}: a day", until, 450)


async def test_a_directory_that_is_not_enabled_sends_nothing_however_it_is_asked(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SmtpServer(Script(rcpt={"*": ["450 4.2.0 later", None]})) as server:
        async with running(tmp_path, [account(server)], clock=clock) as bench:
            bench.drop("a.eml", mail(1))
            await bench.drain()
            (queued,) = (await bench.get("/queue/messages"))["items"]
            answer = await bench.http.patch("/directories/pickup", json={"enabled": False})
            assert answer.status_code == 200, answer.text
            for act in ("retry", "hold", "release"):
                answer = await bench.http.post(f"/queue/messages/{queued['id']}/{act}")
                assert answer.status_code == 200, answer.text
            result = await bench.drain(include_deferred=True)
            assert result["directories"][0]["skipped"] == "disabled"
            assert (server.messages, bench.names()) == ([], ["a.eml"])
            await bench.http.patch("/directories/pickup", json={"enabled": True})
            await until(lambda: server.messages and not bench.names(), "delivery")


@pytest.mark.parametrize("act", ["pause the directory", "pause all", "disable", "stop the drain", "delete", "stop"])
async def test_what_only_waits_for_its_turn_is_not_claimed_any_more(tmp_path: Path, act: str) -> None:
    """One connection, which waits for the reply to its dot; of what was looked at meanwhile nothing is sent."""
    when: dict[str, Any] = {"schedule": "0 0 1 1 *", "interval_seconds": None} if act == "stop the drain" else {}
    pickup = Directory("pickup", str(tmp_path / "spool" / "pickup"), ("main",), watch=False, **when)
    async with SmtpServer(Script(extensions=(), dot=[Late(0.5, "250 2.0.0 taken")])) as server:
        async with running(tmp_path, [account(server, max_connections=1)], pickups=[pickup]) as bench:
            for number in range(10):
                bench.drop(f"{number}.eml", mail(number))
            drain = (await bench.http.post("/drain", params={"wait": "false"}, json={})).json()["id"]
            cycle = bench.relay.inlets.get("pickup").cycle
            await until(lambda: "DATA" in server.commands and cycle.in_flight == 10, "the first")
            http = bench.http
            acts = {
                "pause the directory": partial(http.post, "/directories/pickup/pause", json={"reason": "x"}),
                "pause all": partial(http.post, "/pause", json={"reason": "x"}),
                "disable": partial(http.patch, "/directories/pickup", json={"enabled": False}),
                "stop the drain": partial(http.delete, f"/drains/{drain}"),
                "delete": partial(http.delete, "/directories/pickup"),
            }
            if act == "stop":
                bench.relay.begin_stop()
            else:
                answer = await acts[act]()
                assert answer.is_success, answer.text
            await until(lambda: not cycle.in_flight, "the end")
            assert len(server.messages) == 1
            assert len([name for name in bench.names() if name.endswith(".eml")]) == 9
            if act == "stop the drain":
                await bench.drain()
                assert len(server.messages) == 10


@pytest.mark.parametrize("act", ["hold", "delete"])
async def test_an_operator_gets_what_only_waits_for_its_turn(tmp_path: Path, act: str) -> None:
    async with SmtpServer(Script(extensions=(), dot=[Late(0.5, "250 2.0.0 taken")])) as server:
        async with running(tmp_path, [account(server, max_connections=1)]) as bench:
            for number in range(5):
                bench.drop(f"{number}.eml", mail(number))
            drain = (await bench.http.post("/drain", params={"wait": "false"}, json={})).json()["id"]
            cycle = bench.relay.inlets.get("pickup").cycle
            await until(lambda: "DATA" in server.commands and cycle.in_flight == 5, "the first")
            waiting = (await bench.get("/queue/messages", state="waiting"))["items"]
            assert len(waiting) == 4
            where = f"/queue/messages/{waiting[0]['id']}"
            answer = await (bench.http.post(f"{where}/hold") if act == "hold" else bench.http.delete(where))
            assert answer.is_success, answer.text
            await until(lambda: len(server.messages) == 4, "the others")
            await until(lambda: not cycle.in_flight, "the end")
            assert bench.names() == ([waiting[0]["file_name"] + ".hold"] if act == "hold" else [])
            assert (await bench.get(f"/drains/{drain}"))["sent"] == 4


async def test_one_drain_more_than_may_run_is_told_to_come_again(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=[Late(1, "250 2.0.0 taken")])) as server:
        async with running(tmp_path, [account(server)], open_drains_max=1) as bench:
            bench.drop("a.eml", mail(1))
            assert (await bench.http.post("/drain?wait=false")).status_code == 202
            answer = await bench.http.post("/drain?wait=false")
            assert (answer.status_code, answer.json()["type"]) == (429, "urn:mpu:problem:too_many")
            assert int(answer.headers["retry-after"]) > 0
            assert "MPU_OPEN_DRAINS_MAX" in answer.json()["remedy"]
            await until(lambda: not bench.relay.drains._register.open(), "the end of the first")
            await bench.drain()


async def test_a_mail_that_was_not_yet_looked_at_can_be_held_and_goes_later(tmp_path: Path) -> None:
    """A task that is cancelled before its first step never comes to its end."""
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1))
        cycle = bench.relay.inlets.get("pickup").cycle
        await cycle.ready()
        cycle.offer(b"a.eml", event_seen=True)
        assert cycle.in_flight == 1
        await cycle.let_go(b"a.eml")
        assert (cycle.in_flight, cycle._unsettled) == (0, 0)
        assert server.messages == []
        await bench.drain()
        assert len(server.messages) == 1


async def test_a_drain_that_is_cancelled_leaves_what_another_one_wants(tmp_path: Path) -> None:
    pickup = Directory(
        "pickup",
        str(tmp_path / "spool" / "pickup"),
        ("main",),
        watch=False,
        schedule="0 0 1 1 *",
        interval_seconds=None,
    )
    async with SmtpServer(Script(extensions=(), dot=[Late(0.5, "250 2.0.0 taken")])) as server:
        async with running(tmp_path, [account(server, max_connections=1)], pickups=[pickup]) as bench:
            for number in range(4):
                bench.drop(f"{number}.eml", mail(number))
            first = (await bench.http.post("/drain", params={"wait": "false"}, json={})).json()["id"]
            cycle = bench.relay.inlets.get("pickup").cycle
            await until(lambda: "DATA" in server.commands and cycle.in_flight == 4, "the first")
            other = asyncio.create_task(bench.drain())
            await until(lambda: all(len(who) == 2 for who in cycle._wanted.values()), "the other drain")
            assert (await bench.http.delete(f"/drains/{first}")).is_success
            assert (await other)["complete"]
            assert len(server.messages) == 4
