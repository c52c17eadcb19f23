"""The history: what was attempted and what came of it, a row a recipient, newest first.

A list shows the history as it was when its first page was asked for, by the numbering of tables.py: the cursor holds
the newest row of that moment and the last row shown. Rows that came later aren't in it, and of a recipient that changed
meanwhile it shows the row that stood then; so each appears exactly once. (An hour after it was superseded a row goes;
a list that takes longer may miss a recipient that changed.)

Each query is driven by one index: of those that fit, the one with the fewest rows, counted as far as it takes to tell.
SQLite would have to guess, and walk millions of rows for a few. What stays slow is a filter of several fields of which
each has very many rows and all together few: seconds with millions of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.domain.outcome import Outcome
from core.domain.reply import Phase
from core.errors import NotFound
from core.store import cursor as cursors
from core.store.entry import Status
from core.store.epoch import from_database, optional_from_database, to_database
from core.store.record import address_key
from core.store.tables import ActRow, AttemptRow, MessageRow, RecipientRow

LIMIT = 500  # rows a page at most
_COUNTED = 2000  # rows of an index, to see which has fewest; a walk of so many takes a few milliseconds


@dataclass(frozen=True, slots=True)
class HistoryFilter:
    """Which rows; None: any. `since` inclusive, `until` exclusive, in seconds since the epoch."""

    status: Status | None = None
    recipient: str | None = None  # an address, or a domain with @ before it
    sender: str | None = None  # "" is the null sender
    directory: str | None = None
    account: str | None = None
    internet_message_id: str | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One recipient of one message, as it stands after its last attempt."""

    message_id: str
    internet_message_id: str | None
    directory: str
    sender: str
    recipient: str  # "" where none was known
    subject: str | None
    status: Status
    account: str | None
    server: str | None
    code: int | None
    enhanced_code: str | None
    text: str
    phase: Phase
    attempts: int
    size_bytes: int
    arrived_at: float
    at: float  # when this outcome was recorded
    possible_duplicate: bool


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """`next`: the cursor of the page behind it, None on the last."""

    items: tuple[HistoryRow, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class RecipientLine:
    """One recipient in a message's life."""

    recipient: str
    status: Status
    account: str | None
    code: int | None
    enhanced_code: str | None
    text: str
    phase: Phase
    at: float


@dataclass(frozen=True, slots=True)
class AttemptLine:
    """What one attempt meant for those recipients of it that fared alike."""

    number: int
    account: str
    server: str
    tls: str | None
    started_at: float
    ended_at: float
    phase: Phase
    outcome: Outcome
    code: int | None
    enhanced_code: str | None
    text: str
    recipients: tuple[str, ...]
    possible_duplicate: bool
    counted: bool  # False: the account's fault


@dataclass(frozen=True, slots=True)
class ActLine:
    """What an operator did with it."""

    at: float
    key: str
    act: str
    detail: str


@dataclass(frozen=True, slots=True)
class Life:
    """All that the history knows of a message."""

    message_id: str
    directory: str
    account: str | None
    sender: str
    internet_message_id: str | None
    subject: str | None
    size_bytes: int
    status: Status
    arrived_at: float
    first_attempt_at: float | None
    finished_at: float | None
    attempts_counted: int
    possible_duplicate: bool
    recipients: tuple[RecipientLine, ...]
    attempts: tuple[AttemptLine, ...]
    acts: tuple[ActLine, ...]


_COLUMNS = """
SELECT r.id, m.message_id, m.internet_message_id, r.directory, r.sender, r.address, m.subject, r.status, r.account,
 coalesce((SELECT a.server FROM attempt a WHERE a.message = r.message AND a.number = r.attempt LIMIT 1), m.server),
 r.code, r.enhanced_code, r.text, r.phase, m.attempts, m.size_bytes, m.arrived_at, m.possible_duplicate
FROM recipient r"""


def page(session: Session, where: HistoryFilter, *, limit: int = 50, cursor: str | None = None) -> HistoryPage:
    """At most `limit` rows (500). Raises InvalidSettings for a cursor that isn't one."""
    limit = max(1, min(limit, LIMIT))
    connection = session.connection()
    if cursor is None:
        newest = connection.exec_driver_sql("SELECT max(id) FROM recipient").scalar() or 0
        before = newest + 1
    else:
        newest, before = cursors.decode(cursor, 2)
    tests = _tests(where, newest, before)
    if where.internet_message_id is not None:
        index = "INDEXED BY ix_recipient_message_address"
    else:
        index = _index(connection, tests)
    text, values = _where(tests)
    # all parts of the text are ours; values are bound
    statement = f"{_COLUMNS} {index} JOIN message m ON m.id = r.message WHERE {text} ORDER BY r.id DESC LIMIT ?"
    rows = connection.exec_driver_sql(statement, (*values, limit + 1)).fetchall()
    more = len(rows) > limit
    rows = rows[:limit]
    return HistoryPage(tuple(map(_row, rows)), cursors.encode(newest, rows[-1][0]) if more else None)


class _Test(NamedTuple):
    """A condition, its values, and the index that finds what meets it."""

    text: str
    values: tuple[Any, ...]
    driver: str | None = None


def _tests(where: HistoryFilter, newest: int, before: int) -> list[_Test]:
    since = 0 if where.since is None else to_database(where.since)
    until = before if where.until is None else min(before, to_database(where.until))
    tests = [
        _Test("r.id >= ? AND r.id < ?", (since, until)),
        _Test("(r.superseded_by = 0 OR r.superseded_by > ?)", (newest,)),
    ]
    if where.recipient is not None and where.recipient.startswith("@"):
        tests.append(_Test("r.domain = ?", (where.recipient[1:].lower(),), "ix_recipient_domain"))
    elif where.recipient is not None:
        tests.append(_Test("r.address = ?", (address_key(where.recipient)[0],), "ix_recipient_address"))
    if where.status is Status.SENT:
        tests.append(_Test("r.status = ?", (where.status.value,)))
    elif where.status is not None:  # the second half lets SQLite see that the index has all of them
        tests.append(_Test("r.status = ? AND r.status <> 'sent'", (where.status.value,), "ix_recipient_status"))
    for column in ("sender", "account", "directory"):
        value = getattr(where, column)
        if value is not None:
            tests.append(_Test(f"r.{column} = ?", (value,), f"ix_recipient_{column}"))
    if where.internet_message_id is not None:
        text = "r.message IN (SELECT id FROM message WHERE internet_message_id = ?)"
        tests.append(_Test(text, (where.internet_message_id,)))
    return tests


def _where(tests: Sequence[_Test]) -> tuple[str, tuple[Any, ...]]:
    return " AND ".join(test.text for test in tests), tuple(value for test in tests for value in test.values)


def _index(connection: sa.Connection, tests: Sequence[_Test]) -> str:
    """The clause that names the index to go by; without one the table's own order."""
    fitting = [test for test in tests if test.driver is not None]
    if not fitting:
        return "NOT INDEXED"
    if len(fitting) == 1:
        return f"INDEXED BY {fitting[0].driver}"

    def rows(test: _Test) -> int:
        text, values = _where([test, tests[0]])
        statement = f"SELECT 1 FROM recipient r INDEXED BY {test.driver} WHERE {text} LIMIT ?"  # noqa: S608 - as above
        return len(connection.exec_driver_sql(statement, (*values, _COUNTED)).fetchall())

    return f"INDEXED BY {min(fitting, key=rows).driver}"


def _row(row: Sequence[Any]) -> HistoryRow:
    return HistoryRow(
        message_id=row[1],
        internet_message_id=row[2],
        directory=row[3],
        sender=row[4],
        recipient=row[5],
        subject=row[6],
        status=Status(row[7]),
        account=row[8],
        server=row[9],
        code=row[10],
        enhanced_code=row[11],
        text=row[12],
        phase=Phase(row[13]),
        attempts=row[14],
        size_bytes=row[15],
        arrived_at=from_database(row[16]),
        at=from_database(row[0]),
        possible_duplicate=bool(row[17]),
    )


def life(session: Session, message_id: str) -> Life:
    """Raises NotFound where the history knows nothing of it (it may still wait in its directory)."""
    message = session.exec(select(MessageRow).where(MessageRow.message_id == message_id)).one_or_none()
    if message is None or message.id is None:
        raise NotFound("message", message_id)
    recipients = tuple(
        RecipientLine(
            row.address,
            Status(row.status),
            row.account,
            row.code,
            row.enhanced_code,
            row.text,
            Phase(row.phase),
            from_database(row.id),
        )
        for row in session.exec(
            select(RecipientRow)
            .where(RecipientRow.message == message.id, RecipientRow.superseded_by == 0)
            .order_by(col(RecipientRow.id))
        )
    )
    return Life(
        message.message_id,
        message.directory,
        message.account,
        message.sender,
        message.internet_message_id,
        message.subject,
        message.size_bytes,
        Status(message.status),
        from_database(message.arrived_at),
        optional_from_database(message.first_attempt_at),
        optional_from_database(message.finished_at),
        message.attempts,
        message.possible_duplicate,
        recipients,
        _attempts(session, message, recipients),
        acts(session, message_id),
    )


def _attempts(session: Session, message: MessageRow, recipients: Sequence[RecipientLine]) -> tuple[AttemptLine, ...]:
    """The rows; and the only attempt of a mail that went out at once, which has none (record.py)."""
    query = (
        select(AttemptRow)
        .where(AttemptRow.message == message.id)
        .order_by(col(AttemptRow.number), col(AttemptRow.part))
    )
    lines = [
        AttemptLine(
            row.number,
            row.account,
            row.server,
            row.tls,
            from_database(row.started_at),
            from_database(row.ended_at),
            Phase(row.phase),
            Outcome(row.outcome),
            row.code,
            row.enhanced_code,
            row.text,
            tuple(row.recipients),
            row.possible_duplicate,
            row.counted,
        )
        for row in session.exec(query)
    ]
    sent = [line for line in recipients if line.status is Status.SENT]
    if message.server is not None and sent and not any(line.number == 1 for line in lines):
        started = message.first_attempt_at or message.updated_at
        first = AttemptLine(
            1,
            message.account or "",
            message.server,
            message.tls,
            from_database(started),
            from_database(message.finished_at or message.updated_at),
            sent[0].phase,
            Outcome.SENT,
            sent[0].code,
            sent[0].enhanced_code,
            sent[0].text,
            tuple(line.recipient for line in sent),
            possible_duplicate=False,
            counted=True,
        )
        lines.insert(0, first)
    return tuple(lines)


def acts(session: Session, message_id: str) -> tuple[ActLine, ...]:
    """What operators did with a message, oldest first; it need not be in the history."""
    rows = session.exec(select(ActRow).where(ActRow.message_id == message_id).order_by(col(ActRow.id)))
    return tuple(ActLine(from_database(row.at), row.key, row.act, row.detail) for row in rows)


def act(session: Session, message_id: str, act: str, *, key: str, now: float, detail: str = "") -> None:
    """Write down what an operator did with a message: retry, hold, release, delete, submit."""
    session.add(ActRow(message_id=message_id, at=to_database(now), key=key, act=act, detail=detail))
    session.flush()
