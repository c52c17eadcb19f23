"""Memory while 20 messages of 35 MB are under way at once.

The server holds each message at its middle until all have come that far, so that all are open at the same time.
"""

from __future__ import annotations

from benchmarks.arrivals import Sink
from benchmarks.mails import fill
from benchmarks.relay import mpu
from benchmarks.result import Context, Result, Series, Target

NAME = "memory"
ABOUT = "Memory while 20 messages of 35 MB are under way at once"

WANTED_MB = 150.0


def run(context: Context) -> Result:
    """One drain a round; the high-water mark of each, above what the idle service had before the first."""
    count, size = (4 if context.small else 20), 35_000_000
    above: list[float] = []
    seconds: list[float] = []
    for number in range(context.rounds):
        with Sink(gate=count, gate_bytes=size // 2) as sink, mpu(context.folder / str(number)) as one:
            one.account("main", sink.port, connections=count)
            path = one.directory("large", ["main"])
            one.service.http.get("/queue").raise_for_status()
            idle = one.memory_bytes()
            one.reset_peak()
            fill(path, count, size)
            drain = one.begin_drain()
            answer = one.drain_ended(drain)
            peak = one.memory_bytes(peak=True)
            seen = sink.seen()
        if answer["sent"] != count or seen.most_at_once != count:
            raise RuntimeError(f"{seen.most_at_once} of {count} were under way at once; the drain said {answer}")
        above.append((peak - idle) / 1e6)
        seconds.append(answer["duration_seconds"])
    what = f"{count} messages of {size / 1e6:.0f} MB at once"
    series = [
        Series("MPU", f"{what}: memory above idle", "MB", tuple(above)),
        Series("MPU", f"{what}: time", "s", tuple(seconds), "the server holds each until all are at their middle"),
    ]
    return Result(series, [Target(series[0].what, WANTED_MB, max(above), "MB", at_least=False)])
