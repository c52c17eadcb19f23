"""A message's content, read from its open file: envelope, facts, and the octets that go out.

`read_message` reads a file of up to 256 KiB (or as the caller has room) and keeps it; a larger one is scanned in pieces
by `judge` and read again when it is sent, so memory is bounded. Every read is held against the size that fstat gave,
and after the last piece size and mtime are looked at once more: a file that changed raises MessageChanged, before the
final dot leaves.

Raw octets over 127 in the header: with SMTPUTF8 (`smtputf8_allowed`, `header_utf8`) they go as they are. Else they
become encoded words (RFC 2047), where the field allows it and no DKIM signature covers the header; what can't be
encoded goes as it is under 8BITMIME, as mail servers do, and fails (5.6.3) without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from core.domain.account import DotStuffing, FromPolicy
from core.domain.content import (
    BodyFacts,
    BodyScanner,
    FromRewrite,
    Octets,
    edit_header,
    encode_header,
    end_of_stuffed,
    fold_header,
    from_rewrite,
    has_dot_line,
    has_long_line,
    is_signed,
    only_hidden_recipients,
    scan_body,
)
from core.domain.encoded_word import decode_words
from core.domain.envelope import Envelope, envelope_of, rewrite_sender
from core.domain.header import Header, Layout, find_header, split_header
from core.domain.recode import survey
from core.errors import MessageChanged, MessageRejected
from core.spool.foreign import refuse_django_file, refuse_rails_file
from core.spool.message_file import CHUNK_OCTETS, BodySource, MessageFile

_AUTO, _PLAIN = DotStuffing.AUTO, DotStuffing.PLAIN  # with every message (core/domain)
_FIRST_READ = 65_536
_SAMPLE = 4_096  # octets of a body that tell of its line ends
_TAIL = 1_024  # octets in which a lone dot may end a stuffed file


@dataclass(slots=True)
class FileBody:
    """The octets that go out (core.transport.base.Body)."""

    size: int
    dotless: bool
    _file: MessageFile
    _head: bytes
    _pieces: _Pieces

    def chunks(self) -> Iterator[Octets]:
        """From the start, at most 256 KiB each. Raises MessageChanged. May be called again."""
        kept = self._pieces.whole()
        if kept is None and self.dotless:
            raise MessageChanged("it is no more in memory, and nobody looked at what would be read now")
        if kept is not None:
            if len(kept) + len(self._head) <= CHUNK_OCTETS:
                yield self._head + kept
            else:
                yield from _sliced(self._head)
                yield from _sliced(memoryview(kept))
            self._file.check()
            return
        held = self._head
        for piece in self._pieces():
            if len(held) + len(piece) <= CHUNK_OCTETS:
                held += piece
                continue
            yield from _sliced(held)
            held = piece
        yield from _sliced(held)
        self._file.check()


class _Pieces:
    """The body in pieces, any number of times."""

    def __init__(self, source: BodySource) -> None:
        self._source = source

    def __call__(self) -> Iterable[bytes]:
        return self._source.chunks()

    def whole(self) -> bytes | None:
        """All of it, where it is at hand as it goes out."""
        return self._source.held if self._source.as_is else None


def _sliced(data: Octets) -> Iterator[Octets]:
    if len(data) <= CHUNK_OCTETS:
        if data:
            yield data
        return
    for at in range(0, len(data), CHUNK_OCTETS):
        yield data[at : at + CHUNK_OCTETS]


class _RecodedPieces(_Pieces):
    def __init__(self, source: BodySource, header: Header, *, seven_bit: bool) -> None:
        super().__init__(source)
        self._recoding = survey(header, source.chunks(), seven_bit=seven_bit)
        self.transfer_encoding = self._recoding.transfer_encoding
        self.size = sum(len(piece) for piece in self())

    def __call__(self) -> Iterable[bytes]:
        return self._recoding.run(self._source.chunks())

    def whole(self) -> bytes | None:
        return None


@dataclass(slots=True)
class FileContent:
    """A message's content and what it needs of the server (core.transport.base.Content)."""

    eight_bit: bool  # octets over 127 in body or header: declare BODY=8BITMIME
    smtputf8: bool  # an address has a non-ASCII local part: without SMTPUTF8 it can't be sent
    header_utf8: bool  # the header is raw UTF-8: declare SMTPUTF8 if `smtputf8_allowed` is given
    _header: Header
    _facts: BodyFacts
    _source: BodySource
    _message_id: str | None
    _date: str | None
    _rewrite: FromRewrite | None
    _undisclosed: bool

    @property
    def size(self) -> int:
        """Octets of the body, before any re-encoding."""
        return self._source.size

    def body(self, *, eight_bit_allowed: bool, smtputf8_allowed: bool = False) -> FileBody:
        """As it is, or re-encoded where the server or a line over 998 octets forces it.

        `smtputf8_allowed`: the transaction declares SMTPUTF8, so a raw UTF-8 header goes as it is. Raises
        MessageRejected 5.6.3 where re-encoding would break a signature or can't be done, MessageChanged.
        """
        facts = self._facts
        pieces = _Pieces(self._source)
        size = self._source.size
        transfer_encoding: bytes | None = None
        if facts.long_line or facts.has_nul or (facts.eight_bit and not eight_bit_allowed):
            if is_signed(self._header, without_dkim=self._rewrite is not None):
                raise MessageRejected("5.6.3", "the body would have to be re-encoded, which breaks its signature")
            header = self._header if self._rewrite is None else _without_dkim(self._header)
            pieces = recoded = _RecodedPieces(self._source, header, seven_bit=not eight_bit_allowed)
            size, transfer_encoding = recoded.size, recoded.transfer_encoding
        head = edit_header(
            self._header,
            date=self._date,
            message_id=self._message_id,
            from_rewrite=self._rewrite,
            undisclosed=self._undisclosed,
            transfer_encoding=transfer_encoding,
        )
        signed = b"dkim-signature" in self._header.by_name and self._rewrite is None
        if not head.isascii() and not (smtputf8_allowed and (self.smtputf8 or self.header_utf8)):
            head = _without_raw_octets(head, signed=signed, eight_bit_allowed=eight_bit_allowed)
        if has_long_line(head):
            head = fold_header(head, signed=signed)
        # what is in memory can't become another body between the look at it and the sending
        dotless = pieces.whole() is not None and not facts.dot_lines and not has_dot_line(head)
        return FileBody(len(head) + size, dotless, self._source.file, head, pieces)


def _without_dkim(header: Header) -> Header:
    """As it reads once that signature has left the mail."""
    by_name = {name: fields for name, fields in header.by_name.items() if name != b"dkim-signature"}
    return replace(header, by_name=by_name)


def _without_raw_octets(head: bytes, *, signed: bool, eight_bit_allowed: bool) -> bytes:
    if not signed:
        head = encode_header(head, split_header(head[:-2]).fields)
    if not eight_bit_allowed and not head.isascii():
        raise MessageRejected("5.6.3", "the header holds octets that the server doesn't take and that can't be encoded")
    return head


@dataclass(slots=True)
class Prepared:
    """What is known of a message before it is sent."""

    envelope: Envelope
    header: Header
    facts: BodyFacts
    dot_proof: DotStuffing | None  # PLAIN: this file proves it of its directory
    stuffed: bool  # doubled dots are taken off
    internet_message_id: str | None  # that the writer gave; None: one is added
    _source: BodySource
    _dropped: tuple[str, ...]

    def let_go(self) -> None:
        """The body is not needed any more: hundreds of mails may wait for their commit."""
        self._source.held = None

    @property
    def has_date(self) -> bool:
        """The writer gave a Date; else one is added."""
        return b"date" in self.header.by_name

    @property
    def subject(self) -> str:
        """The subject as people read it; not escaped for any display."""
        value = self.header.first(b"subject")
        return decode_words(value) if value else ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What else is done to the message than fields that leave or are added, and why, for people."""
        return tuple(_notes(self))

    def content(
        self,
        *,
        message_id: str | None,
        date: str | None,
        from_address: str | None = None,
        from_policy: FromPolicy = FromPolicy.KEEP,
        exclude: AbstractSet[str] = frozenset(),
    ) -> FileContent:
        """The content of one attempt. `message_id` and `date` are needed, and used, where the writer gave none.

        `exclude`: mailboxes of the envelope that this attempt doesn't send to.
        """
        header, envelope = self.header, self.envelope
        raw_header = not header.data.isascii()
        rewrite, sender = None, envelope.sender
        if from_address and from_policy is not FromPolicy.KEEP:
            rewrite = from_rewrite(header, from_address, from_policy)
            sender = rewrite_sender(envelope, from_address, from_policy).sender
            raw_header = raw_header or (rewrite is not None and not rewrite.address.isascii())
        smtputf8 = not sender.isascii()
        for recipient in () if smtputf8 else envelope.recipients:
            mailbox = recipient.mailbox
            if not mailbox.isascii() and mailbox not in exclude:
                smtputf8 = True
                break
        return FileContent(
            eight_bit=self.facts.eight_bit or raw_header,
            smtputf8=smtputf8,
            header_utf8=raw_header and _is_utf8(header.data),
            _header=header,
            _facts=self.facts,
            _source=self._source,
            _message_id=message_id,
            _date=date,
            _rewrite=rewrite,
            _undisclosed=only_hidden_recipients(header),
        )


@dataclass(slots=True)  # one a message (core/domain)
class Read:
    """What was read of a message so far: its header block, and its body where that is kept in memory."""

    file: MessageFile
    data: bytes  # from the start of the file, the whole header in it
    layout: Layout
    held: bytes | None

    @property
    def quick(self) -> bool:
        """Whether `judge` takes a millisecond a MB, as far as can be told at once.

        It does with few fields, line ends that can stay as they are, and no need to look for a second mail of Rails.
        """
        if self.held is None or self.layout.end > _FIRST_READ:
            return False
        sample = self.held[:_SAMPLE]
        lines = sample.count(b"\r\n")
        if lines != sample.count(b"\n") or lines < sample.count(b"\r") - sample.endswith(b"\r"):
            return False
        return b".mail>" not in self.data[: self.layout.end]


def prepare(
    fd: int,
    *,
    size: int,
    mtime_ns: int,
    dot_stuffing: DotStuffing = DotStuffing.AUTO,
    proven: DotStuffing | None = None,
    max_header_bytes: int = 1_048_576,
    max_recipients: int = 10_000,
    name: bytes = b"",
    keep_octets: int = CHUNK_OCTETS,
) -> Prepared:
    """`read_message` and `judge` in one."""
    read = read_message(fd, size=size, mtime_ns=mtime_ns, max_header_bytes=max_header_bytes, keep_octets=keep_octets)
    return judge(read, dot_stuffing=dot_stuffing, proven=proven, max_recipients=max_recipients, name=name)


def read_message(
    fd: int, *, size: int, mtime_ns: int, max_header_bytes: int = 1_048_576, keep_octets: int = CHUNK_OCTETS
) -> Read:
    """Read the header of the message in `fd`, whose fstat gave `size` (octets) and `mtime_ns`.

    The body of one of up to `keep_octets` too: it stays in memory until `let_go`. Raises MessageRejected (never
    sendable), MessageRefused (another program's format: left), MessageChanged, MessageUnreadable.
    """
    file = MessageFile(fd, size, mtime_ns)
    whole = file.read_all() if size <= _FIRST_READ else None
    data, layout = _read_header(file, whole, max_header_bytes)
    held = None
    if size <= keep_octets:  # not cut from the whole where that is large: a copy takes as long as the read
        held = file.read_rest(layout.body) if whole is None else data[layout.body :]
    return Read(file, data, layout, held)


def judge(
    read: Read,
    *,
    dot_stuffing: DotStuffing = DotStuffing.AUTO,
    proven: DotStuffing | None = None,
    max_recipients: int = 10_000,
    name: bytes = b"",
) -> Prepared:
    """Take the message apart and describe it.

    `proven`: what was proved of the directory's dot-stuffing before. `name`: the file's, to recognise files that a
    framework appends to. Raises MessageRejected (never sendable), MessageRefused (another program's format: left),
    MessageChanged, MessageUnreadable.
    """
    file, layout, held = read.file, read.layout, read.held
    header = split_header(read.data[layout.start : layout.end])
    refuse_django_file(file, held, header)
    source = BodySource(file, layout.body, file.size, held, size=0, unstuff=False, as_is=False)
    refuse_rails_file(source, header, name)
    envelope = envelope_of(header, max_recipients=max_recipients)
    facts = _scan(source)
    stuffed = _is_stuffed(facts, header, dot_stuffing, proven)
    source.size = facts.size
    source.unstuff = stuffed and facts.double_dot_lines > 0
    if stuffed:
        source.size -= facts.double_dot_lines
        if facts.lone_dot_lines:
            _cut_terminator(source)
    source.as_is = facts.canonical and not source.unstuff
    if (facts.long_line or facts.has_nul) and is_signed(header):
        what = "a NUL octet" if facts.has_nul else "a line longer than 998 octets"
        raise MessageRejected("5.6.3", f"the mail is signed or encrypted and its body has {what}")
    proof = _PLAIN if facts.proves_plain else None
    named = header.first(b"message-id")
    message_id = named[:998].decode("utf-8", "replace") if named else None
    return Prepared(envelope, header, facts, proof, stuffed, message_id, source, layout.dropped)


def _read_header(file: MessageFile, whole: bytes | None, limit: int) -> tuple[bytes, Layout]:
    data = whole if whole is not None else file.read(0, _FIRST_READ)
    layout = find_header(data, complete=whole is not None, limit=limit)
    while layout is None:
        data += file.read(len(data), min(len(data), file.size - len(data)))
        layout = find_header(data, complete=len(data) == file.size, limit=limit)
    return data, layout


def _scan(source: BodySource) -> BodyFacts:
    if source.held is not None:
        return scan_body(source.held)
    scanner = BodyScanner()
    for piece in source.raw():
        scanner.feed(piece)
    source.file.check()
    return scanner.end()


def _is_stuffed(facts: BodyFacts, header: Header, setting: DotStuffing, proven: DotStuffing | None) -> bool:
    """writers.md: the setting; else this file's proof; else what was proved before; else whether X-Sender leads."""
    if setting is not _AUTO:
        return setting is DotStuffing.STUFFED
    if not facts.dot_lines or facts.proves_plain:
        return False
    if proven is not None and proven is not _AUTO:
        return proven is DotStuffing.STUFFED
    return header.fields[0][0] == b"x-sender"


def _cut_terminator(source: BodySource) -> None:
    """Leave out a lone dot that ended the mail for IIS, and the blank lines behind it."""
    start = max(source.start, source.end - _TAIL)
    kept = source.held
    tail = source.file.read(start, source.end - start) if kept is None else kept[start - source.start :]
    at = end_of_stuffed(tail)
    if at is None or (at == 0 and start > source.start):  # what stands before the tail isn't known: leave it
        return
    source.size -= scan_body(tail[at:]).size
    source.end = start + at
    if kept is not None:
        source.held = kept[: source.end - source.start]


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _notes(prepared: Prepared) -> Iterator[str]:
    header = prepared.header
    for what in prepared._dropped:
        yield f"{what} before the header: not sent"
    alone = {b"x-sender", b"x-receiver"} & header.by_name.keys()
    if len(alone) == 1:
        there = alone.pop().decode()
        yield f"{there} stands alone and makes no envelope: sender and recipients come from the other fields"
    for text, reason in prepared.envelope.rejected:
        yield f"recipient {text!r} is no mailbox: {reason}"
    yield from _body_notes(prepared)


def _body_notes(prepared: Prepared) -> Iterator[str]:
    header, facts = prepared.header, prepared.facts
    if prepared._source.unstuff:
        yield f"{facts.double_dot_lines} lines begin with a doubled dot: one dot is taken off"
    if not facts.canonical:
        yield "line ends become CRLF"
    if not header.data.isascii():
        yield "the header holds raw octets over 127: as they are with SMTPUTF8, else encoded words where possible"
    if facts.has_nul or facts.long_line:
        yield "re-encoded: " + ("NUL octets" if facts.has_nul else "a line over 998 octets")
    elif facts.eight_bit:
        yield "re-encoded where the server does not offer 8BITMIME" + (
            ": not possible, the mail is signed" if is_signed(header) else ""
        )
