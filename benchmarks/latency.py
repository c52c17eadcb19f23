"""From the close of a file to the server's 250, on an idle relay with its connection kept.

    python -m benchmarks.latency [--files 500]

Each file is written under its final name, as .NET does, one after the other, each once the last has arrived. The
hand-over begins with open(2) and ends with close(2); the mail is there when the sink, a server of this process,
has the final dot (its 250 leaves in the same turn of its loop). Where Debian's Postfix is installed, its `sendmail`
hands the same mails to the same sink through a Postfix of our own (own folders, configuration and ports): that
hand-over begins with the call of the command and ends with its exit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.peers.postfix import Postfix
from core.domain.account import Directory
from core.logs import configure_logs
from tests.support.relay import account, mail, running
from tests.support.smtp_server import SmtpServer, Taken


class Sink(SmtpServer):
    """Says when each message came."""

    arrived: asyncio.Future[float] | None = None

    def take(self, message: Taken, body: bytes) -> None:
        """Note the time first."""
        now = time.perf_counter()
        super().take(message, body)
        if self.arrived is not None and not self.arrived.done():
            self.arrived.set_result(now)


async def measure(
    sink: Sink, hand_over: Callable[[int], float | Awaitable[float]], files: int
) -> tuple[list[float], list[float]]:
    """Milliseconds to the sink's 250: from the begin of each hand-over, and from its end."""
    whole, after = [], []
    for number in range(files):
        sink.arrived = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        closed = hand_over(number)
        ended = closed if isinstance(closed, float) else await closed
        async with asyncio.timeout(30):
            arrived = await sink.arrived
        whole.append((arrived - began) * 1000)
        after.append((arrived - ended) * 1000)
        await asyncio.sleep(0.005)  # idle again
    return whole, after


def show(results: dict[str, list[float]], name: str, times: tuple[list[float], list[float]]) -> None:
    """Two lines of the table."""
    for what, series in (("from its begin", times[0]), ("from its end", times[1])):
        ordered = sorted(series)
        results[f"{name}, {what}"] = ordered
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        print(f"{name + ', ' + what:<40}{statistics.median(ordered):8.2f}{p99:8.2f}{ordered[-1]:8.2f}{len(ordered):8}")


async def main(files: int) -> None:
    """Print the table."""
    configure_logs(log_level="error")
    print(f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
          f"Python {platform.python_version()}")  # fmt: skip
    print(f"{'hand-over to 250, milliseconds':<40}{'p50':>8}{'p99':>8}{'max':>8}{'mails':>8}")
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        async with Sink(keep_bodies=False) as sink:
            pickup = Directory("pickup", str(root / "spool" / "pickup"), ("main",))
            async with running(root, [account(sink, idle_timeout_seconds=300)], pickups=[pickup]) as bench:

                def drop(number: int) -> float:
                    path = bench.paths["pickup"] / f"{number}.eml"
                    data = mail(number, body=b"x" * 76 + b"\r\n")
                    with path.open("wb", buffering=0) as file:
                        file.write(data)
                    return time.perf_counter()

                await measure(sink, drop, 20)  # warm, connection open
                show(results, "MPU, file", await measure(sink, drop, files))
            with Postfix(root / "postfix", sink.port) as postfix:
                if postfix.missing:
                    print(f"left out: Postfix ({postfix.missing})")
                else:
                    await measure(sink, postfix.sendmail, 3)
                    show(results, "Postfix, sendmail", await measure(sink, postfix.sendmail, files))
    out = Path(__file__).parent / "results" / "latency.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"unit": "milliseconds", **results}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500)
    asyncio.run(main(parser.parse_args().files))
