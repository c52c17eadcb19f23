"""What the transport makes of the client's results where a verdict is missing: unknown, or moved on."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from core.domain.account import Account, AuthMethod, ReplyRule, Security
from core.domain.blame import Ruling, judge
from core.domain.clock import Clock
from core.domain.outcome import Attempt, Blame, Outcome, RecipientOutcome
from core.domain.reply import Phase, Reply
from core.transport.base import Body
from core.transport.smtp import SmtpTransport
from tests.support.smtp_mail import MAIL, Octets, To
from tests.support.smtp_server import DEFAULT_EXTENSIONS, Close, Script, Session, SmtpServer

CHUNKING = (*DEFAULT_EXTENSIONS, "CHUNKING")


class Stopped:
    def now(self) -> float:
        return 1_000_000.0

    def monotonic(self) -> float:
        return 0.0


class Notes:
    def __init__(self) -> None:
        self.begun: list[list[str]] = []
        self.outcomes: list[RecipientOutcome] = []

    def begin(self, recipients: Sequence[str]) -> None:
        self.begun.append(list(recipients))

    def outcome(self, outcomes: Sequence[RecipientOutcome]) -> None:
        self.outcomes.extend(outcomes)


@dataclasses.dataclass
class Plain:
    size: int = len(MAIL)
    eight_bit: bool = False
    header_utf8: bool = False

    def body(self, *, eight_bit_allowed: bool, smtputf8_allowed: bool) -> Body:
        return Octets(MAIL)


@dataclasses.dataclass
class Mail:
    sender: str = "a@x.org"
    recipients: Any = (To("b@x.org"),)
    content: Any = dataclasses.field(default_factory=Plain)
    ret: str | None = None
    envid: str | None = None


def transport_to(server: SmtpServer, **options: Any) -> SmtpTransport:
    clock: Clock = Stopped()
    account = Account("out", "127.0.0.1", server.port, Security.NONE, AuthMethod.NONE, **options)
    return SmtpTransport(account, clock=clock)


async def send(transport: SmtpTransport, notes: Notes) -> Attempt:
    turn = await transport.turn()
    return await turn.send(Mail(), notes, 1.0)


@pytest.mark.parametrize("extensions", [DEFAULT_EXTENSIONS, CHUNKING])
@pytest.mark.parametrize("dot", [Close(take=True), Close("421 4.3.2 closing", take=True)])
async def test_no_verdict_after_the_dot_is_unknown(extensions: tuple[str, ...], dot: Close) -> None:
    async with SmtpServer(Script(extensions=extensions, dot=dot)) as server:
        notes = Notes()
        transport = transport_to(server)
        attempt = await send(transport, notes)
        assert [outcome.outcome for outcome in attempt.outcomes] == [Outcome.UNKNOWN]
        assert notes.outcomes == list(attempt.outcomes)
        assert len(server.messages) == 1, "it did take it"
        transport.abort()


async def test_chunked_content_whose_envelope_was_not_answered_is_unknown() -> None:
    async with SmtpServer(Script(extensions=CHUNKING, mail={"*": Close()})) as server:
        transport = transport_to(server)
        notes = Notes()
        attempt = await send(transport, notes)
        assert notes.begun == [["b@x.org"]]
        assert [outcome.outcome for outcome in attempt.outcomes] == [Outcome.UNKNOWN]
        transport.abort()


async def test_a_server_that_hangs_up_at_each_second_message_gets_its_mail_all_the_same() -> None:
    """Who stands behind a dot finds the connection dead, perhaps several times: moved on, deferred in the end."""

    def second_closes(session: Session, _: str) -> str | Close:
        return "250 2.1.0 ok" if sum(line.startswith("MAIL") for line in session.commands) == 1 else Close()

    async with SmtpServer(Script(mail={"*": second_closes})) as server:
        transport = transport_to(server, max_connections=1)
        notes = [Notes() for _ in range(12)]
        attempts = await asyncio.gather(*(send(transport, note) for note in notes))
        outcomes = [attempt.outcomes[0].outcome for attempt in attempts]
        assert set(outcomes) <= {Outcome.SENT, Outcome.DEFERRED}
        assert outcomes.count(Outcome.SENT) == len(server.messages) >= 4
        assert all(len(note.outcomes) == 1 for note in notes), "each is told once"
        transport.abort()


@pytest.mark.parametrize(
    ("script", "looks"),
    [
        (Script(dot="550 5.7.1 no"), 1),
        (Script(data="550 5.7.1 no"), 1),
        (Script(mail={"*": "550 5.7.1 no"}), 1),
        (Script(rcpt={"*": "550 5.7.1 no"}), 1),
        (Script(rcpt={"r7@x.org": "551 5.7.1 no", "*": "550 5.7.1 no"}), 3),
        (Script(rcpt={f"r{number}@x.org": f"550 5.7.1 no {number}" for number in range(50)}), 50),
    ],
    ids=["dot", "data", "mail", "rcpt", "another in between", "each its own"],
)
async def test_words_are_judged_once_not_for_each_recipient(
    script: Script, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account's own patterns may be slow, and the loop waits for them."""
    judged: list[Reply] = []

    def counted(phase: Phase, reply: Reply, **more: Any) -> Ruling:
        judged.append(reply)
        return judge(phase, reply, **more)

    monkeypatch.setattr("core.transport.smtp.judge", counted)
    async with SmtpServer(script) as server:
        transport = transport_to(server, reply_rules=(ReplyRule(Blame.TRANSIENT, code="551"),))
        turn = await transport.turn()
        mail = Mail(recipients=tuple(To(f"r{number}@x.org") for number in range(50)))
        attempt = await turn.send(mail, Notes(), 1.0)
        transport.abort()
    assert len(judged) == looks
    outcomes = {outcome.recipient: outcome for outcome in attempt.outcomes}
    assert len(outcomes) == 50
    for mailbox, outcome in outcomes.items():
        other = looks == 3 and mailbox == "r7@x.org"
        assert outcome.outcome is (Outcome.DEFERRED if other else Outcome.FAILED)
        assert (outcome.blame is Blame.TRANSIENT) is other
