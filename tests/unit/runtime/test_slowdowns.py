"""Slowdowns of accounts whose write fails: kept for the next write, whatever the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from core.domain.limits import FewerConnections
from core.errors import DatabaseUnavailable
from core.runtime import slowdowns
from core.runtime.slowdowns import Slowdowns
from core.store import slowdowns as rows
from core.store.slowdowns import Slowed
from core.store.store import Store
from tests.support.relay import until

SLOWED = Slowed(connections=FewerConnections(1, 0.0))


class FailingStore:
    """Writes fail with `errors`, one after the other, then succeed."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.tried = 0
        self.written: dict[str, Slowed | None] = {}

    def write(self, run: Callable[[Any], None]) -> asyncio.Future[None]:
        self.tried += 1
        result: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.errors:
            result.set_exception(self.errors.pop(0))
        else:
            run(None)
            result.set_result(None)
        return result


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slowdowns, "WRITE_EACH_SECONDS", 0.0)


def over(store: FailingStore, monkeypatch: pytest.MonkeyPatch) -> Slowdowns:
    monkeypatch.setattr(rows, "put", lambda _session, name, slowed: store.written.__setitem__(name, slowed))
    return Slowdowns(cast("Store", store), lambda _name: SLOWED)


@pytest.mark.parametrize("error", [DatabaseUnavailable("locked"), ValueError("a bug")])
async def test_what_was_not_written_is_tried_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FailingStore(error, error)
    written = over(store, monkeypatch)
    written.changed("one")
    await until(lambda: store.written)
    assert store.written == {"one": SLOWED}
    assert store.tried == 3
    await written.close()
    assert store.tried == 3, "nothing is left for the stop"


@pytest.mark.parametrize("error", [DatabaseUnavailable("locked"), ValueError("a bug")])
async def test_the_stop_writes_what_failed_and_does_not_fail_itself(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slowdowns, "WRITE_EACH_SECONDS", 3600.0)
    store = FailingStore(error, error)
    written = over(store, monkeypatch)
    written.changed("one")
    await until(lambda: store.tried == 1)
    await written.close()
    assert store.tried == 2
    await written.close()
    assert store.written == {"one": SLOWED}


async def test_after_an_end_nobody_foresaw_it_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slowdowns, "WRITE_EACH_SECONDS", 3600.0)
    store = FailingStore()
    written = over(store, monkeypatch)
    written.changed("one")
    await until(lambda: store.written)
    await written.close()
    written.changed("two")
    await until(lambda: "two" in store.written)
    await written.close()
