"""Every change and act, by which key: newest first. Secrets never come here in the clear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlmodel import Session

from core.domain.clock import Clock
from core.runtime.views import Actor, AuditRow, Page
from core.store import audit
from core.store.store import Store

MASK = "***"


class Audit:
    """Over the store."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def list(self, limit: int, cursor: str | None) -> Page[AuditRow]:
        """Newest first."""
        records, following = await self._store.read(lambda session: audit.page(session, limit=limit, cursor=cursor))
        rows = (AuditRow(row.id, row.at, row.key, row.action, row.target, row.changes) for row in records)
        return Page(tuple(rows), following)

    async def record(self, actor: Actor, action: str, target: str, changes: Mapping[str, Any] | None = None) -> None:
        """Write down an act, in a transaction of its own."""
        await self._store.write(lambda session: self.within(session, actor, action, target, changes))

    def within(
        self, session: Session, actor: Actor, action: str, target: str, changes: Mapping[str, Any] | None = None
    ) -> None:
        """Write down a change in the transaction of the change itself."""
        audit.record(
            session,
            key=actor.key_name,
            action=action,
            target=target,
            now=self._clock.now(),
            changes=dict(changes or {}),
        )


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Field -> [before, after] of what differs."""
    names = [*after, *(name for name in before if name not in after)]
    return {name: [before.get(name), after.get(name)] for name in names if before.get(name) != after.get(name)}
