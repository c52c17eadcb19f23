"""The address grammar: what is a mailbox, and that nothing else gets between the brackets."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.domain.address import AddressError, parse_mailbox, plain_mailbox

ACCEPTED = [
    ("a@b.example", "a@b.example"),
    ("a@localhost", "a@localhost"),
    ("O'Brien+tag=x@Sub.Example.ORG", "O'Brien+tag=x@Sub.Example.ORG"),
    ('"a b"@e.f', '"a b"@e.f'),
    ('"a\\"b"@e.f', '"a\\"b"@e.f'),
    ('"a@b"@e.f', '"a@b"@e.f'),
    ("d%x@e.f", "d%x@e.f"),
    ("a!b@c", "a!b@c"),
    ("x" * 64 + "@y.z", "x" * 64 + "@y.z"),
    ("a@bücher.example", "a@xn--bcher-kva.example"),
    ("a@BÜCHER.example", "a@xn--bcher-kva.example"),
    ("jörg@bücher.example", "jörg@xn--bcher-kva.example"),
    ("a@" + "b" * 63 + ".c", "a@" + "b" * 63 + ".c"),
]

REJECTED = [
    ("", "empty"),
    ("d@e.f>\r\nRCPT TO:<x@y>", "control character"),
    ("a@b\r\n X: y", "control character"),
    ("d@e.f> SIZE=1", "domain is not a name"),
    ("d@e.f\x00", "control character"),
    ("@h1:d@e.f", "source route"),
    ('"a\r\nb"@e.f', "control character"),
    ("a@b@c", "more than one '@'"),
    ("a@", "no domain"),
    ("@b", "no local part"),
    ("postmaster", "no '@'"),
    ("d@[127.0.0.1]", "literals are not allowed"),
    ("x" * 65 + "@y.z", "longer than 64"),
    ("ä" * 33 + "@y.z", "longer than 64"),
    ("a@" + ".".join(["b" * 51] * 5)[:256], "longer than 255"),
    ("a@" + "b" * 64 + ".c", "longer than 63"),
    ("alice@x)bob@y", "more than one '@'"),
    ("a b@c", "local part"),
    ("a..b@c", "local part"),
    (".a@c", "local part"),
    ("a@-b.c", "domain is not a name"),
    ("a@b..c", "domain is not a name"),
    ("a@b.c.", "domain is not a name"),
    ("a@b_c.d", "domain is not a name"),
    ("<a@b>", "local part"),
    ('"a"b@c', "followed by '@'"),
    ("a\u200bb@c", "invisible"),
    ("a\u202eb@c", "invisible"),
    ("a\udcffb@c", "not valid UTF-8"),
    ("a@\u2028", "IDNA"),
    (b"a\xff@b", "UTF-8"),
    ("a@" + "ü" * 3000, "longer than 255"),
]


@pytest.mark.parametrize(("text", "wire"), ACCEPTED)
def test_a_mailbox_is_written_as_it_came_but_for_a_labels(text: str, wire: str) -> None:
    assert str(parse_mailbox(text)) == wire
    assert str(parse_mailbox(text.encode())) == wire


@pytest.mark.parametrize(("text", "reason"), REJECTED)
def test_what_is_no_mailbox_is_refused_with_its_reason(text: str | bytes, reason: str) -> None:
    with pytest.raises(AddressError, match=re.escape(reason)):
        parse_mailbox(text)


@pytest.mark.parametrize("text", ["d@[127.0.0.1]", "d@[IPv6:2001:db8::1]"])
def test_literals_only_where_they_are_allowed(text: str) -> None:
    assert str(parse_mailbox(text, allow_literal=True)) == text
    with pytest.raises(AddressError):
        parse_mailbox(text)


@pytest.mark.parametrize("text", ["d@[127.0.0.1", "d@[300.0.0.1]", "d@[IPv6:fe80::1%eth0]", "d@[x]"])
def test_a_literal_must_be_an_address(text: str) -> None:
    with pytest.raises(AddressError, match="not an IP address"):
        parse_mailbox(text, allow_literal=True)


def test_equal_mailboxes_share_a_key() -> None:
    assert parse_mailbox("A@B.Example").key == parse_mailbox("A@b.eXample").key
    assert parse_mailbox("a@b.example").key != parse_mailbox("A@b.example").key
    assert parse_mailbox("a@BÜCHER.example").key == parse_mailbox("a@xn--bcher-kva.example").key


ALPHABET = st.sampled_from(list('ab.@<>"\\ ()[]:;,\r\n\t\0-_%!ü\u200b1'))


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(ALPHABET, max_size=40), st.text(max_size=40)))
def test_nothing_that_is_accepted_can_break_out_of_a_command(text: str) -> None:
    try:
        wire = str(parse_mailbox(text))
    except AddressError:
        return
    assert not re.search(r"[\x00-\x1f\x7f]", wire)
    bare = re.sub(r'^"(?:[^"\\]|\\.)*"', "", wire)
    assert not re.search(r'[<>\s",:;()\[\]\\]', bare)
    assert bare.count("@") == 1
    assert str(parse_mailbox(wire)) == wire


def test_octets_that_are_no_utf_8_are_named_so_however_they_were_decoded() -> None:
    """A header's text keeps such octets as lone surrogates (of a real mail in windows-1258)."""
    octets = b"Tom\xe1\xff@football.example.com"
    for text in (octets, octets.decode("utf-8", "surrogateescape")):
        with pytest.raises(AddressError, match="not valid UTF-8"):
            parse_mailbox(text)


@given(
    st.one_of(
        st.binary(max_size=80),
        st.from_regex(r"\A[a-zA-Z0-9.!#%&'*+/=?^_`{|}~\-]{1,70}@[a-zA-Z0-9.\-]{1,30}\Z").map(str.encode),
    )
)
def test_the_short_way_is_the_long_way_where_it_says_anything(octets: bytes) -> None:
    short = plain_mailbox(octets)
    if short is not None:
        assert str(parse_mailbox(octets)) == short


@pytest.mark.parametrize("octets", [b"jo@example.org", b"a.b+c@x", b"o'neil@mail.example.com"])
def test_the_short_way_takes_plain_addresses(octets: bytes) -> None:
    assert plain_mailbox(octets) == octets.decode()


@pytest.mark.parametrize("octets", [b"", b"jo", b"<jo@x>", b"jo@x\n", b" jo@x", b'"j o"@x', "jö@x".encode(), b"j" * 65])
def test_the_short_way_leaves_the_rest(octets: bytes) -> None:
    assert plain_mailbox(octets) is None
