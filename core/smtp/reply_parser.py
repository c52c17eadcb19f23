"""Replies out of octets (RFC 5321 section 4.2).

    Reply-line     = code ("-" / SP) [text] CRLF ; "-" where more lines follow
All lines of one reply carry the same code. A bare LF ends a line too, since some servers write it; a code alone on its
line is taken. Everything is bounded: a line, the number of lines, and how much of their text is kept.
"""

from __future__ import annotations

import re

from core.domain.printable import printable
from core.domain.reply import Reply
from core.smtp.errors import ProtocolError

MAX_LINE_BYTES = 32 * 1024
MAX_LINES = 512
MAX_TEXT = 16 * 1024  # characters of a reply that are kept: each of its recipients has them in the outcome log
MAX_SEEN = 32  # replies kept, since "250 2.1.5 Ok" comes again and again
MAX_SEEN_BYTES = 48

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)


class ReplyParser:
    """Feed octets, get complete replies; what is incomplete is kept."""

    __slots__ = ("_buffer", "_code", "_lines", "_room", "_seen", "error")

    def __init__(self) -> None:
        self.error: ProtocolError | None = None  # set: what was fed is no SMTP from here on
        self._buffer = b""
        self._code = b""
        self._lines: list[str] = []
        self._room = MAX_TEXT
        self._seen: dict[bytes, Reply] = {}

    @property
    def has_partial(self) -> bool:
        """Whether octets of an incomplete reply are held."""
        return bool(self._buffer or self._lines)

    @property
    def partial_digit(self) -> bytes:
        """The first octet of the incomplete reply; b"" where there is none."""
        return (self._code if self._lines else self._buffer)[:1]

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that are complete now. After a fault, `error` is set; the replies before it still count."""
        if self.error is not None:
            return []
        if self._buffer:
            data = self._buffer + data
        lines = data.split(b"\n")
        rest = lines.pop()
        self._buffer = rest
        replies: list[Reply] = []
        try:
            for line in lines:
                reply = self._line(line)
                if reply is not None:
                    replies.append(reply)
            _check_length(rest)
        except ProtocolError as error:
            self.error = error
            self._buffer = b""
        return replies

    def _line(self, line: bytes) -> Reply | None:
        """Take one line without its LF; the reply if this was its last."""
        if not self._lines and (seen := self._seen.get(line)) is not None:
            return seen
        _check_length(line)
        match = _LINE.fullmatch(line.removesuffix(b"\r"))
        if match is None:
            raise ProtocolError(f"the server sent what is not a reply: {shown(line)}")
        code, more, text = match.groups()
        if not self._lines:
            self._code = code
        elif code != self._code:
            raise ProtocolError(f"the server sent a reply of mixed codes: {self._code.decode()} and {code.decode()}")
        words = printable(text.decode("utf-8", "replace")[: self._room]) if text else ""
        if more == b"-":
            self._lines.append(words)
            self._room -= len(words)
            if len(self._lines) >= MAX_LINES:
                raise ProtocolError(f"the server sent a reply of over {MAX_LINES} lines")
            return None
        if not self._lines:
            reply = Reply(int(code), (words,))
            if len(self._seen) < MAX_SEEN and len(line) <= MAX_SEEN_BYTES:
                self._seen[line] = reply
            return reply
        reply = Reply(int(code), (*self._lines, words))
        self._lines, self._room = [], MAX_TEXT
        return reply


def _check_length(line: bytes) -> None:
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"the server sent a line of over {MAX_LINE_BYTES} octets")


def shown(line: bytes) -> str:
    """The start of a line, safe to show."""
    return ascii(line[:80].decode("ascii", "replace"))
