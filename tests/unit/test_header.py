"""Where header and body lie, and the fields as spans."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.domain.header import find_header, split_header
from core.errors import MessageRefused, MessageRejected

LIMIT = 1 << 20


def layout(data: bytes, *, complete: bool = True) -> tuple[int, int, int]:
    found = find_header(data, complete=complete, limit=LIMIT)
    assert found is not None
    return found.start, found.end, found.body


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"A: b\r\n\r\nbody", (0, 6, 8)),
        (b"A: b\n\nbody", (0, 5, 6)),
        (b"A: b\r\rbody", (0, 5, 6)),
        (b"A: b\n\r\nbody", (0, 5, 7)),
        (b"A: b\r\n\nbody", (0, 6, 7)),
        (b"A: b\r\n\rbody", (0, 6, 7)),
        (b"A: b\n\n\r\n\r\nbody", (0, 5, 6)),
        (b"A: b\r\nC: d", (0, 10, 10)),
        (b"A: b\r\nC: d\r\n", (0, 12, 12)),
        (b"A: b\r\n \r\nC: d\r\n\r\n", (0, 15, 17)),
        (b"\xef\xbb\xbfA: b\r\n\r\nx", (3, 9, 11)),
        (b"From me Thu Jan  1 00:00:00 1970\nA: b\n\nx", (33, 38, 39)),
        (b"\xef\xbb\xbfFrom me now\nA: b\n\nx", (15, 20, 21)),
        (b"From : a@b\n\nx", (0, 11, 12)),
    ],
)
def test_the_header_ends_at_the_first_blank_line(data: bytes, expected: tuple[int, int, int]) -> None:
    assert layout(data) == expected


@pytest.mark.parametrize("data", [b"A: b\r\nC: d", b"A: b\r\n\r", b"A: b\r\n", b"From me", b"A:"])
def test_more_of_the_file_is_asked_for(data: bytes) -> None:
    assert find_header(data, complete=False, limit=LIMIT) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "nothing in it"),
        (b"\r\n", "nothing in it"),
        (b"\r\n\r\n\n", "nothing in it"),
        (b"\nJust a text\n", "no header fields"),
        (b"\xff\xfeA\0:\0", "UTF-16"),
        (b"\xfe\xff\0A\0:", "UTF-16"),
    ],
)
def test_what_has_no_header_is_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(MessageRejected, match=reason) as caught:
        find_header(data, complete=True, limit=LIMIT)
    assert caught.value.enhanced_code == "5.6.0"


@pytest.mark.parametrize("complete", [True, False])
def test_a_header_over_the_cap_is_rejected(complete: bool) -> None:
    with pytest.raises(MessageRejected, match="longer than 100 octets") as caught:
        find_header(b"A: " + b"x" * 200 + b"\n", complete=complete, limit=100)
    assert caught.value.enhanced_code == "5.3.4"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"Hello there\n", 1),
        (b"A: b\nRCPT TO:<x@y>\nC: d\n", 2),
        (b" folded first: x\n", 1),
        (b"A: b\n\xc3\xbc: x\n", 2),
        (b"A: b\n: x\n", 2),
        (b"A: b\nno colon\n", 2),
    ],
)
def test_a_line_that_is_no_field_is_rejected(data: bytes, line: int) -> None:
    with pytest.raises(MessageRejected, match=f"line {line} of the header"):
        split_header(data)


def test_nul_in_the_header_is_rejected() -> None:
    with pytest.raises(MessageRejected, match="NUL"):
        split_header(b"A: b\0c\n")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'O:13:"Swift_Message":14:{s:3:"x";N;}', "Swift Mailer"),
        (b'O:13:"Swift_Message":14:{s:3:"\0x";N;}\n\nx', "Swift Mailer"),
        (b"a@b.example\nc@d.example\n\nFrom: x\n\nbody", "nullmailer"),
        (b"\nc@d.example\ne@f.example\n\nFrom: x\n\nbody", "nullmailer"),
    ],
)
def test_other_programs_files_are_left_alone(data: bytes, what: str) -> None:
    with pytest.raises(MessageRefused, match=what):
        find_header(data, complete=True, limit=LIMIT)


def test_fields_are_found_with_folds_in_any_case_and_any_line_end() -> None:
    header = split_header(b"FROM: a@b\r\nbCC : x@y,\n\tz@y\rSubject: one\r two\n")
    assert [name for name, *_ in header.fields] == [b"from", b"bcc", b"subject"]
    assert header.first(b"bcc") == b"x@y,\tz@y"
    assert header.first(b"subject") == b"one two"
    assert header.data == b"FROM: a@b\r\nbCC : x@y,\r\n\tz@y\r\nSubject: one\r\n two\r\n"
    assert [field[0] for field in header.leaving] == [b"bcc"]


@pytest.mark.timed
@pytest.mark.parametrize(
    "data",
    [b"a" * 3_000_000, b"A: b\r\n" * 100_000, b"A: " + b"x " * 1_500_000, b" " * 3_000_000, b"a \t" * 1_000_000],
    ids=["no colon", "100,000 fields", "one long field", "blanks", "name with blanks"],
)
def test_hostile_headers_cost_linear_time(data: bytes) -> None:
    began = time.perf_counter()
    with contextlib.suppress(MessageRejected):
        split_header(data)
    assert time.perf_counter() - began < 2


def test_a_header_has_250000_fields_at_most() -> None:
    assert len(split_header(b"a:\n" * 249_999 + b"b:\n c").fields) == 250_000
    assert len(split_header(b"a:\r\n b\r\n" * 150_000).fields) == 150_000
    with pytest.raises(MessageRejected, match="more than 250000 fields") as caught:
        split_header(b"a:\n" * 250_001)
    assert caught.value.enhanced_code == "5.3.4"


LINES = st.lists(st.sampled_from([b"A: b", b" c", b"\t", b"Bcc: x", b"junk", b"", b"From x"]), max_size=8)


@settings(max_examples=300, deadline=None)
@given(LINES, st.lists(st.sampled_from([b"\r\n", b"\n", b"\r"]), min_size=8, max_size=8))
def test_fields_cover_the_block_without_gaps(lines: list[bytes], ends: list[bytes]) -> None:
    data = b"".join(line + end for line, end in zip(lines, ends, strict=False))
    try:
        found = find_header(data, complete=True, limit=LIMIT)
        assert found is not None
        header = split_header(data[found.start : found.end])
    except MessageRejected:
        return
    position = 0
    for name, start, value, end in header.fields:
        assert start == position
        assert header.data[start : start + len(name)].lower() == name
        assert start < value <= end
        position = end
    assert position == len(header.data)
    assert b"\r\n\r\n" not in header.data
