"""P5: 8 processes claim from one directory; each message is claimed once."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

from core.domain.account import Directory
from core.errors import MessageError
from core.runtime.clock import SystemClock
from core.spool.directory import Claim, Delete, DirectorySpool
from core.spool.kernel import Features
from tests.chaos.child import fork
from tests.chaos.result import Plan, Row

PROCESSES = 8
MAIL = b"From: a@example.com\r\nTo: b@example.com\r\n\r\nHello\r\n"


def claims(plan: Plan) -> list[Row]:
    """50,000 files; and a share of them without the kernel's help (link and unlink, lock files)."""
    rows = [_once(plan, "8 processes, each file claimed once", plan.size(50_000, 1_500), fallbacks=False)]
    rows.append(_once(plan, "the same without renameat2 and flock", plan.size(10_000, 400), fallbacks=True))
    return rows


def _once(plan: Plan, what: str, count: int, *, fallbacks: bool) -> Row:
    row = Row("P5", what, PROCESSES, count)
    root = plan.root / ("fallbacks" if fallbacks else "kernel")
    pickup = root / "pickup"
    pickup.mkdir(parents=True)
    for number in range(count):
        (pickup / f"{number}.eml").write_bytes(MAIL)

    start, go = os.pipe()

    def work(number: int) -> None:
        os.close(go)
        os.read(start, 1)  # until all are there
        _work(pickup, root / f"claimed{number}", random.Random(f"{plan.seed}/{number}"), fallbacks=fallbacks)

    children = [fork(lambda number=number: work(number), root / "log") for number in range(PROCESSES)]  # type: ignore[misc]  # binds early
    os.close(start)
    os.close(go)
    for child in children:
        code = child.wait(3600)
        row.expect(code == 0, f"a process ended with {code}: {(root / 'log').read_text()[-2000:]}")
    shares = [(root / f"claimed{number}").read_bytes().split() for number in range(PROCESSES)]
    times = Counter(name for share in shares for name in share)
    lost = {f"{n}.eml".encode() for n in range(count)} - set(times)
    row.lost, row.doubles_allowed, row.doubles_seen = len(lost), 0, times.total() - len(times)
    row.misses += [f"{name!r} was claimed {n} times" for name, n in times.items() if n > 1]
    row.misses += [f"{name!r} was never claimed" for name in sorted(lost)]
    left = [n for n in os.listdir(pickup) if n != ".mpu"] + os.listdir(pickup / ".mpu")
    row.expect(not left, f"left over: {left[:5]}")
    row.expect(sum(map(bool, shares)) > 3, "most of them claimed nothing: they didn't work at the same time")
    row.notes = f"shares {', '.join(str(len(share)) for share in shares)}"
    return row


def _work(pickup: Path, sink: Path, chance: random.Random, *, fallbacks: bool) -> None:
    features = Features(rename_noreplace=False, flock=False) if fallbacks else None
    spool = DirectorySpool(Directory("pickup", str(pickup), quiet_seconds=0.01), clock=SystemClock(), features=features)
    spool.open()
    held: list[Claim] = []
    with sink.open("wb") as out:

        def let_go() -> None:
            answers = spool.dispose([Delete(each) for each in held])
            assert all(a.ok for a in answers), [a.error for a in answers if not a.ok]
            held.clear()

        while True:
            some = False
            for name in spool.scan():
                some = True
                try:
                    claimed = spool.claim(spool.examine(name))
                except MessageError:
                    continue
                out.write(name + b"\n")
                held.append(claimed)
                if len(held) >= chance.randrange(1, 100):
                    let_go()
            let_go()
            if not some:
                break
    spool.close()
