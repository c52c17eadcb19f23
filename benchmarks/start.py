"""`mpu serve` from exec to ready: GET /health/ready answers 200."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.relay import mpu
from benchmarks.result import Context, Result, Series, Target, in_turns
from tests.support.service import COMMAND, environment

NAME = "start"
ABOUT = "From exec of `mpu serve` to ready, with a database that exists and with a new one"

WANTED_SECONDS = 1.5
_PATIENCE_SECONDS = 60.0


def run(context: Context) -> Result:
    """Both in turns."""
    known = context.folder / "known"
    with mpu(known) as one:
        for name in ("first", "second"):
            one.account(name, 25)
        for name in ("shop", "billing", "reports"):
            one.directory(name, ["first", "second"], schedule=None, watch=True)

    def existing(_number: int) -> float:
        return seconds_to_ready(known)

    def new(number: int) -> float:
        folder = context.folder / f"new-{number}"
        (folder / "spool").mkdir(parents=True)
        try:
            return seconds_to_ready(folder)
        finally:
            shutil.rmtree(folder)

    existing(-1)  # byte code and pages are there, as after any second start
    rounds = 2 if context.small else context.rounds
    known_series, new_series = (
        Series("MPU", what, "s", values)
        for what, values in in_turns(
            rounds, [("2 accounts, 3 directories", existing), ("first start, new database", new)]
        ).items()
    )
    return Result(
        [known_series, new_series],
        [
            Target(series.what, WANTED_SECONDS, series.median, "s", at_least=False)
            for series in (known_series, new_series)
        ],
    )


def seconds_to_ready(root: Path) -> float:
    """Start it, wait until it is ready, stop it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*COMMAND, "serve", "--port", str(port), "--data-dir", str(root / "data")]
    with (root / "start.log").open("ab") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--pickup-root", str(root / "spool")],
            stdout=log,
            stderr=log,
            env=environment(MPU_LOG_FORMAT="json", MPU_ALLOWED_SMTP_PORTS="0"),
        )
        try:
            while not _ready(port):
                if process.poll() is not None or time.perf_counter() - began > _PATIENCE_SECONDS:
                    raise RuntimeError("it did not start: " + (root / "start.log").read_text()[-1000:])
                time.sleep(0.002)
            return time.perf_counter() - began
        finally:
            process.terminate()
            process.wait()


def _ready(port: int) -> bool:
    with suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        finally:
            connection.close()
    return False
