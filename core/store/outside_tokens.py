"""What providers put in the place of refresh tokens that somebody gave, be they outside the database or in it.

Outside nothing can be written back; and who moves a token from the database to outside, or the reverse, has the first
one only. A row is found by a digest of that token and of whom it goes to, so another token, or another server, knows
nothing of it. Sealed as all secrets are (secrets.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from sqlmodel import Session, col, delete

from core.domain.account import OAuth
from core.store.epoch import from_database, to_database
from core.store.secrets import Secrets, outside_purpose_of
from core.store.tables import OutsideTokenRow

KEPT_SECONDS = 400 * 86_400.0  # without use: longer than any provider keeps a refresh token that nobody uses
_NOTED_EACH_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A token, and when its use was noted last, in seconds since the epoch."""

    token: str = field(repr=False)
    used_at: float

    def to_note(self, now: float) -> bool:
        """Whether its use now is to be noted: that was not done of late."""
        return self.used_at <= now - _NOTED_EACH_SECONDS


def digest_of(oauth: OAuth, host: str, port: int) -> str:
    """Of the refresh token, and of all who get it or what it gives. `host` and `port` are the account's."""
    parts = [oauth.provider, oauth.tenant, oauth.client_id, oauth.token_url, host, port, oauth.refresh_token]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def find(session: Session, secrets: Secrets, digest: str) -> Kept | None:
    """The newest; None: nothing followed. Raises SecretUnreadable."""
    row = session.get(OutsideTokenRow, digest)
    if row is None:
        return None
    return Kept(secrets.open(outside_purpose_of(digest), row.token), from_database(row.used_at))


def keep(session: Session, secrets: Secrets, digest: str, token: str, *, now: float) -> None:
    """It is the newest now."""
    sealed = secrets.seal(outside_purpose_of(digest), token)
    session.merge(OutsideTokenRow(digest=digest, token=sealed, used_at=to_database(now)))
    session.flush()


def forget(session: Session, digest: str) -> None:
    """Nobody comes with that token any more. One that is gone is no matter."""
    row = session.get(OutsideTokenRow, digest)
    if row is not None:
        session.delete(row)
        session.flush()


def used(session: Session, digest: str, *, now: float) -> None:
    """Note that it was used. One that is gone is no matter."""
    row = session.get(OutsideTokenRow, digest)
    if row is not None:
        row.used_at = to_database(now)
        session.add(row)
        session.flush()


def forget_old(session: Session, *, now: float) -> int:
    """Delete what was not used for long; how many."""
    query = delete(OutsideTokenRow).where(col(OutsideTokenRow.used_at) <= to_database(now - KEPT_SECONDS))
    return session.exec(query).rowcount
