"""The room for open messages: bounded in all, and a part of it for each directory alone."""

from __future__ import annotations

import asyncio

import pytest

from core.slots import OpenMessages, Share


async def _settled(*tasks: asyncio.Task[None]) -> list[bool]:
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


def _ask(share: Share) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(share.acquire())


async def test_a_directory_alone_has_all_of_the_room_and_no_more() -> None:
    share = OpenMessages(8).join()
    tasks = [_ask(share) for _ in range(10)]
    assert sum(await _settled(*tasks)) == 8
    share.release()
    assert sum(await _settled(*tasks)) == 9
    tasks[9].cancel()
    assert share.held == 8


async def test_those_that_never_give_back_leave_the_others_their_part() -> None:
    room = OpenMessages(16)
    stuck, other = room.join(), room.join()
    greedy = [_ask(stuck) for _ in range(40)]
    assert sum(await _settled(*greedy)) == 12, "its own 4 and the common 8"
    mine = [_ask(other) for _ in range(5)]
    assert await _settled(*mine) == [True] * 4 + [False]
    other.release()
    assert await _settled(*mine) == [True] * 5, "what a directory gives back of its part is its own again"
    assert stuck.held == 12
    for task in greedy:
        task.cancel()


async def _served(room: OpenMessages, shares: list[Share], turns: int) -> list[int]:
    """How often each had room, where everybody always wants more and gives back at once."""
    served = [0] * len(shares)

    async def want(number: int) -> None:
        while sum(served) < turns:
            await shares[number].acquire()
            served[number] += 1
            await asyncio.sleep(0)
            shares[number].release()

    await asyncio.gather(*(want(number) for number in range(len(shares)) for _ in range(20)))
    return served


@pytest.mark.parametrize(("limit", "directories"), [(8, 3), (8, 5), (4, 9)])
async def test_what_is_common_goes_round(limit: int, directories: int) -> None:
    room = OpenMessages(limit)
    shares = [room.join() for _ in range(directories)]
    served = await _served(room, shares, turns=900)
    assert min(served) > 900 // directories // 2, served
    assert [share.held for share in shares] == [0] * directories


async def test_a_directory_that_joins_a_full_room_does_not_make_it_larger() -> None:
    room = OpenMessages(8)
    first = room.join()
    for _ in range(8):
        await first.acquire()
    second = room.join()
    late = _ask(second)
    assert await _settled(late) == [False]
    first.release()
    assert await _settled(late) == [True]
    assert first.held + second.held == 8


async def test_a_directory_that_leaves_gives_its_part_to_the_others_once_it_holds_nothing() -> None:
    room = OpenMessages(8)
    leaving, staying = room.join(), room.join()
    await leaving.acquire()
    tasks = [_ask(staying) for _ in range(8)]
    assert sum(await _settled(*tasks)) == 6
    leaving.leave()
    assert sum(await _settled(*tasks)) == 6
    leaving.release()
    assert sum(await _settled(*tasks)) == 8


async def test_who_gives_up_waiting_keeps_nothing() -> None:
    share = OpenMessages(2).join()
    first, second, third = [_ask(share) for _ in range(3)]
    assert await _settled(first, second, third) == [True, True, False]
    third.cancel()
    await _settled()
    share.release()
    share.release()
    late = _ask(share)
    assert await _settled(late) == [True]
    assert share.held == 1


async def test_cancelled_in_the_moment_it_was_given_room_it_is_given_back() -> None:
    share = OpenMessages(1).join()
    await share.acquire()
    waiting = _ask(share)
    await _settled()
    share.release()  # resolves it
    waiting.cancel()
    await _settled()
    assert share.held == 0
