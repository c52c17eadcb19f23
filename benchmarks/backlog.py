"""A million files wait: how soon the first goes, how fast they go, and what memory it takes.

The large directory and one of 10,000 files are drained in turns; a drain of the large one is stopped once as many have
gone, so that both rates are of as many messages. The files are small (ext4 gives each 4 KB all the same): what is to be
seen is the number of names. The server is benchmarks/arrivals.py, and the same for both.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

from benchmarks.arrivals import Seen, Sink
from benchmarks.mails import mail
from benchmarks.relay import Mpu, mpu
from benchmarks.result import Context, Result, Series, Target

NAME = "backlog"
ABOUT = "1,000,000 waiting files: first one sent, rate, memory"

SIZE = 600  # octets
FIRST_SECONDS = 1.0
RATE_RATIO = 0.9
MEMORY_MB = 200.0
_WRITERS = 2
_PATIENCE_SECONDS = 120.0


def run(context: Context) -> Result:
    """Both directories in turns, in one service that runs all along."""
    many, few = (20_000, 2_000) if context.small else (1_000_000, 10_000)
    first: list[float] = []
    rates: dict[str, list[float]] = {"many": [], "few": []}
    with Sink() as sink, mpu(context.folder) as one:
        one.account("main", sink.port)
        large, small = context.folder / "spool" / "large", context.folder / "spool" / "small"
        small.mkdir()
        write_many(large, many)
        began = time.perf_counter()
        _add(one, "large")
        _add(one, "small")
        taken_over = time.perf_counter() - began
        for _ in range(context.rounds):
            write_many(small, few)
            rates["few"].append(_part(one, sink, "small", few)[0].rate)
            seen, started = _part(one, sink, "large", few)
            rates["many"].append(seen.rate)
            first.append(seen.first_at - started)
        one.service.http.get("/queue").raise_for_status()
        memory = one.memory_bytes(peak=True) / 1e6
    name = f"{many:,} waiting"
    ratios = tuple(m / f for m, f in zip(rates["many"], rates["few"], strict=True))
    series = [
        Series("MPU", f"{name}: until the first is sent", "s", tuple(first)),
        Series("MPU", f"{name}: rate of the first {few:,}", "msg/s", tuple(rates["many"])),
        Series("MPU", f"{few:,} waiting: rate of all", "msg/s", tuple(rates["few"])),
        Series("MPU", f"{name}: rate beside {few:,} waiting", "ratio", ratios),
        Series("MPU", f"{name}: most memory", "MB", (memory,)),
        Series("MPU", f"{name}: taken over as a directory", "s", (taken_over,), "two calls of POST /directories"),
    ]
    return Result(
        series,
        [
            Target(series[0].what, FIRST_SECONDS, max(first), "s", at_least=False),
            Target(series[3].what, RATE_RATIO, series[3].median, "ratio"),
            Target(series[4].what, MEMORY_MB, memory, "MB", at_least=False),
        ],
    )


def write_many(folder: Path, count: int, size: int = SIZE) -> None:
    """`count` mails, by a few processes; synced at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    step = -(-count // _WRITERS)
    writers = [
        context.Process(target=_write, args=(folder, start, min(start + step, count), size))
        for start in range(0, count, step)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        if writer.exitcode != 0:
            raise RuntimeError("a writer of mails failed")
    os.sync()


def _write(folder: Path, start: int, end: int, size: int) -> None:
    at = os.open(folder, os.O_RDONLY)
    for number in range(start, end):
        fd = os.open(f"{number:07}.eml", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o660, dir_fd=at)
        os.write(fd, mail(number, size))
        os.close(fd)
    os.close(at)


def _add(one: Mpu, name: str) -> None:
    one.service.post(
        "/directories",
        name=name,
        path=str(one.root / "spool" / name),
        accounts=["main"],
        watch=False,
        schedule="0 0 1 1 *",
    )


def _part(one: Mpu, sink: Sink, name: str, count: int) -> tuple[Seen, float]:
    """Drain until `count` have arrived; what the sink saw until then, and when the drain was asked for."""
    sink.reset()
    started = time.monotonic()
    drain = one.begin_drain(directories=[name])
    while (seen := sink.seen()).count < count:
        if time.monotonic() - started > _PATIENCE_SECONDS:
            raise TimeoutError(f"only {seen.count} of {count} messages came")
        time.sleep(0.01)
    one.stop_drain(drain)
    one.drain_ended(drain)
    return seen, started
