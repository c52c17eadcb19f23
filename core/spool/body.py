"""A message's content, read from its open file (skeleton)."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from core.domain.account import DotStuffing, FromPolicy
from core.domain.envelope import Envelope


@dataclass(slots=True)
class FileBody:
    """The octets that go out."""

    size: int

    def chunks(self) -> Iterator[bytes]:
        """At most 256 KiB each."""
        raise NotImplementedError


@dataclass(slots=True)
class FileContent:
    """A message's content and what it needs of the server."""

    eight_bit: bool
    smtputf8: bool

    def body(self, *, eight_bit_allowed: bool, smtputf8_allowed: bool = False) -> FileBody:
        """As it is, or re-encoded."""
        raise NotImplementedError


@dataclass(slots=True)
class Prepared:
    """What is known of a message before it is sent."""

    envelope: Envelope
    internet_message_id: str | None
    has_date: bool
    subject: str
    from_mailbox: str | None
    dot_proof: DotStuffing | None
    notes: tuple[str, ...]

    def content(
        self,
        *,
        message_id: str,
        date: str,
        from_address: str | None = None,
        from_policy: FromPolicy = FromPolicy.KEEP,
        exclude: Set[str] = frozenset(),
    ) -> FileContent:
        """The content of one attempt."""
        raise NotImplementedError


def prepare(
    fd: int,
    *,
    size: int,
    mtime_ns: int,
    dot_stuffing: DotStuffing,
    proven: DotStuffing | None,
    max_header_bytes: int,
    max_recipients: int,
) -> Prepared:
    """Read, judge and describe the message in `fd`."""
    raise NotImplementedError
