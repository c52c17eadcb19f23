"""From a file in a pickup directory to a mail server, and what becomes of the file."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import core.delivery
from core.delivery import Delivered
from core.domain.account import Directory, OnUnknown
from core.domain.outcome import Outcome
from core.domain.routing import Refusal
from core.spool.directory import DirectorySpool, Opened
from tests.support.clock import ManualClock
from tests.support.relay import SIMPLE, account, mail, running, until
from tests.support.service import wait_until
from tests.support.smtp_server import DEFAULT_EXTENSIONS, Close, Hang, Script, SmtpServer

DOTNET = (
    b"X-Sender: shop@example.com\r\n"
    b"X-Receiver: jo@example.org\r\n"
    b"X-Receiver: audit@example.com\r\n"
    b"MIME-Version: 1.0\r\n"
    b"From: shop@example.com\r\n"
    b"To: jo@example.org\r\n"
    b"Date: 24 Nov 2026 10:00:00 +0100\r\n"
    b"Message-ID: <1@dotnet>\r\n"
    b"Subject: Dots\r\n"
    b"Content-Type: text/plain; charset=us-ascii\r\n"
    b"\r\n"
    b"first\r\n"
    b"..second\r\n"
    b"last\r\n"
)
DOTNET_SENT = DOTNET.partition(b"audit@example.com\r\n")[2].replace(b"\r\n..", b"\r\n.")

VARIANTS = {
    "plain": ["8BITMIME", "SIZE 52428800"],
    "pipelining": list(DEFAULT_EXTENSIONS),
    "chunking": ["8BITMIME", "SIZE 52428800", "CHUNKING"],
    "pipelining and chunking": [*DEFAULT_EXTENSIONS, "CHUNKING"],
}


@pytest.mark.parametrize("variant", VARIANTS)
async def test_a_file_of_dotnet_arrives_as_meant_with_bcc_hidden(tmp_path: Path, variant: str) -> None:
    async with (
        SmtpServer(Script(extensions=VARIANTS[variant])) as server,
        running(tmp_path, [account(server)], watch=True) as bench,
    ):
        bench.drop("a.eml", DOTNET)
        await until(lambda: server.messages and not bench.names(), "delivery")
        (taken,) = server.messages
        assert taken.sender == "shop@example.com"
        assert taken.to == ["jo@example.org", "audit@example.com"]
        assert taken.body == DOTNET_SENT
        assert await bench.history() == {"jo@example.org": "sent", "audit@example.com": "sent"}


async def test_a_file_that_was_there_before_the_start_goes_out(tmp_path: Path) -> None:
    (tmp_path / "spool" / "pickup").mkdir(parents=True)
    (tmp_path / "spool" / "pickup" / "a.eml").write_bytes(SIMPLE)
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        await until(lambda: server.messages and not bench.names(), "delivery")


async def test_each_recipient_has_its_own_outcome_and_is_sent_to_once(tmp_path: Path) -> None:
    clock = ManualClock()
    script = Script(rcpt={"later@b.example": "450 4.2.0 try later", "never@b.example": "550 5.1.1 no such user"})
    async with SmtpServer(script) as server, running(tmp_path, [account(server)], clock=clock) as bench:
        bench.drop("a.eml", mail(1, to="now@b.example, later@b.example, never@b.example"))
        result = await bench.drain()
        assert result["recipients"] == {"sent": 1, "deferred": 1, "failed": 1, "unknown": 0}
        assert bench.names() == ["a.eml"]
        (queued,) = (await bench.get("/queue/messages"))["items"]
        assert (queued["state"], queued["attempts"]) == ("deferred", 1)
        # not due yet: nothing happens
        assert (await bench.drain())["deferred"] == 0
        script.rcpt.clear()
        clock.advance(67)
        result = await bench.drain()
        assert [taken.to for taken in server.messages] == [["now@b.example"], ["later@b.example"]]
        # one recipient was refused for good: to badmail, where a retry asks only that one again
        assert bench.names() == ["badmail"]
        assert sorted(p.name for p in (bench.paths["pickup"] / "badmail").iterdir()) == ["a.eml", "a.eml.reason.txt"]
        assert "no such user" in (bench.paths["pickup"] / "badmail" / "a.eml.reason.txt").read_text()
        assert await bench.history() == {
            "now@b.example": "sent",
            "later@b.example": "sent",
            "never@b.example": "failed",
        }
        answer = await bench.http.post(f"/queue/messages/{queued['id']}/retry")
        assert answer.status_code == 200, answer.text
        await bench.drain()
        assert server.messages[-1].to == ["never@b.example"]
        await until(lambda: bench.names() == ["badmail"], "the file's end")
        assert await bench.history() == dict.fromkeys(["now@b.example", "later@b.example", "never@b.example"], "sent")
        life = await bench.get(f"/messages/{queued['id']}")
        assert [(act["key"], act["act"], act["detail"]) for act in life["acts"]] == [("MPU_API_KEY", "retry", "")]


async def test_no_reply_after_the_dot_is_unknown_tried_again_marked_and_held_at_last(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SmtpServer(Script(dot=Close())) as server, running(tmp_path, [account(server)], clock=clock) as bench:
        bench.drop("a.eml", SIMPLE)
        for expected in ("deferred", "deferred", "deferred", "held"):  # retried unknown_max (3) times
            result = await bench.drain()
            assert result["unknown"] == 1
            (queued,) = (await bench.get("/queue/messages"))["items"]
            assert queued["state"] == expected
            assert queued["possible_duplicate"] is True
            clock.advance(4000)
        life = await bench.get(f"/messages/{queued['id']}")
        assert [a["outcome"] for a in life["attempts"]] == ["unknown"] * 4
        assert [a["possible_duplicate"] for a in life["attempts"]][-1] is True
        assert [a["code"] for a in (await bench.get("/alerts"))["items"]] == ["held"]
        assert bench.names() == ["a.eml.hold"]


async def test_unknown_is_held_at_once_where_the_directory_says_so(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=Close())) as server:
        pickup = Directory("pickup", str(tmp_path / "spool" / "p"), ("main",), on_unknown=OnUnknown.HOLD, watch=True)
        async with running(tmp_path, [account(server)], pickups=[pickup]) as bench:
            bench.drop("a.eml", SIMPLE)
            await until(lambda: bench.names() == ["a.eml.hold"], "the hold")


async def test_a_close_before_the_dot_is_a_plain_retry(tmp_path: Path) -> None:
    async with SmtpServer(Script(data=Close())) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", SIMPLE)
        result = await bench.drain()
        assert (result["deferred"], result["unknown"]) == (1, 0)
        (queued,) = (await bench.get("/queue/messages"))["items"]
        assert queued["possible_duplicate"] is False


async def test_more_recipients_than_a_transaction_may_have_are_split(tmp_path: Path) -> None:
    names = [f"r{n}@b.example" for n in range(25)]
    async with SmtpServer() as server, running(tmp_path, [account(server, recipients_per_message=10)]) as bench:
        bench.drop("a.eml", mail(1, to=", ".join(names)))
        await bench.drain()
        assert [len(taken.to) for taken in server.messages] == [10, 10, 5]
        assert [r for taken in server.messages for r in taken.to] == names
        assert bench.names() == []


async def test_a_server_that_takes_fewer_recipients_gets_the_rest_at_once(tmp_path: Path) -> None:
    names = [f"r{n}@b.example" for n in range(4)]
    script = Script(rcpt={"r2@b.example": ["452 4.5.3 too many recipients", None]})
    async with SmtpServer(script) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1, to=", ".join(names)))
        result = await bench.drain()
        assert result["recipients"]["sent"] == 4
        assert [taken.to for taken in server.messages] == [
            ["r0@b.example", "r1@b.example", "r3@b.example"],
            ["r2@b.example"],
        ]


async def test_what_can_never_be_sent_goes_to_badmail_and_the_others_go_on(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("bad.eml", b"this is no mail at all\r\n")
        bench.drop("good.eml", SIMPLE)
        result = await bench.drain()
        assert (result["sent"], result["failed"]) == (1, 1)
        assert bench.names() == ["badmail"]
        assert (bench.paths["pickup"] / "badmail" / "bad.eml.reason.txt").read_text().strip()


async def test_a_message_is_given_up_after_its_time_and_five_attempts(tmp_path: Path) -> None:
    clock = ManualClock()
    pickup = Directory(
        "pickup", str(tmp_path / "spool" / "p"), ("main",), expire_after_seconds=200, retry_max_seconds=60, watch=False
    )
    async with SmtpServer(Script(rcpt={"*": "450 4.2.0 later"})) as server:
        async with running(tmp_path, [account(server)], pickups=[pickup], clock=clock) as bench:
            bench.drop("a.eml", SIMPLE)
            states = []
            for _ in range(6):
                await bench.drain()
                states.append(bench.names())
                clock.advance(67)
            assert states == [["a.eml"]] * 4 + [["badmail"]] * 2
            reason = (bench.paths["pickup"] / "badmail" / "a.eml.reason.txt").read_text()
            assert "given up after 5 attempts" in reason
            assert await bench.history() == {"jo@example.org": "failed"}


async def test_a_jump_of_the_clock_makes_no_mail_old(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SmtpServer(Script(rcpt={"*": "450 4.2.0 later"})) as server:
        async with running(tmp_path, [account(server)], clock=clock) as bench:
            bench.drop("a.eml", SIMPLE)
            for _ in range(7):
                await bench.drain()
                clock.advance(30 * 86_400)
            assert bench.names() == ["a.eml"]


async def test_the_added_date_and_message_id_stay_the_same(tmp_path: Path) -> None:
    clock = ManualClock()
    script = Script(dot=["451 4.3.0 later", None])
    async with SmtpServer(script) as server, running(tmp_path, [account(server)], clock=clock) as bench:
        bench.drop("a.eml", SIMPLE)
        await bench.drain()
        life = (await bench.get("/queue/messages"))["items"][0]
        before = (await bench.get(f"/messages/{life['id']}"))["internet_message_id"]
        clock.advance(100)
        await bench.drain()
        (taken,) = server.messages
        assert f"Message-ID: {before}\r\n".encode() in taken.body
        assert b"\r\nDate: " in taken.body or taken.body.startswith(b"Date: ")


@pytest.mark.parametrize("mtime", [-5, 2**34])
async def test_a_file_of_an_odd_time_goes_out_with_a_date(tmp_path: Path, mtime: int) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        path = bench.drop("a.eml", SIMPLE)
        os.utime(path, (mtime, mtime))
        await bench.drain()
        await until(lambda: server.messages and not bench.names(), "delivery")
        assert b"Date: " in server.messages[0].body


LARGE = b"0123456789abcdef\r\n" * 40_000  # over what is read at once, under what stays in memory
SIGNED = b"MIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary=b; protocol=x; micalg=x\r\n"


@pytest.mark.parametrize("room", [64 << 20, 1 << 20, 0])
async def test_the_room_for_large_mails_in_memory_comes_back_whatever_becomes_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(core.delivery, "KEPT_BYTES_ALL", room)
    script = Script(rcpt={"no@example.org": "550 5.1.1 unknown", "later@example.org": "451 4.3.0 later"})
    async with SmtpServer(script) as server, running(tmp_path, [account(server)]) as bench:
        bodies = {"jo@example.org": LARGE, "no@example.org": LARGE, "later@example.org": b"." + LARGE}
        for number, (to, body) in enumerate(bodies.items()):
            bench.drop(f"{number}.eml", mail(number, to=to, body=body))
        bench.drop("signed.eml", SIGNED + mail(8, body=LARGE + b"x" * 1000))  # never sendable
        bench.drop("none.eml", b"Subject: nobody\r\n\r\n" + LARGE)
        await bench.drain()
        assert [message.body.endswith(b"\r\n\r\n" + LARGE) for message in server.messages] == [True]
        assert bench.relay.delivery._kept == 0
        await bench.http.post("/accounts/main/pause", json={"reason": "test"})
        bench.drop("blocked.eml", mail(9, body=LARGE))
        await bench.drain()
        assert bench.relay.delivery._kept == 0


@pytest.mark.parametrize(
    ("data", "in_loop"),
    [
        (mail(1, body=LARGE), True),
        (mail(1, body=LARGE).replace(b"\r\n", b"\n"), False),
        (mail(1, body=LARGE.replace(b"\r\n", b"\n")), False),
        (mail(1, body=LARGE.replace(b"\r\n", b"\r")), False),
        (mail(1, body=LARGE).replace(b"@test>", b"@test.mail>"), False),
        (b"X-A: b\r\n" * 10_000 + mail(1, body=LARGE), False),
        (mail(1, body=LARGE * 2), False),
        (mail(1, body=b"short\r\n"), True),
    ],
    ids=["some 100 KB", "LF", "LF in the body", "CR in the body", "Rails", "long header", "over what is kept", "small"],
)
async def test_what_may_take_long_is_done_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, in_loop: bool
) -> None:
    """So that no file system and no mail holds up the others, or the HTTP interface."""
    threads: dict[str, threading.Thread] = {}

    def noted(name: str, of: Callable[..., Any]) -> Callable[..., Any]:
        def work(*args: object, **more: object) -> object:
            threads[name] = threading.current_thread()
            return of(*args, **more)

        return work

    for name in ("read_message", "judge"):
        monkeypatch.setattr(core.delivery, name, noted(name, getattr(core.delivery, name)))
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", data)
        await bench.drain()
        assert len(server.messages) == 1
    here = threading.current_thread()
    assert (threads["read_message"] is here) == (len(data) <= core.delivery.READ_INLINE_BYTES)
    assert (threads["judge"] is here) == in_loop


async def test_the_room_for_large_mails_comes_back_when_a_stop_cuts_them_off(tmp_path: Path) -> None:
    async with (
        SmtpServer(Script(data=Hang())) as server,
        running(tmp_path, [account(server)], watch=True, grace_seconds=0.1) as bench,
    ):
        bench.drop("a.eml", mail(1, body=LARGE))
        await until(lambda: "DATA" in server.commands, "the transaction")
        assert bench.relay.delivery._kept > len(LARGE)
        await bench.relay.stop()
        assert bench.relay.delivery._kept == 0


async def test_a_drain_waits_for_mail_that_an_event_claimed_before_its_scan_came_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        cycle = bench.relay.inlets.get("pickup").cycle
        loop, scan = asyncio.get_running_loop(), cycle.spool.scan
        path = bench.drop("a.eml", mail(1))

        def late() -> Iterator[bytes]:
            loop.call_soon_threadsafe(cycle.offer, b"a.eml")
            wait_until(lambda: not path.exists(), "the claim")
            yield from scan()

        monkeypatch.setattr(cycle.spool, "scan", late)
        answer = await bench.drain()
        assert (answer["sent"], answer["complete"]) == (1, True)
        assert await bench.history() == {"jo@example.org": "sent"}


class _PutsOff:
    """Delivers nothing."""

    def __init__(self) -> None:
        self.count = 0

    def had_more_than(self, count: int) -> bool:
        return self.count > count

    async def deliver(
        self,
        spool: DirectorySpool,
        directory: Directory,
        opened: Opened,
        settling: Callable[[], None],
        in_the_way: Callable[[], Refusal | None],
    ) -> Delivered:
        del directory, settling, in_the_way
        self.count += 1
        spool.release(opened)
        return Delivered(opened.identity, Outcome.DEFERRED)


async def test_a_drain_counts_a_message_once_however_often_it_comes_back_beside_its_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        cycle = bench.relay.inlets.get("pickup").cycle
        loop, scan, puts_off = asyncio.get_running_loop(), cycle.spool.scan, _PutsOff()
        monkeypatch.setattr(cycle, "_deliverer", puts_off)
        bench.drop("a.eml", mail(1))

        def late() -> Iterator[bytes]:
            for _ in range(3):
                before = puts_off.count
                loop.call_soon_threadsafe(functools.partial(cycle.offer, b"a.eml", event_seen=False))
                wait_until(functools.partial(puts_off.had_more_than, before), "the delivery")
                wait_until(lambda: not cycle.in_flight, "its end")
            yield from scan()

        monkeypatch.setattr(cycle.spool, "scan", late)
        answer = await bench.drain()
        assert puts_off.count == 3
        assert (answer["deferred"], answer["sent"]) == (1, 0)
