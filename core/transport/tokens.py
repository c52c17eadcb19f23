"""The access token of an account: fetched once for all connections, ahead of its end, and anew after a refusal.

- A token is kept in memory until its end. From `_renew_at` on whoever asks gets it still, while the next is fetched.
- Those who need one while there is none wait for the same fetch; that one of them goes away does not end it.
- A login that is refused with 535 drops the token and is tried once more with a fresh one. If that is refused too, the
  account is to blame, and so is the next that is refused before any was taken: nothing hammers a login.
- A refresh token that changes with its use is handed to `rotated` before the access token is given out. Only one that
  was used can change: what else a provider gives is not looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import structlog

from core.domain.account import OAuth, OAuthGrant
from core.domain.clock import Clock
from core.domain.oauth import MINUTE, Granted
from core.domain.reply import Phase
from core.smtp.dialogue import ConnectFailed, TokenFailed

AHEAD_SECONDS = 300.0  # a token is renewed so long before its end, or at the last fifth of a short life
AHEAD_SHARE = 0.2

log = structlog.get_logger()

Fetch = Callable[[OAuth, str | None], Awaitable[Granted]]
Rotated = Callable[[OAuth, str], Awaitable[None]]
Used = Callable[[], None]


@dataclass(slots=True)
class _Token:
    text: str = field(repr=False)
    renew_at: float  # by the monotonic clock, as is `ends_at`
    ends_at: float
    second: bool  # was fetched because the one before was refused


class TokenSource:
    """Of one set of OAuth settings (core/smtp/dialogue.py, AccessTokens). Belongs to the event loop."""

    def __init__(
        self, oauth: OAuth, username: str | None, *, clock: Clock, fetch: Fetch, rotated: Rotated, used: Used
    ) -> None:
        """`rotated` is told the settings and the refresh token that replaces theirs; it must not raise, and must keep
        the token though it is cancelled. `used`: somebody wants an access token.
        """
        self.oauth = oauth
        self._username = username
        self._clock = clock
        self._fetch = fetch
        self._rotated = rotated
        self._used = used
        self._token: _Token | None = None
        self._fetching: asyncio.Task[str] | None = None
        self._was_refused = False  # and none was taken since

    async def __call__(self) -> str:
        """A token that is good now. Raises TokenFailed."""
        self._used()
        now = self._clock.monotonic()
        token = self._token
        if token is not None and now < token.ends_at:
            if now >= token.renew_at and self._fetching is None:
                self._start().add_done_callback(self._renewed)
            return token.text
        task = self._fetching or self._start()
        try:
            return await asyncio.shield(task)
        except TokenFailed as failed:
            raise failed.copy() from None
        except asyncio.CancelledError:
            if task.cancelled():  # by close(), not the caller
                raise ConnectFailed(Phase.LOCAL, "closed", "the service is stopping") from None
            raise

    async def refused(self, token: str) -> bool:
        """The server answered 535 to it. True: try once more, with the next."""
        present = self._token
        if present is None or present.text != token:
            return True  # it was replaced meanwhile
        self._token = None
        self._was_refused = True
        return not present.second

    def accepted(self, token: str) -> None:
        """The server took it."""
        self._was_refused = False
        if self._token is not None and self._token.text == token:
            self._token.second = False

    async def close(self, patience_seconds: float = 0.0) -> None:
        """Give up a fetch that is under way; one that may change a refresh token is waited for so long."""
        task = self._fetching
        if task is None:
            return
        if self._refreshes:  # the provider may have put another in its place, and the answer is on its way
            await asyncio.wait({task}, timeout=patience_seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @property
    def _refreshes(self) -> bool:
        held = self.oauth.refresh_token is not None or self.oauth.refresh_token_from is not None
        return held and self.oauth.grant is OAuthGrant.REFRESH_TOKEN

    def _start(self) -> asyncio.Task[str]:
        self._fetching = asyncio.get_running_loop().create_task(self._get())
        return self._fetching

    async def _get(self) -> str:
        second = self._was_refused
        try:
            granted = await self._fetch(self.oauth, self._username)
            if self._refreshes and granted.refresh_token not in (None, self.oauth.refresh_token):
                before, self.oauth = self.oauth, replace(self.oauth, refresh_token=granted.refresh_token)
                await self._rotated(before, granted.refresh_token)
            life = granted.lifetime_seconds
            now = self._clock.monotonic()
            renew_at = now + life - min(AHEAD_SECONDS, AHEAD_SHARE * life)
            self._token = _Token(granted.access_token, renew_at, now + life, second)
            return granted.access_token
        finally:
            self._fetching = None

    def _renewed(self, task: asyncio.Task[str]) -> None:
        """A fetch ahead of the end is over, and nobody may have waited for it."""
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        if self._token is not None:
            self._token.renew_at = self._clock.monotonic() + MINUTE
        detail = error.detail if isinstance(error, TokenFailed) else type(error).__name__
        log.warning("access token not renewed yet", reason=detail, username=self._username)
