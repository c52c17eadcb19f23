"""A message's identity and its id in the API."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from core.domain.message import MessageIdentity, parse_message_id
from core.errors import NotFound

MAIL = MessageIdentity("outbox", b"order 1.eml", 1_700_000_000_123_456_789, 4096)


def test_the_id_is_fixed() -> None:
    """Sidecars, histories and links of users rest on it: it never changes."""
    assert MAIL.id == "outbox.b3JkZXIgMS5lbWw.76d375ee"
    assert MAIL.local_id == "b3JkZXIgMS5lbWw.76d375ee"
    assert MAIL.file_hash == "0d537a206c50d1058dfb8addce5feffb"


@pytest.mark.parametrize(
    "name",
    [
        b"x.eml",
        b"a",
        b"ab",
        b"abc",
        b"\xff\xfe.eml",
        b"line\nbreak.eml",
        b"<script>.eml",
        "grüße.eml".encode(),
        b".eml",
        b"???>>>.eml",  # + and / in plain base64
        b"a.b.c.eml",
        b"..eml",
        b"x" * 255,
    ],
)
def test_any_file_name_comes_back_from_its_id(name: bytes) -> None:
    identity = replace(MAIL, name=name)
    parsed = parse_message_id(identity.id)
    assert (parsed.directory, parsed.name, parsed.tag) == ("outbox", name, identity.tag)
    assert (parsed.id, parsed.local_id, parsed.file_hash) == (identity.id, identity.local_id, identity.file_hash)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", identity.id)  # goes into a URL as it is


@pytest.mark.parametrize(
    "other",
    [
        replace(MAIL, name=b"order 2.eml"),
        replace(MAIL, name=b"order 1.eml~1"),
        replace(MAIL, mtime_ns=MAIL.mtime_ns + 1),
        replace(MAIL, size=MAIL.size + 1),
        replace(MAIL, mtime_ns=170, size=4),
        replace(MAIL, mtime_ns=17, size=4),
    ],
)
def test_another_mail_has_another_id_and_sidecar(other: MessageIdentity) -> None:
    assert other.id != MAIL.id
    assert other.file_hash != MAIL.file_hash


def test_digits_do_not_run_from_the_time_into_the_size() -> None:
    assert replace(MAIL, mtime_ns=12, size=3).tag != replace(MAIL, mtime_ns=1, size=23).tag


def test_a_directory_by_another_name_knows_the_same_sidecar() -> None:
    renamed = replace(MAIL, directory="elsewhere")
    assert renamed.id != MAIL.id
    assert (renamed.local_id, renamed.file_hash) == (MAIL.local_id, MAIL.file_hash)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "outbox",
        "outbox.eA",
        "outbox..12345678",
        ".eA.12345678",
        "outbox.eA.1234567",
        "outbox.eA.123456789",
        "outbox.eA.1234567G",
        "outbox.eA.ABCDEF12",
        "Outbox.eA.12345678",
        "-outbox.eA.12345678",
        "out_box.eA.12345678",
        "o" * 64 + ".eA.12345678",
        "outbox.e+A.12345678",
        "outbox.e/A.12345678",
        "outbox.eA==.12345678",
        "outbox.A.12345678",  # one digit of base64 is no octet
        "outbox.eA.12345678\n",
        " outbox.eA.12345678",
        "outbox.eA.12345678.eA",
        "outbox." + "A" * 345 + ".12345678",
        "outbox.Li4.12345678",  # ..
        "outbox.Lg.12345678",  # .
        "outbox.Li4vZXRjL3Bhc3N3ZA.12345678",  # ../etc/passwd
        "outbox.YQBi.12345678",  # a NUL
        "../outbox.eA.12345678",
        "outbox.eA.１２３４５６７８",
    ],
)
def test_what_can_be_no_id_is_not_found(text: str) -> None:
    with pytest.raises(NotFound):
        parse_message_id(text)


def test_a_monstrous_id_is_not_repeated_whole() -> None:
    with pytest.raises(NotFound) as caught:
        parse_message_id("x" * 100_000)
    assert len(str(caught.value)) < 1000
