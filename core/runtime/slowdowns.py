"""What accounts are slowed down to is written down behind what holds already, and at most once in a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from sqlmodel import Session

from core.errors import RelayError
from core.store import slowdowns
from core.store.slowdowns import Slowed
from core.store.store import Store

WRITE_EACH_SECONDS = 10.0

log = structlog.get_logger()


class Slowdowns:
    """`changed` is told of accounts whose servers asked for fewer messages or connections. Of the event loop."""

    def __init__(self, store: Store, slowed: Callable[[str], Slowed | None]) -> None:
        """`slowed`: what an account is slowed down to by now; None: it isn't."""
        self._store = store
        self._slowed = slowed
        self._changed: set[str] = set()
        self._writing: asyncio.Task[None] | None = None

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
        try:
            while self._changed:
                await self._write()
                await asyncio.sleep(WRITE_EACH_SECONDS)
        finally:
            self._writing = None

    async def _write(self) -> None:
        """What can't be written is tried again with the next."""
        names, self._changed = self._changed, set()
        if not names:
            return
        try:
            found = {name: self._slowed(name) for name in names}

            def write(session: Session) -> None:
                for name, slowed in found.items():
                    slowdowns.put(session, name, slowed)

            await asyncio.shield(self._store.write(write))
        except RelayError as error:
            self._changed |= names
            log.warning("slower pace not written down", accounts=sorted(names), reason=error.detail)
        except Exception:  # the next write may succeed
            self._changed |= names
            log.exception("slower pace not written down", accounts=sorted(names))
