"""Claim: what is taken, what is left alone, and how it can be told that no writer is at work (spool.md, "Claim")."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.domain.account import MessageFormat
from core.domain.sidecar import Sidecar
from core.errors import (
    DirectoryUnavailable,
    MessageBusy,
    MessageGone,
    MessageNotDue,
    MessageNotReady,
    MessageRefused,
    MessageUnreadable,
    RelayError,
    StorageFull,
)
from core.spool import kernel
from core.spool.claim import close_both, take_lock
from core.spool.directory import Delete, DirectorySpool, PutBack
from core.spool.kernel import Features
from tests.support.clock import ManualClock
from tests.support.spool import MAIL, claim, names_in, raises_errno, spool_at, write

FEATURES = {
    "all": Features(),
    "no renameat2": Features(rename_noreplace=False),
    "no lease": Features(lease=False),
    "no flock": Features(flock=False),
    "nothing": Features(rename_noreplace=False, lease=False, flock=False, preallocate=False, inotify=False),
}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in"


@pytest.fixture(params=FEATURES)
def spool(request: pytest.FixtureRequest, path: Path, clock: ManualClock) -> Iterator[DirectorySpool]:
    spool = spool_at(path, clock=clock, features=FEATURES[request.param])
    yield spool
    spool.close()


@pytest.fixture
def leased(path: Path, clock: ManualClock) -> Iterator[DirectorySpool]:
    spool = spool_at(path, clock=clock)
    yield spool
    spool.close()


@pytest.fixture
def unleased(path: Path, clock: ManualClock) -> Iterator[DirectorySpool]:
    spool = spool_at(path, clock=clock, features=Features(lease=False))
    yield spool
    spool.close()


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_a_finished_file_is_claimed_and_deleted(path: Path, spool: DirectorySpool) -> None:
    write(path)
    opened = spool.examine(b"x.eml", event_seen=True)
    assert (opened.file_name, opened.size, opened.reject) == (b"x.eml", len(MAIL), None)
    assert opened.identity.directory == "in"
    claimed = spool.claim(opened)
    assert names_in(path) == {"x.eml.lck"}
    assert os.pread(claimed.fd, 100, 0) == MAIL
    assert spool.in_flight == 1
    (answer,) = spool.dispose([Delete(claimed)])
    assert answer.ok
    assert names_in(path) == set()
    assert (spool.in_flight, claimed.fd) == (0, -1)


def test_a_claim_shuts_out_other_processes_until_it_is_put_back(path: Path, spool: DirectorySpool) -> None:
    other = spool_at(path, clock=ManualClock(), features=spool.features)
    write(path)
    opened = spool.examine(b"x.eml", event_seen=True)
    with pytest.raises(MessageBusy):
        other.examine(b"x.eml", event_seen=True)
    spool.release(opened)
    claimed = claim(other)
    with pytest.raises(MessageGone):
        spool.examine(b"x.eml", event_seen=True)
    assert [*spool.orphans()] == []
    other.put_back_now(claimed)
    assert names_in(path) == {"x.eml"}
    spool.release(spool.examine(b"x.eml", event_seen=True))
    other.close()


def test_the_identity_is_name_mtime_and_size(path: Path, spool: DirectorySpool) -> None:
    write(path)
    found = (path / "x.eml").stat()
    opened = spool.examine(b"x.eml", event_seen=True)
    assert (opened.identity.name, opened.identity.mtime_ns, opened.identity.size) == (
        b"x.eml",
        found.st_mtime_ns,
        found.st_size,
    )
    assert opened.arrived_at == found.st_mtime
    spool.release(opened)
    spool.release(opened)


@pytest.mark.parametrize("feature", ["all", "no flock"])
def test_those_that_go_together_close_their_own_descriptors_and_no_others(
    path: Path, clock: ManualClock, feature: str
) -> None:
    spool = spool_at(path, clock=clock, features=FEATURES[feature])
    claims = []
    for number in range(12):
        write(path, b"%d.eml" % number)
        claims.append(claim(spool, b"%d.eml" % number))
    gone = [claims[n] for n in (0, 1, 2, 4, 7, 8, 11)]
    fds = {each: each.fd for each in claims}
    assert all(answer.ok for answer in spool.dispose([Delete(each) for each in gone]))
    for each in claims:
        if each in gone:
            assert each.fd == -1
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fds[each])
        else:
            assert os.fstat(each.fd).st_ino == each.opened.inode
    spool.close()


def test_a_lock_that_fails_for_once_is_not_replaced_by_another_kind(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With lock files it would not see the locks of others, nor they its own."""
    one, other = spool_at(path, clock=clock), spool_at(path, clock=clock)
    write(path, b"x.eml")
    write(path, b"y.eml")
    claimed = claim(other, b"x.eml")
    one.release(one.examine(b"y.eml", event_seen=True))
    with monkeypatch.context() as failing:
        failing.setattr(kernel, "lock", raises_errno(errno.ENOLCK))
        with pytest.raises(MessageBusy, match="No locks"):
            one.examine(b"y.eml", event_seen=True)
    assert [*one.orphans()] == []
    one.release(one.examine(b"y.eml", event_seen=True))
    other.put_back_now(claimed)
    for spool in (one, other):
        spool.close()


def test_a_file_on_another_device_that_can_not_be_locked_changes_nothing_for_the_directory(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """badmail/ may be a mount, of NFS perhaps."""
    spool = spool_at(path, clock=clock)
    write(path)
    real = kernel.lock

    def only_lock_files(fd: int) -> bool:
        if os.fstat(fd).st_size:
            raise OSError(errno.EBADF, "not for writing")
        return real(fd)

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(spool.place, "device", -1)
        elsewhere.setattr(kernel, "lock", only_lock_files)
        fd = os.open(path / "x.eml", os.O_RDONLY)
        lock_fd = take_lock(spool.place, fd, b"x.eml")
        assert lock_fd >= 0
        close_both(spool.place, fd, lock_fd, b"x.eml")
    assert spool.place.features.flock
    spool.close()


def test_a_lock_file_that_can_not_be_locked_keeps_nothing_open(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spool_at(path, clock=clock, features=Features(flock=False))
    write(path, b"x.eml")
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as failing:
        failing.setattr(kernel, "lock", raises_errno(errno.ENOLCK))
        for _ in range(3):
            with pytest.raises(RelayError):
                spool.examine(b"x.eml", event_seen=True)
    assert len(os.listdir("/proc/self/fd")) == before
    spool.close()


@pytest.mark.parametrize(
    "name", [b"\xff\xfe.eml", b"a\nb.eml", b"<script>.eml", b"X.EML", b".eml", b"a" * 236 + b".eml"]
)
def test_odd_names_are_as_good_as_others(path: Path, spool: DirectorySpool, name: bytes) -> None:
    write(path, name)
    assert list(spool.scan()) == [name]
    spool.dispose([PutBack(claim(spool, name), Sidecar(attempts=1))])
    assert os.listdir(os.fsencode(path)).count(name) == 1
    spool.dispose([Delete(claim(spool, name))])
    assert list(spool.scan()) == []


# --- what is no mail file --------------------------------------------------------------------------------------------


def test_a_name_too_long_to_be_claimed_is_left_and_reported(path: Path, spool: DirectorySpool) -> None:
    name = write(path, b"a" * 250 + b".eml")
    with pytest.raises(MessageRefused, match="254 octets"):
        spool.examine(name, event_seen=True)
    assert len(os.listdir(path)) == 2


def _symlink(path: Path) -> None:
    (path.parent / "secret").write_bytes(b"secret")
    (path / "x.eml").symlink_to(path.parent / "secret")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path / "x.eml"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_symlink, "symbolic link"),
        (lambda path: os.mkfifo(path / "x.eml"), "FIFO"),
        (_socket, "socket"),
        (lambda path: (path / "x.eml").mkdir(), "directory"),
    ],
    ids=["symlink", "fifo", "socket", "directory"],
)
def test_what_is_no_regular_file_is_refused_at_once_and_left(
    path: Path, spool: DirectorySpool, make: object, reason: str
) -> None:
    assert callable(make)
    make(path)
    with pytest.raises(MessageRefused, match=reason):
        spool.examine(b"x.eml", event_seen=True)
    assert names_in(path) == {"x.eml"}


@pytest.mark.skipif(os.geteuid() != 0, reason="making a device needs root")
def test_a_device_is_refused(path: Path, leased: DirectorySpool) -> None:
    try:
        os.mknod(path / "x.eml", 0o666 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no right to make devices here")
    with pytest.raises(MessageRefused, match="device"):
        leased.examine(b"x.eml", event_seen=True)


def test_a_hard_link_is_looked_at_again_for_a_minute_then_reported(
    path: Path, clock: ManualClock, spool: DirectorySpool
) -> None:
    write(path)
    os.link(path / "x.eml", path.parent / "other")
    with pytest.raises(MessageNotReady, match="hard links"):
        spool.examine(b"x.eml", event_seen=True)
    clock.advance(59)
    with pytest.raises(MessageNotReady):
        spool.examine(b"x.eml", event_seen=True)
    clock.advance(2)
    with pytest.raises(MessageRefused, match="2 hard links"):
        spool.examine(b"x.eml", event_seen=True)
    (path.parent / "other").unlink()
    spool.release(spool.examine(b"x.eml", event_seen=True))


def test_an_unreadable_file_is_left_with_owner_mode_and_remedy(
    path: Path, leased: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path)
    (path / "x.eml").chmod(0o200)
    if os.geteuid() == 0:
        monkeypatch.setattr(os, "open", raises_errno(errno.EACCES))
    with pytest.raises(MessageUnreadable, match=r"owner .*, group .*, mode --w-------") as caught:
        leased.examine(b"x.eml", event_seen=True)
    assert "0640" in caught.value.remedy
    assert names_in(path) == {"x.eml"}


def test_too_many_open_files_is_no_fault_of_the_message(
    path: Path, leased: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path)
    monkeypatch.setattr(os, "open", raises_errno(errno.EMFILE))
    with pytest.raises(MessageNotReady):
        leased.examine(b"x.eml", event_seen=True)


# --- only fit for badmail --------------------------------------------------------------------------------------------


def test_an_empty_file_is_not_touched_until_it_has_rested_a_minute(
    path: Path, clock: ManualClock, spool: DirectorySpool
) -> None:
    write(path, data=b"")
    for _ in range(2):
        with pytest.raises(MessageNotReady, match="empty"):
            spool.examine(b"x.eml", event_seen=True)
        clock.advance(29)
    clock.advance(5)
    opened = spool.examine(b"x.eml")
    assert opened.reject is not None
    assert "empty" in opened.reject.detail
    spool.release(opened)


def test_an_empty_file_is_never_locked(path: Path, leased: DirectorySpool, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, data=b"")
    locked: list[int] = []
    monkeypatch.setattr(kernel, "lock", locked.append)
    with pytest.raises(MessageNotReady):
        leased.examine(b"x.eml", event_seen=True)
    assert locked == []


def test_a_file_over_the_cap_is_rejected_by_its_size_alone(path: Path, clock: ManualClock) -> None:
    spool = spool_at(path, clock=clock, max_message_bytes=1 << 20)
    with open(path / "x.eml", "wb") as file:
        file.truncate(2 << 30)  # sparse: reading it would take seconds
    opened = spool.examine(b"x.eml", event_seen=True)
    assert opened.reject is not None
    assert opened.reject.enhanced_code == "5.3.4"
    spool.release(opened)
    spool.close()


# --- writers ---------------------------------------------------------------------------------------------------------


def test_a_writer_that_has_the_file_open_is_seen(path: Path, leased: DirectorySpool) -> None:
    with open(path / "x.eml", "wb") as file:
        file.write(MAIL)
        file.flush()
        waits = []
        for _ in range(6):
            with pytest.raises(MessageNotReady, match="writer") as caught:
                leased.examine(b"x.eml", event_seen=True)
            waits.append(caught.value.retry_after_seconds)
        assert waits == sorted(waits)
        assert waits[0] < 0.1
        assert waits[-1] == 1.0
        assert names_in(path) == {"x.eml"}
    leased.release(leased.examine(b"x.eml"))


def test_a_writer_that_has_the_file_mapped_is_seen(path: Path, leased: DirectorySpool) -> None:
    write(path, data=bytes(4096))
    with open(path / "x.eml", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 4096)
    with pytest.raises(MessageNotReady, match="writer"):
        leased.examine(b"x.eml", event_seen=True)
    mapped.close()
    leased.release(leased.examine(b"x.eml"))


def test_the_writer_is_asked_for_before_the_file_is_locked(
    path: Path, leased: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[int] = []
    monkeypatch.setattr(kernel, "lock", locked.append)
    with open(path / "x.eml", "wb") as file:
        file.write(MAIL)
        file.flush()
        with pytest.raises(MessageNotReady):
            leased.examine(b"x.eml", event_seen=True)
    assert locked == []


def test_a_writer_that_meets_the_lease_does_not_kill_the_process(tmp_path: Path) -> None:
    """SIGIO would end a process that does not expect it, also one that examines in a thread."""
    write(tmp_path)
    script = """
import fcntl, os, subprocess, sys, threading
from core.spool import kernel
fd = os.open(sys.argv[1], os.O_RDONLY)
take = fcntl.fcntl
def meet(fd, command, *rest):
    result = take(fd, command, *rest)
    if command == fcntl.F_SETLEASE and rest[0] == fcntl.F_RDLCK:
        subprocess.run([sys.executable, "-c", "import os,sys; os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)",
                        sys.argv[1]], stderr=subprocess.DEVNULL)
    return result
fcntl.fcntl = meet
thread = threading.Thread(target=lambda: print(kernel.no_writer(fd, kernel.Features())))
thread.start(); thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.eml")], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_without_the_right_to_a_lease_an_event_decides(
    path: Path, leased: DirectorySpool, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path)
    real = fcntl.fcntl

    def refuse(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETLEASE:
            raise OSError(number, os.strerror(number))
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(MessageNotReady, match="may still be written"):
        leased.examine(b"x.eml")
    leased.release(leased.examine(b"x.eml", event_seen=True))
    assert leased.place.features.lease, "the next file may be our own"


def test_where_the_file_system_has_no_leases_they_are_not_tried_again(
    path: Path, leased: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path)
    monkeypatch.setattr(fcntl, "fcntl", raises_errno(errno.EINVAL))
    leased.release(leased.examine(b"x.eml", event_seen=True))
    assert not leased.place.features.lease


def test_without_lease_and_event_size_and_mtime_must_rest(
    path: Path, clock: ManualClock, unleased: DirectorySpool
) -> None:
    write(path)
    with pytest.raises(MessageNotReady) as caught:
        unleased.examine(b"x.eml")
    assert caught.value.retry_after_seconds == pytest.approx(2)
    clock.advance(1.9)
    with open(path / "x.eml", "ab") as file:
        file.write(b"more")
    with pytest.raises(MessageNotReady):
        unleased.examine(b"x.eml")
    clock.advance(1.9)
    with pytest.raises(MessageNotReady):
        unleased.examine(b"x.eml")
    clock.advance(0.2)
    unleased.release(unleased.examine(b"x.eml"))


def test_an_old_backlog_need_not_rest_again(path: Path, unleased: DirectorySpool) -> None:
    write(path, age=10)
    unleased.release(unleased.examine(b"x.eml"))


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_jump_of_the_clock_makes_no_file_look_old(
    path: Path, clock: ManualClock, unleased: DirectorySpool, jump: float
) -> None:
    clock.jump(jump)
    write(path)
    with pytest.raises(MessageNotReady):
        unleased.examine(b"x.eml")


def test_a_file_from_the_future_is_ready_once_it_has_rested(
    path: Path, clock: ManualClock, unleased: DirectorySpool
) -> None:
    write(path, age=-3600)
    with pytest.raises(MessageNotReady):
        unleased.examine(b"x.eml")
    clock.advance(2.1)
    unleased.release(unleased.examine(b"x.eml"))


def test_in_a_maildir_no_writer_is_looked_for(path: Path, clock: ManualClock) -> None:
    spool = spool_at(path, clock=clock, format=MessageFormat.MAILDIR)
    with open(path / "new" / "1.2.host", "wb") as file:
        file.write(MAIL)
        file.flush()
        claimed = claim(spool, b"1.2.host")
    assert names_in(path / "new") == {"1.2.host.lck"}
    assert [*spool.scan()] == []
    spool.put_back_now(claimed)
    assert [*spool.scan()] == [b"1.2.host"]
    spool.close()


# --- the lock and the rename -----------------------------------------------------------------------------------------


def test_a_lock_on_a_file_whose_name_leads_elsewhere_is_worth_nothing(
    path: Path, leased: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path)
    real = kernel.lock

    def replaced(fd: int) -> bool:
        (path / "x.eml").rename(path.parent / "old")
        write(path, data=b"another")
        return real(fd)

    monkeypatch.setattr(kernel, "lock", replaced)
    with pytest.raises(MessageGone):
        leased.examine(b"x.eml", event_seen=True)
    assert (path / "x.eml").read_bytes() == b"another"


def test_a_claim_never_overwrites_a_lck_that_is_there(path: Path, spool: DirectorySpool) -> None:
    write(path, b"x.eml.lck", b"first")
    write(path, b"x.eml", b"second")
    opened = spool.examine(b"x.eml", event_seen=True)
    with pytest.raises(MessageBusy):
        spool.claim(opened)
    assert opened.fd == -1
    assert (path / "x.eml.lck").read_bytes() == b"first"
    assert (path / "x.eml").read_bytes() == b"second"


def test_a_file_replaced_before_the_rename_goes_back(path: Path, spool: DirectorySpool) -> None:
    write(path)
    opened = spool.examine(b"x.eml", event_seen=True)
    (path / "x.eml").unlink()
    write(path, data=b"another")
    with pytest.raises((MessageGone, MessageNotReady)):
        spool.claim(opened)
    assert (path / "x.eml").read_bytes() == b"another"
    assert names_in(path) == {"x.eml"}


def test_a_file_that_grew_before_the_rename_goes_back(path: Path, spool: DirectorySpool) -> None:
    write(path)
    opened = spool.examine(b"x.eml", event_seen=True)
    with open(path / "x.eml", "ab") as file:
        file.write(b"more")
    with pytest.raises(MessageNotReady):
        spool.claim(opened)
    assert names_in(path) == {"x.eml"}


def test_a_file_that_vanished_is_skipped(path: Path, spool: DirectorySpool) -> None:
    with pytest.raises(MessageGone):
        spool.examine(b"x.eml")
    write(path)
    opened = spool.examine(b"x.eml", event_seen=True)
    (path / "x.eml").unlink()
    with pytest.raises(MessageGone):
        spool.claim(opened)
    assert opened.fd == -1


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EACCES, DirectoryUnavailable)],
)
def test_a_rename_that_fails_says_why(
    path: Path, leased: DirectorySpool, number: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path)
    opened = leased.examine(b"x.eml", event_seen=True)
    monkeypatch.setattr(kernel, "rename_noreplace", raises_errno(number))
    with pytest.raises(error):
        leased.claim(opened)
    assert opened.fd == -1


def test_two_names_of_one_inode_are_a_claim_cut_short(path: Path, spool: DirectorySpool) -> None:
    """A kill between link and unlink: x goes, the .lck is recovered."""
    write(path)
    os.link(path / "x.eml", path / "x.eml.lck")
    with pytest.raises(MessageGone):
        spool.examine(b"x.eml", event_seen=True)
    assert names_in(path) == {"x.eml.lck"}
    (recovered,) = spool.orphans()
    spool.put_back_now(recovered.claim)
    assert names_in(path) == {"x.eml"}


# --- due times -------------------------------------------------------------------------------------------------------


def test_a_deferred_message_is_not_even_opened_before_it_is_due(
    path: Path, clock: ManualClock, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path)
    spool.dispose([PutBack(claim(spool), Sidecar(attempts=1, due_at=clock.now() + 60))])
    with monkeypatch.context() as closed:
        closed.setattr(os, "open", raises_errno(errno.EIO))
        with pytest.raises(MessageNotDue):
            spool.examine(b"x.eml")
    with pytest.raises(MessageNotDue):
        spool.examine(b"x.eml", event_seen=True)
    assert list(spool.scan()) == []
    assert spool.next_due_at() == clock.now() + 60
    scanned = clock.now()
    clock.advance(60)
    assert (spool.next_due_at(), spool.next_due_at(scanned)) == (None, clock.now())  # it became due behind a scan
    assert list(spool.scan()) == [b"x.eml"]
    opened = spool.examine(b"x.eml", event_seen=True)
    assert opened.sidecar == Sidecar(attempts=1, due_at=clock.now())
    spool.release(opened)


def test_a_new_message_under_the_name_of_a_deferred_one_is_due(
    path: Path, clock: ManualClock, spool: DirectorySpool
) -> None:
    write(path)
    spool.dispose([PutBack(claim(spool), Sidecar(attempts=1, due_at=clock.now() + 60))])
    (path / "x.eml").unlink()
    write(path, data=b"another mail")
    assert list(spool.scan()) == [b"x.eml"]
    opened = spool.examine(b"x.eml", event_seen=True)
    assert opened.sidecar is None
    spool.release(opened)


def test_another_process_keeps_to_the_back_off_and_to_what_was_accepted(
    path: Path, clock: ManualClock, spool: DirectorySpool
) -> None:
    other = spool_at(path, clock=clock, name="known-otherwise", features=spool.features)
    write(path)
    sidecar = Sidecar(attempts=2, due_at=clock.now() + 60, accepted=frozenset({"a@b"}))
    spool.dispose([PutBack(claim(spool), sidecar)])
    with pytest.raises(MessageNotDue):
        other.examine(b"x.eml", event_seen=True)
    clock.advance(61)
    opened = other.examine(b"x.eml", event_seen=True)
    assert opened.sidecar == sidecar
    other.release(opened)
    other.close()


@pytest.mark.parametrize("what", ["the open", "the look after it"])
def test_a_share_that_went_away_is_told_as_such(
    path: Path, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    write(path)
    with monkeypatch.context() as gone:
        gone.setattr(os, "open", raises_errno(errno.ESTALE))
        if what == "the look after it":
            gone.setattr(os, "stat", raises_errno(errno.ESTALE))
            with pytest.raises(DirectoryUnavailable, match="Stale"):
                spool.examine(b"x.eml")
        else:
            with pytest.raises(MessageUnreadable, match="Stale"):  # of this file alone
                spool.examine(b"x.eml")
    spool.release(spool.examine(b"x.eml", event_seen=True))
