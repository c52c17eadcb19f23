"""What accounts are slowed down to is written down behind what holds already, and at most once in a while."""

from __future__ import annotations

import asyncio

import structlog
from sqlmodel import Session

from core.errors import RelayError
from core.runtime.quotas import Quotas
from core.store import slowdowns
from core.store.slowdowns import Slowed
from core.store.store import Store

WRITE_EACH_SECONDS = 10.0

log = structlog.get_logger()


class Slowdowns:
    """`changed` is told of accounts whose servers asked for fewer messages or connections. Of the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._quotas: Quotas | None = None
        self._changed: set[str] = set()
        self._writing: asyncio.Task[None] | None = None

    def of(self, quotas: Quotas) -> None:
        """Whose they are."""
        self._quotas = quotas

    def changed(self, account: str) -> None:
        """The first is written at once, what follows it together with the next."""
        self._changed.add(account)
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_each())

    async def close(self) -> None:
        """Write what was not written yet."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._write()

    async def _write_each(self) -> None:
        while self._changed:
            await self._write()
            await asyncio.sleep(WRITE_EACH_SECONDS)
        self._writing = None

    async def _write(self) -> None:
        names, self._changed = self._changed, set()
        quotas = self._quotas
        if not names or quotas is None:
            return
        found: dict[str, Slowed | None] = {name: quotas.slowed(name) for name in names}

        def write(session: Session) -> None:
            for name, slowed in found.items():
                slowdowns.put(session, name, slowed)

        try:
            await asyncio.shield(self._store.write(write))
        except RelayError as error:
            log.warning("slower pace not written down", accounts=sorted(names), reason=error.detail)
