"""API keys: who may call. The store keeps their SHA-256; the key itself is shown once.

A key that was found is taken for SEEN_SECONDS without another look into the database: a look is a turn of the reader
threads, which a drain leaves little time to. A key deleted here is refused at once, one deleted by another process (the
command line) within that time. What was not found is looked for each time.
`last_used_at` is written at most once a minute, behind the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session

from core.domain.clock import Clock
from core.errors import FieldError, InvalidSettings
from core.runtime.audit import Audit
from core.runtime.views import Actor, KeyView, NewKey, Page, Scope
from core.store import directories, keys
from core.store.keys import KeyRecord
from core.store.store import Store

USED_EVERY_SECONDS = 60.0
SEEN_SECONDS = 1.0  # after which a key is looked up again
SEEN_KEYS = 1000  # at most; then all are looked up again


@dataclass(frozen=True, slots=True)
class _Seen:
    record: KeyRecord
    at: float  # monotonic, before it was looked up


class Keys:
    """Over the store."""

    def __init__(self, store: Store, audit: Audit, *, clock: Clock) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock
        self._noted: dict[int, float] = {}  # key -> when its use was written last
        self._seen: dict[str, _Seen] = {}  # by digest
        self._deletions = 0

    async def authenticate(self, presented: str) -> Actor | None:
        """Who that key stands for; None: unknown or expired."""
        record = await self._find(keys.digest(presented))
        now = self._clock.now()
        if record is None or not keys.valid(record, now):
            return None
        self._note_use(record, now)
        return Actor(record.id, record.name, frozenset(map(Scope, record.scopes)), record.directories)

    async def _find(self, digest: str) -> KeyRecord | None:
        began = self._clock.monotonic()
        seen = self._seen.get(digest)
        if seen is not None and began - seen.at < SEEN_SECONDS:
            return seen.record
        deletions = self._deletions
        record = await self._store.read(lambda session: keys.by_digest(session, digest))
        if record is None:
            self._seen.pop(digest, None)
        elif deletions == self._deletions:  # else it may have been read before it was deleted
            if len(self._seen) >= SEEN_KEYS:
                self._seen.clear()
            self._seen[digest] = _Seen(record, began)
        return record

    def _note_use(self, record: KeyRecord, now: float) -> None:
        before = self._noted.get(record.id, record.last_used_at or 0.0)
        if before <= now < before + USED_EVERY_SECONDS:
            return
        self._noted[record.id] = now
        self._store.write(lambda session: keys.used(session, record.id, at=now)).add_done_callback(_fine_either_way)

    async def list(self, limit: int, cursor: str | None) -> Page[KeyView]:
        """Oldest first."""
        records, following = await self._store.read(lambda session: keys.page(session, limit=limit, cursor=cursor))
        return Page(tuple(map(view_of, records)), following)

    async def create(
        self,
        name: str,
        scopes: Sequence[Scope],
        directories: Sequence[str],
        expires_at: float | None,
        actor: Actor,
    ) -> NewKey:
        """A new key. Raises InvalidSettings for an unknown directory, or directories without the scope submit."""
        if directories and set(scopes) != {Scope.SUBMIT}:
            detail = "only a key with the scope submit alone is limited to directories"
            raise InvalidSettings([FieldError("/directories", "conflict", detail)])

        def write(session: Session) -> tuple[KeyRecord, str]:
            _check_directories(session, directories)
            record, secret = keys.create(
                session,
                name=name,
                scopes=[scope.value for scope in scopes],
                directories=directories,
                expires_at=expires_at,
                now=self._clock.now(),
            )
            self._audit.within(session, actor, "key.create", str(record.id), keys.created_facts(record))
            return record, secret

        record, secret = await self._store.write(write)
        return NewKey(view_of(record), secret)

    async def delete(self, key_id: int, actor: Actor) -> None:
        """Raises NotFound, StateConflict for the last key with the scope admin."""

        def write(session: Session) -> None:
            record = keys.delete(session, key_id, now=self._clock.now())
            self._audit.within(session, actor, "key.delete", str(key_id), keys.deleted_facts(record))

        try:
            await self._store.write(write)
        finally:  # an error leaves it open whether the key is gone
            self._deletions += 1
            self._seen.clear()
        self._noted.pop(key_id, None)


def _check_directories(session: Session, names: Sequence[str]) -> None:
    known = {record.directory.name for record in directories.load(session)} if names else set()
    wrong = [
        FieldError(f"/directories/{position}", "unknown_directory", f"there is no directory {name!r}")
        for position, name in enumerate(names)
        if name not in known
    ]
    if wrong:
        raise InvalidSettings(wrong, remedy="GET /directories lists them")


def _fine_either_way(written: asyncio.Future[None]) -> None:
    """Not to know when a key was used last harms nothing; the trouble shows elsewhere."""
    if not written.cancelled():
        written.exception()


def view_of(record: KeyRecord) -> KeyView:
    """As people are shown it."""
    return KeyView(
        record.id,
        record.name,
        record.prefix,
        tuple(map(Scope, record.scopes)),
        record.directories,
        record.created_at,
        record.expires_at,
        record.last_used_at,
    )
