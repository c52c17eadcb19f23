"""Tries that answer with what they found instead of raising."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, make_msgid

from core.domain.account import Account, Directory
from core.domain.address import AddressError, parse_mailbox
from core.domain.blame import judge
from core.domain.clock import Clock
from core.domain.envelope import Recipient
from core.domain.outcome import AccountFault, Attempt, Outcome, RecipientOutcome
from core.domain.reply import Reply
from core.domain.reply_rules import compiled
from core.errors import FieldError, InvalidSettings, RelayError
from core.runtime.audit import Audit
from core.runtime.outlets import Outlets
from core.runtime.secret_sources import SecretSources
from core.runtime.tokens import Tokens
from core.runtime.views import Actor, CheckStepView, CheckView, TestMessageView
from core.spool.directory import DirectorySpool
from core.transport.base import AccountUnavailable
from core.transport.check import check
from core.transport.smtp import OutgoingMail


@dataclass(frozen=True, slots=True)
class Checks:
    """See the module's text."""

    outlets: Outlets
    audit: Audit
    clock: Clock
    host_name: str
    allow_private_targets: bool = True
    tokens: Tokens | None = None
    outside: SecretSources | None = None
    sent: Callable[[Attempt], Awaitable[None]] | None = None  # told of test messages: they count for the limits too

    async def account(self, account: Account) -> CheckView:
        """Every step of core/transport/check.py with these settings, saved or not."""
        token = None if self.tokens is None else self.tokens.source(account)
        steps = tuple(
            CheckStepView(
                step.name,
                step.ok,
                round(step.seconds, 4),
                step.detail,
                step.cause,
                step.remedy,
                step.required,
                step.code,
            )
            for step in await check(
                account,
                token,
                secret=None if self.outside is None else self.outside.password_of(account),
                allow_private=self.allow_private_targets,
                now=self.clock.now(),
            )
        )
        return CheckView(all(step.ok for step in steps if step.required), steps)

    async def directory(self, directory: Directory) -> CheckView:
        """The tries of spool.md "Permissions" in this directory, saved or not."""
        began = time.perf_counter()

        def tries() -> list[CheckStepView]:
            spool = DirectorySpool(directory, clock=self.clock)
            try:
                found = spool.check()
            except RelayError as error:
                return [CheckStepView("open", False, 0.0, error.detail, "", error.remedy, code=error.code)]
            finally:
                spool.close()
            took = (time.perf_counter() - began) / max(len(found), 1)
            return [CheckStepView(s.name, s.ok, round(took, 4), s.detail, "", s.remedy, s.required) for s in found]

        steps = tuple(await asyncio.to_thread(tries))
        return CheckView(all(step.ok for step in steps if step.required), steps)

    async def test_message(self, account: str, to: str, actor: Actor) -> TestMessageView:
        """One small mail through a saved account, now: its limits hold back mail of directories, not a person who asks.

        Raises NotFound, InvalidSettings /to.
        """
        settings = self.outlets.account(account)
        try:
            recipient = str(parse_mailbox(to))
        except AddressError as error:
            raise InvalidSettings([FieldError("/to", "invalid_address", str(error))]) from None
        sender = settings.from_address or (
            settings.username if settings.username and "@" in settings.username else f"mpu@{self.host_name}"
        )
        await self.audit.record(actor, "account.test_message", account, {"to": recipient})
        message_id = make_msgid(domain=self.host_name)
        began = time.perf_counter()
        outcome, server, tls, fault = await self._send(settings, sender, recipient, message_id)
        quota = self.outlets.quotas.get(account)  # it has counted by now
        spent_until = None if quota is None else quota.spent_until()
        remedy = fault.remedy if fault is not None else ""
        if fault is None and outcome.outcome is not Outcome.SENT and outcome.code is not None:
            said, own = Reply(outcome.code, (outcome.text,)), compiled(settings.reply_rules)
            remedy = judge(outcome.phase, said, sender=sender, recipients=[recipient], own=own).remedy
        return TestMessageView(
            ok=outcome.outcome is Outcome.SENT,
            status=outcome.outcome,
            account=account,
            server=server,
            tls=tls,
            phase=outcome.phase,
            code=outcome.code,
            enhanced_code=outcome.enhanced_code,
            text=outcome.text,
            seconds=round(time.perf_counter() - began, 4),
            internet_message_id=message_id,
            remedy=remedy,
            over_quota_until=spent_until,
        )

    async def _send(
        self, account: Account, sender: str, recipient: str, message_id: str
    ) -> tuple[RecipientOutcome, str, str | None, AccountFault | None]:
        date = format_datetime(datetime.fromtimestamp(int(self.clock.now()), UTC))
        lines = (
            f"From: {sender}",
            f"To: {recipient}",
            "Subject: Test message of the Mail Processing Unit",
            f"Date: {date}",
            f"Message-ID: {message_id}",
            "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=us-ascii",
            "",
            f"This is a test of the account {account.name}. It works.",
            "",
        )
        mail = OutgoingMail(sender, [Recipient(recipient)], _Text("\r\n".join(lines).encode()))
        transport = self.outlets.transport(account.name)
        try:
            turn = await transport.turn()
        except AccountUnavailable as error:
            fault = error.fault
            code = fault.reply.code if fault.reply is not None else None
            enhanced = fault.reply.enhanced_code if fault.reply is not None else None
            outcome = RecipientOutcome(recipient, Outcome.DEFERRED, fault.phase, None, code, enhanced, fault.detail)
            return outcome, f"{account.host}:{account.port}", None, fault
        try:
            attempt = await turn.send(mail, _NoJournal(), self.clock.now())
        finally:
            turn.release()
        if self.sent is not None and attempt.taken:
            await self.sent(attempt)
        return attempt.outcomes[0], attempt.server, attempt.tls, attempt.fault


class _Text:
    """A small text as content and body (transport/base.py)."""

    header_utf8 = False
    dotless = False

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.eight_bit = not data.isascii()
        self.size = len(data)

    def body(self, *, eight_bit_allowed: bool, smtputf8_allowed: bool) -> _Text:
        """As it is."""
        del eight_bit_allowed, smtputf8_allowed
        return self

    def chunks(self) -> Iterator[bytes]:
        """In one."""
        yield self._data


class _NoJournal:
    """There is no file whose fate depends on it."""

    def begin(self, recipients: Sequence[str]) -> None:
        """Nothing to log."""

    def outcome(self, outcomes: Sequence[RecipientOutcome]) -> None:
        """Nothing to log."""
