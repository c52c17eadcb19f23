"""Opening and closing a directory while threads work on it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from core.domain.account import Directory, DotStuffing
from core.domain.clock import Clock
from core.domain.message import State
from core.errors import DirectoryUnavailable, StorageBroken
from core.spool.directory import DirectorySpool, PutBack
from core.spool.kernel import Features
from core.spool.place import Place, open_place
from tests.support.spool import claim, names_in, spool_at, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in"


def logs(path: Path) -> list[str]:
    return [n for n in os.listdir(path / ".mpu") if ".log." in n]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_two_that_open_it_at_once_open_it_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = spool_at(path)
    spool = DirectorySpool(first.settings, clock=first.clock)
    first.close()
    entered, both = threading.Semaphore(0), threading.Event()

    def slowly(settings: Directory, *, clock: Clock, features: Features) -> Place:
        entered.release()
        both.wait(0.2)  # for the other one, who must not come
        return open_place(settings, clock=clock, features=features)

    monkeypatch.setattr("core.spool.directory.open_place", slowly)
    threads = [threading.Thread(target=spool.open) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered.acquire(blocking=False)
    assert not entered.acquire(blocking=False)
    assert len(logs(path)) == 1
    spool.close()
    assert logs(path) == []


def test_what_is_closed_is_not_opened_again(path: Path) -> None:
    """A thread that was started before a stop, and comes late."""
    before = descriptors()
    spool = spool_at(path)
    spool.close()
    with pytest.raises(DirectoryUnavailable, match="is closed"):
        spool.open()
    assert logs(path) == []
    assert descriptors() == before


def test_who_works_on_it_keeps_its_descriptors_to_the_end(path: Path) -> None:
    """Else their numbers are another directory's by then, perhaps."""
    before = descriptors()
    spool = spool_at(path)
    for number in range(5):
        write(path, f"{number}.eml")
    waiting, scanned = spool.entries({State.WAITING}), spool.scan()
    found = {next(waiting).identity.name, next(waiting).identity.name}
    names = {next(scanned)}
    spool.close()
    names |= set(scanned)
    assert descriptors() > before, "the list goes on"
    found |= {entry.identity.name for entry in waiting}
    assert found == names == {b"%d.eml" % n for n in range(5)}
    assert descriptors() == before
    assert logs(path) == []


def test_a_disposal_after_the_end_touches_nothing(path: Path) -> None:
    spool = spool_at(path)
    claimed = claim(spool, write(path))
    place = spool.place
    spool.close()
    (answer,) = spool.dispose([PutBack(claimed)])
    assert not answer.ok
    assert "closed" in answer.error
    assert names_in(path) == {"x.eml.lck"}
    with pytest.raises(DirectoryUnavailable), place:
        raise AssertionError


def test_what_was_closed_acts_on_nobody_elses_directory(path: Path, tmp_path: Path) -> None:
    """The numbers of its descriptors may be another's by then."""
    spool = spool_at(path)
    claimed = claim(spool, write(path))
    place = spool.place
    spool.close()
    other = spool_at(tmp_path / "other")
    claim(other, write(tmp_path / "other"))
    taken = {other.place.root_fd, other.place.mpu_fd}
    assert {place.root_fd, place.mpu_fd} & taken, "else this test shows nothing"
    before = {folder: set(os.listdir(tmp_path / "other" / folder)) for folder in (".", ".mpu")}
    spool.discard_now(claimed)
    spool.put_back_now(claimed)
    with pytest.raises(StorageBroken):
        place.log.begin(claimed, ["a@b"])
    with pytest.raises(DirectoryUnavailable):
        place.set_proven(DotStuffing.PLAIN)
    assert {folder: set(os.listdir(tmp_path / "other" / folder)) for folder in (".", ".mpu")} == before
    other.close()


def test_a_claim_after_the_end_lets_go_of_the_message(path: Path) -> None:
    spool = spool_at(path)
    opened = spool.examine(write(path), event_seen=True)
    place = spool.place
    place.close()
    with pytest.raises(DirectoryUnavailable):
        spool.claim(opened)
    assert opened.fd < 0
    assert names_in(path) == {"x.eml"}
    spool.close()


def test_a_stop_does_not_wait_for_a_directory_that_hangs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = spool_at(path)
    spool = DirectorySpool(first.settings, clock=first.clock)
    first.close()
    entered, goes_on = threading.Event(), threading.Event()
    errors: list[DirectoryUnavailable] = []

    def hanging(settings: Directory, *, clock: Clock, features: Features) -> Place:
        entered.set()
        goes_on.wait(60)
        return open_place(settings, clock=clock, features=features)

    def opening() -> None:
        try:
            spool.open()
        except DirectoryUnavailable as error:
            errors.append(error)

    monkeypatch.setattr("core.spool.directory.open_place", hanging)
    thread = threading.Thread(target=opening)
    thread.start()
    assert entered.wait(60)
    spool.close()
    goes_on.set()
    thread.join()
    assert len(errors) == 1
    assert logs(path) == []


def test_a_pipe_in_mpu_does_not_hold_the_opening_up(tmp_path: Path) -> None:
    path = tmp_path / "in"
    spool_at(path).close()
    os.mkfifo(path / ".mpu" / "dot-stuffing")
    spool = spool_at(path)
    assert spool.proven() is None
    spool.close()
