from __future__ import annotations

import base64
import encodings
import pkgutil
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain.encoded_word import decode_words, encode_field

TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"=?utf-8?B?w6Q=?=<a@b>", "ä<a@b>"),
        (b'"=?utf-8?q?a?=" <a@b>', '"a" <a@b>'),
        (b"(=?utf-8?q?a?=)", "(a)"),
        (b"=?utf-8?q?a_b?= =?UTF-8?B?w6Q=?=\r\n\t=?utf-8?q?c?=  d", "a bäc  d"),
        (b"=?iso-8859-1?q?=E4?= =?utf-8?b?w6Q=?=", "ää"),
        (b"=?utf-8?b?w6?= =?utf-8?b?Q=?=", "=?utf-8?b?w6?= =?utf-8?b?Q=?="),
        (b"=?utf-8?q?=C3?= =?utf-8?q?=A4?=", "ä"),  # one character in two words
        (b"=?utf-8*de?q?=C3=A4?=", "ä"),  # RFC 2231 section 5
        (b"=?utf-8?b?w6Q?=", "ä"),  # padding forgotten
        (b"=?utf-8?b?w?= =?utf-8?q?a?=", "=?utf-8?b?w?= a"),
        (b"=?utf-8?b?!!!!?=", "=?utf-8?b?!!!!?="),
        (b"=?utf-8?q?a b=zz=?=", "a b=zz="),
        (b"=?utf-8?q??=", ""),
        (b"=?rot13?q?a?= =?utf-8?q?b?=", "=?rot13?q?a?=b"),  # no charset
        (b"=?us-ascii?q?=E4?=", "=?us-ascii?q?=E4?="),
        (b"=?utf-7?q?+2AA-?=", "=?utf-7?q?+2AA-?="),  # half of a surrogate pair
        (b"=?a\x00b?q?c?=", "=?a\x00b?q?c?="),
        (b"=?utf-8?q?a?= \xc3\xa4 =?utf-8?q?b?=", "a ä b"),
        (b"=?utf-8?x?a?= =?utf-8?q?open", "=?utf-8?x?a?= =?utf-8?q?open"),
    ],
)
def test_words_are_read_and_what_is_none_is_shown_as_it_is(value: bytes, shown: str) -> None:
    assert decode_words(value) == shown


@pytest.mark.parametrize(
    "charset",
    [
        "unicode_escape", "Unicode-Escape", "raw_unicode_escape", "idna", "punycode", "undefined", "charmap",
        "utf_8_sig", "mbcs", "base64", "rot13", "zlib", "aliases", "..", "\u00e4",
    ],
)  # fmt: skip
def test_what_only_python_calls_an_encoding_is_no_charset(charset: str) -> None:
    word = f"=?{charset}?q?=5Cd=5Cu0041-?="
    assert decode_words(word.encode()) == word


def test_every_charset_that_is_read_is_read_without_a_warning() -> None:
    read = set()
    for module in pkgutil.iter_modules(encodings.__path__):
        word = f"=?{module.name}?q?=5Cd_a?= =?{module.name}?b?AP9cZFxOe30=?="
        if not decode_words(f"=?{module.name}?b?AGEAYQ==?=".encode()).startswith("=?"):
            read.add(module.name)
        decode_words(word.encode())
    assert {"ascii", "utf_8", "utf_7", "utf_16_be", "latin_1", "cp1252", "gb18030", "iso2022_jp", "koi8_r"} <= read


@given(st.lists(TEXT, min_size=1, max_size=8).map(" ".join).filter(lambda text: "=?" not in text))
def test_what_is_written_is_read(text: str) -> None:
    text = text[:100]
    encoded = encode_field(b"subject", text.encode())
    assert encoded is not None
    assert all(len(word) <= 75 for word in re.findall(rb"=\?[^ ?]+\?B\?[^ ?]*\?=", encoded))  # RFC 2047 section 2
    assert decode_words(encoded) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_both_encodings_of_a_word_are_read(text: str) -> None:
    octets = text.encode()
    quoted = "".join(f"={octet:02X}" for octet in octets)
    assert decode_words(f"x =?utf-8?Q?{quoted}?= y".encode()) == f"x {text} y"
    assert decode_words(b"=?UTF-8?b?" + base64.b64encode(octets) + b"?=") == text


@given(st.binary(max_size=80).map(lambda tail: b"=?utf-8?q?" + tail))
def test_reading_never_fails_and_gives_text(value: bytes) -> None:
    decode_words(value).encode()


@pytest.mark.timed
@pytest.mark.parametrize("part", [b"=?", b"=?a?q?", b"=?utf-8?q?a?= ", b"=?a*", b"?="])
def test_reading_takes_no_long_time(part: bytes) -> None:
    began = time.process_time()
    decode_words(part * 2000)
    assert time.process_time() - began < 0.05
