"""What runs in the background and is asked about by id: drains and bulk operations. Kept a while after the end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from core.domain.clock import Clock
from core.errors import NotFound, TooMany


class Background(Protocol):
    """One of them."""

    id: str
    task: asyncio.Task[None] | None
    ended_at: float | None  # monotonic


B = TypeVar("B", bound=Background)


@dataclass(frozen=True, slots=True)
class Keep:
    """Bounds of a register: how many at once, how many ended ones are kept and how long."""

    open_max: int = 100
    ended_max: int = 1000
    ended_seconds: float = 86_400.0


class Register(Generic[B]):
    """The background work of one kind, bounded."""

    def __init__(self, kind: str, keep: Keep, *, clock: Clock) -> None:
        self._kind = kind
        self._keep = keep
        self._clock = clock
        self._items: dict[str, B] = {}

    @contextmanager
    def place_for(self, item: B) -> Iterator[None]:
        """Keep it one, so that it can be started within this, once that is written down. Raises TooMany."""
        self._admit(item)
        try:
            yield
        finally:
            if item.task is None:
                del self._items[item.id]

    def start(self, item: B, work: Coroutine[Any, Any, None]) -> B:
        """Run it. Raises TooMany where too many are open."""
        try:
            self._admit(item)
        except TooMany:
            work.close()
            raise
        item.task = asyncio.get_running_loop().create_task(work)
        item.task.add_done_callback(lambda _: self._ended(item))
        return item

    def _admit(self, item: B) -> None:
        self._forget()
        others = sum(known.ended_at is None for known in self._items.values() if known is not item)
        if others >= self._keep.open_max:
            raise TooMany(
                f"{self._keep.open_max} {self._kind}s are open, and no more may be",
                remedy="wait for one of them to end, or raise MPU_OPEN_DRAINS_MAX",
            )
        self._items[item.id] = item

    def get(self, item_id: str) -> B:
        """Raises NotFound."""
        self._forget()
        item = self._items.get(item_id)
        if item is None:
            raise NotFound(self._kind, item_id)
        return item

    def open(self) -> list[B]:
        """Those that have not ended."""
        return [item for item in self._items.values() if item.ended_at is None]

    def _ended(self, item: B) -> None:
        item.ended_at = self._clock.monotonic()

    def _forget(self) -> None:
        now = self._clock.monotonic()
        ended = sorted((i.ended_at, i.id) for i in self._items.values() if i.ended_at is not None)
        too_many = len(ended) - self._keep.ended_max
        for number, (ended_at, item_id) in enumerate(ended):
            if number < too_many or now - ended_at > self._keep.ended_seconds:
                del self._items[item_id]


def new_id() -> str:
    """Not to be guessed."""
    return secrets.token_hex(8)
