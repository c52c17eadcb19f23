"""How much an account may send, and when one more message may go. Pure: the time is passed in.

- Windows roll, they don't begin anew at midnight. What was sent is counted in small buckets (a minute in seconds, an
  hour in minutes, a day in 5 minutes), and a bucket counts until the last it may hold is a whole window ago: never more
  than the limit in ANY window, and at most one bucket later than exactly possible.
- What is under way counts as sent from the moment it sets out; what was sent counts from the moment its outcome is
  known. So the server, which counts somewhere in between, never counts more than the limit either.
- Messages a second are spaced, not sent in a burst; by 2 % more than exactly possible, for what loop and network shift.
  Over 50 a second the spacing is kept over 20 ms, for the sake of coarse timers, and is that much wider.
- A server that says "too fast" halves what was really reached; it creeps back by a tenth a minute, to none.

Times are seconds of one monotonic clock: a wall clock that is set changes no count.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from core.domain.account import Account

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
SHORT_WAIT_SECONDS = 5.0  # so long a message may stand in line for its account; longer refuses the account
PATIENCE_SECONDS = 2 * SHORT_WAIT_SECONDS  # until then a run, and a message that is open, wait for an account's room

_SHIFTED_SECONDS = 0.02  # messages of one second may come to the server so much closer together than they set out
_COARSE_SECONDS = 0.02  # spacing below this is kept over this time, not from one message to the next
_SLOWEST_PER_SECOND = 1 / SHORT_WAIT_SECONDS  # what throttling alone comes down to
_GROWTH_PER_MINUTE = 1.1
_LIFTED_AT = 2.0  # times the rate that was too fast: no longer held back
_CONNECTION_BACK_SECONDS = 600.0  # one more may be tried again
_MEASURED_SECONDS = 10.0
_MEASURED_MIN = 5  # messages in that time; fewer tell nothing of the rate


@dataclass(frozen=True, slots=True)
class Limits:
    """Of an account; None: none. Messages are transactions that the server took."""

    messages_per_second: float | None = None
    messages_per_minute: int | None = None
    messages_per_hour: int | None = None
    messages_per_day: int | None = None
    recipients_per_day: int | None = None

    @classmethod
    def of(cls, account: Account) -> Limits | None:
        """None: it has none at all."""
        limits = cls(
            account.messages_per_second,
            account.messages_per_minute,
            account.messages_per_hour,
            account.messages_per_day,
            account.recipients_per_day,
        )
        return None if limits == NONE else limits


NONE = Limits()


class Window:
    """What was counted in the last `span` seconds, in that many buckets; and what is held for what is under way."""

    __slots__ = ("_buckets", "_counted", "_span", "_width", "held")

    def __init__(self, span: float, buckets: int) -> None:
        self._span = span
        self._width = span / buckets
        self._buckets: deque[tuple[int, int]] = deque()  # number, count; at most `buckets` + 1
        self._counted = 0
        self.held = 0

    def add(self, now: float, count: int) -> None:
        """So many, now; never before what was added last."""
        self._forget(now)
        number = math.floor(now / self._width)
        if self._buckets and self._buckets[-1][0] >= number:
            number, before = self._buckets.pop()
            self._buckets.append((number, before + count))
        else:
            self._buckets.append((number, count))
        self._counted += count

    def clear(self) -> None:
        """Nothing was counted; what is held stays."""
        self._buckets.clear()
        self._counted = 0

    def used(self, now: float) -> int:
        """Counted and held."""
        self._forget(now)
        return self._counted + self.held

    def free_at(self, now: float, limit: int, count: int = 1) -> float:
        """When so many more fit under the limit: `now`, or later; never: infinity."""
        too_many = self.used(now) + count - limit
        if too_many <= 0:
            return now
        if count > limit:
            return math.inf
        for number, counted in self._buckets:
            too_many -= counted
            if too_many <= 0:
                return self._end(number)
        return now + self._span + self._width  # what is under way counts from its outcome on

    def per_second(self, now: float) -> float:
        """How many a second, since the first that still counts."""
        self._forget(now)
        if not self._buckets:
            return 0.0
        return self._counted / max(now - self._buckets[0][0] * self._width, self._width)

    def _forget(self, now: float) -> None:
        while self._buckets and self._end(self._buckets[0][0]) <= now:
            self._counted -= self._buckets.popleft()[1]

    def _end(self, number: int) -> float:
        return (number + 1) * self._width + self._span


class Pace:
    """Messages a second, spaced."""

    __slots__ = ("_next", "_slack", "rate", "spacing")

    def __init__(self, rate: float | None = None) -> None:
        self._next = -math.inf
        self.spacing = 0.0
        self.set(rate)

    def set(self, rate: float | None) -> None:
        """Another rate, from the next message on; None: as fast as it goes."""
        self.rate = rate
        spacing = 0.0 if rate is None else 1 / rate
        self._slack = _COARSE_SECONDS if 0 < spacing < _COARSE_SECONDS else 0.0
        before, self.spacing = self.spacing, spacing * (1 + self._slack + _SHIFTED_SECONDS)
        self._next += self.spacing - before  # so long after the last one, not as long as the old rate wanted

    def at(self, now: float) -> float:
        """When the next message may go: `now`, or later."""
        return max(now, self._next - self._slack)

    def take(self, now: float) -> None:
        """One goes now."""
        self._next = max(now, self._next) + self.spacing


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A rate that the server's replies asked for. `top`: from there on it is over."""

    rate: float  # messages a second, at `since`
    since: float
    top: float

    def at(self, now: float) -> float | None:
        """The rate by now; None: crept back."""
        minutes = max(now - self.since, 0.0) / MINUTE
        if self.rate * _GROWTH_PER_MINUTE ** min(minutes, 1000.0) >= self.top:
            return None
        return float(self.rate * _GROWTH_PER_MINUTE**minutes)


def slower(present: Slowdown | None, reached: float | None, now: float) -> Slowdown | None:
    """Half of what was reached (messages a second; None: unknown), or of what was allowed, whichever is less."""
    allowed = present.at(now) if present is not None else None
    known = [rate for rate in (reached, allowed) if rate is not None]
    if not known:
        return None
    top = max(_LIFTED_AT * min(known), present.top if present is not None and allowed is not None else 0.0)
    return Slowdown(max(min(known) / 2, _SLOWEST_PER_SECOND), now, max(top, _LIFTED_AT * _SLOWEST_PER_SECOND))


@dataclass(frozen=True, slots=True)
class FewerConnections:
    """So many at most since then; one more each 10 minutes."""

    most: int
    since: float

    def at(self, now: float, setting: int) -> int | None:
        """How many by now; None: as many as the setting says."""
        most = self.most + int(max(now - self.since, 0.0) // _CONNECTION_BACK_SECONDS)
        return most if most < setting else None


def fewer(in_use: int, allowed: int, now: float) -> FewerConnections:
    """One fewer than were in use when the server said that they were too many; one at least."""
    return FewerConnections(max(min(in_use or allowed, allowed) - 1, 1), now)


@dataclass(slots=True)
class Reservation:
    """Room for one message under way."""

    recipients: int
    in_line: bool = True  # it has not been its turn yet


class Meter:
    """One account: what it sent, what is under way, and when one more may go."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.slowdown: Slowdown | None = None
        self.in_line = 0  # set out, and waiting for their turn
        self._pace = Pace(limits.messages_per_second)
        self._minute = Window(MINUTE, 60)
        self._hour = Window(HOUR, 60)
        self._day = Window(DAY, 288)
        self._recipients = Window(DAY, 288)
        self._started = Window(_MEASURED_SECONDS, 10)
        self._messages = (self._minute, self._hour, self._day)

    def set(self, limits: Limits) -> None:
        """Other limits; what was counted stays."""
        self.limits = limits
        self._pace.set(limits.messages_per_second)

    def restore(self, now: float, counts: Iterable[tuple[float, int, int]]) -> None:
        """All that was sent until now: (seconds ago, messages, recipients). What is under way stays held."""
        for window in (*self._messages, self._recipients):
            window.clear()
        for ago, messages, recipients in sorted(counts, reverse=True):
            self.sent(now - max(ago, 0.0), messages, recipients)

    def sent(self, now: float, messages: int, recipients: int) -> None:
        """So many that nothing was reserved for."""
        for window in self._messages:
            window.add(now, messages)
        self._recipients.add(now, recipients)

    # --- may it go ---

    def until(self, now: float, recipients: int = 1) -> float:
        """When the quotas have room for one more message of so many recipients: `now`, or later; never: infinity."""
        limits, at = self.limits, now
        if limits.messages_per_minute is not None:
            at = max(at, self._minute.free_at(now, limits.messages_per_minute))
        if limits.messages_per_hour is not None:
            at = max(at, self._hour.free_at(now, limits.messages_per_hour))
        if limits.messages_per_day is not None:
            at = max(at, self._day.free_at(now, limits.messages_per_day))
        if limits.recipients_per_day is not None:
            at = max(at, self._recipients.free_at(now, limits.recipients_per_day, recipients))
        return at

    def refused(self, now: float) -> float | None:
        """When a message that can't set out now may go; None: it may set out, and waits in line for a moment."""
        at = self.until(now)
        if at > now:
            return at
        rate = self.rate(now)
        if rate is None:
            return None
        at = self._pace.at(now) + self.in_line * self._pace.spacing
        return at if at - now > SHORT_WAIT_SECONDS else None

    def recipients(self, now: float) -> int | None:
        """How many recipients may go now; None: as many as there are."""
        limit = self.limits.recipients_per_day
        return None if limit is None else max(limit - self._recipients.used(now), 0)

    # --- it goes ---

    def reserve(self, now: float, recipients: int) -> Reservation:
        """Room for a message that sets out; with fewer recipients, where the day has no room for all."""
        free = self.recipients(now)
        reservation = Reservation(recipients if free is None else min(recipients, free))
        for window in self._messages:
            window.held += 1
        self._recipients.held += reservation.recipients
        self.in_line += 1
        return reservation

    def turn_at(self, now: float) -> float:
        """When it is the turn of the first in line."""
        return now if self.rate(now) is None else self._pace.at(now)

    def take_turn(self, now: float, reservation: Reservation) -> None:
        """The first in line goes."""
        self._leave_line(reservation)
        self._pace.take(now)
        self._started.add(now, 1)

    def settle(self, now: float, reservation: Reservation, recipients: int) -> None:
        """Its outcome is known: so many recipients were sent to; 0: nothing was."""
        self._leave_line(reservation)
        for window in self._messages:
            window.held -= 1
        self._recipients.held -= reservation.recipients
        if recipients:
            self.sent(now, 1, recipients)

    def _leave_line(self, reservation: Reservation) -> None:
        if reservation.in_line:
            reservation.in_line = False
            self.in_line -= 1

    # --- the server says: slower ---

    def rate(self, now: float) -> float | None:
        """Messages a second now; None: as fast as it goes."""
        limit = self.limits.messages_per_second
        if self.slowdown is None:
            return limit
        slow = self.slowdown.at(now)
        if slow is None:
            self.slowdown = None
        rate = limit if slow is None else slow if limit is None else min(limit, slow)
        if rate != self._pace.rate:
            self._pace.set(rate)
        return rate

    def throttled(self, now: float, reached: float | None = None) -> None:
        """The server said that it goes too fast. `reached`: messages a second, where that was measured elsewhere."""
        if self._started.used(now) >= _MEASURED_MIN:
            reached = self._started.per_second(now)
        limit = self.limits.messages_per_second
        present = self.slowdown
        if present is None and limit is not None:
            reached = limit if reached is None else min(reached, limit)
        self.slowdown = slower(present, reached, now)
        self.rate(now)

    def used(self, now: float) -> tuple[int, int, int]:
        """Messages of the last hour, of the last day, recipients of the last day; with what is under way."""
        return self._hour.used(now), self._day.used(now), self._recipients.used(now)
