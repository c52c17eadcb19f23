"""Files as applications write them, and exactly what must reach the server (writers.md).

tests/golden/<writer>/: `message.eml` is the file, `sent.eml` the octets that leave, `expected.json` the envelope; or
`refused`: it is left where it is, for this reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.domain.account import DotStuffing
from core.errors import MessageRefused
from core.spool.body import Prepared, prepare

GOLDEN = Path(__file__).parent.parent / "golden"
WRITERS = sorted(path.name for path in GOLDEN.iterdir())


@contextmanager
def opened(path: Path, setting: DotStuffing = DotStuffing.AUTO) -> Iterator[Prepared]:
    fd = os.open(path, os.O_RDONLY)
    try:
        found = os.fstat(fd)
        yield prepare(fd, size=found.st_size, mtime_ns=found.st_mtime_ns, dot_stuffing=setting)
    finally:
        os.close(fd)


def expected_of(writer: str) -> dict[str, Any]:
    expected: dict[str, Any] = json.loads((GOLDEN / writer / "expected.json").read_text())
    return expected


@pytest.mark.parametrize("writer", [name for name in WRITERS if "refused" not in expected_of(name)])
def test_exactly_these_octets_and_this_envelope(writer: str) -> None:
    expected = expected_of(writer)
    with opened(GOLDEN / writer / "message.eml", DotStuffing(expected.get("setting", "auto"))) as prepared:
        envelope = prepared.envelope
        assert envelope.sender == expected["sender"]
        assert [[r.mailbox, r.notify, r.orcpt] for r in envelope.recipients] == expected["recipients"]
        assert (envelope.source, envelope.rejected) == (expected["source"], ())
        assert (envelope.ret, envelope.envid) == (expected.get("ret"), expected.get("envid"))
        assert (prepared.stuffed, prepared.dot_proof) == (expected["stuffed"], expected["dot_proof"])
        content = prepared.content(message_id="<added@mpu.example>", date="Tue, 24 Nov 2026 10:00:00 +0000")
        body = content.body(eight_bit_allowed=True, smtputf8_allowed=expected.get("smtputf8_allowed", False))
        sent = b"".join(body.chunks())
    assert sent == (GOLDEN / writer / "sent.eml").read_bytes()
    assert body.size == len(sent)
    for hidden in (b"x-sender:", b"x-receiver:", b"bcc:"):
        assert hidden not in sent.lower()


@pytest.mark.parametrize("writer", [name for name in WRITERS if "refused" in expected_of(name)])
def test_other_formats_are_left_with_a_reason(writer: str) -> None:
    with (
        pytest.raises(MessageRefused, match=expected_of(writer)["refused"]) as caught,
        opened(GOLDEN / writer / "message.eml"),
    ):
        pass
    assert caught.value.remedy


def test_every_kind_of_line_end_is_in_the_files() -> None:
    """The files must not have been through a program that changes line ends (.gitattributes)."""
    assert b"\n" not in (GOLDEN / "cr-only" / "message.eml").read_bytes()
    assert b"\r" not in (GOLDEN / "python-lf" / "message.eml").read_bytes()
    mixed = (GOLDEN / "mixed-line-ends" / "message.eml").read_bytes()
    assert 0 < mixed.count(b"\r\n") < mixed.count(b"\n")
