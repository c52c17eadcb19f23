"""How old rows go: which, and how little of the ledger's time it takes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session

from core.domain.outcome import Outcome
from core.store import history, retention
from core.store.history import HistoryFilter
from core.store.store import Store
from tests.support.database import MovableClock, entry, message_id


def rows(session: Session) -> list[tuple[Any, ...]]:
    found = session.connection().exec_driver_sql("SELECT attempt, superseded_by > 0 FROM recipient ORDER BY id")
    return [tuple(row) for row in found]


async def test_what_was_superseded_goes_by_the_age_of_what_superseded_it(store: Store, clock: MovableClock) -> None:
    for number in (1, 2, 3):  # an hour and a half between each
        await store.ledger.settle(entry(what=Outcome.DEFERRED, number=number, at=clock.now()))
        clock.move(5400)
    assert await store.read(rows) == [(1, 1), (2, 1), (3, 0)]
    sweep = retention.superseded
    # the first gave way 3 hours ago, the second one and a half
    assert await store.write(lambda session: sweep(session, before=clock.now() - 10_800)) == 0
    assert await store.write(lambda session: sweep(session, before=clock.now() - 10_799)) == 1
    assert await store.read(rows) == [(2, 1), (3, 0)]
    assert await retention.run(store, clock) == 1
    assert await store.read(rows) == [(3, 0)]


async def test_a_message_stays_with_the_last_of_its_recipients(store: Store, clock: MovableClock) -> None:
    names = [f"r{n}@x.example" for n in range(70)]
    await store.ledger.settle(entry("long.eml", names, what=Outcome.DEFERRED))
    await store.ledger.settle(entry("short.eml", names[:3]))
    clock.move(100)
    await store.ledger.settle(entry("long.eml", names[:1], number=2, at=clock.now()))
    # what was superseded is gone too: 70 + 3 rows, and the message none of whose rows is younger
    while await store.write(lambda session: retention.history(session, before=clock.now(), budget_seconds=0)):
        pass
    page = await store.read(lambda session: history.page(session, HistoryFilter()))
    assert [(row.message_id, row.recipient) for row in page.items] == [(message_id("long.eml"), names[0])]
    life = await store.read(lambda session: history.life(session, message_id("long.eml")))
    assert len(life.attempts) == 2


def asked(run: Callable[[Session], int]) -> Callable[[Session], tuple[int, list[tuple[str, Any]]]]:
    """What `run` gives, and its statements, each a single one."""

    def listening(session: Session) -> tuple[int, list[tuple[str, Any]]]:
        statements: list[tuple[str, Any]] = []

        def note(_c: Any, _cursor: Any, statement: str, values: Any, _context: Any, executemany: bool) -> None:
            assert not executemany
            statements.append((statement, values))

        connection = session.connection()
        sa.event.listen(connection, "before_cursor_execute", note)
        try:
            return run(session), statements
        finally:
            sa.event.remove(connection, "before_cursor_execute", note)

    return listening


async def test_a_slice_takes_few_statements_however_many_rows_it_has(store: Store, clock: MovableClock) -> None:
    """Each lets go of the interpreter, and has to wait for it beside a busy drain."""
    names = [f"r{n}@x.example" for n in range(100)]
    for n in range(2):
        await store.ledger.settle(entry(f"{n}.eml", names, what=Outcome.DEFERRED))
        await store.ledger.settle(entry(f"{n}.eml", names, what=Outcome.DEFERRED, number=2, at=clock.now() + 60))
    clock.move(7200)
    for sweep, most in ((retention.superseded, 1), (retention.history, 3)):
        count, statements = await store.write(asked(functools.partial(sweep, before=clock.now(), budget_seconds=0)))
        assert count >= 25
        assert len(statements) <= most

        def plans(session: Session, statements: list[tuple[str, Any]] = statements) -> list[str]:
            one = session.connection().exec_driver_sql
            return [row[3] for text, values in statements for row in one(f"EXPLAIN QUERY PLAN {text}", values)]

        for line in await store.read(plans):
            assert not re.search(r"SCAN (?!json_each|\(subquery)|TEMP B-TREE|AUTOMATIC", line), line
