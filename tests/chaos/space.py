"""P11: a full disk. On a 16 MiB tmpfs filled up to 64 KiB free nothing is lost, and it goes on by itself.

The pickup directory, the data directory or both lie there; the disk is full from the start, or fills up in mid-flow.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.child import Child, Place, directory_at, faults_in, serving, set_up
from tests.chaos.mails import Letter, letters, move_in
from tests.chaos.result import Plan, Row, reckon
from tests.chaos.server import Ledger, server

FREE = 64 << 10
SIZE = 16 << 20
WHERE = ("pickup", "data", "both")
WHEN = ("before the start", "in mid-flow")


@dataclass(frozen=True)
class _Round:
    where: str
    when: str


def space(plan: Plan) -> list[Row]:
    """Each place at each time."""
    row = Row("P11", "a 16 MiB tmpfs filled up to 64 KiB free", doubles_allowed=0)
    rounds = [_Round(where, when) for where in WHERE for when in WHEN]
    if not plan.full:
        rounds = random.Random(plan.seed).sample(rounds, 2)
    for number, each in enumerate(rounds * plan.size(2, 1)):
        root = plan.root / f"round{number}"
        root.mkdir()
        try:
            with _tmpfs(root / "disk") as disk:
                _one(row, root, disk, each, plan.seed + number)
        except (PermissionError, FileNotFoundError) as error:
            row.skipped = str(error)
            break
    return [row]


@contextmanager
def _tmpfs(path: Path) -> Iterator[Path]:
    """Mount one. Raises PermissionError."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0755", "tmpfs", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        raise PermissionError(f"can't mount a tmpfs: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


def _one(row: Row, root: Path, disk: Path, each: _Round, seed: int) -> None:
    row.runs += 1
    place = Place(
        root,
        (disk if each.where != "data" else root) / "spool" / "pickup",
        (disk if each.where != "pickup" else root) / "data",
    )
    place.pickup.mkdir(parents=True)
    place.data.mkdir(parents=True)
    ledger = Ledger(root / "ledger")
    mails = letters(random.Random(seed), f"f{seed}x", 400, "ttttd")
    handed: list[Letter] = []
    ballast = disk / "ballast"
    with server(ledger.path, round_trip_seconds=0.002) as port:
        set_up(place, port, directory=directory_at(place, interval_seconds=1), max_connections=3)
        if each.when == "before the start":
            _fill(ballast)
        child = serving(place, patient=True)
        for number, mail in enumerate(mails):
            if number == len(mails) // 3 and each.when == "in mid-flow":
                ledger.wait_for(1)
                _fill(ballast)
            if number == len(mails) // 3:
                time.sleep(0.3)  # it meets the full disk
            if _hand_over(place.pickup, mail):
                handed.append(mail)
        time.sleep(0.5)
        row.expect(_alive(child), f"{each}: the relay ended on the full disk: {place.log.read_text()[-1500:]}")
        ballast.unlink()
        began = time.monotonic()
        while place.names() and time.monotonic() - began < 60:
            time.sleep(0.02)
        row.expect(not place.names(), f"{each}: it did not go on by itself: {place.names()[:5]}")
        os.kill(child.pid, signal.SIGTERM)
        code = child.wait()
        row.expect(code == 0, f"{each}: the relay ended with {code}: {place.log.read_text()[-1500:]}")
    row.messages += len(handed)
    reckoning = reckon(handed, ledger.read())
    row.lost += len(reckoning.lost)
    row.doubles_seen += reckoning.doubled.total()
    row.misses += [f"{each}: {mailbox} was lost" for mailbox in reckoning.lost]
    row.misses += [f"{each}: {mailbox} came more than once" for _, mailbox in reckoning.doubled]
    row.misses += [f"{each}: {key} arrived otherwise than it should" for key in reckoning.damaged]
    row.misses += [f"{each}: {line}" for line in faults_in(place.log)]
    row.expect(not place.badmail(), f"{each}: badmail holds {place.badmail()}")


def _alive(child: Child) -> bool:
    pid, _ = os.waitpid(child.pid, os.WNOHANG)
    return pid == 0


def _fill(ballast: Path) -> None:
    """Until FREE octets are left."""
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while (room := _room(ballast.parent) - FREE) > 0:
            try:
                os.write(fd, bytes(min(room, 1 << 20)))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                break
            if room < 4096:
                break
    finally:
        os.close(fd)


def _room(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _hand_over(path: Path, mail: Letter) -> bool:
    """Only what was written wholly was handed over."""
    try:
        move_in(path, mail)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        (path / f".{mail.key}.tmp").unlink(missing_ok=True)
        return False
    return True
