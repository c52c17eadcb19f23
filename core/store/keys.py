"""API keys: 256 random bits, shown once; the database has their SHA-256.

A look-up by hash tells nothing by its time: who measures it learns of hashes of his own guesses, of which no key can be
made. The found hash is compared in constant time all the same.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, select

from core.domain.clock import utc_text
from core.errors import NotFound, StateConflict
from core.store import cursor as cursors
from core.store.epoch import from_database, optional_from_database, optional_to_database, to_database
from core.store.tables import ApiKeyRow

PREFIX = "mpu_"
_SHOWN = 12  # characters by which a person tells keys apart
_ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it is stored. Times in seconds since the epoch."""

    id: int
    name: str
    prefix: str
    scopes: tuple[str, ...]  # read, operate, admin, submit
    directories: tuple[str, ...]  # of the scope submit; empty: all
    created_at: float
    expires_at: float | None
    last_used_at: float | None


def create(
    session: Session,
    *,
    name: str,
    scopes: Iterable[str],
    directories: Iterable[str] = (),
    expires_at: float | None = None,
    now: float,
    secret: str | None = None,
) -> tuple[KeyRecord, str]:
    """A new key and, the only time, its text. `secret`: take this one (of an installation that brings its own)."""
    shown = _SHOWN if secret is None else min(_SHOWN, len(secret) // 4)  # one that was brought along may be short
    secret = secret or PREFIX + secrets.token_urlsafe(32)
    row = ApiKeyRow(
        name=name,
        prefix=secret[:shown],
        hash=digest(secret),
        scopes=list(scopes),
        directories=list(directories),
        created_at=to_database(now),
        expires_at=optional_to_database(expires_at),
    )
    session.add(row)
    session.flush()
    return _record(row), secret


def created_facts(record: KeyRecord) -> dict[str, Any]:
    """What the audit is told of a new key."""
    told = {
        "name": record.name,
        "prefix": record.prefix,
        "scopes": list(record.scopes),
        "directories": list(record.directories),
        "expires_at": utc_text(record.expires_at),
    }
    return {field: [None, value] for field, value in told.items()}


def deleted_facts(record: KeyRecord) -> dict[str, Any]:
    """What the audit is told of one that is gone: enough to know it again."""
    return {"name": [record.name, None], "prefix": [record.prefix, None]}


def authenticate(session: Session, secret: str, *, now: float) -> KeyRecord | None:
    """The key, None if it is unknown or expired."""
    found = by_digest(session, digest(secret))
    return found if found is not None and valid(found, now) else None


def by_digest(session: Session, hashed: str) -> KeyRecord | None:
    """The key with this digest, expired or not."""
    row = session.exec(select(ApiKeyRow).where(ApiKeyRow.hash == hashed)).one_or_none()
    if row is None or not hmac.compare_digest(row.hash, hashed):
        return None
    return _record(row)


def digests(session: Session) -> frozenset[str]:
    """Of all keys, expired or not."""
    return frozenset(session.exec(select(ApiKeyRow.hash)))


def valid(record: KeyRecord, now: float) -> bool:
    """Whether it has not expired."""
    return record.expires_at is None or record.expires_at > now


def used(session: Session, key_id: int, *, at: float) -> None:
    """Note when it was used last; a key that is gone is no error. Call it seldom: it is a write."""
    row = session.get(ApiKeyRow, key_id)
    if row is not None and (row.last_used_at or 0) < to_database(at):
        row.last_used_at = to_database(at)
        session.add(row)
        session.flush()


def load(session: Session) -> list[KeyRecord]:
    """All, oldest first."""
    return [_record(row) for row in session.exec(select(ApiKeyRow).order_by(col(ApiKeyRow.id)))]


def page(session: Session, *, limit: int = 50, cursor: str | None = None) -> tuple[list[KeyRecord], str | None]:
    """Oldest first, and the cursor of the page behind. Raises InvalidSettings for a cursor that isn't one."""
    after = cursors.decode(cursor, 1)[0] if cursor is not None else 0
    query = select(ApiKeyRow).where(col(ApiKeyRow.id) > after).order_by(col(ApiKeyRow.id)).limit(limit + 1)
    records = [_record(row) for row in session.exec(query)]
    more = len(records) > limit
    return records[:limit], cursors.encode(records[limit - 1].id) if more else None


def delete(session: Session, key_id: int, *, now: float) -> KeyRecord:
    """Raises NotFound, and StateConflict for the last key with the scope admin that hasn't expired."""
    row = session.get(ApiKeyRow, key_id)
    if row is None:
        raise NotFound("key", str(key_id))
    record = _record(row)
    if _administers(record, now) and not any(
        _administers(other, now) for other in load(session) if other.id != record.id
    ):
        raise StateConflict(
            "this is the last key that may administer", state="last_admin_key", remedy="create another one first"
        )
    session.delete(row)
    session.flush()
    return record


def _administers(record: KeyRecord, now: float) -> bool:
    return _ADMIN in record.scopes and valid(record, now)


def digest(secret: str) -> str:
    """What the database has of a key: its SHA-256, in hexadecimal digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _record(row: ApiKeyRow) -> KeyRecord:
    return KeyRecord(
        row.id or 0,
        row.name,
        row.prefix,
        tuple(row.scopes),
        tuple(row.directories or ()),
        from_database(row.created_at),
        optional_from_database(row.expires_at),
        optional_from_database(row.last_used_at),
    )
