"""Cursors and the keys under which addresses are found."""

from __future__ import annotations

import base64
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidSettings
from core.store import cursor
from core.store.record import address_key


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3))
def test_a_cursor_gives_back_its_numbers(numbers: list[int]) -> None:
    assert cursor.decode(cursor.encode(*numbers), len(numbers)) == tuple(numbers)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "!!",
        "é",
        cursor.encode(1),
        cursor.encode(1, 2, 3),
        "1.2",
        "MDEuMg",
        "MS4yCg",
        cursor.encode(1, 2) + "==",
        base64.b64encode(b"1.-2").decode(),
    ],
)
def test_what_is_no_cursor_is_refused_with_its_pointer(text: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        cursor.decode(text, 2)
    assert caught.value.errors[0].pointer == "query/cursor"


@given(st.text(max_size=40))
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    with suppress(InvalidSettings):
        assert len(cursor.decode(text, 2)) == 2


def test_a_number_beyond_sqlite_is_refused() -> None:
    with pytest.raises(InvalidSettings):
        cursor.decode(cursor.encode(2**63, 1), 2)


@pytest.mark.parametrize(
    ("mailbox", "key"),
    [
        ("Anna@Example.COM", ("Anna@example.com", "example.com")),
        ("anna@example.com", ("anna@example.com", "example.com")),
        ('"a@b"@Example.com', ('"a@b"@example.com', "example.com")),
        ("postmaster", ("postmaster", "")),
        ("", ("", "")),
    ],
)
def test_domains_are_kept_in_lower_case_and_local_parts_as_they_are(mailbox: str, key: tuple[str, str]) -> None:
    assert address_key(mailbox) == key
