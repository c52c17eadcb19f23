"""The relay's settings without the relay: what `mpu setup` works on where no service runs.

Everything is composed as in the service, so that the same rules and checks hold, but nothing is started: no scan, no
watch, no job, no mail.
"""

from __future__ import annotations

import asyncio

from core.runtime.keys import Keys
from core.runtime.relay import Relay
from core.runtime.views import Actor, Scope

OPERATOR = Actor(0, "command line", frozenset({Scope.ADMIN}))


class _NoKeys(Keys):
    """Who may write the database needs no key; there is no socket that anybody else could come through."""

    async def authenticate(self, presented: str) -> Actor:
        """Always the person at the command line."""
        del presented
        return OPERATOR


class OfflineRelay(Relay):
    """`open`, use its accounts, directories and checks, `close`."""

    async def open(self) -> None:
        """Migrate and open the database, with a first key in a new one. Raises DatabaseUnavailable, StorageFull."""
        self._compose(await self._open_with_key())
        self.keys = _NoKeys(self.store, self.audit, clock=self.clock)

    async def close(self) -> None:
        """Let go of everything."""
        self.watcher.close()
        await self.inlets.close()
        await self.outlets.close()
        await asyncio.to_thread(self.store.close)
