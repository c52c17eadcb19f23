"""Who a key stands for, while keys are deleted here and by other processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import Session

from core.errors import NotFound
from core.runtime.audit import Audit
from core.runtime.keys import SEEN_KEYS, SEEN_SECONDS, Keys
from core.runtime.views import Actor, Scope
from core.store import keys as stored
from core.store.store import Store
from tests.support.database import MovableClock

ADMIN = Actor(0, "test", frozenset({Scope.ADMIN}))


@pytest.fixture
def keys(store: Store, clock: MovableClock) -> Keys:
    return Keys(store, Audit(store, clock=clock), clock=clock)


@pytest.fixture
def looked_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """An item for each look into the database."""
    looks: list[object] = []
    read = store.read

    async def counted(run: Callable[[Session], Any]) -> Any:
        looks.append(run)
        return await read(run)

    monkeypatch.setattr(store, "read", counted)
    return looks


async def _made(keys: Keys, expires_at: float | None = None) -> tuple[int, str]:
    made = await keys.create("ops", [Scope.READ], (), expires_at, ADMIN)
    return made.key.id, made.secret


async def test_a_key_is_looked_up_once_in_a_while(keys: Keys, clock: MovableClock, looked_up: list[object]) -> None:
    key_id, secret = await _made(keys)
    for _ in range(5):
        actor = await keys.authenticate(secret)
        assert actor == Actor(key_id, "ops", frozenset({Scope.READ}))
    assert len(looked_up) == 1
    clock.move(SEEN_SECONDS)
    assert await keys.authenticate(secret)
    assert len(looked_up) == 2


async def test_a_key_deleted_here_is_refused_at_once(keys: Keys) -> None:
    key_id, secret = await _made(keys)
    _, other = await _made(keys)
    assert await keys.authenticate(secret)
    await keys.delete(key_id, ADMIN)
    assert await keys.authenticate(secret) is None
    assert await keys.authenticate(other)
    with pytest.raises(NotFound):
        await keys.delete(key_id, ADMIN)


async def test_an_id_is_used_once_and_the_audit_tells_what_it_was(keys: Keys, store: Store) -> None:
    made = [await keys.create(name, [Scope.READ], (), 4_000_000_000.0, ADMIN) for name in ("one",)]
    await keys.delete(made[0].key.id, ADMIN)
    made.append(await keys.create("two", [Scope.READ], (), None, ADMIN))
    assert made[0].key.id != made[1].key.id
    rows = (await Audit(store, clock=MovableClock()).list(10, None)).items
    second, deleted, first = (row.changes for row in rows)
    assert deleted == {"name": ["one", None], "prefix": [made[0].secret[:12], None]}
    assert (first["name"], first["prefix"]) == ([None, "one"], [None, made[0].secret[:12]])
    assert first["expires_at"] == [None, "2096-10-02T07:06:40+00:00"]
    assert second["expires_at"] == [None, None]


async def test_a_look_that_a_deletion_overtook_is_not_remembered(
    keys: Keys, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, secret = await _made(keys)
    read, seen, go_on = store.read, asyncio.Event(), asyncio.Event()

    async def slow(run: Callable[[Session], Any]) -> Any:
        found = await read(run)
        seen.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(store, "read", slow)
    before = asyncio.create_task(keys.authenticate(secret))
    await seen.wait()
    await keys.delete(key_id, ADMIN)
    go_on.set()
    assert await before  # asked while the key was good
    assert await keys.authenticate(secret) is None


async def test_a_key_deleted_by_another_process_is_refused_within_a_second(
    keys: Keys, store: Store, clock: MovableClock
) -> None:
    assert SEEN_SECONDS <= 1
    key_id, secret = await _made(keys)
    assert await keys.authenticate(secret)
    await store.write(lambda session: stored.delete(session, key_id, now=clock.now()))
    clock.move(SEEN_SECONDS)
    assert await keys.authenticate(secret) is None


async def test_a_remembered_key_expires_in_time(keys: Keys, clock: MovableClock) -> None:
    _, secret = await _made(keys, clock.now() + 0.5)
    assert await keys.authenticate(secret)
    clock.move(0.5)
    assert await keys.authenticate(secret) is None


async def test_what_is_no_key_is_not_remembered(keys: Keys, looked_up: list[object]) -> None:
    for _ in range(3):
        assert await keys.authenticate("mpu_wrong") is None
    assert len(looked_up) == 3
    assert keys._seen == {}


async def test_a_bounded_number_is_remembered(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SEEN_KEYS <= 10_000
    monkeypatch.setattr("core.runtime.keys.SEEN_KEYS", 2)
    for _ in range(5):
        _, secret = await _made(keys)
        assert await keys.authenticate(secret)
        assert len(keys._seen) <= 2
