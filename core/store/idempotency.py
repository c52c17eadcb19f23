"""Idempotency-Keys of submitted mails: kept 24 hours, a key of its own for each API key."""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Session, col, delete

from core.store.epoch import from_database, to_database
from core.store.tables import IdempotencyRow

KEPT_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Use:
    """How a key was used. `message_id`: of the mail that is written with it. `created_at`: seconds since the epoch."""

    key: str
    body_hash: str
    message_id: str
    created_at: float
    written: bool = False  # True: the mail was put into its directory; False: that isn't known


def find(session: Session, key: str, *, api_key: int, now: float) -> Use | None:
    """Its use in the last 24 hours."""
    row = session.get(IdempotencyRow, (api_key, key))
    if row is None or row.created_at <= to_database(now - KEPT_SECONDS):
        return None
    return Use(row.key, row.body_hash, row.message_id, from_database(row.created_at), row.written)


def reserve(session: Session, key: str, *, api_key: int, body_hash: str, message_id: str, now: float) -> None:
    """Before the mail is put into its directory. Takes the place of a use that is over, or of which nothing came."""
    row = session.get(IdempotencyRow, (api_key, key)) or IdempotencyRow(
        api_key=api_key, key=key, body_hash="", message_id="", created_at=0, written=False
    )
    row.body_hash, row.message_id, row.created_at, row.written = body_hash, message_id, to_database(now), False
    session.add(row)
    session.flush()


def written(session: Session, key: str, *, api_key: int, message_id: str) -> None:
    """The mail lies in its directory: from now on nobody needs to look for it."""
    row = session.get(IdempotencyRow, (api_key, key))
    if row is not None and row.message_id == message_id:
        row.written = True
        session.add(row)
        session.flush()


def forget_old(session: Session, *, now: float) -> int:
    """Delete what is older than 24 hours; how many."""
    query = delete(IdempotencyRow).where(col(IdempotencyRow.created_at) <= to_database(now - KEPT_SECONDS))
    return session.exec(query).rowcount
