"""What must hold for any octets, a function each. An exception that is not documented, or an AssertionError, is a find.

Each is guarded by time: SECONDS_PER_INPUT for an input of up to MAX_OCTETS, far over what linear work needs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

from core.domain.address import AddressError, parse_mailbox
from core.domain.address_list import parse_address_list
from core.domain.content import (
    BodyNormaliser,
    BodyScanner,
    Octets,
    edit_header,
    encode_header,
    fold_header,
    has_long_line,
)
from core.domain.encoded_word import decode_words
from core.domain.envelope import envelope_of
from core.domain.header import find_header, split_header
from core.domain.recode import survey
from core.errors import MessageRefused, MessageRejected
from core.smtp.reply_parser import MAX_LINE_BYTES, ReplyParser
from core.smtp.stuffing import DotStuffer
from tests.corpora.reference import lines_of

MAX_OCTETS = 4096
SECONDS_PER_INPUT = 1.0

_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_ON_THE_WIRE = re.compile(r'(?:"(?:[^"\\\x00-\x1f\x7f]|\\[ -~])*"|[^\x00-\x20\x7f<>"@,;:]+)@[A-Za-z0-9.\-]+')


def _cut(data: bytes) -> Iterator[bytes]:
    """In pieces, whose sizes the first octets give."""
    at, number = 0, 0
    while at < len(data):
        size = data[number % min(len(data), 7)] % 19 + 1
        yield data[at : at + size]
        at, number = at + size, number + 1


def message(data: bytes) -> None:
    """Header and envelope: two documented errors; what is sent has no bare line end and shows nobody hidden."""
    try:
        layout = find_header(data, complete=True, limit=1 << 20)
        assert layout is not None
        header = split_header(data[layout.start : layout.end])
        decode_words(header.first(b"subject") or b"")
        envelope = envelope_of(header, max_recipients=1000)
    except (MessageRejected, MessageRefused):
        return
    for mailbox in (envelope.sender, *(recipient.mailbox for recipient in envelope.recipients)):
        assert mailbox == "" or _ON_THE_WIRE.fullmatch(mailbox), mailbox
    for value in (envelope.ret, envelope.envid, *(p for r in envelope.recipients for p in (r.notify, r.orcpt))):
        assert value is None or (value.isascii() and value.isprintable() and " " not in value), value
    sent = edit_header(header, date="Tue, 24 Nov 2026 10:00:00 +0000", message_id="<a@b>", undisclosed=True)
    assert not _BARE.search(sent)
    assert sent.endswith(b"\r\n\r\n")
    assert sent.find(b"\r\n\r\n") == len(sent) - 4
    again = split_header(sent[:-2])
    assert not {b"bcc", b"resent-bcc", b"x-sender", b"x-receiver"} & again.by_name.keys()
    encoded = encode_header(sent, again.fields)
    assert not _BARE.search(encoded)
    split_header(encoded[:-2])
    if has_long_line(encoded):
        try:
            folded = fold_header(encoded, signed=False)
        except MessageRejected:
            return
        assert not has_long_line(folded)
        split_header(folded[:-2])


def address(data: bytes) -> None:
    """One mailbox: AddressError, or what may stand between the brackets of a command; its own spelling is stable."""
    try:
        mailbox = parse_mailbox(data, allow_literal=False)
    except AddressError:
        return
    assert _ON_THE_WIRE.fullmatch(str(mailbox)), str(mailbox)
    assert str(parse_mailbox(str(mailbox))) == str(mailbox)


def address_list(data: bytes) -> None:
    """A list never raises; each entry is a mailbox or a reason."""
    for entry in parse_address_list(data):
        assert (entry.mailbox is None) == bool(entry.reason)
        if entry.mailbox is not None:
            assert _ON_THE_WIRE.fullmatch(str(entry.mailbox)), str(entry.mailbox)


def reply(data: bytes) -> None:
    """Replies are the same however the octets are cut, and what is kept is bounded."""
    whole = ReplyParser()
    expected = whole.feed(data)
    pieces = ReplyParser()
    found = [one for piece in _cut(data) for one in pieces.feed(piece)]
    assert found == expected
    assert (whole.error is None) == (pieces.error is None)
    assert all(200 <= one.code <= 599 and one.lines for one in expected)
    assert len(pieces._buffer) <= MAX_LINE_BYTES + 1


def body(data: bytes) -> None:
    """The normal form is the slow reference's, however the octets are cut, and the facts are those of it."""
    lines = lines_of(data)
    for unstuff in (False, True):
        reference = b"".join((line[1:] if unstuff and line.startswith(b"..") else line) + b"\r\n" for line in lines)
        normaliser = BodyNormaliser(unstuff=unstuff)
        out = b"".join(normaliser.feed(piece) for piece in _cut(data)) + normaliser.end()
        assert out == reference
    scanner = BodyScanner()
    for piece in _cut(data):
        scanner.feed(piece)
    facts = scanner.end()
    assert facts.size == sum(len(line) + 2 for line in lines)
    assert facts.long_line == any(len(line) > 998 for line in lines)
    assert facts.dot_lines == sum(line.startswith(b".") for line in lines)
    assert facts.lone_dot_lines == sum(line == b"." for line in lines)
    assert facts.double_dot_lines == sum(line.startswith(b"..") for line in lines)
    assert (facts.has_nul, facts.eight_bit) == (b"\0" in data, not data.isascii())
    stuffer = DotStuffer()
    stuffed: list[Octets] = []
    for piece in _cut(data):
        stuffer.stuff(piece, stuffed)
    assert b"\r\n.\r\n" not in b"\r\n" + b"".join(stuffed)


def recode(data: bytes) -> None:
    """Re-encoding: MessageRejected, or short lines, no NUL, no bare line end; seven bits if asked.

    The first octet chooses; the header is the mail's own. Long lines are added, since a small input has none.
    """
    seven_bit = bool(data[:1]) and data[0] % 2 == 1
    try:
        layout = find_header(data[1:], complete=True, limit=1 << 20)
        assert layout is not None
        header = split_header(data[1:][layout.start : layout.end])
    except (MessageRejected, MessageRefused):
        return
    text = b"\r\n".join(lines_of(data[1:][layout.body :].replace(b"LONG", b"x" * 1100))) + b"\r\n"
    try:
        recoding = survey(header, [text], seven_bit=seven_bit)
        out = b"".join(recoding.run([text]))
    except MessageRejected:
        return
    assert not _BARE.search(out)
    assert b"\0" not in out
    assert not has_long_line(out)
    assert not seven_bit or out.isascii()
    other = survey(header, _cut(text), seven_bit=seven_bit)
    assert other.plan == recoding.plan
    assert out.endswith(b"\r\n")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "message": message,
    "address": address,
    "address_list": address_list,
    "reply": reply,
    "body": body,
    "recode": recode,
}

_HEAD = b"From: a@example.com\r\nTo: b@example.org\r\n"
SEEDS: dict[str, list[bytes]] = {
    "message": [
        b"X-Sender: <a@example.com> RET=HDRS ENVID=x\r\nX-Receiver: <b@example.org> NOTIFY=NEVER ORCPT=rfc822;b@c\n\nx",
        _HEAD + b'Cc: g: "A, B" <c@d.e>, f@g.h;\r\nBcc: =?utf-8?q?x?= <i@j.k>\r\nSubject: \xc3\xbc\r\n\r\n',
        b"Resent-From: a@b.c\r\nResent-To: <@r:d@e.f>\r\n" + _HEAD + b"\r\n",
        _HEAD + b"Cc: " + b"x@example.org, " * 80 + b"\r\nSubject: \xc3\xbc" + b" word" * 300 + b"\r\n\r\n",
    ],
    "address": [b"a@example.com", b'"a b"@example.com', "jörg@bücher.example".encode(), b"a@[127.0.0.1]", b"a!b%c@d.e"],
    "address_list": [b'"Doe, J" <a@b.c>, g: d@e.f, (x (y)) <@r:g@h.i>;', b"=?utf-8?b?w7w=?= <a@b.c>; d@e.f"],
    "reply": [b"250-a\r\n250 2.1.5 b\r\n354\r\n", b"421 x\n550-5.1.1 a\r\n551 b\r\n"],
    "body": [b"a\r\n.b\n..c\r.\r\n\xff\0", b".\r\n", b"..\r\n\r", b"x" * 1000],
    "recode": [
        b"\x01" + _HEAD + b"Content-Type: text/plain\r\n\r\n\xc3\xbc LONG\r\n",
        b"\x01" + _HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n\xff\r\n--b\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\nLONG\r\n--b\r\n"
        b"Content-Type: message/rfc822\r\n\r\nTo: x\r\n\r\n\xff\0\r\n--b--\r\nLONG",
        b"\x00" + _HEAD + b"Content-Transfer-Encoding: quoted-printable\r\n\r\n=C3=BC=\r\nLONG=3D\xff",
    ],
}  # fmt: skip


def guarded(name: str, data: bytes) -> None:
    """One input, against the clock too."""
    began = time.perf_counter()
    TARGETS[name](data)
    seconds = time.perf_counter() - began
    assert seconds < SECONDS_PER_INPUT, f"{seconds:.1f} s for {len(data)} octets"
