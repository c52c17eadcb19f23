"""What the state machine says and is told: commands that replies answer, and the events that come of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from core.domain.reply import Reply
from core.smtp.exchange import Exchange


class Command(StrEnum):  # a str hashes faster than an Enum, and this one is looked up at each reply
    """What a reply can answer."""

    BANNER = "the connection"
    EHLO = "EHLO"
    HELO = "HELO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    NOOP = "NOOP"
    QUIT = "QUIT"
    RSET = "RSET"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    BDAT = "BDAT"
    LAST = "the content"  # the final dot or BDAT LAST
    LONE_DOT = "the lone dot"


# The first digits that fit; to DATA a 2xx and to all but DATA and AUTH a 3xx has no meaning.
FITTING: Mapping[Command, tuple[int, ...]] = dict.fromkeys(Command, (2, 4, 5)) | {
    Command.AUTH: (2, 3, 4, 5),
    Command.DATA: (3, 4, 5),
}


@dataclass(frozen=True, slots=True)
class Answered:
    """A command of the session was answered."""

    command: Command
    reply: Reply


@dataclass(slots=True)  # one a message (core/domain)
class GoAhead:
    """Write the content of this exchange now."""

    exchange: Exchange


@dataclass(slots=True)  # one a message (core/domain)
class Settled:
    """The result of this exchange is complete."""

    exchange: Exchange


Event = Answered | GoAhead | Settled
Expected = tuple[Command, Exchange | None, int]
