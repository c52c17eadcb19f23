"""Whose token source is whose, who is led to which refresh token, and what becomes of one that could not be stored."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from core.domain.account import Account, OAuth, OAuthGrant, OAuthProvider
from core.runtime.secret_sources import SecretSources
from core.runtime.tokens import CLOSE_SECONDS, Tokens
from core.settings import Settings
from core.smtp.dialogue import ConnectFailed
from tests.support.clock import ManualClock
from tests.support.token_server import Hang, Reply, TokenServer


class Memory:
    """What the database was told: (held before, new); it fails while it should."""

    def __init__(self) -> None:
        self.told: list[tuple[str | None, str]] = []
        self.fails = False
        self.begun = 0
        self.asked = asyncio.Event()
        self.may = asyncio.Event()
        self.may.set()

    async def __call__(self, oauth: OAuth, refresh_token: str) -> bool:
        self.begun += 1
        self.asked.set()
        await self.may.wait()
        self.told.append((oauth.refresh_token, refresh_token))
        return not self.fails


def tokens_of(memory: Memory) -> Tokens:
    return Tokens(Settings(), ManualClock(), memory, outside=SecretSources(Settings()))


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


def with_oauth(account: Account, **changes: Any) -> Account:
    assert account.oauth is not None
    return replace(account, oauth=replace(account.oauth, **changes))


async def test_the_same_login_has_one_source_and_another_has_its_own(server: TokenServer) -> None:
    tokens = tokens_of(Memory())
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
    tokens = tokens_of(memory)
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
    tokens = tokens_of(memory)
    source = tokens.source(account_at(server))
    assert source is not None
    memory.fails = True
    for _ in range(2):
        await source()
    assert {held for held, _ in memory.told} == {"refresh-0"}
    assert memory.told[-1] == ("refresh-0", "refresh-2")
    memory.told.clear()
    await tokens.close()
    assert memory.told == [("refresh-0", "refresh-2")]
    memory.fails = False
    await source()
    await source()
    assert memory.told[-1] == ("refresh-3", "refresh-4")
    assert ("refresh-0", "refresh-2") in memory.told[1:], "tried again"
    memory.told.clear()
    await tokens.close()
    assert memory.told == []


async def test_a_write_that_failed_is_tried_again_at_the_next_use_without_another_fetch() -> None:
    async with TokenServer(rotates=True) as server:
        memory = Memory()
        tokens = tokens_of(memory)
        source = tokens.source(account_at(server))
        assert source is not None
        memory.fails = True
        await source()
        memory.fails = False
        memory.asked.clear()
        for _ in range(3):
            await source()
        await asyncio.wait_for(memory.asked.wait(), 5)
        await tokens.close()
        assert memory.told == [("refresh-0", "refresh-1")] * 2
        assert len(server.forms) == 1


async def test_an_answer_that_comes_while_the_service_stops_is_kept(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.runtime.tokens.CLOSE_SECONDS", 30.0)
    memory = Memory()
    tokens = tokens_of(memory)
    source = tokens.source(account_at(server))
    assert source is not None
    waiting = asyncio.create_task(source())
    await asyncio.sleep(0)  # it has begun, and nothing was asked yet
    waiting.cancel()
    await tokens.close()
    assert len(server.forms) == 1
    assert memory.told == [("refresh-0", "refresh-1")]


async def test_a_write_that_is_slow_outlives_the_fetch(server: TokenServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.runtime.tokens.CLOSE_SECONDS", 0.0)
    memory = Memory()
    memory.may.clear()
    tokens = tokens_of(memory)
    source = tokens.source(account_at(server))
    assert source is not None
    waiting = asyncio.create_task(source())
    await asyncio.wait_for(memory.asked.wait(), 10)
    closing = asyncio.create_task(tokens.close())
    with pytest.raises(ConnectFailed, match="stopping"):
        await waiting
    memory.may.set()
    await closing
    assert (memory.told, memory.begun) == ([("refresh-0", "refresh-1")], 1)


async def test_a_stop_does_not_wait_for_what_changes_nothing(server: TokenServer) -> None:
    server.script = [Hang()]
    tokens = tokens_of(Memory())
    source = tokens.source(with_oauth(account_at(server), grant=OAuthGrant.CLIENT_CREDENTIALS, refresh_token=None))
    assert source is not None
    waiting = asyncio.create_task(source())
    await asyncio.wait_for(server.asked.wait(), 10)
    began = asyncio.get_running_loop().time()
    await tokens.close()
    assert asyncio.get_running_loop().time() - began < CLOSE_SECONDS
    with pytest.raises(ConnectFailed, match="stopping"):
        await waiting


@pytest.mark.parametrize(
    "granted",
    [
        {"grant": OAuthGrant.CLIENT_CREDENTIALS, "refresh_token": None},
        {"grant": OAuthGrant.CLIENT_CREDENTIALS, "refresh_token": "refresh-0"},
    ],
)
async def test_a_refresh_token_that_nobody_used_goes_to_nobody(server: TokenServer, granted: dict[str, Any]) -> None:
    """RFC 6749 section 4.4.3: should not come with client credentials. Some providers send it nevertheless."""
    memory = Memory()
    tokens = tokens_of(memory)
    account = with_oauth(account_at(server), **granted)
    server.script = [Reply(200, {"access_token": "a", "expires_in": 0, "refresh_token": "of-another"})]
    source = tokens.source(account)
    assert source is not None
    await source()
    assert memory.told == []
    for other in (account, with_oauth(account, client_id="x"), with_oauth(account_at(server), refresh_token=None)):
        found = tokens.source(other)
        assert found is not None
        assert found.oauth == other.oauth
    await tokens.close()


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"token_url": "http://127.0.0.1:9/evil"},
        {"client_id": "another"},
        {"tenant": "another.example"},
        {"provider": OAuthProvider.GOOGLE},
        {"grant": OAuthGrant.CLIENT_CREDENTIALS},
        {"host": "mail.evil.example"},
        {"port": 2525},
    ],
)
async def test_an_old_refresh_token_opens_nothing_elsewhere(server: TokenServer, elsewhere: dict[str, Any]) -> None:
    memory = Memory()
    tokens = tokens_of(memory)
    account = account_at(server)
    source = tokens.source(account)
    assert source is not None
    await source()
    of_account = elsewhere.keys() & {"host", "port"}
    evil = replace(account, **elsewhere) if of_account else with_oauth(account, **elsewhere)
    found = tokens.source(evil)
    assert found is not None
    assert found is not source
    assert found.oauth.refresh_token == "refresh-0"
    assert tokens.source(account) is source, "who belongs there is led on"
    await tokens.close()
    assert memory.told == [("refresh-0", "refresh-1"), ("refresh-0", "refresh-1")]
