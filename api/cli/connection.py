"""One HTTP connection: uvicorn's, with limits before any key is shown, and problem+json where HTTP itself is wrong.

The header of a request (its line and all fields) has a largest size, in whatever pieces it comes; so have fields behind
a chunked body and extensions of its chunks. What is no HTTP, or too large, is answered and the connection closed; it
is read on for a moment, since a close with octets unread would take the answer away from its reader (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
import termios
from contextlib import suppress
from typing import Any

import httptools
from fastapi.responses import JSONResponse
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from api.cli.reception import Guests
from api.errors import HEADER_TOO_LARGE, MALFORMED_REQUEST, TOO_SLOW, URL_TOO_LONG, problem
from api.middleware import WITH_EVERY_ANSWER

MAX_URL_BYTES = 65_535  # what the parser of URLs takes
_ACKED = slice(120, 128)  # tcpi_bytes_acked of struct tcp_info (linux/tcp.h)
LINGER_SECONDS = 2.0  # for an answer to reach who is still sending


class _HeaderTooLarge(Exception):
    """Raised through the parser, which stops at it."""


class Connection(HttpToolsProtocol):
    """See the module's text. `max_header_bytes` in octets; `guests`: who bounds its time and the number of all."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        max_header_bytes: int,
        guests: Guests,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.url = b""
        self._max_header_bytes = max_header_bytes
        self._guests = guests
        self._unused = 0  # octets since the last whole header or piece of a body
        self._begun = False  # whether a part of a header came
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """The handshake, if any, is through."""
        super().connection_made(transport)
        self._guests.came(self)
        self._guests.waits(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed by whomever."""
        self._guests.left(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Octets of the client."""
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._unused += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # nobody has to upgrade (RFC 9110, 7.8): the request was taken as it is
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _HeaderTooLarge):
                self._refuse_header()
            else:
                self._refuse(problem(MALFORMED_REQUEST, _cause(error), remedy="Send HTTP/1.1 (RFC 9112)."))
            return
        if self._unused > self._max_header_bytes:
            self._refuse_header()

    def on_message_begin(self) -> None:
        """The first octet of a request was read."""
        super().on_message_begin()
        self._unused = 0
        self._begun = True
        self._guests.begins(self)

    def on_headers_complete(self) -> None:
        """Its header is whole, and may have come in one piece that is larger than it may be."""
        self._unused = 0
        fields = sum(len(name) + len(value) + 4 for name, value in self.headers)  # with ": " and the line's end
        size = len(self.url) + fields
        if size > self._max_header_bytes or len(self.url) > MAX_URL_BYTES:
            raise _HeaderTooLarge
        self._begun = False
        self._guests.asked(self)
        super().on_headers_complete()
        self.headers = []  # fields behind a chunked body are not the header's: nobody may take them for it

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._unused = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        """It owes the next request, if it has not sent that already."""
        next_one = bool(self.pipeline)
        super().on_response_complete()
        if not next_one:
            self._guests.waits(self)

    def pause_writing(self) -> None:
        """The client does not take what is written."""
        super().pause_writing()
        self._guests.stalls(self)

    def resume_writing(self) -> None:
        """It took most of it."""
        super().resume_writing()
        if self._unanswered() is None:
            self._guests.waits(self)
        else:
            self._guests.asked(self)

    # --- as a guest ---

    def time_is_over(self) -> None:
        """Its header, or the end of its connection, did not come in time."""
        if self._refused or self.transport.is_closing():
            self.drop()
        elif self._begun:
            seconds = self._guests.header_seconds
            self._refuse(problem(TOO_SLOW, f"no whole header came within {seconds:g} seconds", remedy="Try again."))
        else:  # nothing was begun that could be answered
            self.transport.close()

    def drop(self) -> None:
        """Close at once."""
        self.transport.abort()

    def unsent(self) -> int:
        """As Guest has it. TLS tells nothing of what lies in the layers below it: there the kernel is asked."""
        waiting = int(self.transport.get_write_buffer_size())
        if self.transport.get_extra_info("sslcontext") is None:
            return waiting
        queued, taken = _sent(self.transport.get_extra_info("socket").fileno())
        return taken + 1 if waiting or queued else 0

    # --- what is refused ---

    def _refuse_header(self) -> None:
        limit = self._max_header_bytes
        if len(self.url) > limit // 2:
            answer = problem(
                URL_TOO_LONG, f"at most {min(limit, MAX_URL_BYTES)} octets are taken", remedy="Shorten it."
            )
        else:
            remedy = "Send fewer or shorter fields, or raise MPU_MAX_REQUEST_HEADER_BYTES."
            answer = problem(HEADER_TOO_LARGE, f"at most {limit} octets are taken", remedy=remedy)
        self._refuse(answer)

    def _refuse(self, answer: JSONResponse) -> None:
        """Take nothing more; answer, unless an earlier request has no whole answer yet."""
        self._refused = True
        cycle = self._unanswered()
        if cycle is not None:
            if self.pipeline and cycle.more_body:  # nothing will ever complete it
                self.transport.close()
                return
            if self.pipeline or cycle.response_started or not cycle.more_body:
                cycle.keep_alive = False  # its answer is the last
                return
            cycle.disconnected = True
            cycle.message_event.set()
        lines = [STATUS_LINE[answer.status_code]]
        for name, value in (*self.server_state.default_headers, *answer.raw_headers, *WITH_EVERY_ANSWER):
            lines += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join(lines) + b"connection: close\r\n\r\n" + bytes(answer.body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def shutdown(self) -> None:
        """The service stops."""
        super().shutdown()
        cycle = self._unanswered()
        if self._refused and cycle is not None and cycle.disconnected:
            self.transport.close()

    def _unanswered(self) -> RequestResponseCycle | None:
        """The last request whose header was whole, while its answer is not."""
        cycle: Any = self.cycle  # None before the first, whatever uvicorn's annotation says
        return None if cycle is None or cycle.response_complete else cycle


def _sent(fd: int) -> tuple[int, int]:
    """Octets that a TCP connection has in the kernel's queue, and of all those that the other side has taken."""
    with suppress(OSError):  # it is gone
        queued = int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        with socket.socket(fileno=os.dup(fd)) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.stop)
        return queued, int.from_bytes(info[_ACKED], sys.byteorder)
    return 0, 0


def _cause(error: httptools.HttpParserError) -> str:
    """In the parser's words, but not those of an error that nobody thought of."""
    if isinstance(error, httptools.HttpParserCallbackError):
        return "the URL or a field can't be read"
    return str(error) or "it can't be read"
