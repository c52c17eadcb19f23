"""P1, P2, P7, P8: kill -9 at random moments under load; the receiving server's ledger is the oracle.

What was in flight at a kill (begun, without an outcome) is read from the outcome logs of the dead, by claim: that is
what may be doubled, once each. The bound of it is checked by the number of connections.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from core.spool.logread import read_logs
from tests.chaos.child import Place, faults_in, place_at, serving, set_up, work_off
from tests.chaos.mails import MIXED, Letter, hand_over, letters
from tests.chaos.result import Plan, Reckoning, Row, marked, reckon
from tests.chaos.server import Ledger, refused, server
from tests.support.service import service

CONNECTIONS = 5
BACKLOG = 150  # what waits while it is killed: it is always under load


@dataclass
class InFlight:
    """What the dead left open in their logs; each claim counts once, however often it is read."""

    path: Path
    claims: dict[tuple[str, str], str] = field(default_factory=dict)  # (token, mailbox) -> key of the mail
    most: int = 0  # claims that one kill added

    def look(self) -> None:
        """After a kill, before anybody recovers."""
        mpu = self.path / ".mpu"
        if not mpu.exists():
            return
        fd = os.open(mpu, os.O_RDONLY | os.O_DIRECTORY)
        new = set()
        try:
            for log in read_logs(fd, but=()):
                for logged in log.claims.values():
                    key = logged.arrival_name.decode().removesuffix(".eml")
                    for mailbox in logged.begun:
                        if (logged.token, mailbox) not in self.claims:
                            self.claims[logged.token, mailbox] = key
                            new.add(logged.token)
                log.close()
        finally:
            os.close(fd)
        self.most = max(self.most, len(new))

    def allowed(self) -> Counter[tuple[str, str]]:
        """How often a (key, mailbox) may have been taken beyond once."""
        return Counter((key, mailbox) for (_, mailbox), key in self.claims.items())


@dataclass
class _Run:
    plan: Plan
    kills: int
    mails: list[Letter]
    place: Place
    chance: random.Random
    in_flight: InFlight
    ledger: Ledger
    handed: int = 0

    def go(self, through_service: int) -> None:
        """All kills; the last ones go to the whole `mpu serve`."""
        for kill in range(self.kills):
            wanted = min(BACKLOG + (kill + 1) * len(self.mails) // self.kills, len(self.mails))
            batch, self.handed = self.mails[self.handed : wanted], wanted
            if kill < self.kills - through_service:
                self._kill_child(batch)
            else:
                self._kill_service(batch)
            self.in_flight.look()
        work_off(self.place)

    def _kill_child(self, batch: list[Letter]) -> None:
        """At a moment from the first instant of its start on, or when some messages were taken."""
        child = serving(self.place)
        moment = time.monotonic() + self.chance.random() * 0.15
        hand_over(self.place.pickup, batch, self.chance)
        if self.chance.random() < 0.3:
            time.sleep(max(moment - time.monotonic(), 0))
        else:
            self.ledger.wait_for(self.chance.randrange(1, 50))
            time.sleep(self.chance.random() * 0.003)
        child.kill()

    def _kill_service(self, batch: list[Letter]) -> None:
        with service(self.place.data, self.place.pickup.parent) as running:
            hand_over(self.place.pickup, batch, self.chance)
            self.ledger.wait_for(self.chance.randrange(1, 50))
            running.kill()


def kills(plan: Plan) -> list[Row]:
    """1,000 kills, 20,000 messages."""
    chance = random.Random(plan.seed)
    place = place_at(plan.root)
    count, through_service = plan.size(1000, 12), plan.size(20, 0)
    mails = letters(chance, "k", plan.size(20_000, 400), MIXED)
    ledger = Ledger(plan.root / "ledger")
    run = _Run(plan, count, mails, place, chance, InFlight(place.pickup), ledger)
    with server(ledger.path, round_trip_seconds=0.002) as port:
        set_up(place, port, max_connections=CONNECTIONS)
        run.go(through_service)
    reckoning = reckon(mails, ledger.read())
    dead = {m.name for m in mails if any(map(refused, m.recipients))}
    rows = _rows(run, reckoning, ledger)
    for name in sorted(place.badmail() ^ dead):
        rows[0].miss(f"{name}: badmail holds what was refused for good, and nothing else")
    mixed = [m for m in mails if any("t@" not in r for r in m.recipients)]
    rows.append(_accepted(run, reckoning, mixed))
    rows.append(_intact(mails, reckoning))
    return rows


def _rows(run: _Run, reckoning: Reckoning, ledger: Ledger) -> list[Row]:
    allowed = run.in_flight.allowed()
    first = Row("P1", "kill -9 at random moments under load", run.kills, len(run.mails), len(reckoning.lost))
    first.misses += [f"{mailbox} was lost" for mailbox in reckoning.lost]
    first.misses += [f"{mailbox} was refused and yet taken" for mailbox in reckoning.refused_yet_taken]
    first.misses += faults_in(run.place.log)
    first.expect(not run.place.names(), f"left over: {run.place.names()[:5]}")
    first.expect(not run.place.logs_left(), f"logs left over: {run.place.logs_left()[:5]}")
    first.expect(ledger.messages >= len(run.mails) // 2, "the server took next to nothing: the run shows nothing")
    second = Row("P2", "duplicates only of what was in flight, each marked", run.kills, len(run.mails))
    second.doubles_allowed, second.doubles_seen = sum(allowed.values()), reckoning.doubled.total()
    known = marked(run.place.database)
    for (key, mailbox), times in reckoning.doubled.items():
        second.expect(
            times <= allowed[key, mailbox], f"{mailbox} came {times} times too often, {allowed[key, mailbox]}"
        )
        second.expect(key in known, f"{key} was doubled and isn't marked in the history")
    second.expect(run.in_flight.most <= CONNECTIONS, f"{run.in_flight.most} in flight on {CONNECTIONS} connections")
    second.notes = f"at most {run.in_flight.most} messages in flight at a kill, {CONNECTIONS} connections"
    return [first, second]


def _accepted(run: _Run, reckoning: Reckoning, mixed: list[Letter]) -> Row:
    """Messages that were sent in parts: some recipients taken, others put off or refused."""
    row = Row("P7", "who was accepted is never sent to again", run.kills, len(mixed))
    allowed, keys = run.in_flight.allowed(), {m.key for m in mixed}
    row.doubles_allowed = sum(n for (key, _), n in allowed.items() if key in keys)
    for (key, mailbox), times in reckoning.doubled.items():
        if key in keys:
            row.doubles_seen += times
            row.expect(times <= allowed[key, mailbox], f"{mailbox} was sent to {times} times too often")
    return row


def _intact(mails: list[Letter], reckoning: Reckoning) -> Row:
    row = Row("P8", "bodies arrive intact, by hash (same run)", 1, len(mails))
    row.misses += [f"{key} arrived otherwise than it should" for key in reckoning.damaged]
    return row
