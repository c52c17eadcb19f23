"""The values that pass between the SMTP client and its callers: what to connect to, what to send, what came of it.

Nothing here does I/O. Sizes are octets, durations seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from core.domain.account import AuthMethod, Security
from core.domain.content import Octets
from core.domain.reply import Phase, Reply


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait for the server in each phase (RFC 5321 section 4.5.3.2)."""

    connect_seconds: float = 30  # DNS, TCP, and TLS handshake, each
    banner_seconds: float = 300
    command_seconds: float = 300  # EHLO, STARTTLS, AUTH, RSET
    mail_seconds: float = 300
    rcpt_seconds: float = 300
    data_seconds: float = 120
    block_seconds: float = 180  # until a block of content was taken by the network
    dot_seconds: float = 600
    quit_seconds: float = 2
    transaction_seconds: float = 3600  # from MAIL to the final dot, so that a server that trickles can't hold on
    login_seconds: float = 600  # from TCP connect to the end of the login, for the same reason


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the server said it can do, in its last EHLO. Keywords are upper-case."""

    extensions: dict[str, str] = field(default_factory=dict)  # keyword -> its parameters
    size_limit: int | None = None  # RFC 1870; None: no limit known
    pipelining: bool = False  # RFC 2920
    chunking: bool = False  # RFC 3030
    eight_bit_mime: bool = False  # RFC 6152
    smtputf8: bool = False  # RFC 6531
    dsn: bool = False  # RFC 3461
    starttls: bool = False  # RFC 3207
    auth: frozenset[str] = frozenset()  # RFC 4954 mechanisms, upper-case


class AccessTokens(Protocol):
    """Where the access tokens of XOAUTH2 come from, or a password that lies outside (a file, the environment)."""

    async def __call__(self) -> str:
        """One that is good now; asked before each login."""
        ...

    async def refused(self, token: str) -> bool:
        """The server answered 535 to it. True: the login is tried once more, with the next one."""
        ...

    def accepted(self, token: str) -> None:
        """The server took it."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """What to connect to, and how.

    `token` gives the access tokens of XOAUTH2; `secret` the password where that lies outside, and it is asked before
    anything is connected to.
    """

    host: str
    port: int
    security: Security = Security.STARTTLS
    auth: AuthMethod = AuthMethod.AUTO
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: AccessTokens | None = field(default=None, repr=False)
    secret: AccessTokens | None = field(default=None, repr=False)
    helo_name: str | None = None  # None: the host's name if it has a dot, else the address literal
    ca_file: str | None = None  # PEM; None: the system's authorities
    allow_plaintext_login: bool = False  # otherwise a login without TLS goes to loopback only
    allow_private: bool = True  # False: what the name resolves to must be a public address
    chunking: bool = True  # use BDAT where offered
    timeouts: Timeouts = field(default_factory=Timeouts)


class RecipientLike(Protocol):
    """One recipient: mailbox as it goes between < and >, RFC 3461 NOTIFY and ORCPT (xtext-encoded already)."""

    @property
    def mailbox(self) -> str: ...
    @property
    def notify(self) -> str | None: ...
    @property
    def orcpt(self) -> str | None: ...


class BodyLike(Protocol):
    """The octets to send, CRLF line ends, before dot-stuffing; `size` is exact.

    `dotless`: no line starts with a dot, so that nobody needs to look.
    """

    size: int
    dotless: bool

    def chunks(self) -> Iterator[Octets]:
        """From the start, at most 256 KiB each."""
        ...


def _nothing(_: object) -> None:
    """The default of both callbacks."""


@dataclass(slots=True)
class Transaction:
    """One message to send. The callbacks are called synchronously, on the event loop.

    `on_begin(mailboxes)` is called once, just before the final dot or BDAT LAST is written, with the recipients that
    the server accepted (or may accept: with CHUNKING all goes at once). If it raises, the connection is closed, the
    dot does not leave, and the exception travels to the caller of send.
    `on_result(result)` is called once, as soon as the last reply is read or the connection is lost; not if send raises.
    """

    sender: str  # "" is the null reverse-path
    recipients: Sequence[RecipientLike]
    body: BodyLike
    eight_bit: bool = False  # BODY=8BITMIME is needed
    smtputf8: bool = False  # SMTPUTF8 is needed
    ret: str | None = None
    envid: str | None = None
    on_begin: Callable[[list[str]], None] = _nothing
    on_result: Callable[[TransactionResult], None] = _nothing


class FailureKind(StrEnum):
    """Why a transaction did not come to the server's verdict."""

    TIMEOUT = "timeout"  # the server did not answer in time
    CLOSED = "closed"  # the connection was lost, or the server said 421
    PROTOCOL = "protocol"  # the server did not speak SMTP
    TOO_LARGE = "too_large"  # larger than SIZE allows: 5.3.4, decided here before MAIL


@dataclass(frozen=True, slots=True)
class Failure:
    """Where and why the conversation about one message ended without a verdict."""

    phase: Phase
    kind: FailureKind
    detail: str
    reply: Reply | None = None  # the 421, where there was one


@dataclass(slots=True)
class TransactionResult:
    """What came of one transaction.

    failure is None: the server's verdict is complete. Read it in this order: `mail_reply` not 2xx refuses the message
    (then rcpt_replies are None); a recipient whose `rcpt_replies` entry is not 2xx is refused; for the accepted ones
    `data_reply` (not 354: refused) and then `final_reply` is the verdict. final_reply may also be a 4xx or 5xx that
    came in the middle of the body.
    failure is set: final_reply is None, and every recipient that was not refused (with CHUNKING its RCPT may be without
    a reply) is unknown if `dot_sent`, else not sent. Refusals in mail_reply and rcpt_replies hold anyway.
    """

    rcpt_replies: list[Reply | None]  # one per recipient, in their order
    mail_reply: Reply | None = None
    data_reply: Reply | None = None  # to DATA; None with CHUNKING
    final_reply: Reply | None = None  # to the final dot or BDAT LAST, or a refused BDAT
    dot_sent: bool = False  # an octet of the final dot may have left, and nothing said since excludes its being taken
    failure: Failure | None = None
    reused_dead: bool = False  # a kept connection was dead before any reply: nothing was tried, try again at once


class ConnectFailed(Exception):
    """No connection could be had.

    `code` is one of dns_failed, target_forbidden, connect_failed, connect_timeout, tls_failed, certificate_untrusted,
    certificate_self_signed, certificate_expired, certificate_not_yet_valid, certificate_wrong_host, banner_refused,
    ehlo_refused, starttls_missing, starttls_refused, starttls_injection, login_refused, login_deferred,
    login_not_offered, plaintext_login_refused, token_failed (and those of TokenFailed), secret_missing,
    protocol_error, timeout, closed. `detail` is in plain words and holds no secret.
    """

    def __init__(self, phase: Phase, code: str, detail: str, reply: Reply | None = None) -> None:
        super().__init__(f"{code} ({phase}): {detail}")
        self.phase = phase
        self.code = code
        self.detail = detail
        self.reply = reply

    def copy(self) -> ConnectFailed:
        """One instance a waiter, so that tracebacks do not pile up on a shared one."""
        return ConnectFailed(self.phase, self.code, self.detail, self.reply)


class TokenFailed(ConnectFailed):
    """No access token could be had. `code` is one of core/domain/oauth.py, Trouble.

    `pause_seconds` None: nobody mends it by waiting.
    """

    def __init__(self, code: str, detail: str, *, remedy: str, pause_seconds: float | None, passing: bool) -> None:
        super().__init__(Phase.AUTH, code, detail)
        self.remedy = remedy
        self.pause_seconds = pause_seconds
        self.passing = passing

    def copy(self) -> TokenFailed:
        """One instance a waiter."""
        return TokenFailed(
            self.code, self.detail, remedy=self.remedy, pause_seconds=self.pause_seconds, passing=self.passing
        )
