"""Searching the history: combinations of filters beside a model, however finely the search is cut; what it costs."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session

from core.domain.outcome import Outcome
from core.store import cursor as cursors
from core.store import engine, history, history_search, retention
from core.store.entry import Status
from core.store.history import HistoryFilter, HistoryPage, HistoryRow
from tests.support.database import START, MovableClock, attempt, database, entry, message_id, open_store, outcome

ROWS = 150
STEP = 1_000_000  # microseconds from row to row
_MESSAGE = (
    "INSERT INTO message (id, message_id, directory, account, sender, internet_message_id, size_bytes, status,"
    " arrived_at, updated_at, attempts, possible_duplicate) VALUES (?, ?, ?, ?, ?, ?, 1, ?, 0, 0, 1, 0)"
)
_RECIPIENT = (
    "INSERT INTO recipient (id, message, address, domain, sender, directory, account, status, attempt, text, phase,"
    " superseded_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, '', 'dot', ?)"
)


def at(row: int) -> int:
    """The id of a row."""
    return int(START * 1e6) + row * STEP


def write(
    path: Path,
    count: int,
    told: Callable[[int], dict[str, Any]],
    superseded: Callable[[int], int] = lambda _: 0,
) -> None:
    """So many rows, a message each, straight into the tables; `told`: what differs from the usual."""
    usual: dict[str, Any] = {
        "recipient": "a@one.example",
        "sender": "s",
        "directory": "d",
        "account": "c",
        "status": "sent",
        "mail": 0,
    }
    with closing(sqlite3.connect(path)) as connection, connection:
        for row in range(count):
            facts = usual | told(row)
            place = (facts["sender"], facts["directory"], facts["account"], facts["status"])
            mail = f"<{facts['mail']}@example.net>"
            connection.execute(_MESSAGE, (row, f"m{row}", place[1], place[2], place[0], mail, place[3]))
            address = facts["recipient"]
            domain = address.partition("@")[2]
            connection.execute(_RECIPIENT, (at(row), row, address, domain, *place, superseded(row)))


@contextmanager
def reading(path: Path) -> Iterator[Session]:
    readers = engine.reader_engine(str(path))
    try:
        with readers.begin() as connection, Session(bind=connection) as session:
            yield session
    finally:
        readers.dispose()


def leaf(session: Session, where: HistoryFilter, **options: Any) -> list[HistoryRow]:
    """All pages."""
    rows: list[HistoryRow] = []
    cursor = None
    for _ in range(10_000):
        page = history.page(session, where, cursor=cursor, **options)
        assert len(page.items) <= options["limit"]
        rows += page.items
        cursor = page.next
        if cursor is None:
            return rows
    raise AssertionError("there is no end")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few at a time that 150 rows are as many steps as millions are."""
    monkeypatch.setattr(history_search, "FIRST", 7)
    monkeypatch.setattr(history_search, "_LEAST", 2)
    monkeypatch.setattr(history_search, "_MOST", 11)
    monkeypatch.setattr(history_search, "_ROWS", 3)


# --- beside a model ---------------------------------------------------------------------------------------------------

VALUES: dict[str, tuple[Any, ...]] = {
    "status": (Status.SENT, Status.FAILED, Status.DELETED),
    "recipient": ("a0@one.example", "@one.example", "@two.example", "@none.example"),
    "sender": ("s0", "S1", ""),
    "directory": ("d0", "d1", "d2"),
    "account": ("c0", "c1", "c2"),
    "internet_message_id": ("<0@example.net>", "<3@example.net>"),
    "since": (START + 40,),
    "until": (START + 110,),
}


def by_chance(chance: random.Random) -> Callable[[int], dict[str, Any]]:
    """d1 and c2 have many rows and never meet; d2 has one row in thirty; in the middle nothing was sent."""

    def told(row: int) -> dict[str, Any]:
        directory = "d2" if row % 30 == 9 else chance.choice(("d0", "d1"))
        return {
            "recipient": f"a{chance.randrange(4)}@{chance.choice(('one', 'one', 'two'))}.example",
            "sender": chance.choice(("s0", "s0", "S0", "s1", "")),
            "directory": directory,
            "account": chance.choice(("c0", "c1") if directory == "d1" else ("c0", "c2", "c2")),
            "status": "failed" if 60 <= row < 90 else chance.choice(("sent", "sent", "failed", "unknown")),
            "mail": 0 if chance.random() < 0.4 else chance.randrange(8),
        }

    return told


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = database(tmp_path_factory.mktemp("model"))
    # of every nine one gave way to the next, and one to what came after the first page, so it is still shown
    write(path, ROWS, by_chance(random.Random(7)), lambda row: {0: at(row + 1), 1: at(ROWS + row)}.get(row % 9, 0))
    return path


def meets(row: HistoryRow, where: HistoryFilter) -> bool:
    """What http.md says of each filter."""
    if where.recipient is not None:
        found = (
            row.recipient.endswith(where.recipient) if where.recipient[0] == "@" else row.recipient == where.recipient
        )
        if not found:
            return False
    if (where.since is not None and row.at < where.since) or (where.until is not None and row.at >= where.until):
        return False
    if where.sender is not None and where.sender.lower() != row.sender.lower():
        return False
    same = ("status", "directory", "account", "internet_message_id")
    return all(getattr(where, name) in (None, getattr(row, name)) for name in same)


def combinations(count: int) -> Iterator[HistoryFilter]:
    for names in itertools.combinations(VALUES, count):
        for values in itertools.product(*(VALUES[name] for name in names)):
            yield HistoryFilter(**dict(zip(names, values, strict=True)))


@pytest.mark.parametrize("sorted_mails", [2, 2000])
@pytest.mark.parametrize("fields", [1, 2, 3])
@pytest.mark.usefixtures("small_steps")
def test_each_combination_of_filters_finds_what_a_model_finds(
    filled: Path, fields: int, sorted_mails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_SORTED", sorted_mails)
    found = 0
    with reading(filled) as session:
        everything = leaf(session, HistoryFilter(), limit=500)
        assert [row.message_id for row in everything] == [f"m{n}" for n in range(ROWS - 1, -1, -1) if n % 9]
        for place, where in enumerate(combinations(fields)):
            wanted = [row for row in everything if meets(row, where)]
            # without any time each page ends after its first step
            options = {"limit": (1, 4, 50)[place % 3], "budget_seconds": (0.0, 3600.0)[place // 3 % 2]}
            assert leaf(session, where, **options) == wanted, where
            found += len(wanted)
    assert found > 500


@pytest.mark.usefixtures("small_steps")
def test_all_filters_at_once(filled: Path) -> None:
    with reading(filled) as session:
        everything = leaf(session, HistoryFilter(), limit=500)
        for row in everything[::10]:
            names = asdict(row).keys() & VALUES.keys()
            where = HistoryFilter(**{name: getattr(row, name) for name in names}, since=row.at, until=row.at + 1)
            assert leaf(session, where, limit=2) == [row]
            assert leaf(session, replace(where, since=None, until=row.at), limit=2) == [
                other
                for other in everything
                if other.at < row.at and meets(other, replace(where, since=None, until=None))
            ]


def test_a_short_history_never_gives_a_short_page(filled: Path) -> None:
    where = HistoryFilter(status=Status.SENT, until=START + 89)  # behind which thirty rows were not sent
    with reading(filled) as session:
        page = history.page(session, where, limit=20, budget_seconds=0)
        assert len(page.items) == 20
        for where in combinations(2):
            page = history.page(session, where, limit=10, budget_seconds=0)
            assert len(page.items) == 10 or page.next is None


@pytest.mark.usefixtures("small_steps")
async def test_two_filters_show_each_recipient_once_while_rows_come_and_change(tmp_path: Path) -> None:
    clock = MovableClock()
    store = open_store(tmp_path, clock)

    def told(n: int, number: int = 1, what: Outcome = Outcome.DEFERRED) -> Any:
        attempts = (attempt(number, [outcome("a@x.example", what, 450)], at=clock.now(), account=f"c{n % 3 % 2}"),)
        return entry(f"{n}.eml", attempts=attempts, status=Status.DEFERRED, finished=False, directory=f"d{n % 2}")

    await asyncio.gather(*(store.ledger.settle(told(n)) for n in range(60)))
    names = {message_id(f"{n}.eml", f"d{n % 2}"): n for n in range(60)}
    where = HistoryFilter(directory="d1", account="c0", status=Status.DEFERRED)
    seen: list[int] = []
    cursor = None
    for step in range(200):

        def piece(session: Session, cursor: str | None = cursor) -> HistoryPage:
            return history.page(session, where, limit=3, cursor=cursor, budget_seconds=0)

        shown = await store.read(piece)
        seen += [names[row.message_id] for row in shown.items]
        cursor = shown.next
        if cursor is None:
            break
        clock.move(1)
        await asyncio.gather(*(store.ledger.settle(told((step * 7 + k) % 60, step + 2)) for k in (0, 11, 33)))
        await store.write(lambda session: retention.superseded(session, before=clock.now() - 3600))
    await asyncio.to_thread(store.close)
    assert seen == [n for n in range(59, -1, -1) if n % 2 == 1 and n % 3 % 2 == 0]


# --- what it costs ----------------------------------------------------------------------------------------------------


def never_met(row: int) -> dict[str, Any]:
    """Two halves, of which the second has nothing of the first; and one row in fifty of both."""
    return {"directory": f"d{row % 2}", "account": f"c{row % 2}", "sender": "rare" if row % 50 == 0 else "s"}


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = database(tmp_path_factory.mktemp("long"))
    write(path, 6000, never_met)
    return path


def test_a_page_whose_time_is_up_says_how_far_it_came(long: Path) -> None:
    where = HistoryFilter(directory="d0", account="c1")
    with reading(long) as session:
        page = history.page(session, where, budget_seconds=0)
        # the thousandth of d0, or of c1, which lies beside it
        assert page.items == ()
        assert page.next in {cursors.encode(at(5999), at(n)) for n in (4000, 4001)}
        assert history.page(session, where, budget_seconds=3600) == HistoryPage((), None)
        assert leaf(session, where, limit=50, budget_seconds=0) == []


def test_what_stands_in_the_first_thousand_entries_of_the_rarest_filter_comes_at_once(long: Path) -> None:
    with reading(long) as session:
        for where in (
            HistoryFilter(directory="d0", sender="rare"),
            HistoryFilter(sender="rare", account="c0", recipient="a@one.example", directory="d0"),
        ):
            page = history.page(session, where, limit=500, budget_seconds=0)
            assert (len(page.items), page.next) == (120, None)
        page = history.page(session, HistoryFilter(directory="d0", account="c0"), limit=500, budget_seconds=0)
        assert [row.message_id for row in page.items] == [f"m{n}" for n in range(5998, 4998, -2)]
        page = history.page(session, HistoryFilter(status=Status.SENT), limit=500, budget_seconds=0)
        assert len(page.items) == 500


_READS_ALL = re.compile(r"SCAN (?!w\b)|TEMP B-TREE|AUTOMATIC")  # w: the ids of json_each, or of the index walked


@pytest.mark.parametrize("sorted_mails", [2, 2000])
def test_no_statement_of_any_page_reads_a_whole_table_or_sorts(
    filled: Path, sorted_mails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_SORTED", sorted_mails)
    asked: dict[str, Any] = {}
    with reading(filled) as session:
        connection = session.connection()

        def note(_c: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
            asked[statement] = values

        sa.event.listen(connection, "before_cursor_execute", note)
        for where in itertools.chain([HistoryFilter()], combinations(1), combinations(2), combinations(3)):
            cursor = history.page(session, where, limit=5, budget_seconds=0).next
            if cursor is not None:
                history.page(session, where, limit=5, cursor=cursor)
        sa.event.remove(connection, "before_cursor_execute", note)
        assert len(asked) > 50
        for statement, values in asked.items():
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
            assert plan, statement
            for line in plan:
                assert not _READS_ALL.search(line), (statement, plan)
            if "FROM recipient r INDEXED BY" in statement and "json_each" not in statement:
                assert all("COVERING" in line for line in plan if "SEARCH r" in line), (statement, plan)
