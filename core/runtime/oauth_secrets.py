"""OAuth secrets that lie outside the database: read for each token that is fetched, as passwords are for each login.

A refresh token that its provider replaces can't be written back to where it lies. What took its place is kept in the
database, under a digest of the token outside, of the client, the token endpoint, and the host and port that get the
access token. So another token outside counts from the next fetch on, and nothing that was kept goes elsewhere. A token
that is stored in the database is led to what followed it in the same way: it may have lain outside before, or still
does for another account.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol
from weakref import WeakValueDictionary

import structlog

from core.domain.account import OAuth, OAuthGrant
from core.domain.clock import Clock
from core.domain.oauth import MANY_LINES, MINUTE, REFERENCES, Granted, outside_of
from core.errors import RelayError
from core.runtime.secret_sources import SecretMissing, SecretSources
from core.smtp.dialogue import TokenFailed
from core.store import accounts, outside_tokens
from core.store.secrets import SecretUnreadable
from core.store.store import Store
from core.transport.smtp import SECRET_SECONDS

log = structlog.get_logger()

Peer = tuple[str, int]  # host and port of an account: who gets the access token
Ask = Callable[[OAuth], Awaitable[Granted]]


class Followers(Protocol):
    """Where it is kept what became of refresh tokens that lie outside."""

    async def find(self, digest: str) -> str | None:
        """The newest; None: nothing followed. Raises SecretUnreadable, RelayError."""
        ...

    async def keep(self, digest: str, token: str) -> bool:
        """False: it could not be stored."""
        ...


class StoredFollowers:
    """In the database."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def find(self, digest: str) -> str | None:
        """See Followers."""
        store, now = self._store, self._clock.now()
        kept = await store.read(lambda session: outside_tokens.find(session, store.secrets, digest))
        if kept is None:
            return None
        if kept.to_note(now):
            with contextlib.suppress(RelayError):  # it is noted the next time
                await store.write(lambda session: outside_tokens.used(session, digest, now=now))
        return kept.token

    async def keep(self, digest: str, token: str) -> bool:
        """See Followers."""
        store, now = self._store, self._clock.now()
        try:
            await store.write(
                lambda session: accounts.outside_token_changed(session, store.secrets, digest, token, now=now)
            )
        except RelayError as error:
            log.error("a new refresh token could not be stored", reason=error.detail, remedy=error.remedy)  # noqa: TRY400 - cause is known
            return False
        log.info("a new refresh token was stored", outside=True)
        return True


class _InProcess:
    """Where there is no database: for as long as the process lives."""

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}

    async def find(self, digest: str) -> str | None:
        return self._kept.get(digest)

    async def keep(self, digest: str, token: str) -> bool:
        self._kept[digest] = token
        return True


class OAuthSecrets:
    """See the module's text. Belongs to the event loop."""

    def __init__(self, sources: SecretSources, followers: Followers | None = None) -> None:
        self._sources = sources
        self._followers: Followers = followers or _InProcess()
        self._unstored: dict[str, str] = {}  # digest -> the newest
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    async def granted(self, oauth: OAuth, peer: Peer, ask: Ask) -> Granted:
        """What `ask` is given with all secrets in their places. Raises TokenFailed.

        Refused, and what lies outside was replaced meanwhile: once more, before anybody is blamed.
        """
        whole = await self._read(oauth)
        try:
            return await self._once(oauth, whole, peer, ask)
        except TokenFailed as failed:
            if failed.code != "token_denied":
                raise
            now = await self._read(oauth)
            if now == whole:
                raise _denied(failed, oauth) from None
        try:
            return await self._once(oauth, now, peer, ask)
        except TokenFailed as failed:
            raise (_denied(failed, oauth) if failed.code == "token_denied" else failed) from None

    async def following(self, oauth: OAuth, peer: Peer, ask: Ask) -> Granted:
        """The same with no secret outside. What is given for a refresh token is the caller's to store.

        Refused, and another followed meanwhile (an account that has it outside was quicker): once more. Raises
        TokenFailed.
        """
        if oauth.refresh_token is None or oauth.grant is not OAuthGrant.REFRESH_TOKEN:
            return await ask(oauth)
        digest = outside_tokens.digest_of(oauth, *peer)
        given = await self._newest(digest, "refresh_token") or oauth.refresh_token
        try:
            return await ask(replace(oauth, refresh_token=given))
        except TokenFailed as failed:
            if failed.code != "token_denied":
                raise
            now = await self._newest(digest, "refresh_token")
            if now is None or now == given:
                raise
        return await ask(replace(oauth, refresh_token=now))

    def store_again(self) -> None:
        """A write that failed is due again."""
        for digest in self._unstored:
            if not self._lock(digest).locked():
                self._spawn(digest)

    async def close(self) -> None:
        """Store what was not stored."""
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*(self._store(digest) for digest in list(self._unstored)))

    async def _read(self, oauth: OAuth) -> OAuth:
        try:
            return await asyncio.to_thread(self._resolved, oauth)
        except SecretMissing as missing:
            raise TokenFailed(
                "secret_missing",
                missing.detail,
                remedy="Provide what the account's oauth names: mount the file or credential, or set the variable and "
                "restart. MPU looks again by itself.",
                pause_seconds=SECRET_SECONDS,
                passing=False,
            ) from None

    def _resolved(self, oauth: OAuth) -> OAuth:
        found: dict[str, Any] = {
            name: self._sources.resolve(reference, lines=name in MANY_LINES)
            for name, reference in outside_of(oauth).items()
        }
        return replace(oauth, **found)

    async def _once(self, oauth: OAuth, whole: OAuth, peer: Peer, ask: Ask) -> Granted:
        if oauth.refresh_token_from is None or oauth.grant is not OAuthGrant.REFRESH_TOKEN:
            return await self.following(whole, peer, ask)
        digest = outside_tokens.digest_of(whole, *peer)
        lock = self._lock(digest)
        async with lock:  # accounts that share it: each use may be the last of what it uses
            given = await self._newest(digest, oauth.refresh_token_from) or whole.refresh_token
            try:
                granted = await ask(replace(whole, refresh_token=given))
            except TokenFailed as failed:
                now = await self._newest(digest, oauth.refresh_token_from) if failed.code == "token_denied" else given
                if now is None or now == given:
                    raise
                given = now  # an account that has it stored was quicker
                granted = await ask(replace(whole, refresh_token=given))
            if granted.refresh_token not in (None, given):
                assert granted.refresh_token is not None
                self._unstored[digest] = granted.refresh_token
        if digest in self._unstored:
            await asyncio.shield(self._spawn(digest))
        return replace(granted, refresh_token=None)

    async def _newest(self, digest: str, source: str) -> str | None:
        if digest in self._unstored:
            return self._unstored[digest]
        where = f"{source}: the provider has put another refresh token in its place, which"
        try:
            return await self._followers.find(digest)
        except SecretUnreadable:
            raise TokenFailed(
                "secret_missing",
                f"{where} the encryption key does not open",
                remedy="Put a new refresh token there: it counts at once. Or restore the encryption key and restart.",
                pause_seconds=SECRET_SECONDS,
                passing=False,
            ) from None
        except RelayError as error:
            detail = f"{where} can't be read: {error.detail}"
            raise TokenFailed(
                "token_delayed", detail, remedy=error.remedy, pause_seconds=MINUTE, passing=True
            ) from None

    def _lock(self, digest: str) -> asyncio.Lock:
        lock = self._locks.get(digest)
        if lock is None:
            lock = self._locks[digest] = asyncio.Lock()
        return lock

    def _spawn(self, digest: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._store(digest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _store(self, digest: str) -> None:
        lock = self._lock(digest)
        async with lock:
            token = self._unstored.get(digest)
            if token is not None and await self._followers.keep(digest, token):
                del self._unstored[digest]


def _denied(failed: TokenFailed, oauth: OAuth) -> TokenFailed:
    """With where the secrets come from: that is where they are mended."""
    places = ", ".join(f"{REFERENCES[name]} {reference}" for name, reference in outside_of(oauth).items())
    return TokenFailed(
        failed.code,
        failed.detail,
        remedy=f"{failed.remedy} From outside come: {places}; correct it there, then resume the account.",
        pause_seconds=failed.pause_seconds,
        passing=failed.passing,
    )
