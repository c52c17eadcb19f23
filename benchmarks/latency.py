"""From the close of a file to the server's 250, on an idle service with its connection kept.

Each file is written under its final name, as .NET does, one after the other, each once the last has arrived. The
hand-over begins with open(2) and ends with close(2); the mail is there when the server, a process of its own
(arrivals.py), has the final dot, and its 250 leaves in the same turn of its loop. `mpu serve` is a process with its
defaults, once of the user who writes, and once of another one that has no CAP_LEASE and so can't have a lease on the
files: then events alone say that a file is closed. Where Debian's Postfix is installed, its `sendmail` hands the same
mails to the same server through a Postfix of our own: that hand-over begins with the call of the command and ends with
its exit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.arrivals import Sink
from benchmarks.mails import mail
from benchmarks.peers.postfix import Postfix
from benchmarks.relay import Mpu, mpu
from benchmarks.result import Context, Result, Series, Target, quantile

NAME = "latency"
ABOUT = "From the close of a file to the server's 250, on an idle service"

P50_MS = 5.0
P99_MS = 20.0
_SIZE = 600  # octets
_NOBODY = 65534  # user and group, on any Linux
_PAUSE_SECONDS = 0.005  # idle again

HandOver = Callable[[str], float]  # mails one with this mark; when that ended, monotonic


def run(context: Context) -> Result:
    """All stay up and take turns."""
    files = 50 if context.small else 300
    result = Result()
    whole: dict[str, list[list[float]]] = {}
    after: dict[str, list[list[float]]] = {}
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Sink())
        ways: dict[tuple[str, str], HandOver] = {}
        ways["MPU", "file of the same user"] = stack.enter_context(_same_user(context.folder / "same", sink))
        if os.geteuid() == 0 and shutil.which("setpriv") is not None:
            ways["MPU", "file of another user"] = stack.enter_context(_another_user(sink))
        else:
            result.left_out.append("MPU as another user than the writer: needs root, and setpriv of util-linux")
        postfix = stack.enter_context(_postfix(sink))
        if postfix.missing:
            result.left_out.append(f"Postfix: {postfix.missing}")
        else:
            ways["Postfix", "sendmail"] = _sends_by(postfix)
        for number in range(context.rounds):
            for key, hand_over in ways.items():
                begins, ends = _measure(sink, hand_over, files, f"{list(ways).index(key)}-{number}")
                whole.setdefault(key[1], []).append(begins)
                after.setdefault(key[1], []).append(ends)
    for who, what in ways:
        for text, rounds in (("from its begin", whole[what]), ("from its end", after[what])):
            for name, share in (("p50", 0.5), ("p99", 0.99)):
                values = tuple(quantile(times, share) for times in rounds)
                series = Series(who, f"{what}, {text}, {name}", "ms", values, f"{files} mails a round")
                result.series.append(series)
                if who == "MPU" and text == "from its end":
                    wanted = P50_MS if name == "p50" else P99_MS
                    result.targets.append(Target(f"{what}: {name}", wanted, series.median, "ms", at_least=False))
    return result


def _measure(sink: Sink, hand_over: HandOver, files: int, label: str) -> tuple[list[float], list[float]]:
    """Milliseconds until each mail is there: from the begin of its hand-over, and from its end."""
    whole, after = [], []
    for number in range(-10, files):  # the first ones open the connection
        mark = f"{label}-{number}"
        began = time.monotonic()
        ended = hand_over(mark)
        arrived = sink.arrival(mark)
        if number >= 0:
            whole.append((arrived - began) * 1000)
            after.append((arrived - ended) * 1000)
        time.sleep(_PAUSE_SECONDS)
    return whole, after


def marked(mark: str, size: int = _SIZE) -> bytes:
    """A mail that the server tells of."""
    return mail(0, size).replace(b"X-Sender: shop@", b"X-Sender: wait.%s@" % mark.encode(), 1)


def _writes_to(path: Path) -> HandOver:
    def hand_over(mark: str) -> float:
        data = marked(mark)
        with (path / f"{mark}.eml").open("wb", buffering=0) as file:
            file.write(data)
        return time.monotonic()

    return hand_over


def _sends_by(postfix: Postfix) -> HandOver:
    def hand_over(mark: str) -> float:
        headers = marked(mark).split(b"\r\n", 2)[2]  # no X-Sender and X-Receiver
        postfix.sendmail(f"wait.{mark}@example.com", headers)
        return time.monotonic()

    return hand_over


@contextlib.contextmanager
def _postfix(sink: Sink) -> Iterator[Postfix]:
    """In a folder that its own user can reach."""
    with tempfile.TemporaryDirectory(prefix="mpu-bench-") as folder:
        os.chmod(folder, 0o755)
        with Postfix(Path(folder) / "postfix", sink.port) as postfix:
            yield postfix


@contextlib.contextmanager
def _same_user(root: Path, sink: Sink) -> Iterator[HandOver]:
    with mpu(root) as one:
        yield _writes_to(_pickup(one, sink))


@contextlib.contextmanager
def _another_user(sink: Sink) -> Iterator[HandOver]:
    """We write as root, and by setgid the files are of the directory's group, as whose member the service reads them.

    Its folder lies where nobody can reach it, which our own may not.
    """
    root = Path(tempfile.mkdtemp(prefix="mpu-bench-"))
    root.chmod(0o755)
    for name in ("data", "spool", "spool/pickup"):
        (root / name).mkdir()
        os.chown(root / name, _NOBODY, _NOBODY)
    (root / "spool" / "pickup").chmod(0o2770)
    command = ("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--no-new-privs")
    try:
        with mpu(root, wrapper=command) as one:
            status = Path(f"/proc/{one.service.process.pid}/status").read_text()
            if "CapEff:\t0000000000000000" not in status:
                raise RuntimeError("the service has capabilities")
            yield _writes_to(_pickup(one, sink))
    finally:
        shutil.rmtree(root)


def _pickup(one: Mpu, sink: Sink) -> Path:
    """A directory with its defaults, and an account that keeps its connection."""
    one.account("main", sink.port, idle_timeout_seconds=300)
    path = one.root / "spool" / "pickup"
    path.mkdir(exist_ok=True)
    one.service.post("/directories", name="pickup", path=str(path), accounts=["main"])
    return path
