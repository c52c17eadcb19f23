"""A real SQLite file, migrated by Alembic once and copied for each test; entries for the ledger; a clock to move."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from core.domain.message import MessageIdentity
from core.domain.outcome import AccountFault, Attempt, Blame, Outcome, RecipientOutcome
from core.domain.reply import Phase
from core.store import engine
from core.store.entry import Entry, Status
from core.store.store import DATABASE_FILE, Store

START = 1_800_000_000.0


class MovableClock:
    """Stands still until it is moved."""

    def __init__(self, now: float = START) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def move(self, seconds: float) -> None:
        self.time += seconds


@functools.cache
def template() -> Path:
    """A migrated database without rows; made once a process."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "template.sqlite3")
        engine.prepare(path, create=True)
        engine.migrate(path)
        content = Path(path).read_bytes()
    kept = Path(tempfile.mkdtemp(prefix="mpu-test-")) / "template.sqlite3"
    kept.write_bytes(content)
    atexit.register(shutil.rmtree, kept.parent, ignore_errors=True)
    return kept


def database(folder: Path) -> Path:
    """A migrated database in this folder, where Store.open finds it."""
    path = folder / DATABASE_FILE
    shutil.copyfile(template(), path)
    path.chmod(0o600)
    return path


def open_store(folder: Path, clock: MovableClock | None = None, secret_key: str | None = None) -> Store:
    """A store on a migrated database in this folder; one that is there already is opened."""
    if not (folder / DATABASE_FILE).exists():
        database(folder)
    return Store.open(str(folder), clock=clock or MovableClock(), create=False, secret_key=secret_key)


def outcome(
    recipient: str, what: Outcome = Outcome.SENT, code: int | None = 250, text: str = "2.0.0 queued"
) -> RecipientOutcome:
    blame = None if what in (Outcome.SENT, Outcome.UNKNOWN) else Blame.RECIPIENT
    return RecipientOutcome(recipient, what, Phase.DOT if what is Outcome.SENT else Phase.RCPT, blame, code, None, text)


def attempt(
    number: int,
    outcomes: Sequence[RecipientOutcome],
    *,
    at: float | None = None,
    account: str = "main",
    fault: AccountFault | None = None,
) -> Attempt:
    """The `number`th: a second after the one before, unless `at` says when."""
    server = "smtp.example.com:587"
    at = START + number - 1 if at is None else at
    return Attempt(account, server, "TLSv1.3", at, at + 1, tuple(outcomes), fault)


def message_id(name: str, directory: str = "web") -> str:
    return MessageIdentity(directory, name.encode(), 1, 1000).id


def entry(
    name: str = "a.eml",
    recipients: Sequence[str] = ("anna@example.com",),
    *,
    what: Outcome = Outcome.SENT,
    number: int = 1,
    at: float = START,
    directory: str = "web",
    sender: str = "shop@example.net",
    **fields: object,
) -> Entry:
    """One message of which one attempt meant the same for all recipients."""
    code = {Outcome.SENT: 250, Outcome.DEFERRED: 450, Outcome.FAILED: 550, Outcome.UNKNOWN: None}[what]
    facts: dict[str, object] = {
        "message_id": message_id(name, directory),
        "directory": directory,
        "sender": sender,
        "size_bytes": 1000,
        "arrived_at": START - 5,
        "status": Status(what.value),
        "finished": what in (Outcome.SENT, Outcome.FAILED),
        "internet_message_id": f"<{name}@example.net>",
        "subject": "Your order",
        "attempts": (attempt(number, [outcome(r, what, code, f"{code} said") for r in recipients], at=at),),
        "attempts_counted": number,
    }
    return Entry(**(facts | fields))  # type: ignore[arg-type] # a table of overrides
