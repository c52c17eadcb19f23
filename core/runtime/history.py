"""The history as it is shown: the store's rows, as they are."""

from __future__ import annotations

from dataclasses import asdict

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
        return Page(page.items, page.next)
