"""The header as it is sent, and the facts and the normal form of a body. Pure: bytes in, bytes out.

The octets that leave are the file's, but for: line ends (all CRLF, the last line too), doubled dots of files that were
written stuffed, X-Sender, X-Receiver, Bcc and Resent-Bcc, and what is added where it is missing. So signatures hold.

Dot-stuffing (writers.md). A body line that starts with exactly one dot and goes on proves that the file is plain. Where
the file is stuffed, one of two leading dots is taken off. A lone "." line ended the mail for IIS: in a stuffed file it
goes, with the blank lines behind it, where nothing else follows. Where text follows it, it can't have been an end, and
dropping that text would lose mail, so everything stays. In a plain file a lone dot is a line like any other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import IncrementalNewlineDecoder
from itertools import islice

from core.domain.account import FromPolicy
from core.domain.address import Mailbox, parse_mailbox
from core.domain.address_list import address_entries
from core.domain.encoded_word import encode_field
from core.domain.header import Field, Header
from core.errors import MessageRejected

Octets = bytes | memoryview  # of content; a view of what is in memory saves a copy
MAX_LINE_OCTETS = 998  # RFC 5322 section 2.1.1, without CRLF
_WINDOW = MAX_LINE_OCTETS + 2
_PIECE_OCTETS = 65_536  # a copy of so much stays in the processor's cache, and takes no new pages
_TERMINATOR = re.compile(rb"(?:(?<=[\r\n])|\A)\.(?:[\r\n][ \t\r\n]*+)?\Z")
_BEFORE_WORDS = re.compile(rb"(?:[!-9;-~]++[ \t]*+:)?[ \t]*+")
_BLANKS = re.compile(rb"[ \t]*+")
_DOT_LINE = re.compile(rb"\n\.")
_COMMA_FIELDS = (b"to", b"cc", b"from", b"reply-to", b"resent-to", b"resent-cc")
_SIGNED_TYPE = re.compile(
    rb"\s*(?:multipart/(?:signed|encrypted)|application/(?:x-)?pkcs7-(?:mime|signature))\b", re.IGNORECASE
)
_SIGNED_NAMES = re.compile(rb"(?:^|;)\s*h\s*=([^;]*)", re.IGNORECASE)


# --- header -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FromRewrite:
    """The From that an account asks for: its address, and what becomes of the writer's (FromPolicy)."""

    address: str
    policy: FromPolicy


def from_rewrite(header: Header, address: str | None, policy: FromPolicy) -> FromRewrite | None:
    """What the account's `from_policy` asks of this header; None: nothing, as where its address is the From already.

    The From and its Sender name who sends, so both give way to the account's address. The writer's display name stays.
    With reply_to the writer's From becomes Reply-To, unless there is one. Resent fields tell of earlier journeys and
    stay. A DKIM signature covers From (RFC 6376 section 5.4): it would be broken, and leaves; S/MIME and PGP cover the
    body, which stays as it is. Raises AddressError where `address` is no mailbox.
    """
    if not address or policy is FromPolicy.KEEP:
        return None
    own = parse_mailbox(address)
    senders = [*header.by_name.get(b"from", ()), *header.by_name.get(b"sender", ())]
    if b"from" in header.by_name and all(_names_only(header.value(field), own) for field in senders):
        return None
    return FromRewrite(str(own), policy)


def _names_only(value: bytes, own: Mailbox) -> bool:
    entries = list(islice(address_entries(value), 2))
    return len(entries) == 1 and entries[0].mailbox is not None and entries[0].mailbox.key == own.key


def is_signed(header: Header, *, without_dkim: bool = False) -> bool:
    """DKIM, S/MIME or PGP/MIME: no octet of the body may change. `without_dkim`: that signature leaves the mail."""
    if b"dkim-signature" in header.by_name and not without_dkim:
        return True
    content_type = header.first(b"content-type")
    return bool(content_type and _SIGNED_TYPE.match(content_type))


def only_hidden_recipients(header: Header) -> bool:
    """No To or Cc field names anybody."""
    return not any(header.values(b"to")) and not any(header.values(b"cc"))


def edit_header(
    header: Header,
    *,
    date: str | None = None,
    message_id: str | None = None,
    from_rewrite: FromRewrite | None = None,
    undisclosed: bool = False,
    transfer_encoding: bytes | None = None,
) -> bytes:
    """The header block as it is sent, with CRLF line ends and the blank line.

    `date`, `message_id`: added where missing. `from_rewrite`: what the function of that name gave.
    `undisclosed`: add `To: undisclosed-recipients:;` in place of To and Cc fields that name nobody.
    `transfer_encoding`: replaces Content-Transfer-Encoding. What a DKIM signature says to be absent is not added.
    """
    leaving = header.leaving
    added: list[bytes] = []
    by_name = header.by_name
    if date is not None and b"date" not in by_name:
        added.append(b"Date: %s\r\n" % date.encode("ascii"))
    if message_id is not None and b"message-id" not in by_name:
        added.append(b"Message-ID: %s\r\n" % message_id.encode("ascii"))
    if undisclosed:
        leaving = leaving + by_name.get(b"to", []) + by_name.get(b"cc", [])
        added.append(b"To: undisclosed-recipients:;\r\n")
    if added and b"dkim-signature" in by_name and from_rewrite is None:
        signed = _signed_names(header)
        added = [line for line in added if line.partition(b":")[0].lower() not in signed]
    if transfer_encoding is not None:
        leaving = leaving + by_name.get(b"content-transfer-encoding", [])
        if b"mime-version" not in by_name:
            added.append(b"MIME-Version: 1.0\r\n")
        added.append(b"Content-Transfer-Encoding: %s\r\n" % transfer_encoding)
    if from_rewrite is not None:
        for name in (b"from", b"sender", b"dkim-signature"):
            leaving = leaving + by_name.get(name, [])
        added += rewritten_from(header, from_rewrite)
    kept = _without(header.data, leaving)
    return b"".join((kept, *added, b"\r\n"))


def _without(data: bytes, leaving: list[Field]) -> bytes:
    if not leaving:
        return data
    pieces: list[bytes] = []
    position = 0
    for _, start, _, end in sorted(leaving, key=lambda field: field[1]):
        if start > position:
            pieces.append(data[position:start])
        position = end
    pieces.append(data[position:])
    return b"".join(pieces)


def _signed_names(header: Header) -> set[bytes]:
    names: set[bytes] = set()
    for value in header.values(b"dkim-signature"):
        tag = _SIGNED_NAMES.search(value)
        if tag is not None:
            names.update(name.strip().lower() for name in tag[1].split(b":"))
    return names


def rewritten_from(header: Header, rewrite: FromRewrite) -> list[bytes]:
    """The lines of From, with the account's address and the writer's name, and of Reply-To where the policy says so."""
    value = header.first(b"from") or b""
    entries = list(islice(address_entries(value), 2))
    display = entries[0].display.encode("utf-8", "surrogateescape") if len(entries) == 1 else b""
    address = rewrite.address.encode()
    added = [b"From: %s <%s>\r\n" % (display, address) if display else b"From: %s\r\n" % address]
    own = _names_only(value, parse_mailbox(rewrite.address))
    if rewrite.policy is FromPolicy.REPLY_TO and value and not own and b"reply-to" not in header.by_name:
        field = header.by_name[b"from"][0]
        added.append(b"Reply-To: %s\r\n" % header.data[field[2] : field[3]].strip())
    return added


def encode_header(block: bytes, fields: list[Field]) -> bytes:
    """`block` with the raw octets over 127 of its fields as encoded words, where that is possible."""
    pieces: list[bytes] = []
    position = 0
    for name, _, value, end in fields:
        raw = block[value:end]
        if raw.isascii():
            continue
        encoded = encode_field(name, raw.replace(b"\r\n", b"").strip())
        if encoded is not None:
            pieces += (block[position:value], b" ", encoded, b"\r\n")
            position = end
    pieces.append(block[position:])
    return b"".join(pieces)


def has_dot_line(data: bytes) -> bool:
    """A line that starts with a dot."""
    return data[:1] == b"." or _DOT_LINE.search(data) is not None


def has_long_line(data: bytes) -> bool:
    """A line of more than 998 octets; CRLF line ends."""
    return long_line(data, 0)[0]


def fold_header(block: bytes, *, signed: bool) -> bytes:
    """`block` with its lines of more than 998 octets folded at white space, or behind a comma of an address field.

    Raises MessageRejected 5.6.0 where there is no such place, 5.6.3 where a signature covers the header.
    """
    if signed:
        raise MessageRejected("5.6.3", "a header line is longer than 998 octets and the mail is signed")
    lines: list[bytes] = []
    name = b""
    for line in block.split(b"\r\n"):
        if line[:1] not in (b" ", b"\t"):
            name = line.partition(b":")[0].strip().lower()
        lines.extend(_fold(line, comma=name in _COMMA_FIELDS) if len(line) > MAX_LINE_OCTETS else (line,))
    return b"\r\n".join(lines)


def _fold(line: bytes, *, comma: bool) -> list[bytes]:
    pieces: list[bytes] = []
    position = 0
    while len(line) - position > MAX_LINE_OCTETS:
        limit = position + MAX_LINE_OCTETS - 1  # one octet stays for a space that is put in
        words = (_BLANKS if pieces else _BEFORE_WORDS).match(line, position)
        low = words.end() + 1 if words else position + 1  # a piece has something besides white space and a name
        at = max(line.rfind(b" ", low, limit), line.rfind(b"\t", low, limit))
        if at < 0:
            at = (line.rfind(b",", low, limit) + 1 or -1) if comma else -1
        if at < 0:
            raise MessageRejected("5.6.0", "a header line is longer than 998 octets and can't be folded")
        pieces.append(_continued(line[position:at], first=not pieces))
        position = at
    pieces.append(_continued(line[position:], first=not pieces))
    return pieces


def _continued(piece: bytes, *, first: bool) -> bytes:
    return piece if first or piece[:1] in (b" ", b"\t") else b" " + piece


# --- body -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)  # one a message (core/domain)
class BodyFacts:
    """What a scan finds in a body. Counts are of lines."""

    size: int  # octets with CRLF line ends, the last one too, doubled dots included
    canonical: bool  # the body has these line ends already
    eight_bit: bool  # octets over 127
    has_nul: bool
    long_line: bool  # more than 998 octets in one
    dot_lines: int  # start with a dot
    double_dot_lines: int  # of which start with two
    lone_dot_lines: int  # of which are nothing but a dot

    @property
    def proves_plain(self) -> bool:
        """A line starts with exactly one dot and goes on: nobody stuffed this file."""
        return self.dot_lines > self.double_dot_lines + self.lone_dot_lines


def scan_body(data: bytes) -> BodyFacts:
    """The facts of a body that is in memory."""
    scanner = BodyScanner()
    scanner.scan(data)
    return scanner.facts()


class BodyScanner:
    """Facts of a body that comes in pieces, however it is cut."""

    def __init__(self) -> None:
        self._held = b""
        self._size = 0
        self._line = 0  # octets of the line that is not at its end yet
        self._ends = True
        self._canonical = True
        self._eight_bit = self._nul = self._long = False
        self._dots = self._double = self._lone = 0

    def feed(self, data: bytes) -> None:
        """The next piece."""
        data = self._held + data if self._held else data
        cut = _safe_cut(data)
        self._held = data[cut:]
        self.scan(data[:cut] if cut < len(data) else data)

    def end(self) -> BodyFacts:
        """The facts, now that all was fed."""
        self.scan(self._held)
        return self.facts()

    def scan(self, data: bytes) -> None:
        """A piece that ends neither within a line end nor within two octets behind one."""
        if not data:
            return
        data, canonical, dots = _with_crlf(data)
        self._canonical = self._canonical and canonical
        if not data.isascii():
            self._eight_bit = True
        if b"\0" in data:
            self._nul = True
        long, self._line = long_line(data, self._line)
        self._long = self._long or long
        first = self._size == 0 and data[:1] == b"."
        if first or dots:
            self._count_dots(b"\n" + data if first else data)
        self._size += len(data)
        self._ends = data.endswith(b"\n")

    def _count_dots(self, data: bytes) -> None:
        self._dots += data.count(b"\n.")
        self._double += data.count(b"\n..")
        self._lone += data.count(b"\n.\r") + data.endswith(b"\n.")

    def facts(self) -> BodyFacts:
        """The facts of what was scanned."""
        return BodyFacts(
            size=self._size if self._ends else self._size + 2,
            canonical=self._canonical and self._ends,
            eight_bit=self._eight_bit,
            has_nul=self._nul,
            long_line=self._long or self._line > MAX_LINE_OCTETS,
            dot_lines=self._dots,
            double_dot_lines=self._double,
            lone_dot_lines=self._lone,
        )


class BodyNormaliser:
    """A body with CRLF line ends, the last line's too, and without doubled dots if `unstuff`; however it is cut."""

    def __init__(self, *, unstuff: bool = False) -> None:
        self._unstuff = unstuff
        self._held = b""
        self._start = True
        self._ends = True

    def feed(self, data: bytes) -> bytes:
        """What can be said of the next piece."""
        data = self._held + data if self._held else data
        cut = _safe_cut(data)
        self._held = data[cut:]
        return self._normalise(data[:cut] if cut < len(data) else data)

    def end(self) -> bytes:
        """What was held back, and the last line end where it is missing."""
        rest = self._normalise(self._held)
        return rest if self._ends else rest + b"\r\n"

    def _normalise(self, data: bytes) -> bytes:
        if not data:
            return data
        data, _, dots = _with_crlf(data)
        if self._unstuff:
            if self._start and data.startswith(b".."):
                data = data[1:]
            if dots:
                data = data.replace(b"\n..", b"\n.")
        self._start = False
        self._ends = data.endswith(b"\n")
        return data


def _with_crlf(data: bytes) -> tuple[bytes, bool, bool]:
    """`data` with CRLF line ends, whether it had them, and whether a dot follows one."""
    ends = IncrementalNewlineDecoder(None, translate=False)  # one look at each octet tells of all kinds of line ends
    view = memoryview(data)
    for at in range(0, len(data), _PIECE_OCTETS):
        ends.decode(str(view[at : at + _PIECE_OCTETS], "latin-1"))
    ends.decode("", final=True)
    canonical = ends.newlines is None or ends.newlines == "\r\n"
    if not canonical:
        data = to_crlf(data)
    return data, canonical, b"." in data and _DOT_LINE.search(data) is not None


def to_crlf(data: bytes) -> bytes:
    """Every line end as CRLF: CRLF, LF, and CR that no LF follows."""
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.replace(b"\n", b"\r\n")


def end_of_stuffed(tail: bytes) -> int | None:
    """Where in `tail`, the end of a stuffed body, a lone dot ends the mail and nothing but blank lines follow."""
    match = _TERMINATOR.search(tail)
    return match.start() if match else None


def _safe_cut(data: bytes) -> int:
    """Where to cut so that no line end, and no dot behind one, is torn: at the last line end if it is near the end."""
    size = len(data)
    at = max(data.rfind(b"\n", max(size - 3, 0)), data.rfind(b"\r", max(size - 3, 0)))
    if at < 0:
        return size if size > 2 else 0
    if data[at : at + 1] == b"\n" and data[at - 1 : at] == b"\r":
        at -= 1
    return at


def long_line(data: bytes, before: int) -> tuple[bool, int]:
    """Whether a line is over the limit, and the octets of the unfinished one.

    `before`: octets of the first line that came earlier. No line end may be torn.
    """
    size = len(data)
    first = data.find(b"\n")
    if first < 0:
        return before + size > MAX_LINE_OCTETS, before + size
    long = before + first - 1 > MAX_LINE_OCTETS
    position = first + 1
    while not long and size - position > _WINDOW:
        end = data.rfind(b"\n", position, position + _WINDOW)  # jumps over all lines that fit
        long = end < 0
        position = end + 1
    return long, size - data.rfind(b"\n") - 1
