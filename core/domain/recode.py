"""Re-encoding of leaf parts where a server or a line over 998 octets forces it (RFC 2045, RFC 2046, RFC 6152).

The body comes in pieces of any size, with CRLF line ends, and leaves in pieces; memory is bounded. Two passes: `Survey`
walks the MIME structure and decides leaf by leaf, `Recoder` does what was decided. Boundaries are walked to depth 20.

What is never changed, and makes the message unsendable (5.6.3) where it would have to be: signed and encrypted mail and
parts, parts below depth 20, parts whose encoding is not known. Text becomes quoted-printable, or base64 where most of
it isn't ASCII; other types become base64; what is base64 or quoted-printable already is wrapped anew. Preamble and
epilogue, which nobody is to read (RFC 2046 section 5.1.1), lose octets over 127.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from core.domain.content import MAX_LINE_OCTETS, has_long_line, long_line
from core.domain.header import Header, split_header
from core.domain.mime import Part, Walker
from core.domain.transfer_encoding import Coding, Encoder, encoder_for
from core.errors import MessageRejected

_FILLER_RAW = re.compile(rb"[\x00\x80-\xff]")
_NUL = re.compile(rb"\x00")
_FILLER_LONG = re.compile(rb"([^\r\n]{450})(?=[^\r\n])")


class _Survey(Walker):
    """Decides for each leaf, in order."""

    def __init__(self, header: Header, *, seven_bit: bool) -> None:
        self.seven_bit = seven_bit
        self.plan: list[Coding] = []
        self.top = Part()
        self._part = self.top
        self._reset()
        super().__init__(header)

    def _reset(self) -> None:
        self._octets = self._raw = self._line = 0
        self._nul = self._long = False

    def survey(self, chunks: Iterable[bytes]) -> list[Coding]:
        """The plan."""
        for chunk in chunks:
            self.walk(chunk, final=False)
        self.walk(b"", final=True)
        return self.plan

    def on_header(self, block: bytes | None, part: Part, *, leaf: bool) -> None:
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
            text = part.type.startswith(b"text/") and self._raw * 2 <= self._octets
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


class _Recoder(Walker):
    """Does what was decided; what goes out gathers in `_out`."""

    def __init__(self, header: Header, plan: list[Coding], *, seven_bit: bool) -> None:
        self._plan = iter(plan)
        self._seven_bit = seven_bit
        self._encoder: Encoder | None = None
        self._out: list[bytes] = []
        self._tail = b"\r\n"
        super().__init__(header)

    def recode(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The new body."""
        for chunk in chunks:
            self.walk(chunk, final=False)
            if out := self._take():
                yield out
        self.walk(b"", final=True)
        out = self._take()
        yield out if self._tail == b"\r\n" else out + b"\r\n"  # base64 that ends the message

    def _take(self) -> bytes:
        out, self._out = b"".join(self._out), []
        self._tail = (self._tail + out)[-2:]
        return out

    def on_header(self, block: bytes | None, part: Part, *, leaf: bool) -> None:
        coding = next(self._plan, Coding.KEEP) if leaf else Coding.KEEP
        self._encoder = encoder_for(coding)
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


def _new_encoding(part: Part, coding: Coding, *, leaf: bool, seven_bit: bool) -> bytes | None:
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
