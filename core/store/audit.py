"""The audit: every change and act, by which key. Who writes masks secrets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, select

from core.store import cursor as cursors
from core.store.epoch import from_database, to_database
from core.store.tables import AuditRow


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change or act. `at`: seconds since the epoch. `changes`: field -> [old, new]."""

    id: int
    at: float
    key: str
    action: str
    target: str
    changes: dict[str, Any]


def record(
    session: Session, *, key: str, action: str, target: str, now: float, changes: dict[str, Any] | None = None
) -> None:
    """Write it down, in the transaction of the change itself."""
    session.add(AuditRow(at=to_database(now), key=key, action=action, target=target, changes=changes or {}))
    session.flush()


def page(session: Session, *, limit: int = 50, cursor: str | None = None) -> tuple[list[AuditRecord], str | None]:
    """Newest first, and the cursor of the page behind. Raises InvalidSettings for a cursor that isn't one."""
    query = select(AuditRow).order_by(col(AuditRow.id).desc()).limit(limit + 1)
    if cursor is not None:
        query = query.where(col(AuditRow.id) < cursors.decode(cursor, 1)[0])
    records = [
        AuditRecord(row.id or 0, from_database(row.at), row.key, row.action, row.target, row.changes)
        for row in session.exec(query)
    ]
    more = len(records) > limit
    return records[:limit], cursors.encode(records[limit - 1].id) if more else None
