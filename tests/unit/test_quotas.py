"""Quotas on the event loop: who waits in line, who waits at the door, who is told when there is room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from core.domain.account import Account
from core.domain.limits import PATIENCE_SECONDS
from core.runtime.quotas import THROTTLED, Quota, Quotas
from core.store.usage import Used
from tests.support.clock import ManualClock

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


class Bench:
    """Quotas, a clock, and who was told."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.opened: list[str] = []
        self.quotas = Quotas(clock=self.clock, on_open=self.opened.append)

    def quota(self, **limits: Any) -> Quota:
        quota = self.quotas.set(Account("out", "smtp.example.com", **limits))
        assert quota is not None
        return quota

    def send(self, quota: Quota, count: int = 1, recipients: int = 1) -> None:
        for _ in range(count):
            quota.settle(quota.reserve(recipients), recipients)

    def elapse(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.quotas.look_again()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.quotas.close()


async def turns() -> None:
    """Let everybody go as far as it gets."""
    for _ in range(5):
        await asyncio.sleep(0)


def started(work: Awaitable[bool]) -> asyncio.Future[bool]:
    return asyncio.ensure_future(work)


async def test_without_limits_there_is_nothing(bench: Bench) -> None:
    assert bench.quotas.set(Account("out", "smtp.example.com")) is None
    assert bench.quotas.get("out") is None


async def test_the_line_goes_in_order_and_at_its_pace(bench: Bench) -> None:
    quota = bench.quota(messages_per_second=2.0)
    rooms = [quota.reserve(1) for _ in range(4)]
    waits = [started(quota.turn(room)) for room in rooms]
    await turns()
    assert [wait.done() for wait in waits] == [True, False, False, False]
    waits[1].cancel()
    await turns()
    quota.settle(rooms[1], 0)
    for done in (3, 4):
        bench.elapse(0.511)
        await turns()
        assert [wait.done() for wait in waits].count(True) == done
    assert waits[2].done()
    assert [wait.result() for wait in (waits[0], waits[2], waits[3])] == [True, True, True]


async def test_who_was_refused_is_told_when_there_is_room_and_only_then(bench: Bench) -> None:
    quota = bench.quota(messages_per_minute=2)
    bench.send(quota, 2)
    bench.elapse(30)
    bench.elapse(40)
    assert bench.opened == [], "nobody asked"
    bench.send(quota, 2)
    until = quota.refused_until()
    assert until is not None
    assert until == quota.next_at()
    assert bench.clock.now() + MINUTE <= until <= bench.clock.now() + MINUTE + 1
    bench.elapse(59)
    assert bench.opened == []
    bench.elapse(2)
    assert bench.opened == ["out"]
    assert (quota.refused_until(), quota.next_at()) == (None, None)


async def test_who_was_refused_is_told_when_what_was_under_way_fails(bench: Bench) -> None:
    quota = bench.quota(messages_per_day=1)
    room = quota.reserve(1)
    assert quota.refused_until() is not None
    quota.settle(room, 0)
    assert bench.opened == ["out"]
    assert quota.refused_until() is None


async def test_all_who_ask_hear_the_same_time_until_the_clock_is_set(bench: Bench) -> None:
    quota = bench.quota(messages_per_hour=1)
    bench.send(quota)
    first = quota.refused_until()
    assert first is not None
    bench.clock.advance(0.3)
    bench.clock.jump(0.00001)
    assert quota.refused_until() == first
    bench.clock.jump(-DAY)
    assert quota.refused_until() == pytest.approx(first - DAY)
    bench.clock.jump(3 * DAY)
    assert quota.refused_until() is not None, "a wall clock that is set ends no hour"


@pytest.mark.parametrize(("away", "waits"), [(PATIENCE_SECONDS - 2, True), (PATIENCE_SECONDS + 2, False)])
async def test_a_moment_is_waited_for_at_the_door(bench: Bench, away: float, waits: bool) -> None:
    quota = bench.quota(messages_per_minute=1)
    bench.send(quota)
    bench.elapse(MINUTE - away)
    first, second = started(quota.wait()), started(quota.wait())
    await turns()
    assert (first.done(), second.done()) == (not waits, not waits)
    if not waits:
        assert (first.result(), second.result()) == (False, False)
        return
    bench.elapse(away + 1)
    await turns()
    assert (first.done(), first.result()) == (True, True)


class TickingClock(ManualClock):
    """Goes on a little whenever it is looked at."""

    def monotonic(self) -> float:
        self.advance(0.001)
        return self.stood_at

    @property
    def stood_at(self) -> float:
        return super().monotonic()


async def test_room_that_is_free_in_the_moment_of_the_knock_is_not_waited_for_in_vain() -> None:
    clock = TickingClock()
    quotas = Quotas(clock=clock, on_open=lambda _: None)
    quota = quotas.set(Account("out", "smtp.example.com", messages_per_minute=1))
    assert quota is not None
    quota.settle(quota.reserve(1), 1)
    opens_at = quota.meter.refused(clock.stood_at)
    assert opens_at is not None
    clock.advance(opens_at - clock.stood_at - 0.0015)  # shut at the first look, open at the second
    assert await asyncio.wait_for(quota.wait(), 5)
    quotas.close()


async def test_at_the_door_the_first_goes_first_and_nobody_waits_for_what_is_far(bench: Bench) -> None:
    quota = bench.quota(messages_per_minute=1)
    bench.send(quota)
    bench.elapse(MINUTE - 5)
    order: list[str] = []

    async def goes(name: str) -> bool:
        if not await quota.wait():
            return False
        order.append(name)
        bench.send(quota)
        return True

    waits = [started(goes(name)) for name in ("first", "second")]
    await turns()
    bench.elapse(6)
    await turns()
    assert order == ["first"]
    assert waits[1].result() is False, "another minute is too long"


async def test_a_stop_lets_everybody_go(bench: Bench) -> None:
    quota = bench.quota(messages_per_second=0.5)
    rooms = [quota.reserve(1) for _ in range(3)]
    line = [started(quota.turn(room)) for room in rooms]
    door = started(quota.wait())
    await turns()
    bench.quotas.close()
    await turns()
    assert [wait.result() for wait in (*line, door)] == [True, False, False, False]
    assert await quota.turn(quota.reserve(1)) is False


async def test_limits_that_are_lifted_hold_nobody_back(bench: Bench) -> None:
    quota = bench.quota(messages_per_second=0.5)
    line = [started(quota.turn(quota.reserve(1))) for _ in range(3)]
    await turns()
    assert bench.quotas.set(Account("out", "smtp.example.com")) is None
    await turns()
    assert [wait.result() for wait in line] == [True, True, True]


async def test_what_was_sent_before_the_start_counts_once(bench: Bench) -> None:
    now = bench.clock.now()
    bench.quotas.restore({"out": [Used(now - 7200, 5, 50), Used(now, 2, 2)]})
    quota = bench.quota(messages_per_day=8)
    assert quota.used() == (2, 7, 52)
    quota = bench.quota(messages_per_day=7)
    assert quota.used() == (2, 7, 52)
    until = quota.refused_until()
    assert until is not None
    assert now + DAY - 7200 <= until <= now + DAY - 7200 + 300


async def test_what_a_slowed_account_sent_counts_once_when_it_gets_limits(bench: Bench) -> None:
    slowed = bench.quotas.throttled(Account("out", "h"), "sending_too_fast", reached=10.0, connections=1)
    bench.send(slowed, 3, recipients=2)
    under_way = slowed.reserve(5)
    bench.quotas.restore({"out": [Used(bench.clock.now(), 4, 7)]})  # the three, and one before
    quota = bench.quota(messages_per_day=100)
    assert quota is slowed
    assert quota.used() == (5, 5, 12), "with what is under way"
    quota.settle(under_way, 5)
    assert quota.used() == (5, 5, 12)


def test_too_many_logins_are_no_matter_of_the_rate() -> None:
    assert {"sending_too_fast", "too_many_connections"} == THROTTLED


async def test_a_throttled_account_is_held_back_until_it_crept_back(bench: Bench) -> None:
    account = Account("out", "smtp.example.com", max_connections=4)
    quota = bench.quotas.throttled(account, "too_many_connections", reached=10.0, connections=3)
    assert (quota.slowed_to(), quota.most_connections(4)) == (5.0, 2)
    assert not quota.over
    bench.elapse(10 * MINUTE)
    assert quota.most_connections(4) == 3
    bench.elapse(10 * MINUTE)
    assert (quota.slowed_to(), quota.most_connections(4), quota.over) == (None, None, True)
    quota = bench.quotas.throttled(account, "sending_too_fast", reached=None, connections=3)
    assert quota.over, "of an account that sent nothing, nothing is known"
