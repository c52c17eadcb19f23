"""Disposal of a group: sidecars and renames, unlinks, one sync, mark, close (spool.md, "Log" and "Sidecar")."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.domain.account import MessageFormat
from core.domain.message import State
from core.domain.sidecar import Sidecar
from core.errors import MessageRefused, StorageBroken
from core.spool import kernel
from core.spool.directory import Delete, DirectorySpool, Disposal, Hold, PutBack, ToBadmail
from core.spool.kernel import Features
from tests.support.clock import ManualClock
from tests.support.spool import MAIL, claim, claims_allowed, names_in, raises_errno, sent, spool_at, write

DUE = Sidecar(attempts=1, due_at=1_800_000_600.0, accepted=frozenset({"a@b"}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in"


@pytest.fixture(params=["renameat2", "link and unlink"])
def spool(request: pytest.FixtureRequest, path: Path) -> Iterator[DirectorySpool]:
    spool = spool_at(path, features=Features(rename_noreplace=request.param == "renameat2"))
    yield spool
    spool.close()


@pytest.fixture
def plain(path: Path) -> Iterator[DirectorySpool]:
    spool = spool_at(path)
    yield spool
    spool.close()


def test_a_mixed_group_ends_where_each_belongs(path: Path, spool: DirectorySpool) -> None:
    a, b, c, d = (claim(spool, write(path, f"{n}.eml")) for n in "abcd")
    answers = spool.dispose([Delete(a), PutBack(b, DUE), ToBadmail(c, Sidecar(), "550 no such user"), Hold(d, DUE)])
    assert [(x.ok, x.file_name) for x in answers] == [
        (True, b""),
        (True, b"b.eml"),
        (True, b"badmail/c.eml"),
        (True, b"d.eml.hold"),
    ]
    assert names_in(path) == {"b.eml", "d.eml.hold"}
    assert names_in(path / "badmail") == {"c.eml", "c.eml.reason.txt"}
    assert (path / "badmail" / "c.eml.reason.txt").read_text() == "550 no such user\n"
    assert (path / "badmail" / "c.eml").read_bytes() == MAIL
    assert all(x.disposal.claim.fd == -1 for x in answers)
    assert spool.in_flight == 0


def test_a_group_syncs_each_changed_directory_once(
    path: Path, plain: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = [claim(plain, write(path, f"{n}.eml")) for n in range(10)]
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    plain.dispose([Delete(c) for c in claims])
    assert synced == [plain.place.work_fd]


def test_things_happen_in_the_order_that_survives_a_power_loss(
    path: Path, plain: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, "b.eml")
    plain.dispose([PutBack(claim(plain, b"b.eml"), Sidecar(attempts=1))])
    a, b = claim(plain, write(path, "a.eml")), claim(plain, b"b.eml")
    for each in (a, b):
        each.begin(["r@x"])
    calls: list[str] = []

    def note(what: str, real: Callable[..., None]) -> Callable[..., None]:
        def noted(*arguments: object, **rest: object) -> None:
            first = arguments[0]
            calls.append(f"{what} {first.decode()}" if isinstance(first, bytes) else what)
            real(*arguments, **rest)

        return noted

    place = plain.place
    monkeypatch.setattr(os, "unlink", note("unlink", os.unlink))
    monkeypatch.setattr(os, "fsync", note("sync", os.fsync))
    monkeypatch.setattr(kernel, "rename_noreplace", note("rename", kernel.rename_noreplace))
    monkeypatch.setattr(place.sidecars, "write", note("sidecars", place.sidecars.write))
    monkeypatch.setattr(place.log, "disposed", note("disposed", place.log.disposed))
    plain.dispose([PutBack(a, DUE), Delete(b)])
    sidecars = ["sidecars", "sync", "sync"]
    assert calls == [
        *sidecars,
        "rename a.eml.lck",
        "unlink b.eml.lck",
        "sync",
        f"unlink {b.identity.file_hash}.json",
        "disposed",
    ]


def test_a_fault_of_the_account_writes_no_sidecar(path: Path, spool: DirectorySpool) -> None:
    write(path)
    spool.dispose([PutBack(claim(spool))])
    spool.put_back_now(claim(spool))
    assert not list((path / ".mpu").glob("*.json"))
    assert names_in(path) == {"x.eml"}


@pytest.mark.parametrize("now", [True, False])
def test_put_back_to_a_taken_name_keeps_the_identity_by_a_sidecar(path: Path, spool: DirectorySpool, now: bool) -> None:
    write(path, data=b"first")
    claimed = claim(spool)
    identity = claimed.identity
    write(path, data=b"second")
    if now:
        spool.put_back_now(claimed)
    else:
        spool.dispose([PutBack(claimed)])
    assert (path / "x.eml").read_bytes() == b"second"
    assert (path / "x~1.eml").read_bytes() == b"first"
    opened = spool.examine(b"x~1.eml", event_seen=True)
    assert opened.identity == identity
    spool.release(opened)
    other = spool_at(path, clock=ManualClock())
    again = claim(other, b"x~1.eml")
    assert again.identity == identity
    other.dispose([Delete(again)])
    assert not list((path / ".mpu").glob("*.json"))
    other.close()


def test_each_taken_name_takes_the_smallest_free_number(path: Path, spool: DirectorySpool) -> None:
    (path / "badmail").mkdir()
    write(path / "badmail", "x.eml", b"other")
    write(path / "badmail", "x~1.eml", b"other")
    write(path / "badmail", "x~3.eml", b"other")
    write(path)
    (answer,) = spool.dispose([ToBadmail(claim(spool), Sidecar(), "why")])
    assert answer.file_name == b"badmail/x~2.eml"
    assert (path / "badmail" / "x~2.eml.reason.txt").exists()


def test_two_of_a_group_that_want_one_name_both_get_one(path: Path, spool: DirectorySpool) -> None:
    write(path, data=b"one")
    first = claim(spool)
    spool.dispose([Hold(first, Sidecar())])
    write(path, data=b"two")
    second = claim(spool)
    write(path, data=b"three")
    spool.dispose([Hold(second, Sidecar()), PutBack(claim(spool, write(path, "y.eml")), DUE)])
    assert names_in(path) == {"x.eml", "x.eml.hold", "x~1.eml.hold", "y.eml"}


def test_a_target_taken_between_plan_and_move_is_not_overwritten(
    path: Path, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, data=b"first")
    claimed = claim(spool)
    real = spool.place.sidecars.write

    def meanwhile(drafts: object) -> None:
        real(drafts)  # type: ignore[arg-type] # passed on
        if not (path / "x.eml").exists():
            write(path, data=b"second")

    monkeypatch.setattr(spool.place.sidecars, "write", meanwhile)
    (answer,) = spool.dispose([PutBack(claimed, Sidecar(attempts=1))])
    assert answer.file_name == b"x~1.eml"
    assert (path / "x.eml").read_bytes() == b"second"
    opened = spool.examine(b"x~1.eml", event_seen=True)
    assert opened.sidecar == Sidecar(attempts=1)
    spool.release(opened)


def test_badmail_on_another_device_is_copied_whole_with_its_time(
    path: Path, plain: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, data=MAIL * 100_000)
    claimed = claim(plain)
    real = kernel.rename_noreplace

    def across(old: bytes, new: bytes, *, old_fd: int, new_fd: int, features: Features) -> None:
        if old_fd != new_fd:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(old, new, old_fd=old_fd, new_fd=new_fd, features=features)

    monkeypatch.setattr(kernel, "rename_noreplace", across)
    plain.dispose([ToBadmail(claimed, Sidecar(), "why")])
    assert names_in(path) == set()
    dead = path / "badmail" / "x.eml"
    assert dead.read_bytes() == MAIL * 100_000
    assert dead.stat().st_mtime_ns == claimed.identity.mtime_ns
    assert sorted(os.listdir(path / "badmail")) == ["x.eml", "x.eml.reason.txt"]


def test_a_copy_that_fails_leaves_the_message_and_no_half_copy(
    path: Path, plain: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path)
    claimed = claim(plain)
    with monkeypatch.context() as full:
        full.setattr(kernel, "rename_noreplace", raises_errno(errno.EXDEV))
        full.setattr(os, "utime", raises_errno(errno.ENOSPC))
        (answer,) = plain.dispose([ToBadmail(claimed, Sidecar(), "why")])
    assert (answer.ok, answer.pending) == (False, True)
    assert names_in(path) == {"x.eml.lck"}
    assert os.listdir(path / "badmail") == ["x.eml.reason.txt"]
    (answer,) = plain.retry_pending()
    assert answer.ok
    assert names_in(path / "badmail") == {"x.eml", "x.eml.reason.txt"}


TAKEN_BY: dict[str, Callable[[Path], object]] = {
    "directory": Path.mkdir,
    "link": lambda path: path.symlink_to("/dev/null"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("taken_by", TAKEN_BY.values(), ids=TAKEN_BY)
def test_a_dead_letter_comes_without_its_reason_where_the_name_is_taken(
    path: Path, plain: DirectorySpool, taken_by: Callable[[Path], object]
) -> None:
    (path / "badmail").mkdir()
    reason = path / "badmail" / "x.eml.reason.txt"
    taken_by(reason)
    (answer,) = plain.dispose([ToBadmail(claim(plain, write(path)), Sidecar(reason="why"), "why")])
    assert (answer.ok, answer.file_name) == (True, b"badmail/x.eml")
    assert "reason.txt" in answer.error
    assert not reason.is_file() or reason.is_symlink()
    (entry,) = plain.entries({State.BADMAIL})
    assert entry.sidecar is not None
    assert entry.sidecar.reason == "why"


def test_a_pipe_in_the_place_of_a_reason_is_not_written_to_though_it_is_read(path: Path, plain: DirectorySpool) -> None:
    (path / "badmail").mkdir()
    os.mkfifo(path / "badmail" / "x.eml.reason.txt")
    reader = os.open(path / "badmail" / "x.eml.reason.txt", os.O_RDONLY | os.O_NONBLOCK)
    try:
        (answer,) = plain.dispose([ToBadmail(claim(plain, write(path)), Sidecar(), "why")])
        assert answer.ok
        assert "reason.txt" in answer.error
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)


def test_what_is_no_file_is_no_dead_letter(path: Path, plain: DirectorySpool) -> None:
    plain.dispose([ToBadmail(claim(plain, write(path)), Sidecar(), "why")])
    for name, make in TAKEN_BY.items():
        make(path / "badmail" / f"{name}.eml")
    assert [e.file_name for e in plain.entries({State.BADMAIL})] == [b"badmail/x.eml"]
    assert plain.counts().badmail == 1


@pytest.mark.parametrize("tidied", ["removed", "moved away"])
def test_badmail_that_is_tidied_up_meanwhile_is_made_again(path: Path, plain: DirectorySpool, tidied: str) -> None:
    plain.dispose([ToBadmail(claim(plain, write(path, "old.eml")), Sidecar(), "why")])
    if tidied == "removed":
        shutil.rmtree(path / "badmail")
    else:
        (path / "badmail").rename(path.parent / "badmail.2026")
    assert plain.counts().badmail == 0
    (answer,) = plain.dispose([ToBadmail(claim(plain, write(path, "new.eml")), Sidecar(), "why")])
    assert (answer.ok, answer.file_name) == (True, b"badmail/new.eml")
    assert sorted(os.listdir(path / "badmail")) == ["new.eml", "new.eml.reason.txt"]
    assert names_in(path) == set()
    assert plain.counts().badmail == 1


def test_badmail_that_vanishes_in_the_middle_of_a_move_keeps_the_mail_claimed_for_the_next_try(
    path: Path, plain: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = claim(plain, write(path))
    with monkeypatch.context() as vanishing:
        vanishing.setattr(kernel, "rename_noreplace", raises_errno(errno.ENOENT))
        (answer,) = plain.dispose([ToBadmail(claimed, Sidecar(), "why")])
    assert (answer.ok, answer.pending) == (False, True)
    assert names_in(path) == {"x.eml.lck"}
    (answer,) = plain.retry_pending()
    assert answer.ok
    assert names_in(path) == set()
    assert (path / "badmail" / "x.eml").exists()


def test_badmail_that_is_a_symbolic_link_gets_nothing(path: Path, plain: DirectorySpool) -> None:
    (path.parent / "elsewhere").mkdir()
    (path / "badmail").symlink_to(path.parent / "elsewhere")
    write(path)
    (answer,) = plain.dispose([ToBadmail(claim(plain), Sidecar(), "why")])
    assert (answer.ok, answer.pending) == (False, True)
    assert os.listdir(path.parent / "elsewhere") == []
    counts = plain.counts()
    assert (counts.claimed, counts.badmail) == (1, 0)
    assert [entry.file_name for entry in plain.entries()] == [b"x.eml.lck"]


def test_a_maildir_keeps_badmail_and_held_in_its_root(path: Path) -> None:
    spool = spool_at(path, format=MessageFormat.MAILDIR)
    for name in ("1.a.h", "2.b.h", "3.c.h"):
        write(path / "new", name)
    one, two, three = (claim(spool, n) for n in (b"1.a.h", b"2.b.h", b"3.c.h"))
    spool.dispose([ToBadmail(one, Sidecar(), "why"), Hold(two, Sidecar()), PutBack(three, DUE)])
    assert names_in(path / "new") == {"3.c.h"}
    assert names_in(path) == {"new", "tmp", "cur", "2.b.h.hold"}
    assert "1.a.h" in names_in(path / "badmail")
    assert list(spool.scan()) == []
    counts = spool.counts()
    assert (counts.waiting, counts.deferred, counts.held, counts.badmail) == (0, 1, 1, 1)
    spool.close()


# --- what can't be done now ------------------------------------------------------------------------------------------


def test_a_message_sent_that_cannot_be_removed_is_never_sent_again(
    path: Path, plain: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path)
    claimed = claim(plain)
    claimed.begin(["a@b"])
    claimed.outcome(sent("a@b"))
    with monkeypatch.context() as read_only:
        read_only.setattr(os, "unlink", raises_errno(errno.EROFS))
        (answer,) = plain.dispose([Delete(claimed)])
        assert (answer.ok, answer.pending) == (False, True)
        assert "Read-only" in answer.error
        assert "write rights" in answer.remedy
        assert not plain.retry_pending()[0].ok
    assert plain.pending() == [Delete(claimed)]
    assert claims_allowed(plain), "the others go on"
    other = spool_at(path)
    assert [*other.scan()] == []
    assert [*other.recover()] == []
    other.close()
    (path / "x.eml.lck").rename(path / "x.eml")
    with pytest.raises(MessageRefused, match=r"sent.*Read-only"):
        plain.examine(b"x.eml", event_seen=True)
    (path / "x.eml").rename(path / "x.eml.lck")
    assert [a.ok for a in plain.retry_pending()] == [True]
    assert names_in(path) == set()
    assert claims_allowed(plain)


def test_a_full_disk_neither_loses_nor_repeats_what_goes_back(
    path: Path, plain: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (claim(plain, write(path, f"{n}.eml")) for n in "abc")
    with monkeypatch.context() as full:
        full.setattr(plain.place.sidecars, "write", raises_errno(errno.ENOSPC))
        answers = plain.dispose([PutBack(a, DUE), Delete(b), ToBadmail(c, Sidecar(), "why")])
    assert [x.ok for x in answers] == [False, True, False]
    assert [x.pending for x in answers] == [True, False, True]
    assert names_in(path) == {"a.eml.lck", "c.eml.lck"}
    assert not claims_allowed(plain)
    assert [x.ok for x in plain.retry_pending()] == [True, True]
    assert names_in(path) == {"a.eml"}
    assert claims_allowed(plain)
    assert plain.pending() == []


def test_a_sync_that_fails_is_never_retried(path: Path, plain: DirectorySpool, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path)
    claimed = claim(plain)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", raises_errno(errno.EIO))
        with pytest.raises(StorageBroken):
            plain.dispose([Delete(claimed)])
    assert not claims_allowed(plain)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EROFS])
def test_a_directory_that_cannot_be_synced_is_no_fault(
    path: Path, plain: DirectorySpool, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path)
    claimed = claim(plain)
    monkeypatch.setattr(os, "fsync", raises_errno(number))
    assert plain.dispose([Delete(claimed)])[0].ok


def test_a_message_removed_by_somebody_else_is_done(path: Path, plain: DirectorySpool) -> None:
    a, b = (claim(plain, write(path, f"{n}.eml")) for n in "ab")
    for name in ("a.eml.lck", "b.eml.lck"):
        (path / name).unlink()
    disposals: list[Disposal] = [Delete(a), PutBack(b, DUE)]
    assert [x.ok for x in plain.dispose(disposals)] == [True, True]
    assert plain.in_flight == 0


def test_what_was_discarded_at_once_is_disposed_of_like_others(path: Path, plain: DirectorySpool) -> None:
    write(path)
    claimed = claim(plain)
    plain.discard_now(claimed)
    assert names_in(path) == set()
    assert plain.dispose([Delete(claimed)])[0].ok


def test_what_was_discarded_at_once_takes_no_other_message_of_its_name_along(path: Path, plain: DirectorySpool) -> None:
    """Its group waits for a database that fails; meanwhile the name comes again, and another process claims it."""
    write(path)
    first = claim(plain)
    plain.discard_now(first)
    write(path, data=MAIL + b"another\r\n")
    other = spool_at(path)
    second = claim(other)
    assert plain.dispose([Delete(first)])[0].ok
    assert names_in(path) == {"x.eml.lck"}
    other.put_back_now(second)
    assert (path / "x.eml").read_bytes() == MAIL + b"another\r\n"
    other.close()


def test_disposal_after_close_harms_nothing(path: Path) -> None:
    spool = spool_at(path)
    write(path)
    claimed = claim(spool)
    spool.close()
    assert not spool.dispose([Delete(claimed)])[0].ok
    spool.put_back_now(claimed)
    assert names_in(path) == {"x.eml.lck"}


def test_a_file_that_took_the_name_of_a_deferred_one_counts_as_waiting(path: Path, plain: DirectorySpool) -> None:
    plain.dispose([PutBack(claim(plain, write(path)), DUE)])
    assert (plain.counts().waiting, plain.counts().deferred) == (0, 1)
    (path / "new").write_bytes(MAIL + b"another\r\n")
    (path / "new").rename(path / "x.eml")
    assert [(e.state, e.size) for e in plain.entries()] == [("waiting", len(MAIL) + 9)]
    counts = plain.counts(stat_limit=0)
    assert (counts.waiting, counts.deferred) == (1, 0)
