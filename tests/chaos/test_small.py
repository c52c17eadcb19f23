"""A small, seeded share of each of the long runs (`make chaos`), in processes of their own: the runner forks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.__main__ import EXPERIMENTS
from tests.chaos.result import Row, table

COMMAND = [sys.executable, "-m", "tests.chaos", "--scale", "small", "--seed", "20261124"]
# by what they take, so that two test processes are done at about the same time
SHARES = ("boundaries,claims,names", "leaks,stops,database,clock", "power,kills,poison", "writers,peers,space")


def _folder() -> str:
    """In memory where there is room: the time of syncs shows nothing here, and isn't steady on a busy disk."""
    with suppress(OSError):
        found = os.statvfs("/dev/shm")
        if os.access("/dev/shm", os.W_OK) and found.f_bavail * found.f_frsize > 1 << 28:
            return "/dev/shm"
    return tempfile.gettempdir()


@pytest.mark.parametrize("share", SHARES)
def test_promises_are_kept_on_a_small_scale(tmp_path: Path, share: str) -> None:
    out = tmp_path / "rows.json"
    done = subprocess.run(
        [*COMMAND, "--only", share, "--json", str(out)],
        env=os.environ | {"TMPDIR": _folder()},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {r["verdict"] for r in rows} <= {"kept", "skipped"}
    assert sum(r["messages"] for r in rows) > 0


def test_every_experiment_has_its_share() -> None:
    assert sorted(",".join(SHARES).split(",")) == sorted(EXPERIMENTS)


def test_every_promise_has_its_experiment() -> None:
    promises = [promise for names, _ in EXPERIMENTS.values() for promise in names]
    assert sorted(promises, key=lambda p: int(p[1:])) == [f"P{n}" for n in range(1, 13)]


def test_a_miss_shows_in_the_table_and_in_the_exit_code() -> None:
    row = Row("P1", "kill -9", 3, 10, 1, misses=["jo@example.org was lost"])
    assert row.verdict == "MISSED (1)"
    assert "jo@example.org was lost" in table([row])
