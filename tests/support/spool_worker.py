"""A process that works on a directory, for tests with several and with kill -9. Run with -m.

work PATH SINK SECONDS [OFF [GID UID]]   OFF: features, by comma; GID UID: become that user
                         claim, "send" (append a line to SINK, as a server would note it), delete; until idle
write PATH COUNT MODE    slow writers: CreateNew under the final name, in pieces; MODE plain, flock or mmap
"""

from __future__ import annotations

import codecs
import fcntl
import mmap
import os
import random
import sys
import time

from core.domain.account import Directory
from core.domain.outcome import Outcome, RecipientOutcome
from core.domain.reply import Phase
from core.domain.sidecar import Sidecar
from core.errors import MessageError
from core.spool.directory import Claim, Delete, DirectorySpool, Disposal, PutBack, Verdict
from core.spool.kernel import Features

PIECE = b"0123456789abcdef" * 64
PIECES = 8
RECIPIENT = "a@example.com"


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def deliver(claimed: Claim, sink: int) -> None:
    """The receiving server notes it between begin and outcome."""
    size = 0
    while piece := os.pread(claimed.fd, 1 << 16, size):
        size += len(piece)
    claimed.begin([RECIPIENT])
    os.write(sink, b"%s %d\n" % (claimed.identity.name, size))
    claimed.outcome([RecipientOutcome(RECIPIENT, Outcome.SENT, Phase.DOT, None, 250)])


def recovered(spool: DirectorySpool, sink: int, *, start: bool) -> None:
    for each in spool.recover() if start else spool.orphans():
        if each.verdict is Verdict.SETTLED:
            spool.dispose([Delete(each.claim)])
        elif each.verdict is Verdict.UNKNOWN:
            os.write(sink, b"unknown %s\n" % each.identity.name)
            spool.dispose([PutBack(each.claim, Sidecar(attempts=1, possible_duplicate=True))])
        else:
            spool.put_back_now(each.claim)


def work(path: str, sink_path: str, seconds: float, features: Features) -> None:
    spool = DirectorySpool(Directory("in", path), clock=SystemClock(), features=features)
    spool.open()
    sink = os.open(sink_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    recovered(spool, sink, start=True)
    last = time.monotonic()
    while time.monotonic() - last < seconds:
        group: list[Disposal] = []
        for name in spool.scan():
            try:
                claimed = spool.claim(spool.examine(name))
            except MessageError:
                continue
            last = time.monotonic()
            deliver(claimed, sink)
            group.append(Delete(claimed))
            if len(group) >= random.randrange(1, 40):
                spool.dispose(group)
                group = []
        spool.dispose(group)
        recovered(spool, sink, start=False)
    spool.close()


def write(path: str, count: int, mode: str) -> None:
    for number in range(count):
        name = os.path.join(path, f"{mode}-{number}.eml")
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        if mode == "flock":
            time.sleep(0.001)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as .NET: throws if somebody locked it before
        if mode == "mmap":
            os.ftruncate(fd, PIECES * len(PIECE))
            mapped = mmap.mmap(fd, PIECES * len(PIECE))
            os.close(fd)
            for piece in range(PIECES):
                time.sleep(0.002)
                mapped[piece * len(PIECE) : (piece + 1) * len(PIECE)] = PIECE
            mapped.close()
            continue
        for _ in range(PIECES):
            time.sleep(0.002)
            os.write(fd, PIECE)
        os.close(fd)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        if len(sys.argv) > 6:  # everything is imported by now: another user need not be able to read it
            codecs.lookup("ascii")
            os.umask(0o007)
            os.setgroups([])
            os.setgid(int(sys.argv[6]))
            os.setuid(int(sys.argv[7]))
        off = dict.fromkeys(filter(None, sys.argv[5].split(",")), False) if len(sys.argv) > 5 else {}
        work(sys.argv[2], sys.argv[3], float(sys.argv[4]), Features(**off))
    else:
        write(sys.argv[2], int(sys.argv[3]), sys.argv[4])
