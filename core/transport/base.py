"""The seam to where messages go. SMTP today; HTTPS interfaces and other machines later.

A message is claimed only when a turn was had: `turn()` waits until a connection is ready for one more message. What is
told to the journal is told at once and synchronously: `begin` before the octet that could make the server take
responsibility leaves, `outcome` as soon as its reply was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from core.domain.content import Octets
from core.domain.envelope import Recipient
from core.domain.outcome import AccountFault, Attempt, RecipientOutcome


class AccountUnavailable(Exception):
    """No connection could be had through the account; `fault` says whose fault and for how long."""

    def __init__(self, fault: AccountFault) -> None:
        super().__init__(fault.detail)
        self.fault = fault


class Journal(Protocol):
    """Where an attempt is logged before it is anything else (spool.md, "Log")."""

    def begin(self, recipients: Sequence[str]) -> None:
        """The final dot for these leaves now, unless this raises: StorageFull, StorageBroken, MessageChanged."""
        ...

    def outcome(self, outcomes: Sequence[RecipientOutcome]) -> None:
        """These outcomes are known now."""
        ...


class Body(Protocol):
    """The octets of a message as they go out: edited header, CRLF line ends, before dot-stuffing."""

    size: int  # octets, exact
    dotless: bool  # it is known that no line starts with a dot

    def chunks(self) -> Iterator[Octets]:
        """From the start, at most 256 KiB each. May be called again. Raises MessageChanged."""
        ...


class Content(Protocol):
    """A message's content and what the server must be able to do for it."""

    eight_bit: bool  # octets over 127 in body or header: declare BODY=8BITMIME
    header_utf8: bool  # the header is raw UTF-8: declare SMTPUTF8 where it is offered

    @property
    def size(self) -> int:
        """Octets, about: what is large is re-encoded in a thread."""
        ...

    def body(self, *, eight_bit_allowed: bool, smtputf8_allowed: bool) -> Body:
        """As it is, or re-encoded where the server or a line over 998 octets forces it.

        Raises MessageRejected 5.6.3 where that would break a signature or can't be done.
        """
        ...


class Mail(Protocol):
    """What one transaction sends."""

    @property
    def sender(self) -> str:
        """Reverse-path mailbox; "" is the null sender."""
        ...

    @property
    def ret(self) -> str | None:
        """RFC 3461: FULL or HDRS."""
        ...

    @property
    def envid(self) -> str | None:
        """RFC 3461."""
        ...

    @property
    def content(self) -> Content: ...

    @property
    def recipients(self) -> Sequence[Recipient]: ...


class Turn(Protocol):
    """The right to send one message now. Must be used or released."""

    @property
    def server(self) -> str:
        """host:port of the connection."""
        ...

    @property
    def tls(self) -> str | None:
        """Version and cipher; None: plain."""
        ...

    async def send(self, mail: Mail, journal: Journal, started_at: float) -> Attempt:
        """One transaction, start to end; every recipient of the mail has exactly one outcome in the answer.

        `started_at`: seconds since the epoch, what the attempt is known by.

        Raises MessageChanged (closed before the dot), and what the journal raised.
        """
        ...

    def release(self) -> None:
        """Give it back unused. Harmless after use."""
        ...


class Transport(Protocol):
    """One account's way out."""

    async def turn(self) -> Turn:
        """Wait for a connection that is ready. Raises AccountUnavailable with the fault where none can be had."""
        ...

    @property
    def connections(self) -> int:
        """How many are open now."""
        ...

    @property
    def trouble(self) -> AccountFault | None:
        """Why no more connections can be opened, while others serve; None: nothing is known of that kind."""
        ...

    @property
    def rate(self) -> float | None:
        """Messages a second of late, about; None: not known."""
        ...

    def limit_connections(self, most: int | None) -> None:
        """So many at once at most; None: as many as the account's settings say."""
        ...

    def abort(self) -> None:
        """Cut everything off now."""
        ...

    async def close(self) -> None:
        """Finish politely: QUIT on idle connections."""
        ...
