"""Names of messages in each state."""

from __future__ import annotations

from itertools import islice

import pytest

from core.spool import names


@pytest.mark.parametrize(
    ("patterns", "name", "expected"),
    [
        (("*.eml",), b"x.eml", True),
        (("*.eml",), b"X.EML", True),
        (("*.eml",), b"\xff\xfe.eml", True),
        (("*.eml",), b"a\nb.eml", True),
        (("*.eml",), b"<script>.eml", True),
        (("*.eml",), b".eml", True),
        (("*.eml",), b".hidden.eml", False),
        (("*.eml",), b"x.eml.lck", False),
        (("*.eml",), b"x.eml.hold", False),
        (("*.eml",), b"x.emlx", False),
        (("*.EML", "*.txt"), b"a.Txt", True),
        (("*",), b"anything", True),
        (("*",), b"badmail", False),
        (("*",), b".mpu", False),
        (("*",), b"x.lck", False),
        (("*",), b".x", False),
        (("mail-?.e[mn]l",), b"Mail-1.enl", True),
        (("mail-?.e[mn]l",), b"mail-12.eml", False),
        (("mail-?.e[mn]l",), b"mail-\xff.eml", True),
        ((".*",), b".x", True),
    ],
)
def test_patterns_match_case_insensitively_and_never_our_own_names(
    patterns: tuple[str, ...], name: bytes, expected: bool
) -> None:
    assert names.matcher(patterns)(name) is expected


@pytest.mark.parametrize(
    ("pattern", "names_like_it"),
    [
        ("*.lck", [b"x.lck", b"x.eml.lck"]),
        ("*.LCK", [b"x.lck", b"X.LCK"]),
        ("*.hold", [b"x.hold"]),
        ("mail?.eml.hold", [b"mail1.eml.hold"]),
        ("[ab].lck", [b"a.lck"]),
        (".mpu", [b".mpu"]),
        ("BadMail", [b"badmail"]),
        ("[z-a].eml", [b"z.eml", b"a.eml", b"[z-a].eml"]),
        ("[Z-a]", [b"z", b"a"]),
    ],
)
def test_patterns_that_let_no_name_through_are_told(pattern: str, names_like_it: list[bytes]) -> None:
    assert names.unmatchable(pattern)
    assert not any(map(names.matcher((pattern,)), names_like_it))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("*.eml", b"x.eml"),
        ("*", b"x"),
        ("*lck", b"xlck"),
        ("*.lc?", b"x.lca"),
        ("*.hol[c-d]", b"x.holc"),
        (".mpu*", b".mpux"),
        ("badmail?", b"badmail2"),
        ("..?", b"..a"),
        ("(?!)", b"(?!)"),
        ("[]", b"[]"),
        ("é*", "é.eml".encode()),
    ],
)
def test_patterns_that_let_some_through_are_left_alone(pattern: str, name: bytes) -> None:
    assert names.unmatchable(pattern) is None
    assert names.matcher((pattern,))(name)


@pytest.mark.parametrize("pattern", [".", ".."])
def test_a_folder_is_no_pattern(pattern: str) -> None:
    assert names.unmatchable(pattern)


@pytest.mark.parametrize(
    ("name", "expected"),
    [(b"17.M1P2.host", True), (b"17.M1P2.host.lck", False), (b".tmp", False), (b"x.hold", False)],
)
def test_in_a_maildir_every_visible_name_is_a_message(name: bytes, expected: bool) -> None:
    assert names.maildir_name(name) is expected


@pytest.mark.parametrize(
    ("name", "second"), [(b"x.eml", b"x~1.eml"), (b"x", b"x~1"), (b"a.b.eml", b"a.b~1.eml"), (b".eml", b".eml~1")]
)
def test_a_taken_name_is_numbered_before_its_extension_and_found_again(name: bytes, second: bytes) -> None:
    assert list(islice(names.alternatives(name), 2)) == [name, second]
    assert names.arrival_of(second) == name


def test_a_plain_name_has_no_other_arrival() -> None:
    assert names.arrival_of(b"x.eml") is None
    assert names.arrival_of(b"~x.eml") is None


@pytest.mark.parametrize("file_name", [b"x.eml", b"x.eml.lck", b"x.eml.hold", b"badmail/x.eml", b"new/x.eml.lck"])
def test_the_base_is_the_same_in_every_state(file_name: bytes) -> None:
    assert names.base_of(file_name) == b"x.eml"


def test_a_reason_has_a_name_that_fits_even_beside_the_longest() -> None:
    assert names.reason_name(b"x.eml") == b"x.eml.reason.txt"
    longest = b"a" * 254
    assert len(names.reason_name(longest)) <= 255
    assert names.reason_name(longest) != names.reason_name(b"a" * 253 + b"b")
