"""Bodies of real files: facts, sizes, changes under way, hostile shapes, and what the server can't take."""

from __future__ import annotations

import contextlib
import os
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.domain.account import DotStuffing, FromPolicy
from core.domain.envelope import rewrite_sender
from core.errors import MessageChanged, MessageRefused, MessageRejected
from core.spool.body import FileContent, Prepared, prepare

HEAD = b"From: a@b\r\nTo: c@d\r\nDate: x\r\nMessage-ID: <m@x>\r\n"
X_HEAD = b"X-Sender: a@b\r\nX-Receiver: c@d\r\n" + HEAD


class Mails:
    """Writes files and prepares them."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "x.eml"
        self.fds: list[int] = []

    def prepare(self, data: bytes, **options: Any) -> Prepared:
        self.path.write_bytes(data)
        fd = os.open(self.path, os.O_RDONLY)
        self.fds.append(fd)
        found = os.fstat(fd)
        return prepare(fd, size=found.st_size, mtime_ns=found.st_mtime_ns, **options)

    def sent(self, data: bytes, *, eight_bit_allowed: bool = True, **options: Any) -> bytes:
        return octets(content(self.prepare(data, **options)), eight_bit_allowed=eight_bit_allowed)


@pytest.fixture
def mails(tmp_path: Path) -> Iterator[Mails]:
    made = Mails(tmp_path)
    yield made
    for fd in made.fds:
        os.close(fd)


def content(prepared: Prepared, **options: Any) -> FileContent:
    return prepared.content(message_id="<new@x>", date="now", **options)


def octets(of: FileContent, *, eight_bit_allowed: bool = True) -> bytes:
    body = of.body(eight_bit_allowed=eight_bit_allowed)
    chunks = list(body.chunks())
    assert all(0 < len(chunk) <= 262_144 for chunk in chunks)
    sent = b"".join(chunks)
    assert body.size == len(sent)
    assert b"".join(body.chunks()) == sent
    return sent


BIG = 700_000


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
@pytest.mark.parametrize("size", [0, 1, 1000, 262_000, BIG])
def test_small_and_large_files_leave_the_same_way(mails: Mails, end: bytes, size: int) -> None:
    line = b"0123456789abcdef.\xc3\xbc"
    count = size // len(line)
    raw = (HEAD + b"\r\n").replace(b"\r\n", end) + (line + end) * count
    assert mails.sent(raw) == HEAD + b"\r\n" + (line + b"\r\n") * count


@pytest.mark.parametrize("filler", [0, 300_000])
@pytest.mark.parametrize(
    ("lead", "setting", "proven", "body", "sent"),
    [
        (HEAD, "auto", None, b"..x\r\n", b"..x\r\n"),
        (X_HEAD, "auto", None, b"..x\r\n", b".x\r\n"),
        (X_HEAD, "auto", None, b"..x\r\n.y\r\n", b"..x\r\n.y\r\n"),
        (X_HEAD, "auto", DotStuffing.PLAIN, b"..x\r\n", b"..x\r\n"),
        (HEAD, "auto", DotStuffing.STUFFED, b"..x\r\n", b".x\r\n"),
        (HEAD, "stuffed", None, b"..x\r\n.y\r\n", b".x\r\n.y\r\n"),
        (X_HEAD, "plain", DotStuffing.STUFFED, b"..x\r\n", b"..x\r\n"),
        (b"Subject: first\r\n" + X_HEAD, "auto", None, b"..x\r\n", b"..x\r\n"),
        (HEAD, "stuffed", None, b"x\r\n.\r\n\r\n", b"x\r\n"),
        (HEAD, "stuffed", None, b"x\r\n.\r\nmore\r\n", b"x\r\n.\r\nmore\r\n"),
        (HEAD, "stuffed", None, b"x\n..\n.", b"x\r\n.\r\n"),
        (HEAD, "plain", None, b"x\r\n.\r\n", b"x\r\n.\r\n"),
        (HEAD, "auto", None, b"x\r\n.\r\n", b"x\r\n.\r\n"),
    ],
)
def test_dot_stuffing(
    mails: Mails, filler: int, lead: bytes, setting: str, proven: DotStuffing | None, body: bytes, sent: bytes
) -> None:
    text = (b"z" * 70 + b"\r\n") * (filler // 72)
    out = mails.sent(lead + b"\r\n" + text + body, dot_stuffing=DotStuffing(setting), proven=proven)
    assert out.partition(b"\r\n\r\n")[2] == text + sent


def test_proof_is_reported(mails: Mails) -> None:
    assert mails.prepare(HEAD + b"\r\n.x\r\n").dot_proof is DotStuffing.PLAIN
    assert mails.prepare(HEAD + b"\r\n..x\r\n").dot_proof is None


@pytest.mark.parametrize("line", [b"x\r\n", b".x\r\n", b"x\n", b"\xc3\xa4\r\n"])
def test_a_large_file_that_is_kept_is_the_same_mail(mails: Mails, line: bytes) -> None:
    data = HEAD + b"\r\n" + line * (BIG // len(line))
    assert mails.sent(data, keep_octets=BIG * 2) == mails.sent(data)


@pytest.mark.parametrize(
    ("data", "dotless"),
    [
        (HEAD + b"\r\nx\r\n", True),
        (HEAD + b"\r\nx.\r\n", True),
        (HEAD + b"\r\n.x\r\n", False),
        (HEAD + b"\r\nx\r\n.\r\n", False),
        (X_HEAD + b"\r\n..x\r\n", False),
        (HEAD + b".x: y\r\n\r\nx\r\n", False),
        (HEAD + b"\r\nx\n", False),  # not as it goes out: nobody looked at that
    ],
)
@pytest.mark.parametrize("padding", [0, BIG])
def test_nobody_looks_for_dots_where_there_are_none(mails: Mails, data: bytes, dotless: bool, padding: int) -> None:
    data += (b"y" * 70 + b"\r\n") * (padding // 72)
    assert content(mails.prepare(data, keep_octets=BIG * 2)).body(eight_bit_allowed=True).dotless is dotless
    if padding:  # what is read again could be another body
        assert not content(mails.prepare(data)).body(eight_bit_allowed=True).dotless


@pytest.mark.parametrize("size", [100, BIG])
@pytest.mark.parametrize("change", [b"", b"more and more"])
@pytest.mark.parametrize("keep", [0, BIG * 2])
def test_a_file_that_changes_is_not_sent_to_the_end(mails: Mails, size: int, change: bytes, keep: int) -> None:
    prepared = mails.prepare(HEAD + b"\r\n" + b"x\r\n" * (size // 3), keep_octets=keep)
    body = content(prepared).body(eight_bit_allowed=True)
    with mails.path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(change) if change else file.truncate(size // 2)
    with pytest.raises(MessageChanged):
        list(body.chunks())


@pytest.mark.parametrize("size", [100, BIG])
def test_octets_that_are_overwritten_are_noticed(mails: Mails, size: int) -> None:
    prepared = mails.prepare(HEAD + b"\r\n" + b"x\r\n" * (size // 3))
    with mails.path.open("r+b") as file:
        file.write(b"G")
    os.utime(mails.path, ns=(1, 1))
    with pytest.raises(MessageChanged):
        list(content(prepared).body(eight_bit_allowed=True).chunks())


@pytest.mark.parametrize("told", [-1, 1])
def test_a_size_that_is_not_the_files_is_noticed_at_once(mails: Mails, told: int) -> None:
    mails.path.write_bytes(HEAD + b"\r\nx")
    with mails.path.open("rb") as file:
        found = os.fstat(file.fileno())
        with pytest.raises(MessageChanged):
            prepare(file.fileno(), size=found.st_size + told, mtime_ns=found.st_mtime_ns)


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"", "5.6.0", "nothing in it"),
        (b"\r\n\r\n", "5.6.0", "nothing in it"),
        (b"Hello,\nthis is text only\n", "5.6.0", "line 1"),
        (b"\nHello\n", "5.6.0", "no header fields"),
        (("\ufeff" + HEAD.decode()).encode("utf-16"), "5.6.0", "UTF-16"),
        (HEAD.decode().encode("utf-16-le"), "5.6.0", "NUL"),
        (b"X: " + b"y" * (10 << 20), "5.3.4", "header block is longer"),
        (b"DKIM-Signature: x\r\n" + HEAD + b"\r\n" + b"y" * 1000, "5.6.3", "998"),
        (b"DKIM-Signature: x\r\n" + HEAD + b"\r\nn\0", "5.6.3", "NUL"),
        (b"Content-Type: multipart/signed\r\n" + HEAD + b"\r\nn\0", "5.6.3", "NUL"),
        (HEAD.replace(b"To:", b"Tx:"), "5.1.3", "no recipient"),
    ],
)
def test_what_can_never_be_sent(mails: Mails, data: bytes, code: str, reason: str) -> None:
    with pytest.raises(MessageRejected, match=reason) as caught:
        mails.prepare(data)
    assert caught.value.enhanced_code == code


def test_a_header_without_a_blank_line_is_a_mail_with_an_empty_body(mails: Mails) -> None:
    assert mails.sent(HEAD[:-2]) == HEAD + b"\r\n"


@pytest.mark.timed
def test_100000_header_fields_in_linear_time(mails: Mails) -> None:
    began = time.perf_counter()
    raw = HEAD + b"X-Long: y\r\n" * 90_000 + b"\r\nbody\r\n"
    assert mails.sent(raw) == raw
    assert time.perf_counter() - began < 3


MIXED = HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n"


@pytest.mark.timed
@pytest.mark.parametrize(
    "raw",
    [
        MIXED + b"--\r\n" * 400_000 + b"\xc3\xbc",
        MIXED + b"--bx\r\n" * 400_000 + b"\xc3\xbc",
        MIXED + b"\r\n" * 400_000 + b"\xc3\xbc",
        MIXED + b"--b\r\n\r\n\xc3\xbc\r\n" * 9_000,
        HEAD + b"Content-Type: message/rfc822\r\n\r\n" * 9_000 + b"\r\n\xc3\xbc",
        HEAD + b"Cc: " + b"," * 900_000 + b"\r\n\r\nx",
        HEAD + b"Subject: " + b"=?utf-8?q?a?= " * 60_000 + b"\r\n\r\nx",
        HEAD.replace(b"<m@x>", b"<" * 900_000 + b" .mail>") + b"\r\nx",
        b"From " + b"x" * 2_000_000 + b"\n" + HEAD + b"\r\nx",
        HEAD + b"Subject: " + "ü".encode() * 400_000 + b"\r\n\r\nx",
    ],
    ids=["--", "--bx", "blank lines", "parts", "rfc822", "commas", "words", "message-id", "mbox", "raw subject"],
)
def test_hostile_shapes_cost_linear_time(mails: Mails, raw: bytes) -> None:
    began = time.process_time()
    with contextlib.suppress(MessageRejected):
        prepared = mails.prepare(raw)
        assert prepared.subject is not None
        octets(content(prepared), eight_bit_allowed=False)
    assert time.process_time() - began < 15  # under coverage; a square of these sizes takes many minutes


def test_memory_is_bounded_for_large_files(mails: Mails) -> None:
    with mails.path.open("wb") as file:
        file.write(HEAD + b"\r\n")
        for _ in range(60):
            file.write((b"x" * 98 + b"\n") * 5000)
    tracemalloc.start()
    try:
        fd = os.open(mails.path, os.O_RDONLY)
        mails.fds.append(fd)
        found = os.fstat(fd)
        prepared = prepare(fd, size=found.st_size, mtime_ns=found.st_mtime_ns)
        body = content(prepared).body(eight_bit_allowed=True)
        assert sum(map(len, body.chunks())) == body.size > 29_000_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_eight_bit_is_encoded_only_where_the_server_does_not_take_it(mails: Mails) -> None:
    raw = HEAD + b"Content-Transfer-Encoding: 8bit\r\n\r\nGr\xc3\xbc\xc3\x9fe an alle\r\n"
    prepared = mails.prepare(raw)
    assert content(prepared).eight_bit
    assert octets(content(prepared)) == raw
    sent = octets(content(prepared), eight_bit_allowed=False)
    assert sent.endswith(
        b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nGr=C3=BC=C3=9Fe an alle\r\n"
    )


def test_signed_eight_bit_is_never_encoded(mails: Mails) -> None:
    raw = b"DKIM-Signature: x\r\n" + HEAD + b"\r\n\xc3\xbc\r\n"
    assert mails.sent(raw) == raw
    with pytest.raises(MessageRejected) as caught:
        mails.sent(raw, eight_bit_allowed=False)
    assert caught.value.enhanced_code == "5.6.3"


@pytest.mark.parametrize("body", [b"y" * 1_000_000 + b"\r\n", b"nul\0\r\n"])
def test_long_lines_and_nul_are_always_encoded(mails: Mails, body: bytes) -> None:
    sent = mails.sent(HEAD + b"\r\n" + body)
    assert all(len(line) <= 998 for line in sent.split(b"\r\n"))
    assert b"\0" not in sent
    assert b"quoted-printable" in sent


def test_raw_headers_by_what_server_and_signature_allow(mails: Mails) -> None:
    raw = HEAD + "Subject: Grüße\r\n\r\nx\r\n".encode()
    made = content(mails.prepare(raw))
    assert (made.eight_bit, made.smtputf8, made.header_utf8) == (True, False, True)
    assert b"".join(made.body(eight_bit_allowed=True, smtputf8_allowed=True).chunks()) == raw
    assert octets(made, eight_bit_allowed=False).isascii()
    signed = content(mails.prepare(b"DKIM-Signature: x\r\n" + raw))
    assert octets(signed) == b"DKIM-Signature: x\r\n" + raw
    with pytest.raises(MessageRejected):
        octets(signed, eight_bit_allowed=False)


def test_smtputf8_is_needed_only_for_local_parts_that_are_addressed(mails: Mails) -> None:
    prepared = mails.prepare("X-Sender: a@b\nX-Receiver: jörg@b\nX-Receiver: c@bücher.example\n\nx".encode())
    assert content(prepared).smtputf8
    assert not content(prepared, exclude={"jörg@b"}).smtputf8


def test_long_header_lines_are_folded(mails: Mails) -> None:
    raw = HEAD + b"Subject: " + b"word " * 400 + b"\r\n\r\nx\r\n"
    sent = mails.sent(raw)
    assert all(len(line) <= 998 for line in sent.split(b"\r\n"))
    assert sent.replace(b"\r\n ", b" ") == raw


def test_the_account_may_take_the_from(mails: Mails) -> None:
    prepared = mails.prepare(HEAD + b"\r\nx\r\n")
    sent = octets(content(prepared, from_address="acc@x", from_policy=FromPolicy.REPLY_TO))
    assert sent == HEAD.replace(b"From: a@b\r\n", b"") + b"From: acc@x\r\nReply-To: a@b\r\n\r\nx\r\n"


def test_mail_whose_signature_leaves_with_its_from_may_be_re_encoded(mails: Mails) -> None:
    raw = b"DKIM-Signature: h=From; b=x\r\n" + HEAD + b"\r\nf\xc3\xbcr\r\n"
    prepared = mails.prepare(raw)
    with pytest.raises(MessageRejected, match="signature"):
        octets(content(prepared), eight_bit_allowed=False)
    with pytest.raises(MessageRejected, match="signature"):  # its own address: the signature holds, and stays
        octets(content(prepared, from_address="a@B", from_policy=FromPolicy.REPLACE), eight_bit_allowed=False)
    rewritten = content(prepared, from_address="acc@x", from_policy=FromPolicy.REPLACE)
    assert octets(rewritten, eight_bit_allowed=False) == (
        HEAD.replace(b"From: a@b\r\n", b"")
        + b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\nFrom: acc@x\r\n\r\nf=C3=BCr\r\n"
    )
    assert octets(rewritten) == HEAD.replace(b"From: a@b\r\n", b"") + b"From: acc@x\r\n\r\nf\xc3\xbcr\r\n"


def test_smtputf8_is_needed_for_the_address_that_is_sent_not_for_the_one_it_replaces(mails: Mails) -> None:
    prepared = mails.prepare("X-Sender: jörg@b\nX-Receiver: c@d\nFrom: a@b\n\nx".encode())
    assert content(prepared).smtputf8
    assert not content(prepared, from_address="acc@x", from_policy=FromPolicy.REPLACE).smtputf8
    prepared = mails.prepare(HEAD + b"\r\nx\r\n")
    taken = content(prepared, from_address="jörg@bücher.example", from_policy=FromPolicy.REPLY_TO)
    assert (taken.smtputf8, taken.header_utf8, taken.eight_bit) == (True, True, True)
    sent = b"".join(taken.body(eight_bit_allowed=True, smtputf8_allowed=True).chunks())
    assert "From: jörg@xn--bcher-kva.example\r\nReply-To: a@b\r\n".encode() in sent


def test_the_null_sender_stays_and_the_header_is_the_accounts_all_the_same(mails: Mails) -> None:
    prepared = mails.prepare(b"X-Sender: <>\nX-Receiver: c@d\nFrom: Robot <a@b>\nTo: c@d\n\nx\n")
    assert rewrite_sender(prepared.envelope, "acc@x", FromPolicy.REPLY_TO).sender == ""
    sent = octets(content(prepared, from_address="acc@x", from_policy=FromPolicy.REPLY_TO))
    assert sent == (
        b"To: c@d\r\nDate: now\r\nMessage-ID: <new@x>\r\nFrom: Robot <acc@x>\r\nReply-To: Robot <a@b>\r\n\r\nx\r\n"
    )


def test_what_people_are_told(mails: Mails) -> None:
    prepared = mails.prepare(
        b"\xef\xbb\xbfFrom: Me <a@b>\nX-Receiver: z@z\nBcc: c@d, nobody\nSubject: =?utf-8?Q?=C3=BC?= <img>\n\n.x\n"
    )
    assert prepared.subject == "ü <img>"
    assert (prepared.internet_message_id, prepared.has_date) == (None, False)
    notes = "\n".join(prepared.notes)
    for part in ("byte order mark", "x-receiver stands alone", "'nobody' is no mailbox", "line ends become CRLF"):
        assert part in notes


def test_rails_files_are_known_by_their_name_too(mails: Mails) -> None:
    raw = HEAD.replace(b"<m@x>", b"<1@host.mail>") + b"\r\nx\r\n"
    assert mails.prepare(raw, name=b"order-1.eml").envelope.sender == "a@b"
    with pytest.raises(MessageRefused, match="Rails"):
        mails.prepare(raw, name=b"c@d.eml")


def test_a_line_of_79_dashes_inside_a_mail_is_text(mails: Mails) -> None:
    raw = b"MIME-Version: 1.0\r\n" + HEAD + b"\r\n" + b"-" * 79 + b"\r\nx\r\n"
    assert mails.sent(raw) == raw


def test_two_subjects_leave_as_they_came(mails: Mails) -> None:
    raw = HEAD + b"Subject: one\r\nSubject: two\r\n\r\nx\r\n"
    assert mails.prepare(raw).subject == "one"
    assert mails.sent(raw) == raw
