"""How many messages may be open at once: the bound of the whole process, and each directory's share of it.

Half of the room is parted equally among the directories, and nobody else can take a directory's part: those whose
servers don't answer can't stop the others. The other half goes to whoever comes first.
"""

from __future__ import annotations

import asyncio
from collections import deque


class OpenMessages:
    """The room for open messages. Belongs to the event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shares: list[Share] = []
        self._held = 0  # by all of them
        self._own = 0  # what each directory has for itself
        self._common = limit  # what is left for all
        self._common_used = 0

    def join(self) -> Share:
        """A directory takes part, until it leaves."""
        share = Share(self)
        self._shares.append(share)
        self._part()
        return share

    def _leave(self, share: Share) -> None:
        if share in self._shares:
            self._shares.remove(share)
            self._part()

    def _part(self) -> None:
        count = len(self._shares)
        self._own = self._limit // 2 // count if count else 0
        self._common = self._limit - self._own * count
        self._common_used = sum(max(share.held - self._own, 0) for share in self._shares)
        while self._wake(None):
            pass

    def _take(self, share: Share) -> bool:
        if self._held >= self._limit:  # a directory that joined made the parts of the others smaller
            return False
        if share.held >= self._own:
            if self._common_used >= self._common:
                return False
            self._common_used += 1
        share.held += 1
        self._held += 1
        return True

    def _give_back(self, share: Share) -> None:
        common = share.held > self._own
        self._common_used -= common
        share.held -= 1
        self._held -= 1
        self._wake(None if common else share)  # what is common goes round

    def _wake(self, first: Share | None) -> bool:
        """One that waits for what is free now: of the directory that gave it back, else of the others in turn."""
        if first is not None and first.wake_one():
            return True
        for place, share in enumerate(self._shares):
            if share.wake_one():
                self._shares.append(self._shares.pop(place))
                return True
        return False


class Share:
    """A directory's part."""

    def __init__(self, room: OpenMessages) -> None:
        self.held = 0
        self._room = room
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left = False

    async def acquire(self) -> None:
        """Wait for room for one message, first come, first served."""
        if not self._waiting and self._room._take(self):
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def release(self) -> None:
        """One message less."""
        self._room._give_back(self)
        self._leave_if_done()

    def leave(self) -> None:
        """The directory is gone once what it holds is given back, and nobody of it waits."""
        self._left = True
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self._left and not self.held and not any(not waiter.done() for waiter in self._waiting):
            self._room._leave(self)

    def wake_one(self) -> bool:
        """Give what is free to the one that waits longest here, if there is one and it may have it."""
        while self._waiting and self._waiting[0].done():  # cancelled
            self._waiting.popleft()
        if not self._waiting or not self._room._take(self):
            return False
        self._waiting.popleft().set_result(None)
        return True
