"""The targets of `make fuzz`, for a moment: their seeds, what was found before, and inputs of hypothesis."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS, guarded

FOUND: dict[str, list[bytes]] = {}
_PIECES = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b".", b"..", b"\0", b"\xff", b" ", b"\t", b":", b"<", b">", b"@", b'"', b"(", b",", b"=?",
     b"--b", b"To", b"From", b"Bcc: ", b"X-Sender: ", b"X-Receiver: ", b"a@b.c", b"250", b"-", b"LONG", b"x"]
)  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_finds(name: str) -> None:
    for data in SEEDS[name] + FOUND.get(name, []):
        guarded(name, data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, deadline=None)
@given(data=st.lists(_PIECES, max_size=60).map(b"".join) | st.binary(max_size=300))
def test_any_octets(name: str, data: bytes) -> None:
    guarded(name, data)
