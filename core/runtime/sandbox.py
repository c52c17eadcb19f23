"""The sandbox of `mpu serve --demo`: an SMTP server in our own process, to try MPU without an account.

It really speaks SMTP (aiosmtpd) on a loopback port and any login is good. The newest mails stay in memory, bounded in
number and size. Two local parts let one see what failures look like: `reject@...` is refused for good (550 5.1.1),
`defer@...` for now (451 4.3.0). It runs on the caller's event loop; aiosmtpd's Controller would bring a thread.
"""

from __future__ import annotations

import asyncio
import re
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import structlog
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from core.domain.encoded_word import decode_words
from core.errors import NotFound
from core.runtime.views import SandboxMail, SandboxSource

log = structlog.get_logger()

MAX_SUBJECT_CHARACTERS = 500
_SUBJECT = re.compile(rb"(?im)^subject:[ \t]*((?:[^\r\n]|\r?\n[ \t])*)")


class Sandbox:
    """Start, stop, and what was received. `clock` gives seconds since the epoch."""

    def __init__(
        self,
        *,
        port: int = 0,
        kept_messages: int = 1000,
        kept_bytes: int = 100 << 20,
        max_message_bytes: int = 50 << 20,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._wanted_port = port
        self._kept_messages = kept_messages
        self._kept_bytes = kept_bytes
        self._max_message_bytes = min(max_message_bytes, kept_bytes)
        self._clock = clock
        self._kept: deque[SandboxSource] = deque()
        self._bytes = 0
        self._last_id = 0
        self._server: asyncio.Server | None = None
        self._connections: weakref.WeakSet[_Smtp] = weakref.WeakSet()
        self.host = "127.0.0.1"
        self.port = 0

    async def start(self) -> int:
        """Listen on loopback; the port. Raises OSError where the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: self._connection(loop), self.host, self._wanted_port)
        self.port = int(self._server.sockets[0].getsockname()[1])
        log.info("sandbox listens", host=self.host, port=self.port)
        return self.port

    async def stop(self) -> None:
        """Close the port and every connection. Harmless when not started. What was received stays readable."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for connection in list(self._connections):
            connection.hang_up()
        await server.wait_closed()
        await asyncio.sleep(0)  # connection_lost of what was just closed runs now

    def list(self) -> Sequence[SandboxMail]:
        """Newest first."""
        return [source.mail for source in reversed(self._kept)]

    def get(self, mail_id: int) -> SandboxSource:
        """Raises NotFound: never there, or pushed out by newer mail."""
        for source in reversed(self._kept):
            if source.mail.id == mail_id:
                return source
        raise NotFound("sandbox mail", str(mail_id))

    def mails(self) -> Sequence[SandboxSource]:
        """Everything kept, oldest first."""
        return tuple(self._kept)

    def keep(self, sender: str, recipients: Sequence[str], data: bytes) -> None:
        """Remember a mail, and forget the oldest ones where number or size would go over the limit."""
        self._last_id += 1
        mail = SandboxMail(self._last_id, self._clock(), sender, tuple(recipients), subject_of(data), len(data))
        self._kept.append(SandboxSource(mail, data))
        self._bytes += len(data)
        while len(self._kept) > self._kept_messages or (self._bytes > self._kept_bytes and len(self._kept) > 1):
            self._bytes -= self._kept.popleft().mail.size_bytes

    def _connection(self, loop: asyncio.AbstractEventLoop) -> _Smtp:
        connection = _Smtp(
            _Handler(self),
            data_size_limit=self._max_message_bytes,
            enable_SMTPUTF8=True,
            hostname="sandbox.mpu.localhost",
            ident="MPU sandbox",
            auth_require_tls=False,  # loopback only
            authenticator=lambda *_: AuthResult(success=True),
            loop=loop,
        )
        self._connections.add(connection)
        return connection


class _Smtp(SMTP):
    def hang_up(self) -> None:
        if self.transport is not None:
            cast("asyncio.Transport", self.transport).abort()  # uvloop's is one without saying so


class _Handler:
    """aiosmtpd's hooks; their names are fixed by it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        # aiosmtpd reads command by command from one stream, so commands may come in one segment (RFC 2920)
        return [*responses[:-1], "250-PIPELINING", responses[-1]]

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        local_part = address.partition("@")[0].lower()
        if local_part == "reject":
            return "550 5.1.1 The sandbox refuses everything for reject@"
        if local_part == "defer":
            return "451 4.3.0 The sandbox puts everything for defer@ off"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 Recipient ok"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - as above
        content: Any = envelope.content
        sender = "" if envelope.mail_from in (None, "<>") else str(envelope.mail_from)
        self._sandbox.keep(sender, envelope.rcpt_tos, content or b"")
        return "250 2.0.0 Kept in the sandbox"


def subject_of(data: bytes) -> str:
    """The Subject for a list, decoded as far as it can be, on one line and cut."""
    header = re.split(rb"\r?\n\r?\n", data[: 1 << 16], maxsplit=1)[0]
    match = _SUBJECT.search(header)
    if match is None:
        return ""
    return " ".join(decode_words(match[1]).split())[:MAX_SUBJECT_CHARACTERS]
