"""Entries into rows: the SQL of one group commit.

Told twice, the same entry gives the same rows: messages are found by message_id, attempts by number; a recipient gets a
new row (tables.py) only for an outcome that its newest row doesn't tell already, and what was sent stays sent.
"""

from __future__ import annotations

import functools
import itertools
import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from core.domain.outcome import Attempt, Outcome, RecipientOutcome
from core.domain.reply import Phase
from core.store.entry import Entry, Status
from core.store.epoch import optional_to_database, to_database
from core.store.usage import COUNT, bucket_of

SUBJECT_LIMIT = 200  # characters
TEXT_LIMIT = 1000  # characters of a server's words
_ROWS_AT_ONCE = (100, 10, 1)
_NAME_LIMIT = 998  # characters of an internet_message_id: a header line's

_INSERT_MESSAGE = """
INSERT INTO message (id, message_id, directory, account, sender, internet_message_id, subject, size_bytes, status,
 arrived_at, first_attempt_at, finished_at, updated_at, attempts, possible_duplicate, server, tls)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_UPDATE_MESSAGE = """
UPDATE message SET account = coalesce(?, account), internet_message_id = coalesce(internet_message_id, ?),
 subject = coalesce(subject, ?), status = ?, first_attempt_at = coalesce(first_attempt_at, ?),
 finished_at = CASE WHEN ? THEN coalesce(?, finished_at, updated_at) END,
 updated_at = max(updated_at, ?), attempts = ?,
 possible_duplicate = max(possible_duplicate, ?), server = coalesce(?, server), tls = coalesce(?, tls)
WHERE id = ?"""
_INSERT_RECIPIENT = """
INSERT INTO recipient (id, message, address, domain, sender, directory, account, status, attempt, code, enhanced_code,
 text, phase, superseded_by)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)"""
_UPSERT_ATTEMPT = """
INSERT INTO attempt (message, number, part, account, server, tls, phase, code, enhanced_code, text, started_at,
 ended_at, outcome, recipients, possible_duplicate, counted)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (message, number, part) DO UPDATE SET account = excluded.account, server = excluded.server,
 tls = excluded.tls,
 phase = excluded.phase, code = excluded.code, enhanced_code = excluded.enhanced_code, text = excluded.text,
 started_at = excluded.started_at, ended_at = excluded.ended_at, outcome = excluded.outcome,
 recipients = excluded.recipients, possible_duplicate = excluded.possible_duplicate, counted = excluded.counted"""
_KNOWN = "SELECT message_id, id, server IS NOT NULL FROM message WHERE message_id IN (SELECT value FROM json_each(?))"
_TOLD = """
SELECT DISTINCT message, number, started_at FROM attempt WHERE message IN (SELECT value FROM json_each(?))"""
_NEWEST = """
SELECT message, address, id, status, attempt, code, enhanced_code, text, account FROM recipient
WHERE message IN (SELECT value FROM json_each(?)) AND superseded_by = 0"""


class _News(NamedTuple):
    """What is to be told of one recipient."""

    status: str
    attempt: int
    code: int | None
    enhanced_code: str | None
    text: str
    account: str | None
    phase: str


class _Known(NamedTuple):
    """The newest row of one recipient."""

    id: int
    status: str
    attempt: int
    code: int | None
    enhanced_code: str | None
    text: str
    account: str | None


def address_key(mailbox: str) -> tuple[str, str]:
    """A mailbox as the history keeps it, its domain in lower case, and that domain."""
    local, at, domain = mailbox.rpartition("@")
    if not at:
        return mailbox, ""
    lower = domain.lower()
    return (mailbox if lower == domain else f"{local}@{lower}"), lower


def record(connection: sa.Connection, entries: Sequence[Entry], now: float, *, clean: bool = False) -> None:
    """Write the rows of these entries; the caller's transaction. `now`: seconds since the epoch.

    Raises UnicodeEncodeError for a lone surrogate (from a file's or server's octets), with part of the rows written:
    roll back and come again with `clean`, which is slower and puts question marks in their place.
    """
    rest = entries
    while rest:
        group, rest = _without_repeats(rest)
        _Group(connection, now, _encodable if clean else _as_is).write(group)


def _without_repeats(entries: Sequence[Entry]) -> tuple[Sequence[Entry], Sequence[Entry]]:
    """The entries up to the first that is of a message told of before, and those from there on."""
    if len({entry.message_id for entry in entries}) == len(entries):
        return entries, ()
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        if entry.message_id in seen:
            return entries[:index], entries[index:]
        seen.add(entry.message_id)
    return entries, ()


def _as_is(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return row


def _encodable(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for v in row)


class _Group:
    """Rows of one group, gathered and then written with one statement a table."""

    def __init__(self, connection: sa.Connection, now: float, clean: Callable[[tuple[Any, ...]], tuple[Any, ...]]):
        driver = connection.connection.driver_connection  # SQLAlchemy's way to it costs more than the statement
        assert isinstance(driver, sqlite3.Connection)
        self._driver = driver
        self._now = to_database(now)
        self._clean = clean
        self._messages: list[tuple[Any, ...]] = []
        self._updates: list[tuple[Any, ...]] = []
        self._recipients: list[tuple[Any, ...]] = []
        self._superseded: list[tuple[Any, ...]] = []
        self._attempts: list[tuple[Any, ...]] = []
        self._usage: dict[tuple[str, int], list[int]] = {}

    def write(self, entries: Sequence[Entry]) -> None:
        one = self._driver.execute
        names = json.dumps([self._clean((entry.message_id,))[0] for entry in entries])
        known = {name: (number, bool(folded)) for name, number, folded in one(_KNOWN, (names,))}
        newest: dict[int, dict[str, _Known]] = {}
        told: dict[int, dict[int, int]] = {}
        if known:
            numbers = json.dumps([number for number, _ in known.values()])
            for message, address, *columns in one(_NEWEST, (numbers,)):
                newest.setdefault(message, {})[address] = _Known(*columns)
            for message, attempt, started_at in one(_TOLD, (numbers,)):
                told.setdefault(message, {})[started_at] = attempt
        next_message = _highest(one("SELECT max(id) FROM message")) + 1
        self._next_recipient = max(self._now, _highest(one("SELECT max(id) FROM recipient")) + 1)
        for entry in entries:
            found = known.get(self._clean((entry.message_id,))[0])
            if found is None:
                self._new_message(next_message, entry)
                self._count(entry.attempts)
                self._tell_recipients(next_message, 0, entry, {})
                next_message += 1
            else:
                number, folded = found
                base = _base(entry, told.get(number, {}), folded=folded)
                self._changed_message(number, base, entry)
                again = max(told.get(number, {}).values(), default=int(folded)) - base
                self._count(entry.attempts[max(again, 0) :])
                self._tell_recipients(number, base, entry, newest.get(number, {}))
        self._insert(_INSERT_MESSAGE, self._messages)
        self._many(_UPDATE_MESSAGE, self._updates)
        self._many("UPDATE recipient SET superseded_by = ? WHERE id = ?", self._superseded)
        self._insert(_INSERT_RECIPIENT, self._recipients)
        self._many(_UPSERT_ATTEMPT, self._attempts)
        self._many(COUNT, [(*place, *counts) for place, counts in self._usage.items()])

    def _many(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        rows = [self._clean(row) for row in rows] if self._clean is not _as_is else rows
        if rows:
            self._driver.executemany(statement, rows)

    def _insert(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        """Many rows a call: at each, the interpreter is let go of, and the event loop that took it waited for."""
        rows = [self._clean(row) for row in rows] if self._clean is not _as_is else rows
        done = 0
        for size in _ROWS_AT_ONCE:
            while len(rows) - done >= size:
                values = tuple(itertools.chain.from_iterable(rows[done : done + size]))
                self._driver.execute(_for_rows(statement, size), values)
                done += size

    def _new_message(self, number: int, entry: Entry) -> None:
        last = entry.attempts[-1] if entry.attempts else None
        folded = self._tell_attempts(number, 0, entry)
        self._messages.append(
            (
                number,
                entry.message_id,
                entry.directory,
                last.account if last else None,
                entry.sender,
                _cut(entry.internet_message_id, _NAME_LIMIT),
                _cut(entry.subject, SUBJECT_LIMIT),
                entry.size_bytes,
                entry.status._value_,
                to_database(entry.arrived_at),
                _first_attempt(entry),
                self._finished(entry),
                to_database(last.ended_at) if last else self._now,
                entry.attempts_counted,
                entry.possible_duplicate,
                folded.server if folded else None,
                folded.tls if folded else None,
            )
        )

    def _changed_message(self, number: int, base: int, entry: Entry) -> None:
        last = entry.attempts[-1] if entry.attempts else None
        folded = self._tell_attempts(number, base, entry)
        self._updates.append(
            (
                last.account if last else None,
                _cut(entry.internet_message_id, _NAME_LIMIT),
                _cut(entry.subject, SUBJECT_LIMIT),
                entry.status.value,
                _first_attempt(entry),
                entry.finished,
                self._finished(entry),
                to_database(last.ended_at) if last else 0,
                entry.attempts_counted,
                entry.possible_duplicate,
                folded.server if folded else None,
                folded.tls if folded else None,
                number,
            )
        )

    def _count(self, attempts: Sequence[Attempt]) -> None:
        """What accounts sent, or may have; of attempts that were not told before."""
        for attempt in attempts:
            recipients = attempt.taken
            if recipients and attempt.account:
                place = attempt.account, bucket_of(attempt.ended_at)
                counts = self._usage.get(place)
                if counts is None:
                    self._usage[place] = [1, recipients]
                else:
                    counts[0] += 1
                    counts[1] += recipients

    def _finished(self, entry: Entry) -> int | None:
        if not entry.finished:
            return None
        return to_database(entry.attempts[-1].ended_at) if entry.attempts else self._now

    def _tell_attempts(self, message: int, base: int, entry: Entry) -> Attempt | None:
        """Rows of the attempts, but for the only one of a mail that went out at once: that is given back."""
        if len(entry.attempts) == 1 and base == 0:
            only = entry.attempts[0]
            if not only.possible_duplicate and _all_sent(only):
                return only
        for number, attempt in enumerate(entry.attempts, base + 1):
            self._attempts.extend(_attempt_rows(message, number, attempt))
        return None

    def _tell_recipients(self, message: int, base: int, entry: Entry, newest: dict[str, _Known]) -> None:
        news = _news(entry, base)
        if not news and not newest:  # so that the history shows it at all
            news = {"": _of_message(entry, base)}
        elif not news and entry.finished:  # it names nobody, so it speaks of all
            news = dict.fromkeys(newest, _of_message(entry, base))
        if self._clean is not _as_is:  # to be compared with what is there
            news = {self._clean((mailbox,))[0]: _News(*self._clean(new)) for mailbox, new in news.items()}
        for mailbox, new in news.items():
            address, domain = address_key(mailbox)
            row = self._next_recipient
            old = newest.get(address)
            if old is not None:
                if _tells_nothing_new(old, new):
                    continue
                self._superseded.append((row, old.id))
            self._next_recipient = row + 1
            self._recipients.append(
                (
                    row,
                    message,
                    address,
                    domain,
                    entry.sender,
                    entry.directory,
                    new.account,
                    new.status,
                    new.attempt,
                    new.code,
                    new.enhanced_code,
                    new.text,
                    new.phase,
                )
            )
        unnamed = newest.get("")
        if unnamed is not None and news and "" not in news:  # its recipients are known by now
            self._superseded.append((self._next_recipient - 1, unnamed.id))


def _news(entry: Entry, base: int) -> dict[str, _News]:
    """What this entry tells of each recipient, the last word of each."""
    news: dict[str, _News] = {}
    for number, tried in enumerate(entry.attempts, base + 1):
        for outcome in tried.outcomes:
            news[outcome.recipient] = _said(outcome, number, tried.account)
    for outcome in entry.outcomes:
        before = news.get(outcome.recipient)
        attempt, by = (before.attempt, before.account) if before else (base + len(entry.attempts), None)
        news[outcome.recipient] = _said(outcome, attempt, by)
    for mailbox in entry.rest:
        if mailbox not in news:
            news[mailbox] = _of_message(entry, base)
    return news


def _of_message(entry: Entry, base: int) -> _News:
    """What is said of the message as a whole, as news of a recipient."""
    attempt, reason = base + len(entry.attempts), entry.reason[:TEXT_LIMIT]
    return _News(entry.status.value, attempt, entry.code, entry.enhanced_code, reason, None, "local")


def _said(outcome: RecipientOutcome, attempt: int, account: str | None) -> _News:
    return _News(
        outcome.outcome._value_,  # in Python 3.11 `value` takes ten times as long
        attempt,
        outcome.code,
        outcome.enhanced_code,
        outcome.text[:TEXT_LIMIT],
        account,
        outcome.phase._value_,
    )


def _tells_nothing_new(old: _Known, new: _News) -> bool:
    if old.status == Status.SENT.value:
        return True
    return old[1:6] == new[:5] and (new.account is None or old.account == new.account)


def _all_sent(attempt: Attempt) -> bool:
    return all(outcome.outcome is Outcome.SENT for outcome in attempt.outcomes)


def _first_attempt(entry: Entry) -> int | None:
    if entry.first_attempt_at is None and entry.attempts:
        return to_database(entry.attempts[0].started_at)
    return optional_to_database(entry.first_attempt_at)


def _base(entry: Entry, told: dict[int, int], *, folded: bool) -> int:
    """The number of the attempt before the entry's first; `told`: those that have rows, by the time they started."""
    if not entry.attempts:
        return max(told.values(), default=int(folded))
    again = told.get(to_database(entry.attempts[0].started_at))
    if again is None and folded and not told:
        return 0 if len(entry.attempts) == 1 and _all_sent(entry.attempts[0]) else 1
    return again - 1 if again is not None else max(told.values(), default=0)


def _attempt_rows(message: int, number: int, attempt: Attempt) -> list[tuple[Any, ...]]:
    """Rows of an attempt, one for recipients that fared alike; of their texts the first."""
    parts: dict[tuple[Any, ...], tuple[str, list[str]]] = {}
    for outcome in attempt.outcomes:
        alike = (outcome.outcome.value, outcome.phase.value, outcome.code, outcome.enhanced_code)
        parts.setdefault(alike, (outcome.text, []))[1].append(outcome.recipient)
    fault = attempt.fault
    if not parts:  # nobody was named yet: the account's fault
        code = fault.reply.code if fault and fault.reply else None
        enhanced = fault.reply.enhanced_code if fault and fault.reply else None
        phase = fault.phase.value if fault else Phase.LOCAL.value
        parts[(Status.DEFERRED.value, phase, code, enhanced)] = (fault.detail if fault else "", [])
    return [
        (
            message,
            number,
            part,
            attempt.account,
            attempt.server,
            attempt.tls,
            phase,
            code,
            enhanced,
            text[:TEXT_LIMIT],
            to_database(attempt.started_at),
            to_database(attempt.ended_at),
            outcome,
            json.dumps(recipients),
            attempt.possible_duplicate,
            fault is None,
        )
        for part, ((outcome, phase, code, enhanced), (text, recipients)) in enumerate(parts.items())
    ]


@functools.cache
def _for_rows(statement: str, rows: int) -> str:
    """The insertion of one row as that of so many; few sizes, so that SQLite has each of them ready."""
    head, values, row = statement.partition("VALUES ")
    return head + values + ",".join([row] * rows)


def _highest(found: sqlite3.Cursor) -> int:
    (highest,) = found.fetchone()
    return highest or 0


def _cut(text: str | None, limit: int) -> str | None:
    return None if text is None else text[:limit]
