"""Senders that are refused again and again: when somebody must know, and how much of it is remembered."""

from __future__ import annotations

import pytest

from core.runtime.refused_senders import MOST, RefusedSenders
from tests.support.clock import ManualClock

DAY = 86_400.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def refused(clock: ManualClock) -> RefusedSenders:
    return RefusedSenders(clock)


def test_three_times_is_again_and_again_whoever_the_senders_are(refused: RefusedSenders, clock: ManualClock) -> None:
    since = clock.now()
    refused.note("out", "a@example.org", "550 no")
    clock.advance(60)
    refused.note("out", "b@example.org", "554 never")
    refused.note("other", "a@example.org", "550 no")
    assert list(refused.repeated()) == []
    refused.note("out", "b@example.org", "554 never")
    (found,) = refused.repeated()
    assert (found.account, found.times, found.since) == ("out", 3, since)
    assert found.detail == ("refused 3 times to send as b@example.org, a@example.org; the server said: 554 never")


def test_what_was_long_ago_does_not_count(refused: RefusedSenders, clock: ManualClock) -> None:
    for _ in range(3):
        refused.note("out", "a@example.org", "550 no")
        clock.advance(DAY / 2)
    assert [found.times for found in refused.repeated()] == [3]  # it goes on
    clock.advance(DAY / 2 + 1)
    assert list(refused.repeated()) == []
    refused.note("out", "a@example.org", "550 no")
    assert list(refused.repeated()) == []


def test_an_account_is_forgotten_alone(refused: RefusedSenders) -> None:
    for account in ("one", "two"):
        for _ in range(3):
            refused.note(account, "", "550 no")
    refused.forget("one")
    (found,) = refused.repeated()
    assert found.account == "two"
    assert "the null sender" in found.detail


def test_no_more_than_so_many_are_remembered_and_three_named(refused: RefusedSenders) -> None:
    for number in range(MOST + 10):
        refused.note("out", f"a{number:04}@example.org", "550 no")
    (found,) = refused.repeated()
    assert found.times == MOST
    assert f"a0012@example.org and {MOST - 3} more" in found.detail
