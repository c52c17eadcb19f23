"""Trying an account out, step by step. Sends no mail.

    secret       the password from outside, where the account has one
    dns, port    addresses, and which of them takes a connection
    banner       the server's first words
    tls          version and cipher; what is wrong with the certificate, told apart
    certificate  whom it is for, who signed it, days left (not required: a warning under WARN_DAYS)
    ehlo         the greeting
    extensions   what the server offers, and a step for each that is missing, with what that costs (not required)
    token        the access token, where OAuth is used
    login, noop
    send_as      MAIL FROM and RSET: whether the account may send as its address, as far as that is told before a mail

The steps come in the order in which they were reached; a required one that fails is the last but for its findings. The
whole never takes longer than its limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from dataclasses import dataclass, replace

from core.domain.account import Account, AuthMethod, Security
from core.domain.address import AddressError, parse_mailbox
from core.domain.blame import judge
from core.domain.oauth import REFERENCES, outside_of
from core.domain.outcome import Blame
from core.domain.reply import Phase, Reply
from core.domain.reply_rules import compiled
from core.domain.target import address_of, is_loopback
from core.smtp.capabilities import login_wanted
from core.smtp.commands import check_mailbox
from core.smtp.connection import Connection
from core.smtp.dial import dial, tls_context
from core.smtp.dialogue import AccessTokens, ConnectFailed, Target, Timeouts
from core.smtp.errors import ConversationEnded
from core.smtp.events import Command
from core.transport.certificate import read_certificate
from core.transport.check_texts import CAUSES, EXTENSIONS, NO_CAUSE, PORT_25
from core.transport.remedies import in_a_check, silent_banner
from core.transport.smtp import MAX_WORDS, fault_of, login_refusal, target_of

CHECK_SECONDS = 30.0  # a person waits for it
WARN_DAYS = 21
_LATE_JUDGES = ("office365.com", "outlook.com", "amazonaws.com")  # look at the sender when the mail is there
_STEP_OF_PHASE = {
    Phase.CONNECT: "port",
    Phase.STARTTLS: "tls",
    Phase.AUTH: "login",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `code` is stable; cause and remedy are for people, where it is not ok."""

    name: str
    ok: bool
    seconds: float
    detail: str = ""
    code: str = ""
    cause: str = ""
    remedy: str = ""
    required: bool = True


async def check(
    account: Account,
    token: AccessTokens | None = None,
    *,
    secret: AccessTokens | None = None,
    allow_private: bool = True,
    now: float | None = None,
    limit_seconds: float = CHECK_SECONDS,
) -> list[Step]:
    """All steps that were reached. `now`: seconds since the epoch, by which certificates are judged."""
    trial = _Trial(account, token, secret, allow_private, time.time() if now is None else now, limit_seconds)
    try:
        async with asyncio.timeout(limit_seconds):
            await trial.run()
    except TimeoutError:
        trial.ran_out_of_time(limit_seconds)
    finally:
        trial.end()
    return list(trial.steps.values())


class _Trial:
    """One check. `steps` holds what was found so far; a second try of the login replaces what the first found."""

    def __init__(
        self,
        account: Account,
        token: AccessTokens | None,
        secret: AccessTokens | None,
        allow_private: bool,
        now: float,
        limit: float,
    ) -> None:
        self.account = account
        self.steps: dict[str, Step] = {}
        self._now = now
        self._connection: Connection | None = None
        self._asked: str | None = None  # token or secret, while it is awaited
        timeouts = Timeouts(banner_seconds=limit / 2, command_seconds=limit / 2, mail_seconds=limit / 2)
        target = target_of(account, timeouts, None, allow_private=allow_private)
        self._target = replace(
            target,
            token=None if token is None else _Watched(self, "token", token),
            secret=None if secret is None else _Watched(self, "secret", secret),
            timeouts=replace(target.timeouts, connect_seconds=min(account.connect_timeout_seconds, limit / 3)),
        )
        self._began = time.perf_counter()

    async def run(self) -> None:
        """Until the end or the first failure."""
        try:
            context = None
            if self.account.security is not Security.NONE:
                context = await asyncio.to_thread(tls_context, self._target)
            self._took()  # the authorities are no part of the first step
            connection = await dial(self._target, context, self._seen, self._reached)
        except ConnectFailed as failed:
            await self._failed(failed)
            return
        if not login_wanted(self._target):
            self._add("login", "none: the account has no username, or auth is none")
        try:
            await self._noop(connection)
            await self._send_as(connection)
            with contextlib.suppress(TimeoutError):
                await connection.leave()
        except ConversationEnded as ended:
            code = "timeout" if "time" in ended.kind.value else "closed"
            self._fail(self._next(), ended.detail, code, CAUSES[code], "Try again; ask the provider if it stays so.")

    def end(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.abort("the check is over")

    def ran_out_of_time(self, limit: float) -> None:
        """The step under way failed for that."""
        name = self._asked or self._next()
        cause = CAUSES["timeout"]
        remedy = "Check host, port and firewall." if name in ("dns", "port", "tls") else "Try again later."
        silent = silent_banner(self.account, "timeout") if name == "banner" else None
        if silent is not None:
            cause, remedy = silent
        self._fail(name, f"not done within {limit:g} s", "timeout", cause, remedy)

    # --- what dial tells ----------------------------------------------------------------------------------------------

    def _seen(self, connection: Connection) -> None:
        self._connection = connection

    def _reached(self, phase: Phase, detail: str) -> None:
        connection = self._connection
        if phase is Phase.DNS:
            detail = _addresses(self.account.host, detail)
        if phase is Phase.EHLO:
            if "ehlo" not in self.steps:
                self._add("ehlo", f"greeted by {self._greeting or self.account.host}")
            if connection is not None and (connection.tls or self.account.security is not Security.STARTTLS):
                self._extensions(connection)
            return
        if phase is Phase.BANNER:
            self._greeting = detail.partition(" ")[0]
            self._certificate()  # of TLS from the start: the connection was not known before
        self._add(_STEP_OF_PHASE.get(phase, phase.value), detail)
        if phase is Phase.STARTTLS:
            self._certificate()
        if phase is Phase.CONNECT and self.account.security is Security.NONE and not is_loopback(self.account.host):
            self._note(
                "tls",
                "no TLS",
                "no_tls",
                "Login and mail go over the network in the clear.",
                "Set security to starttls or tls, if the server offers either.",
            )

    _greeting = ""

    def _certificate(self) -> None:
        der = self._connection.certificate if self._connection is not None else None
        found = None if der is None else read_certificate(der)
        if found is None:
            return
        detail, days = found.described(self._now), found.days_left(self._now)
        if days >= WARN_DAYS:
            self.steps["certificate"] = Step("certificate", True, 0.0, detail, required=False)
            return
        cause = f"The certificate ends in {days} days; from then on no mail goes."
        remedy = "The server's operator renews it; many do so by themselves shortly before."
        self._note("certificate", detail, "certificate_ends_soon", cause, remedy)

    def _extensions(self, connection: Connection) -> None:
        offered = connection.capabilities.extensions
        self._add(
            "extensions",
            ", ".join(f"{name} {more}".strip() for name, more in sorted(offered.items())) or "none",
            required=False,
        )
        for name, (cost, remedy) in EXTENSIONS.items():
            if name not in offered:
                self._note(f"extension_{name.lower()}", f"{name} is not offered", "not_offered", cost, remedy)

    # --- failures -----------------------------------------------------------------------------------------------------

    async def _failed(self, failed: ConnectFailed) -> None:
        name = self._asked or _STEP_OF_PHASE.get(failed.phase, failed.phase.value)
        if failed.code == "target_forbidden":
            name = "dns"
        fault = fault_of(self.account, failed)
        code, cause = failed.code, CAUSES.get(failed.code, NO_CAUSE)
        refusal = login_refusal(self.account, failed)
        if refusal is not None:
            code, cause = refusal.code, refusal.cause
        elif failed.code.startswith("connect_") and self.account.port == 25:
            cause += PORT_25
        elif name == "banner":
            silent = silent_banner(self.account, code)
            cause = cause if silent is None else silent.cause
        words = "" if failed.reply is None else f": {_words(failed.reply)}"
        self._fail(name, failed.detail + words, code, cause, fault.remedy)
        if failed.code.startswith("certificate_"):
            with contextlib.suppress(ConnectFailed):
                await self._look_at(await _unverified(self._target), failed.code)

    async def _look_at(self, der: bytes | None, code: str) -> None:
        """Say of a certificate that was not taken what it is."""
        found = None if der is None else read_certificate(der)
        if found is None:
            return
        step = self.steps["tls"]
        cause, remedy = step.cause, step.remedy
        if code == "certificate_wrong_host" and found.names:
            remedy = f"Set the account's host to a name that the certificate is for: {found.shown_names}."
        if code == "certificate_untrusted":
            cause = f"{cause.rstrip('.')}. It is signed by {found.issuer}."
        self.steps["tls"] = replace(step, cause=cause, remedy=remedy)
        self.steps["certificate"] = Step("certificate", False, 0.0, found.described(self._now), code, required=False)

    # --- after the login ----------------------------------------------------------------------------------------------

    async def _noop(self, connection: Connection) -> None:
        reply = await connection.command(Command.NOOP, b"NOOP\r\n")
        if reply.severity == 2:
            self._add("noop", _words(reply))
        else:
            self._fail("noop", _words(reply), "noop_refused", NO_CAUSE, judge(Phase.MAIL, reply).remedy)

    async def _send_as(self, connection: Connection) -> None:
        address, chosen = send_as_address(self.account)
        if address is None:
            self._add("send_as", "skipped: the account names no address that could be asked about", required=False)
            return
        if not address.isascii() and not connection.capabilities.smtputf8:
            cost, remedy = EXTENSIONS["SMTPUTF8"]
            self._fail("send_as", f"{address} needs SMTPUTF8", "smtputf8_missing", cost, remedy, required=chosen)
            return
        more = "" if address.isascii() else " SMTPUTF8"
        reply = await connection.command(Command.MAIL, f"MAIL FROM:<{address}>{more}\r\n".encode())
        if reply.severity == 2:
            late = any(self.account.host.lower().endswith(name) for name in _LATE_JUDGES)
            note = "; this provider looks at the sender only when a mail is sent" if late else ""
            self._add("send_as", f"{address} is taken: {_words(reply)}{note}", required=chosen)
            # its own kind of command is answered to transactions only
            await connection.command(Command.NOOP, b"RSET\r\n")
            return
        ruling = judge(Phase.MAIL, reply, sender=address, own=compiled(self.account.reply_rules))
        cause = {
            Blame.SENDER: f"The server does not let this account send as {address}.",
            Blame.TRANSIENT: "The server takes no mail at the moment.",
        }.get(ruling.blame, NO_CAUSE)
        required = chosen or ruling.blame is Blame.ACCOUNT
        self._fail("send_as", f"{address}: {_words(reply)}", ruling.code, cause, ruling.remedy, required=required)

    # --- the steps ----------------------------------------------------------------------------------------------------

    def asking(self, name: str) -> None:
        """A token or a secret is asked for."""
        self._asked = name

    def got(self, name: str) -> None:
        """It was had."""
        self._asked = None
        if name == "secret":
            self._add(name, self.account.password_from or "")
            return
        outside = outside_of(self.account.oauth)
        places = ", ".join(f"{REFERENCES[secret]} {reference}" for secret, reference in outside.items())
        self._add(name, f"an access token is there{' by ' if places else ''}{places}")

    def _add(self, name: str, detail: str, *, required: bool = True) -> None:
        self.steps[name] = Step(name, True, self._took(), detail, required=required)

    def _note(self, name: str, detail: str, code: str, cause: str, remedy: str) -> None:
        """Something that costs no mail."""
        self.steps[name] = Step(name, False, 0.0, detail, code, cause, remedy, required=False)

    def _fail(self, name: str, detail: str, code: str, cause: str, remedy: str, *, required: bool = True) -> None:
        self.steps[name] = Step(name, False, self._took(), detail, code, cause, in_a_check(remedy), required)

    def _took(self) -> float:
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        return seconds

    def _next(self) -> str:
        """The step that is under way."""
        order = ["dns", "port", "banner", "ehlo", "extensions", "login", "noop", "send_as"]
        if self.account.security is not Security.NONE:
            order.insert(2 if self.account.security is Security.TLS else 4, "tls")
        return next((name for name in order if name not in self.steps), "send_as")


class _Watched:
    """Tokens or a password from outside as a step of their own."""

    def __init__(self, trial: _Trial, name: str, inner: AccessTokens) -> None:
        self._trial = trial
        self._name = name
        self._inner = inner

    async def __call__(self) -> str:
        self._trial.asking(self._name)
        given = await self._inner()
        self._trial.got(self._name)
        return given

    async def refused(self, token: str) -> bool:
        return await self._inner.refused(token)

    def accepted(self, token: str) -> None:
        self._inner.accepted(token)


def send_as_address(account: Account) -> tuple[str | None, bool]:
    """The address that the account would send as, and whether somebody chose it (not: it is but the username)."""
    chosen = [account.from_address, *account.senders]
    for address, is_chosen in (*((a, True) for a in chosen), (account.username, False)):
        if address is None or address.startswith("@"):
            continue
        with contextlib.suppress(AddressError, ValueError):
            mailbox = str(parse_mailbox(address))
            check_mailbox(mailbox)
            return mailbox, is_chosen
    return None, False


async def _unverified(target: Target) -> bytes | None:
    """The certificate of a server whose certificate was not taken. Nothing but the greeting is said to it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only looked at: no login and no mail goes over this connection
    bare = replace(target, auth=AuthMethod.NONE, username=None, password=None, token=None, secret=None)
    connection = await dial(bare, context, lambda _: None)
    try:
        return connection.certificate
    finally:
        connection.abort("only its certificate was wanted")


def _words(reply: Reply) -> str:
    return f"{reply.code} {reply.text[:MAX_WORDS]}".rstrip()


def _addresses(host: str, found: str) -> str:
    """What the name leads to."""
    if address_of(host) is not None:
        return f"{host} is an address, no name"
    addresses = found.split(", ")
    v6 = sum(":" in address for address in addresses)
    counts = [f"{count} {kind}" for count, kind in ((len(addresses) - v6, "IPv4"), (v6, "IPv6")) if count]
    return f"{found} ({', '.join(counts)})"
