"""Recovery: what is done with what a dead owner left (the table of spool.md)."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import pytest

from core.domain.outcome import Outcome
from core.domain.sidecar import Sidecar
from core.errors import MessageRefused
from core.spool import kernel, recover
from core.spool.claim import take_lock
from core.spool.directory import Claim, Delete, DirectorySpool, Hold, PutBack, Recovered, ToBadmail, Verdict
from core.spool.kernel import Features
from core.spool.logread import OwnerLog, read_logs
from core.spool.place import Place
from tests.support.clock import ManualClock
from tests.support.spool import MAIL, claim, deferred, names_in, raises_errno, sent, spool_at, write

DUE = Sidecar(attempts=1, due_at=1_700_000_000.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in"


FEATURES = {"all": Features(), "nothing": Features(rename_noreplace=False, lease=False, flock=False)}


@pytest.fixture(params=FEATURES)
def dead(request: pytest.FixtureRequest, path: Path) -> DirectorySpool:
    """A process about to die: `kill` it."""
    return spool_at(path, features=FEATURES[request.param])


def kill(spool: DirectorySpool) -> None:
    """What the kernel does at kill -9: all descriptors go, nothing else."""
    place = spool.place
    for claimed in place.claimed.values():
        os.close(claimed.fd)
        if claimed.opened.lock_fd >= 0:
            os.close(claimed.opened.lock_fd)
    for _, fd in place.log._segments:
        os.close(fd)
    for fd in {place.root_fd, place.work_fd, place.mpu_fd, place.badmail} - {-1}:
        os.close(fd)
    for log in place.dead_logs.values():
        log.close()
    place.closed = True
    place.log._segments.clear()


def logs(path: Path) -> list[str]:
    return [n for n in os.listdir(path / ".mpu") if ".log." in n]


def sidecars(path: Path) -> list[str]:
    return [n for n in os.listdir(path / ".mpu") if n.endswith(".json")]


def successor(path: Path, dead: DirectorySpool) -> DirectorySpool:
    return spool_at(path, clock=ManualClock(), features=dead.features)


# --- the table -------------------------------------------------------------------------------------------------------


def nothing(claimed: Claim) -> None:
    pass


def begin(claimed: Claim) -> None:
    claimed.begin(["a@b", "c@d"])


def begin_and_outcome(claimed: Claim) -> None:
    claimed.begin(["a@b", "c@d"])
    claimed.outcome([*sent("a@b"), *deferred("c@d")])


def second_transaction(claimed: Claim) -> None:
    claimed.begin(["a@b"])
    claimed.outcome(sent("a@b"))
    claimed.begin(["c@d"])


def refused_before_data(claimed: Claim) -> None:
    claimed.outcome(deferred("a@b", "c@d"))


@pytest.mark.parametrize(
    ("life", "verdict", "known", "unknown"),
    [
        (nothing, Verdict.UNTOUCHED, {}, ()),
        (begin, Verdict.UNKNOWN, {}, ("a@b", "c@d")),
        (begin_and_outcome, Verdict.SETTLED, {"a@b": Outcome.SENT, "c@d": Outcome.DEFERRED}, ()),
        (second_transaction, Verdict.UNKNOWN, {"a@b": Outcome.SENT}, ("c@d",)),
        (refused_before_data, Verdict.SETTLED, {"a@b": Outcome.DEFERRED, "c@d": Outcome.DEFERRED}, ()),
    ],
)
def test_the_log_decides(
    path: Path,
    dead: DirectorySpool,
    life: Callable[[Claim], None],
    verdict: Verdict,
    known: dict[str, Outcome],
    unknown: tuple[str, ...],
) -> None:
    write(path)
    claimed = claim(dead)
    life(claimed)
    kill(dead)
    spool = successor(path, dead)
    (recovered,) = spool.recover()
    assert recovered.verdict is verdict
    assert {o.recipient: o.outcome for o in recovered.outcomes} == known
    assert recovered.unknown == unknown
    assert not recovered.restarted
    assert recovered.identity == claimed.identity
    assert spool.in_flight == 1
    spool.dispose([Delete(recovered.claim)])
    assert names_in(path) == set()
    assert len(logs(path)) == 1, "the dead owner's log goes with its last message"
    spool.close()


def test_nothing_left_is_nothing_to_do_and_the_log_goes(path: Path, dead: DirectorySpool) -> None:
    write(path)
    claimed = claim(dead)
    begin_and_outcome(claimed)
    dead.dispose([Delete(claimed)])
    kill(dead)
    spool = successor(path, dead)
    assert [*spool.recover()] == []
    assert len(logs(path)) == 1
    spool.close()


def test_the_latest_claim_of_a_message_counts(path: Path, dead: DirectorySpool) -> None:
    write(path)
    first = claim(dead)
    begin(first)
    dead.clock.advance(1)  # type: ignore[attr-defined] # a ManualClock
    os.rename(path / "x.eml.lck", path / "x.eml")  # the group's rename was done, its mark was not
    os.close(first.fd)
    dead.place.claimed.clear()
    if first.opened.lock_fd >= 0:
        os.close(first.opened.lock_fd)
    second = claim(dead)
    begin_and_outcome(second)
    kill(dead)
    spool = successor(path, dead)
    (recovered,) = spool.recover()
    assert recovered.verdict is Verdict.SETTLED
    spool.put_back_now(recovered.claim)
    assert len(logs(path)) == 1
    spool.close()


def test_a_restart_of_the_machine_makes_untouched_unknown(
    path: Path, dead: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path)
    claim(dead)
    kill(dead)
    monkeypatch.setattr(kernel, "boot_id", lambda: "another boot")
    spool = successor(path, dead)
    (recovered,) = spool.recover()
    assert (recovered.verdict, recovered.restarted, recovered.unknown) == (Verdict.UNKNOWN, True, ())
    spool.put_back_now(recovered.claim)
    spool.close()


@pytest.mark.parametrize("restarted", [True, False])
def test_without_any_log_the_time_of_the_claim_tells_a_restart(
    path: Path, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.mkdir()
    write(path, "x.eml.lck")
    renamed = (path / "x.eml.lck").stat().st_ctime
    monkeypatch.setattr(kernel, "boot_time", lambda: renamed + (5 if restarted else -5))
    spool = spool_at(path)
    (recovered,) = spool.recover()
    assert recovered.verdict is (Verdict.UNKNOWN if restarted else Verdict.UNTOUCHED)
    spool.close()


def test_a_waiting_name_is_compared_with_outcomes_not_disposed_of(path: Path, dead: DirectorySpool) -> None:
    """A power loss: the log reached the disk, the rename to .lck did not."""
    write(path)
    claimed = claim(dead)
    begin_and_outcome(claimed)
    kill(dead)
    os.rename(path / "x.eml.lck", path / "x.eml")
    spool = successor(path, dead)
    (recovered,) = spool.recover()
    assert recovered.verdict is Verdict.SETTLED
    assert names_in(path) == {"x.eml.lck"}
    spool.dispose([Delete(recovered.claim)])
    assert names_in(path) == set()
    spool.close()


def test_a_new_file_under_the_name_is_not_taken_for_the_old(path: Path, dead: DirectorySpool) -> None:
    write(path)
    claimed = claim(dead)
    begin_and_outcome(claimed)
    kill(dead)
    (path / "x.eml.lck").unlink()
    write(path, data=b"another mail")
    spool = successor(path, dead)
    assert [*spool.recover()] == []
    assert names_in(path) == {"x.eml"}
    assert len(logs(path)) == 1
    spool.close()


def test_two_names_of_one_inode_are_one_message(path: Path, dead: DirectorySpool) -> None:
    write(path)
    claimed = claim(dead)
    begin_and_outcome(claimed)
    kill(dead)
    os.link(path / "x.eml.lck", path / "x.eml")
    spool = successor(path, dead)
    (recovered,) = spool.recover()
    assert recovered.verdict is Verdict.SETTLED
    assert names_in(path) == {"x.eml.lck"}
    spool.put_back_now(recovered.claim)
    spool.close()


# --- killed in the middle of a disposal ------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Die just before the Nth system call that changes something."""
    calls: list[str] = []

    def boundary(target: object, name: str) -> None:
        real = getattr(target, name)

        def guarded(*arguments: object, **rest: object) -> object:
            if len(calls) >= number:
                raise Killed
            calls.append(name)
            return real(*arguments, **rest)

        monkeypatch.setattr(target, name, guarded)

    for target, name in (
        (os, "rename"),
        (os, "unlink"),
        (os, "link"),
        (os, "fsync"),
        (os, "write"),
        (os, "pwrite"),
        (kernel, "_rename_once"),
    ):
        boundary(target, name)
    return calls


def act_on(spool: DirectorySpool, recovered: Recovered, disposition: str) -> None:
    """What delivery does with it: one attempt more, nothing sent."""
    if recovered.verdict is Verdict.UNTOUCHED:
        spool.put_back_now(recovered.claim)
        return
    before = recovered.sidecar or Sidecar()
    sidecar = Sidecar(attempts=before.attempts + 1, accepted=frozenset({"a@b"}))
    claimed = recovered.claim
    kinds = {
        "put back": PutBack(claimed, sidecar),
        "badmail": ToBadmail(claimed, sidecar, "why"),
        "hold": Hold(claimed, sidecar),
        "delete": Delete(claimed),
    }
    spool.dispose([kinds[disposition]])  # type: ignore[list-item] # each a Disposal


ENDS = {
    "put back": ({"x.eml"}, "x.eml"),
    "badmail": ({"badmail/x.eml", "badmail/x.eml.reason.txt"}, "badmail/x.eml"),
    "hold": ({"x.eml.hold"}, "x.eml.hold"),
    "delete": (set(), ""),
}


@pytest.mark.parametrize("renameat2", [True, False])
@pytest.mark.parametrize("disposition", ENDS)
def test_a_kill_at_any_boundary_of_a_life_loses_nothing_and_counts_nothing_twice(
    tmp_path: Path, disposition: str, renameat2: bool
) -> None:
    number = 0
    while True:
        path = tmp_path / str(number)
        dead = spool_at(path, features=Features(rename_noreplace=renameat2))
        write(path)
        was_sent = False
        with pytest.MonkeyPatch.context() as patch:
            calls = kill_at(patch, number)
            finished = False
            try:
                claimed = claim(dead)
                claimed.begin(["a@b", "c@d"])
                was_sent = True
                claimed.outcome([*sent("a@b"), *deferred("c@d")])
                act_on(dead, Recovered(claimed, Verdict.SETTLED, ()), disposition)
                finished = True
            except Killed:
                pass
        kill(dead)
        spool = spool_at(path, features=Features(rename_noreplace=renameat2))
        verdicts = []
        for recovered in spool.recover():
            verdicts.append(recovered.verdict)
            act_on(spool, recovered, disposition)
        found = {os.path.relpath(os.path.join(d, f), path) for d, _, fs in os.walk(path) for f in fs}
        found = {f for f in found if not f.startswith(".mpu/")}
        if was_sent:
            assert found == ENDS[disposition][0], (number, calls)
            assert len(logs(path)) == 1, (number, calls)
            if disposition != "delete":
                (entry,) = spool.entries()
                assert entry.sidecar is not None, (number, calls)
                assert entry.sidecar.attempts == 1, (number, calls)
        else:
            assert found == {"x.eml"}, (number, calls)
        assert len(verdicts) <= 1
        spool.close()
        if finished:
            break
        number += 1
    assert number >= 5


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_a_kill_at_any_boundary_leaves_no_sidecar_of_a_message_that_was_sent(
    tmp_path: Path, features: Features
) -> None:
    number = 0
    while True:
        path = tmp_path / str(number)
        dead = spool_at(path, features=features)
        write(path)
        dead.dispose([PutBack(claim(dead), Sidecar(attempts=1, accepted=frozenset({"c@d"})))])
        claimed = claim(dead)
        claimed.begin(["a@b"])
        claimed.outcome(sent("a@b"))
        finished = False
        with pytest.MonkeyPatch.context() as patch:
            calls = kill_at(patch, number)
            with suppress(Killed):
                dead.dispose([Delete(claimed)])
                finished = True
        kill(dead)
        spool = spool_at(path, features=features)
        for recovered in spool.recover():
            assert recovered.sidecar is not None, "not before its message is gone for good"
            assert recovered.sidecar.accepted == {"c@d"}
            spool.dispose([Delete(recovered.claim)])
        assert names_in(path) == set(), (number, calls)
        assert sidecars(path) == [], (number, calls)
        spool.close()
        if finished:
            break
        number += 1
    assert number >= 3


@pytest.mark.parametrize("place", ["x.eml.hold", "badmail/x.eml", "no badmail"])
def test_the_sidecar_of_a_dead_owners_message_stays_wherever_the_message_is(path: Path, place: str) -> None:
    dead = spool_at(path)
    write(path)
    (path / "badmail").mkdir()
    dead.dispose([PutBack(claim(dead), DUE)])
    claimed = claim(dead)
    claimed.begin(["a@b"])
    if place == "no badmail":  # on a device that is away just now
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            patch.setattr(dead.place.log, "disposed", raises_killed)
            dead.dispose([ToBadmail(claimed, DUE, "why")])
        os.rename(path / "badmail", path.parent / "away")
    else:
        os.rename(path / "x.eml.lck", path / place)  # by hand
    kill(dead)
    spool = successor(path, dead)
    assert [*spool.recover()] == []
    assert len(sidecars(path)) == 1
    spool.close()


def raises_killed(*_: object) -> None:
    raise Killed


def test_a_kill_at_any_boundary_of_the_recovery_of_a_kill_is_recovered_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in"
    features = Features(rename_noreplace=False)  # more boundaries
    read: list[OwnerLog] = []

    def reading(mpu_fd: int, *, but: Collection[str]) -> list[OwnerLog]:
        found = read_logs(mpu_fd, but=but)
        read.extend(found)
        return found

    monkeypatch.setattr(recover, "read_logs", reading)
    for first in (5, 8, 11, 13):  # before the sidecar, after it, in the middle of the rename, after it
        finished, second = False, 0
        while not finished:
            dead = spool_at(path, features=features)
            write(path)
            with pytest.MonkeyPatch.context() as patch, suppress(Killed):
                kill_at(patch, first)
                claimed = claim(dead)
                claimed.begin(["a@b", "c@d"])
                claimed.outcome([*sent("a@b"), *deferred("c@d")])
                act_on(dead, Recovered(claimed, Verdict.SETTLED, ()), "put back")
            kill(dead)
            heir = DirectorySpool(dead.settings, clock=dead.clock, features=features)
            with pytest.MonkeyPatch.context() as patch, suppress(Killed):
                kill_at(patch, second)
                heir.open()
                for recovered in heir.recover():
                    act_on(heir, recovered, "put back")
                finished = True
            if heir._place is not None:
                kill(heir)
            for log in read:  # locks that a real kill would drop
                log.close()
            read.clear()
            last = spool_at(path, features=features)
            for recovered in last.recover():
                act_on(last, recovered, "put back")
            (entry,) = last.entries()
            assert entry.file_name == b"x.eml", (first, second)
            assert entry.sidecar == Sidecar(attempts=1, accepted=frozenset({"a@b"})), (first, second)
            assert heir._place is None or len(logs(path)) == 1, (first, second)
            last.close()
            shutil.rmtree(path)
            second += 1
        assert second > 3


# --- several processes -----------------------------------------------------------------------------------------------


def test_living_owners_are_left_alone(path: Path, dead: DirectorySpool) -> None:
    write(path)
    claimed = claim(dead)
    begin(claimed)
    other = successor(path, dead)
    assert [*other.recover()] == []
    assert len(logs(path)) == 2
    other.close()
    dead.dispose([Delete(claimed)])
    dead.close()


def test_a_process_that_dies_while_we_live_is_recovered_after_a_scan(path: Path, dead: DirectorySpool) -> None:
    spool = successor(path, dead)
    assert [*spool.recover()] == []
    write(path)
    begin_and_outcome(claim(dead))
    assert [*spool.scan()] == []
    assert [*spool.orphans()] == []
    kill(dead)
    assert [*spool.scan()] == []
    (recovered,) = spool.orphans()
    assert recovered.verdict is Verdict.SETTLED
    spool.dispose([Delete(recovered.claim)])
    assert names_in(path) == set()
    assert len(logs(path)) == 1
    spool.close()


def test_an_owner_that_sends_and_dies_while_we_recover_is_unknown_not_untouched(
    path: Path, dead: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logs are read after the lock was had, not before."""
    write(path)
    claimed = claim(dead)
    spool = successor(path, dead)

    def meanwhile(place: Place, fd: int, base: bytes) -> int:
        if not dead.place.closed:
            begin(claimed)
            kill(dead)
        return take_lock(place, fd, base)

    monkeypatch.setattr(recover, "take_lock", meanwhile)
    (recovered,) = spool.recover()
    assert recovered.verdict is Verdict.UNKNOWN
    spool.dispose([Delete(recovered.claim)])
    spool.close()


def test_two_that_recover_at_once_share_the_work(
    path: Path, dead: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "_BATCH", 3)
    for number in range(10):
        begin_and_outcome(claim(dead, write(path, f"{number}.eml")))
    kill(dead)
    one, two = successor(path, dead), successor(path, dead)
    left, right = one.recover(), two.recover()
    mine, theirs = [next(left)], [next(right)]
    mine += list(left)
    theirs += list(right)
    names = [r.identity.name for r in mine + theirs]
    assert sorted(names) == sorted(f"{n}.eml".encode() for n in range(10))
    assert {r.verdict for r in mine + theirs} == {Verdict.SETTLED}
    one.dispose([Delete(r.claim) for r in mine])
    two.dispose([Delete(r.claim) for r in theirs])
    assert names_in(path) == set()
    for spool in (one, two):
        assert [*spool.scan()] == []
        assert [*spool.orphans()] == []
    assert len(logs(path)) == 2
    one.close()
    two.close()


def killed_behind_the_move(
    path: Path,
    dead: DirectorySpool,
    monkeypatch: pytest.MonkeyPatch,
    disposal: type[ToBadmail | Hold],
    data: bytes = MAIL,
) -> Claim:
    """The message is where it was to go, and the log does not know yet."""
    write(path, data=data)
    claimed = claim(dead)
    begin_and_outcome(claimed)
    monkeypatch.setattr(dead.place.log, "disposed", lambda _: None)
    dead.dispose([ToBadmail(claimed, DUE, "no") if disposal is ToBadmail else Hold(claimed, DUE)])
    kill(dead)
    return claimed


def only_its_new_name(path: Path, there: str) -> None:
    """The disk kept what the last rename made, and forgot that the claim's had taken the old name away."""
    os.link(path / there, path / "x.eml")


def both_as_files(path: Path, there: str) -> None:
    """A move to another device ended behind its copy, and the claim's rename was forgotten."""
    shutil.copy2(path / there, path / "x.eml")


def neither_name(path: Path, there: str) -> None:
    """Both renames were forgotten."""
    (path / there).rename(path / "x.eml")


@pytest.mark.parametrize("forgotten", [only_its_new_name, both_as_files, neither_name])
@pytest.mark.parametrize(("disposal", "there"), [(ToBadmail, "badmail/x.eml"), (Hold, "x.eml.hold")])
def test_a_move_that_a_power_cut_tore_is_completed(
    path: Path,
    dead: DirectorySpool,
    monkeypatch: pytest.MonkeyPatch,
    disposal: type[ToBadmail | Hold],
    there: str,
    forgotten: Callable[[Path, str], None],
) -> None:
    data = MAIL * 50_000
    killed_behind_the_move(path, dead, monkeypatch, disposal, data)
    forgotten(path, there)
    spool = successor(path, dead)
    assert [*spool.recover()] == []
    assert names_in(path) == ({"x.eml.hold"} if disposal is Hold else set())
    assert (path / there).read_bytes() == data
    assert (path / there).stat().st_nlink == 1
    assert not [n for n in os.listdir(path / there.rpartition("/")[0]) if "~" in n], "it is there once"
    assert len(logs(path)) == 1
    spool.close()


@pytest.mark.parametrize("disposal", [ToBadmail, Hold])
def test_a_torn_move_that_can_not_be_completed_yet_is_not_sent_and_completed_later(
    path: Path, dead: DirectorySpool, monkeypatch: pytest.MonkeyPatch, disposal: type[ToBadmail | Hold]
) -> None:
    killed_behind_the_move(path, dead, monkeypatch, disposal)
    there = "badmail/x.eml" if disposal is ToBadmail else "x.eml.hold"
    neither_name(path, there)
    spool = successor(path, dead)
    with monkeypatch.context() as full:
        full.setattr(recover, "move", raises_errno(errno.ENOSPC))
        assert [*spool.recover()] == []
    with pytest.raises(MessageRefused, match="No space left"):
        spool.examine(b"x.eml", event_seen=True)
    assert [*spool.orphans()] == []
    assert (path / there).read_bytes() == MAIL
    assert "x.eml" not in names_in(path)
    assert not spool.place.stuck
    spool.close()


def test_a_copy_is_synced_before_its_original_goes(
    path: Path, dead: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_behind_the_move(path, dead, monkeypatch, ToBadmail)
    both_as_files(path, "badmail/x.eml")
    did: list[str] = []
    sync, unlink = os.fsync, os.unlink

    def syncing(fd: int) -> None:
        did.append("sync " + os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), path))
        sync(fd)

    def unlinking(name: bytes, *, dir_fd: int) -> None:
        did.append("unlink " + os.fsdecode(name))
        unlink(name, dir_fd=dir_fd)

    spool = successor(path, dead)
    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "unlink", unlinking)
    assert [*spool.recover()] == []
    gone = did.index("unlink x.eml")
    assert {"sync badmail/x.eml", "sync badmail"} <= set(did[:gone])
    spool.close()


def test_another_message_at_the_place_of_a_torn_move_stays(
    path: Path, dead: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one of the same time and size."""
    claimed = killed_behind_the_move(path, dead, monkeypatch, ToBadmail)
    neither_name(path, "badmail/x.eml")
    other = MAIL.replace(b"hello", b"world")
    write(path / "badmail", data=other)
    ns = claimed.identity.mtime_ns
    os.utime(path / "badmail" / "x.eml", ns=(ns, ns))
    spool = successor(path, dead)
    assert [*spool.recover()] == []
    assert (path / "badmail" / "x.eml").read_bytes() == other
    assert (path / "badmail" / "x~1.eml").read_bytes() == MAIL
    spool.close()


def test_a_torn_move_whose_place_is_taken_by_what_can_not_be_opened_goes_beside_it(
    path: Path, dead: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_behind_the_move(path, dead, monkeypatch, ToBadmail)
    neither_name(path, "badmail/x.eml")
    (path / "badmail" / "x.eml").symlink_to("nowhere")
    spool = successor(path, dead)
    assert [*spool.recover()] == []
    assert (path / "badmail" / "x~1.eml").read_bytes() == MAIL
    assert (path / "badmail" / "x.eml").is_symlink()
    assert names_in(path) == set()
    spool.close()


def test_one_that_dies_while_it_recovers_leaves_it_to_the_next(path: Path, dead: DirectorySpool) -> None:
    write(path)
    begin_and_outcome(claim(dead))
    kill(dead)
    second = successor(path, dead)
    (recovered,) = second.recover()
    kill(second)
    third = successor(path, dead)
    (again,) = third.recover()
    assert again.verdict is Verdict.SETTLED
    assert again.claim.token == recovered.claim.token
    third.dispose([PutBack(again.claim, DUE)])
    assert names_in(path) == {"x.eml"}
    assert len(logs(path)) == 1
    third.close()


def test_a_clean_stop_leaves_no_log(path: Path, dead: DirectorySpool) -> None:
    write(path)
    claimed = claim(dead)
    begin_and_outcome(claimed)
    dead.dispose([Delete(claimed)])
    dead.close()
    assert logs(path) == []


def test_a_stop_with_messages_in_flight_is_recovered_like_a_kill(path: Path, dead: DirectorySpool) -> None:
    write(path)
    begin(claim(dead))
    dead.close()
    assert names_in(path) == {"x.eml.lck"}
    spool = successor(path, dead)
    (recovered,) = spool.recover()
    assert recovered.verdict is Verdict.UNKNOWN
    spool.close()


def test_another_programs_lock_file_is_none_of_ours(path: Path, dead: DirectorySpool) -> None:
    write(path, "other.txt.lck")
    (path / "x.eml.lck").mkdir()
    assert [*dead.recover()] == []
    dead.close()


def test_litter_of_dead_writers_goes_and_what_is_young_stays(path: Path) -> None:
    spool_at(path).close()
    old = write(path / ".mpu", "tmp-old", age=7200)
    free = write(path / ".mpu", "0f.lock", age=7200)
    held = write(path / ".mpu", "1f.lock", age=7200)
    fd = os.open(path / ".mpu" / "1f.lock", os.O_RDWR)
    assert kernel.lock(fd)
    young = write(path / ".mpu", "tmp-young")
    spool = spool_at(path)
    left = os.listdir(os.fsencode(path / ".mpu"))
    assert not {old, free} & set(left)
    assert {young, held} <= set(left)
    os.close(fd)
    spool.close()
