"""Limits: never more than the limit in any window, until when, and how an account slows down and creeps back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.domain.account import Account
from core.domain.limits import (
    DAY,
    HOUR,
    MINUTE,
    SHORT_WAIT_SECONDS,
    FewerConnections,
    Limits,
    Meter,
    Pace,
    Reservation,
    Slowdown,
    Window,
    fewer,
    slower,
)

NOW = 5_000.0
ACCURACY = 1e-6


def most_in_any(times: Sequence[tuple[float, int]], span: float) -> int:
    """The most that any window of that length, without its end, has."""
    most = inside = first = 0
    for at, count in times:
        inside += count
        while at - times[first][0] >= span - ACCURACY:
            inside -= times[first][1]
            first += 1
        most = max(most, inside)
    return most


def test_an_account_without_limits_has_none() -> None:
    assert Limits.of(Account("a", "h")) is None
    assert Limits.of(Account("a", "h", recipients_per_day=5)) == Limits(recipients_per_day=5)


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("span", "buckets"), [(MINUTE, 60), (HOUR, 60), (DAY, 288)])
@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(1, 20),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 4)), min_size=1, max_size=120),
)
def test_no_window_has_more_than_the_limit_and_none_stays_shut_for_long(
    span: float, buckets: int, limit: int, steps: list[tuple[float, int]]
) -> None:
    sent: list[tuple[float, int]] = []
    window, now = Window(span, buckets), NOW
    for step, count in steps:
        now += step * span / 8
        at = window.free_at(now, limit, count)
        if count > limit:
            assert at == math.inf
            continue
        exact = exactly_free(sent, now, limit, count, span)
        assert exact - ACCURACY <= at <= exact + span / buckets + ACCURACY, "at most a bucket later than possible"
        if at > now + span / 4:
            continue  # nobody waits so long
        now = at
        assert window.free_at(now, limit, count) == now, "what it said holds"
        window.add(now, count)
        sent.append((now, count))
    assert most_in_any(sent, span) <= limit


def exactly_free(sent: list[tuple[float, int]], now: float, limit: int, count: int, span: float) -> float:
    for at in [now, *(t + span for t, _ in sent if t + span > now)]:
        if sum(c for t, c in sent if t + span > at + ACCURACY) + count <= limit:
            return at
    return now


def test_a_window_needs_no_more_memory_than_its_buckets() -> None:
    window = Window(DAY, 288)
    for second in range(0, 3 * 86_400, 30):
        window.add(NOW + second, 1)
    assert len(window._buckets) <= 289
    assert 2880 <= window.used(NOW + 3 * DAY - 30) <= 2890


# --- messages a second ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 1, 3, 14, 49, 60, 250, 1000])
def test_messages_a_second_are_spaced_and_reach_their_rate(rate: float) -> None:
    pace, now, times = Pace(rate), NOW, []
    for _ in range(400):
        now = pace.at(now)
        pace.take(now)
        times.append((now, 1))
    assert most_in_any(times, 1.0) <= math.ceil(rate)
    assert most_in_any(times, 1.019) <= math.ceil(rate), "so much may be shifted on the way"
    assert most_in_any(times, 10.0) <= math.ceil(10 * rate)
    assert 399 / (now - NOW) == pytest.approx(rate, rel=0.06)


@given(rate=st.floats(0.2, 500), pauses=st.lists(st.floats(0, 0.3), max_size=200))
def test_no_second_has_more_than_its_messages_whoever_comes_when(rate: float, pauses: list[float]) -> None:
    pace, now, times = Pace(rate), NOW, []
    for pause in pauses:
        now = pace.at(now + pause)
        pace.take(now)
        times.append((now, 1))
    assert most_in_any(times, 1.0) <= math.ceil(rate)


def test_late_timers_cost_no_speed_where_messages_come_close_together() -> None:
    pace, now = Pace(500), NOW
    for _ in range(1000):
        now = pace.at(now) + 0.0005
        pace.take(now)
    assert 1000 / (now - NOW) == pytest.approx(500, rel=0.06)


# --- the meter --------------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """An account that is used: messages set out, take time, and end somehow."""

    meter: Meter
    now: float = NOW
    under_way: list[tuple[Reservation, float]] = field(default_factory=list)
    taken: list[tuple[float, int]] = field(default_factory=list)  # when the server counted it, recipients

    def set_out(self, recipients: int, counted_after: float) -> bool:
        if self.meter.refused(self.now) is not None:
            return False
        room = self.meter.reserve(self.now, recipients)
        assert 1 <= room.recipients <= recipients
        self.now = self.meter.turn_at(self.now)
        self.meter.take_turn(self.now, room)
        self.under_way.append((room, self.now + counted_after))
        return True

    def end(self, sent: int, counted_after: float) -> None:
        """The first under way; the server counted it somewhere between its start and now."""
        room, at = self.under_way.pop(0)
        sent = min(sent, room.recipients)
        self.now = max(self.now, at) + counted_after
        self.meter.settle(self.now, room, sent)
        if sent:
            self.taken.append((at, sent))


STEP = st.one_of(
    st.tuples(st.just("out"), st.integers(1, 8), st.floats(0, 40)),
    st.tuples(st.just("end"), st.integers(0, 8), st.floats(0, 40)),
    st.tuples(st.just("wait"), st.just(0), st.floats(0, 2000)),
)


@given(
    st.builds(
        Limits,
        messages_per_second=st.one_of(st.none(), st.sampled_from([0.5, 2.0, 20.0])),
        messages_per_minute=st.one_of(st.none(), st.integers(1, 5)),
        messages_per_hour=st.one_of(st.none(), st.integers(1, 10)),
        messages_per_day=st.one_of(st.none(), st.integers(1, 20)),
        recipients_per_day=st.one_of(st.none(), st.integers(1, 30)),
    ),
    st.lists(STEP, max_size=80),
)
def test_whatever_is_under_way_at_once_no_window_of_the_server_has_more_than_the_limit(
    limits: Limits, steps: list[tuple[str, int, float]]
) -> None:
    line = Line(Meter(limits))
    for what, count, seconds in steps:
        if what == "out":
            line.set_out(count, seconds)
        elif what == "end" and line.under_way:
            line.end(count, seconds)
        else:
            line.now += seconds
    while line.under_way:
        line.end(8, 1.0)
    counted = sorted(line.taken)
    messages = [(at, 1) for at, _ in counted]
    for limit, span in (
        (limits.messages_per_minute, MINUTE),
        (limits.messages_per_hour, HOUR),
        (limits.messages_per_day, DAY),
    ):
        assert limit is None or most_in_any(messages, span) <= limit
    assert limits.recipients_per_day is None or most_in_any(counted, DAY) <= limits.recipients_per_day
    assert (line.meter.in_line, line.meter.until(line.now + 2 * DAY)) == (0, line.now + 2 * DAY)


@pytest.mark.parametrize(
    ("limits", "sent", "next_after"),
    [
        (Limits(messages_per_minute=3), 3, 61),
        (Limits(messages_per_hour=3), 3, 3660),
        (Limits(messages_per_day=3), 3, 86_700),
        (Limits(recipients_per_day=6), 3, 86_700),
        (Limits(messages_per_minute=2, messages_per_hour=3), 2, 61),
        (Limits(messages_per_minute=3, messages_per_hour=3), 3, 3660),
    ],
)
def test_when_it_is_used_up_it_says_when_one_more_may_go(limits: Limits, sent: int, next_after: float) -> None:
    meter = Meter(limits)
    start = NOW - NOW % 300
    for _ in range(sent):
        assert meter.refused(start) is None
        meter.settle(start, meter.reserve(start, 2), 2)
    assert meter.refused(start + 0.5) == start + next_after
    assert meter.refused(start + next_after) is None


def test_what_was_refused_gives_its_room_back() -> None:
    meter = Meter(Limits(messages_per_day=2, recipients_per_day=10))
    rooms = [meter.reserve(NOW, 4) for _ in range(2)]
    assert meter.refused(NOW) is not None
    assert meter.recipients(NOW) == 2
    meter.settle(NOW, rooms[0], 0)
    assert meter.refused(NOW) is None
    meter.settle(NOW, rooms[1], 3)
    assert (meter.recipients(NOW), meter.used(NOW)) == (7, (1, 1, 3))


def test_a_message_for_more_than_the_day_allows_goes_in_parts() -> None:
    meter, now, left, days = Meter(Limits(recipients_per_day=100)), NOW, 250, []
    assert meter.until(now, 250) == math.inf
    while left:
        room = meter.reserve(now, left)
        meter.settle(now, room, room.recipients)
        left -= room.recipients
        days.append(room.recipients)
        now = meter.until(now)
    assert days == [100, 100, 50]
    assert NOW + 2 * DAY <= now <= NOW + 3 * DAY + 900


def test_a_short_line_is_waited_for_and_a_long_one_refuses() -> None:
    meter = Meter(Limits(messages_per_second=2))
    rooms = []
    while meter.refused(NOW) is None:
        rooms.append(meter.reserve(NOW, 1))
    assert len(rooms) == 2 * SHORT_WAIT_SECONDS
    assert meter.refused(NOW) == pytest.approx(NOW + 10 * 0.51)
    turns = []
    now = NOW
    for room in rooms:
        now = meter.turn_at(now)
        meter.take_turn(now, room)
        turns.append(now - NOW)
    assert turns == pytest.approx([n * 0.51 for n in range(10)])


def test_what_was_sent_before_counts() -> None:
    meter = Meter(Limits(messages_per_hour=5, messages_per_day=9, recipients_per_day=50))
    meter.restore(NOW, [(7200.0, 4, 30), (60.0, 3, 6), (-5.0, 1, 2)])
    assert meter.used(NOW) == (4, 8, 38)
    meter.settle(NOW, meter.reserve(NOW, 1), 1)
    until = meter.refused(NOW)
    assert until is not None
    assert NOW + DAY - 7200 <= until <= NOW + DAY - 7200 + 300


def test_other_limits_keep_what_was_counted() -> None:
    meter = Meter(Limits(messages_per_day=100))
    meter.sent(NOW, 10, 10)
    meter.set(Limits(messages_per_hour=10))
    assert meter.refused(NOW) is not None
    meter.set(Limits(messages_per_hour=11))
    assert meter.refused(NOW) is None


# --- slower -----------------------------------------------------------------------------------------------------------


def test_it_slows_to_half_of_what_was_reached_and_creeps_back_to_none() -> None:
    slowdown = slower(None, 40.0, NOW)
    assert slowdown is not None
    rates = [slowdown.at(NOW + minutes * MINUTE) for minutes in range(16)]
    assert rates[:3] == pytest.approx([20, 22, 24.2])
    assert all(rate is not None for rate in rates[:15])
    assert rates[15] is None, "four times as fast as when it began: lifted"


@pytest.mark.parametrize(
    ("present", "reached", "rate"),
    [
        (None, None, None),
        (None, 10.0, 5.0),
        (Slowdown(8.0, NOW, 32.0), None, 4.0),
        (Slowdown(8.0, NOW, 32.0), 2.0, 1.0),
        (Slowdown(8.0, NOW, 32.0), 100.0, 4.0),
        (None, 0.01, 0.2),
        (Slowdown(0.2, NOW, 32.0), None, 0.2),
    ],
)
def test_how_much_slower(present: Slowdown | None, reached: float | None, rate: float | None) -> None:
    after = slower(present, reached, NOW)
    assert (after.rate if after is not None else None) == rate
    if after is not None and present is not None:
        assert after.top >= present.top, "the end of the road stays where it was"


def test_the_rate_that_was_reached_is_measured() -> None:
    meter = Meter(Limits(messages_per_second=50))
    now = NOW
    for _ in range(40):
        room = meter.reserve(now, 1)
        meter.take_turn(now, room)
        meter.settle(now, room, 1)
        now += 0.1
    meter.throttled(now)
    assert meter.rate(now) == pytest.approx(5, rel=0.05)
    assert meter.rate(now + 10 * MINUTE) == pytest.approx(5 * 1.1**10, rel=0.05)
    assert meter.rate(now + 60 * MINUTE) == 50, "its own limit again"
    assert meter.slowdown is None


def test_one_connection_fewer_comes_back_after_a_while() -> None:
    fewest = fewer(in_use=5, allowed=5, now=NOW)
    assert [fewest.at(NOW + m * MINUTE, 5) for m in (0, 9.9, 10)] == [4, 4, None]
    assert fewer(in_use=0, allowed=3, now=NOW).most == 2
    assert fewer(in_use=1, allowed=5, now=NOW).most == 1
    assert FewerConnections(1, NOW).at(NOW + 25 * MINUTE, 5) == 3


def test_another_rate_counts_from_the_last_message_not_from_where_the_old_one_put_the_next() -> None:
    pace = Pace(0.001)
    pace.take(NOW)
    assert pace.at(NOW) > NOW + 900
    pace.set(10)
    assert NOW < pace.at(NOW) < NOW + 0.2
    pace.set(0.5)
    assert NOW + 1.9 < pace.at(NOW) < NOW + 2.2
