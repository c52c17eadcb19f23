"""Re-encoding of leaf parts where a server or a line over 998 octets forces it (RFC 2045, RFC 2046, RFC 6152).

The body comes in pieces of any size, with CRLF line ends, and leaves in pieces; memory is bounded. Two passes: `Survey`
walks the MIME structure and decides leaf by leaf, `Recoder` does what was decided. Boundaries are walked to depth 20.

What is never changed, and makes the message unsendable (5.6.3) where it would have to be: signed and encrypted mail and
parts, parts below depth 20, parts whose encoding is not known. Text becomes quoted-printable, or base64 where most of
it isn't ASCII; other types become base64; what is base64 or quoted-printable already is wrapped anew. Preamble and
epilogue, which nobody is to read (RFC 2046 section 5.1.1), lose octets over 127.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from core.domain.content import MAX_LINE_OCTETS, has_long_line, long_line
from core.domain.header import Header, split_header
from core.errors import MessageRejected

MAX_DEPTH = 20
MAX_PARTS = 10_000
_MAX_PART_HEADER = 65_536
_MAX_DELIMITER = 1_024
_QP_HOLD = 8_192
_WRAP = 76  # RFC 2045 section 6.7, 6.8

_TYPE = re.compile(rb"\s*([!-.0-~]+/[!-:<-~]+)")
_BOUNDARY = re.compile(rb';\s*boundary\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]+))', re.IGNORECASE)
_FROZEN_TYPES = re.compile(rb"multipart/(?:signed|encrypted)|application/(?:x-)?pkcs7-|application/pgp-encrypted")
_BASE64_JUNK = re.compile(rb"[^A-Za-z0-9+/=\s]")
_QP_RAW = re.compile(rb"[\x00\x80-\xff]")
_QP_UNITS = re.compile(rb"((?:=[0-9A-Fa-f]{2}|[^\r\n]){24})(?=[^\r\n])")
_FILLER_RAW = re.compile(rb"[\x00\x80-\xff]")
_NUL = re.compile(rb"\x00")
_FILLER_LONG = re.compile(rb"([^\r\n]{450})(?=[^\r\n])")


class Coding(StrEnum):
    """What is done to one leaf."""

    KEEP = "keep"
    QUOTED_PRINTABLE = "quoted-printable"
    BASE64 = "base64"
    REWRAP_BASE64 = "rewrap base64"
    REWRAP_QUOTED_PRINTABLE = "rewrap quoted-printable"


@dataclass(slots=True)
class _Part:
    """What a header says of the part below it."""

    type: bytes = b"text/plain"
    encoding: bytes = b"7bit"
    boundary: bytes = b""
    frozen: bool = False  # signed, encrypted or not understood: no octet changes

    @property
    def nests(self) -> bool:
        return not self.frozen and self.type == b"message/rfc822" and self.encoding in (b"7bit", b"8bit", b"binary")


def _part_of(header: Header, depth: int) -> _Part:
    value = header.first(b"content-type") or b""
    found = _TYPE.match(value)
    part = _Part(type=found[1].lower() if found else b"text/plain")
    part.encoding = (header.first(b"content-transfer-encoding") or b"7bit").strip().lower()
    part.frozen = bool(_FROZEN_TYPES.match(part.type)) or b"dkim-signature" in header.by_name
    if part.type.startswith(b"multipart/") and not part.frozen:
        boundary = _BOUNDARY.search(value)
        if boundary is not None and depth < MAX_DEPTH:
            part.boundary = re.sub(rb"\\(.)", rb"\1", boundary[1]) if boundary[1] is not None else boundary[2]
        part.frozen = not part.boundary
    elif part.type.startswith(b"message/") and (part.type != b"message/rfc822" or depth >= MAX_DEPTH):
        part.frozen = True
    return part


class _Walker:
    """The MIME structure as events: `on_header`, `on_data`, `on_end` for leaves, `on_filler`, `on_raw` for the rest."""

    def __init__(self, header: Header) -> None:
        self._delimiters: list[bytes] = []
        self._buffer = b""
        self._position = 0
        self._line_start = True
        self._pending = b""  # a line end that belongs to the delimiter, if one follows
        self._mode = "leaf"
        self._head: list[bytes] = []
        self._head_size = 0
        self._parts = 0
        self._enter(_part_of(header, 0), None)

    # What a pass does with it.
    def on_header(self, block: bytes | None, part: _Part, *, leaf: bool) -> None:
        """A part begins; `block` is its header with the blank line, None for the message itself."""
        raise NotImplementedError

    def on_data(self, data: bytes) -> None:
        """Octets of the present leaf."""
        raise NotImplementedError

    def on_end(self) -> None:
        """The present leaf is complete."""
        raise NotImplementedError

    def on_filler(self, data: bytes) -> None:
        """Octets of a preamble or an epilogue."""
        raise NotImplementedError

    def on_raw(self, data: bytes) -> None:
        """A delimiter, or the line end before it."""
        raise NotImplementedError

    def _enter(self, part: _Part, block: bytes | None) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise MessageRejected("5.6.3", f"there are more than {MAX_PARTS} parts in a mail that must be re-encoded")
        if part.boundary:
            self._delimiters.append(b"--" + part.boundary.rstrip(b" \t"))
            self._mode = "filler"
        else:
            self._mode = "header" if part.nests else "leaf"
        self.on_header(block, part, leaf=self._mode == "leaf")

    def _walk(self, data: bytes, *, final: bool) -> None:
        self._buffer = self._buffer[self._position :] + data
        self._position = 0
        while self._position < len(self._buffer) and self._step(final=final):
            pass
        if final:
            self._finish()

    def _step(self, *, final: bool) -> bool:
        """One line, or one run of lines without a delimiter. False: more is needed."""
        buffer, at = self._buffer, self._position
        if self._mode != "header" and self._line_start and not final and len(buffer) - at < 2:
            return False  # it may become a delimiter
        if self._mode != "header" and not (self._line_start and buffer.startswith(b"--", at)):
            return self._run(final=final)
        end = buffer.find(b"\r\n", at)
        line = buffer[at : end if end >= 0 else len(buffer)]
        if end < 0 and not final and len(line) < (_MAX_PART_HEADER if self._mode == "header" else _MAX_DELIMITER):
            return False
        if not self._delimiter(line, b"\r\n" if end >= 0 else b""):
            if self._mode != "header":
                return self._run(final=final)
            self._header_line(line)
        self._position = at + len(line) + 2
        return True

    def _run(self, *, final: bool) -> bool:
        """Data to the next line that begins with two hyphens, or to the end of what is there."""
        buffer, at = self._buffer, self._position
        end = buffer.find(b"\r\n--", at)
        if end >= 0:
            self._emit(buffer[at:end])
            self._pending, self._position, self._line_start = b"\r\n", end + 2, True
            return True
        end = len(buffer)
        if final and buffer.endswith(b"\r\n", at):
            self._emit(buffer[at:-2])
            self._pending = b"\r\n"
        else:
            torn = -1 if final else buffer.rfind(b"\r", max(at, end - 3))
            end = torn if torn >= 0 else end
            self._emit(buffer[at:end])
        self._position, self._line_start = end, False
        return False

    def _emit(self, data: bytes) -> None:
        data = self._pending + data
        self._pending = b""
        if data:
            (self.on_data if self._mode == "leaf" else self.on_filler)(data)

    def _delimiter(self, line: bytes, line_end: bytes) -> bool:
        if not line.startswith(b"--") or not self._delimiters:
            return False
        bare = line.rstrip(b" \t")
        for level in range(len(self._delimiters) - 1, -1, -1):
            close = bare == self._delimiters[level] + b"--"
            if close or bare == self._delimiters[level]:
                self._leave()
                self.on_raw(self._pending + line + line_end)
                self._pending = b""
                del self._delimiters[level if close else level + 1 :]
                self._mode, self._line_start = "filler" if close else "header", True
                return True
        return False

    def _leave(self) -> None:
        if self._mode == "header" and self._head:
            self._open_part(b"".join(self._head))
        if self._mode == "leaf":
            self.on_end()

    def _header_line(self, line: bytes) -> None:
        self._head.append(line + b"\r\n")
        self._head_size += len(line) + 2
        if self._head_size > _MAX_PART_HEADER:
            raise MessageRejected("5.6.3", "the header of a part is longer than 64 KiB")
        if not line:
            self._open_part(b"".join(self._head))

    def _open_part(self, block: bytes) -> None:
        self._head, self._head_size = [], 0
        fields = block[:-2] if block.endswith(b"\r\n\r\n") or block == b"\r\n" else block
        self._enter(_part_of(split_header(fields) if fields else Header(b"", [], {}, []), len(self._delimiters)), block)
        self._line_start = True

    def _finish(self) -> None:
        if self._mode == "header" and self._head:
            self._open_part(b"".join(self._head))
        if self._pending:
            self._emit(b"")
        if self._mode == "leaf":
            self.on_end()


class _Survey(_Walker):
    """Decides for each leaf, in order."""

    def __init__(self, header: Header, *, seven_bit: bool) -> None:
        self.seven_bit = seven_bit
        self.plan: list[Coding] = []
        self.top = _Part()
        self._part = self.top
        self._reset()
        super().__init__(header)

    def _reset(self) -> None:
        self._octets = self._raw = self._line = 0
        self._nul = self._long = False

    def survey(self, chunks: Iterable[bytes]) -> list[Coding]:
        """The plan."""
        for chunk in chunks:
            self._walk(chunk, final=False)
        self._walk(b"", final=True)
        return self.plan

    def on_header(self, block: bytes | None, part: _Part, *, leaf: bool) -> None:
        if block is None:
            self.top = part
        elif has_long_line(block):
            raise MessageRejected("5.6.3", "a line in the header of a part is longer than 998 octets")
        elif self.seven_bit and not block.isascii():
            raise MessageRejected("5.6.3", "the header of a part holds octets that the server doesn't take")
        if leaf:
            self._part = part
            self._reset()

    def on_data(self, data: bytes) -> None:
        self._octets += len(data)
        if not data.isascii():
            self._raw += len(data) - len(data.decode("ascii", "ignore"))
        self._nul = self._nul or b"\0" in data
        long, self._line = long_line(data, self._line)
        self._long = self._long or long

    def on_end(self) -> None:
        long = self._long or self._line > MAX_LINE_OCTETS
        wanted = self._nul or long or (self.seven_bit and self._raw > 0)
        self.plan.append(self._coding() if wanted else Coding.KEEP)

    def _coding(self) -> Coding:
        part = self._part
        if part.frozen:
            raise MessageRejected(
                "5.6.3", f"a part of type {part.type.decode('ascii', 'replace')[:60]} would have to be re-encoded"
            )
        if part.encoding in (b"", b"7bit", b"8bit", b"binary"):
            text = part.type.startswith(b"text/") and self._raw * 4 <= self._octets
            return Coding.QUOTED_PRINTABLE if text else Coding.BASE64
        if part.encoding == b"quoted-printable":
            return Coding.REWRAP_QUOTED_PRINTABLE
        if part.encoding == b"base64" and not self._raw and not self._nul:
            return Coding.REWRAP_BASE64
        raise MessageRejected("5.6.3", "a part that would have to be re-encoded has an encoding that is not understood")

    def on_filler(self, data: bytes) -> None:
        """Nothing to decide."""

    def on_raw(self, data: bytes) -> None:
        """Nothing to decide."""


class _Recoder(_Walker):
    """Does what was decided; what goes out gathers in `_out`."""

    def __init__(self, header: Header, plan: list[Coding], *, seven_bit: bool) -> None:
        self._plan = iter(plan)
        self._seven_bit = seven_bit
        self._encoder: _Encoder | None = None
        self._out: list[bytes] = []
        self._tail = b"\r\n"
        super().__init__(header)

    def recode(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The new body."""
        for chunk in chunks:
            self._walk(chunk, final=False)
            if out := self._take():
                yield out
        self._walk(b"", final=True)
        out = self._take()
        yield out if self._tail == b"\r\n" else out + b"\r\n"  # base64 that ends the message

    def _take(self) -> bytes:
        out, self._out = b"".join(self._out), []
        self._tail = (self._tail + out)[-2:]
        return out

    def on_header(self, block: bytes | None, part: _Part, *, leaf: bool) -> None:
        coding = next(self._plan, Coding.KEEP) if leaf else Coding.KEEP
        self._encoder = _encoder(coding)
        if block is None:
            return
        encoding = _new_encoding(part, coding, leaf=leaf, seven_bit=self._seven_bit)
        self._out.append(block if encoding is None else _with_encoding(block, encoding))

    def on_data(self, data: bytes) -> None:
        self._out.append(data if self._encoder is None else self._encoder.feed(data))

    def on_end(self) -> None:
        if self._encoder is not None:
            self._out.append(self._encoder.end())
            self._encoder = None

    def on_filler(self, data: bytes) -> None:
        data = (_FILLER_RAW if self._seven_bit else _NUL).sub(b"?", data)
        self._out.append(_FILLER_LONG.sub(rb"\1\r\n", data) if len(data) > MAX_LINE_OCTETS // 2 else data)

    def on_raw(self, data: bytes) -> None:
        self._out.append(data)


@dataclass(frozen=True, slots=True)
class Recoding:
    """What re-encoding does to a message."""

    header: Header
    plan: list[Coding]
    seven_bit: bool
    transfer_encoding: bytes | None  # new Content-Transfer-Encoding of the message itself; None: as it is

    def run(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The re-encoded body of the same octets that were surveyed."""
        return _Recoder(self.header, self.plan, seven_bit=self.seven_bit).recode(chunks)


def survey(header: Header, chunks: Iterable[bytes], *, seven_bit: bool) -> Recoding:
    """Decide how the body in `chunks` is re-encoded so that no line is over 998 octets and no octet is NUL.

    `seven_bit`: nor over 127. Raises MessageRejected 5.6.3 where that can't be done without breaking something.
    """
    walker = _Survey(header, seven_bit=seven_bit)
    plan = walker.survey(chunks)
    top = walker.top
    leaf = not top.boundary and not top.nests
    coding = plan[0] if leaf and plan else Coding.KEEP
    return Recoding(header, plan, seven_bit, _new_encoding(top, coding, leaf=leaf, seven_bit=seven_bit))


def _new_encoding(part: _Part, coding: Coding, *, leaf: bool, seven_bit: bool) -> bytes | None:
    if coding in (Coding.QUOTED_PRINTABLE, Coding.BASE64):
        return coding.value.encode()
    if not leaf and seven_bit and part.encoding in (b"8bit", b"binary"):
        return b"7bit"
    return None


def _with_encoding(block: bytes, encoding: bytes) -> bytes:
    kept = block[:-2]
    if kept:
        header = split_header(kept)
        for _, start, _, end in reversed(header.by_name.get(b"content-transfer-encoding", [])):
            kept = kept[:start] + kept[end:]
    return b"%sContent-Transfer-Encoding: %s\r\n\r\n" % (kept, encoding)


# --- encoders ---------------------------------------------------------------------------------------------------------


class _Encoder:
    """One leaf, in pieces."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be encoded of the next piece."""
        raise NotImplementedError

    def end(self) -> bytes:
        """The rest."""
        raise NotImplementedError


class _QuotedPrintable(_Encoder):
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


class _Base64(_Encoder):
    def feed(self, data: bytes) -> bytes:
        data = self._held + data
        cut = (len(data) - 1) // 57 * 57 if data else 0  # something stays for the last line, which has no line end
        self._held = data[cut:]
        return _wrapped(binascii.b2a_base64(data[:cut], newline=False)) if cut else b""

    def end(self) -> bytes:
        out, self._held = binascii.b2a_base64(self._held, newline=False), b""
        return out


class _RewrapBase64(_Encoder):
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


def _encoder(coding: Coding) -> _Encoder | None:
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
