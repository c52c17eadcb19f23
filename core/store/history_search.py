"""Finds rows of the history, newest first, whatever the filters are, in bounded time.

One index is walked from the newest entry on, that of the filter with the fewest entries there. Each entry is looked for
in the indexes of the other filters (0.4 us each with millions of them, a third of what its row in the table takes, and
about what it takes SQLite to step over six entries: an INTERSECT is faster only where filters have equally many rows).
What all of them have is looked at in the table, by which then everything is tested. So nothing is sorted, and an index
that was badly chosen costs time only.

Two filters that have millions of rows each and hardly any together would still take a second. So a search ends after
some time, and says how far it came; who asks goes on from there. (An index on directory and account would answer that
pair at once, but costs 5 us a recipient that is written, a tenth of what the ledger does for one.)
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

BUDGET_SECONDS = 0.012  # of a search; the last entries may take three times as long as the ones before told
FIRST = 1000  # entries that a search looks at, however long it takes; and by which the fewest are told
_LEAST, _MOST = 250, 16_000  # entries at a time
_ROWS = 500  # looked at in the table at a time

# server: of the only attempt of a mail that went out at once; it has no row in `attempt` (record.py)
_COLUMNS = """
SELECT json_group_array(json_array(
 r.id, m.message_id, m.internet_message_id, r.directory, r.sender, r.address, m.subject, r.status, r.account,
 coalesce((SELECT a.server FROM attempt a WHERE a.message = r.message AND a.number = r.attempt LIMIT 1), m.server),
 r.code, r.enhanced_code, r.text, r.phase, m.attempts, m.size_bytes, m.arrived_at, m.possible_duplicate))
FROM json_each(?) w CROSS JOIN recipient r ON r.id = w.value CROSS JOIN message m ON m.id = r.message"""


class Condition(NamedTuple):
    """On recipient r and message m, with its values; and the index of recipient that has what meets it."""

    text: str
    values: tuple[Any, ...]
    indexed_by: str | None = None


class Found(NamedTuple):
    """Rows of _COLUMNS, newest first. `down_to`: no others have this id or a greater one; None: there are no others."""

    rows: list[Sequence[Any]]
    down_to: int | None


class _Walk(NamedTuple):
    """Ids that meet all tests with an index, descending; `down_to` as in Found. `seen`: so many entries at least."""

    ids: list[int]
    down_to: int | None
    seen: int


def find(
    connection: sa.Connection,
    tests: Sequence[Condition],
    *,
    since: int,
    before: int,
    wanted: int,
    budget_seconds: float = BUDGET_SECONDS,
) -> Found:
    """Rows that meet all tests, with ids from `since` to below `before`: at least `wanted`, or those found in time."""
    indexed = [test for test in tests if test.indexed_by is not None]
    rows: list[Sequence[Any]] = []
    began = time.monotonic()
    end = began + budget_seconds
    entries, most, seen = FIRST, wanted, 0
    while True:
        indexed = _fewest_first(connection, indexed, since, before)  # which may be another further back
        walk = _walk(connection, indexed, since, before, entries=entries, most=most)
        kept = look_at(connection, tests, walk.ids)
        rows += kept
        if walk.down_to is None or len(rows) >= wanted:
            return Found(rows, walk.down_to)
        before = walk.down_to
        seen += walk.seen
        now = time.monotonic()
        fitting = int(walk.seen * (end - now) / max(now - began, 1e-6))  # in the time that is left
        if fitting < _LEAST and seen >= FIRST:
            return Found(rows, before)
        entries = max(_LEAST, min(fitting, 4 * entries, _MOST))
        most = wanted - len(rows) if 2 * len(kept) > len(walk.ids) else _ROWS  # where most don't meet the other tests
        began = now


def look_at(connection: sa.Connection, tests: Sequence[Condition], ids: Sequence[int]) -> list[Sequence[Any]]:
    """Those of these rows that meet the tests, newest first."""
    if not ids:
        return []
    conditions, values = _all(tests)
    found = _at_once(connection, f"{_COLUMNS} WHERE {conditions}", (json.dumps(ids), *values))
    return sorted(found, key=lambda row: row[0], reverse=True)  # they come as the ids do, but nothing promises that


def _fewest_first(connection: sa.Connection, indexed: list[Condition], since: int, before: int) -> list[Condition]:
    """By how many entries they have; of those with very many, by how far back so many reach."""
    if len(indexed) < 2:
        return indexed
    order = []
    for place, test in enumerate(indexed):
        entries, values = _entries(test, since, before, FIRST)
        count, oldest = connection.exec_driver_sql(f"SELECT count(*), min(w.id) FROM ({entries}) w", values).one()  # noqa: S608 - our own words; values are bound
        order.append((count == FIRST, oldest if count == FIRST else count, place))
    return [indexed[place] for _, _, place in sorted(order)]


def _walk(
    connection: sa.Connection, indexed: Sequence[Condition], since: int, before: int, *, entries: int, most: int
) -> _Walk:
    """At most `most` ids, from at most `entries` entries of the first index; without any, of the table."""
    first, others = (indexed[0], indexed[1:]) if indexed else (None, ())
    if not others:
        entries = min(entries, most)  # each is an id
    statement, values = _entries(first, since, before, entries)
    if others:
        lookups = (f"EXISTS (SELECT 1 FROM {_table(o)} WHERE {o.text} AND r.id = w.id)" for o in others)  # noqa: S608 - as above
        wanted = f"SELECT w.id AS id FROM ({statement}) w WHERE {' AND '.join(lookups)} LIMIT ?"  # noqa: S608 - as above
        more = (value for other in others for value in other.values)
        ids = _ids(connection, wanted, (*values, *more, most))
    else:
        ids = _ids(connection, statement, values)
    if len(ids) == min(most, entries):
        return _Walk(ids, ids[-1], len(ids))
    if not others:
        return _Walk(ids, None, len(ids))
    last = connection.exec_driver_sql(f"{statement} OFFSET ?", (*values[:-1], 1, entries - 1)).scalar()
    return _Walk(ids, last, entries)


def _at_once(connection: sa.Connection, statement: str, values: Sequence[Any]) -> list[Any]:
    """The JSON array that a statement gives.

    Rows would come one by one, and for each the driver lets go of the interpreter's lock: beside a loop that is busy
    sending it comes back milliseconds later, and 50 rows took up to 100 ms.
    """
    found: list[Any] = json.loads(connection.exec_driver_sql(statement, tuple(values)).scalar_one())
    return found


def _ids(connection: sa.Connection, statement: str, values: Sequence[Any]) -> list[int]:
    """What a statement finds, newest first, of which it has one column, `id`."""
    ids = _at_once(connection, f"SELECT json_group_array(w.id) FROM ({statement}) w", values)  # noqa: S608 - as above
    ids.sort(reverse=True)  # they are; as in look_at
    return ids


def _entries(test: Condition | None, since: int, before: int, limit: int) -> tuple[str, tuple[Any, ...]]:
    """The ids of a test's index in this range, or of the table, the newest so many; the last value is the limit."""
    text, values = (f"{test.text} AND ", test.values) if test else ("", ())
    statement = f"SELECT r.id AS id FROM {_table(test)} WHERE {text}r.id >= ? AND r.id < ? ORDER BY r.id DESC LIMIT ?"  # noqa: S608 - as above
    return statement, (*values, since, before, limit)


def _table(test: Condition | None) -> str:
    return "recipient r NOT INDEXED" if test is None else f"recipient r INDEXED BY {test.indexed_by}"


def _all(tests: Sequence[Condition]) -> tuple[str, tuple[Any, ...]]:
    return " AND ".join(test.text for test in tests), tuple(itertools.chain(*(test.values for test in tests)))
