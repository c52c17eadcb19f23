"""The outcome log: what is read back after its owner is gone."""

from __future__ import annotations

import errno
import gc
import os
import threading
import tracemalloc
from binascii import crc32
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.domain.outcome import Blame, Outcome, RecipientOutcome
from core.domain.reply import Phase
from core.errors import StorageBroken, StorageFull
from core.smtp.reply_parser import MAX_TEXT
from core.spool import kernel
from core.spool.directory import Claim, DirectorySpool, Opened
from core.spool.log import FRAME, OutcomeLog
from core.spool.logread import OwnerLog, read_logs
from tests.support.clock import ManualClock
from tests.support.spool import MAIL, claim, claims_allowed, deferred, raises_errno, sent, spool_at, write

BIG = 1 << 14


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def spool(tmp_path: Path, clock: ManualClock) -> Iterator[DirectorySpool]:
    spool = spool_at(tmp_path / "in", clock=clock)
    yield spool
    spool.close()


def log_of(spool: DirectorySpool) -> OwnerLog:
    """As another process reads it while the owner lives."""
    (log,) = read_logs(spool.place.mpu_fd, but=())
    assert not log.dead
    return log


def claims(spool: DirectorySpool, path: Path, count: int) -> list[Claim]:
    return [claim(spool, write(path, f"{i}.eml")) for i in range(count)]


def test_begin_and_outcome_are_read_back_whole(tmp_path: Path, spool: DirectorySpool) -> None:
    write(tmp_path / "in", b"\xff\xfe\n.eml")
    claimed = claim(spool, b"\xff\xfe\n.eml")
    outcomes = [
        RecipientOutcome("a@b", Outcome.SENT, Phase.DOT, None, 250, "2.0.0", "ok \x00\U0001f600\udcff\x1b[2J"),
        RecipientOutcome("ü@b", Outcome.FAILED, Phase.RCPT, Blame.RECIPIENT, 550, None, ""),
        RecipientOutcome("c@b", Outcome.UNKNOWN, Phase.DOT),
    ]
    claimed.begin(["a@b", "ü@b", "c@b", "d@b"])
    claimed.outcome(outcomes)
    logged = log_of(spool).claims[claimed.number]
    assert (logged.arrival_name, logged.file_name) == (b"\xff\xfe\n.eml", b"\xff\xfe\n.eml")
    assert (logged.mtime_ns, logged.size) == (claimed.identity.mtime_ns, len(MAIL))
    assert logged.inode == claimed.opened.inode
    assert list(logged.outcomes.values()) == outcomes
    assert list(logged.begun) == ["d@b"]
    assert logged.token == claimed.token


def test_a_recipient_begun_again_is_open_again(tmp_path: Path, spool: DirectorySpool) -> None:
    (claimed,) = claims(spool, tmp_path / "in", 1)
    claimed.begin(["a@b"])
    claimed.outcome(deferred("a@b"))
    claimed.begin(["a@b"])
    assert list(log_of(spool).claims[claimed.number].begun) == ["a@b"]


def test_what_is_disposed_of_is_not_read_back(tmp_path: Path, spool: DirectorySpool) -> None:
    first, second = claims(spool, tmp_path / "in", 2)
    for each in (first, second):
        each.begin(["a@b"])
        each.outcome(sent("a@b"))
    spool.place.log.disposed([first.number])
    assert list(log_of(spool).claims) == [second.number]


@pytest.mark.parametrize("damage", ["cut", "flip", "zero"])
def test_a_torn_record_ends_the_segment_and_harms_nothing_before_it(
    tmp_path: Path, spool: DirectorySpool, damage: str
) -> None:
    first, second = claims(spool, tmp_path / "in", 2)
    first.begin(["a@b"])
    before = spool.place.log._offset
    second.begin(["a@b"])
    (segment,) = (tmp_path / "in" / ".mpu").glob("*.log.*")
    with open(segment, "r+b") as file:
        if damage == "cut":
            file.truncate(before + 20)
        else:
            file.seek(before + 20)
            file.write(b"\xff" if damage == "flip" else bytes(40))
    assert list(log_of(spool).claims) == [first.number]


def small(spool: DirectorySpool) -> OutcomeLog:
    log = OutcomeLog(spool.place.mpu_fd, clock=spool.clock, features=kernel.Features(), segment_octets=BIG)
    spool.place.log.close()
    spool.place.log = log
    log.start()
    return log


def segments(path: Path) -> list[Path]:
    return sorted((path / "in" / ".mpu").glob("*.log.*"), key=lambda p: int(p.suffix[1:]))


def test_segments_go_when_all_in_them_is_disposed(tmp_path: Path, spool: DirectorySpool) -> None:
    log = small(spool)
    (template,) = claims(spool, tmp_path / "in", 1)
    for number in range(1000, 1400):
        each = Claim(template.opened, number, f"t/{number}")
        each.begin(["someone@example.com"])
        each.outcome(sent("someone@example.com"))
        log.disposed([number])
    assert len(segments(tmp_path)) == 1
    assert log._next_segment > 3


def test_one_that_stays_open_pins_no_more_than_a_few_segments_and_keeps_its_records(
    tmp_path: Path, spool: DirectorySpool
) -> None:
    log = small(spool)
    (pinned,) = claims(spool, tmp_path / "in", 1)
    pinned.begin(["long@example.com"])
    for number in range(1000, 1800):
        each = Claim(pinned.opened, number, f"t/{number}")
        each.begin(["someone@example.com"])
        each.outcome(sent("someone@example.com"))
        log.disposed([number])
    assert log._next_segment > 8
    assert len(segments(tmp_path)) <= 5
    assert list(log_of(spool).claims) == [pinned.number]
    pinned.outcome(sent("long@example.com"))
    logged = log_of(spool).claims[pinned.number]
    assert not logged.begun
    assert list(logged.outcomes) == ["long@example.com"]


def test_an_outcome_finds_room_though_the_disk_is_full(
    tmp_path: Path, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(spool)
    (template,) = claims(spool, tmp_path / "in", 1)
    monkeypatch.setattr(kernel, "preallocate", raises_errno(errno.ENOSPC))
    begun: list[Claim] = []
    for number in range(1000, 2000):
        each = Claim(template.opened, number, f"t/{number}")
        try:
            each.begin([f"someone-{number}@example.com"])
        except StorageFull:
            break
        begun.append(each)
    assert 10 < len(begun) < 900
    for each in begun:
        each.outcome(sent(f"someone-{each.number}@example.com"))
    assert all(not logged.begun for logged in log_of(spool).claims.values())


def test_no_space_stops_claims_until_an_append_works_again(
    tmp_path: Path, clock: ManualClock, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (claimed,) = claims(spool, tmp_path / "in", 1)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", raises_errno(errno.ENOSPC))
        with pytest.raises(StorageFull):
            claimed.begin(["a@b"])
        assert not claims_allowed(spool)
        clock.advance(2)
        assert not claims_allowed(spool)
    assert not claims_allowed(spool), "tried once a second"
    clock.advance(2)
    assert claims_allowed(spool)
    claimed.begin(["a@b"])


def test_an_io_error_stops_claims_for_good(
    tmp_path: Path, clock: ManualClock, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (claimed,) = claims(spool, tmp_path / "in", 1)
    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", raises_errno(errno.EIO))
        with pytest.raises(StorageBroken):
            claimed.begin(["a@b"])
    clock.advance(3600)
    assert not claims_allowed(spool)
    with pytest.raises(StorageBroken):
        claimed.begin(["a@b"])


def test_an_io_error_of_a_sync_is_not_forgotten_by_an_append_that_is_under_way(
    tmp_path: Path, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (claimed,) = claims(spool, tmp_path / "in", 1)
    real, stopping = os.pwrite, []

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        thread = threading.Thread(target=spool.place.log.stop, args=(StorageBroken("a sync failed"),))
        thread.start()
        thread.join(0.1)  # as far as it comes
        stopping.append(thread)
        return real(fd, data, offset)

    with monkeypatch.context() as slow:
        slow.setattr(os, "pwrite", pwrite)
        claimed.begin(["a@b"])
    for thread in stopping:
        thread.join()
    assert not claims_allowed(spool)
    with pytest.raises(StorageBroken):
        claimed.outcome(sent("a@b"))


@pytest.mark.parametrize("failing", ["dup", "fdatasync"])
def test_a_sync_that_fails_leaves_no_descriptor_and_is_made_up_for(
    tmp_path: Path, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    log = spool.place.log
    (claimed,) = claims(spool, tmp_path / "in", 1)
    claimed.begin(["a@b"])
    gc.collect()
    before, calls = len(os.listdir("/proc/self/fd")), []
    real = getattr(os, failing)

    def second_fails(fd: int) -> Any:
        calls.append(fd)
        if failing == "dup" and len(calls) == 1:
            return real(fd)
        raise OSError(errno.EMFILE, "too many")

    with monkeypatch.context() as scarce:
        scarce.setattr(os, failing, second_fails)
        with pytest.raises(OSError, match="too many"):
            log.sync()
    assert len(os.listdir("/proc/self/fd")) == before
    synced: list[int] = []
    with monkeypatch.context() as seen:
        seen.setattr(os, "fdatasync", synced.append)
        log.sync()
    assert len(synced) == 1


def test_a_short_write_leaves_no_torn_record(
    tmp_path: Path, clock: ManualClock, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = claims(spool, tmp_path / "in", 2)
    whole = os.pwrite
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[: len(data) // 2], at))
        with pytest.raises(StorageFull):
            first.begin(["a@b"])
    second.begin(["a@b"])
    assert list(log_of(spool).claims) == [second.number]


def test_logs_work_where_nothing_can_be_preallocated(tmp_path: Path) -> None:
    spool = spool_at(tmp_path / "in", features=kernel.Features(preallocate=False))
    (claimed,) = claims(spool, tmp_path / "in", 1)
    claimed.begin(["a@b"])
    (segment,) = segments(tmp_path)
    assert segment.stat().st_size < BIG
    assert list(log_of(spool).claims) == [claimed.number]
    spool.close()


@settings(max_examples=30, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.sampled_from("BOD"), st.integers(0, 2)), max_size=60),
)
def test_reading_gives_what_a_simple_model_gives(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, int]]
) -> None:
    path = tmp_path_factory.mktemp("log")
    spool = spool_at(path / "in")
    log = OutcomeLog(spool.place.mpu_fd, clock=spool.clock, features=kernel.Features(), segment_octets=600)
    spool.place.log.close()
    spool.place.log = log
    name = write(path / "in")
    opened: Opened = spool.examine(name, event_seen=True)
    model: dict[int, dict[str, bool]] = {}
    generation = dict.fromkeys(range(6), 0)
    for claim_index, kind, who in steps:
        number = claim_index + 10 * generation[claim_index]  # numbers are never used again
        each = Claim(opened, number, "t")
        recipient = f"r{who}@example.com"
        if kind == "B":
            each.begin([recipient])
            model.setdefault(number, {})[recipient] = False
        elif kind == "O":
            each.outcome([replace(sent(recipient)[0], text="x" * who * 50)])
            model.setdefault(number, {})[recipient] = True
        else:
            log.disposed([number])
            if model.pop(number, None) is not None:
                generation[claim_index] += 1
    read = read_logs(spool.place.mpu_fd, but=())
    found = {n: c for owner in read for n, c in owner.claims.items()}
    assert set(found) == set(model)
    for number, recipients in model.items():
        assert set(found[number].begun) == {r for r, known in recipients.items() if not known}
        assert set(found[number].outcomes) >= {r for r, known in recipients.items() if known}
    spool.release(opened)
    spool.close()


def test_the_longest_words_to_many_recipients_can_be_read_back_and_hide_nothing(
    tmp_path: Path, spool: DirectorySpool
) -> None:
    first, second = claims(spool, tmp_path / "in", 2)
    names = [f"{number}@b" for number in range(2000)]
    said = [replace(outcome, text="\ufffd" * MAX_TEXT) for outcome in sent(*names)]
    first.begin(names)
    first.outcome(said)
    second.begin(["a@b"])
    second.outcome(sent("a@b"))
    told = {claim.file_name: claim for claim in log_of(spool).claims.values()}
    assert set(told[first.file_name].outcomes) == set(names)
    assert not told[first.file_name].begun
    assert set(told[second.file_name].outcomes) == {"a@b"}


FORGED = b"9-ab.log.0"


def forged(spool: DirectorySpool, *bodies: bytes) -> OwnerLog:
    """A log as whoever may write mail here can write one."""
    fd = os.open(FORGED, os.O_CREAT | os.O_WRONLY, dir_fd=spool.place.mpu_fd)
    for body in bodies:
        os.write(fd, FRAME.pack(len(body), crc32(body)) + body)
    os.close(fd)
    (log,) = read_logs(spool.place.mpu_fd, but={spool.place.log.owner})
    log.close()
    return log


@pytest.mark.parametrize(
    "rest",
    [
        b"[" * 200_000,
        b"[[5,6]]",
        b'{"a": 1}',
        b'[["a@b","sent","dot",null,Infinity,null,""]]',
        b'[["a@b","sent","dot",null,' + b"9" * 30 + b',null,""]]',
        b'[["a@b","nonsense","dot",null,250,null,""]]',
    ],
)
def test_a_forged_outcome_is_none(tmp_path: Path, spool: DirectorySpool, rest: bytes) -> None:
    (claimed,) = claims(spool, tmp_path / "in", 1)
    mark = spool.place.log._mark(b"O", claimed)
    log = forged(spool, mark + rest)
    assert [claim.outcomes for claim in log.claims.values()] == [{}]


@pytest.mark.parametrize(
    "way", [b'["a","s",null,NaN]', b'["a","s",null,Infinity]', b'["a","s",null,"x"]', b"[" * 200_000, b"[]"]
)
def test_a_forged_way_is_none(tmp_path: Path, spool: DirectorySpool, way: bytes) -> None:
    (claimed,) = claims(spool, tmp_path / "in", 1)
    mark = spool.place.log._mark(b"B", claimed)
    log = forged(spool, mark + way + b"\0a@b")
    assert [claim.ways for claim in log.claims.values()] == [{}]


def test_lists_in_a_forged_way_are_words(tmp_path: Path, spool: DirectorySpool) -> None:
    (claimed,) = claims(spool, tmp_path / "in", 1)
    log = forged(spool, spool.place.log._mark(b"B", claimed) + b'[["a"],["s"],[1],5]\0a@b')
    assert [hash(way) for claim in log.claims.values() for way in claim.ways.values()]


def test_of_a_sparse_log_no_more_is_read_than_it_has(tmp_path: Path, spool: DirectorySpool) -> None:
    (tmp_path / "in" / ".mpu" / FORGED.decode()).touch()
    os.truncate(tmp_path / "in" / ".mpu" / FORGED.decode(), 1 << 40)
    tracemalloc.start()
    (log,) = read_logs(spool.place.mpu_fd, but={spool.place.log.owner})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    log.close()
    assert log.claims == {}
    assert peak < 10 << 20


def test_records_are_read_wherever_the_pieces_end(tmp_path: Path, spool: DirectorySpool) -> None:
    (claimed,) = claims(spool, tmp_path / "in", 1)
    sizes = [1, (1 << 18) - 100, 1 << 18, 5, (1 << 19) + 7, 3]
    begun = [f"{'x' * size}{number}@b" for number, size in enumerate(sizes)]
    log = forged(spool, *(spool.place.log._mark(b"B", claimed) + b"\0" + name.encode() for name in begun))
    (found,) = log.claims.values()
    assert [*found.begun] == begun
