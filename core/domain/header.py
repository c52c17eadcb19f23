"""The header block of a message, as spans on its own bytes (RFC 5322 section 2.2). Nothing is decoded or re-written.

The block is cut at the first blank line; line ends may be CRLF, LF, CR or mixed, and every CR counts as one, so that no
reader behind us can see a field that we didn't. All of it is linear in the size of the block.

A line that is neither a field nor a continuation makes the message unsendable (5.6.0): readers disagree on whether the
header ends there, and a Bcc field below it could be shown. What other programs' queue files look like is recognised
first: those are left where they are (MessageRefused).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.errors import MessageRefused, MessageRejected

# RFC 5322 section 2.2: a name, maybe white space (section 4.5), a colon; folded lines belong to the field.
# In a block where each CR has its LF and the last line its end, so a line that begins can't fail to end.
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:()[^\r]*+\r\n(?:[ \t][^\r]*+\r\n)*+|[^\r]*+\r\n")
_BLANK = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_FROM_LINE = re.compile(rb"From (?![ \t]*:)[^\r\n]*+(?:\r\n|\n|\r)?")
_SERIALISED = re.compile(rb'[OCa]:\d+:["{]')
_NULLMAILER = re.compile(
    rb"(?:[^\s@:<>]{1,64}@[^\s@:<>]{1,255})?\r?\n"
    rb"(?:[^\s@:<>]{1,64}+@[^\s@:<>][^\s@:<>]{0,254}+\r?+\n)++"  # one that fails took no line end that the next needs
    rb"\r?\n[!-9;-~]++[ \t]*+:"
)
_FIELD_START = re.compile(rb"\n[^ \t]")
_MAX_FIELDS = 250_000  # each takes 200 octets of memory: the shortest that fit into 16 MiB would take a gigabyte
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"

LEAVES = frozenset({b"x-sender", b"x-receiver", b"bcc", b"resent-bcc"})
"""Fields that are not sent: they are the envelope, or would show hidden recipients."""

Field = tuple[bytes, int, int, int]
"""Name in lower case, start of the field, start of its value, end (behind its CRLF)."""


@dataclass(slots=True)
class Header:
    """A header block with CRLF line ends, without the blank line, and where its fields lie."""

    data: bytes
    fields: list[Field]
    by_name: dict[bytes, list[Field]]
    leaving: list[Field]  # those of LEAVES, in order

    def value(self, field: Field) -> bytes:
        """The value of a field, unfolded (section 2.2.3) and without white space around it."""
        value = self.data[field[2] : field[3]]
        return value.replace(b"\r\n", b"").strip() if value.count(b"\n") > 1 else value.strip()

    def first(self, name: bytes) -> bytes | None:
        """The value of the first field of that name (lower case); None where there is none."""
        fields = self.by_name.get(name)
        return self.value(fields[0]) if fields else None

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields of that name (lower case)."""
        return [self.value(field) for field in self.by_name.get(name, ())]


@dataclass(slots=True)  # one a message (core/domain)
class Layout:
    """Where header and body lie in the file. `body` is the offset behind the blank line."""

    start: int
    end: int
    body: int
    dropped: tuple[str, ...] = ()  # what stood before the header and isn't sent


def find_header(data: bytes, *, complete: bool, limit: int) -> Layout | None:
    """Where the header block lies in `data`, the beginning of a file; None: more of the file is needed to say.

    `complete`: `data` is all of it. `limit`: octets that a header may have. Raises MessageRejected (UTF-16, too long,
    nothing there) and MessageRefused (another program's format).
    """
    if len(data) < 6 and not complete:
        return None
    start, dropped = _lead(data)
    _refuse_foreign(data, start)
    end = _blank_line(data, start)
    if end is None or (end[1] == len(data) and data.endswith(b"\r") and not complete):
        if not complete:
            if len(data) - start > limit:
                raise MessageRejected("5.3.4", f"the header block is longer than {limit} octets")
            return None
        end = end or (len(data), len(data))
    if end[0] - start > limit:
        raise MessageRejected("5.3.4", f"the header block is longer than {limit} octets")
    if end[0] == start:
        what = "there is nothing in it but line ends" if complete and not data.strip() else "it has no header fields"
        raise MessageRejected("5.6.0", f"not a mail: {what}")
    return Layout(start, end[0], end[1], dropped)


def split_header(data: bytes) -> Header:
    """Take a header block apart (without its blank line; any line ends). Raises MessageRejected."""
    block = data
    lines = data.count(b"\r\n")
    if lines != data.count(b"\n") or lines != data.count(b"\r"):
        block = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    if not block.endswith(b"\r\n"):
        block += b"\r\n"
    if b"\0" in block:
        raise MessageRejected("5.6.0", "the header block contains a NUL octet")
    if len(block) > 4 * _MAX_FIELDS and sum(1 for _ in _FIELD_START.finditer(block)) >= _MAX_FIELDS:
        raise MessageRejected("5.3.4", f"the header block has more than {_MAX_FIELDS} fields")
    fields: list[Field] = []
    by_name: dict[bytes, list[Field]] = {}
    leaving: list[Field] = []
    for match in _FIELD.finditer(block):
        if match.lastindex is None:
            number = block.count(b"\r\n", 0, match.start()) + 1
            raise MessageRejected("5.6.0", f"line {number} of the header block is neither a field nor a continuation")
        (start, end), (_, name_end), (value, _) = match.regs
        name = block[start:name_end].lower()
        field = (name, start, value, end)
        fields.append(field)
        if name in by_name:
            by_name[name].append(field)
        else:
            by_name[name] = [field]
        if name in LEAVES:
            leaving.append(field)
    return Header(block, fields, by_name, leaving)


def _lead(data: bytes) -> tuple[int, tuple[str, ...]]:
    """The offset where the header starts, behind a byte order mark and an mbox line."""
    if data.startswith(_UTF16):
        raise MessageRejected("5.6.0", "the file is UTF-16; a mail is ASCII or UTF-8")
    start = 0
    dropped: tuple[str, ...] = ()
    if data.startswith(_BOM):
        start, dropped = 3, ("byte order mark",)
    mbox = _FROM_LINE.match(data, start)
    if mbox is not None:
        return mbox.end(), (*dropped, "mbox From line")
    return start, dropped


def _blank_line(data: bytes, start: int) -> tuple[int, int] | None:
    """End of the last header line (with its line end) and of the blank line behind it."""
    first = _LINE_END.match(data, start)
    if first is not None:
        return start, first.end()
    at = data.find(b"\r\n\r\n", start)
    if at >= 0:
        lines = data.count(b"\r\n", start, at)
        if lines == data.count(b"\n", start, at) and lines == data.count(b"\r", start, at):
            return at + 2, at + 4
    elif data.find(b"\r", start) < 0:
        at = data.find(b"\n\n", start)
        return (at + 1, at + 2) if at >= 0 else None
    blank = _BLANK.search(data, start)
    if blank is None:
        return None
    line_end = _LINE_END.match(data, blank.start())
    return (line_end.end() if line_end else blank.start()), blank.end()


def _refuse_foreign(data: bytes, start: int) -> None:
    """Raise MessageRefused where `data` begins like a file of another mailer's queue."""
    if _SERIALISED.match(data, start):
        raise MessageRefused(
            "this is a serialised PHP object (Swift Mailer's spool), not a mail; it is never unserialised",
            remedy="flush that spool with the framework's own command, or let it write .eml files",
        )
    if _NULLMAILER.match(data, start):
        raise MessageRefused(
            "this is a queue file of nullmailer (envelope lines before the header), not a mail",
            remedy="let nullmailer send it, or write the mail with X-Sender and X-Receiver fields",
        )
