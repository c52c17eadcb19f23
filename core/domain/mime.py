"""The MIME structure of a body as events (RFC 2046 section 5.1), for bodies that come in pieces. Linear, bounded.

Boundaries are walked to depth 20; what lies deeper, and signed or encrypted parts, are leaves that are `frozen`. The
line end before a delimiter belongs to the delimiter. At most 10,000 parts, part headers up to 64 KiB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.domain.header import Header, split_header
from core.errors import MessageRejected

MAX_DEPTH = 20
MAX_PARTS = 10_000
_MAX_PART_HEADER = 65_536
_MAX_DELIMITER = 1_024

_TYPE = re.compile(rb"\s*([!-.0-~]+/[!-:<-~]+)")
_BOUNDARY = re.compile(rb';\s*boundary\s*=\s*(?:"([^"\\]*+(?:\\.[^"\\]*+)*+)"|([^\s;"]+))', re.IGNORECASE)
_FROZEN_TYPES = re.compile(rb"multipart/(?:signed|encrypted)|application/(?:x-)?pkcs7-|application/pgp-encrypted")


@dataclass(slots=True)
class Part:
    """What a header says of the part below it."""

    type: bytes = b"text/plain"
    encoding: bytes = b"7bit"
    boundary: bytes = b""
    frozen: bool = False  # signed, encrypted or not understood: no octet changes

    @property
    def nests(self) -> bool:
        return not self.frozen and self.type == b"message/rfc822" and self.encoding in (b"7bit", b"8bit", b"binary")


def part_of(header: Header, depth: int) -> Part:
    value = header.first(b"content-type") or b""
    found = _TYPE.match(value)
    part = Part(type=found[1].lower() if found else b"text/plain")
    part.encoding = (header.first(b"content-transfer-encoding") or b"7bit").strip().lower()
    part.frozen = bool(_FROZEN_TYPES.match(part.type)) or b"dkim-signature" in header.by_name
    if part.type.startswith(b"multipart/") and not part.frozen:
        boundary = _BOUNDARY.search(value)
        if boundary is not None and depth < MAX_DEPTH and boundary.end() - boundary.start() < _MAX_DELIMITER:
            part.boundary = re.sub(rb"\\(.)", rb"\1", boundary[1]) if boundary[1] is not None else boundary[2]
        part.frozen = not part.boundary
    elif part.type.startswith(b"message/") and (part.type != b"message/rfc822" or depth >= MAX_DEPTH):
        part.frozen = True
    return part


class Walker:
    """The MIME structure as events: `on_header`, `on_data`, `on_end` for leaves, `on_filler`, `on_raw` for the rest."""

    def __init__(self, header: Header) -> None:
        self._delimiters: list[bytes] = []
        self._pattern: re.Pattern[bytes] | None = None  # of the present delimiters
        self._buffer = b""
        self._position = 0
        self._line_start = True
        self._pending = b""  # a line end that belongs to the delimiter, if one follows
        self._mode = "leaf"
        self._head: list[bytes] = []
        self._head_size = 0
        self._parts = 0
        self._enter(part_of(header, 0), None)

    # What a pass does with it.
    def on_header(self, block: bytes | None, part: Part, *, leaf: bool) -> None:
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

    def _enter(self, part: Part, block: bytes | None) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise MessageRejected("5.6.3", f"there are more than {MAX_PARTS} parts in a mail that must be re-encoded")
        if part.boundary:
            self._delimiters.append(b"--" + part.boundary.rstrip(b" \t"))
            self._pattern = None
            self._mode = "filler"
        else:
            self._mode = "header" if part.nests else "leaf"
        self.on_header(block, part, leaf=self._mode == "leaf")

    def walk(self, data: bytes, *, final: bool) -> None:
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
        """Data to the next delimiter, or to the end of what is there."""
        buffer, at = self._buffer, self._position
        found = self._next_delimiter().search(buffer, at) if self._delimiters else None
        if found is not None:
            self._emit(buffer[at : found.start()])
            self._pending, self._position, self._line_start = b"\r\n", found.start() + 2, True
            return True
        end = len(buffer)
        if final and buffer.endswith(b"\r\n", at):
            self._emit(buffer[at:-2])
            self._pending = b"\r\n"
        else:
            end = end if final else self._whole(buffer, at)
            self._emit(buffer[at:end])
        self._position, self._line_start = end, False
        return False

    def _whole(self, buffer: bytes, at: int) -> int:
        """Where to stop so that no line end and nothing that may become a delimiter is torn."""
        end = buffer.rfind(b"\r\n", max(at, len(buffer) - _MAX_DELIMITER))
        if end >= 0 and self._delimiters and b"--".startswith(buffer[end + 2 : end + 4]):
            return end
        return len(buffer) - 1 if len(buffer) > at and buffer.endswith(b"\r") else len(buffer)

    def _next_delimiter(self) -> re.Pattern[bytes]:
        """A line that is one of the present delimiters, as far as it is there."""
        if self._pattern is None:
            names = b"|".join(re.escape(delimiter[2:]) for delimiter in self._delimiters)
            self._pattern = re.compile(rb"\r\n--(?:" + names + rb")(?:--)?[ \t]*+(?:\r\n|\r?\Z)")
        return self._pattern

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
                if close or level + 1 < len(self._delimiters):
                    del self._delimiters[level if close else level + 1 :]
                    self._pattern = None
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
        self._enter(part_of(split_header(fields) if fields else Header(b"", [], {}, []), len(self._delimiters)), block)
        self._line_start = True

    def _finish(self) -> None:
        if self._mode == "header" and self._head:
            self._open_part(b"".join(self._head))
        if self._pending:
            self._emit(b"")
        if self._mode == "leaf":
            self.on_end()
