"""What patterns keep clear of, so that they match the same with every Python from 3.11 on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from core.domain.address import AddressError, parse_mailbox, plain_mailbox

ROOT = Path(__file__).parents[2]
POSSESSIVE_GROUP = re.compile(r"\)(?:[*+?]|\{[0-9,]+\})\+")


def test_groups_are_not_repeated_possessively() -> None:
    """Up to Python 3.11.4 `(?:ab?c)++` takes "aca" of "aca" (gh-106052); `(?>(?:ab?c)+)` is right everywhere."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for room in ("api", "core", "migrations")
        for path in sorted((ROOT / room).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if POSSESSIVE_GROUP.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("address", ["a.@b.example", "a.b.@c.example", "a@b.example.", "a@b.-", '"a\\é"@b.example'])
def test_what_a_repetition_began_and_did_not_end_is_no_part_of_an_address(address: str) -> None:
    assert plain_mailbox(address.encode()) is None
    with pytest.raises(AddressError):
        parse_mailbox(address)
