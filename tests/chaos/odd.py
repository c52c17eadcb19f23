"""What else happens to a relay: a second one beside it that is killed, a lost database, the same name again, clocks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable

from core.runtime.clock import SystemClock
from tests.chaos.child import (
    PATIENCE_SECONDS,
    Place,
    directory_at,
    faults_in,
    fork,
    place_at,
    serve,
    serving,
    set_up,
    work_off,
)
from tests.chaos.effects import Killer, install
from tests.chaos.kills import InFlight
from tests.chaos.mails import MIXED, Letter, hand_over, letter, letters, write_in_place
from tests.chaos.result import Plan, Row, reckon
from tests.chaos.server import Ledger, server

DAY = 86_400.0
NAMES = 25
LOOK_AHEAD = 4  # so that neither of two relays has all messages open


def _judge(row: Row, mails: list[Letter], ledger: Ledger, place: Place, allowed: Counter[tuple[str, str]]) -> None:
    reckoning = reckon(mails, ledger.read())
    row.messages = len(mails)
    row.lost = len(reckoning.lost)
    row.doubles_allowed, row.doubles_seen = allowed.total(), reckoning.doubled.total()
    row.misses += [f"{mailbox} was lost" for mailbox in reckoning.lost]
    row.misses += [f"{mailbox} was refused and yet taken" for mailbox in reckoning.refused_yet_taken]
    row.misses += [f"{key} arrived otherwise than it should" for key in reckoning.damaged]
    for pair, times in reckoning.doubled.items():
        row.expect(times <= allowed[pair], f"{pair[1]} came {times} times too often, {allowed[pair]} allowed")
    left = place.names() + place.logs_left()
    row.expect(not left, f"left over: {left[:5]}")
    row.misses += faults_in(place.log)


def peers(plan: Plan) -> list[Row]:
    """Two relays on one directory; one is killed at an effect of its work, again and again, the other goes on."""
    row = Row("peers", "two processes on one directory, one is killed", plan.size(200, 6))
    chance = random.Random(plan.seed)
    place, other = place_at(plan.root / "one"), plan.root / "other"
    mails = letters(chance, "p", plan.size(6000, 200), MIXED)
    by_key = {mail.key: mail for mail in mails}
    ledger = Ledger(plan.root / "ledger")
    allowed: Counter[tuple[str, str]] = Counter()
    killed = 0
    with server(ledger.path, round_trip_seconds=0.005) as port:
        set_up(place, port, directory=directory_at(place, interval_seconds=1), max_connections=2)
        shutil.copytree(place.data, other / "data")
        second = Place(other, place.pickup, other / "data")
        survivor = serving(place, settings=place.settings(look_ahead=LOOK_AHEAD))
        begun = time.monotonic()
        while not place.logs_left():
            if time.monotonic() > begun + PATIENCE_SECONDS:
                raise TimeoutError(f"the survivor does not begin:\n{place.log.read_text()[-3000:]}")
            time.sleep(0.01)
        share = len(mails) // row.runs
        for number in range(row.runs):
            batch = mails[number * share : (number + 1) * share]
            at, mode = chance.randrange(8, 120), chance.choice(("before", "after"))
            out = _victim(second, at, mode, lambda batch=batch: hand_over(place.pickup, batch, chance))  # type: ignore[misc]  # binds early
            if out is not None:
                killed += 1
                allowed.update((key, mailbox) for key in out for mailbox in by_key[key].recipients)
        hand_over(place.pickup, mails[share * row.runs :], chance)
        os.kill(survivor.pid, signal.SIGTERM)
        row.expect(survivor.wait() == 0, "the survivor ended badly")
        work_off(place)
    row.misses += faults_in(second.log)
    row.notes = f"{killed} killed at an effect of their own, {row.runs - killed} when there was nothing left for them"
    _judge(row, mails, ledger, place, allowed)
    return [row]


def _victim(place: Place, at: int, mode: str, meanwhile: Callable[[], None]) -> list[str] | None:
    """Killed at that effect: whose final dots were out without an outcome; None: it had not so much to do."""
    report = place.root / "report"
    fd = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def work() -> int | None:
        install(Killer(at, mode, fd, alone=False))
        return asyncio.run(serve(place, place.settings(look_ahead=LOOK_AHEAD)))

    child = fork(work, place.log)
    os.close(fd)
    deadline = time.monotonic() + 1.0
    mpu = place.pickup / ".mpu"
    while not any(n.startswith(f"{child.pid}-") for n in os.listdir(mpu)) and time.monotonic() < deadline:
        time.sleep(0.001)  # until it works on the directory: else the other is done before
    meanwhile()
    while not (told := report.read_text()) and time.monotonic() < deadline:
        time.sleep(0.001)
    if not told:
        os.kill(child.pid, signal.SIGTERM)
    child.wait()
    told = told or report.read_text()
    return [key for key in told.partition("\t")[2].split(",") if key] if told else None


def database(plan: Plan) -> list[Row]:
    """Killed, and the database is lost in between: a new one knows nothing, and nothing is lost or repeated."""
    row = Row("database", "the database is lost between kills", plan.size(100, 4))
    chance = random.Random(plan.seed)
    place = place_at(plan.root)
    mails = letters(chance, "d", plan.size(4000, 160), MIXED)
    ledger = Ledger(plan.root / "ledger")
    in_flight = InFlight(place.pickup)
    share = len(mails) // row.runs
    with server(ledger.path, round_trip_seconds=0.002) as port:
        for number in range(row.runs):
            shutil.rmtree(place.data)
            place.data.mkdir(mode=0o700)
            set_up(place, port, directory=directory_at(place, interval_seconds=1, watch=True))
            child = serving(place)
            hand_over(place.pickup, mails[number * share : (number + 1) * share], chance)
            ledger.wait_for(chance.randrange(1, 40))
            child.kill()
            in_flight.look()
        hand_over(place.pickup, mails[share * row.runs :], chance)
        work_off(place)
    _judge(row, mails, ledger, place, in_flight.allowed())
    return [row]


def names(plan: Plan) -> list[Row]:
    """An application that writes `report.eml` again and again, the moment the last one is gone; with kills."""
    row = Row("names", "files made again under the same name", plan.size(40, 3))
    chance = random.Random(plan.seed)
    place = place_at(plan.root)
    mails: list[Letter] = []
    ledger = Ledger(plan.root / "ledger")
    in_flight = InFlight(place.pickup)
    with server(ledger.path) as port:
        set_up(place, port, directory=directory_at(place, interval_seconds=1))
        for _ in range(row.runs):
            child = serving(place)
            end = time.monotonic() + 0.3 + chance.random() * 0.5
            while time.monotonic() < end:
                _again(place, mails, chance)
                time.sleep(0.001)
            child.kill()
            in_flight.look()
        work_off(place)
    by_name = Counter({(key, mailbox): n for (key, mailbox), n in in_flight.allowed().items()})
    allowed: Counter[tuple[str, str]] = Counter()
    for (_, mailbox), times in by_name.items():  # the log knows the name of the file; the mailbox tells the mail
        allowed[mailbox.rpartition("-")[0], mailbox] += times
    row.expect(len(mails) > row.runs * 5, f"only {len(mails)} were written: the run shows little")
    _judge(row, mails, ledger, place, allowed)
    return [row]


def _again(place: Place, mails: list[Letter], chance: random.Random) -> None:
    """A few names, each written as soon as it is free; some of one size and content but for the key."""
    for number in range(NAMES):
        target = place.pickup / f"report{number}.eml"
        if not target.exists():
            mail = letter(chance, f"n{len(mails):06d}", chance.choice("tttd"))
            with contextlib.suppress(FileExistsError):  # the last one was put back just now
                write_in_place(place.pickup, mail, name=target.name)
                mails.append(mail)


class _Jumping(SystemClock):
    """Somebody sets the wall clock, again and again."""

    __slots__ = ("_chance", "_next", "_shift")

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._shift = 0.0
        self._next = 0.0

    def now(self) -> float:
        moment = time.monotonic()
        if moment > self._next:
            self._next = moment + 0.05 + self._chance.random() * 0.2
            self._shift = self._chance.choice((0.0, DAY, -DAY, 400 * DAY, -400 * DAY, 3600.0, -3600.0))
        return time.time() + self._shift


def clock(plan: Plan) -> list[Row]:
    """The wall clock jumps by hours, days and years, with kills: no mass expiry, and nothing waits for a year."""
    row = Row("clock", "the wall clock jumps by up to 400 days", plan.size(60, 4))
    chance = random.Random(plan.seed)
    place = place_at(plan.root)
    mails = letters(chance, "c", plan.size(3000, 160), "tttttdddd")
    ledger = Ledger(plan.root / "ledger")
    in_flight = InFlight(place.pickup)
    share = len(mails) // row.runs
    with server(ledger.path, round_trip_seconds=0.002) as port:
        set_up(place, port, directory=directory_at(place, interval_seconds=1, expire_after_seconds=3600))
        for number in range(row.runs):
            child = serving(place, clock=_Jumping(plan.seed + number))
            hand_over(place.pickup, mails[number * share : (number + 1) * share], chance)
            ledger.wait_for(chance.randrange(1, 40))
            child.kill()
            in_flight.look()
        hand_over(place.pickup, mails[share * row.runs :], chance)
        work_off(place, clock=_Jumping(plan.seed))
    row.expect(not place.badmail(), f"expired: {sorted(place.badmail())[:5]}")
    _judge(row, mails, ledger, place, in_flight.allowed())
    return [row]
