"""The envelope: what SMTP is told, as opposed to what the header says (writers.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.domain.header import Header

Source = Literal["x-headers", "headers", "resent"]


@dataclass(frozen=True, slots=True)
class Recipient:
    """One recipient: the mailbox as it goes between `<` and `>`, and its RFC 3461 parameters."""

    mailbox: str
    notify: str | None = None  # NEVER, or a list of SUCCESS, FAILURE, DELAY
    orcpt: str | None = None  # addr-type;xtext


@dataclass(frozen=True, slots=True)
class Envelope:
    """Sender, recipients and their parameters; `sender` "" is the null sender."""

    sender: str
    recipients: tuple[Recipient, ...]
    ret: str | None = None  # FULL or HDRS
    envid: str | None = None  # xtext
    source: Source = "headers"
    rejected: tuple[tuple[str, str], ...] = ()  # text of a recipient that is no mailbox, and why


def envelope_of(header: Header, *, max_recipients: int) -> Envelope:
    """The envelope that a message asks for. Raises MessageRejected."""
    raise NotImplementedError
