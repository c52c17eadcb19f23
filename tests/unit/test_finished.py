"""What runs in the background: bounded while it runs, kept a while after the end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from core.errors import NotFound, TooMany
from core.runtime.finished import Keep, Register, new_id
from tests.support.clock import ManualClock

OPEN_MAX, KEPT_MAX, KEPT_SECONDS = 3, 2, 3600.0


@dataclass(eq=False)
class Item:
    id: str
    task: asyncio.Task[None] | None = None
    ended_at: float | None = None


class Bench:
    """A register whose items end when they are told to."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.register: Register[Item] = Register("drain", Keep(OPEN_MAX, KEPT_MAX, KEPT_SECONDS), clock=self.clock)
        self._ends: dict[str, asyncio.Event] = {}

    def start(self, item_id: str) -> Item:
        self._ends[item_id] = asyncio.Event()

        async def work() -> None:
            await self._ends[item_id].wait()

        return self.register.start(Item(item_id), work())

    async def end(self, item_id: str) -> None:
        task = self.register.get(item_id).task
        assert task is not None
        self._ends[item_id].set()
        await task
        await asyncio.sleep(0)

    def known(self, *ids: str) -> list[str]:
        found = []
        for item_id in ids:
            try:
                found.append(self.register.get(item_id).id)
            except NotFound:
                continue
        return found


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_an_item_is_found_while_it_runs_and_after(bench: Bench) -> None:
    item = bench.start("a")
    assert bench.register.get("a") is item
    assert (bench.register.open(), item.ended_at) == ([item], None)
    bench.clock.advance(5)
    await bench.end("a")
    assert bench.register.get("a") is item
    assert (bench.register.open(), item.ended_at) == ([], bench.clock.monotonic())


async def test_an_id_that_never_was_is_not_found(bench: Bench) -> None:
    with pytest.raises(NotFound):
        bench.register.get("a")


async def test_only_so_many_run_at_once(bench: Bench) -> None:
    for item_id in "abc":
        bench.start(item_id)
    with pytest.raises(TooMany) as caught:
        bench.start("d")  # its work, never begun, must not warn either
    assert caught.value.detail == "3 drains are open, and no more may be"
    assert caught.value.remedy
    assert bench.known("d") == []
    await bench.end("b")
    bench.start("d")
    assert [item.id for item in bench.register.open()] == ["a", "c", "d"]
    for item_id in "acd":
        await bench.end(item_id)


async def test_a_place_is_kept_for_one_that_is_to_start_and_free_again_where_it_does_not(bench: Bench) -> None:
    bench.start("a")
    bench.start("b")
    late = Item("c")
    with bench.register.place_for(late), pytest.raises(TooMany):
        bench.start("d")
    assert bench.known("c") == []
    with bench.register.place_for(late):
        bench.register.start(late, asyncio.sleep(0))
    assert bench.known("c") == ["c"]
    for item_id in "ab":
        await bench.end(item_id)


@pytest.mark.parametrize(("after", "known"), [(0, ["a"]), (KEPT_SECONDS, ["a"]), (KEPT_SECONDS + 1, [])])
async def test_an_ended_one_is_kept_so_long(bench: Bench, after: float, known: list[str]) -> None:
    bench.start("a")
    await bench.end("a")
    bench.clock.advance(after)
    assert bench.known("a") == known


async def test_one_that_runs_is_kept_however_long(bench: Bench) -> None:
    bench.start("a")
    bench.clock.advance(100 * KEPT_SECONDS)
    assert bench.known("a") == ["a"]
    await bench.end("a")
    assert bench.known("a") == ["a"]


@pytest.mark.parametrize(
    ("ends", "known"),
    [
        ("abc", ["b", "c"]),
        ("bca", ["a", "c"]),  # the first to end goes, not the first to begin
        ("cba", ["a", "b"]),
        ("ab", ["a", "b", "c"]),
    ],
)
async def test_of_too_many_ended_ones_the_latest_are_kept(bench: Bench, ends: str, known: list[str]) -> None:
    for item_id in "abc":
        bench.start(item_id)
    for item_id in ends:
        bench.clock.advance(1)
        await bench.end(item_id)
    assert bench.known("a", "b", "c") == known
    for item in bench.register.open():
        await bench.end(item.id)


async def test_one_that_fails_or_is_cancelled_has_ended_too(bench: Bench) -> None:
    async def broken() -> None:
        raise RuntimeError("planted")

    failed = bench.register.start(Item("a"), broken())
    cancelled = bench.start("b")
    assert failed.task is not None
    assert cancelled.task is not None
    cancelled.task.cancel()
    await asyncio.gather(failed.task, cancelled.task, return_exceptions=True)
    await asyncio.sleep(0)
    assert bench.register.open() == []
    assert bench.known("a", "b") == ["a", "b"]


def test_ids_are_not_to_be_guessed_and_fit_a_path() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(each) == 16 and each.isalnum() for each in ids)
