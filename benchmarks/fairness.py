"""50 directories share 10 accounts; one of them has 100,000 mails waiting. How long do the mails of the others wait?

The mails are of mixed sizes. Every other small directory sends through the account of the big one first, the rest
through the other nine. A mail is written into one small directory after the other, a few each second, as long as the
big one is worked off; it waits from the close of its file until the server has it. Then the same with eight more
directories full of mail for a server that takes connections and never says a word.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.arrivals import Silent, Sink
from benchmarks.mails import mail
from benchmarks.relay import Mpu, mpu
from benchmarks.result import Context, Result, Series, Target, quantile

NAME = "fairness"
ABOUT = "50 directories, 10 accounts, one with 100,000 waiting: how long a mail of the others waits"

WANTED_SECONDS = 1.0
SMALL_DIRECTORIES = 49
ACCOUNTS = 10
SILENT_DIRECTORIES = 8
_SILENT_MAILS = 200  # in each
_EVERY_SECONDS = 0.1
_PATIENCE_SECONDS = 30.0  # a mail that has not come by then counts as having waited so long
_SIZES = (*([2_000] * 90), *([20_000] * 9), 500_000)  # of a hundred mails


def run(context: Context) -> Result:
    """Three times: idle, beside the big directory, beside the silent server and another big one."""
    big, seconds = (3_000, 2.0) if context.small else (100_000, 10.0)
    result = Result()
    with Sink() as sink, Silent() as silent, mpu(context.folder) as one:
        accounts = [f"way-{number}" for number in range(ACCOUNTS)]
        for name in accounts:
            one.account(name, sink.port, connections=5)
        paths: list[Path] = []
        shares = [number % 2 == 0 for number in range(SMALL_DIRECTORIES)]
        for number in range(SMALL_DIRECTORIES):
            first = 0 if number % 2 == 0 else 1 + number // 2 % (ACCOUNTS - 1)
            ways = [accounts[first], accounts[(first + 1) % ACCOUNTS]]
            paths.append(one.directory(f"small-{number:02}", ways, watch=True, schedule=None))
        writer = _Writer(sink, paths, shares)
        deadline = time.monotonic() + seconds
        _told(result, "idle", writer.write(lambda: time.monotonic() > deadline))

        path = context.folder / "spool" / "big"
        _fill(path, big)
        began = time.monotonic()
        _begin(one, "big", accounts[:2])
        waits = writer.write(lambda: _done(path))
        _told(result, f"one has {big:,} waiting", waits, target=True)
        result.series.append(
            Series("MPU", f"one has {big:,} waiting: until it has none", "s", (time.monotonic() - began,))
        )

        again = context.folder / "spool" / "again"
        _fill(again, big // 2, first=big)
        one.account("silent", silent, connections=5)
        for number in range(SILENT_DIRECTORIES):
            _fill(context.folder / "spool" / f"silent-{number}", _SILENT_MAILS, sizes=(2_000,))
            _begin(one, f"silent-{number}", ["silent"])
        _begin(one, "again", accounts[:2])
        waits = writer.write(lambda: _done(again))
        what = f"{SILENT_DIRECTORIES} have a silent server, one {big // 2:,} waiting"
        _told(result, what, waits, target=True)
        one.service.process.kill()  # it would wait for the silent server
    return result


class _Writer:
    """Writes mails into the small directories in turns."""

    def __init__(self, sink: Sink, paths: Sequence[Path], shares: Sequence[bool]) -> None:
        self._sink = sink
        self._paths = paths
        self._shares = shares  # an account with the big directory
        self._chance = random.Random(3)
        self._number = 0

    def write(self, over: Callable[[], bool]) -> dict[bool, list[float]]:
        """One each tenth of a second until `over`; seconds that each waited, by whether it shares an account."""
        closed: dict[str, tuple[float, bool]] = {}
        while not over():
            place = self._number % len(self._paths)
            mark = str(self._number)
            data = mail(self._number, self._chance.choice(_SIZES))
            data = data.replace(b"X-Sender: shop@", b"X-Sender: wait.%s@" % mark.encode(), 1)
            with (self._paths[place] / f"{mark}.eml").open("wb", buffering=0) as file:
                file.write(data)
            closed[mark] = time.monotonic(), self._shares[place]
            self._number += 1
            self._sink.collect()
            time.sleep(_EVERY_SECONDS)
        waits: dict[bool, list[float]] = {True: [], False: []}
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for mark, (at, shares) in closed.items():
            try:
                waited = self._sink.arrival(mark, max(0.0, deadline - time.monotonic())) - at
            except TimeoutError:
                waited = _PATIENCE_SECONDS
            waits[shares].append(waited)
        return waits


def _told(result: Result, what: str, waits: dict[bool, list[float]], *, target: bool = False) -> None:
    everybody = waits[True] + waits[False]
    groups = {"of all": everybody, "with the same account": waits[True], "with other accounts": waits[False]}
    for who, series in groups.items():
        note = f"{len(series)} mails; longest {max(series):.3f} s; p50 {quantile(series, 0.5) * 1000:.1f} ms"
        result.series.append(Series("MPU", f"{what}: wait {who}, p99", "s", (quantile(series, 0.99),), note))
    if target:
        result.targets.append(
            Target(f"{what}: p99 wait of the others", WANTED_SECONDS, quantile(everybody, 0.99), "s", at_least=False)
        )


def _fill(folder: Path, count: int, *, first: int = 0, sizes: Sequence[int] = _SIZES) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(first, first + count):
        hidden = folder / f".{number:07}"
        hidden.write_bytes(mail(number, sizes[number % len(sizes)]))
        hidden.rename(folder / f"{number:07}.eml")


def _begin(one: Mpu, name: str, accounts: Sequence[str]) -> None:
    """With its defaults a directory is worked off from the moment it is known."""
    path = one.root / "spool" / name
    one.service.post("/directories", name=name, path=str(path), accounts=list(accounts))


def _done(path: Path) -> bool:
    with os.scandir(path) as entries:
        return not any(entry.name.endswith((".eml", ".lck")) for entry in entries)
