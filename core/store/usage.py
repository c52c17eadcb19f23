"""What accounts sent in the last 24 hours, in buckets of 5 minutes: what their limits go by after a restart.

Counted where outcomes are recorded, in the same transaction (record.py): an outcome that is told twice counts once, and
neither a short `history_days` nor millions of rows matter to it. Buckets are of the wall clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Session, col, delete, select

from core.store.epoch import from_database, to_database
from core.store.tables import AccountUsageRow

BUCKET_SECONDS = 300.0
DAY_SECONDS = 86_400.0

_BUCKET = 300_000_000  # microseconds

COUNT = """
INSERT INTO account_usage (account, since, messages, recipients) VALUES (?, ?, ?, ?)
ON CONFLICT (account, since) DO UPDATE SET messages = messages + excluded.messages,
 recipients = recipients + excluded.recipients"""


@dataclass(frozen=True, slots=True)
class Used:
    """So much went out by `until`, in seconds since the epoch, and in no more than BUCKET_SECONDS before."""

    until: float
    messages: int
    recipients: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one account. Messages are transactions that its server took, or may have taken."""

    messages_last_hour: int = 0
    messages_last_day: int = 0
    recipients_last_day: int = 0


def bucket_of(seconds: float) -> int:
    """The bucket of a time, in seconds since the epoch, as its column has it."""
    return to_database(seconds) // _BUCKET * _BUCKET


def last_day(session: Session, account: str, *, now: float) -> list[Used]:
    """The account's buckets that reach into the last 24 hours. None ends in the future: who set the clock back?"""
    rows = session.exec(
        select(AccountUsageRow)
        .where(AccountUsageRow.account == account, AccountUsageRow.since > to_database(now - DAY_SECONDS) - _BUCKET)
        .order_by(col(AccountUsageRow.since))
    )
    return [Used(min(from_database(r.since + _BUCKET), now), r.messages, r.recipients) for r in rows]


def of(session: Session, account: str, *, now: float) -> Usage:
    """What the account sent; its oldest bucket counts as a whole."""
    used = last_day(session, account, now=now)
    return Usage(
        sum(u.messages for u in used if u.until > now - 3600.0),
        sum(u.messages for u in used),
        sum(u.recipients for u in used),
    )


def count(session: Session, account: str, *, at: float, messages: int, recipients: int) -> None:
    """What went out without a message of a directory."""
    session.connection().exec_driver_sql(COUNT, (account, bucket_of(at), messages, recipients))


def bring_back(session: Session, *, now: float) -> None:
    """Buckets of a clock that was ahead count as of now; else they would count at each start until their time comes."""
    ahead = session.exec(select(AccountUsageRow).where(AccountUsageRow.since > bucket_of(now))).all()
    for row in ahead:
        count(session, row.account, at=now, messages=row.messages, recipients=row.recipients)
        session.delete(row)


def forget_old(session: Session, *, now: float) -> int:
    """Delete what no window reaches any more; how many rows."""
    old = col(AccountUsageRow.since) < bucket_of(now - DAY_SECONDS - 2 * BUCKET_SECONDS)
    return session.exec(delete(AccountUsageRow).where(old)).rowcount
