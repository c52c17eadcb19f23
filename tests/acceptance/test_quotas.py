"""Limits of accounts through the interface: each is kept, nothing is lost or refused for it, and it says until when."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from core.domain.account import Directory
from tests.support.clock import ManualClock
from tests.support.model import Fate, Mail
from tests.support.model_bench import CRASHES, ModelBench
from tests.support.relay import Bench, account, mail, running, until
from tests.support.smtp_server import Script, SmtpServer, Taken

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


BY_DRAINS: dict[str, Any] = {"watch": False, "interval_seconds": None, "schedule": "0 0 1 1 *"}


def pickup_of(tmp_path: Path, *accounts: str) -> list[Directory]:
    """One that sends when the test drains, and at no other time: what a drain counts is all that went."""
    return [Directory("pickup", str(tmp_path / "spool" / "pickup"), accounts, **BY_DRAINS)]


class CountingServer(SmtpServer):
    """Writes down by the test's clock when it took what."""

    def __init__(self, clock: ManualClock, **options: Any) -> None:
        super().__init__(**options)
        self.clock = clock
        self.counts: list[tuple[float, int]] = []

    def take(self, message: Taken, body: bytes) -> None:
        self.counts.append((self.clock.now(), len(message.recipients)))
        super().take(message, body)

    def most_in_any(self, span: float, *, recipients: bool = False) -> int:
        """The most that it took in any window of that length."""
        times = [(at, count if recipients else 1) for at, count in self.counts]
        return max(sum(c for t, c in times if start <= t < start + span) for start, _ in times)


async def number_of(server: CountingServer, count: int) -> None:
    await until(lambda: len(server.counts) == count, f"message {count}")


async def pass_time(bench: Bench, clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds)
    bench.relay.outlets.quotas.look_again()


def seconds_of(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def blocked(result: dict[str, Any]) -> list[tuple[str, str, int]]:
    return [(b["reason"], b["account"], b["count"]) for row in result["directories"] for b in row["blocked"]]


@pytest.mark.parametrize(
    ("setting", "limit", "recipients", "span", "at_once", "step"),
    [
        ("messages_per_minute", 3, 1, MINUTE, 3, 30.5),
        ("messages_per_hour", 3, 1, HOUR, 3, 700.0),
        ("messages_per_day", 3, 1, DAY, 3, 5 * HOUR),
        ("recipients_per_day", 7, 2, DAY, 4, 5 * HOUR),
    ],
    ids=["minute", "hour", "day", "recipients"],
)
async def test_each_limit_is_kept_in_any_window_and_all_mail_goes(
    tmp_path: Path, setting: str, limit: int, recipients: int, span: float, at_once: int, step: float
) -> None:
    clock, count = ManualClock(), 11
    limits: dict[str, Any] = {setting: limit}
    async with CountingServer(clock) as server:
        async with running(tmp_path, [account(server, **limits)], clock=clock) as bench:
            for number in range(count):
                bench.drop(
                    f"{number:02}.eml", mail(number, to=", ".join(f"{n}@example.org" for n in range(recipients)))
                )
            first = await bench.drain()
            assert len(server.counts) == at_once
            ((reason, name, left),) = blocked(first)
            assert (reason, name) == ("quota", "main")
            assert left + first["sent"] == count
            for _ in range(60):
                if not bench.names():
                    break
                await pass_time(bench, clock, step)
                await bench.drain()
            assert bench.names() == []
            assert (await bench.get("/queue/reasons"))["items"] == []
            assert set((await bench.history(limit=100)).values()) == {"sent"}
    assert sum(recipients for _, recipients in server.counts) == count * recipients
    assert server.most_in_any(span) <= limit
    assert server.most_in_any(span, recipients=True) <= limit


async def test_messages_a_second_are_waited_for_in_order_and_within_one_drain(tmp_path: Path) -> None:
    clock, count = ManualClock(), 20
    async with CountingServer(clock) as server:
        async with running(tmp_path, [account(server, messages_per_second=2.0)], clock=clock) as bench:
            for number in range(count):
                bench.drop(f"{number:02}.eml", mail(number))
            drain = asyncio.create_task(bench.drain())
            for sent in range(1, count + 1):
                await number_of(server, sent)
                assert bench.relay.inlets.get("pickup").cycle._unsettled <= 12, "few are open"
                await pass_time(bench, clock, 0.511)
            result = await drain
            assert (result["sent"], blocked(result)) == (count, [])
    assert [at - server.counts[0][0] for at, _ in server.counts] == pytest.approx(
        [number * 0.511 for number in range(count)]
    )


async def test_large_mails_wait_at_the_door_while_they_are_open(tmp_path: Path) -> None:
    clock, count = ManualClock(), 14
    async with CountingServer(clock, keep_bodies=False) as server:
        async with running(tmp_path, [account(server, messages_per_second=2.0)], clock=clock) as bench:
            for number in range(count):
                bench.drop(f"{number:02}.eml", mail(number, body=b"a line of text\r\n" * 20_000))
            drain = asyncio.create_task(bench.drain())
            for sent in range(1, count + 1):
                await number_of(server, sent)
                await pass_time(bench, clock, 0.511)
            assert ((await drain)["sent"], bench.names()) == (count, [])
    assert server.most_in_any(1.0) == 2


async def test_what_waits_says_so_and_goes_by_itself_when_there_is_room(tmp_path: Path) -> None:
    clock = ManualClock()
    async with CountingServer(clock) as server:
        async with running(tmp_path, [account(server, messages_per_hour=2)], clock=clock, watch=True) as bench:
            for number in range(3):
                bench.drop(f"{number}.eml", mail(number))
            await until(lambda: len(bench.names()) == 1, "two to go")
            (waiting,) = (await bench.get("/queue/messages"))["items"]
            shown = (await bench.get("/accounts/main"))["usage"]
            assert (waiting["state"], waiting["waiting_for"], waiting["attempts"]) == ("waiting", "quota", 0)
            assert (waiting["account"], waiting["due_at"]) == ("main", shown["next_at"])
            assert 0 < seconds_of(shown["next_at"]) - clock.now() - HOUR <= MINUTE
            assert (shown["messages_last_hour"], shown["messages_last_day"], shown["recipients_last_day"]) == (2, 2, 2)
            (reason,) = (await bench.get("/queue/reasons"))["items"]
            assert (reason["account"], reason["text"].split(":")[0]) == ("main", "quota")
            (row,) = (await bench.drain())["directories"][0]["blocked"]
            assert (row["reason"], row["until"], row["count"]) == ("quota", shown["next_at"], 1)
            metrics = (await bench.http.get("/metrics")).text
            assert 'mpu_account_out_of_quota{account="main"} 1.0' in metrics
            assert 'mpu_account_last_day{account="main",what="messages"} 2.0' in metrics
            await pass_time(bench, clock, HOUR + MINUTE)
            await until(lambda: not bench.names(), "the third, without a drain")
            assert (await bench.get("/accounts/main"))["usage"]["next_at"] is None


async def test_a_restart_and_a_clock_that_was_set_forget_nothing(tmp_path: Path) -> None:
    clock = ManualClock()
    limited: dict[str, Any] = {"messages_per_day": 3, "recipients_per_day": 4}
    async with CountingServer(clock) as server:
        async with running(tmp_path, [account(server, **limited)], clock=clock) as bench:
            for number in range(3):
                bench.drop(f"{number}.eml", mail(number))
                await bench.drain()
                await pass_time(bench, clock, HOUR)
            clock.jump(3 * DAY)
            bench.drop("3.eml", mail(3))
            assert blocked(await bench.drain()) == [("quota", "main", 1)]
            clock.jump(-3 * DAY)
        for _ in range(2):
            async with running(tmp_path, [account(server, **limited)], clock=clock) as bench:
                shown = (await bench.get("/accounts/main"))["usage"]
                assert (shown["messages_last_day"], shown["recipients_last_day"]) == (3, 3)
                assert 0 <= seconds_of(shown["next_at"]) - clock.now() - (DAY - 3 * HOUR) <= 600
                assert blocked(await bench.drain()) == [("quota", "main", 1)]
        clock.jump(-HOUR)  # what was sent lies in the future now
        async with running(tmp_path, [account(server, **limited)], clock=clock) as bench:
            assert blocked(await bench.drain()) == [("quota", "main", 1)]
            await pass_time(bench, clock, DAY + 600)
            await bench.sends(1)
    assert len(server.counts) == 4


@pytest.mark.parametrize("when", CRASHES)
async def test_a_kill_forgets_nothing_and_counts_nothing_twice(tmp_path: Path, when: str) -> None:
    names = [f"{number}@example.org" for number in range(3)]
    bench = ModelBench(tmp_path, dict.fromkeys(names, Fate.TAKE))
    await bench.open()
    await bench.patch("/accounts/main", messages_per_day=4)
    for number, name in enumerate(names):
        bench.drop(Mail(number, (name,)), f"{number}.eml", by_rename=False, twin=False)
    await bench.crash(when, taken=True)
    await bench.start()
    quota = bench.relay.outlets.quotas.get("main")
    assert quota is not None
    taken = sum(seen.at_data for seen in bench.seen)
    assert quota.used() == (taken, taken, taken)
    assert (await bench.get("/accounts/main"))["usage"]["messages_last_day"] == taken
    await bench.close()


async def test_a_test_message_counts_too(tmp_path: Path) -> None:
    clock = ManualClock()
    async with CountingServer(clock) as server:
        async with running(tmp_path, [account(server, messages_per_day=1)], clock=clock) as bench:
            answer = await bench.http.post("/accounts/main/test-message", json={"to": "jo@example.org"})
            assert answer.json()["ok"], answer.text
            bench.drop("0.eml", mail(0))
            assert blocked(await bench.drain()) == [("quota", "main", 1)]
            assert (await bench.get("/accounts/main"))["usage"]["messages_last_day"] == 1


async def test_what_is_left_overflows_to_the_next_account(tmp_path: Path) -> None:
    clock = ManualClock()
    async with CountingServer(clock) as first, CountingServer(clock) as second:
        accounts = [account(first, "first", messages_per_hour=2), account(second, "second", recipients_per_day=5)]
        async with running(tmp_path, accounts, pickups=pickup_of(tmp_path, "first", "second"), clock=clock) as bench:
            for number in range(6):
                bench.drop(f"{number}.eml", mail(number))
            await bench.sends(6)
            assert (len(first.counts), len(second.counts)) == (2, 4)
            bench.drop("many.eml", mail(7, to="a@example.org, b@example.org, c@example.org"))
            result = await bench.drain()
            assert result["recipients"]["sent"] == 1
            ((reason, _, count),) = blocked(result)
            assert (reason, count) == ("quota", 1)
            await pass_time(bench, clock, HOUR + MINUTE)
            await bench.sends(1)  # the rest of it goes through the first
            assert len(first.counts) == 3
    assert sorted(to for message in [*first.messages, *second.messages] for to in message.to if to[1] == "@") == [
        "a@example.org", "b@example.org", "c@example.org",
    ]  # fmt: skip


async def test_a_mail_for_more_than_a_day_allows_goes_in_parts_and_to_each_once(tmp_path: Path) -> None:
    clock = ManualClock()
    names = [f"{number}@example.org" for number in range(250)]
    async with CountingServer(clock) as server:
        limited = account(server, recipients_per_day=100, recipients_per_message=40)
        pickup = Directory(
            "pickup", str(tmp_path / "spool" / "pickup"), ("main",), expire_after_seconds=60, **BY_DRAINS
        )
        async with running(tmp_path, [limited], pickups=[pickup], clock=clock) as bench:
            bench.drop("many.eml", mail(1, to=", ".join(names)))
            for day in range(3):
                result = await bench.drain()
                assert len(server.counts) == [3, 6, 8][day]
                assert result["recipients"]["sent"] == [100, 100, 50][day]
                if day < 2:
                    (waiting,) = (await bench.get("/queue/messages"))["items"]
                    assert (waiting["state"], waiting["waiting_for"], waiting["attempts"]) == ("waiting", "quota", 0)
                    assert seconds_of(waiting["due_at"]) - clock.now() <= DAY + 300
                    assert blocked(result) == [("quota", "main", 1)]
                    await pass_time(bench, clock, DAY + 300)
            assert (result["sent"], bench.names()) == (1, [])
            life = await bench.get("/history", limit=300)
            assert [row["status"] for row in life["items"]] == ["sent"] * 250
    assert sorted(to for message in server.messages for to in message.to) == sorted(names)
    assert server.most_in_any(DAY, recipients=True) == 100


async def test_who_is_refused_does_not_count(tmp_path: Path) -> None:
    clock = ManualClock()
    script = Script(rcpt={"bad@example.org": "550 5.1.1 no such user"})
    async with CountingServer(clock, script=script) as server:
        limited = account(server, recipients_per_day=2, messages_per_day=2)
        async with running(tmp_path, [limited], clock=clock) as bench:
            bench.drop("0.eml", mail(0, to="bad@example.org"))
            bench.drop("1.eml", mail(1, to="bad@example.org, a@example.org"))
            await bench.drain()
            bench.drop("2.eml", mail(2, to="b@example.org"))
            bench.drop("3.eml", mail(3, to="c@example.org"))
            result = await bench.drain()
            assert (result["sent"], blocked(result)) == (1, [("quota", "main", 1)])
            assert (await bench.get("/accounts/main"))["usage"]["recipients_last_day"] == 2


async def test_other_limits_count_from_what_was_sent_before(tmp_path: Path) -> None:
    clock = ManualClock()
    async with CountingServer(clock) as server:
        async with running(tmp_path, [account(server)], clock=clock) as bench:
            for number in range(4):
                bench.drop(f"{number}.eml", mail(number))
            await bench.sends(4)
            assert (await bench.get("/accounts/main"))["usage"]["messages_last_day"] == 4
            for limit, sent in ((4, 0), (5, 1), (None, 3)):
                answer = await bench.http.patch("/accounts/main", json={"messages_per_day": limit})
                assert answer.status_code == 200, answer.text
                bench.drop(f"under {limit}.eml", mail(100 + sent))
                await bench.drain()
                if limit is None:
                    await until(lambda: not bench.names())
                assert len(server.counts) == 4 + sent


SLOWER = "454 4.7.0 Throttling failure: Maximum sending rate exceeded."


async def test_a_throttled_account_slows_down_creeps_back_and_loses_nothing(tmp_path: Path) -> None:
    clock = ManualClock()
    async with CountingServer(clock) as server:
        async with running(tmp_path, [account(server, max_connections=1)], clock=clock) as bench:
            for number in range(20):
                bench.drop(f"{number:02}.eml", mail(number))
            await bench.sends(20)
            server.script.mail["*"] = SLOWER
            for number in range(10):
                bench.drop(f"{number:02}.eml", mail(100 + number))
            result = await bench.drain()
            assert (result["sent"], result["failed"], result["deferred"]) == (0, 0, 0)
            shown = await bench.get("/accounts/main")
            assert shown["pause"]["code"] == "sending_too_fast"
            rate = shown["usage"]["rate_per_second"]
            assert rate >= 0.2, "half of what was really reached, on however slow a machine"
            del server.script.mail["*"]
            await pass_time(bench, clock, 30.0)
            drain = asyncio.create_task(bench.drain())
            for number in range(1, 11):
                await number_of(server, 20 + number)
                await pass_time(bench, clock, 1.03 / rate)
            await drain
            gaps = [b - a for (a, _), (b, _) in zip(server.counts[20:], server.counts[21:], strict=False)]
            assert min(gaps) >= 0.9 / rate
            later = (await bench.get("/accounts/main"))["usage"]["rate_per_second"]
            assert later > rate
            await pass_time(bench, clock, HOUR)
            bench.drop("last.eml", mail(999))
            await bench.drain()
            await until(lambda: not bench.names(), "the last")
            assert (await bench.get("/accounts/main"))["usage"]["rate_per_second"] is None
            assert bench.relay.outlets.quotas.get("main") is None, "nothing is left of it"
    assert len(server.messages) == 31


async def test_a_stop_does_not_wait_for_those_in_line(tmp_path: Path) -> None:
    clock = ManualClock()
    async with CountingServer(clock) as server:
        slow = account(server, messages_per_second=1.0)
        async with running(tmp_path, [slow], clock=clock, watch=True, grace_seconds=30) as bench:
            for number in range(8):
                bench.drop(f"{number}.eml", mail(number))
            await until(lambda: len(server.counts) == 1, "the first")
            began = asyncio.get_running_loop().time()
            await bench.relay.stop()
            assert asyncio.get_running_loop().time() - began < 15
            (sent,) = {f"{number}.eml" for number in range(8)} - set(bench.names())
            assert server.messages[0].body.count(f"Message-ID: <{sent[0]}@test>".encode()) == 1


async def test_a_drain_that_is_stopped_does_not_wait_for_its_accounts(tmp_path: Path) -> None:
    clock = ManualClock()
    async with CountingServer(clock) as server:
        async with running(tmp_path, [account(server, messages_per_minute=1)], clock=clock) as bench:
            for number in range(3):
                bench.drop(f"{number}.eml", mail(number))
            await bench.drain()
            await pass_time(bench, clock, MINUTE - 8)
            nudged = bench.relay.inlets.get("pickup").cycle._nudged
            nudged.set()
            drain = (await bench.http.post("/drain", params={"wait": False}, json={})).json()
            await until(lambda: not nudged.is_set(), "it waits for room")
            began = asyncio.get_running_loop().time()
            await bench.http.delete(f"/drains/{drain['id']}")
            view = await bench.relay.drains.wait(drain["id"], 10)
            assert view.state == "stopped"
            assert asyncio.get_running_loop().time() - began < 5, "of the 8 and more that there is no room yet"
            assert len(server.counts) == 1


SENDERS = {"first": ("@a.example",), "second": ("@b.example",)}


def from_(sender: str, number: int) -> bytes:
    return mail(number).replace(b"shop@example.com", sender.encode())


async def test_mail_of_one_sender_does_not_wait_for_anothers_account(tmp_path: Path) -> None:
    """Many of the limited account's, more than are open at a time, lie before the other's; all go in one drain."""
    clock, count = ManualClock(), 20
    async with CountingServer(clock) as first, CountingServer(clock) as second:
        accounts = [
            account(first, "first", senders=SENDERS["first"], messages_per_second=1.0),
            account(second, "second", senders=SENDERS["second"]),
        ]
        async with running(tmp_path, accounts, clock=clock, look_ahead=8) as bench:
            bench.drop("0.eml", from_("jo@a.example", 0))
            await bench.drain()
            for number in range(1, count):
                bench.drop(f"{number:02}.eml", from_("jo@a.example", number))
            drain = asyncio.create_task(bench.drain())
            cycle = bench.relay.inlets.get("pickup").cycle
            await until(lambda: cycle.blocked, "some come back")
            for number in range(count):
                bench.drop(f"b{number:02}.eml", from_("jo@b.example", 100 + number))
            other = asyncio.create_task(bench.drain())
            await number_of(second, count)
            assert len(first.counts) <= 2, "its time stood still"
            for sent in range(len(first.counts), count + 1):
                await number_of(first, sent)
                await pass_time(bench, clock, 1.03)
            assert blocked(await drain) == blocked(await other) == []
            assert bench.names() == []
    assert first.most_in_any(1.0) == 1


async def test_mail_whose_account_is_out_of_quota_is_not_opened_again_until_it_isnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, count = ManualClock(), 6
    async with CountingServer(clock) as first, CountingServer(clock) as second:
        accounts = [
            account(first, "first", senders=SENDERS["first"], messages_per_day=1),
            account(second, "second", senders=SENDERS["second"]),
        ]
        async with running(tmp_path, accounts, clock=clock) as bench:
            for number in range(count):
                bench.drop(f"{number}.eml", from_("jo@a.example", number))
            assert blocked(await bench.drain()) == [("quota", "first", count - 1)]
            spool, opened = bench.relay.inlets.get("pickup").cycle.spool, list[bytes]()
            examine = spool.examine

            def counted(name: bytes, *, event_seen: bool = False) -> Any:
                opened.append(name)
                return examine(name, event_seen=event_seen)

            monkeypatch.setattr(spool, "examine", counted)
            bench.drop("b.eml", from_("jo@b.example", 100))
            result = await bench.drain()
            assert (result["sent"], blocked(result)) == (1, [("quota", "first", count - 1)])
            assert opened == [b"b.eml"]
            bench.drop(bench.names()[0], from_("jo@b.example", 101))  # another file by that name
            await pass_time(bench, clock, 1000.0)
            await bench.sends(1)  # it is not taken for the same for ever
            await pass_time(bench, clock, DAY + 300)
            await bench.sends(1)
            assert (len(first.counts), len(second.counts)) == (2, 2)


async def test_those_in_line_do_not_go_once_the_account_is_paused(tmp_path: Path) -> None:
    clock = ManualClock()
    async with CountingServer(clock) as first, CountingServer(clock) as second:
        accounts = [account(first, "first", messages_per_second=1.0), account(second, "second", enabled=False)]
        async with running(tmp_path, accounts, clock=clock) as bench:
            for number in range(4):
                bench.drop(f"{number}.eml", mail(number))
            drain = asyncio.create_task(bench.drain())
            quota = bench.relay.outlets.quotas.get("first")
            assert quota is not None
            await until(lambda: len(first.counts) == 1 and len(quota._line) == 3, "three in line")
            await bench.http.post("/accounts/first/pause", json={"reason": "maintenance"})
            await bench.http.patch("/accounts/second", json={"enabled": True})
            for left in (2, 1, 0):
                await pass_time(bench, clock, 1.03)
                await until(lambda left=left: len(quota._line) == left)  # type: ignore[misc]
            assert (await drain)["sent"] == 4
            assert (len(first.counts), len(second.counts)) == (1, 3)
            await bench.http.post("/accounts/first/resume")
            bench.drop("9.eml", mail(9))  # on trial, and let through
            last = asyncio.create_task(bench.drain())
            async with asyncio.timeout(30):
                while not last.done():
                    await pass_time(bench, clock, 0.5)
                    await asyncio.wait([last], timeout=0.05)
            assert len(first.counts) == 2


async def test_limits_that_are_set_while_mail_is_under_way_count_it_and_nothing_twice(tmp_path: Path) -> None:
    clock = ManualClock()
    async with CountingServer(clock) as server:
        async with running(tmp_path, [account(server, max_connections=1)], clock=clock) as bench:
            for number in range(6):
                bench.drop(f"{number:02}.eml", mail(number))
            await bench.drain()
            server.script.mail["*"] = SLOWER
            bench.drop("1.eml", mail(1))
            await bench.drain()
            del server.script.mail["*"]
            quota = bench.relay.outlets.quotas.get("main")
            assert quota is not None, "it is slowed down"
            await pass_time(bench, clock, 30.0)
            await bench.drain()
            await until(lambda: not bench.names())
            assert len(server.counts) == 7
            await bench.http.patch("/accounts/main", json={"messages_per_day": 100})
            assert quota is bench.relay.outlets.quotas.get("main")
            assert quota.used()[1] == 7
