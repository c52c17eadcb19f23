"""The history: what was attempted and what came of it, a row a recipient, newest first.

A list shows the history as it was when its first page was asked for, by the numbering of tables.py: the cursor holds
the newest row of that moment and the last row shown. Rows that came later aren't in it, and of a recipient that changed
meanwhile it shows the row that stood then; so each appears exactly once. (An hour after it was superseded a row goes;
a list that takes longer may miss a recipient that changed.)

A page may have fewer rows than were asked for, even none, while there are more: what several filters leave of a long
history can take long to find (history_search.py). Its cursor goes on where the search ended. The last has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.domain.outcome import Outcome
from core.domain.reply import Phase
from core.errors import NotFound
from core.store import cursor as cursors
from core.store.entry import Entry, Status
from core.store.epoch import from_database, optional_from_database, to_database
from core.store.history_search import BUDGET_SECONDS, Condition, Found, find, look_at
from core.store.record import address_key, record
from core.store.tables import ActRow, AttemptRow, MessageRow, RecipientRow

LIMIT = 500  # rows a page at most
_SORTED = 2000  # rows of one internet_message_id, which no index has in order
_IDS_OF_MAIL = """
SELECT r.id FROM message m INDEXED BY ix_message_internet_message_id
CROSS JOIN recipient r INDEXED BY ix_recipient_message_address ON r.message = m.id
WHERE m.internet_message_id = ? LIMIT ?"""


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
    """At most as many as asked for. `next`: the cursor of the page behind it, None on the last."""

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


def page(
    session: Session,
    where: HistoryFilter,
    *,
    limit: int = 50,
    cursor: str | None = None,
    budget_seconds: float = BUDGET_SECONDS,
) -> HistoryPage:
    """At most `limit` rows (500). Raises InvalidSettings for a cursor that isn't one."""
    limit = max(1, min(limit, LIMIT))
    connection = session.connection()
    if cursor is None:
        newest = connection.exec_driver_sql("SELECT max(id) FROM recipient").scalar() or 0
        before = newest + 1
    else:
        newest, before = cursors.decode(cursor, 2)
    since = 0 if where.since is None else to_database(where.since)
    if where.until is not None:
        before = min(before, to_database(where.until))
    tests = _tests(where, newest)
    ids = _of_mail(connection, where, since, before)
    if ids is not None:
        found = Found(look_at(connection, tests, ids), None)
    else:
        found = find(connection, tests, since=since, before=before, wanted=limit + 1, budget_seconds=budget_seconds)
    rows, down_to = found.rows[:limit], found.down_to
    if len(found.rows) > limit:
        down_to = rows[-1][0]
    return HistoryPage(tuple(map(_row, rows)), None if down_to is None else cursors.encode(newest, down_to))


def _tests(where: HistoryFilter, newest: int) -> list[Condition]:
    tests = [Condition("(r.superseded_by = 0 OR r.superseded_by > ?)", (newest,))]
    if where.recipient is not None and where.recipient.startswith("@"):
        tests.append(Condition("r.domain = ?", (where.recipient[1:].lower(),), "ix_recipient_domain"))
    elif where.recipient is not None:
        tests.append(Condition("r.address = ?", (address_key(where.recipient)[0],), "ix_recipient_address"))
    if where.status is Status.SENT:
        tests.append(Condition("r.status = ?", (where.status.value,)))
    elif where.status is not None:  # the second half lets SQLite see that the index has all of them
        tests.append(Condition("r.status = ? AND r.status <> 'sent'", (where.status.value,), "ix_recipient_status"))
    for column in ("sender", "account", "directory"):
        value = getattr(where, column)
        if value is not None:
            tests.append(Condition(f"r.{column} = ?", (value,), f"ix_recipient_{column}"))
    if where.internet_message_id is not None:
        tests.append(Condition("m.internet_message_id = ?", (where.internet_message_id,)))
    return tests


def _of_mail(connection: sa.Connection, where: HistoryFilter, since: int, before: int) -> list[int] | None:
    """Ids of the rows with this internet_message_id; None where they are too many to sort, and so easily met."""
    if where.internet_message_id is None:
        return None
    ids = list(connection.exec_driver_sql(_IDS_OF_MAIL, (where.internet_message_id, _SORTED + 1)).scalars())
    if len(ids) > _SORTED:
        return None
    return [one for one in ids if since <= one < before]


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


def knows(session: Session, message_id: str) -> bool:
    """Whether anything was recorded of the message."""
    return session.exec(select(MessageRow.id).where(MessageRow.message_id == message_id)).first() is not None


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


def act(session: Session, message_id: str, act: str, *, key: str, now: float, detail: str = "") -> int:
    """Write down what an operator does with a message: retry, hold, release, delete. The row's id, for `not_done`."""
    row = ActRow(message_id=message_id, at=to_database(now), key=key, act=act, detail=detail)
    session.add(row)
    session.flush()
    assert row.id is not None
    return row.id


def not_done(session: Session, act_id: int, why: str) -> None:
    """An act that was written down could not be carried out."""
    row = session.get(ActRow, act_id)
    if row is not None:
        row.detail = f"not done: {why}"
        session.add(row)
        session.flush()


def tell(session: Session, entry: Entry, *, now: float) -> None:
    """Write down what becomes of a message, in the transaction of the act that does it."""
    record(session.connection(), [entry], now, clean=True)
