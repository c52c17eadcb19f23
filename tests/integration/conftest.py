"""A store on a file of its own and a clock that the test moves, for all of the store's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.store.store import Store
from tests.support.database import MovableClock, open_store


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
async def store(tmp_path: Path, clock: MovableClock) -> AsyncIterator[Store]:
    made = open_store(tmp_path, clock)
    yield made
    await asyncio.to_thread(made.close)
