"""Senders that an account's server keeps refusing: once is a mail's fault, again and again somebody must know.

Providers punish who goes on sending as what he may not (550 5.2.252). Kept in memory: it is about what happens now.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from core.domain.blame import DAY
from core.domain.clock import Clock

REPEATED = 3  # refusals within a day, of whatever senders
MOST = 1000  # senders remembered; the one that was refused longest ago goes
SHOWN = 3  # senders in an alert's detail


@dataclass(slots=True)
class _Refused:
    times: int
    since: float
    last: float
    said: str


@dataclass(frozen=True, slots=True)
class Repeated:
    """An account whose server refused senders several times. `since` in seconds since the epoch."""

    account: str
    times: int
    since: float
    detail: str


@dataclass(slots=True)
class RefusedSenders:
    """See the module's text."""

    clock: Clock
    _refused: dict[tuple[str, str], _Refused] = field(default_factory=dict)

    def note(self, account: str, sender: str, said: str) -> None:
        """The account's server refused that sender."""
        now = self.clock.now()
        known = self._refused.pop((account, sender), None)  # so that the order is that of the last refusals
        if known is None or now - known.last > DAY:
            known = _Refused(0, now, now, said)
        self._refused[account, sender] = _Refused(known.times + 1, known.since, now, said)
        if len(self._refused) > MOST:
            del self._refused[next(iter(self._refused))]

    def forget(self, account: str) -> None:
        """It has other settings now, or is gone."""
        self._refused = {key: value for key, value in self._refused.items() if key[0] != account}

    def repeated(self) -> Iterator[Repeated]:
        """Accounts by name, with what happened within a day."""
        now = self.clock.now()
        self._refused = {key: value for key, value in self._refused.items() if now - value.last <= DAY}
        for account in sorted({account for account, _ in self._refused}):
            rows = {sender: value for (name, sender), value in self._refused.items() if name == account}
            times = sum(row.times for row in rows.values())
            if times >= REPEATED:
                yield Repeated(account, times, min(row.since for row in rows.values()), _detail(rows, times))


def _detail(rows: dict[str, _Refused], times: int) -> str:
    most = sorted(rows, key=lambda sender: (-rows[sender].times, sender))
    names = ", ".join(sender or "the null sender" for sender in most[:SHOWN])
    more = f" and {len(most) - SHOWN} more" if len(most) > SHOWN else ""
    return f"refused {times} times to send as {names}{more}; the server said: {rows[most[0]].said}"
