"""The token sources of all accounts: one for each set of OAuth settings, whoever uses it.

Transports and checks of an account, and accounts that share a login, share its source. Where a provider changes the
refresh token with each use, the new one is written into every account that held the old one; who still comes with an
older one (a check before the save, a save that was under way) is led to the newest.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

import structlog

from core.domain.account import Account, OAuth, OAuthGrant
from core.domain.clock import Clock
from core.domain.oauth import Granted
from core.errors import RelayError
from core.settings import Settings
from core.store import accounts
from core.store.ledger import Ledger
from core.store.secrets import Secrets
from core.transport.oauth import fetch
from core.transport.tokens import TokenSource

CHAINS_KEPT = 2000  # refresh tokens whose newest is known beside the database

log = structlog.get_logger()

Remember = Callable[[OAuth, str], Coroutine[Any, Any, bool]]


async def forget(_oauth: OAuth, _refresh_token: str) -> bool:
    """Where there is no database."""
    return True


def stored_in(ledger: Ledger, secrets: Secrets) -> Remember:
    """Writes a refresh token into the accounts that hold the one before; tells whether that could be done."""

    async def remember(oauth: OAuth, refresh_token: str) -> bool:
        try:
            names = await ledger.write(
                lambda session: accounts.refresh_token_changed(session, secrets, oauth, refresh_token)
            )
        except RelayError as error:
            log.error("a new refresh token could not be stored", reason=error.detail, remedy=error.remedy)  # noqa: TRY400 - cause is known
            return False
        log.info("a new refresh token was stored", accounts=names)
        return True

    return remember


@dataclass(slots=True)
class _Chain:
    """Refresh tokens that followed one another."""

    first: str = field(repr=False)  # as somebody gave it
    newest: str = field(repr=False)
    held: OAuth | None = None  # what the database has, where the newest could not be stored


class Tokens:
    """See the module's text. Belongs to the event loop."""

    def __init__(self, settings: Settings, clock: Clock, remember: Remember = forget) -> None:
        self._settings = settings
        self._clock = clock
        self._remember = remember
        self._sources: WeakValueDictionary[tuple[OAuth, str | None], TokenSource] = WeakValueDictionary()
        self._chains: OrderedDict[str, _Chain] = OrderedDict()  # by the first and the newest of each
        self._writing: set[asyncio.Task[bool]] = set()

    def source(self, account: Account) -> TokenSource | None:
        """Where the account's access tokens come from; None: it has no OAuth settings."""
        oauth = account.oauth
        if oauth is None:
            return None
        chain = self._chains.get(oauth.refresh_token or "")
        given = oauth if chain is None else replace(oauth, refresh_token=chain.first)
        if chain is not None and chain.newest != oauth.refresh_token:  # saved after it was used up in a check
            task = asyncio.get_running_loop().create_task(self._remember(oauth, chain.newest))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
            oauth = replace(oauth, refresh_token=chain.newest)
        subject = account.username if oauth.grant is OAuthGrant.SERVICE_ACCOUNT else None
        source = self._sources.get((given, subject))
        if source is None:
            source = TokenSource(oauth, account.username, clock=self._clock, fetch=self._fetch, rotated=self._rotated)
            self._sources[given, subject] = source
        return source

    async def close(self) -> None:
        """Give up what is being fetched; what could not be stored is tried once more."""
        for source in list(self._sources.values()):
            await source.close()
        await asyncio.gather(*self._writing)
        for chain in {id(chain): chain for chain in self._chains.values()}.values():
            if chain.held is not None:
                await self._remember(chain.held, chain.newest)

    async def _fetch(self, oauth: OAuth, username: str | None) -> Granted:
        return await fetch(
            oauth,
            username,
            clock=self._clock,
            timeout_seconds=self._settings.oauth_timeout_seconds,
            allow_private=self._settings.allow_private_targets,
        )

    async def _rotated(self, before: OAuth, refresh_token: str) -> None:
        used = before.refresh_token or ""
        chain = self._chains.get(used) or _Chain(used, used)
        chain.newest = refresh_token
        if used != chain.first:
            self._chains.pop(used, None)
        for token in (chain.first, refresh_token):
            self._chains[token] = chain
            self._chains.move_to_end(token)
        while len(self._chains) > CHAINS_KEPT:
            self._chains.popitem(last=False)
        held = chain.held or before
        chain.held = None if await self._remember(held, refresh_token) else held
