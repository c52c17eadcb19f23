"""Whose token source is whose, and what becomes of refresh tokens that could not be stored."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from core.domain.account import Account, OAuth, OAuthGrant, OAuthProvider
from core.runtime.tokens import Tokens
from core.settings import Settings
from tests.support.clock import ManualClock
from tests.support.token_server import TokenServer


class Memory:
    """What the database was told: (held before, new); it fails while it should."""

    def __init__(self) -> None:
        self.told: list[tuple[str | None, str]] = []
        self.fails = False

    async def __call__(self, oauth: OAuth, refresh_token: str) -> bool:
        self.told.append((oauth.refresh_token, refresh_token))
        return not self.fails


@pytest.fixture
async def server() -> AsyncIterator[TokenServer]:
    async with TokenServer(rotates=True, lifetime=0) as server:
        yield server


def account_at(server: TokenServer, name: str = "main", username: str = "u") -> Account:
    oauth = OAuth(
        OAuthProvider.OTHER,
        OAuthGrant.REFRESH_TOKEN,
        token_url=server.url,
        client_id="app",
        client_secret="its-secret",
        refresh_token="refresh-0",
    )
    return Account(name, "smtp.example.com", username=username, oauth=oauth)


async def test_the_same_login_has_one_source_and_another_has_its_own(server: TokenServer) -> None:
    tokens = Tokens(Settings(), ManualClock(), Memory())
    account = account_at(server)
    assert account.oauth is not None
    source = tokens.source(account)
    assert tokens.source(Account("plain", "h")) is None
    assert tokens.source(replace(account, name="other", max_connections=1)) is source
    assert tokens.source(replace(account, oauth=replace(account.oauth, client_id="x"))) is not source
    robot = replace(account, oauth=replace(account.oauth, grant=OAuthGrant.SERVICE_ACCOUNT))
    assert tokens.source(robot) is not tokens.source(replace(robot, username="another")), "it acts for a mailbox"


async def test_whoever_comes_with_an_older_refresh_token_gets_the_newest(server: TokenServer) -> None:
    memory = Memory()
    tokens = Tokens(Settings(), ManualClock(), memory)
    account = account_at(server)
    source = tokens.source(account)
    assert source is not None
    for _ in range(3):
        await source()
    del source
    gc.collect()
    again = tokens.source(account)  # saved only now, with the first one
    assert again is not None
    assert again.oauth.refresh_token == "refresh-3"
    await tokens.close()
    assert memory.told == [
        ("refresh-0", "refresh-1"),
        ("refresh-1", "refresh-2"),
        ("refresh-2", "refresh-3"),
        ("refresh-0", "refresh-3"),
    ]


async def test_what_could_not_be_stored_is_stored_over_what_the_database_still_has(server: TokenServer) -> None:
    memory = Memory()
    tokens = Tokens(Settings(), ManualClock(), memory)
    source = tokens.source(account_at(server))
    assert source is not None
    memory.fails = True
    for _ in range(2):
        await source()
    assert memory.told == [("refresh-0", "refresh-1"), ("refresh-0", "refresh-2")]
    await tokens.close()
    memory.fails = False
    await source()
    await source()
    assert memory.told[2:] == [("refresh-0", "refresh-2"), ("refresh-0", "refresh-3"), ("refresh-3", "refresh-4")]
