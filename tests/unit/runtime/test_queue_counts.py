"""Counting a directory: small ones anew for each who asks, large ones once for all, without a long wait."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from core.domain.account import Directory
from core.runtime import queue as module
from core.runtime.inlets import Inlet
from core.runtime.queue import Queue
from core.spool.directory import Counts
from tests.support.clock import ManualClock


@dataclass(eq=False)
class Spool:
    """Counts as often as it is let."""

    clock: ManualClock
    seconds: float
    go_on: threading.Event = field(default_factory=threading.Event)
    counted: int = 0

    def open(self) -> None:
        """It is."""

    def counts(self, *, stat_limit: int) -> Counts:
        del stat_limit
        assert self.go_on.wait(10)
        self.clock.advance(self.seconds)
        self.counted += 1
        return Counts(waiting=self.counted)


def _inlet(spool: Spool) -> Inlet:
    @dataclass
    class Fake:
        spool: Spool
        directory: Directory

    return cast("Inlet", Fake(spool, Directory("d", "/d")))


def _queue(clock: ManualClock) -> Queue:
    nothing: Any = None
    return Queue(nothing, nothing, nothing, nothing, clock, 1)


async def test_a_large_directory_is_counted_once_for_all_and_nobody_waits_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock()
    spool, queue = Spool(clock, seconds=1.0), _queue(clock)
    spool.go_on.set()
    assert (await queue.count(_inlet(spool))).counts.waiting == 1, "there is nothing older to show"
    clock.advance(100)
    monkeypatch.setattr(module, "COUNTS_WAIT_SECONDS", 0.001)
    spool.go_on.clear()
    asked = await asyncio.gather(*(queue.count(_inlet(spool)) for _ in range(5)))
    assert [counted.counts.waiting for counted in asked] == [1] * 5
    spool.go_on.set()
    await asyncio.wait(list(queue._counting.values()))
    assert (await queue.count(_inlet(spool))).counts.waiting == 2, "counted once for the five"


async def test_a_small_directory_is_counted_anew_for_each() -> None:
    clock = ManualClock()
    spool, queue = Spool(clock, seconds=0.001), _queue(clock)
    spool.go_on.set()
    for number in range(1, 4):
        assert (await queue.count(_inlet(spool))).counts.waiting == number
        clock.advance(1)


async def test_a_count_that_is_slow_for_once_is_not_waited_for_where_there_is_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock()
    spool, queue = Spool(clock, seconds=0.001), _queue(clock)
    spool.go_on.set()
    assert (await queue.count(_inlet(spool))).counts.waiting == 1
    monkeypatch.setattr(module, "COUNTS_WAIT_SECONDS", 0.01)
    spool.go_on.clear()
    clock.advance(module.COUNTS_SMALL_SECONDS / 2)
    assert (await queue.count(_inlet(spool))).counts.waiting == 1, "half a second old"
    clock.advance(module.COUNTS_SMALL_SECONDS)
    asked = asyncio.create_task(queue.count(_inlet(spool)))
    assert not (await asyncio.wait([asked], timeout=0.05))[0], "too old to be shown"
    spool.go_on.set()
    assert (await asked).counts.waiting >= 2
    await asyncio.gather(*queue._counting.values())


async def test_a_file_system_that_hangs_takes_one_thread_and_nobody_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock()
    spool, queue = Spool(clock, seconds=0.001), _queue(clock)
    monkeypatch.setattr(module, "COUNTS_PATIENCE_SECONDS", 0.001)
    asked = await asyncio.gather(*(queue.count(_inlet(spool)) for _ in range(20)))
    assert [counted.counts.waiting for counted in asked] == [0] * 20
    spool.go_on.set()
    await asyncio.wait(list(queue._counting.values()))
    assert spool.counted == 1
    assert (await queue.count(_inlet(spool))).counts.waiting == 1
