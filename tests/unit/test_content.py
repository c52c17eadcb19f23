"""Header edits as span removals; facts and normal form of bodies, however they are cut."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.domain.account import FromPolicy
from core.domain.content import (
    BodyFacts,
    BodyNormaliser,
    BodyScanner,
    edit_header,
    encode_header,
    end_of_stuffed,
    fold_header,
    from_rewrite,
    has_long_line,
    is_signed,
    scan_body,
)
from core.domain.encoded_word import decode_words
from core.domain.header import split_header
from core.errors import MessageRejected

# --- the slow reference -----------------------------------------------------------------------------------------------


def reference_lines(data: bytes) -> list[bytes]:
    lines = re.split(rb"\r\n|\r|\n", data)
    return lines[:-1] if lines[-1] == b"" else lines


def reference(data: bytes, *, unstuff: bool) -> bytes:
    lines = reference_lines(data)
    if unstuff:
        lines = [line[1:] if line.startswith(b"..") else line for line in lines]
    return b"".join(line + b"\r\n" for line in lines)


def reference_facts(data: bytes) -> BodyFacts:
    lines = reference_lines(data)
    normal = reference(data, unstuff=False)
    return BodyFacts(
        size=len(normal),
        canonical=normal == data,
        eight_bit=any(octet > 127 for octet in data),
        has_nul=0 in data,
        long_line=any(len(line) > 998 for line in lines),
        dot_lines=sum(line.startswith(b".") for line in lines),
        double_dot_lines=sum(line.startswith(b"..") for line in lines),
        lone_dot_lines=sum(line == b"." for line in lines),
    )


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)] or [data]


PIECES = st.lists(
    st.sampled_from(
        [b"\r\n", b"\n", b"\r", b".", b"..", b"x", b"\0", b"\xc3\xa9", b"a" * 997, b"b" * 998, b"c" * 999, b"d" * 1000]
    ),
    max_size=14,
).map(b"".join)
PLACES = st.lists(st.integers(0, 1 << 20), max_size=12)


@pytest.mark.timed
@settings(max_examples=400, deadline=None)
@given(PIECES, PLACES, st.booleans())
def test_any_cut_gives_the_bytes_of_the_reference(data: bytes, places: list[int], unstuff: bool) -> None:
    normaliser = BodyNormaliser(unstuff=unstuff)
    out = b"".join(normaliser.feed(piece) for piece in cut(data, places)) + normaliser.end()
    assert out == reference(data, unstuff=unstuff)


@pytest.mark.timed
@settings(max_examples=400, deadline=None)
@given(PIECES, PLACES)
def test_any_cut_gives_the_facts_of_the_reference(data: bytes, places: list[int]) -> None:
    scanner = BodyScanner()
    for piece in cut(data, places):
        scanner.feed(piece)
    assert scanner.end() == reference_facts(data)
    assert scan_body(data) == reference_facts(data)


@pytest.mark.parametrize(
    "smuggled", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\r", b"\r\n\x00.\r\n", b"\r\n.\r\n", b"\r.\n", b"\n.\r"]
)
def test_no_end_of_mail_can_be_smuggled_in(smuggled: bytes) -> None:
    data = b"one" + smuggled + b"MAIL FROM:<x@y>\r\n"
    for at in range(len(data) + 1):
        normaliser = BodyNormaliser()
        out = normaliser.feed(data[:at]) + normaliser.feed(data[at:]) + normaliser.end()
        assert not re.search(rb"(?<!\r)\n|\r(?!\n)", out)
        assert out == reference(data, unstuff=False)


@pytest.mark.parametrize(
    ("data", "plain"),
    [
        (b".x\r\n", True),
        (b"a\r\n.x\r\n..y\r\n", True),
        (b"..x\r\n", False),
        (b"...x\r\n", False),
        (b".\r\n", False),
        (b"a\r\n.\r\n..\r\n", False),
        (b"a.b\r\n", False),
        (b"a\n.x", True),
    ],
)
def test_one_dot_and_something_proves_plain(data: bytes, plain: bool) -> None:
    assert scan_body(data).proves_plain is plain


@pytest.mark.parametrize(
    ("tail", "at"),
    [
        (b"text\r\n.\r\n", 6),
        (b"text\r\n.\r\n\r\n \r\n", 6),
        (b"text\n.", 5),
        (b".\r\n", 0),
        (b"text\r\n..\r\n", None),
        (b"text\r\n.\r\nmore\r\n", None),
        (b"text.\r\n", None),
        (b"text\r\n. x\r\n", None),
    ],
)
def test_a_lone_dot_ends_a_stuffed_file_if_only_blank_lines_follow(tail: bytes, at: int | None) -> None:
    assert end_of_stuffed(tail) == at


# --- header -----------------------------------------------------------------------------------------------------------

RAW = (
    b"X-Sender: a@b\r\nFrom: Me <a@b>\r\nBCC: h@x,\r\n\th2@x\r\nTo: c@d\r\nx-receiver: c@d\r\n"
    b"Subject:  odd   spacing \r\n\tkept\r\nResent-bcc : q@x\r\n"
)
SENT = b"From: Me <a@b>\r\nTo: c@d\r\nSubject:  odd   spacing \r\n\tkept\r\n"


def test_only_the_spans_of_hidden_fields_are_removed() -> None:
    assert edit_header(split_header(RAW)) == SENT + b"\r\n"


def test_date_and_message_id_are_added_where_missing() -> None:
    header = split_header(b"From: a@b\n")
    added = b"From: a@b\r\nDate: now\r\nMessage-ID: <x@y>\r\n\r\n"
    assert edit_header(header, date="now", message_id="<x@y>") == added
    header = split_header(b"DATE: then\nmessage-id: <own@z>\n")
    assert edit_header(header, date="now", message_id="<x@y>") == b"DATE: then\r\nmessage-id: <own@z>\r\n\r\n"


def test_hidden_recipients_leave_an_empty_to_behind() -> None:
    header = split_header(b"To:\nBcc: a@b\nCc: \n")
    assert edit_header(header, undisclosed=True) == b"To: undisclosed-recipients:;\r\n\r\n"


def test_nothing_is_added_that_a_signature_says_is_absent() -> None:
    header = split_header(b"DKIM-Signature: v=1; h=From:To:to :Date;\n b=x\nFrom: a@b\n")
    sent = edit_header(header, date="now", message_id="<x@y>", undisclosed=True)
    assert sent == b"DKIM-Signature: v=1; h=From:To:to :Date;\r\n b=x\r\nFrom: a@b\r\nMessage-ID: <x@y>\r\n\r\n"


@pytest.mark.parametrize(
    ("header", "policy", "sent"),
    [
        (b"From: a@b\n", FromPolicy.REPLACE, b"From: acc@x\r\n\r\n"),
        (b"X: 1\nFrom: a@b\nTo: c@d\n", FromPolicy.REPLACE, b"X: 1\r\nTo: c@d\r\nFrom: acc@x\r\n\r\n"),
        (b"From: =?utf-8?Q?J=C3=B6?= <a@b>\n", FromPolicy.REPLACE, b"From: =?utf-8?Q?J=C3=B6?= <acc@x>\r\n\r\n"),
        (b"From: J\xc3\xb6 <a@b>\n", FromPolicy.REPLACE, b"From: J\xc3\xb6 <acc@x>\r\n\r\n"),
        (b"From: nobody\n", FromPolicy.REPLACE, b"From: acc@x\r\n\r\n"),
        (b"To: c@d\n", FromPolicy.REPLY_TO, b"To: c@d\r\nFrom: acc@x\r\n\r\n"),
        # folded fields go whole
        (
            b"From: Me\n <a@b>\nTo: c@d\n",
            FromPolicy.REPLY_TO,
            b"To: c@d\r\nFrom: Me <acc@x>\r\nReply-To: Me\r\n <a@b>\r\n\r\n",
        ),
        # the account's own address stays as it was written, whatever its case
        (b"From: Shop <acc@X>\n", FromPolicy.REPLACE, b"From: Shop <acc@X>\r\n\r\n"),
        (b"From: acc@x\nSender: acc@x\n", FromPolicy.REPLY_TO, b"From: acc@x\r\nSender: acc@x\r\n\r\n"),
        (b"From: Acc@x\n", FromPolicy.REPLY_TO, b"From: acc@x\r\nReply-To: Acc@x\r\n\r\n"),
        (b"From: acc@x, a@b\n", FromPolicy.REPLACE, b"From: acc@x\r\n\r\n"),
        # who sends is the account, not the Sender
        (b"From: Me <a@b>\nSender: s@b\n", FromPolicy.REPLACE, b"From: Me <acc@x>\r\n\r\n"),
        (b"Sender: s@b\nFrom: Me <acc@x>\n", FromPolicy.REPLY_TO, b"From: Me <acc@x>\r\n\r\n"),
        (b"From: a@b, c@d\nSender: a@b\n", FromPolicy.REPLY_TO, b"From: acc@x\r\nReply-To: a@b, c@d\r\n\r\n"),
        (b"From: a@b\nSender: s@b\n", FromPolicy.KEEP, b"From: a@b\r\nSender: s@b\r\n\r\n"),
        # resent fields tell of an earlier journey
        (
            b"Resent-From: r@b\nResent-To: t@b\nFrom: a@b\n",
            FromPolicy.REPLACE,
            b"Resent-From: r@b\r\nResent-To: t@b\r\nFrom: acc@x\r\n\r\n",
        ),
        # a signature that would be broken leaves; one that holds stays
        (b"DKIM-Signature: h=From;\n b=x\nFrom: a@b\n", FromPolicy.REPLACE, b"From: acc@x\r\n\r\n"),
        (b"DKIM-Signature: b=x\nFrom: acc@x\n", FromPolicy.REPLACE, b"DKIM-Signature: b=x\r\nFrom: acc@x\r\n\r\n"),
        (b"DKIM-Signature: b=x\nFrom: a@b\n", FromPolicy.KEEP, b"DKIM-Signature: b=x\r\nFrom: a@b\r\n\r\n"),
        (b'From: "Doe, J" <a@b>\n', FromPolicy.REPLACE, b'From: "Doe, J" <acc@x>\r\n\r\n'),
        (b"From: a@b, c@d\n", FromPolicy.REPLACE, b"From: acc@x\r\n\r\n"),
        (b"From: a@b\nFrom: c@d\n", FromPolicy.REPLACE, b"From: acc@x\r\n\r\n"),
        (b"From: Me <a@b>\n", FromPolicy.REPLY_TO, b"From: Me <acc@x>\r\nReply-To: Me <a@b>\r\n\r\n"),
        (b"From: a@b\nReply-To: r@s\n", FromPolicy.REPLY_TO, b"Reply-To: r@s\r\nFrom: acc@x\r\n\r\n"),
        (b"From: a@b\n", FromPolicy.KEEP, b"From: a@b\r\n\r\n"),
    ],
)
def test_the_from_policy(header: bytes, policy: FromPolicy, sent: bytes) -> None:
    fields = split_header(header)
    assert edit_header(fields, from_rewrite=from_rewrite(fields, "acc@x", policy)) == sent


def test_date_and_message_id_are_added_to_mail_whose_signature_leaves() -> None:
    header = split_header(b"DKIM-Signature: h=From:Date:Message-ID; b=x\nFrom: a@b\n")
    rewrite = from_rewrite(header, "acc@x", FromPolicy.REPLACE)
    sent = edit_header(header, date="now", message_id="<x@y>", from_rewrite=rewrite)
    assert sent == b"Date: now\r\nMessage-ID: <x@y>\r\nFrom: acc@x\r\n\r\n"


@pytest.mark.parametrize(
    ("header", "signed"),
    [
        (b"DKIM-Signature: x\n", True),
        (b'Content-Type: Multipart/Signed; boundary="x"\n', True),
        (b"Content-Type: multipart/encrypted\n", True),
        (b"Content-Type: application/pkcs7-mime; smime-type=x\n", True),
        (b"Content-Type: application/x-pkcs7-mime\n", True),
        (b"Content-Type: multipart/mixed\n", False),
        (b"Content-Type: text/plain; name=multipart/signed\n", False),
        (b"Subject: x\n", False),
    ],
)
def test_signed_mail_is_recognised(header: bytes, signed: bool) -> None:
    assert is_signed(split_header(header)) is signed
    assert is_signed(split_header(header), without_dkim=True) is (signed and b"DKIM" not in header)


def test_long_header_lines_are_folded_at_white_space() -> None:
    block = b"Subject: " + b"word " * 500 + b"\r\nFrom: a@b\r\n\r\n"
    folded = fold_header(block, signed=False)
    assert not has_long_line(folded)
    assert folded.replace(b"\r\n ", b" ") == block


def test_long_address_lines_are_folded_behind_commas() -> None:
    block = b"To: " + b",".join(b"user%d@example.org" % n for n in range(300)) + b"\r\n\r\n"
    folded = fold_header(block, signed=False)
    assert not has_long_line(folded)
    assert folded.replace(b",\r\n ", b",") == block


@pytest.mark.parametrize("block", [b"X: " + b"y" * 1200 + b"\r\n\r\n", b"X: y\r\n" + b" " * 1200 + b"\r\n\r\n"])
def test_what_can_not_be_folded_is_rejected(block: bytes) -> None:
    with pytest.raises(MessageRejected, match="can't be folded"):
        fold_header(block, signed=False)


def test_signed_headers_are_not_folded() -> None:
    with pytest.raises(MessageRejected, match="signed") as caught:
        fold_header(b"Subject: " + b"word " * 500 + b"\r\n\r\n", signed=True)
    assert caught.value.enhanced_code == "5.6.3"


@pytest.mark.parametrize(
    ("field", "sent"),
    [
        ("Subject: Grüße an alle", "Subject: =?utf-8?B?R3LDvMOfZQ==?= an alle"),
        ("Subject: an Grüße  für alle", "Subject: an =?utf-8?B?R3LDvMOfZSAgZsO8cg==?= alle"),
        ('From: "Jörg" <a@b>', "From: =?utf-8?B?SsO2cmc=?= <a@b>"),
        ("To: Jörg <a@b>, x@y (Tür)", "To: =?utf-8?B?SsO2cmc=?= <a@b>, x@y (=?utf-8?B?VMO8cg==?=)"),
        ("To: <a@bücher.example>", "To: <a@xn--bcher-kva.example>"),
        ("To: <jörg@b>", "To: <jörg@b>"),
        ("Content-Disposition: attachment; filename=ü", "Content-Disposition: attachment; filename=ü"),
    ],
)
def test_raw_octets_become_encoded_words_where_the_field_allows_it(field: str, sent: str) -> None:
    block = f"A: b\r\n{field}\r\nC: d\r\n".encode()
    assert encode_header(block, split_header(block).fields) == f"A: b\r\n{sent}\r\nC: d\r\n".encode()


def test_long_words_are_split_between_characters() -> None:
    block = ("Subject: " + "ä" * 100 + "\r\n").encode()
    encoded = encode_header(block, split_header(block).fields)
    assert all(len(line) <= 78 for line in encoded.split(b"\r\n"))
    assert decode_words(split_header(encoded).values(b"subject")[0]) == "ä" * 100


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"plain", "plain"),
        (b"=?utf-8?Q?Gr=C3=BC=C3=9Fe?= you", "Grüße you"),
        (b"=?iso-8859-1?Q?Gr=FC=DFe?=", "Grüße"),
        (b"=?nonsense?Q?abc?=", "=?nonsense?Q?abc?="),
        (b"=?utf-8?B?abc?=", "=?utf-8?B?abc?="),
        ("Grüße".encode(), "Grüße"),
        ("Grüße".encode("latin-1"), "Grüße"),
        (b"<img onerror>", "<img onerror>"),
    ],
)
def test_subjects_are_read_for_people(value: bytes, shown: str) -> None:
    assert decode_words(value) == shown
