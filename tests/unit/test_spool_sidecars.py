"""Sidecars: what is remembered beside a message that goes back."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.domain.message import MessageIdentity
from core.domain.sidecar import Sidecar
from core.spool.sidecars import Draft, Sidecars
from tests.support.spool import raises_errno

ID = MessageIdentity("in", b"\xff\xfe x.eml", 1_700_000_000_123_456_789, 42)
FULL = Sidecar(
    attempts=3,
    unknown=1,
    first_attempt_at=1.5,
    due_at=99.25,
    accepted=frozenset({"a@b", "ü@b"}),
    failed=frozenset({"c@d"}),
    message_id="<1@host>",
    date="Tue, 1 Jan 2030 00:00:00 +0000",
    possible_duplicate=True,
    reason="450 later",
    code=450,
    enhanced_code="4.2.1",
    account="out",
)


@pytest.fixture
def mpu(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_all_fields_come_back(mpu: int) -> None:
    Sidecars(mpu).write([Draft(ID, ID.name, FULL, "1-ab/7")])
    other = Sidecars(mpu)
    other.refresh()
    record = other.lookup("known-by-another-name", ID.name, ID.mtime_ns, ID.size)
    assert record is not None
    assert record.token == "1-ab/7"
    read = other.read(record)
    assert read is not None
    assert read[1] == FULL


def test_the_file_is_named_by_the_identity_without_the_directory(mpu: int, tmp_path: Path) -> None:
    Sidecars(mpu).write([Draft(ID, ID.name, FULL)])
    assert os.listdir(tmp_path) == [f"{ID.file_hash}.json"]
    assert (tmp_path / f"{ID.file_hash}.json").stat().st_mode & 0o777 == 0o660
    assert json.loads((tmp_path / f"{ID.file_hash}.json").read_bytes())["attempts"] == 3


def test_the_due_time_is_known_by_name_without_a_look_at_the_disk(mpu: int, tmp_path: Path) -> None:
    sidecars = Sidecars(mpu)
    sidecars.write([Draft(ID, b"x.eml", FULL)])
    (tmp_path / f"{ID.file_hash}.json").unlink()
    assert sidecars.due_at(b"x.eml") == 99.25
    assert sidecars.due_at(b"y.eml") is None


def test_what_another_process_wrote_is_found_before_the_next_scan(mpu: int) -> None:
    mine, other = Sidecars(mpu), Sidecars(mpu)
    mine.refresh()
    other.write([Draft(ID, ID.name, FULL)])
    record = mine.lookup("in", ID.name, ID.mtime_ns, ID.size)
    assert record is not None
    assert record.due_at == 99.25


def test_a_refresh_sees_what_others_changed_and_removed(mpu: int) -> None:
    mine, other = Sidecars(mpu), Sidecars(mpu)
    other.write([Draft(ID, ID.name, FULL)])
    mine.refresh()
    other.write([Draft(ID, ID.name, Sidecar(due_at=5.0))])
    mine.refresh()
    assert mine.due_at(ID.name) == 5.0
    other.remove(ID)
    mine.refresh()
    assert len(mine) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name":1}', b"\xff", b"null"])
def test_a_torn_one_is_as_if_it_were_not_there(mpu: int, tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{ID.file_hash}.json").write_bytes(content)
    sidecars = Sidecars(mpu)
    sidecars.refresh()
    assert sidecars.lookup("in", ID.name, ID.mtime_ns, ID.size) is None


def test_another_message_under_the_same_name_does_not_get_it(mpu: int) -> None:
    sidecars = Sidecars(mpu)
    sidecars.write([Draft(ID, ID.name, FULL)])
    assert sidecars.lookup("in", ID.name, ID.mtime_ns + 1, ID.size) is None
    assert sidecars.lookup("in", ID.name, ID.mtime_ns, ID.size + 1) is None


def test_a_numbered_name_leads_to_the_sidecar_of_its_arrival(mpu: int) -> None:
    sidecars = Sidecars(mpu)
    arrived = MessageIdentity("in", b"x.eml", 7, 8)
    sidecars.write([Draft(arrived, b"x.eml", FULL)])
    record = sidecars.lookup("in", b"x~3.eml", 7, 8)
    assert record is not None
    assert record.arrival_name == b"x.eml"


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_a_write_that_fails_leaves_the_old_one_and_no_litter(
    mpu: int, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecars = Sidecars(mpu)
    sidecars.write([Draft(ID, ID.name, FULL)])
    with monkeypatch.context() as full:
        full.setattr(os, call, raises_errno(errno.ENOSPC))
        with pytest.raises(OSError, match="No space"):
            sidecars.write([Draft(ID, ID.name, Sidecar(attempts=9))])
    assert os.listdir(tmp_path) == [f"{ID.file_hash}.json"]
    record = sidecars.record_of(ID.file_hash)
    assert record is not None
    read = sidecars.read(record)
    assert read is not None
    assert read[1] == FULL


def test_it_is_synced_before_it_gets_its_name(mpu: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_sync(fd: int) -> None:
        calls.append("fsync directory" if fd == mpu else "fsync file")
        fsync(fd)

    def note_rename(old: bytes, new: bytes, **fds: int) -> None:
        calls.append("rename")
        rename(old, new, **fds)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    Sidecars(mpu).write([Draft(ID, ID.name, FULL)])
    assert calls == ["fsync file", "rename", "fsync directory"]
