"""The history as it is shown: the store's rows, in the words of the views."""

from __future__ import annotations

from dataclasses import asdict

from core.domain.outcome import Outcome
from core.runtime.views import HistoryFilter, HistoryRow, Page
from core.store import history
from core.store.entry import Status
from core.store.store import Store


class History:
    """Over the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, where: HistoryFilter, limit: int, cursor: str | None) -> Page[HistoryRow]:
        """Newest first; each recipient exactly once over all pages."""
        wanted = history.HistoryFilter(
            **{**asdict(where), "status": None if where.status is None else Status(str(where.status))}
        )
        page = await self._store.read(lambda session: history.page(session, wanted, limit=limit, cursor=cursor))
        return Page(tuple(map(_shown, page.items)), page.next)


def _shown(row: history.HistoryRow) -> HistoryRow:
    return HistoryRow(
        message_id=row.message_id,
        internet_message_id=row.internet_message_id,
        directory=row.directory,
        sender=row.sender,
        recipient=row.recipient,
        subject=row.subject,
        status="deleted" if row.status is Status.DELETED else Outcome(row.status.value),
        account=row.account,
        server=row.server,
        code=row.code,
        enhanced_code=row.enhanced_code,
        text=row.text,
        attempts=row.attempts,
        size_bytes=row.size_bytes,
        arrived_at=row.arrived_at,
        at=row.at,
        possible_duplicate=row.possible_duplicate,
    )
