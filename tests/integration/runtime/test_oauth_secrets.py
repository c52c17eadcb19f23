"""What became of a refresh token that lies outside: kept without a database too, and read without writing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.domain.account import OAuth, OAuthGrant, OAuthProvider
from core.domain.oauth import Granted
from core.runtime.oauth_secrets import Followers, OAuthSecrets, StoredFollowers
from core.runtime.secret_sources import SecretSources
from core.settings import Settings
from core.store import outside_tokens
from core.store.store import Store
from tests.support.clock import ManualClock
from tests.support.database import database

DAY = 86_400.0
PLACE = ("smtp.example.com", 587)


class Provider:
    """Takes each refresh token once, and gives the next; or the same again."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.rotates = True

    async def ask(self, oauth: OAuth) -> Granted:
        self.asked.append(oauth.refresh_token)
        return Granted("access", 3600.0, f"refresh-{len(self.asked)}" if self.rotates else None)


def of_file(folder: Path, followers: Followers | None = None) -> tuple[OAuthSecrets, OAuth]:
    (folder / "token").write_text("refresh-0")
    oauth = OAuth(
        OAuthProvider.OTHER,
        OAuthGrant.REFRESH_TOKEN,
        token_url="https://login.example/token",
        client_id="app",
        refresh_token_from=f"file:{folder}/token",
    )
    return OAuthSecrets(SecretSources(Settings(secret_files=(folder,))), followers), oauth


async def test_without_a_database_the_newest_is_used_as_long_as_the_process_lives(tmp_path: Path) -> None:
    provider = Provider()
    secrets, oauth = of_file(tmp_path)
    for _ in range(3):
        await secrets.granted(oauth, PLACE, provider.ask)
    assert provider.asked == ["refresh-0", "refresh-1", "refresh-2"]
    await secrets.granted(oauth, ("other.example.com", 587), provider.ask)
    assert provider.asked[3] == "refresh-0", "it is for its own server"
    await secrets.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    (tmp_path / "data").mkdir()
    database(tmp_path / "data")
    store = Store.open(str(tmp_path / "data"), clock=ManualClock(), create=False)
    yield store
    await asyncio.to_thread(store.close)


async def test_a_use_is_written_down_once_a_day(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, provider = ManualClock(), Provider()
    secrets, oauth = of_file(tmp_path, StoredFollowers(store, clock))
    await secrets.granted(oauth, PLACE, provider.ask)
    provider.rotates = False
    writes = 0
    write = store.write

    def counted(run):  # type: ignore[no-untyped-def]  # generic, and only passed on
        nonlocal writes
        writes += 1
        return write(run)

    monkeypatch.setattr(store, "write", counted)
    for day in range(3):
        for _ in range(3):
            await secrets.granted(oauth, PLACE, provider.ask)
        assert writes == day
        clock.advance(DAY)
    assert set(provider.asked[1:]) == {"refresh-1"}
    await store.write(lambda session: outside_tokens.forget_old(session, now=clock.now() - DAY + 400 * DAY - 1))
    await secrets.granted(oauth, PLACE, provider.ask)
    assert provider.asked[-1] == "refresh-1", "it was used a day ago"
    await secrets.close()
