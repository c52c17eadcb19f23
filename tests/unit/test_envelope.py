"""Who a message is from and for (writers.md)."""

from __future__ import annotations

import time

import pytest

from core.domain.account import FromPolicy
from core.domain.address_list import parse_address_list
from core.domain.envelope import Envelope, Recipient, envelope_of, rewrite_sender
from core.domain.header import split_header
from core.errors import MessageRejected


def read(text: str | bytes, *, max_recipients: int = 10_000) -> Envelope:
    data = text if isinstance(text, bytes) else text.encode()
    return envelope_of(split_header(data), max_recipients=max_recipients)


def mailboxes(envelope: Envelope) -> list[str]:
    return [recipient.mailbox for recipient in envelope.recipients]


def test_x_headers_are_the_envelope_and_the_others_do_not_count() -> None:
    envelope = read("x-sender: a@b\nX-RECEIVER: c@d\nX-Receiver: <e@f>\nFrom: q@q, r@r\nTo: no@no\nBcc: no2@no\n")
    assert envelope == Envelope("a@b", (Recipient("c@d"), Recipient("e@f")), source="x-headers")


@pytest.mark.parametrize(
    ("value", "mailbox"),
    [
        ("<a@b>", "a@b"),
        ("a@b", "a@b"),
        ('"Doe, J" <a@b>', "a@b"),
        ('"x <no@no>" <a@b>', "a@b"),
        ("=?utf-8?B?SsO2cmc=?= <a@b>", "a@b"),
        ("=?utf-8?Q?Doe,_J?= <a@b>", "a@b"),
        ("=?utf-8?B?SsO2cmc=?=\r\n =?utf-8?B?SsO2cmc=?=\r\n <a@b>", "a@b"),
        ("a@b <a@b>", "a@b"),
        ("Doe, J <a@b>", "a@b"),
        ("<@h1,@h2:a@b>", "a@b"),
        ('<"a>b"@e.f>', '"a>b"@e.f'),
        ("< a@b >", "a@b"),
        ("<a@b> SIZE=1", "a@b"),
        ("<a@b> auth=<someAuth>", "a@b"),
        ("<a@b> (a note)", "a@b"),
    ],
)
def test_x_values_in_all_their_forms(value: str, mailbox: str) -> None:
    envelope = read(f"X-Sender: {value}\r\nX-Receiver: {value}\r\n")
    assert (envelope.sender, mailboxes(envelope)) == (mailbox, [mailbox])


@pytest.mark.parametrize(
    "value",
    [
        "d@e.f> SIZE=1", "a@b\r\n X: y", "@h1:d@e.f", "<@h1>", "a@b, c@d", "<a@b>, <c@d>", "a@b, <c@d>", "<a@b",
        '"x <a@b>', "", "<>", "a@b NOTIFY=NEVER", "postmaster", "alice@x)bob@y", "a@b@c", "<a@b> SIZE=1 c@d",
        "<a@b> <c@d>",
    ],
)  # fmt: skip
def test_a_wrong_receiver_fails_alone(value: str) -> None:
    envelope = read(f"X-Sender: a@b\r\nX-Receiver: {value}\r\nX-Receiver: good@x\r\n")
    assert mailboxes(envelope) == ["good@x"]
    assert len(envelope.rejected) == 1
    assert envelope.rejected[0][1]


def test_dsn_parameters_are_kept_and_others_ignored() -> None:
    envelope = read(
        "X-Sender: <bob@x> BODY=7bit RET=HDRS ENVID=abc+2B\n"
        "X-Receiver: <mary@x> NOTIFY=NEVER ORcpt=rfc822;mary@x\n"
        "X-Receiver: <jim@x> notify=Success,Failure XYZ=1\n"
    )
    assert (envelope.ret, envelope.envid) == ("HDRS", "abc+2B")
    assert envelope.recipients == (
        Recipient("mary@x", "NEVER", "rfc822;mary@x"),
        Recipient("jim@x", "SUCCESS,FAILURE", None),
    )


@pytest.mark.parametrize(
    "parameters",
    [
        "NOTIFY=NEVER,SUCCESS", "NOTIFY=x", "NOTIFY=", "ORCPT=mary@x", "ORCPT=rfc822;a+b@x", "ORCPT=rfc822;a=b",
        "ORCPT=rfc822;" + "x" * 500, "ORCPT=rfc822;ü@x",
    ],
)  # fmt: skip
def test_wrong_recipient_parameters_are_dropped(parameters: str) -> None:
    envelope = read(f"X-Sender: a@b\nX-Receiver: <c@d> {parameters}\n")
    assert envelope.recipients == (Recipient("c@d"),)


@pytest.mark.parametrize("parameters", ["RET=ALL", "ENVID=a=b", "ENVID=" + "x" * 101, "ENVID=a+b"])
def test_wrong_sender_parameters_are_dropped(parameters: str) -> None:
    envelope = read(f"X-Sender: <a@b> {parameters}\nX-Receiver: c@d\n")
    assert (envelope.ret, envelope.envid) == (None, None)


def test_the_null_sender() -> None:
    assert read("X-Sender: <>\nX-Receiver: a@b\n").sender == ""


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("X-Sender: a@b\nX-Sender: a@b\nX-Receiver: c@d\n", "5.1.7", "2 X-Sender"),
        ("X-Sender:\nX-Receiver: c@d\n", "5.1.7", "X-Sender"),
        ("X-Sender: a@b@c\nX-Receiver: c@d\n", "5.1.7", "X-Sender"),
        ("X-Sender: a@b\nX-Receiver: nobody\n", "5.1.3", "no recipient is a mailbox"),
        ("From: a@b\n", "5.1.3", "no recipient"),
        ("From: a@b\nTo: undisclosed:;\n", "5.1.3", "no recipient"),
        ("From: a@b\nTo: " + "(" * 3000 + "\n", "5.1.3", "comment is not closed"),
        ("From: a@b\nTo: postmaster\n", "5.1.3", "no '@'"),
        ("To: a@b\n", "5.1.7", "no sender"),
        ("From: a@b, c@d\nTo: e@f\n", "5.1.7", "2 mailboxes"),
        ("From: a@b\nFrom: c@d\nTo: e@f\n", "5.1.7", "2 mailboxes"),
        ("From: <>\nTo: e@f\n", "5.1.7", "not a mailbox"),
        ("From: a@b\nSender: x\nTo: e@f\n", "5.1.7", "Sender"),
        ("Resent-From: a@b\nFrom: q@q\nTo: r@r\n", "5.1.3", "no recipient"),
    ],
)
def test_messages_that_can_not_be_sent(text: str, code: str, reason: str) -> None:
    with pytest.raises(MessageRejected, match=reason) as caught:
        read(text)
    assert caught.value.enhanced_code == code


def test_sender_comes_before_several_from() -> None:
    assert read("From: a@b, c@d\nSender: S <s@t>\nTo: e@f\n").sender == "s@t"


def test_recipients_of_all_fields_in_order_without_duplicates() -> None:
    envelope = read(
        b'From: a@b\nTo: "Doe, J" <j@x>, (note (deep)) k@X; l@x,\n'
        b" G: m@x, <n@x>;, <@r:o@x>, =?utf-8?Q?P,_P?= <p@x>\n"
        b"Cc: J@x, j@X\nTo: q@x\nBcc: \xc3\xbc <r@x>, \xff <s@x>, undisclosed-recipients:;\n"
    )
    assert mailboxes(envelope) == [f"{name}@x" for name in "j"] + ["k@X"] + [f"{name}@x" for name in "lmnopqJrs"]
    assert envelope.rejected == ()


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("a@b X: y, good@x", 1),
        ("alice@x)bob@y, good@x", 1),
        ("<a@b, good@x", 1),
        ("d@e.f> SIZE=1, good@x", 1),
        ("<a@b> <c@d>, good@x", 1),
        ("<a@b> c, good@x", 1),
        ("bob jim@x, good@x", 1),
        ('good@x, "open <a@b>', 1),
        ("good@x, , ,", 0),
        ("@h1:d@e.f, good@x", 1),
        ("Doe, John <good@x>", 1),
    ],
)
def test_a_wrong_entry_does_not_spoil_the_others(value: str, wrong: int) -> None:
    envelope = read(f"From: a@b\nTo: {value}\n")
    assert mailboxes(envelope) == ["good@x"]
    assert len(envelope.rejected) == wrong


def test_what_is_reported_can_be_shown_and_stored() -> None:
    envelope = read(b"From: a@b\nTo: \x1b[2J\xff@x, good@x\n")
    assert envelope.rejected[0][0].isprintable()


def test_only_one_of_the_x_headers_is_no_envelope() -> None:
    assert read("X-Sender: no@no\nFrom: a@b\nTo: c@d\n") == Envelope("a@b", (Recipient("c@d"),), source="headers")
    assert read("X-Receiver: no@no\nFrom: a@b\nTo: c@d\n") == Envelope("a@b", (Recipient("c@d"),), source="headers")


def test_the_newest_resent_block_counts() -> None:
    envelope = read(
        "Received: x\nResent-From: new@x\nResent-To: to@x\nResent-Bcc: hidden@x\n"
        "Resent-From: old@x\nResent-To: no@no\nResent-Cc: no@no\nFrom: a@b\nTo: c@d\n"
    )
    assert envelope == Envelope("new@x", (Recipient("to@x"), Recipient("hidden@x")), source="resent")


def test_a_trace_field_ends_the_resent_block() -> None:
    envelope = read("Resent-From: new@x\nResent-To: to@x\nReceived: x\nResent-Cc: no@no\nFrom: a@b\n")
    assert mailboxes(envelope) == ["to@x"]


def test_recipients_are_capped() -> None:
    text = "X-Sender: a@b\n" + "".join(f"X-Receiver: u{n}@x\n" for n in range(11))
    assert len(read(text, max_recipients=11).recipients) == 11
    with pytest.raises(MessageRejected, match="more than 10") as caught:
        read(text, max_recipients=10)
    assert caught.value.enhanced_code == "5.5.3"


def test_an_internationalised_domain_becomes_its_a_label() -> None:
    envelope = read("From: a@bücher.example\nTo: jörg@bücher.example\n")
    assert (envelope.sender, mailboxes(envelope)) == ("a@xn--bcher-kva.example", ["jörg@xn--bcher-kva.example"])


@pytest.mark.timed
@pytest.mark.parametrize(
    "value",
    [
        b"(" * 100_000, b'"\\"' * 50_000, b'<"\\"' * 30_000, b"<" * 100_000, b"[" * 100_000, b"=?" * 50_000,
        b"a " * 50_000, b"a@" * 50_000, b"a:" * 50_000, b"a\\" * 50_000, b"<a@b>" * 20_000, b"@a:" * 30_000,
        b", ".join(b"u%d@e.example" % n for n in range(8000)),
    ],
    ids=lambda value: value[:6].decode(),
)  # fmt: skip
def test_hostile_lists_cost_linear_time(value: bytes) -> None:
    began = time.perf_counter()
    parse_address_list(value)
    assert time.perf_counter() - began < 2


def test_8000_addresses_are_all_found() -> None:
    value = ",\n ".join(f'"Doe, {n}" <u{n}@e.example>' for n in range(8000))
    assert len(read(f"From: a@b\nTo: {value}\n").recipients) == 8000


def test_the_account_may_replace_the_sender_but_not_the_null_sender() -> None:
    envelope = Envelope("a@b", (Recipient("c@d"),))
    assert rewrite_sender(envelope, "acc@x", FromPolicy.REPLACE).sender == "acc@x"
    assert rewrite_sender(envelope, "acc@x", FromPolicy.REPLY_TO).sender == "acc@x"
    assert rewrite_sender(envelope, "acc@x", FromPolicy.KEEP) is envelope
    assert rewrite_sender(Envelope("", ()), "acc@x", FromPolicy.REPLACE).sender == ""
