"""Old history goes, in batches so small that no outcome waits long for one.

Rows of recipients go by their own age (their id is a time, so no index is needed), a message with the last of them.
The audit and the operators' acts are kept as long as the history. Superseded rows (tables.py) go after an hour.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sqlmodel import Session

from core.domain.clock import Clock
from core.store import idempotency, outside_tokens, settings, usage
from core.store.epoch import to_database
from core.store.store import Store

BATCH_SECONDS = 0.008  # that one batch may keep the ledger; its last slice goes some milliseconds beyond
_PAUSE_SECONDS = 0.02  # between two: of the ledger's time, half at most is ours
SUPERSEDED_KEPT_SECONDS = 3600.0
_DAY_SECONDS = 86_400.0
_SLICE = 25  # rows between two looks at the time; their pages may have to come from the disk

# Few statements and single rows, since with each of them the interpreter is let go of, and must be waited for again.
_OLDEST = """
SELECT count(*), max(id), json_group_array(message) FROM
 (SELECT id, message FROM recipient WHERE id < ? ORDER BY id LIMIT ?)"""
_LONELY = """
DELETE FROM message WHERE id IN (SELECT value FROM json_each(?))
 AND NOT EXISTS (SELECT 1 FROM recipient WHERE message = message.id)"""
_SUPERSEDED = """
DELETE FROM recipient WHERE id IN
 (SELECT id FROM recipient INDEXED BY ix_recipient_superseded_by
  WHERE superseded_by > 0 AND superseded_by < ? ORDER BY superseded_by LIMIT ?)"""


async def run(store: Store, clock: Clock) -> int:
    """Delete all that is too old by the setting `history_days`; how many rows. Lets outcomes in between batches."""
    now = clock.now()
    days = await store.read(lambda session: settings.get(session, "history_days"))
    deleted = 0
    sweeps: list[Callable[[Session], int]] = [
        lambda session: superseded(session, before=now - SUPERSEDED_KEPT_SECONDS),
        lambda session: idempotency.forget_old(session, now=now),
        lambda session: usage.forget_old(session, now=now),
        lambda session: outside_tokens.forget_old(session, now=now),
    ]
    if days is not None:
        before = now - days * _DAY_SECONDS
        sweeps.append(lambda session: history(session, before=before))
        sweeps.append(lambda session: acts_and_audit(session, before=before))
    for sweep in sweeps:
        while count := await store.write(sweep):
            deleted += count
            await asyncio.sleep(_PAUSE_SECONDS)
    return deleted


def history(session: Session, *, before: float, budget_seconds: float = BATCH_SECONDS) -> int:
    """One batch of recipients recorded before that time, and of messages with none left; how many rows. 0: done."""

    def some() -> int:
        one = session.connection().exec_driver_sql
        count, last, messages = one(_OLDEST, (to_database(before), _SLICE)).one()
        if not count:
            return 0
        one("DELETE FROM recipient WHERE id <= ?", (last,))
        return int(count) + one(_LONELY, (messages,)).rowcount

    return _within(some, budget_seconds)


def superseded(session: Session, *, before: float, budget_seconds: float = BATCH_SECONDS) -> int:
    """One batch of rows that were superseded before that time."""

    def some() -> int:
        # the row that superseded it has its time as its id
        return session.connection().exec_driver_sql(_SUPERSEDED, (to_database(before), _SLICE)).rowcount

    return _within(some, budget_seconds)


def acts_and_audit(session: Session, *, before: float, budget_seconds: float = BATCH_SECONDS) -> int:
    """One batch of what operators did before that time."""

    def some() -> int:
        one = session.connection().exec_driver_sql
        count = 0
        for table in ("act", "audit"):
            # the table is one of these two
            statement = f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE at < ? LIMIT ?)"  # noqa: S608
            count += one(statement, (to_database(before), _SLICE)).rowcount
        return count

    return _within(some, budget_seconds)


def _within(some: Callable[[], int], budget_seconds: float) -> int:
    """Again and again until there is nothing or the time is up."""
    end = time.monotonic() + budget_seconds
    total = 0
    while count := some():
        total += count
        if time.monotonic() >= end:
            break
    return total
