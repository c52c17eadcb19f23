"""P6: slow writers. No half-written file is sent: every mail arrives as it was when its writer was done.

Once with the service as root, where leases tell; once as another user than the writers, without CAP_LEASE, where only
events and rest do (writers then pause for less than `quiet_seconds`, which is what is promised).
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from core.runtime.relay import Relay
from tests.chaos.child import Place, directory_at, faults_in, fork, place_at, run_loop, serve, serving, set_up
from tests.chaos.mails import Letter, letter, move_in
from tests.chaos.result import Plan, Row, reckon
from tests.chaos.server import Ledger, server

NOBODY = 65534
PIECES = 6
QUIET_SECONDS = 0.6
LINE = b"a line of a mail that is written slowly, as a report is\r\n"


def writers(plan: Plan) -> list[Row]:
    """200 slow writers, with and without flock, with mmap, moved in; and the same for a service of another user."""
    count = plan.size(200, 24)
    rows = [_write(plan, "slow writers, leases tell", count, other_user=False)]
    if os.geteuid() == 0:
        rows.append(_write(plan, "the same, service of another user without CAP_LEASE", count, other_user=True))
    else:
        rows.append(
            Row("P6", "service of another user without CAP_LEASE", skipped="needs root, to become another user")
        )
    return rows


def _write(plan: Plan, what: str, count: int, *, other_user: bool) -> Row:
    row = Row("P6", what, count, count)
    chance = random.Random(f"{plan.seed}/{other_user}")
    place = place_at(plan.root / ("other" if other_user else "same"))
    mails = [_long(letter(chance, f"w{'o' if other_user else 's'}{n}", "t"), chance) for n in range(count)]
    ledger = Ledger(plan.root / f"ledger-{other_user}")
    with server(ledger.path) as port:
        set_up(place, port, directory=directory_at(place, quiet_seconds=QUIET_SECONDS, interval_seconds=1))
        if other_user:
            _hand_to_nobody(place)
            service = fork(lambda: _as_nobody(place), place.log)
        else:
            service = serving(place)
        writer = fork(lambda: _all(place.pickup, mails, plan.seed), plan.root / f"writers-{other_user}.log")
        code = writer.wait()
        row.expect(code == 0, f"the writers ended with {code}")
        deadline = time.monotonic() + 60
        while place.names() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(service.pid, signal.SIGTERM)
        code = service.wait()
        row.expect(code == 0, f"the service ended with {code}: {place.log.read_text()[-1500:]}")
    reckoning = reckon(mails, ledger.read())
    row.lost, row.doubles_allowed, row.doubles_seen = len(reckoning.lost), 0, reckoning.doubled.total()
    row.misses += [f"{mailbox} was lost" for mailbox in reckoning.lost]
    row.misses += [f"{key} arrived in part" for key in reckoning.damaged]
    row.misses += [f"{mailbox} came more than once" for _, mailbox in reckoning.doubled]
    row.misses += faults_in(place.log)
    row.expect(not place.names() and not place.badmail(), f"left over: {place.names()[:5]} {place.badmail()}")
    return row


def _long(mail: Letter, chance: random.Random) -> Letter:
    """With more lines, so that halves are of many octets."""
    more = LINE * chance.choice((0, 20, 500, 3000))
    data = mail.data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") + more
    whole = data[data.index(b"From: ") :]
    return Letter(mail.key, data, mail.recipients, hashlib.sha256(whole).hexdigest())


# --- the writers: one process, each a generator that goes on a piece at a time ---


def _all(path: Path, mails: list[Letter], seed: int) -> None:
    """All at once, for two to three seconds each. Pauses stay below QUIET_SECONDS."""
    os.umask(0)
    chance = random.Random(f"{seed}/writers")
    kinds: tuple[Callable[[Path, Letter], Iterator[None]], ...] = (_plain, _locked, _mapped, _moved, _late, _rewound)
    waiting = list(mails)
    active: list[tuple[float, Iterator[None]]] = []
    while waiting or active:
        now = time.monotonic()
        while waiting and len(active) < 120:
            active.append((now + chance.random() * 0.3, kinds[len(waiting) % len(kinds)](path, waiting.pop())))
        for entry in [a for a in active if a[0] <= now]:
            active.remove(entry)
            try:
                next(entry[1])
            except StopIteration:
                continue
            active.append((time.monotonic() + 0.02 + chance.random() * QUIET_SECONDS * 0.5, entry[1]))
        time.sleep(0.002)


def _create(path: Path, mail: Letter) -> int:
    return os.open(path / mail.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _pieces(data: bytes) -> Iterator[bytes]:
    size = max(len(data) // PIECES, 1)
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _plain(path: Path, mail: Letter) -> Iterator[None]:
    fd = _create(path, mail)
    for piece in _pieces(mail.data):
        os.write(fd, piece)
        yield
    os.close(fd)


def _locked(path: Path, mail: Letter) -> Iterator[None]:
    """As .NET: opened first, locked after, and it throws if it can't."""
    fd = _create(path, mail)
    yield
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for piece in _pieces(mail.data):
        os.write(fd, piece)
        yield
    os.close(fd)


def _mapped(path: Path, mail: Letter) -> Iterator[None]:
    """The size is there at once, the content comes through a mapping; every piece is told to the file system."""
    fd = _create(path, mail)
    os.ftruncate(fd, len(mail.data))
    with mmap.mmap(fd, len(mail.data)) as view:
        at = 0
        for piece in _pieces(mail.data):
            view[at : at + len(piece)] = piece
            at += len(piece)
            view.flush()
            os.utime(fd)
            yield
    os.close(fd)


def _moved(path: Path, mail: Letter) -> Iterator[None]:
    yield
    move_in(path, mail)


def _late(path: Path, mail: Letter) -> Iterator[None]:
    """Made empty, filled later in one go."""
    fd = _create(path, mail)
    yield
    yield
    os.write(fd, mail.data)
    os.close(fd)


def _rewound(path: Path, mail: Letter) -> Iterator[None]:
    """The body first, the header last."""
    fd = _create(path, mail)
    half = len(mail.data) // 2
    os.pwrite(fd, mail.data[half:], half)
    yield
    yield
    os.pwrite(fd, mail.data[:half], 0)
    os.close(fd)


# --- another user ---


def _hand_to_nobody(place: Place) -> None:
    """The data folder is theirs; the pickup directory belongs to the writers and is open to them."""
    for folder, _, files in os.walk(place.data):
        os.chown(folder, NOBODY, NOBODY)
        for file in files:
            os.chown(os.path.join(folder, file), NOBODY, NOBODY)
    place.root.chmod(0o777)
    place.log.chmod(0o666)
    place.pickup.chmod(0o777)
    mpu = place.pickup / ".mpu"
    if mpu.exists():
        for name in os.listdir(mpu):
            os.chown(mpu / name, NOBODY, NOBODY)
        os.chown(mpu, NOBODY, NOBODY)


def _as_nobody(place: Place) -> int | None:
    """One relay starts and stops as root first, so that all is imported: the interpreter may lie in root's home."""
    elsewhere = place_at(place.root / "elsewhere")

    async def once() -> int:
        relay = Relay(elsewhere.settings())
        await relay.start()
        await relay.stop()
        return 0

    run_loop(once())
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    return run_loop(serve(place))
