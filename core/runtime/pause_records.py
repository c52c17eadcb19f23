"""Pauses as the database has them: an operator's is written before it holds, the service's own holds at once and is
written behind, again and again until that works or something newer takes its place.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import structlog
from sqlmodel import Session

from core.domain.circuit import Pause, PausedBy
from core.domain.clock import Clock
from core.errors import NotFound, RelayError
from core.store import pauses
from core.store.pauses import PauseOf
from core.store.store import Store

AGAIN_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)  # between tries; the last goes on

T = TypeVar("T")
log = structlog.get_logger()


class PauseRecords:
    """Of the event loop."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._behind: dict[tuple[PauseOf, str], Pause | None] = {}  # to be written: the newest of each
        self._turn = asyncio.Lock()  # what holds last must be written last
        self._writing: asyncio.Task[None] | None = None

    async def first(self, place: PauseOf, name: str, write: Callable[[Session], T], hold: Callable[[T], None]) -> T:
        """An operator's act: write it, then let it hold. Raises what `write` raises: nothing has changed then."""

        async def both() -> T:
            async with self._turn:
                written = await self._store.write(write)
                self.forget(place, name)
                hold(written)
            return written

        return await asyncio.shield(asyncio.get_running_loop().create_task(both()))

    def behind(self, place: PauseOf, name: str, pause: Pause | None) -> None:
        """It holds already; None: it was lifted."""
        self._behind[place, name] = pause
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._until_written())

    def forget(self, place: PauseOf, name: str) -> None:
        """What was to be written of it no longer counts."""
        self._behind.pop((place, name), None)

    async def close(self) -> None:
        """A last try for what was not written yet."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._write()

    async def _until_written(self) -> None:
        try:
            for delay in itertools.chain(AGAIN_SECONDS, itertools.repeat(AGAIN_SECONDS[-1])):
                await self._write()
                if not self._behind:
                    return
                await asyncio.sleep(delay)
        finally:
            self._writing = None

    async def _write(self) -> None:
        """All that waits, up to the first that fails."""
        async with self._turn:
            for place, name in list(self._behind):
                if (place, name) not in self._behind:  # forgotten meanwhile
                    continue
                pause = self._behind.pop((place, name))
                try:
                    await self._store.write(partial(self._put, place=place, name=name, pause=pause))
                except NotFound:
                    continue  # it was deleted meanwhile
                except BaseException as error:
                    self._behind.setdefault((place, name), pause)
                    if not isinstance(error, RelayError):
                        raise
                    log.warning("pause not written down yet", place=place.value, name=name, reason=error.detail)
                    return

    def _put(self, session: Session, place: PauseOf, name: str, pause: Pause | None) -> None:
        if pause is None:
            pauses.resume(session, place, name, by=PausedBy.OPERATOR, now=self._clock.now())
        else:
            pauses.pause(session, place, name, pause)
