"""The life of an access token, by a clock that is moved: one fetch for all, ahead of its end, anew when refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from core.domain.account import OAuth, OAuthGrant, OAuthProvider
from core.domain.oauth import Granted
from core.smtp.dialogue import ConnectFailed, TokenFailed
from core.transport.tokens import TokenSource
from tests.support.clock import ManualClock

SETTINGS = OAuth(OAuthProvider.OTHER, OAuthGrant.REFRESH_TOKEN, refresh_token="r0")


class Provider:
    """Gives t1, t2, ... when it may."""

    def __init__(self, life: float = 3600) -> None:
        self.life = life
        self.asked: list[OAuth] = []
        self.may = asyncio.Event()
        self.may.set()
        self.fails: Exception | None = None
        self.next_refresh: Callable[[int], str | None] = lambda _: None
        self.rotated: list[tuple[str | None, str]] = []

    async def fetch(self, oauth: OAuth, username: str | None) -> Granted:
        assert username == "u"
        self.asked.append(oauth)
        number = len(self.asked)
        await self.may.wait()
        if self.fails is not None:
            raise self.fails
        return Granted(f"t{number}", self.life, self.next_refresh(number))

    async def note(self, oauth: OAuth, refresh_token: str) -> None:
        self.rotated.append((oauth.refresh_token, refresh_token))


def source_of(provider: Provider, clock: ManualClock) -> TokenSource:
    return TokenSource(SETTINGS, "u", clock=clock, fetch=provider.fetch, rotated=provider.note, used=lambda: None)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def failure(*, passing: bool = True) -> TokenFailed:
    return TokenFailed("token_delayed", "not now", remedy="", pause_seconds=60, passing=passing)


@pytest.mark.parametrize(("life", "ahead"), [(3600, 300), (600, 120), (100_000, 300), (10, 2)])
async def test_it_is_fetched_ahead_of_its_end_and_nobody_waits_for_that(life: float, ahead: float) -> None:
    provider, clock = Provider(life), ManualClock()
    source = source_of(provider, clock)
    assert await source() == "t1"
    clock.advance(life - ahead - 0.5)
    assert await source() == "t1"
    await settled()
    assert len(provider.asked) == 1
    clock.advance(0.5)
    provider.may.clear()
    assert [await source(), await source()] == ["t1", "t1"], "while the next is being fetched"
    await settled()
    assert len(provider.asked) == 2
    provider.may.set()
    await settled()
    assert await source() == "t2"
    assert len(provider.asked) == 2


async def test_the_wall_clock_does_not_matter() -> None:
    provider, clock = Provider(), ManualClock()
    source = source_of(provider, clock)
    await source()
    clock.jump(-86_400 * 365)
    clock.jump(86_400 * 730)
    assert await source() == "t1"


async def test_one_fetch_serves_all_who_wait_even_if_the_first_goes_away() -> None:
    provider, clock = Provider(), ManualClock()
    provider.may.clear()
    source = source_of(provider, clock)
    waiting = [asyncio.create_task(source()) for _ in range(10)]
    await settled()
    waiting[0].cancel()
    await settled()
    provider.may.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == ["t1"] * 9
    assert len(provider.asked) == 1


async def test_a_failure_is_told_to_all_who_wait_each_with_its_own() -> None:
    provider, clock = Provider(), ManualClock()
    provider.fails = failure()
    source = source_of(provider, clock)
    found = await asyncio.gather(*(source() for _ in range(5)), return_exceptions=True)
    assert all(isinstance(one, TokenFailed) and one.pause_seconds == 60 for one in found)
    assert len({id(one) for one in found}) == 5
    assert len(provider.asked) == 1
    provider.fails = None
    assert await source() == "t2"


async def test_a_renewal_that_fails_is_tried_again_after_a_minute_while_the_token_lasts() -> None:
    provider, clock = Provider(), ManualClock()
    source = source_of(provider, clock)
    await source()
    provider.fails = failure()
    clock.advance(3300)
    for _ in range(3):
        assert await source() == "t1"
        await settled()
    assert len(provider.asked) == 2
    clock.advance(60)
    assert await source() == "t1"
    await settled()
    assert len(provider.asked) == 3
    clock.advance(240)
    with pytest.raises(TokenFailed):
        await source()


async def test_a_token_that_ends_at_once_serves_those_who_waited_for_it() -> None:
    provider, clock = Provider(life=0), ManualClock()
    source = source_of(provider, clock)
    assert [await source(), await source()] == ["t1", "t2"]


async def test_a_refused_token_is_replaced_once_and_then_not_before_one_was_taken() -> None:
    provider, clock = Provider(), ManualClock()
    source = source_of(provider, clock)
    assert await source.refused(await source()) is True
    assert await source() == "t2"
    assert await source.refused("t2") is False, "the account is to blame"
    assert await source.refused(await source()) is False, "an hour later, on trial: one login, not two"
    assert await source() == "t4"
    source.accepted("t4")
    assert await source.refused("t4") is True
    assert await source() == "t5"
    assert len(provider.asked) == 5


async def test_an_old_token_that_is_refused_does_not_take_the_new_one_away() -> None:
    provider, clock = Provider(), ManualClock()
    source = source_of(provider, clock)
    await source()
    await source.refused("t1")
    assert await source() == "t2"
    assert await source.refused("t1") is True
    assert await source() == "t2"


async def test_a_refresh_token_that_changes_is_noted_before_the_token_is_given_out() -> None:
    provider, clock = Provider(), ManualClock()
    provider.next_refresh = lambda number: f"r{number}" if number != 2 else "r1"
    source = source_of(provider, clock)
    await source()
    assert provider.rotated == [("r0", "r1")]
    clock.advance(3600)
    await source()
    clock.advance(3600)
    await source()
    assert [oauth.refresh_token for oauth in provider.asked] == ["r0", "r1", "r1"]
    assert provider.rotated == [("r0", "r1"), ("r1", "r3")], "the same one again is no change"


async def test_closing_ends_what_is_under_way() -> None:
    provider, clock = Provider(), ManualClock()
    provider.may.clear()
    source = source_of(provider, clock)
    waiting = asyncio.create_task(source())
    await settled()
    await source.close()
    with pytest.raises(ConnectFailed, match="stopping"):
        await waiting
