"""What killed processes leave in `.mpu/` goes at the next start, and what living ones write stays."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from core.errors import MessageGone
from core.spool.kernel import Features
from tests.support.spool import spool_at, write


def _temporary(path: Path, name: str, age: float) -> Path:
    file = path / ".mpu" / name
    file.write_bytes(bytes(4096))
    seconds = os.stat(file).st_mtime - age
    os.utime(file, (seconds, seconds))
    return file


@pytest.mark.parametrize(
    ("name", "age", "gone"),
    [
        ("tmp-log-0123456789abcdef", 61, True),
        ("tmp-log-0123456789abcdef", 30, False),  # just made, perhaps not locked yet
        ("tmp-0123456789abcdef", 61, False),  # a mail may come in slowly over HTTP
        ("tmp-0123456789abcdef", 3700, True),
        ("0123456789abcdef.lock", 3700, True),
    ],
)
def test_temporary_files_go_when_nobody_can_write_them_any_more(
    tmp_path: Path, name: str, age: float, gone: bool
) -> None:
    path = tmp_path / "in"
    spool_at(path).close()
    file = _temporary(path, name, age)
    spool_at(path).close()
    assert file.exists() is not gone


def test_a_segment_that_its_owner_holds_stays(tmp_path: Path) -> None:
    path = tmp_path / "in"
    spool_at(path).close()
    file = _temporary(path, "tmp-log-0123456789abcdef", 3700)
    with file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        spool_at(path).close()
        assert file.exists()


def test_a_claim_seen_halfway_leaves_no_lock_file(tmp_path: Path) -> None:
    """Where there is neither renameat2 nor flock, another process may look between link and unlink."""
    path = tmp_path / "in"
    spool = spool_at(path, features=Features(rename_noreplace=False, flock=False))
    name = write(path)
    os.link(path / "x.eml", path / "x.eml.lck")
    with pytest.raises(MessageGone):
        spool.examine(name, event_seen=True)
    assert [n for n in os.listdir(path / ".mpu") if n.endswith(".lock")] == []
    spool.close()
