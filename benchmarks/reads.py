"""GET /queue and GET /history while a drain goes at full speed: how long they take, and what they cost the drain.

Drains with and without reads in turns; the reads come from a thread here, one of each every 50 ms.
"""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import closing
from typing import Self
from urllib.parse import urlsplit

from benchmarks.arrivals import Sink
from benchmarks.mails import fill
from benchmarks.relay import Mpu, mpu
from benchmarks.result import Context, Result, Series, Target, in_turns, quantile
from tests.support.service import KEY

NAME = "reads"
ABOUT = "GET /queue and GET /history while draining at full speed"

READ_MS = 100.0
KEPT_RATIO = 0.9
_EVERY_SECONDS = 0.05
_PATHS = ("/queue", "/history?limit=50")


class Reader:
    """Reads in a thread until told to stop; `times` in milliseconds, by path."""

    def __init__(self, url: str) -> None:
        self.times: dict[str, list[float]] = {path: [] for path in _PATHS}
        self._url = urlsplit(url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with closing(http.client.HTTPConnection(self._url.hostname or "", self._url.port, timeout=60)) as client:
                while not self._stop.is_set():
                    began = time.perf_counter()
                    for path in _PATHS:
                        self.times[path].append(_read(client, path))
                    self._stop.wait(max(0.0, _EVERY_SECONDS - (time.perf_counter() - began)))
        except Exception as error:
            self._error = error


def _read(client: http.client.HTTPConnection, path: str) -> float:
    began = time.perf_counter()
    client.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
    answer = client.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} answered {answer.status}")
    return (time.perf_counter() - began) * 1000


def run(context: Context) -> Result:
    """All in one service."""
    count = 2_000 if context.small else 20_000
    slow: dict[str, list[float]] = {path: [] for path in _PATHS}
    p99: dict[str, list[float]] = {path: [] for path in _PATHS}
    with Sink() as sink, mpu(context.folder) as one:
        one.account("main", sink.port)
        path = one.directory("shop", ["main"])

        def drained(number: int) -> float:
            fill(path, count, 4096, first=number * count)
            return _rate(one, sink, count)

        def read(number: int) -> float:
            with Reader(str(one.service.http.base_url)) as reader:
                rate = drained(number)
            for what, times in reader.times.items():
                slow[what] += times
                p99[what].append(quantile(times, 0.99))
            return rate

        with Reader(str(one.service.http.base_url)):  # warm
            drained(0)
        rates = in_turns(context.rounds, [("alone", drained), ("with reads", read)])
    ratios = tuple(r / a for r, a in zip(rates["with reads"], rates["alone"], strict=True))
    series = [
        Series("MPU", f"drain of {count:,}", "msg/s", rates["alone"]),
        Series("MPU", f"drain of {count:,} while read", "msg/s", rates["with reads"]),
        Series("MPU", "drain while read, of that alone", "ratio", ratios),
        *(Series("MPU", f"GET {what} while draining, p99", "ms", tuple(p99[what])) for what in _PATHS),
        *(Series("MPU", f"GET {what} while draining, p50", "ms", (quantile(slow[what], 0.5),)) for what in _PATHS),
    ]
    return Result(
        series,
        [
            *(
                Target(f"GET {what} while draining, p99", READ_MS, quantile(slow[what], 0.99), "ms", at_least=False)
                for what in _PATHS
            ),
            Target(series[2].what, KEPT_RATIO, series[2].median, "ratio"),
        ],
    )


def _rate(one: Mpu, sink: Sink, count: int) -> float:
    sink.reset()
    one.drain()
    seen = sink.seen()
    if seen.count != count:
        raise RuntimeError(f"{seen.count} of {count} messages came")
    return seen.rate
