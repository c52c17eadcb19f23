"""The token sources of all accounts: one for each set of OAuth settings, whoever uses it.

Transports and checks of an account, and accounts that share a login, share its source. Where a provider changes the
refresh token with each use, the new one is written into every account that held the old one; who still comes with an
older one (a check before the save, a save that was under way) is led to the newest. What an older one opens is no more
than it did: the same client at the same token endpoint, and mail to the same server as before. Secrets that lie outside
the database, and tokens that come from there or go there, are oauth_secrets.py's.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import structlog

from core.domain.account import Account, OAuth, OAuthGrant, OAuthProvider
from core.domain.clock import Clock
from core.domain.oauth import Granted, outside_of
from core.errors import RelayError
from core.runtime.oauth_secrets import Followers, OAuthSecrets, Peer
from core.runtime.secret_sources import SecretSources
from core.settings import Settings
from core.store import accounts
from core.store.ledger import Ledger
from core.store.secrets import Secrets
from core.transport.oauth import fetch
from core.transport.tokens import TokenSource

CHAINS_KEPT = 2000  # refresh tokens whose newest is known beside the database
CLOSE_SECONDS = 3.0  # for answers that may hold a new refresh token

log = structlog.get_logger()

Remember = Callable[[OAuth, str], Coroutine[Any, Any, bool]]
_Key = tuple[OAuth, str | None, Peer | None]  # settings, mailbox acted for, server
Login = tuple[OAuthProvider, str | None, str | None, str | None, str]  # who gets the refresh token, and the token


async def forget(_oauth: OAuth, _refresh_token: str) -> bool:
    """Where there is no database."""
    return True


def stored_in(ledger: Ledger, secrets: Secrets, clock: Clock) -> Remember:
    """Writes a refresh token into the accounts that hold the one before; tells whether that could be done."""

    async def remember(oauth: OAuth, refresh_token: str) -> bool:
        try:
            names = await ledger.write(
                lambda session: accounts.refresh_token_changed(session, secrets, oauth, refresh_token, now=clock.now())
            )
        except RelayError as error:
            log.error("a new refresh token could not be stored", reason=error.detail, remedy=error.remedy)  # noqa: TRY400 - cause is known
            return False
        log.info("a new refresh token was stored", accounts=names)
        return True

    return remember


@dataclass(slots=True, eq=False)
class _Chain:
    """Refresh tokens that followed one another."""

    first: Login = field(repr=False)  # as somebody gave it
    newest: str = field(repr=False)
    stored: bool = True  # the newest is in the database, if anything of the chain is
    behind: dict[str, OAuth] = field(default_factory=dict, repr=False)  # what it may hold in place of the newest
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Tokens:
    """See the module's text. Belongs to the event loop."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        remember: Remember = forget,
        followers: Followers | None = None,
        *,
        outside: SecretSources,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._remember = remember
        self._outside = OAuthSecrets(outside, followers)
        self._sources: WeakValueDictionary[_Key, TokenSource] = WeakValueDictionary()
        self._chains: OrderedDict[tuple[Login, Peer | None], _Chain] = OrderedDict()  # Peer: of the first; None: newest
        self._unstored: set[_Chain] = set()
        self._writing: set[asyncio.Task[None]] = set()

    def source(self, account: Account) -> TokenSource | None:
        """Where the account's access tokens come from; None: it has no OAuth settings."""
        oauth = account.oauth
        if oauth is None:
            return None
        peer = (account.host, account.port)
        chain = self._chain(oauth, peer)
        if chain is not None and oauth.refresh_token is not None and chain.newest != oauth.refresh_token:
            chain.behind.setdefault(oauth.refresh_token, oauth)  # saved after it was used up in a check
            self._store(chain)
            oauth = replace(oauth, refresh_token=chain.newest)
        subject = account.username if oauth.grant is OAuthGrant.SERVICE_ACCOUNT else None
        # who names where a refresh token lies need not know it: what it became is for its own server only
        key = oauth, subject, peer if oauth.refresh_token_from is not None else None
        source = self._sources.get(key)
        if source is None:
            source = TokenSource(
                oauth,
                account.username,
                clock=self._clock,
                fetch=partial(self._fetch, peer),
                rotated=partial(self._rotated, peer),
                used=self._store_again,
            )
            self._sources[key] = source
        return source

    async def close(self) -> None:
        """Wait a little for what may bring a new refresh token, give up the rest, and store what was not stored."""
        await asyncio.gather(*(source.close(CLOSE_SECONDS) for source in list(self._sources.values())))
        await asyncio.gather(*self._writing)
        await asyncio.gather(*(self._write(chain) for chain in list(self._unstored)))
        await self._outside.close()

    async def _fetch(self, peer: Peer, oauth: OAuth, username: str | None) -> Granted:
        async def ask(whole: OAuth) -> Granted:
            return await fetch(
                whole,
                username,
                clock=self._clock,
                timeout_seconds=self._settings.oauth_timeout_seconds,
                allow_private=self._settings.allow_private_targets,
            )

        if outside_of(oauth):
            return await self._outside.granted(oauth, peer, ask)
        return await self._outside.following(oauth, peer, ask)

    def _chain(self, oauth: OAuth, peer: Peer) -> _Chain | None:
        login = _login(oauth)
        return None if login is None else self._chains.get((login, None)) or self._chains.get((login, peer))

    async def _rotated(self, peer: Peer, before: OAuth, refresh_token: str) -> None:
        """Of a source that was made for an account at `peer`. A cancelled caller does not stop the write."""
        login = _login(before)
        after = replace(before, refresh_token=refresh_token)
        newest = _login(after)
        if login is None or newest is None:
            return
        source = self._sources.pop((before, None, None), None)
        if source is not None:
            self._sources[after, None, None] = source
        chain = self._chain(before, peer) or _Chain(login, login[-1])
        self._chains.pop((login, None), None)
        if chain.stored:
            chain.behind[chain.newest] = replace(before, refresh_token=chain.newest)
            chain.stored = False
        chain.newest = refresh_token
        for key in ((chain.first, peer), (newest, None)):
            self._chains[key] = chain
            self._chains.move_to_end(key)
        while len(self._chains) > CHAINS_KEPT:
            self._chains.popitem(last=False)
        await asyncio.shield(self._store(chain))

    def _store_again(self) -> None:
        """A write that failed is due again when a token is wanted."""
        self._outside.store_again()
        for chain in self._unstored:
            if not chain.writing.locked():
                self._store(chain)

    def _store(self, chain: _Chain) -> asyncio.Task[None]:
        self._unstored.add(chain)
        task = asyncio.get_running_loop().create_task(self._write(chain))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    async def _write(self, chain: _Chain) -> None:
        """Put the newest in the place of all that the database may hold."""
        async with chain.writing:
            for token, held in list(chain.behind.items()):
                newest = chain.newest
                if not await self._remember(held, newest):
                    return
                del chain.behind[token]
                if newest == chain.newest:
                    chain.stored = True
                else:  # it changed meanwhile, and another write waits for this one
                    chain.behind[newest] = replace(held, refresh_token=newest)
            if not chain.behind:
                self._unstored.discard(chain)


def _login(oauth: OAuth) -> Login | None:
    """None: it has no refresh token, or does not use it."""
    if oauth.grant is not OAuthGrant.REFRESH_TOKEN or oauth.refresh_token is None:
        return None
    return oauth.provider, oauth.tenant, oauth.client_id, oauth.token_url, oauth.refresh_token
