"""What patterns keep clear of: memory for each repetition, and what not every Python from 3.11 on matches the same."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.domain.address import AddressError, parse_mailbox, plain_mailbox
from core.domain.content import encode_header
from core.domain.encoded_word import encode_field
from core.domain.envelope import envelope_of
from core.domain.header import find_header, split_header
from core.domain.mime import part_of
from core.errors import MessageRefused, MessageRejected

ROOT = Path(__file__).parents[2]
PARSER = importlib.import_module("re._parser")

# A group that is repeated without end needs a reason.
#
# As it is, or in an atomic group, each repetition takes 100 to 200 octets of memory until the group ends: 2 GB for a
# header of 15 MB. So what it reads must be short.
SHORT = {
    "core.domain.address._PLAIN": "64 octets at most",
    "core.domain.address._PLAIN_OCTETS": "64 octets at most",
    "core.domain.address._DOMAIN": "255 octets at most",
    "core.domain.envelope._ENVID": "100 characters at most",
    "core.domain.envelope._ORCPT": "500 characters at most",
    "core.domain.envelope._NOTIFY": "500 characters at most",
    "core.runtime.sandbox._SUBJECT": "the first 64 KiB of what came to the sandbox",
    "core.smtp.commands._MAILBOX": "1000 characters at most",
}
# Repeated possessively it takes none; but up to Python 3.11.4 `(?:ab?c)++` takes "aca" of "aca": what an iteration took
# before it failed is kept (gh-106052). So its first octet must decide, or what it took must lead nowhere.
_ESCAPES = "`\\` begins each; where it is the last octet, no quote can follow"
_QUOTES = "a quote begins each, and nothing behind it can fail: the closing one may be missing; " + _ESCAPES
DECIDED = {
    "core.domain.address._QUOTED": "`\\` begins each; where a wrong octet follows, that is no quote",
    "core.domain.address_list._TOKEN": _ESCAPES,
    "core.domain.address_list._ANGLE": _QUOTES,
    "core.domain.encoded_word._ADDRESS_TOKEN": "`\\` begins each; taken or not as the last octet, it stays as it is",
    "core.domain.envelope._BRACKETED": _QUOTES,
    "core.domain.envelope._QUOTED": _ESCAPES,
    "core.domain.header._FIELD": "a blank begins each, and all lines of the block end with CRLF",
    "core.domain.header._NULLMAILER": "where one fails, no line end follows what it took",
    "core.domain.mime._BOUNDARY": _ESCAPES,
}


def patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    for room in ("api", "core"):
        package = importlib.import_module(room)
        for found in pkgutil.walk_packages(package.__path__, f"{room}."):
            if not found.name.endswith("__main__"):
                for name, value in vars(importlib.import_module(found.name)).items():
                    if isinstance(value, re.Pattern):
                        yield f"{found.name}.{name}", value


def operations(of: Any) -> Iterator[tuple[str, Any]]:
    """All of a parsed pattern, with what they are made of."""
    if isinstance(of, PARSER.SubPattern):
        for operation, argument in of.data:
            yield str(operation), argument
            yield from operations(argument)
    elif isinstance(of, tuple | list):
        for part in of:
            yield from operations(part)


def endless_groups(pattern: str | bytes, flags: int = 0) -> set[str]:
    """How groups of more than one octet are repeated without end: MAX_REPEAT, MIN_REPEAT, POSSESSIVE_REPEAT."""
    return {
        operation
        for operation, argument in operations(PARSER.parse(pattern, flags))
        if operation.endswith("_REPEAT")
        and int(argument[1]) > 1000
        and [str(part[0]) for part in argument[2].data] not in (["LITERAL"], ["NOT_LITERAL"], ["IN"], ["ANY"])
    }


def test_a_group_that_is_repeated_without_end_has_its_reason() -> None:
    found = {name: endless_groups(pattern.pattern, pattern.flags) for name, pattern in patterns()}
    assert len(found) > 60
    assert {name for name, kinds in found.items() if kinds - {"POSSESSIVE_REPEAT"}} == set(SHORT)
    assert {name for name, kinds in found.items() if "POSSESSIVE_REPEAT" in kinds} == set(DECIDED)


def test_patterns_that_are_not_kept_repeat_no_group_possessively() -> None:
    """Those in calls, which the test above doesn't see."""
    called = re.compile(r're\.[a-z]+\([a-z]*"[^"]*\)(?:[*+]|\{[0-9]*,\})')
    lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for room in ("api", "core", "migrations")
        for path in sorted((ROOT / room).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if called.search(line) and not line.startswith("_")
    ]
    assert lines == []


@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [
        (r"a*+[bc]+?d{2,}(?:ab){0,12}(?:a)*", set()),
        (r"(?:ab)*", {"MAX_REPEAT"}),
        (r"(?>(?:a|bc)+)", {"MAX_REPEAT"}),
        (r"x(y(?:ab?c){2,}+)?", {"POSSESSIVE_REPEAT"}),
        (r"(?=(?:ab)*?c)", {"MIN_REPEAT"}),
        (rb"(?:a+)*(?:[ab]c)++", {"MAX_REPEAT", "POSSESSIVE_REPEAT"}),
    ],
)
def test_endless_groups_are_found(pattern: str | bytes, kinds: set[str]) -> None:
    assert endless_groups(pattern) == kinds


# --- what a repetition began and did not end --------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["a.@b.example", "a.b.@c.example", "a@b.example.", "a@b.-", '"a\\é"@b.example'])
def test_what_a_repetition_began_and_did_not_end_is_no_part_of_an_address(address: str) -> None:
    assert plain_mailbox(address.encode()) is None
    with pytest.raises(AddressError):
        parse_mailbox(address)
    long = address.replace("a", "a" * 60, 1).replace("example", "example" * 3)
    with pytest.raises(AddressError):
        parse_mailbox(long)


@pytest.mark.parametrize(
    "value",
    ['<"a>', '"a" <"b>', '<"a\\>', '<"a\\">', '"a <b@c.example>', '"a\\" <b@c.example>', '<a"\\>'],
)
def test_what_is_not_closed_is_no_address(value: str) -> None:
    for text in (f"X-Sender: a@b.example\nX-Receiver: {value}\n", f"From: a@b.example\nTo: {value}\n"):
        with pytest.raises(MessageRejected) as caught:
            envelope_of(split_header(text.encode()), max_recipients=10)
        assert caught.value.enhanced_code == "5.1.3"


@pytest.mark.parametrize(
    ("name", "value", "encoded"),
    [
        (b"to", "Jö <a@b.example>", b"=?utf-8?B?SsO2?= <a@b.example>"),
        (b"to", "Jö Xä <a@b.example>", b"=?utf-8?B?SsO2IFjDpA==?= <a@b.example>"),
        (b"to", "Jö  Doe Xä, a@b", b"=?utf-8?B?SsO2?=  =?utf-8?B?RG9lIFjDpA==?=, a@b"),
        (b"to", "Jö a@b", b"=?utf-8?B?SsO2?= a@b"),
        (b"to", 'Jö "a\\', b'=?utf-8?B?SsO2?= "a\\'),
        (b"subject", "a ö \t ä b", b"a =?utf-8?B?w7YgCSDDpA==?= b"),
        (b"subject", "ö ", b"=?utf-8?B?w7Y=?= "),
        (b"subject", " aö\tb", b" =?utf-8?B?YcO2?=\tb"),
    ],
)
def test_blanks_behind_what_is_encoded_stay(name: bytes, value: str, encoded: bytes) -> None:
    assert encode_field(name, value.encode()) == encoded


@pytest.mark.parametrize(
    ("data", "foreign"),
    [
        (b"a@b\nc@d\n\nFrom: x\n", True),
        (b"\r\nc@d\r\ne@f\r\n\r\nFrom : x\r\n", True),
        (b"a@b\nc@d\ne@\nFrom: x\n", False),
        (b"a@b\nc@d\ne@f\rFrom: x\n", False),
        (b"a@b\nc@d\nFrom: x\n", False),
        (b"a@b\nc@d\n" + b"e" * 65 + b"@f\n\nFrom: x\n", False),
        (b"a@b\nc@d\ne@" + b"f" * 256 + b"\n\nFrom: x\n", False),
    ],
)
def test_a_queue_file_of_another_mailer_is_known_by_whole_lines(data: bytes, foreign: bool) -> None:
    with pytest.raises(MessageRefused) if foreign else contextlib.nullcontext():
        find_header(data, complete=True, limit=1 << 20)


# --- memory and time --------------------------------------------------------------------------------------------------

SIZE = 600_000
X = b"X-Sender: a@b.example\r\nX-Receiver: "
H = b"From: a@b.example\r\nTo: "
JO = b" <jo@x.example>\r\n"


def of_size(part: bytes) -> bytes:
    return part * (SIZE // len(part))


HOSTILE = {
    "a quoted display name": lambda: X + b'"' + of_size(b"a") + b'"' + JO,
    "escapes": lambda: X + b'"' + of_size(b"\\a") + b'"' + JO,
    "quotes": lambda: X + of_size(b'""') + JO,
    "quotes in brackets": lambda: X + b"<" + of_size(b'"a"') + b"@x.example>\r\n",
    "dots": lambda: X + of_size(b"a.") + b"@x.example\r\n",
    "escapes of an address": lambda: X + b'"' + of_size(b"\\a") + b'"@x.example\r\n',
    "labels": lambda: X + b"a@" + of_size(b"x.") + b"example\r\n",
    "parameters": lambda: X + JO[1:-2] + of_size(b" ab=c"),
    "words of NOTIFY": lambda: X + JO[1:-2] + b" NOTIFY=DELAY" + of_size(b",DELAY") + b"\r\n",
    "words": lambda: H + of_size(b"a ") + JO,
    "words without an end": lambda: H + of_size(b"ab ") + JO[:-3],
    "quoted strings of a list": lambda: H + of_size(b'"a"') + JO,
    "an escape in a list": lambda: H + b'"' + of_size(b"\\a") + b'"' + JO + b",",
    "many addresses": lambda: H + of_size(b"ab@c.example,") + b"\r\n",
    "white space of Unicode": lambda: H + of_size(b"\x1c") + b"(\r\n",
    "folded lines": lambda: H + b"a@b.example\r\nSubject: x\r\n" + of_size(b" \r\n"),
    "a raw word": lambda: H + b"\xc3\xa9 " + of_size(b"ab ") + JO,
    "many raw words": lambda: H + of_size(b"a\xc3\xa9 ") + JO,
    "a raw subject": lambda: H + b"a@b.example\r\nSubject: \xc3\xa9 " + of_size(b"ab ") + b"\r\n",
    "a boundary": lambda: H + b'a@b\r\nContent-Type: multipart/x; boundary="' + of_size(b"\\a") + b'"\r\n',
    "lines of nullmailer": lambda: b"a@b\n" + of_size(b"a@b\n") + b"x",
}


def look_at(data: bytes) -> None:
    with contextlib.suppress(MessageRejected):
        find_header(data, complete=True, limit=1 << 24)
        header = split_header(data)
        part_of(header, 0)
        encode_header(header.data, header.fields)
        envelope_of(header, max_recipients=10_000)


@pytest.mark.timed
@pytest.mark.parametrize("shape", HOSTILE)
def test_hostile_headers_take_little_memory_and_linear_time(shape: str) -> None:
    data = HOSTILE[shape]()
    began = time.process_time()
    tracemalloc.start()  # it sees the stack of patterns too
    try:
        look_at(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * SIZE
    assert time.process_time() - began < 12  # a square of it takes many minutes
