"""Real processes on one directory: no double claim, no half file, what a kill -9 leaves (P1, P2, P5, P6 in small)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from core.spool.directory import DirectorySpool
from tests.support.spool import MAIL, names_in, spool_at
from tests.support.spool_worker import PIECE, PIECES

WORKER = "tests.support.spool_worker"
VICTIM = f"""
import sys, time
from core.domain.account import Directory
from core.spool.directory import DirectorySpool
from {WORKER} import SystemClock
spool = DirectorySpool(Directory("in", sys.argv[1]), clock=SystemClock())
spool.open()
claimed = spool.claim(spool.examine(b"x.eml"))
claimed.begin(["a@b"])
print("ready", flush=True)
time.sleep(60)
"""
OFF = {"all": "", "fallbacks": "rename_noreplace,lease,flock"}


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", WORKER, *map(str, arguments)], stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()


def backlog(path: Path, count: int) -> None:
    path.mkdir()
    for number in range(count):
        (path / f"{number}.eml").write_bytes(MAIL)
        os.utime(path / f"{number}.eml", (1_700_000_000 + number, 1_700_000_000 + number))


def noted(sink: Path) -> tuple[Counter[bytes], Counter[bytes]]:
    """What the server took, and what was settled as unknown."""
    lines = sink.read_bytes().splitlines()
    unknown = Counter(line.split()[1] for line in lines if line.startswith(b"unknown "))
    return Counter(line.split()[0] for line in lines if not line.startswith(b"unknown ")), unknown


@pytest.mark.parametrize("off", OFF.values(), ids=OFF)
def test_eight_processes_claim_each_message_once(tmp_path: Path, off: str) -> None:
    path, sink = tmp_path / "in", tmp_path / "sink"
    backlog(path, 800)
    workers = [start("work", path, sink, 0.3, off) for _ in range(8)]
    for worker in workers:
        finish(worker)
    taken, unknown = noted(sink)
    assert len(taken) == 800
    assert set(taken.values()) == {1}
    assert not unknown
    assert names_in(path) == set()
    assert os.listdir(path / ".mpu") == []


def test_no_half_file_is_taken_from_slow_writers(tmp_path: Path) -> None:
    path, sink = tmp_path / "in", tmp_path / "sink"
    path.mkdir()
    writers = [start("write", path, 12, mode) for mode in ("plain", "flock", "mmap")]
    workers = [start("work", path, sink, 1.0) for _ in range(2)]
    for process in [*writers, *workers]:
        finish(process)
    finish(start("work", path, sink, 0.1))  # on a busy machine the others may have gone before the last file came
    lines = sink.read_bytes().splitlines()
    assert len(lines) == 36
    assert {int(line.split()[1]) for line in lines} == {len(PIECE) * PIECES}
    assert names_in(path) == set()


@pytest.mark.parametrize("off", OFF.values(), ids=OFF)
def test_kills_at_random_lose_nothing_and_repeat_only_what_was_unknown(tmp_path: Path, off: str) -> None:
    path, sink = tmp_path / "in", tmp_path / "sink"
    count = 600
    backlog(path, count)
    chance = random.Random(7)
    for _ in range(6):
        workers = [start("work", path, sink, 0.2, off) for _ in range(2)]
        deadline = time.monotonic() + 10
        goal = (sink.stat().st_size if sink.exists() else 0) + chance.randrange(1, 1200)
        while (not sink.exists() or sink.stat().st_size < goal) and time.monotonic() < deadline:
            if all(w.poll() is not None for w in workers):
                break
            time.sleep(0.0005)
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            worker.communicate(timeout=10)
    finish(start("work", path, sink, 0.2, off))
    taken, unknown = noted(sink)
    assert len(taken) == count, "nothing is lost"
    repeated = {name: times - 1 for name, times in taken.items() if times > 1}
    assert all(unknown[name] >= times for name, times in repeated.items()), "each repetition was marked"
    assert sum(repeated.values()) <= 12, "at most what was in flight at the kills"
    assert names_in(path) == set()
    assert [n for n in os.listdir(path / ".mpu") if ".log." in n or n.endswith(".json")] == []


def test_a_process_killed_while_another_lives_is_taken_over(tmp_path: Path) -> None:
    path, sink = tmp_path / "in", tmp_path / "sink"
    spool: DirectorySpool = spool_at(path)
    (path / "x.eml").write_bytes(MAIL)
    victim = subprocess.Popen(
        [
            sys.executable,
            "-c",
            VICTIM,
            str(path),
        ],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert victim.stdout is not None
    assert victim.stdout.readline() == b"ready\n"
    assert [*spool.scan()] == []
    assert [*spool.orphans()] == []
    victim.kill()
    victim.communicate(timeout=10)
    assert [*spool.scan()] == []
    (recovered,) = spool.orphans()
    assert recovered.unknown == ("a@b",)
    spool.put_back_now(recovered.claim)
    assert not sink.exists()
    spool.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming other users needs root")
@pytest.mark.parametrize("off", OFF.values(), ids=OFF)
def test_two_users_of_one_group_work_on_one_directory(off: str) -> None:
    """The set-up of the README: a shared group, setgid; one user's dead process is recovered by the other."""
    group = 54_321
    with tempfile.TemporaryDirectory() as top:
        path, sink = Path(top) / "in", Path(top) / "sink"
        backlog(path, 300)
        for name in os.listdir(path):
            os.chown(path / name, 54_300, group)
            (path / name).chmod(0o660)
        os.chown(path, 54_300, group)
        path.chmod(0o2770)
        os.chown(top, 54_300, group)
        Path(top).chmod(0o2770)

        def as_user(user: int) -> subprocess.Popen[bytes]:
            return start("work", path, sink, 0.2, off, group, user)

        sink.write_bytes(b"")
        sink.chmod(0o666)
        first = as_user(54_301)
        deadline = time.monotonic() + 10
        while not sink.stat().st_size and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        first.kill()
        _, errors = first.communicate(timeout=10)
        assert sink.stat().st_size, errors.decode()
        for worker in [as_user(54_302), as_user(54_303)]:
            finish(worker)
        taken, unknown = noted(sink)
        assert len(taken) == 300
        assert sum(taken.values()) - 300 <= sum(unknown.values()) <= 1
        assert names_in(path) == set()
