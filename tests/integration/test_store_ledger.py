"""The ledger: groups, what a second telling makes, and that no outcome is lost while the database fails."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session

from core.domain.outcome import AccountFault, Outcome
from core.domain.reply import Phase
from core.errors import DatabaseUnavailable, NotRunning, StorageFull
from core.store import engine, settings
from core.store.entry import Status
from core.store.ledger import Health, Ledger
from tests.support.database import START, MovableClock, attempt, database, entry, outcome


class Files:
    """A disposer that remembers, and looks whether what it disposes of is committed."""

    def __init__(self, path: Path | None = None) -> None:
        self.groups: list[list[object]] = []
        self.threads: set[str] = set()
        self.committed: list[int] = []
        self.wrong: Exception | None = None
        self._path = path
        self.secured: list[tuple[list[object], int]] = []  # groups, and how many rows were committed then

    def before_commit(self, disposals: Sequence[object]) -> None:
        count = rows(self._path, "SELECT count(*) FROM message")[0][0] if self._path is not None else 0
        self.secured.append((list(disposals), count))

    def dispose(self, disposals: Sequence[object]) -> list[object]:
        self.groups.append(list(disposals))
        self.threads.add(threading.current_thread().name)
        if self._path is not None:
            self.committed.append(rows(self._path, "SELECT count(*) FROM message")[0][0])
        if self.wrong is not None:
            raise self.wrong
        return [f"done {disposal}" for disposal in disposals]


def rows(path: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def contents(path: Path) -> dict[str, list[Any]]:
    tables = ("message", "recipient", "attempt")
    return {table: rows(path, f"SELECT * FROM {table} ORDER BY id") for table in tables}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return database(tmp_path)


@pytest.fixture
async def ledger(path: Path) -> AsyncIterator[Ledger]:
    made = Ledger(str(path), clock=MovableClock())
    yield made
    await asyncio.to_thread(made.close)


class Locked:
    """Another process that holds the write lock until it is told to let go."""

    def __init__(self, path: Path) -> None:
        code = (
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE');"
            "print('locked', flush=True); sys.stdin.readline(); c.execute('ROLLBACK'); c.close()"
        )
        self._child = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == "locked\n"

    def let_go(self) -> None:
        if self._child.returncode is None:
            self._child.communicate("\n", timeout=30)


@pytest.fixture
def locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Locked]:
    monkeypatch.setattr("core.store.engine.BUSY_TIMEOUT_SECONDS", 0.02)
    holder = Locked(path)
    yield holder
    holder.let_go()


async def changed(ledger: Ledger, healthy: bool) -> Health:
    """The ledger's health once it is so."""
    async with asyncio.timeout(10):
        while ledger.healthy is not healthy:
            await asyncio.sleep(0.005)
    return ledger.health


async def test_files_are_disposed_of_after_the_commit_in_the_one_thread(ledger: Ledger, path: Path) -> None:
    files = Files(path)
    futures = [ledger.settle(entry(f"{n}.eml", disposal=n, disposer=files)) for n in range(300)]
    assert await asyncio.gather(*futures) == [f"done {n}" for n in range(300)]
    assert [d for group in files.groups for d in group] == list(range(300))
    assert len(files.groups) < 300  # grouped
    done = 0
    for group, committed in zip(files.groups, files.committed, strict=True):
        done += len(group)
        assert committed >= done
    assert files.threads == {"mpu-ledger"}


async def test_a_group_is_committed_after_its_disposer_made_it_last(ledger: Ledger, path: Path) -> None:
    class Slow(Files):
        def before_commit(self, disposals: Sequence[object]) -> None:
            time.sleep(0.02)  # the rows are written meanwhile, but not committed
            super().before_commit(disposals)

    files = Slow(path)
    for number in range(3):
        await ledger.settle(entry(f"{number}.eml", disposal=number, disposer=files))
    assert files.secured == [([0], 0), ([1], 1), ([2], 2)]
    assert files.committed == [1, 2, 3]


async def test_outcomes_are_committed_even_if_their_disposer_cannot_make_them_last(ledger: Ledger, path: Path) -> None:
    class Broken(Files):
        def before_commit(self, disposals: Sequence[object]) -> None:
            raise OSError("no such luck")

    assert await ledger.settle(entry(disposal=1, disposer=Broken(path))) == "done 1"
    assert rows(path, "SELECT count(*) FROM message") == [(1,)]


async def test_disposals_go_to_their_own_disposers_and_errors_to_their_own_callers(ledger: Ledger) -> None:
    well, ill = Files(), Files()
    ill.wrong = OSError("unmounted")
    first, second, third = (
        ledger.settle(entry("1.eml", disposal=1, disposer=well)),
        ledger.settle(entry("2.eml", disposal=2, disposer=ill)),
        ledger.settle(entry("3.eml")),
    )
    assert await first == "done 1"
    with pytest.raises(OSError, match="unmounted"):
        await second
    assert await third is None


async def test_on_the_happy_path_a_message_is_one_row_and_one_a_recipient(ledger: Ledger, path: Path) -> None:
    await ledger.settle(entry(recipients=["a@x.example", "b@Y.Example"]))
    assert {table: len(found) for table, found in contents(path).items()} == {
        "message": 1,
        "recipient": 2,
        "attempt": 0,
    }
    message = rows(path, "SELECT status, server, tls, attempts, finished_at, account FROM message")
    assert message == [("sent", "smtp.example.com:587", "TLSv1.3", 1, (START + 1) * 1_000_000, "main")]
    assert rows(path, "SELECT address, domain, status, code FROM recipient ORDER BY id") == [
        ("a@x.example", "x.example", "sent", 250),
        ("b@y.example", "y.example", "sent", 250),
    ]


@pytest.mark.parametrize(
    "told",
    [
        [entry()],
        [entry(recipients=[f"r{n}@x.example" for n in range(50)])],
        [entry(what=Outcome.DEFERRED)],
        [entry(what=Outcome.UNKNOWN, possible_duplicate=True)],
        [entry(what=Outcome.DEFERRED), entry(what=Outcome.SENT, number=2)],
        [entry(what=Outcome.DEFERRED), entry(what=Outcome.FAILED, number=2)],
        [
            entry(
                attempts=(
                    attempt(1, [outcome("a@x.example"), outcome("b@x.example", Outcome.DEFERRED, 450, "later")]),
                    attempt(2, [outcome("b@x.example", Outcome.FAILED, 550, "no")]),
                ),
                status=Status.FAILED,
            )
        ],
        [entry(attempts=(), outcomes=(), status=Status.FAILED, finished=True, reason="no recipient at all")],
        [entry(attempts=(), rest=("a@x.example", "b@x.example"), status=Status.DELETED, finished=True)],
    ],
)
async def test_told_twice_the_rows_are_the_same(ledger: Ledger, path: Path, told: list[Any]) -> None:
    for one in told:
        await ledger.settle(one)
    once = contents(path)
    await ledger.settle(told[-1])
    assert contents(path) == once
    assert once["message"]
    assert once["recipient"]


async def test_repeats_within_one_group_are_told_in_their_order(ledger: Ledger, path: Path) -> None:
    told = [entry(what=Outcome.DEFERRED), entry("b.eml"), entry(what=Outcome.SENT, number=2), entry("b.eml")]
    await asyncio.gather(*[ledger.settle(one) for one in told])
    assert rows(path, "SELECT status FROM message ORDER BY message_id") == [("sent",), ("sent",)]
    assert rows(path, "SELECT status FROM recipient WHERE superseded_by = 0") == [("sent",), ("sent",)]


async def test_an_end_that_names_nobody_speaks_of_all_that_were_not_sent_to(ledger: Ledger, path: Path) -> None:
    outcomes = [outcome("a@x.example"), outcome("b@x.example", Outcome.FAILED, 550)]
    await ledger.settle(entry(attempts=(attempt(1, outcomes),), status=Status.FAILED))
    await ledger.settle(entry(attempts=(), status=Status.DELETED, finished=True, reason="by an operator"))
    assert rows(path, "SELECT address, status, text FROM recipient WHERE superseded_by = 0 ORDER BY address") == [
        ("a@x.example", "sent", "2.0.0 queued"),
        ("b@x.example", "deleted", "by an operator"),
    ]


async def test_what_was_sent_stays_sent(ledger: Ledger, path: Path) -> None:
    await ledger.settle(entry())
    await ledger.settle(entry(what=Outcome.UNKNOWN, number=2))
    assert rows(path, "SELECT status FROM recipient WHERE superseded_by = 0") == [("sent",)]


async def test_an_attempt_shows_recipients_that_fared_alike_together(ledger: Ledger, path: Path) -> None:
    outcomes = [outcome("a@x.example"), outcome("b@x.example", Outcome.FAILED, 550, "unknown b")]
    outcomes.append(outcome("c@x.example", Outcome.FAILED, 550, "unknown c"))
    await ledger.settle(entry(attempts=(attempt(1, outcomes),), status=Status.FAILED))
    assert rows(path, "SELECT number, part, outcome, code, text, recipients FROM attempt ORDER BY part") == [
        (1, 0, "sent", 250, "2.0.0 queued", '["a@x.example"]'),
        (1, 1, "failed", 550, "unknown b", '["b@x.example", "c@x.example"]'),
    ]


async def test_an_attempt_that_was_the_accounts_fault_is_not_counted(ledger: Ledger, path: Path) -> None:
    fault = AccountFault("main", Phase.AUTH, "login_refused", "535 no", "enter the password", None, False)
    deferred = [outcome("a@x.example", Outcome.DEFERRED, 535)]
    for number, blamed in ((1, fault), (2, None)):
        told = (attempt(number, deferred, fault=blamed),)
        await ledger.settle(entry(attempts=told, status=Status.DEFERRED, finished=False))
    assert rows(path, "SELECT number, counted FROM attempt ORDER BY number") == [(1, 0), (2, 1)]


async def test_recipient_ids_are_times_and_never_go_back(path: Path) -> None:
    clock = MovableClock()
    ledger = Ledger(str(path), clock=clock)
    await ledger.settle(entry("a.eml", recipients=["a@x.example", "b@x.example"]))
    clock.move(-86_400)
    await ledger.settle(entry("b.eml"))
    clock.move(86_500)
    await ledger.settle(entry("c.eml"))
    await asyncio.to_thread(ledger.close)
    first = int(START * 1_000_000)
    ids = [row[0] - first for row in rows(path, "SELECT id FROM recipient ORDER BY id")]
    assert ids == [0, 1, 2, 100_000_000]


@pytest.mark.parametrize("field", ["subject", "sender", "internet_message_id", "reason", "message_id"])
async def test_octets_that_are_no_text_hinder_nobody(ledger: Ledger, path: Path, field: str) -> None:
    odd = "odd \udcff\ud800" if field == "message_id" else "odd \udcff\x00\ud800"
    fields: dict[str, Any] = {field: odd}
    if field == "reason":
        fields |= {"attempts": (), "status": Status.FAILED}
    files = Files()
    told = [entry("a.eml"), entry("b.eml", disposal="b", disposer=files, **fields), entry("c.eml")]
    for _ in range(2):
        await asyncio.gather(*[ledger.settle(one) for one in told])
    assert rows(path, "SELECT count(*) FROM message") == [(3,)]
    assert rows(path, "SELECT count(*) FROM recipient") == [(3,)]
    assert files.groups == [["b"], ["b"]]


async def test_an_entry_that_cannot_be_written_hinders_no_other_and_is_not_disposed_of(
    ledger: Ledger, path: Path
) -> None:
    files = Files()
    bad = entry("bad.eml", size_bytes=1 << 70, disposal="bad", disposer=files)
    told = [entry("a.eml", disposal="a", disposer=files), bad, entry("c.eml", disposal="c", disposer=files)]
    answers = await asyncio.gather(*[ledger.settle(one) for one in told], return_exceptions=True)
    assert answers[0] == "done a"
    assert isinstance(answers[1], OverflowError)
    assert answers[2] == "done c"
    assert sorted(d for group in files.groups for d in group if isinstance(d, str)) == ["a", "c"]
    assert rows(path, "SELECT count(*) FROM message") == [(2,)]
    assert ledger.healthy


async def test_a_locked_database_delays_outcomes_and_drops_none(path: Path, locked: Locked) -> None:
    clock = MovableClock()
    ledger = Ledger(str(path), clock=clock)
    seen: list[Health] = []
    ledger.on_health = seen.append
    files = Files()
    futures = [ledger.settle(entry(f"{n}.eml", disposal=n, disposer=files)) for n in range(20)]
    health = await changed(ledger, healthy=False)
    assert isinstance(health.error, DatabaseUnavailable)
    assert "locked" in health.error.detail
    assert health.since == START
    futures.append(ledger.settle(entry("late.eml", disposal=20, disposer=files)))
    with pytest.raises(DatabaseUnavailable):  # told at once, not when the lock goes
        await ledger.write(lambda session: settings.put(session, "history_days", 1))
    assert files.groups == []
    assert not any(future.done() for future in futures)
    locked.let_go()
    assert await asyncio.gather(*futures) == [f"done {n}" for n in range(21)]
    assert ledger.healthy
    assert [h.healthy for h in (seen[0], seen[-1])] == [False, True]
    assert rows(path, "SELECT count(*) FROM message") == [(21,)]
    await asyncio.to_thread(ledger.close)


async def test_a_full_disk_delays_outcomes_and_drops_none(ledger: Ledger, path: Path) -> None:
    files = Files()
    connections: list[sqlite3.Connection] = []
    assert ledger._engine is not None
    sa.event.listen(ledger._engine, "connect", lambda connection, _record: connections.append(connection))

    def shrink(session: Session) -> None:
        pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar()
        session.connection().exec_driver_sql(f"PRAGMA max_page_count={pages}")

    await ledger.write(shrink)  # SQLite says SQLITE_FULL beyond it, as on ENOSPC
    futures = [ledger.settle(entry(f"{n}.eml", subject="x" * 200, disposal=n, disposer=files)) for n in range(400)]
    health = await changed(ledger, healthy=False)
    assert isinstance(health.error, StorageFull)
    committed = rows(path, "SELECT count(*) FROM message")[0][0]
    assert sum(len(group) for group in files.groups) == committed
    connections[0].execute("PRAGMA max_page_count=1000000").close()  # room again
    assert await asyncio.gather(*futures) == [f"done {n}" for n in range(400)]
    assert ledger.healthy
    assert rows(path, "SELECT count(*) FROM message") == [(400,)]


@pytest.mark.parametrize("other", [False, True], ids=["deleted", "replaced"])
async def test_nothing_is_committed_to_a_file_that_is_no_longer_at_its_path(
    ledger: Ledger, path: Path, other: bool
) -> None:
    files, aside = Files(), path.with_name("aside.sqlite3")
    await ledger.settle(entry("a.eml", disposal="a", disposer=files))
    path.rename(aside)
    if other:
        database(path.parent)
    waits = ledger.settle(entry("b.eml", disposal="b", disposer=files))
    health = await changed(ledger, healthy=False)
    assert ("replaced" if other else "is gone") in str(health.error)
    assert health.error is not None
    assert "mpu restore" in health.error.remedy
    with pytest.raises(DatabaseUnavailable, match=health.error.detail):
        await ledger.write(lambda session: settings.put(session, "x", 1))
    assert files.groups == [["a"]]
    assert path.exists() is other, "none is made by accident"
    aside.rename(path)
    assert await waits == "done b"
    assert ledger.healthy
    assert rows(path, "SELECT count(*) FROM message") == [(2,)]
    assert rows(path, "SELECT count(*) FROM setting") == [(0,)]


async def test_a_lost_file_is_noticed_and_found_again_where_nothing_is_committed(ledger: Ledger, path: Path) -> None:
    seen: list[Health] = []
    ledger.on_health = seen.append
    aside = path.with_name("aside.sqlite3")
    path.rename(aside)
    lost = ledger.health
    assert not lost.healthy
    with pytest.raises(DatabaseUnavailable):
        await ledger.write(lambda session: settings.put(session, "x", 1))
    aside.rename(path)
    assert ledger.health.healthy
    assert [health.healthy for health in seen] == [False, True]
    await ledger.write(lambda session: settings.put(session, "x", 1))


async def test_what_is_not_committed_at_the_end_of_close_is_not_disposed_of(path: Path, locked: Locked) -> None:
    ledger = Ledger(str(path), clock=MovableClock())
    files = Files()
    futures = [ledger.settle(entry(f"{n}.eml", disposal=n, disposer=files)) for n in range(3)]
    await changed(ledger, healthy=False)
    assert await asyncio.to_thread(ledger.close, 0.2) is False
    answers = await asyncio.gather(*futures, return_exceptions=True)
    assert all(isinstance(answer, NotRunning) for answer in answers)
    assert files.groups == []


async def test_close_finishes_what_is_queued_and_takes_nothing_more(path: Path) -> None:
    ledger = Ledger(str(path), clock=MovableClock())
    futures = [ledger.settle(entry(f"{n}.eml")) for n in range(1500)]
    assert await asyncio.to_thread(ledger.close) is True
    await asyncio.gather(*futures)
    assert rows(path, "SELECT count(*) FROM message") == [(1500,)]
    with pytest.raises(NotRunning):
        ledger.settle(entry("late.eml"))
    assert ledger.close() is True  # again is harmless


async def test_a_write_is_a_transaction_of_its_own_and_its_error_is_the_callers(ledger: Ledger, path: Path) -> None:
    def half(session: Session) -> None:
        settings.put(session, "history_days", 5)
        raise ValueError("not so")

    before = ledger.settle(entry())
    with pytest.raises(ValueError, match="not so"):
        await ledger.write(half)
    assert before.done()  # in order
    assert await ledger.write(settings.load) == settings.DEFAULTS
    await ledger.write(lambda session: settings.put(session, "history_days", 7))
    assert (await ledger.write(settings.load))["history_days"] == 7


async def test_what_a_write_returns_is_not_raised(ledger: Ledger) -> None:
    assert isinstance(await ledger.write(lambda session: ValueError("a value")), ValueError)


async def test_a_result_that_is_an_exception_is_raised_for_its_message_alone(ledger: Ledger) -> None:
    class Half(Files):
        def dispose(self, disposals: Sequence[object]) -> list[object]:
            return [OSError("no room") if disposal == 2 else disposal for disposal in disposals]

    files = Half()
    told = [ledger.settle(entry(f"{n}.eml", disposal=n, disposer=files)) for n in (1, 2, 3)]
    one, two, three = await asyncio.gather(*told, return_exceptions=True)
    assert (one, three) == (1, 3)
    assert isinstance(two, OSError)


async def test_flush_waits_for_what_was_queued_before(ledger: Ledger) -> None:
    futures = [ledger.settle(entry(f"{n}.eml")) for n in range(50)]
    await ledger.flush()
    assert all(future.done() for future in futures)


async def test_a_caller_that_gave_up_harms_nobody(ledger: Ledger, path: Path) -> None:
    ledger.settle(entry("a.eml")).cancel()
    await ledger.settle(entry("b.eml"))
    assert rows(path, "SELECT count(*) FROM message") == [(2,)]


async def test_without_a_database_files_are_disposed_of_and_nothing_is_recorded() -> None:
    ledger = Ledger(None, clock=MovableClock())
    files = Files()
    assert await ledger.settle(entry(disposal=1, disposer=files)) == "done 1"
    with pytest.raises(NotRunning):
        ledger.write(lambda session: None)
    await ledger.flush()
    assert await asyncio.to_thread(ledger.close) is True


async def test_two_processes_may_write_to_one_database(path: Path) -> None:
    one, other = Ledger(str(path), clock=MovableClock()), Ledger(str(path), clock=MovableClock())
    futures = [ledger.settle(entry(f"{n}.eml", sender=f"{n}@x")) for n in range(200) for ledger in (one, other)]
    await asyncio.gather(*futures)
    assert rows(path, "SELECT count(*), count(DISTINCT message_id) FROM message") == [(200, 200)]
    assert rows(path, "SELECT count(*) FROM recipient") == [(200,)]
    await asyncio.to_thread(one.close)
    await asyncio.to_thread(other.close)


@pytest.mark.parametrize("low", [True, False])
async def test_where_room_is_short_the_wal_does_not_take_it(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch, low: bool
) -> None:
    monkeypatch.setattr(engine, "LOW_BYTES", 1 << 62 if low else 0)
    sizes = []
    for number in range(60):
        await ledger.settle(entry(f"{number}.eml", subject="x" * 200))
        await ledger.flush()
        sizes.append(path.with_name(path.name + "-wal").stat().st_size)
    grown = sizes[-1] - sizes[len(sizes) // 2]
    assert grown == 0 if low else grown > 30 * 4096


async def test_what_is_settled_while_the_ledger_closes_is_answered(path: Path) -> None:
    """Nothing may come into the queue behind its end, where nobody looks."""
    ledger = Ledger(str(path), clock=MovableClock())
    files, closing = Files(), threading.Thread(target=ledger.close)
    put = ledger._queue.put

    class Queue:
        """As the ledger's; it is closed just before something is put into it."""

        get, empty = ledger._queue.get, ledger._queue.empty

        def put(self, item: Any) -> None:
            if item is not None:
                closing.start()
                closing.join(0.2)  # another thread is waited for, as long as it may go on
            put(item)

    ledger._queue = Queue()  # type: ignore[assignment]  # as much of one as is used
    assert await asyncio.wait_for(ledger.settle(entry("a", disposal="x", disposer=files)), 10) == "done x"
    closing.join(10)
