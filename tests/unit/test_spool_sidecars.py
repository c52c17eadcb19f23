"""Sidecars: what is remembered beside a message that goes back."""

from __future__ import annotations

import errno
import gc
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.domain.message import MessageIdentity
from core.domain.sidecar import Sidecar
from core.spool import sidecars as module
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


NAME = "0123456789abcdef" * 2 + ".json"
GOOD: dict[str, object] = {"name": "x.eml", "mtime_ns": 5, "size": 7, "file": "x.eml"}
WRONG: tuple[dict[str, object], ...] = (
    {"mtime_ns": "x"},
    {"size": None},
    {"name": 5},
    {"name": "../x.eml"},
    {"name": ""},
    {"file": "../x.eml"},
    {"file": "badmail/../x.eml"},
    {"file": "/etc/passwd"},
    {"file": "x\0.eml"},
    {"file": ["x"]},
    {"due_at": "tomorrow"},
    {"due_at": 1e300},
    {"due_at": float("nan")},
    {"due_at": 10**400},
    {"attempts": 1e300},
    {"attempts": 1.5},
    {"attempts": "x"},
    {"attempts": None},
    {"accepted": 5},
    {"possible_duplicate": 1},
    {"reason": {}},
    {"code": [550]},
    {"blame": "x"},
)


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"[" * 200_000,
        b"null",
        b"[]",
        b'{"name":"x.eml","mtime_ns":Infinity,"size":5,"file":"x.eml"}',
        *(json.dumps(GOOD | wrong).encode() for wrong in WRONG),
    ],
)
def test_nonsense_in_the_place_of_a_sidecar_is_none(mpu: int, tmp_path: Path, octets: bytes) -> None:
    """Whoever may write mail in the directory can write here too."""
    (tmp_path / NAME).write_bytes(octets)
    sidecars = Sidecars(mpu)
    sidecars.refresh()
    assert len(sidecars) == 0
    assert [*sidecars.due_times()] == []


def test_what_shows_of_a_sidecar_can_be_shown(mpu: int, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps(GOOD | {"text": "\ud800", "accepted": ["\udcff@b"], "due_at": 7}))
    sidecars = Sidecars(mpu)
    sidecars.refresh()
    record = sidecars.record_of(NAME.removesuffix(".json"))
    assert record is not None
    read = sidecars.read(record)
    assert read is not None
    assert (read[1].text, read[1].due_at) == ("?", 7)
    assert read[1].accepted == {"\udcff@b"}


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    ],
    ids=["directory", "pipe", "link", "link to a device", "socket"],
)
def test_what_is_no_file_is_no_sidecar_and_keeps_nothing_open(
    mpu: int, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / NAME)
    sidecars = Sidecars(mpu)
    sidecars.refresh()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        (tmp_path / f"change-{number}").touch()
        sidecars.refresh()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(sidecars) == 0


def test_a_name_that_is_no_text_is_no_sidecar(mpu: int, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff" * 32 + b".json")).write_bytes(b"{}")
    sidecars = Sidecars(mpu)
    sidecars.refresh()
    assert len(sidecars) == 0


def test_a_sidecar_is_read_that_got_the_inode_of_nonsense_in_its_place(mpu: int, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"[")
    sidecars = Sidecars(mpu)
    sidecars.refresh()
    (tmp_path / NAME).write_text(json.dumps(GOOD))  # the same inode
    (tmp_path / "change").touch()
    sidecars.refresh()
    assert len(sidecars) == 1


def test_nonsense_is_read_once_and_what_takes_its_place_is_read(
    mpu: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / NAME).write_bytes(b"[" * 1000)
    sidecars, sizes, decode = Sidecars(mpu), list[int](), module.decode

    def noted(data: bytes, *, file_hash: str, inode: int) -> tuple[module.Record, Sidecar]:
        sizes.append(len(data))
        return decode(data, file_hash=file_hash, inode=inode)

    monkeypatch.setattr(module, "decode", noted)
    for number in range(3):
        (tmp_path / f"change-{number}").touch()
        sidecars.refresh()
    assert sizes == [1000]
    (tmp_path / "new").write_text(json.dumps(GOOD))
    (tmp_path / "new").rename(tmp_path / NAME)
    sidecars.refresh()
    assert len(sidecars) == 1
