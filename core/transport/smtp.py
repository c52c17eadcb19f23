"""SMTP as a transport: one account, its pool, and what the server's replies mean for each recipient.

The pool says what happened; core/domain/blame.py says whose fault it is; this file puts the two together. A kept
connection that turns out dead before any reply is replaced once, silently (no attempt was made).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.domain.account import Account, AuthMethod
from core.domain.blame import MINUTE, OF_ONE, OF_ONE_TOO, Rule, Ruling, judge
from core.domain.circuit import LOGIN_TRIAL_SECONDS, LOGIN_TRIALS_MAX
from core.domain.clock import Clock
from core.domain.envelope import Recipient
from core.domain.login import LoginRefusal, explain_login
from core.domain.outcome import AccountFault, Attempt, Blame, Outcome, RecipientOutcome
from core.domain.reply import Phase, Reply
from core.domain.reply_rules import compiled
from core.errors import StorageBroken, StorageFull
from core.smtp.dialogue import (
    AccessTokens,
    ConnectFailed,
    Failure,
    FailureKind,
    Target,
    Timeouts,
    TokenFailed,
    Transaction,
    TransactionResult,
)
from core.smtp.pool import REOPEN_SECONDS, Pool, PoolTurn
from core.transport.base import AccountUnavailable, Content, Journal, Mail
from core.transport.remedies import REMEDIES, silent_banner

_SENT, _DOT = Outcome.SENT, Phase.DOT  # with every message (core/domain)
INLINE_BYTES = 1 << 18  # a larger body is prepared in a thread: it may be re-encoded

MAX_WORDS = 500  # characters of a server's words in a sentence of ours
SECRET_SECONDS = 30.0  # between looks for a secret that is not there
REUSED_DEAD_MAX = 3  # so often a message moves on at once from a kept connection that was dead
# what nobody mends by waiting, although it is not the login's fault
_CONFIGURATION = frozenset({"login_not_offered", "plaintext_login_refused", "password_missing"})


@dataclass(slots=True)  # one a message (core/domain)
class OutgoingMail:
    """What one transaction sends (transport/base.py, Mail)."""

    sender: str
    recipients: Sequence[Recipient]
    content: Content
    ret: str | None = None
    envid: str | None = None


def target_of(
    account: Account,
    timeouts: Timeouts,
    token: AccessTokens | None = None,
    *,
    secret: AccessTokens | None = None,
    allow_private: bool = True,
) -> Target:
    """What the client connects to for this account. `allow_private`: loopback and private networks too."""
    return Target(
        host=account.host,
        port=account.port,
        security=account.security,
        auth=account.auth,
        username=account.username,
        password=account.password,
        token=token,
        secret=secret,
        helo_name=account.helo_name,
        ca_file=account.tls_ca_file,
        allow_plaintext_login=account.allow_plaintext_login,
        allow_private=allow_private,
        timeouts=replace(timeouts, connect_seconds=account.connect_timeout_seconds),
    )


def fault_of(account: Account, error: ConnectFailed, own: Sequence[Rule] | None = None) -> AccountFault:
    """Why no connection could be had, as the account's fault. `own`: the account's rows, where they are compiled."""
    detail = error.detail
    if isinstance(error, TokenFailed):
        return AccountFault(
            account.name, error.phase, error.code, error.detail, error.remedy, error.pause_seconds, error.passing
        )
    if error.reply is not None and error.reply.severity in (4, 5):
        ruling = judge(error.phase, error.reply, own=compiled(account.reply_rules) if own is None else own)
        code = error.code if ruling.code == "server_refuses" else ruling.code
        pause, passing = ruling.pause_seconds, ruling.passing
        remedy = ruling.remedy if ruling.origin else REMEDIES.get(error.code, ruling.remedy)
        refusal = None if ruling.origin else login_refusal(account, error)
        if refusal is not None and (refusal.code != "login_deferred" or code == "login_deferred"):
            detail, remedy = refusal.cause.rstrip("."), refusal.remedy
        detail = _with_origin(f"{detail}: {error.reply.code} {error.reply.text[:MAX_WORDS]}", ruling)
    else:
        code, remedy = error.code, REMEDIES.get(error.code, "Nothing to do: MPU tries again by itself.")
        passing = code not in _CONFIGURATION
        pause = MINUTE if passing else None
        silent = silent_banner(account, code) if error.phase is Phase.BANNER else None
        if silent is not None:
            remedy = silent.remedy
        if code == "secret_missing":  # to look costs nobody anything, and mail goes soon after it is there
            passing, pause = False, SECRET_SECONDS
    return AccountFault(account.name, error.phase, code, detail, remedy, pause, passing, error.reply)


def login_refusal(account: Account, error: ConnectFailed) -> LoginRefusal | None:
    """Why the server refused the account's login, as far as its words tell; None: that is not what happened."""
    if error.phase is not Phase.AUTH or error.reply is None or error.reply.severity not in (4, 5):
        return None
    by_token = account.auth is AuthMethod.XOAUTH2 or (account.auth is AuthMethod.AUTO and account.oauth is not None)
    return explain_login(error.reply, host=account.host, by_token=by_token)


class SmtpTransport:
    """One account's way out over SMTP."""

    def __init__(
        self,
        account: Account,
        *,
        clock: Clock,
        timeouts: Timeouts | None = None,
        token: AccessTokens | None = None,
        secret: AccessTokens | None = None,
        allow_private: bool = True,
    ) -> None:
        self.account = account
        self.own_rules = compiled(account.reply_rules)
        self._clock = clock
        self._pool = Pool(
            target_of(account, timeouts or Timeouts(), token, secret=secret, allow_private=allow_private),
            max_connections=account.max_connections,
            messages_per_connection=account.messages_per_connection,
            idle_timeout_seconds=account.idle_timeout_seconds,
            rest_after=self._rest_after,
        )

    def _rest_after(self, error: ConnectFailed, in_a_row: int) -> float:
        """How long no more connections are opened while others serve: no login is tried in a loop."""
        pause = fault_of(self.account, error, self.own_rules).pause_seconds
        if pause is not None:
            return max(pause, REOPEN_SECONDS)
        return LOGIN_TRIAL_SECONDS if in_a_row <= LOGIN_TRIALS_MAX else math.inf

    async def turn(self) -> SmtpTurn:
        """Wait for a connection. Raises AccountUnavailable."""
        return SmtpTurn(self, await self.pool_turn())

    async def pool_turn(self) -> PoolTurn:
        """The pool's turn, foreign errors mapped."""
        try:
            return await self._pool.turn()
        except ConnectFailed as error:
            raise AccountUnavailable(fault_of(self.account, error, self.own_rules)) from error

    @property
    def connections(self) -> int:
        """How many are open now."""
        return self._pool.connections

    @property
    def trouble(self) -> AccountFault | None:
        """Why no more connections can be opened, while others serve."""
        failure = self._pool.last_failure
        if failure is None or not self._pool.connections:
            return None
        return fault_of(self.account, failure, self.own_rules)

    @property
    def rate(self) -> float | None:
        """Messages a second of late, about; None: not known."""
        return self._pool.rate or None

    def limit_connections(self, most: int | None) -> None:
        """So many at once at most; None: as many as the account's settings say."""
        self._pool.limit(self.account.max_connections if most is None else most)

    def abort(self) -> None:
        """Cut everything off: what is between the final dot and its reply ends as unknown."""
        self._pool.abort()

    async def close(self) -> None:
        """QUIT on idle connections; what is in flight goes on to its end."""
        await self._pool.close()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock.now()


class SmtpTurn:
    """The right to send one message now, over one connection."""

    __slots__ = ("_transport", "_turn")

    def __init__(self, transport: SmtpTransport, turn: PoolTurn) -> None:
        self._transport = transport
        self._turn = turn

    @property
    def server(self) -> str:
        """host:port of the connection."""
        return self._turn.server

    @property
    def tls(self) -> str | None:
        """Version and cipher; None: plain."""
        return self._turn.tls

    def release(self) -> None:
        """Give it back unused."""
        self._turn.release()

    async def send(self, mail: Mail, journal: Journal, started_at: float) -> Attempt:
        """One transaction. Raises MessageRejected, MessageChanged, and what the journal raised."""
        try:
            call = self._call(mail, journal, started_at)
            result = call.refused or await call.run(self._turn)
            for _ in range(REUSED_DEAD_MAX):
                if not result.reused_dead:
                    break
                self._turn = await self._transport.pool_turn()
                call = self._call(mail, journal, started_at)
                result = call.refused or await call.run(self._turn)
        except AccountUnavailable as error:
            return _unreached(mail, error.fault, started_at, self._transport.now(), self._turn.server)
        finally:
            self._turn.release()
        return call.attempt(result, self._transport.now())

    def _call(self, mail: Mail, journal: Journal, started: float) -> _Call:
        return _Call(self._transport, self._turn, mail, journal, started)


class _Call:
    """One transaction on one connection: who is asked, and what the answers mean."""

    __slots__ = (
        "_asked",
        "_journal",
        "_judged",
        "_local",
        "_mail",
        "_outcomes",
        "_server",
        "_started",
        "_tls",
        "_transport",
        "_unlogged",
        "fault",
    )

    def __init__(self, transport: SmtpTransport, turn: PoolTurn, mail: Mail, journal: Journal, started: float) -> None:
        self._transport = transport
        self._mail = mail
        self._journal = journal
        self._started = started
        self._server, self._tls = turn.server, turn.tls
        self._asked: Sequence[Recipient] = mail.recipients
        self._local: list[RecipientOutcome] = []
        self._outcomes: list[RecipientOutcome] | None = None
        self._unlogged = False
        self._judged: tuple[Phase, Reply, Ruling] | None = None
        self.fault: AccountFault | None = None
        if not turn.capabilities.smtputf8:
            self._leave_out_international()

    @property
    def refused(self) -> TransactionResult | None:
        """Nobody is left to ask the server about."""
        return None if self._asked else TransactionResult([])

    async def run(self, turn: PoolTurn) -> TransactionResult:
        """Ask the server. Outcomes are in the journal before this returns."""
        capabilities = turn.capabilities
        content = self._mail.content
        eight_bit, smtputf8 = capabilities.eight_bit_mime, capabilities.smtputf8
        if content.size <= INLINE_BYTES:
            body = content.body(eight_bit_allowed=eight_bit, smtputf8_allowed=smtputf8)
        else:
            body = await asyncio.to_thread(content.body, eight_bit_allowed=eight_bit, smtputf8_allowed=smtputf8)
        international = not self._mail.sender.isascii() or any(not r.mailbox.isascii() for r in self._asked)
        return await turn.send(
            Transaction(
                sender=self._mail.sender,
                recipients=self._asked,
                body=body,
                eight_bit=content.eight_bit and eight_bit,
                smtputf8=international or (content.header_utf8 and smtputf8),
                ret=self._mail.ret,
                envid=self._mail.envid,
                on_begin=self._journal.begin,
                on_result=self._on_result,
            )
        )

    def attempt(self, result: TransactionResult, ended: float) -> Attempt:
        """The whole, once the connection is done with it."""
        if self._outcomes is None:
            self._conclude(result)
        assert self._outcomes is not None
        return Attempt(
            account=self._transport.account.name,
            server=self._server,
            tls=self._tls,
            started_at=self._started,
            ended_at=ended,
            outcomes=tuple(self._outcomes),
            fault=self.fault,
            unlogged=self._unlogged,
        )

    def _leave_out_international(self) -> None:
        """RFC 6531 section 3.2: without SMTPUTF8 such a mailbox can't be named; nothing is rewritten."""
        text = "the server does not offer SMTPUTF8, which a non-ASCII mailbox needs"
        everybody = not self._mail.sender.isascii()
        asked = []
        for recipient in self._mail.recipients:
            if everybody or not recipient.mailbox.isascii():
                blame = Blame.SENDER if everybody else Blame.RECIPIENT
                self._local.append(
                    RecipientOutcome(recipient.mailbox, Outcome.FAILED, Phase.LOCAL, blame, 553, "5.6.7", text)
                )
            else:
                asked.append(recipient)
        self._asked = asked

    def _on_result(self, result: TransactionResult) -> None:
        if not result.reused_dead:  # else nothing was tried, and the next connection will be
            self._conclude(result)

    def _conclude(self, result: TransactionResult) -> None:
        outcomes = list(self._local)
        for number, recipient in enumerate(self._asked):
            outcomes.append(self._one(recipient.mailbox, result.rcpt_replies[number], result))
        self._outcomes = outcomes
        try:
            self._journal.outcome(outcomes)
        except (StorageFull, StorageBroken):
            self._unlogged = True  # known here all the same; the caller unlinks what was sent at once

    def _one(self, mailbox: str, rcpt: Reply | None, result: TransactionResult) -> RecipientOutcome:
        mail = result.mail_reply
        if mail is not None and mail.severity != 2:
            return self._refused(mailbox, Phase.MAIL, mail)
        if rcpt is not None and rcpt.severity != 2:
            return self._refused(mailbox, Phase.RCPT, rcpt, among=result.rcpt_replies)
        final, failure = result.final_reply, result.failure
        if final is not None:
            if final.severity == 2:
                return RecipientOutcome(mailbox, _SENT, _DOT, None, final.code, final.enhanced_code, final.text)
            return self._refused(mailbox, Phase.DOT, final)
        if failure is not None:
            return self._broken(
                mailbox, failure, dot_sent=result.dot_sent
            )  # with CHUNKING even before RCPT is answered
        data = result.data_reply
        if data is not None and data.code != 354:
            return self._refused(mailbox, Phase.DATA, data)
        raise AssertionError("the client gave neither a verdict nor a failure")

    def _refused(
        self, mailbox: str, phase: Phase, reply: Reply, *, among: Sequence[Reply | None] = ()
    ) -> RecipientOutcome:
        """`among`: what was said of all recipients."""
        judged = self._judged
        if judged is not None and judged[0] is phase and judged[1] == reply:
            ruling = judged[2]  # one reply to all, or the same words to each: the user's patterns may be slow
        else:
            ruling = self._judge(phase, reply)
            self._judged = (phase, reply, ruling)
        if ruling.code in OF_ONE_TOO and any(other is not None and other.severity == 2 for other in among):
            ruling = OF_ONE
        return self._ruled(mailbox, phase, reply, ruling)

    def _judge(self, phase: Phase, reply: Reply) -> Ruling:
        if reply.severity not in (4, 5):
            return _NONSENSE  # 2xx or 3xx where it can't be: nobody's refusal, so try again
        return judge(
            phase,
            reply,
            sender=self._mail.sender,
            recipients=[recipient.mailbox for recipient in self._mail.recipients],
            own=self._transport.own_rules,
        )

    def _ruled(self, mailbox: str, phase: Phase, reply: Reply, ruling: Ruling) -> RecipientOutcome:
        if ruling.blame is Blame.ACCOUNT:
            self._blame_account(phase, ruling, reply)
        elif reply.code == 421:  # counts for the message too, or one that provokes it would come back for ever
            self._blame_account(phase, _CLOSING, reply)
        outcome = Outcome.FAILED if ruling.final else Outcome.DEFERRED
        text = _with_origin(reply.text, ruling) if ruling.origin else reply.text
        return RecipientOutcome(mailbox, outcome, phase, ruling.blame, reply.code, reply.enhanced_code, text)

    def _broken(self, mailbox: str, failure: Failure, *, dot_sent: bool) -> RecipientOutcome:
        reply, phase = failure.reply, failure.phase
        if failure.kind is FailureKind.TOO_LARGE:
            return RecipientOutcome(mailbox, Outcome.FAILED, Phase.LOCAL, Blame.MESSAGE, 552, "5.3.4", failure.detail)
        if dot_sent:
            if reply is None:
                return RecipientOutcome(mailbox, Outcome.UNKNOWN, phase, None, text=failure.detail)
            ruling = self._judge(phase, reply)
            self._blame_account(phase, ruling if ruling.blame is Blame.ACCOUNT else _CLOSING, reply)
            text = reply.text or failure.detail
            return RecipientOutcome(mailbox, Outcome.UNKNOWN, phase, None, reply.code, reply.enhanced_code, text)
        if reply is not None and reply.severity == 4:
            return self._refused(mailbox, phase, reply)
        if phase is Phase.MAIL:  # it takes the login and then says nothing: not once for each mail that waits
            self._blame(phase, _CLOSING, f"{self._server}: {failure.detail}, before it answered MAIL")
        return RecipientOutcome(mailbox, Outcome.DEFERRED, phase, Blame.TRANSIENT, None, None, failure.detail)

    def _blame_account(self, phase: Phase, ruling: Ruling, reply: Reply) -> None:
        said = _with_origin(f"{self._server} answered {reply.code} {reply.text} ({phase.value})", ruling)
        self._blame(phase, ruling, said, reply)

    def _blame(self, phase: Phase, ruling: Ruling, detail: str, reply: Reply | None = None) -> None:
        if self.fault is None:
            self.fault = AccountFault(
                self._transport.account.name,
                phase,
                ruling.code,
                detail,
                ruling.remedy,
                ruling.pause_seconds,
                ruling.passing,
                reply,
            )


def _with_origin(text: str, ruling: Ruling) -> str:
    """Names the row of the account that judged, where it wasn't the table."""
    return f"{text} [{ruling.origin}]" if ruling.origin else text


# promises.md: 421 at any time before the dot: close, defer, back off the account
_CLOSING = Ruling(
    Blame.ACCOUNT,
    final=False,
    code="server_closing",
    remedy="Nothing to do: MPU tries again by itself.",
    pause_seconds=10.0,
    passing=True,
)
_NONSENSE = Ruling(Blame.TRANSIENT, final=False, code="unexpected_reply")


def _unreached(mail: Mail, fault: AccountFault, started: float, ended: float, server: str) -> Attempt:
    """The kept connection was dead and no new one could be had."""
    outcomes = tuple(
        RecipientOutcome(
            recipient.mailbox,
            Outcome.DEFERRED,
            fault.phase,
            Blame.ACCOUNT,
            fault.reply.code if fault.reply else None,
            fault.reply.enhanced_code if fault.reply else None,
            fault.detail,
        )
        for recipient in mail.recipients
    )
    return Attempt(fault.account, server, None, started, ended, outcomes, fault)
