"""An account that its server slowed down stays slow over a restart, and creeps back meanwhile as it would have."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session

from core.domain.account import Directory
from core.domain.limits import Slowdown
from core.store import accounts
from core.store import slowdowns as rows
from core.store.slowdowns import Slowed
from tests.support.clock import ManualClock
from tests.support.relay import Bench, account, mail, running, until
from tests.support.smtp_server import SmtpServer

MINUTE = 60.0
TOO_FAST = "454 4.7.0 Throttling failure: Maximum sending rate exceeded."
TOO_MANY = "432 4.3.2 Concurrent connections limit exceeded"


def pickup_of(root: Path) -> list[Directory]:
    path = str(root / "spool" / "pickup")
    return [Directory("pickup", path, ("main",), watch=False, interval_seconds=None, schedule="0 0 1 1 *")]


async def usage(bench: Bench) -> dict[str, Any]:
    shown: dict[str, Any] = (await bench.get("/accounts/main"))["usage"]
    return shown


async def stored(bench: Bench) -> Slowed | None:
    store = bench.relay.store
    return (await store.read(lambda session: accounts.get(session, store.secrets, "main"))).slowed


async def slow_down(bench: Bench, server: SmtpServer, reply: str = TOO_FAST) -> None:
    server.script.mail["*"] = reply
    bench.drop("late.eml", mail(1000))
    await bench.drain()
    del server.script.mail["*"]


async def test_the_rate_is_the_same_after_a_restart_and_creeps_back_with_time(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)], pickups=pickup_of(tmp_path), clock=clock) as bench:
            for number in range(20):
                bench.drop(f"{number:02}.eml", mail(number))
            await bench.drain()
            etag = (await bench.http.get("/accounts/main")).headers["ETag"]
            await slow_down(bench, server)
            before = (await usage(bench))["rate_per_second"]
            assert before is not None
        for rate in (before, before * 1.1):
            async with running(tmp_path, pickups=pickup_of(tmp_path), clock=clock) as bench:
                assert (await usage(bench))["rate_per_second"] == pytest.approx(rate)
                assert (await bench.http.get("/accounts/main")).headers["ETag"] == etag, "it is no setting"
            clock.advance(MINUTE)
        clock.jump(-10 * MINUTE)  # set back: as if the server had just said so
        async with running(tmp_path, pickups=pickup_of(tmp_path), clock=clock) as bench:
            assert (await usage(bench))["rate_per_second"] == pytest.approx(before)
        clock.advance(120 * MINUTE)
        async with running(tmp_path, pickups=pickup_of(tmp_path), clock=clock) as bench:
            assert (await usage(bench))["rate_per_second"] is None
            assert bench.relay.outlets.quotas.get("main") is None, "nothing holds it back"
            await bench.http.post("/accounts/main/resume")
            await bench.drain()
            await until(lambda: len(server.messages) == 21)


async def test_messages_are_spaced_so_after_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)], pickups=pickup_of(tmp_path), clock=clock) as bench:
            bench.drop("0.eml", mail(0))
            await bench.drain()
            slowed = Slowed(Slowdown(2.0, clock.now(), 100.0))
            await bench.relay.store.write(lambda session: rows.put(session, "main", slowed))
        async with running(tmp_path, pickups=pickup_of(tmp_path), clock=clock) as bench:
            bench.paths["pickup"] = tmp_path / "spool" / "pickup"
            for number in range(1, 4):
                bench.drop(f"{number}.eml", mail(number))
            quota = bench.relay.outlets.quotas.get("main")
            assert quota is not None
            drain = asyncio.create_task(bench.sends(3))
            for count in (2, 3, 4):
                await until(lambda count=count: (len(server.messages), quota.meter.in_line) == (count, 4 - count))  # type: ignore[misc]
                assert quota.meter.turn_at(clock.monotonic()) == pytest.approx(clock.monotonic() + 0.51)
                clock.advance(0.52)
                bench.relay.outlets.quotas.look_again()
            await drain


async def test_fewer_connections_stay_fewer(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SmtpServer() as server:
        value = account(server, max_connections=4)
        async with running(tmp_path, [value], pickups=pickup_of(tmp_path), clock=clock) as bench:
            await slow_down(bench, server, TOO_MANY)
            quota = bench.relay.outlets.quotas.get("main")
            assert quota is not None
            most = quota.most_connections(4)
        async with running(tmp_path, pickups=pickup_of(tmp_path), clock=clock) as bench:
            quota = bench.relay.outlets.quotas.get("main")
            assert quota is not None
            assert most is not None
            assert quota.most_connections(4) == most < 4
            clock.advance(11 * MINUTE)
            assert quota.most_connections(4) == most + 1


async def test_the_first_is_written_at_once_and_what_follows_at_most_every_so_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a kill right behind it forgets nothing, and a server that says so all the time costs next to nothing."""
    clock = ManualClock()
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)], pickups=pickup_of(tmp_path), clock=clock) as bench:
            written = list[str]()
            put = rows.put

            def counted(session: Session, name: str, slowed: Slowed | None) -> None:
                put(session, name, slowed)
                written.append(name)

            monkeypatch.setattr(rows, "put", counted)
            quotas, value = bench.relay.outlets.quotas, bench.relay.outlets.account("main")
            quotas.throttled(value, "sending_too_fast", reached=40.0, connections=1)
            await until(lambda: written)
            await bench.relay.store.write(lambda _: None)  # committed, too
            first = await stored(bench)
            assert first == quotas.slowed("main") is not None
            for _ in range(49):
                quotas.throttled(value, "sending_too_fast", reached=40.0, connections=1)
                assert await stored(bench) == first
            assert written == ["main"]
            last = quotas.slowed("main")
            assert last is not None
            assert last != first
        assert written == ["main", "main"], "the stop writes the rest"
        async with running(tmp_path, pickups=pickup_of(tmp_path), clock=clock) as bench:
            again = await stored(bench)
            assert again is not None
            assert again.rate is not None
            assert last.rate is not None
            assert replace(again.rate, since=0.0) == replace(last.rate, since=0.0)


async def test_an_account_of_the_same_name_begins_anew(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)], pickups=[], clock=clock) as bench:
            body = {"host": "127.0.0.1", "port": server.port, "security": "none"}
            quotas, value = bench.relay.outlets.quotas, bench.relay.outlets.account("main")
            quotas.throttled(value, "sending_too_fast", reached=40.0, connections=1)
            await bench.relay.slowdowns.close()
            assert await stored(bench) is not None
            assert (await bench.http.delete("/accounts/main")).status_code == 204
            assert (await bench.http.put("/accounts/main", json=body)).status_code == 201
            assert await stored(bench) is None
            assert (await usage(bench))["rate_per_second"] is None
