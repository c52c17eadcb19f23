"""P3: a kill at each effect of one message's life, for all N: before it, halfway through it, after it.

Several lives: taken, put off, refused, in parts, without a reply, without the kernel's help, and what an earlier kill
left. After the kill another relay goes on; the server must have seen each recipient once, or twice where the final dot
was out and its outcome not yet in the log.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from core.runtime.relay import Relay
from core.spool import directory as spool_directory
from core.spool.kernel import Features
from tests.chaos.child import Child, directory_at, empty, faults_in, fork, place_at, set_up, work_off
from tests.chaos.effects import Killer, install
from tests.chaos.mails import Letter, letter, write_in_place
from tests.chaos.result import Plan, Row, marked
from tests.chaos.server import Ledger, refused, server
from tests.chaos.workers import spread

MODES = ("before", "half", "after")
SIGKILL = -9


@dataclass(frozen=True)
class Life:
    """What happens to the message."""

    name: str
    verdicts: str  # of its recipients (server.py)
    first: str = ""  # killed before, once: when its "dot" was out or its "outcome" was in the log
    fallbacks: bool = False  # link and unlink instead of renameat2, lock files instead of flock


LIVES = (
    Life("taken", "t"),
    Life("put off", "d"),
    Life("refused", "r"),
    Life("in parts", "tdr"),
    Life("no reply", "u"),
    Life("without the kernel's help", "tdr", fallbacks=True),
    Life("after a kill, dot out", "td", first="dot"),
    Life("after a kill, outcome known", "tdr", first="outcome"),
    Life("after a kill, without the kernel's help", "td", first="dot", fallbacks=True),
)


@dataclass
class Found:
    """What one case came to."""

    life: str
    kind: str = ""  # of the effect at which it was killed; empty: it came to its end
    recipients: int = 1
    allowed: int = 0  # how often each may be taken beyond once
    seen: int = 0
    lost: int = 0
    misses: list[str] = field(default_factory=list)


def boundaries(plan: Plan) -> list[Row]:
    """100 % of N."""
    row = Row("P3", "kill at each effect of one message's life")
    ledger = plan.root / "ledger"
    lives = LIVES if plan.full else tuple(random.Random(plan.seed).sample(LIVES, 3))
    shares = [(life, mode) for life in lives for mode in MODES]
    with server(ledger) as port:

        def work(folder: Path, share: Sequence[tuple[Life, str]]) -> list[Found]:
            return list(_Bench(folder, port, ledger, plan).all_of(share))

        found = spread(plan.root, shares, work)
    killed = [f for f in found if f.kind]
    row.runs = row.messages = len(killed)
    row.lost = sum(f.lost for f in found)
    row.doubles_allowed, row.doubles_seen = sum(f.allowed * f.recipients for f in found), sum(f.seen for f in found)
    row.misses = [miss for f in found for miss in f.misses]
    kinds = Counter(f.kind for f in killed)
    row.notes = f"{len(lives)} lives, killed at " + ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items()))
    wanted = {"rename", "unlink", "fsync", "write", "pwrite", "send", "open", "fallocate", "commit"}
    row.expect(not plan.full or wanted | {"link"} <= set(kinds), f"no kill at {sorted(wanted - set(kinds))}")
    return [row]


class _Bench:
    """One worker's folder, used again for each case."""

    def __init__(self, folder: Path, port: int, ledger: Path, plan: Plan) -> None:
        self.plan = plan
        self.folder = folder
        self.ledger = Ledger(ledger)
        self.chance = random.Random(f"{plan.seed}/{folder.name}")
        self.place = place_at(folder / "place")
        set_up(self.place, port, directory=directory_at(self.place, watch=False, interval_seconds=3600))
        shutil.copytree(self.place.data, folder / "template")

    def all_of(self, share: Sequence[tuple[Life, str]]) -> Iterator[Found]:
        for life, mode in share:
            if self.plan.full:
                numbers: Iterator[int] = iter(range(1, 10_000))
            else:
                numbers = iter(sorted(self.chance.sample(range(1, 45), 2)))
            for number in numbers:
                found = self._case(life, mode, number)
                yield found
                if not found.kind:
                    break

    def _case(self, life: Life, mode: str, number: int) -> Found:
        for folder in (self.place.pickup, self.place.data):
            shutil.rmtree(folder)
        self.place.pickup.mkdir()
        shutil.copytree(self.folder / "template", self.place.data)
        key = f"b{self.plan.seed}x{LIVES.index(life)}x{mode}x{number}"
        mail = letter(random.Random(number), key, life.verdicts)
        write_in_place(self.place.pickup, mail)
        found = Found(life.name, recipients=len(life.verdicts))
        name = f"{life.name}, {mode} {number}"
        report = self.folder / "report"
        if life.first:
            code = self._child(life, Killer(-1, "after", _report(report)), stop_at=life.first).wait()
            if code != SIGKILL:
                found.misses.append(f"{name}: the first child was not killed but ended with {code}")
            found.allowed += life.first == "dot"
        code = self._child(life, Killer(number, mode, _report(report))).wait()
        if code == SIGKILL:
            where, _, out = report.read_text().partition("\t")
            found.kind = where.split()[1]
            found.allowed += key in out.split(",")
            name += f" ({where})"
        elif code:
            found.misses.append(f"{name}: ended with {code}: {self.place.log.read_text()[-2000:]}")
        try:
            work_off(self.place)
        except (RuntimeError, TimeoutError) as error:
            found.misses.append(f"{name}: {error}")
        self._judge(mail, found, name)
        return found

    def _child(self, life: Life, killer: Killer, stop_at: str = "") -> Child:
        async def relay() -> None:
            running = Relay(self.place.settings())
            await running.start()
            await empty(running, self.place)
            await running.stop()

        def work() -> None:
            if life.fallbacks:
                vars(spool_directory)["Features"] = partial(Features, rename_noreplace=False, flock=False)
            killer.stop_at = stop_at
            install(killer)
            asyncio.run(relay())

        return fork(work, self.place.log)

    def _judge(self, mail: Letter, found: Found, name: str) -> None:
        times = self.ledger.read().times
        found.allowed += any(r.partition("@")[0].endswith("u") for r in mail.recipients)
        for mailbox in mail.recipients:
            count = times[mail.key, mailbox]
            if refused(mailbox):
                found.misses += [f"{name}: {mailbox} was refused and yet taken"] if count else []
            elif not count:
                found.lost += 1
                found.misses.append(f"{name}: {mailbox} was lost")
            found.seen += max(count - 1, 0)
            if count - 1 > found.allowed:
                found.misses.append(
                    f"{name}: {mailbox} was taken {count} times, {found.allowed} more than once allowed"
                )
            if count > 1 and mail.key not in marked(self.place.database):
                found.misses.append(f"{name}: {mailbox} was doubled, and the history doesn't say so")
        if self.ledger.hashes[mail.key] - {mail.sha256}:
            found.misses.append(f"{name}: it arrived otherwise than it should")
        dead = {mail.name} if any(map(refused, mail.recipients)) else set()
        if self.place.badmail() != dead:
            found.misses.append(f"{name}: badmail holds {self.place.badmail() or 'nothing'}")
        left = self.place.names() + self.place.logs_left()
        found.misses += [f"{name}: left over: {left}"] if left else []
        found.misses += [f"{name}: {line}" for line in faults_in(self.place.log)]
        self.place.log.unlink(missing_ok=True)


def _report(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
