"""Replies, capabilities, commands, dot-stuffing and logins: octets to values and back."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain.account import AuthMethod
from core.domain.reply import Reply
from core.smtp.auth import Login
from core.smtp.capabilities import choose_mechanism, login_wanted, parse_ehlo
from core.smtp.commands import check_mailbox, mail_line, rcpt_line
from core.smtp.dialogue import Capabilities, Target, Transaction
from core.smtp.reply_parser import MAX_LINE_BYTES, MAX_LINES, MAX_TEXT, ReplyParser
from core.smtp.stuffing import DotStuffer
from tests.support.smtp_mail import GivenTokens, Octets, To

REPLIES = b"220 mx ESMTP\r\n250-mx\r\n250-SIZE 10\r\n250 DSN\r\n354\r\n550 5.1.1 no such user\n"
PARSED = [
    Reply(220, ("mx ESMTP",)),
    Reply(250, ("mx", "SIZE 10", "DSN")),
    Reply(354, ("",)),
    Reply(550, ("5.1.1 no such user",)),
]


@given(st.lists(st.integers(0, len(REPLIES)), max_size=8))
def test_replies_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(REPLIES)]
    parser = ReplyParser()
    found = [reply for a, b in itertools.pairwise(edges) for reply in parser.feed(REPLIES[a:b])]
    assert found == PARSED
    assert not parser.has_partial


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"250-one\r\n251 two\r\n", "mixed codes"),
        (b"250-one\r\n550-two\r\n", "mixed codes"),
        (b"hello\r\n", "not a reply"),
        (b"\r\n", "not a reply"),
        (b"99 x\r\n", "not a reply"),
        (b"150 x\r\n", "not a reply"),
        (b"650 x\r\n", "not a reply"),
        (b"250x\r\n", "not a reply"),
        (b"2500 x\r\n", "not a reply"),
        (b"\x16\x03\x01\x02\n", "not a reply"),
        (b"250 " + b"x" * MAX_LINE_BYTES, "line of over"),
        (b"250 " + b"x" * MAX_LINE_BYTES + b"\r\n", "line of over"),
        (b"250-x\r\n" * MAX_LINES, "lines"),
    ],
)
def test_what_is_no_reply_is_a_fault(octets: bytes, words: str) -> None:
    parser = ReplyParser()
    assert parser.feed(b"220 before\r\n" + octets) == [Reply(220, ("before",))]
    assert words in str(parser.error)
    assert parser.feed(b"250 after\r\n") == []


def test_a_line_of_just_under_32_kib_is_taken() -> None:
    parser = ReplyParser()
    assert parser.feed(b"250 " + b"x" * (MAX_LINE_BYTES - 6) + b"\r\n")[0].code == 250


def test_of_a_reply_that_never_seems_to_end_a_part_is_kept() -> None:
    parser = ReplyParser()
    (reply,) = parser.feed(b"550-" + b"x" * 30_000 + b"\r\n" + b"550-more\r\n" * (MAX_LINES - 2) + b"550 end\r\n")
    assert len(reply.text) == MAX_TEXT
    assert (reply.code, len(reply.lines)) == (550, MAX_LINES)
    assert parser.feed(b"250-one\r\n250 two\r\n") == [Reply(250, ("one", "two"))]


@given(st.lists(st.sampled_from([b".", b"\r\n", b"a", b"..", b"\r\n.", b"\r\n.\r\n"]), max_size=20), st.data())
def test_stuffed_then_unstuffed_is_the_same_however_it_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    body = b"".join(parts) + b"\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    edges = [0, *cuts, len(body)]
    stuffer = DotStuffer()
    out: list[bytes | memoryview] = []
    for a, b in itertools.pairwise(edges):
        stuffer.stuff(body[a:b], out)
    out.append(stuffer.end())
    wire = b"\r\n" + b"".join(out)
    assert wire.index(b"\r\n.\r\n") == len(wire) - 5, "the end comes once, at the end"
    assert wire[:-3].replace(b"\r\n..", b"\r\n.") == b"\r\n" + body


def test_a_chunk_without_a_dot_at_a_line_start_is_not_copied() -> None:
    chunk = b"no dot here\r\n" * 10
    out: list[bytes | memoryview] = []
    DotStuffer().stuff(chunk, out)
    assert out[0] is chunk


def test_the_dot_stands_on_its_own_line_after_a_body_without_line_end() -> None:
    stuffer = DotStuffer()
    stuffer.stuff(b"x", [])
    assert stuffer.end() == b"\r\n.\r\n"


def test_ehlo_is_read() -> None:
    found = parse_ehlo(
        Reply(250, ("mx hello", "size 1000", "PIPELINING", "8bitmime", "Auth plain LOGIN", "AUTH=CRAM-MD5", "CHUNKING"))
    )
    assert found.size_limit == 1000
    assert found.pipelining
    assert found.eight_bit_mime
    assert found.chunking
    assert not found.smtputf8
    assert not found.starttls
    assert found.auth == {"PLAIN", "LOGIN", "CRAM-MD5"}


@pytest.mark.parametrize(("line", "limit"), [("SIZE", None), ("SIZE 0", None), ("SIZE x", None), ("SIZE 7", 7)])
def test_size_limits(line: str, limit: int | None) -> None:
    assert parse_ehlo(Reply(250, ("mx", line))).size_limit == limit


@pytest.mark.parametrize(
    ("auth", "token", "offered", "encrypted", "chosen"),
    [
        (AuthMethod.AUTO, False, {"PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"}, True, AuthMethod.PLAIN),
        (AuthMethod.AUTO, False, {"PLAIN", "LOGIN", "CRAM-MD5"}, False, AuthMethod.CRAM_MD5),
        (AuthMethod.AUTO, False, {"LOGIN", "XOAUTH2"}, True, AuthMethod.LOGIN),
        (AuthMethod.AUTO, True, {"PLAIN", "XOAUTH2"}, True, AuthMethod.XOAUTH2),
        (AuthMethod.AUTO, True, {"PLAIN"}, True, None),
        (AuthMethod.LOGIN, False, {"PLAIN"}, True, None),
        (AuthMethod.LOGIN, False, {"PLAIN", "LOGIN"}, True, AuthMethod.LOGIN),
        (AuthMethod.AUTO, False, {"GSSAPI"}, True, None),
    ],
)
def test_the_login_that_is_chosen(
    auth: AuthMethod, token: bool, offered: set[str], encrypted: bool, chosen: AuthMethod | None
) -> None:
    target = Target("mx", 587, auth=auth, username="u", password="p", token=GivenTokens("t") if token else None)
    assert login_wanted(target)
    assert choose_mechanism(target, frozenset(offered), encrypted=encrypted) is chosen


def test_no_login_without_a_name() -> None:
    assert not login_wanted(Target("mx", 25))
    assert not login_wanted(Target("mx", 25, auth=AuthMethod.NONE, username="u"))


def test_logins_write_what_their_papers_say() -> None:
    assert (
        Login(AuthMethod.PLAIN, "tim", "tanstaaftanstaaf").command() == b"AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\r\n"
    )
    cram = Login(AuthMethod.CRAM_MD5, "tim", "tanstaaftanstaaf")
    assert cram.command() == b"AUTH CRAM-MD5\r\n"
    challenge = base64.b64encode(b"<1896.697170952@postoffice.reston.mci.net>").decode()
    assert base64.b64decode(cram.answer(challenge)) == b"tim b913a602c7eda7a495b4e6e7334d3890"  # RFC 2195 section 2
    login = Login(AuthMethod.LOGIN, "u", "p")
    assert [login.command(), login.answer("x"), login.answer("y"), login.answer("z")] == [
        b"AUTH LOGIN\r\n",
        b"dQ==\r\n",
        b"cA==\r\n",
        b"*\r\n",
    ]
    oauth = Login(AuthMethod.XOAUTH2, "u", "t" * 600)
    assert oauth.command() == b"AUTH XOAUTH2\r\n", "too long for a command line: after the 334"
    assert base64.b64decode(oauth.answer("")) == b"user=u\x01auth=Bearer " + b"t" * 600 + b"\x01\x01"
    assert oauth.answer("eyJ9") == b"\r\n"


ALL = Capabilities(extensions={"SIZE": ""}, eight_bit_mime=True, smtputf8=True, dsn=True)
NONE = Capabilities()


def _tx(**options: Any) -> Transaction:
    options.setdefault("sender", "a@b.c")
    return Transaction(recipients=[To("d@e.f")], body=Octets(b"12345"), **options)


@pytest.mark.parametrize(
    ("options", "capabilities", "line"),
    [
        ({}, ALL, b"MAIL FROM:<a@b.c> SIZE=5\r\n"),
        ({}, NONE, b"MAIL FROM:<a@b.c>\r\n"),
        ({"sender": ""}, NONE, b"MAIL FROM:<>\r\n"),
        ({"eight_bit": True}, ALL, b"MAIL FROM:<a@b.c> SIZE=5 BODY=8BITMIME\r\n"),
        ({"ret": "hdrs", "envid": "x+3Dy"}, ALL, b"MAIL FROM:<a@b.c> SIZE=5 RET=HDRS ENVID=x+3Dy\r\n"),
        ({"ret": "HDRS", "envid": "x"}, NONE, b"MAIL FROM:<a@b.c>\r\n"),
        (
            {"sender": "jörg@b.c", "smtputf8": True},
            ALL,
            "MAIL FROM:<jörg@b.c> SIZE=5 SMTPUTF8\r\n".encode(),
        ),
    ],
)
def test_mail_has_the_parameters_that_are_offered(
    options: dict[str, Any], capabilities: Capabilities, line: bytes
) -> None:
    assert mail_line(_tx(**options), capabilities) == line


def test_rcpt_has_the_parameters_that_are_offered() -> None:
    to = To("d@e.f", notify="NEVER", orcpt="rfc822;d@e.f")
    assert rcpt_line(to, _tx(), ALL) == b"RCPT TO:<d@e.f> NOTIFY=NEVER ORCPT=rfc822;d@e.f\r\n"
    assert rcpt_line(to, _tx(), NONE) == b"RCPT TO:<d@e.f>\r\n"


@pytest.mark.parametrize(
    "mailbox",
    [
        "a@b",
        '"a b"@e.f',
        '"a>b"@e.f',
        "a+b=c@e.f",
        "x@[127.0.0.1]",
        "x@[IPv6:::1]",
        "jörg@bücher.de",
        "d%x@e.f",
        "a!b@c",
    ],
)
def test_mailboxes_that_may_be_written(mailbox: str) -> None:
    check_mailbox(mailbox)


@pytest.mark.parametrize(
    "mailbox",
    [
        "",
        "a",
        "a@",
        "@b",
        "d@e.f>\r\nRCPT TO:<x@y",
        "d@e.f\r\nX",
        "d@e.f\n",
        "d@e.f\r",
        "d@e.f> SIZE=1",
        "d@e.f\x00",
        "d @e.f",
        "d@e .f",
        "<d@e.f",
        "d@e.f>",
        '"a\r\nb"@e.f',
        '"a\x00b"@e.f',
        '"a"b"@e.f',
        "a@b@c",
        "@h1:d@e.f",
        "alice@x)bob@y",
        "d@e.f\u2028",
        "d\u0085@e.f",
        "x" * 1000 + "@e.f",
    ],
)
def test_mailboxes_that_are_never_written(mailbox: str) -> None:
    with pytest.raises(ValueError, match="not a mailbox"):
        check_mailbox(mailbox)


@pytest.mark.parametrize(
    ("options", "to"),
    [
        ({"ret": "ALL"}, To("d@e.f")),
        ({"envid": "a b"}, To("d@e.f")),
        ({"envid": "a\r\nRSET"}, To("d@e.f")),
        ({"envid": "a\n"}, To("d@e.f")),
        ({"envid": ""}, To("d@e.f")),
        ({}, To("d@e.f", notify="NEVER\r\nRSET")),
        ({}, To("d@e.f", orcpt="rfc822;a b")),
        ({}, To("d@e.f", orcpt="rfc822;a>")),
        ({"sender": "jörg@b.c"}, To("d@e.f")),
        ({}, To("jörg@e.f")),
    ],
)
def test_parameters_that_are_never_written(options: dict[str, Any], to: To) -> None:
    tx = _tx(**options)
    with pytest.raises(ValueError, match=r"not a value|SMTPUTF8"):
        (mail_line(tx, ALL), rcpt_line(to, tx, ALL))


@pytest.mark.parametrize(("option", "words"), [("eight_bit", "8BITMIME"), ("smtputf8", "SMTPUTF8")])
def test_what_the_server_lacks_is_refused(option: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mail_line(_tx(**{option: True}), NONE)


def test_what_a_server_says_can_not_steer_a_terminal_or_hide_what_is_shown() -> None:
    (reply,) = ReplyParser().feed("550 5.1.1 no \x1b[2J\x07\x00\u009b\u202e\tJ\u00f6\r\n".encode())
    assert reply.text == "5.1.1 no \ufffd[2J\ufffd\ufffd\ufffd\ufffd J\u00f6"
