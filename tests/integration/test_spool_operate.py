"""Scans, counts, and what operators do: hold, release, retry, delete, look at, submit, check."""

from __future__ import annotations

import errno
import os
import stat
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.domain.account import Directory, DotStuffing, MessageFormat
from core.domain.message import MessageId, State, parse_message_id
from core.domain.sidecar import Sidecar
from core.errors import DirectoryUnavailable, MessageRejected, NotFound, StateConflict, StorageFull
from core.spool.directory import Delete, DirectorySpool, Entry, Hold, PutBack, ToBadmail
from core.spool.kernel import Features
from tests.support.clock import ManualClock
from tests.support.spool import MAIL, claim, names_in, raises_errno, spool_at, write

NOW = 1_800_000_000.0
LATER = Sidecar(
    attempts=3, due_at=NOW + 600, accepted=frozenset({"a@b"}), failed=frozenset({"c@d"}), message_id="<1@h>"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def spool(path: Path, clock: ManualClock) -> Iterator[DirectorySpool]:
    spool = spool_at(path, clock=clock)
    yield spool
    spool.close()


def one(spool: DirectorySpool) -> Entry:
    (entry,) = spool.entries()
    return entry


def in_every_state(spool: DirectorySpool, path: Path) -> None:
    for name in ("waiting", "deferred", "held", "badmail", "claimed"):
        write(path, f"{name}.eml")
    spool.dispose(
        [
            PutBack(claim(spool, b"deferred.eml"), LATER),
            Hold(claim(spool, b"held.eml"), LATER),
            ToBadmail(claim(spool, b"badmail.eml"), LATER, "550 no"),
        ]
    )
    claim(spool, b"claimed.eml")
    write(path, "notes.txt")
    write(path, "other.txt.lck")


# --- scan, counts, entries -------------------------------------------------------------------------------------------


def test_the_states_are_disjoint_and_all_are_listed(path: Path, spool: DirectorySpool) -> None:
    in_every_state(spool, path)
    assert list(spool.scan()) == [b"waiting.eml"]
    counts = spool.counts()
    assert (counts.waiting, counts.claimed, counts.deferred, counts.held, counts.badmail) == (1, 1, 1, 1, 1)
    assert counts.size_bytes == 5 * len(MAIL)
    assert counts.oldest_mtime == min((path / f"{n}.eml").stat().st_mtime for n in ("waiting", "deferred"))
    assert {e.state.value: e.file_name for e in spool.entries()} == {
        "waiting": b"waiting.eml",
        "claimed": b"claimed.eml.lck",
        "deferred": b"deferred.eml",
        "held": b"held.eml.hold",
        "badmail": b"badmail/badmail.eml",
    }
    assert [e.state for e in spool.entries({State.DEFERRED})] == [State.DEFERRED]
    assert [e.state for e in spool.entries({State.WAITING})] == [State.WAITING]


def test_sizes_and_ages_are_left_out_where_they_are_not_cheap(path: Path, spool: DirectorySpool) -> None:
    for number in range(3):
        write(path, f"{number}.eml")
    assert spool.counts(stat_limit=2).size_bytes is None
    assert spool.counts(stat_limit=2).oldest_mtime is None
    assert spool.counts(stat_limit=2).waiting == 3


def test_a_scan_makes_no_stat_of_everything(path: Path, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        write(path, f"{number}.eml")
    looked: list[object] = []
    real = os.stat

    def note(name: bytes, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        looked.append(name)
        return real(name, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "stat", note)
    assert len(list(spool.scan())) == 100
    assert len(looked) < 5


def test_a_scan_streams_in_constant_memory(path: Path, spool: DirectorySpool) -> None:
    for number in range(5_000):
        os.close(os.open(path / f"{number:032d}.eml", os.O_CREAT | os.O_WRONLY))
    names = spool.scan()
    next(names)
    tracemalloc.start()
    try:
        assert sum(1 for _ in names) == 4_999
        assert tracemalloc.get_traced_memory()[1] < 150_000
    finally:
        tracemalloc.stop()


def test_two_scans_at_once_do_not_disturb_each_other(path: Path, spool: DirectorySpool) -> None:
    for number in range(50):
        write(path, f"{number}.eml")
    first, second = spool.scan(), spool.scan()
    next(first), next(second)
    assert (sum(1 for _ in first), sum(1 for _ in second)) == (49, 49)


def replace_directory(path: Path) -> None:
    path.rename(path.parent / "old")
    path.mkdir()


@pytest.mark.parametrize(
    "act", [replace_directory, lambda path: path.rename(path.parent / "gone")], ids=["replaced", "gone"]
)
def test_a_directory_that_leads_elsewhere_is_unavailable_not_empty(
    path: Path, spool: DirectorySpool, act: Callable[[Path], object]
) -> None:
    write(path)
    claimed = claim(spool)
    act(path)
    with pytest.raises(DirectoryUnavailable):
        list(spool.scan())
    with pytest.raises(DirectoryUnavailable):
        spool.counts()
    path.mkdir(exist_ok=True)
    spool.open()
    write(path, "new.eml")
    assert list(spool.scan()) == [b"new.eml"]
    assert spool.in_flight == 1
    assert spool.dispose([Delete(claimed)])[0].ok, "what is in flight keeps the directory it came from"
    assert spool.in_flight == 0


def test_settings_change_at_once_and_a_new_path_or_format_at_the_next_open(path: Path, spool: DirectorySpool) -> None:
    write(path)
    write(path, "x.txt")
    spool.settings = Directory("in", str(path), patterns=("*.txt",))
    assert list(spool.scan()) == [b"x.txt"]
    (path.parent / "mail" / "new").mkdir(parents=True)
    write(path.parent / "mail" / "new", "1.2.h")
    spool.settings = Directory("in", str(path.parent / "mail"), format=MessageFormat.MAILDIR)
    spool.open()
    assert list(spool.scan()) == [b"1.2.h"]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("")], ids=["missing", "a file"])
def test_what_is_no_directory_is_unavailable(path: Path, make: Callable[[Path], object]) -> None:
    make(path)
    spool = DirectorySpool(Directory("in", str(path)), clock=ManualClock())
    with pytest.raises(DirectoryUnavailable):
        spool.open()
    with pytest.raises(DirectoryUnavailable):
        list(spool.scan())
    (step,) = spool.check()
    assert (step.ok, step.required) == (False, True)
    assert step.remedy


def test_the_directory_of_our_own_is_made_for_a_shared_group(path: Path, spool: DirectorySpool) -> None:
    found = (path / ".mpu").stat()
    assert stat.S_IMODE(found.st_mode) == 0o2770
    assert found.st_gid == path.stat().st_gid
    for entry in (path / ".mpu").iterdir():
        assert stat.S_IMODE(entry.stat().st_mode) == 0o660


def test_no_descriptor_is_left_open(path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    spool = spool_at(path)
    in_every_state(spool, path)
    list(spool.scan()), list(spool.entries()), spool.counts(), spool.check()
    spool.close()
    assert set(os.listdir("/proc/self/fd")) == before


# --- find ------------------------------------------------------------------------------------------------------------


def test_a_message_is_found_by_its_id_in_every_state(path: Path, spool: DirectorySpool) -> None:
    in_every_state(spool, path)
    ids = {e.state: e.identity.id for e in spool.entries()}
    assert len(ids) == 5
    for state, text in ids.items():
        assert spool.find(parse_message_id(text)).state is state


def test_the_id_stays_the_same_from_state_to_state(path: Path, spool: DirectorySpool) -> None:
    write(path, b"\xff\xfe.eml")
    first = one(spool).identity
    held = spool.hold(one(spool))
    released = spool.release_hold(held)
    spool.dispose([ToBadmail(claim(spool, b"\xff\xfe.eml"), LATER, "no")])
    dead = one(spool)
    write(path, b"\xff\xfe.eml", b"another")
    back = spool.retry(dead)
    assert back.file_name == b"\xff\xfe~1.eml"
    assert {e.identity for e in (held, released, dead, back)} == {first}
    assert spool.find(parse_message_id(first.id)).file_name == b"\xff\xfe~1.eml"


@pytest.mark.parametrize("name", [b"x.eml", b"nothing.eml"])
def test_what_is_not_there_is_not_found(path: Path, spool: DirectorySpool, name: bytes) -> None:
    write(path)
    with pytest.raises(NotFound):
        spool.find(MessageId("in", name, "00000000"))


# --- acts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["waiting", "deferred"])
def test_hold_and_release_keep_what_is_remembered(path: Path, spool: DirectorySpool, state: str) -> None:
    write(path)
    if state == "deferred":
        spool.dispose([PutBack(claim(spool), LATER)])
    before = one(spool)
    held = spool.hold(before)
    assert names_in(path) == {"x.eml.hold"}
    assert (held.state, held.sidecar) == (State.HELD, before.sidecar)
    assert list(spool.scan()) == []
    back = spool.release_hold(held)
    assert names_in(path) == {"x.eml"}
    assert (back.state, back.sidecar) == (before.state, before.sidecar)


def test_retry_makes_a_deferred_message_due_and_keeps_its_attempts(path: Path, spool: DirectorySpool) -> None:
    write(path)
    spool.dispose([PutBack(claim(spool), LATER)])
    assert spool.retry(one(spool)).state is State.WAITING
    assert list(spool.scan()) == [b"x.eml"]
    opened = spool.examine(b"x.eml", event_seen=True)
    assert opened.sidecar is not None
    assert (opened.sidecar.attempts, opened.sidecar.due_at) == (3, None)
    spool.release(opened)


def test_retry_from_badmail_restarts_attempts_and_age_and_keeps_who_accepted(path: Path, spool: DirectorySpool) -> None:
    write(path)
    spool.dispose([ToBadmail(claim(spool), LATER, "550 no")])
    back = spool.retry(one(spool))
    assert back.state is State.WAITING
    assert back.sidecar == Sidecar(accepted=frozenset({"a@b"}), message_id="<1@h>")
    assert names_in(path / "badmail") == set()
    opened = spool.examine(b"x.eml", event_seen=True)
    assert opened.sidecar == back.sidecar
    spool.release(opened)


def test_retry_of_a_dead_letter_that_was_corrected_keeps_who_accepted(path: Path, spool: DirectorySpool) -> None:
    """The reason beside it says: correct it and retry. By size and time it is another message then."""
    write(path)
    spool.dispose([ToBadmail(claim(spool), LATER, "550 no")])
    (path / "badmail" / "x.eml").write_bytes(MAIL.replace(b"\r\n", b"\r\nX-Corrected: yes\r\n", 1))
    back = spool.retry(one(spool))
    assert back.sidecar == Sidecar(accepted=frozenset({"a@b"}), message_id="<1@h>")
    opened = spool.examine(b"x.eml", event_seen=True)
    assert opened.sidecar == back.sidecar
    spool.release(opened)


def test_badmail_moved_back_by_hand_is_a_retry(path: Path, spool: DirectorySpool) -> None:
    write(path)
    spool.dispose([ToBadmail(claim(spool), LATER, "550 no")])
    (path / "badmail" / "x.eml").rename(path / "x.eml")
    opened = spool.examine(b"x.eml", event_seen=True)
    assert opened.sidecar == Sidecar(accepted=frozenset({"a@b"}), message_id="<1@h>")
    spool.release(opened)


def test_retry_of_what_waits_changes_nothing(path: Path, spool: DirectorySpool) -> None:
    write(path)
    assert spool.retry(one(spool)) == one(spool)


@pytest.mark.parametrize("state", ["waiting", "deferred", "held", "badmail"])
def test_delete_removes_the_message_and_all_that_was_remembered(path: Path, spool: DirectorySpool, state: str) -> None:
    in_every_state(spool, path)
    (entry,) = spool.entries({State(state)})
    spool.delete(entry)
    with pytest.raises(NotFound):
        spool.find(MessageId("in", entry.identity.name, entry.identity.tag))
    assert not (path / ".mpu" / f"{entry.identity.file_hash}.json").exists()
    assert state != "badmail" or names_in(path / "badmail") == set()
    with pytest.raises(NotFound):
        spool.delete(entry)


@pytest.mark.parametrize(
    ("act", "states"),
    [
        ("hold", ["held", "badmail", "claimed"]),
        ("release_hold", ["waiting", "deferred", "badmail", "claimed"]),
        ("retry", ["held", "claimed"]),
        ("delete", ["claimed"]),
    ],
)
def test_an_act_that_does_not_fit_the_state_is_refused(
    path: Path, spool: DirectorySpool, act: str, states: list[str]
) -> None:
    in_every_state(spool, path)
    before = {e.file_name for e in spool.entries()}
    for state in states:
        (entry,) = spool.entries({State(state)})
        with pytest.raises(StateConflict) as caught:
            getattr(spool, act)(entry)
        assert caught.value.state == state
    assert {e.file_name for e in spool.entries()} == before


@pytest.mark.parametrize("act", ["hold", "retry", "delete"])
def test_an_act_cannot_race_a_claim(path: Path, spool: DirectorySpool, act: str) -> None:
    write(path)
    entry = one(spool)
    opened = spool.examine(b"x.eml", event_seen=True)
    with pytest.raises(StateConflict):
        getattr(spool, act)(entry)
    claimed = spool.claim(opened)
    with pytest.raises(StateConflict):
        getattr(spool, act)(entry)
    spool.put_back_now(claimed)
    getattr(spool, act)(entry)


def test_an_act_does_not_touch_another_message_of_that_name(path: Path, spool: DirectorySpool) -> None:
    write(path)
    entry = one(spool)
    write(path, data=b"another")
    with pytest.raises(NotFound):
        spool.delete(entry)
    assert (path / "x.eml").read_bytes() == b"another"


def test_the_raw_message_can_be_read_in_every_state(path: Path, spool: DirectorySpool) -> None:
    in_every_state(spool, path)
    for entry in spool.entries():
        fd = spool.open_raw(entry)
        assert os.pread(fd, 1000, 0) == MAIL
        os.close(fd)
    entry = next(spool.entries({State.WAITING}))
    write(path, "waiting.eml", b"another")
    with pytest.raises(NotFound):
        spool.open_raw(entry)


# --- submit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("order 7.eml", b"order_7.eml"),
        ("../../etc/passwd", b"passwd.eml"),
        (b"\xff.eml", b"_.eml"),
        ("", None),
        (None, None),
        (".mpu", b"mpu.eml"),
        ("x" * 300, b"x" * 200 + b".eml"),
    ],
)
def test_a_submitted_message_has_a_safe_name_that_is_picked_up(
    path: Path, spool: DirectorySpool, name: str | bytes | None, expected: bytes | None
) -> None:
    entry = spool.submit([MAIL[:5], MAIL[5:]], name)
    assert expected is None or entry.file_name == expected
    assert (path / os.fsdecode(entry.file_name)).read_bytes() == MAIL
    assert stat.S_IMODE((path / os.fsdecode(entry.file_name)).stat().st_mode) == 0o640
    assert list(spool.scan()) == [entry.file_name]
    assert spool.find(parse_message_id(entry.identity.id)) == entry


def test_a_submitted_message_never_overwrites(path: Path, spool: DirectorySpool) -> None:
    assert [spool.submit([MAIL], "x.eml").file_name for _ in range(3)] == [b"x.eml", b"x~1.eml", b"x~2.eml"]


def test_a_submission_that_fails_leaves_nothing(path: Path, clock: ManualClock) -> None:
    spool = spool_at(path, clock=clock, max_message_bytes=100)
    with pytest.raises(MessageRejected) as caught:
        spool.submit([b"x" * 60, b"x" * 60])
    assert caught.value.enhanced_code == "5.3.4"
    with pytest.raises(MessageRejected):
        spool.submit([])
    with pytest.MonkeyPatch.context() as full:
        full.setattr(os, "fsync", raises_errno(errno.ENOSPC))
        with pytest.raises(StorageFull):
            spool.submit([MAIL])
    assert names_in(path) == set()
    assert all(".log." in n for n in os.listdir(path / ".mpu"))
    spool.close()


def test_a_submission_to_a_maildir_goes_through_tmp(path: Path, clock: ManualClock) -> None:
    spool = spool_at(path, clock=clock, format=MessageFormat.MAILDIR)
    entry = spool.submit([MAIL], "1.2.host")
    assert entry.file_name == b"new/1.2.host"
    assert os.listdir(path / "tmp") == []
    assert spool.find(parse_message_id(entry.identity.id)) == entry
    spool.close()


def test_a_submission_is_synced_before_it_has_its_name(
    path: Path, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(names_in(path)))
    spool.submit([MAIL], "x.eml")
    assert seen == [set(), {"x.eml"}]


# --- what is remembered of the directory, what is possible in it --------------------------------------------------


def test_proven_dot_stuffing_is_remembered_across_starts(path: Path, spool: DirectorySpool) -> None:
    assert spool.proven() is None
    spool.set_proven(DotStuffing.PLAIN)
    spool.set_proven(DotStuffing.PLAIN)
    other = spool_at(path)
    assert other.proven() is DotStuffing.PLAIN
    other.close()


def test_a_check_tries_everything_and_leaves_nothing(path: Path, spool: DirectorySpool) -> None:
    steps = {step.name: step for step in spool.check()}
    assert list(steps) == [
        "list", "create", "rename", "lease", "flock", "sync", "unlink", "inotify", "badmail", "space",
    ]  # fmt: skip
    assert all(s.ok for n, s in steps.items() if n != "space"), steps
    assert {n for n, s in steps.items() if s.required} == {"create", "rename", "unlink"}
    assert os.listdir(path / "badmail") == []
    assert sorted(os.listdir(path)) == [".mpu", "badmail"]


@pytest.mark.parametrize(
    ("features", "step"),
    [(Features(lease=False), "lease"), (Features(flock=False), "flock"), (Features(inotify=False), "inotify")],
)
def test_what_is_not_possible_is_named_with_a_remedy_and_is_no_refusal(
    path: Path, features: Features, step: str
) -> None:
    spool = spool_at(path, features=features)
    failed = [s for s in spool.check() if not s.ok and s.name != "space"]
    assert [s.name for s in failed] == [step]
    assert failed[0].detail
    assert failed[0].remedy
    assert not failed[0].required
    spool.close()


def test_renames_by_link_and_unlink_are_said_so(path: Path) -> None:
    spool = spool_at(path, features=Features(rename_noreplace=False))
    (step,) = [s for s in spool.check() if s.name == "rename"]
    assert step.ok
    assert "link and unlink" in step.detail
    spool.close()


@pytest.mark.parametrize(("call", "step"), [("unlink", "unlink"), ("fsync", "sync")])
def test_a_try_that_fails_says_why(
    path: Path, spool: DirectorySpool, call: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, call, raises_errno(errno.EPERM))
    failed = {s.name: s for s in spool.check() if not s.ok}
    assert "not permitted" in failed[step].detail
    assert failed[step].required is (step == "unlink")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_a_directory_without_rights_is_refused(path: Path, spool: DirectorySpool) -> None:
    path.chmod(0o555)
    try:
        failed = {s.name for s in spool.check() if s.required and not s.ok}
    finally:
        path.chmod(0o755)
    assert "create" in failed


def test_a_claim_costs_little_time(path: Path, spool: DirectorySpool) -> None:
    """A guard against a mistake of another order, not a benchmark."""
    names = [write(path, f"{n}.eml") for n in range(300)]
    started = time.process_time()
    for name in names:
        spool.put_back_now(claim(spool, name))
    assert (time.process_time() - started) / 300 < 0.002
