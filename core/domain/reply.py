"""What a server answered (RFC 5321 section 4.2, RFC 2034, RFC 3463), and in which phase."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s|$)")


class Phase(StrEnum):
    """Where in the conversation something happened."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"  # the handshake, implicit or after STARTTLS
    BANNER = "banner"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"  # between 354 and the final dot
    DOT = "dot"  # after the final dot or BDAT LAST
    RSET = "rset"
    QUIT = "quit"
    LOCAL = "local"  # decided here, no server was asked


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete reply: `code` 200..599, the text of its lines without codes, the enhanced code where there is one."""

    code: int
    lines: tuple[str, ...] = ()
    severity: int = field(init=False, compare=False, repr=False)
    """First digit: 2 done, 3 go on, 4 later, 5 no. An unknown code goes by its first digit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "severity", self.code // 100)  # asked for again and again

    @property
    def text(self) -> str:
        """All lines in one, enhanced codes of continuation lines included."""
        return " ".join(line for line in self.lines if line)

    @property
    def enhanced_code(self) -> str | None:
        """RFC 2034 enhanced status code of the first line; None where there is none."""
        match = _ENHANCED.match(self.lines[0]) if self.lines else None
        return match.group(1) if match else None
