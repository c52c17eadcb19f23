"""The limits of accounts at work (core/domain/limits.py): who may set out, who stands in line, who is woken when.

An account without limits has no Quota, and nothing here is asked for it, until its server says that it goes too fast.
Counts are of what was sent; what is under way has its room reserved, so that messages at the same time don't overshoot.
They run on the monotonic clock; what was sent before the start comes from the database (core/store/usage.py).

Short waits are waited out here, in order: in line for the spacing of messages a second, and at the door for room that
is about to be free. Longer ones refuse the account, and `on_open` is told when one more may go.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import structlog
from sqlmodel import Session

from core.domain.account import Account
from core.domain.blame import TOO_FAST
from core.domain.clock import Clock
from core.domain.limits import NONE, PATIENCE_SECONDS, FewerConnections, Limits, Meter, Reservation, fewer
from core.store import usage
from core.store.slowdowns import Slowed
from core.store.usage import Used

log = structlog.get_logger()

FEWER_CONNECTIONS = "too_many_connections"
THROTTLED = frozenset({TOO_FAST, FEWER_CONNECTIONS})
"""Rulings of core/domain/blame.py that slow an account down. (Too many logins are no matter of messages a second.)"""

_CLOCK_SET_SECONDS = 0.1  # the wall clock was set, if it goes so far apart
_LATE_SECONDS = 0.001  # timers may be early by a rounding


class Quota:
    """One account's. Belongs to the event loop, but for what says otherwise."""

    def __init__(self, name: str, clock: Clock, on_open: Callable[[str], None]) -> None:
        self.name = name
        self.restored = False  # it counts what was sent before it was made
        self.connections: FewerConnections | None = None
        self.meter = Meter(NONE)
        self._clock = clock
        self._on_open = on_open
        self._line: deque[tuple[asyncio.Future[bool], Reservation]] = deque()
        self._line_timer: asyncio.TimerHandle | None = None
        self._door = asyncio.Lock()  # first come, first served
        self._at_door: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._opens_at: float | None = None  # monotonic; None: it was open when it was last looked at
        self._refused = False  # somebody was, since it was open last
        self._shown = (0.0, 0.0)  # a monotonic time, and that of the wall clock: the same for all who ask
        self._closed = False

    # --- what routing and delivery ask ---

    def refused_until(self) -> float | None:
        """When the next message may go, in seconds since the epoch; None: it may set out now."""
        now = self._clock.monotonic()
        at = self.meter.refused(now)
        if at is None:
            return None
        self._refused = True
        return self._wall(at)

    def reserve(self, recipients: int) -> Reservation:
        """A message sets out, with so many recipients or fewer."""
        reservation = self.meter.reserve(self._clock.monotonic(), recipients)
        self._changed()
        return reservation

    async def turn(self, reservation: Reservation) -> bool:
        """Wait in line. False: the service stops, nothing more is sent."""
        if self._closed:
            return False
        now = self._clock.monotonic()
        if not self._line and self.meter.turn_at(now) <= now:
            self.meter.take_turn(now, reservation)
            return True
        place = asyncio.get_running_loop().create_future()
        self._line.append((place, reservation))
        self._call_line()
        try:
            return bool(await place)
        except asyncio.CancelledError:
            self._line = deque(other for other in self._line if other[0] is not place)
            raise

    def settle(self, reservation: Reservation, recipients: int) -> None:
        """So many recipients of the message were sent to, or may have been."""
        self.meter.settle(self._clock.monotonic(), reservation, recipients)
        self._changed()

    def count(self, recipients: int) -> None:
        """A message went out that nothing was reserved for."""
        self.meter.sent(self._clock.monotonic(), 1, recipients)
        self._changed()

    async def wait(self) -> bool:
        """Wait until one more may set out, in order, if that is soon. False: it isn't."""
        async with self._door:
            while not self._closed:
                now = self._clock.monotonic()
                at = self.meter.refused(now)
                if at is None:
                    return True
                if at - now > PATIENCE_SECONDS:
                    return False
                self._refused = True
                self._at_door = asyncio.get_running_loop().create_future()
                self._changed()  # it may open in this moment, and knock
                await self._at_door
            return False

    # --- what slows it down ---

    def throttled(self, code: str, *, reached: float | None, connections: int, setting: int) -> None:
        """The server said so. `reached`: messages a second; `connections`: open now; `setting`: at most allowed."""
        now = self._clock.monotonic()
        self.meter.throttled(now, reached)
        if code == FEWER_CONNECTIONS:
            self.connections = fewer(connections, self.most_connections(setting) or setting, now)
        self._changed()
        log.warning(
            "account slows down",
            account=self.name,
            code=code,
            rate_per_second=self.meter.rate(now),
            connections=self.most_connections(setting),
            remedy="nothing to do: it creeps back by itself",
        )

    def slowed_as(self) -> Slowed | None:
        """What it is slowed down to, for the next start; None: it isn't."""
        if not self.slowed:
            return None
        rate, connections = self.meter.slowdown, self.connections
        ahead = self._clock.now() - self._clock.monotonic()
        return Slowed(
            None if rate is None else replace(rate, since=rate.since + ahead),
            None if connections is None else replace(connections, since=connections.since + ahead),
        )

    def slow_as(self, before: Slowed) -> None:
        """As it was in an earlier life; what has crept back since then is forgotten at the next look."""
        now, wall = self._clock.monotonic(), self._clock.now()

        def here(since: float) -> float:
            return now - max(wall - since, 0.0)  # a clock that was set back: as if just now

        if before.rate is not None:
            self.meter.slowdown = replace(before.rate, since=here(before.rate.since))
        if before.connections is not None:
            self.connections = replace(before.connections, since=here(before.connections.since))
        self._changed()

    def most_connections(self, setting: int) -> int | None:
        """How many for the time being; None: as many as its settings say."""
        if self.connections is None:
            return None
        most = self.connections.at(self._clock.monotonic(), setting)
        if most is None:
            self.connections = None
        return most

    @property
    def slowed(self) -> bool:
        """Its server asked for fewer messages or connections, and that isn't over yet."""
        self.meter.rate(self._clock.monotonic())
        return self.meter.slowdown is not None or self.connections is not None

    @property
    def over(self) -> bool:
        """It has no limits and is slowed down no more."""
        return self.meter.limits == NONE and not self.slowed

    # --- what is shown ---

    def next_at(self) -> float | None:
        """When one more may go, by limits and pace, in seconds since the epoch; None: now, or soon.

        From any thread.
        """
        at = self._opens_at
        return None if at is None or at <= self._clock.monotonic() else self._clock.now() + at - self._clock.monotonic()

    def spent_until(self) -> float | None:
        """Until when a limit of the account is spent, in seconds since the epoch, whatever its pace; None: none is."""
        now = self._clock.monotonic()
        at = self.meter.until(now)
        return None if at <= now else self._clock.now() + at - now

    def slowed_to(self) -> float | None:
        """Messages a second; None: it isn't slowed down. From any thread."""
        slowdown = self.meter.slowdown
        return None if slowdown is None else slowdown.at(self._clock.monotonic())

    def used(self) -> tuple[int, int, int]:
        """Messages of the last hour, of the last day, recipients of the last day; with what is under way."""
        return self.meter.used(self._clock.monotonic())

    def _wall(self, at: float) -> float:
        wall = self._clock.now() + at - self._clock.monotonic()
        if self._shown[0] != at or abs(self._shown[1] - wall) > _CLOCK_SET_SECONDS:
            self._shown = at, wall
        return self._shown[1]

    # --- time passes ---

    def look_again(self) -> None:
        """The clock was moved: who waits for it?"""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._call_line()
        self._knock()
        self._changed()

    def lift(self) -> None:
        """Nothing holds anybody back any more."""
        self.meter.set(NONE)
        self.meter.slowdown = None
        self.look_again()

    def close(self) -> None:
        """Nobody sets out any more; what is under way is settled all the same."""
        self._closed = True
        for timer in (self._timer, self._line_timer):
            if timer is not None:
                timer.cancel()
        for place, _ in self._line:
            if not place.done():
                place.set_result(False)
        self._knock()

    def _call_line(self) -> None:
        """All in line whose turn it is; then the timer for the next."""
        if self._line_timer is not None:
            self._line_timer.cancel()
            self._line_timer = None
        now = self._clock.monotonic()
        called = False
        while self._line and (at := self.meter.turn_at(now)) <= now:
            place, reservation = self._line.popleft()
            if not place.done():
                self.meter.take_turn(now, reservation)
                place.set_result(True)
                called = True
        if self._line:
            self._line_timer = asyncio.get_running_loop().call_later(at - now, self._call_line)
        if called:
            self._changed()

    def _changed(self) -> None:
        """Open, and somebody was refused: tell them. Not open: at the time when it will be."""
        if self._closed:
            return
        now = self._clock.monotonic()
        at = self._opens_at = self.meter.refused(now)
        if at is None:
            if self._refused:
                self._refused = False
                self._knock()
                self._on_open(self.name)
            return
        if at - now > PATIENCE_SECONDS:
            self._knock()
        if self._timer is None or at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = asyncio.get_running_loop().call_later(at - now + _LATE_SECONDS, self._due)

    def _due(self) -> None:
        self._timer = None
        self._changed()

    def _knock(self) -> None:
        if self._at_door is not None and not self._at_door.done():
            self._at_door.set_result(None)


def used_by(session: Session, accounts: Iterable[Account], now: float) -> dict[str, list[Used]]:
    """What those of the accounts that have limits sent in the 24 hours before, by name."""
    limited = [account.name for account in accounts if Limits.of(account) is not None]
    return {name: usage.last_day(session, name, now=now) for name in limited}


class Quotas:
    """Of all accounts that have limits, or are slowed down. `on_open`: one more message may go through the account."""

    def __init__(
        self,
        *,
        clock: Clock,
        on_open: Callable[[str], None],
        on_slowed: Callable[[str], None] = lambda _: None,
        restored: bool = True,
    ) -> None:
        """`restored` False: `restore` comes before the first message, and tells what is counted until then too.

        `on_slowed` is told the name of an account whose server asked for fewer messages or connections.
        """
        self._clock = clock
        self._on_open = on_open
        self._on_slowed = on_slowed
        self._quotas: dict[str, Quota] = {}
        self._before: Mapping[str, Iterable[Used]] | None = {} if restored else None
        self._closed = False

    def restore(self, used: Mapping[str, Iterable[Used]]) -> None:
        """What accounts sent in the last 24 hours; for those that have limits, or get them next."""
        self._before = used
        for quota in self:
            if quota.meter.limits != NONE:
                self._restore(quota)
                quota.look_again()

    def _restore(self, quota: Quota) -> None:
        """Once: from then on it counts by itself. What it counted while it was only slowed down is told by `_before`.

        A transaction that ends while limits are set, in the moment before its outcome is recorded, counts nowhere.
        """
        if self._before is None or quota.restored:
            return
        quota.restored = True
        now, wall = self._clock.monotonic(), self._clock.now()
        before = self._before.get(quota.name, ())
        quota.meter.restore(now, [(wall - used.until, used.messages, used.recipients) for used in before])

    def count(self, account: str, recipients: int) -> None:
        """A message went out that nothing was reserved for."""
        quota = self._quotas.get(account)
        if quota is not None and self._before is not None:
            quota.count(recipients)

    def get(self, name: str) -> Quota | None:
        """None: nothing holds the account back."""
        return self._quotas.get(name)

    def set(self, account: Account) -> Quota | None:
        """The account has these settings now."""
        limits, quota = Limits.of(account), self._quotas.get(account.name)
        if limits is None and (quota is None or not quota.slowed):
            self.remove(account.name)
            return None
        quota = quota or self._make(account.name)
        if limits is not None:
            self._restore(quota)
        quota.meter.set(limits or NONE)
        quota.look_again()
        return quota

    def throttled(self, account: Account, code: str, *, reached: float | None, connections: int) -> Quota:
        """Its server says that it goes too fast (THROTTLED)."""
        quota = self._quotas.get(account.name) or self._make(account.name)
        quota.throttled(code, reached=reached, connections=connections, setting=account.max_connections)
        self._on_slowed(account.name)
        return quota

    def slow_as(self, account: Account, before: Slowed) -> None:
        """It was slowed down so in an earlier life. Before it is `set`."""
        (self._quotas.get(account.name) or self._make(account.name)).slow_as(before)

    def slowed(self, name: str) -> Slowed | None:
        """What the account is slowed down to; None: it isn't."""
        quota = self._quotas.get(name)
        return None if quota is None else quota.slowed_as()

    def remove(self, name: str) -> None:
        """Nothing holds the account back any more."""
        quota = self._quotas.pop(name, None)
        if quota is not None:
            quota.lift()

    def look_again(self) -> None:
        """The clock was moved."""
        for quota in list(self._quotas.values()):
            quota.look_again()

    def close(self) -> None:
        """The service stops: who waits sends nothing."""
        self._closed = True
        for quota in self._quotas.values():
            quota.close()

    def __iter__(self) -> Iterator[Quota]:
        return iter([self._quotas[name] for name in sorted(self._quotas)])

    def _make(self, name: str) -> Quota:
        quota = self._quotas[name] = Quota(name, self._clock, self._on_open)
        if self._closed:
            quota.close()
        return quota
