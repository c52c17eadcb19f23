"""What providers put in the place of refresh tokens that lie outside the database, where nothing can be written back.

A row is found by a digest of the outside token and of whom it goes to, so another token outside, or another server,
knows nothing of it. Sealed as all secrets are (secrets.py).
"""

from __future__ import annotations

from sqlmodel import Session, col, delete

from core.store.epoch import to_database
from core.store.secrets import Secrets, outside_purpose_of
from core.store.tables import OutsideTokenRow

KEPT_SECONDS = 400 * 86_400.0  # without use: longer than any provider keeps a refresh token that nobody uses
_NOTED_EACH_SECONDS = 86_400.0


def find(session: Session, secrets: Secrets, digest: str) -> str | None:
    """The newest; None: nothing followed. Raises SecretUnreadable."""
    row = session.get(OutsideTokenRow, digest)
    return None if row is None else secrets.open(outside_purpose_of(digest), row.token)


def keep(session: Session, secrets: Secrets, digest: str, token: str, *, now: float) -> None:
    """It is the newest now."""
    sealed = secrets.seal(outside_purpose_of(digest), token)
    session.merge(OutsideTokenRow(digest=digest, token=sealed, used_at=to_database(now)))
    session.flush()


def used(session: Session, digest: str, *, now: float) -> bool:
    """Note that it was used; False: that was noted not long ago."""
    row = session.get(OutsideTokenRow, digest)
    if row is None or row.used_at > to_database(now - _NOTED_EACH_SECONDS):
        return False
    row.used_at = to_database(now)
    session.add(row)
    session.flush()
    return True


def forget_old(session: Session, *, now: float) -> int:
    """Delete what was not used for long; how many."""
    query = delete(OutsideTokenRow).where(col(OutsideTokenRow.used_at) <= to_database(now - KEPT_SECONDS))
    return session.exec(query).rowcount
