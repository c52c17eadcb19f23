"""Programs that send the same mails to the same server, in turns."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from benchmarks.mails import fill
from benchmarks.peers import Missing
from benchmarks.peers.clients import needs, send
from benchmarks.peers.exim import exim
from benchmarks.peers.generator import generate, wire
from benchmarks.peers.postfix import Postfix
from benchmarks.peers.sink import smtp_sink
from benchmarks.relay import mpu
from benchmarks.result import Context, Result, Series, Target, Unit, in_turns

MPU = "MPU"
_WARM_MESSAGES = 100


class Field:
    """Who takes part, and what came of it. `count` mails of `size` octets wait for each of them in each round.

    `round_trips` tells how many there were so far (peers/proxy.py).
    """

    def __init__(
        self,
        context: Context,
        stack: ExitStack,
        port: int,
        *,
        count: int,
        size: int,
        round_trips: Callable[[], int] | None = None,
    ) -> None:
        self.result = Result()
        self.seconds: dict[str, tuple[float, ...]] = {}
        self._context = context
        self._stack = stack
        self._port = port
        self._count = count
        self._size = size
        self._runs: list[tuple[str, Callable[[int], float]]] = []
        self._cpu: list[float] = []
        self._round_trips = round_trips
        self._waits: dict[str, list[float]] = {}

    @classmethod
    @contextmanager
    def before_smtp_sink(cls, context: Context, *, count: int, size: int) -> Iterator[Self]:
        """All of them before Postfix's smtp-sink. Raises Missing."""
        with ExitStack() as stack:
            yield cls(context, stack, stack.enter_context(smtp_sink()), count=count, size=size)

    def add(self, who: str, start: Callable[[], Callable[[int], float]]) -> None:
        """Somebody whom `start` makes ready; what it gives does one round and says how long it took."""
        try:
            run = start()
        except Missing as missing:
            self.result.left_out.append(f"{who}: {missing}")
        else:
            self._runs.append((who, self._counted(who, run)))

    def _counted(self, who: str, run: Callable[[int], float]) -> Callable[[int], float]:
        if self._round_trips is None:
            return run
        count, waits = self._round_trips, self._waits.setdefault(who, [])

        def counted(number: int) -> float:
            before = count()
            seconds = run(number)
            waits.append((count() - before) / self._count)
            return seconds

        return counted

    def mpu(self, name: str = "mpu", *, connections: int = 10, **account: Any) -> None:
        """`mpu serve`, kept running over all rounds, warmed by a small drain before them."""
        one = self._stack.enter_context(mpu(self._context.folder / name))
        one.account("main", self._port, connections=connections, **account)
        pickup = one.directory("pickup", ["main"])

        def run(_round: int) -> float:
            fill(pickup, self._count, self._size)
            before = one.cpu_seconds()
            seconds = one.drain()
            self._cpu.append((one.cpu_seconds() - before) / self._count * 1e6)
            return seconds

        fill(pickup, min(self._count, _WARM_MESSAGES), self._size)
        one.drain()
        self.add(MPU, lambda: run)

    def postfix(self, *, connections: int = 10) -> None:
        """The flush of its deferred queue."""

        def start() -> Callable[[int], float]:
            postfix = Postfix(self._context.folder / "postfix", self._port, connections=connections, hold=True)
            self._stack.enter_context(postfix).needed()
            message = wire(self._context.folder, self._size)

            def run(_round: int) -> float:
                postfix.fill(self._count, message)
                return postfix.flush()

            return run

        self.add("Postfix", start)

    def exim(self) -> None:
        """Its queue runners."""

        def start() -> Callable[[int], float]:
            one = self._stack.enter_context(exim(self._context.folder / "exim", self._port))
            message = wire(self._context.folder, self._size)

            def run(_round: int) -> float:
                one.fill(self._count, message)
                return one.flush()

            return run

        self.add("Exim", start)

    def library(
        self,
        who: str,
        library: Literal["smtplib", "aiosmtplib"],
        *,
        octets: bool = False,
        connections: int = 10,
        ca_file: Path | None = None,
    ) -> None:
        """A Python program that sends the files of a folder."""

        def run(_round: int) -> float:
            folder = self._context.folder / "mails"
            fill(folder, self._count, self._size)
            try:
                return send(library, folder, self._port, octets=octets, connections=connections, ca_file=ca_file)
            finally:
                shutil.rmtree(folder)

        def start() -> Callable[[int], float]:
            needs(library)
            return run

        self.add(who, start)

    def generator(self, *, sessions: int = 20) -> None:
        """smtp-source, which has no files to read or to delete."""
        message = wire(self._context.folder, self._size)
        self.add("smtp-source", lambda: lambda _: generate(self._port, self._count, message, sessions=sessions))

    def race(self) -> None:
        """All of them, in turns."""
        self.seconds = in_turns(self._context.rounds, self._runs)

    def rates(self, what: str, unit: Unit, each: float, notes: dict[str, str]) -> None:
        """One series a program; `each` message counts so much in this unit."""
        for who, seconds in self.seconds.items():
            values = tuple(self._count * each / s for s in seconds)
            self.result.series.append(Series(who, what, unit, values, notes.get(who, "")))
        for who, waits in self._waits.items():
            self.result.series.append(Series(who, f"{what}, a message", "round trips", tuple(waits)))
        if not self._waits:
            self.result.series.append(Series(MPU, f"{what}, CPU a message", "us", tuple(self._cpu)))

    def wanted(self, factor: float, other: str) -> None:
        """MPU is to be so many times as fast as another, by the medians of the first series; nothing if it is out."""
        medians = {series.who: series.median for series in self.result.series[: len(self.seconds)]}
        if other in medians:
            ratio = medians[MPU] / medians[other]
            self.result.targets.append(Target(f"times as fast as {other}", factor, ratio, "ratio"))
