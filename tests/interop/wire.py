"""A relay of octets on loopback that notes what a client and a server said: what was negotiated, seen on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_EHLO = re.compile(rb"250[- ]([A-Z0-9-]+)(?: ([^\r\n]*))?\r?\n")
_PIPELINED = re.compile(rb"(?:\A|\r\n)MAIL FROM:[^\r\n]*\r\n(?:RCPT TO:|DATA|BDAT)")


@dataclass
class Conversation:
    """One connection, as far as it was in clear."""

    client: list[bytes] = field(default_factory=list)  # as it was read: commands that came together are one
    server: list[bytes] = field(default_factory=list)


class Wire:
    """Listens on a port of its own and passes everything on to `target`."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.conversations: list[Conversation] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = Conversation()
        self.conversations.append(conversation)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        for task in (
            asyncio.create_task(_pass(reader, there_writer, conversation.client)),
            asyncio.create_task(_pass(there_reader, writer, conversation.server)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @property
    def offered(self) -> dict[str, str]:
        """The extensions of the EHLO replies that were in clear, with their parameters."""
        said = b"".join(piece for one in self.conversations for piece in one.server)
        return {name.decode(): (value or b"").decode() for name, value in _EHLO.findall(said)}

    def client_said(self, pattern: bytes) -> bool:
        """Whether a command of this form was seen."""
        return any(re.search(pattern, b"".join(one.client)) for one in self.conversations)

    @property
    def pipelined(self) -> bool:
        """A MAIL and what follows it came in one piece."""
        return any(_PIPELINED.search(piece) for one in self.conversations for piece in one.client)

    @property
    def handshakes(self) -> int:
        """Connections with a TLS handshake (RFC 8446 section 5.1: record type 22)."""
        return sum(any(piece.startswith(b"\x16\x03") for piece in one.client) for one in self.conversations)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            note.append(data)
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
