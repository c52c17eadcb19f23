"""The header block of a message as spans on its bytes (RFC 5322 section 2.2). Filled in below."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Header:
    """The header block with CRLF line ends, without the blank line."""

    data: bytes
    fields: list[tuple[bytes, int, int, int]] = field(default_factory=list)  # name, start, start of value, end
