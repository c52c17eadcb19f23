"""Rows of a long history, written straight into the tables: nothing but SQL could make millions of them in a minute."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from core.store import engine

SPAN_DAYS = 80  # from the oldest to the newest; less than is kept by default
DIRECTORIES = 20  # a third of the mails come through the first
ACCOUNTS = 10  # a directory sends through one of them, and each hundredth mail through the next
SENDERS = 200
_CUSTOMERS = 400_000
_DOMAINS = 2_000
_BIG_DOMAIN = 0.3  # of all customers
_NEWSLETTER = 5  # recipients of each tenth mail
_BATCH = 50_000
_MESSAGES = "INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_RECIPIENTS = "INSERT INTO recipient VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ATTEMPTS = "INSERT INTO attempt VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COLUMNS = {
    "message": "id message_id directory account sender internet_message_id subject size_bytes status arrived_at "
    "first_attempt_at finished_at updated_at attempts possible_duplicate server tls",
    "recipient": "id message address domain sender directory account status attempt code enhanced_code text phase "
    "superseded_by",
    "attempt": "id message number part account server tls phase code enhanced_code text started_at ended_at outcome "
    "recipients possible_duplicate counted",
}


def directory_of(number: int) -> str:
    return f"shop-{number:02}"


def account_of(number: int) -> str:
    return f"way-{number % ACCOUNTS}"


def sender_of(number: int) -> str:
    return f"sender{number}@example.com"


def domain_of(customer: int) -> str:
    """A third have the same; the others share 2,000."""
    return "mail.example" if customer < _CUSTOMERS * _BIG_DOMAIN else f"d{customer % _DOMAINS}.example.org"


def address_of(customer: int) -> str:
    return f"customer{customer}@{domain_of(customer)}"


@dataclass(frozen=True, slots=True)
class History:
    """What one knows of the rows without asking."""

    rows: int
    newest: int  # microseconds since the epoch
    step: int  # microseconds from row to row

    def at(self, share: float) -> float:
        """The time of the row that lies so far in: 0 the oldest, 1 the newest. Seconds since the epoch."""
        return (self.newest - self.step * self.rows * (1 - share)) / 1e6

    def internet_message_id(self, message: int) -> str:
        return f"<{message}.history@example.com>"

    @property
    def messages(self) -> int:
        """How many there are, more or less."""
        return int(self.rows / (1 + (_NEWSLETTER - 1) / 10))


def customer(chance: random.Random) -> int:
    return chance.randrange(_CUSTOMERS)


def write(path: Path, rows: int) -> History:
    """A new database with so many recipients; appears only when it is whole."""
    unfinished = path.with_suffix(".new")
    for stale in path.parent.glob(unfinished.name + "*"):
        stale.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    engine.prepare(str(unfinished), create=True)
    engine.migrate(str(unfinished))
    history = History(rows, int(time.time() * 1e6), SPAN_DAYS * 86_400_000_000 // rows)
    with closing(sqlite3.connect(unfinished, isolation_level=None)) as database:
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-524288", "temp_store=MEMORY"):
            database.execute(f"PRAGMA {pragma}")
        for table, columns in _COLUMNS.items():
            present = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            if present != columns.split():
                raise RuntimeError(f"the table {table} has changed; so must this module: {present}")
        indexes = database.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL "
            "AND tbl_name IN ('message', 'recipient', 'attempt')"
        ).fetchall()
        for name, _ in indexes:
            database.execute(f"DROP INDEX {name}")
        database.execute("BEGIN")
        for messages, recipients, attempts in _batches(history):
            database.executemany(_MESSAGES, messages)
            database.executemany(_RECIPIENTS, recipients)
            database.executemany(_ATTEMPTS, attempts)
        database.execute("COMMIT")
        for _, statement in indexes:
            database.execute(statement)
        database.execute("PRAGMA journal_mode=WAL")
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.rename(path)
    return history


_Rows = list[tuple[object, ...]]


def _batches(history: History) -> Iterator[tuple[_Rows, _Rows, _Rows]]:
    """Of the three tables."""
    chance = random.Random(1)
    messages: _Rows = []
    recipients: _Rows = []
    attempts: _Rows = []
    message, attempt, row = 0, 0, 0
    at = history.newest - history.step * history.rows
    while row < history.rows:
        message += 1
        place = 0 if chance.random() < 0.33 else chance.randrange(DIRECTORIES)
        directory, account = directory_of(place), account_of(place if chance.random() < 0.99 else place + 1)
        sender = sender_of((place * 10 + chance.randrange(10)) % SENDERS)
        luck = chance.random()
        status = "sent" if luck < 0.98 else "failed" if luck < 0.995 else "unknown" if luck < 0.997 else "deferred"
        sent = status == "sent"
        for _ in range(min(_NEWSLETTER if message % 10 == 0 else 1, history.rows - row)):
            row += 1
            at += history.step
            who = chance.randrange(_CUSTOMERS)
            recipients.append(
                (at, message, f"{row if _taken(recipients, message, who) else 'customer'}{who}@{domain_of(who)}",
                 domain_of(who), sender, directory, account, status, 1, 250 if sent else 550,
                 "2.0.0" if sent else "5.1.1", "Ok: queued as 4ZQx1k2Wz" if sent else "no such user here", "dot", 0)
            )  # fmt: skip
        messages.append(
            (message, f"{directory}.bWFpbC0{message:09}.{message & 0xFFFFFFFF:08x}", directory, account, sender,
             history.internet_message_id(message), f"Your order {message}", 4096, status, at - 900_000, at - 100_000,
             at, at, 1, 0, "smtp.example.net:587" if sent else None, "TLSv1.3" if sent else None)
        )  # fmt: skip
        if not sent:
            attempt += 1
            attempts.append(
                (attempt, message, 1, 0, account, "smtp.example.net:587", "TLSv1.3", "rcpt", 550, "5.1.1",
                 "no such user here", at - 100_000, at, status, "[]", 0, 1)
            )  # fmt: skip
        if len(messages) >= _BATCH or row == history.rows:
            yield messages, recipients, attempts
            messages, recipients, attempts = [], [], []


def _taken(recipients: _Rows, message: int, who: int) -> bool:
    """Whether the message has that recipient already: an address counts once in each."""
    ending = f"customer{who}@{domain_of(who)}"
    for row in reversed(recipients):
        if row[1] != message:
            return False
        if row[2] == ending:
            return True
    return False
