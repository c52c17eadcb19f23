"""A server 25 ms away each way: how often a message waits for it.

Round trips are counted by the proxy that delays (peers/proxy.py), so they don't hang on how busy the machine is.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.peers import Missing
from benchmarks.peers.field import MPU, Field
from benchmarks.peers.proxy import DELAY_SECONDS, distance
from benchmarks.peers.sink import python_sink, smtp_sink
from benchmarks.result import Context, Result, Target

NAME = "delay"
ABOUT = f"4 KB over one connection to a server that is {DELAY_SECONDS * 1000:.0f} ms away each way"

WITH_PIPELINING = 1.0
WITH_CHUNKING = 0.3
_FIRST = 2  # round trips until the first message's 250 on a kept connection: its envelope, its content
_NOTES = {
    "Postfix": "1 connection; postqueue -f of its deferred queue",
    "aiosmtplib": "1 connection; sendmail",
    "smtplib": "1 connection; sendmail",
}


def run(context: Context) -> Result:
    """PIPELINING for all; CHUNKING for MPU, as none of the others makes use of it."""
    result = Result()
    try:
        _add(result, _pipelining(context, 20 if context.small else 100))
    except Missing as missing:
        result.left_out.append(f"PIPELINING: {missing}")
    _add(result, _chunking(context, 60 if context.small else 500))
    return result


def _add(result: Result, part: Result) -> None:
    result.series += part.series
    result.targets += part.targets
    result.left_out += part.left_out


def _pipelining(context: Context, count: int) -> Result:
    with ExitStack() as stack:
        port, round_trips = stack.enter_context(distance(stack.enter_context(smtp_sink())))
        field = Field(context, stack, port, count=count, size=4096, round_trips=round_trips)
        field.mpu("pipelining", connections=1, idle_timeout_seconds=3600)
        field.postfix(connections=1)
        field.library("aiosmtplib", "aiosmtplib", octets=True, connections=1)
        field.library("smtplib", "smtplib", octets=True)
        field.race()
    field.rates("PIPELINING", "msg/s", 1, _NOTES)
    return _judged(field.result, WITH_PIPELINING, "PIPELINING", count)


def _chunking(context: Context, count: int) -> Result:
    with ExitStack() as stack:
        port, round_trips = stack.enter_context(distance(stack.enter_context(python_sink(chunking=True))))
        field = Field(context, stack, port, count=count, size=4096, round_trips=round_trips)
        field.mpu("chunking", connections=1, idle_timeout_seconds=3600)
        field.race()
    field.rates("CHUNKING", "msg/s", 1, _NOTES)
    return _judged(field.result, WITH_CHUNKING, "CHUNKING", count)


def _judged(result: Result, wanted: float, what: str, count: int) -> Result:
    """From the first message's 250 to the last one's."""
    counted = next(one.median for one in result.series if one.who == MPU and one.unit == "round trips")
    reached = (counted * count - _FIRST) / (count - 1)
    text = f"{what}: round trips a message, from the first one's 250 to the last one's"
    result.targets.append(Target(text, wanted, reached, "round trips", at_least=False))
    return result
