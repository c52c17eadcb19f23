"""Content transfer encodings (RFC 2045 section 6), written in pieces: what is done to one leaf of a message.

A leaf's octets come in pieces of any size with CRLF line ends that are never torn, and leave the same way. Memory is
bounded. No line that leaves is over 76 octets, but for the lines of a quoted-printable leaf that were short enough.
"""

from __future__ import annotations

import binascii
import re
from enum import StrEnum

from core.domain.content import MAX_LINE_OCTETS
from core.errors import MessageRejected

_QP_HOLD = 8_192
_WRAP = 76  # RFC 2045 section 6.7, 6.8
_BASE64_JUNK = re.compile(rb"[^A-Za-z0-9+/=\s]")
_QP_RAW = re.compile(rb"[\x00\x80-\xff]")
_QP_UNITS = re.compile(rb"((?>(?>=[0-9A-Fa-f]{2}|[^\r\n]){24}))(?=[^\r\n])")


class Coding(StrEnum):
    """What is done to one leaf."""

    KEEP = "keep"
    QUOTED_PRINTABLE = "quoted-printable"
    BASE64 = "base64"
    REWRAP_BASE64 = "rewrap base64"
    REWRAP_QUOTED_PRINTABLE = "rewrap quoted-printable"


class Encoder:
    """One leaf, in pieces."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be encoded of the next piece."""
        raise NotImplementedError

    def end(self) -> bytes:
        """The rest."""
        raise NotImplementedError


class _QuotedPrintable(Encoder):
    def feed(self, data: bytes) -> bytes:
        data = self._held + data
        cut = data.rfind(b"\r\n") + 2 if b"\r\n" in data else 0
        out = self._encode(data[:cut])
        self._held = data[cut:]
        if len(self._held) > _QP_HOLD:
            out += self._encode(self._held) + b"=\r\n"
            self._held = b""
        return out

    def end(self) -> bytes:
        out, self._held = self._encode(self._held), b""
        return out

    def _encode(self, data: bytes) -> bytes:
        out = binascii.b2a_qp(data)
        return out if b"\r\n" in data else out.replace(b"\n", b"\r\n")


class _RewrapQuotedPrintable(_QuotedPrintable):
    """Soft line breaks into long lines; raw octets encoded."""

    def feed(self, data: bytes) -> bytes:
        data = self._held + data
        cut = data.rfind(b"\r\n") + 2 if b"\r\n" in data else 0
        out = self._encode(data[:cut])
        self._held = data[cut:]
        if len(self._held) > _QP_HOLD:
            whole = len(self._held) - 3
            at = self._held.rfind(b"=", whole)
            whole = at if at >= 0 else whole
            out += self._encode(self._held[:whole]) + b"=\r\n"
            self._held = self._held[whole:]
        return out

    def _encode(self, data: bytes) -> bytes:
        data = _QP_RAW.sub(lambda match: b"=%02X" % match[0][0], data)
        return b"".join(
            _QP_UNITS.sub(rb"\1=\r\n", line) if len(line) > MAX_LINE_OCTETS else line
            for line in data.splitlines(keepends=True)
        )


class _Base64(Encoder):
    def feed(self, data: bytes) -> bytes:
        data = self._held + data
        cut = (len(data) - 1) // 57 * 57 if data else 0  # something stays for the last line, which has no line end
        self._held = data[cut:]
        return _wrapped(binascii.b2a_base64(data[:cut], newline=False)) if cut else b""

    def end(self) -> bytes:
        out, self._held = binascii.b2a_base64(self._held, newline=False), b""
        return out


class _RewrapBase64(Encoder):
    def feed(self, data: bytes) -> bytes:
        if _BASE64_JUNK.search(data):
            raise MessageRejected("5.6.3", "a base64 part with a line over 998 octets holds other characters")
        data = self._held + data.translate(None, b" \t\r\n\x0b\x0c")
        cut = (len(data) - 1) // _WRAP * _WRAP if data else 0
        self._held = data[cut:]
        return _wrapped(data[:cut])

    def end(self) -> bytes:
        out, self._held = self._held, b""
        return out


def _wrapped(data: bytes) -> bytes:
    lines = [data[at : at + _WRAP] for at in range(0, len(data), _WRAP)]
    return b"".join(line + b"\r\n" for line in lines)


def encoder_for(coding: Coding) -> Encoder | None:
    match coding:
        case Coding.QUOTED_PRINTABLE:
            return _QuotedPrintable()
        case Coding.BASE64:
            return _Base64()
        case Coding.REWRAP_BASE64:
            return _RewrapBase64()
        case Coding.REWRAP_QUOTED_PRINTABLE:
            return _RewrapQuotedPrintable()
        case _:
            return None
