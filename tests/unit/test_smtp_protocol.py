"""The state machine: octets fed, events and octets to send asserted. No socket."""

from __future__ import annotations

from typing import Any

import pytest

from core.domain.reply import Phase
from core.smtp.dialogue import Capabilities, FailureKind, Transaction
from core.smtp.errors import InjectedOctets
from core.smtp.events import Answered, Command, Event, GoAhead, Settled
from core.smtp.exchange import TABLE, Exchange, Happening, Step
from core.smtp.protocol import SmtpProtocol, State
from tests.support.smtp_mail import Octets, To

PIPELINING = Capabilities(pipelining=True)
CHUNKING = Capabilities(pipelining=True, chunking=True)
PLAIN = Capabilities()


class Wired(SmtpProtocol):
    """All that is written leaves before the next octets come."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[bytes] = []

    def receive(self, data: bytes) -> list[Event]:
        self.left += map(bytes, self.take_output())
        return super().receive(data)


def ready(capabilities: Capabilities) -> Wired:
    protocol = Wired()
    protocol.receive(b"220 mx\r\n")
    protocol.capabilities = capabilities
    protocol.open()
    return protocol


def begin(protocol: Wired, *to: str, sender: str = "a@b.c", kept: bool = True, at_once: bool = False) -> Exchange:
    transaction = Transaction(sender=sender, recipients=[To(name) for name in to or ("d@e.f",)], body=Octets(b"x\r\n"))
    chunked = protocol.chunks_many
    exchange = protocol.begin(transaction, protocol.envelope(transaction), chunked=chunked, at_once=at_once, kept=kept)
    if at_once:
        protocol.end(exchange, b"x\r\n")
    return exchange


def sent(protocol: Wired) -> list[str]:
    """What was written since, by lines."""
    octets, protocol.left = b"".join([*protocol.left, *protocol.take_output()]), []
    return octets.decode().split("\r\n")[:-1]


def kinds(events: list[Event]) -> list[type]:
    return [type(event) for event in events]


def test_a_pipelined_transaction() -> None:
    protocol = ready(PIPELINING)
    exchange = begin(protocol, "d@e.f", "g@h.i")
    assert sent(protocol) == ["MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "RCPT TO:<g@h.i>", "DATA"]
    assert protocol.receive(b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n") == []
    assert kinds(protocol.receive(b"354 go\r\n")) == [GoAhead]
    with pytest.raises(RuntimeError):
        begin(protocol)  # nothing goes between the 354 and the dot
    assert exchange.accepted_mailboxes == ["d@e.f"]
    protocol.content(exchange, b".a\r\n")
    protocol.end(exchange, b"b\r\n")
    assert sent(protocol) == ["..a", "b", "."]
    assert protocol.may_begin, "the next envelope goes behind the dot"
    behind = begin(protocol)
    assert sent(protocol) == ["MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA"]
    assert protocol.receive(b"250 taken\r\n") == [Settled(exchange)]
    result = exchange.result
    assert [reply and reply.code for reply in result.rcpt_replies] == [250, 550]
    assert result.final_reply is not None
    assert result.failure is None
    assert protocol.receive(b"250 ok\r\n250 ok\r\n354 go\r\n") == [GoAhead(behind)]


def test_without_pipelining_one_command_at_a_time() -> None:
    protocol = ready(PLAIN)
    exchange = begin(protocol, "d@e.f", "g@h.i")
    for reply, line in [
        (b"", "MAIL FROM:<a@b.c>"),
        (b"250 ok\r\n", "RCPT TO:<d@e.f>"),
        (b"450 later\r\n", "RCPT TO:<g@h.i>"),
        (b"250 ok\r\n", "DATA"),
    ]:
        assert protocol.receive(reply) == []
        assert sent(protocol) == [line]
    assert protocol.receive(b"354 go\r\n") == [GoAhead(exchange)]
    protocol.end(exchange, b"x\r\n")
    assert not protocol.may_begin, "nothing goes behind the dot"
    assert protocol.receive(b"250 ok\r\n") == [Settled(exchange)]
    assert protocol.may_begin


@pytest.mark.parametrize(
    ("replies", "written", "data_code"),
    [
        ("250 ok|550 no|450 later|503 no recipients", ["RSET"], None),
        ("250 ok|550 no|450 later|354 go", ["."], None),
        ("550 no|503 x|503 x|503 x", [], None),
        ("550 no|503 x|503 x|354 go", ["."], None),
        ("250 ok|250 ok|450 later|451 not now", ["RSET"], 451),
    ],
)
def test_a_refused_envelope_leaves_no_open_transaction(replies: str, written: list[str], data_code: int | None) -> None:
    protocol = ready(PIPELINING)
    exchange = begin(protocol, "d@e.f", "g@h.i")
    sent(protocol)
    lines = [line.encode() + b"\r\n" for line in replies.split("|")]
    events = [event for line in lines for event in protocol.receive(line)]
    assert events == [Settled(exchange)], "no content is asked for"
    assert sent(protocol) == written
    assert not exchange.result.dot_sent
    assert exchange.result.failure is None
    assert (exchange.result.data_reply and exchange.result.data_reply.code) == data_code
    assert protocol.may_begin
    protocol.receive(
        b"554 whatever the lone dot is told\r\n" if written == ["."] else b"250 ok\r\n" if written else b""
    )
    assert protocol.state is State.READY


@pytest.mark.parametrize(
    ("replies", "last"),
    [(["550 no"], []), (["250 ok", "550 no"], ["RSET"]), (["250 ok", "250 ok", "554 no"], ["RSET"])],
)
def test_a_refused_envelope_without_pipelining(replies: list[str], last: list[str]) -> None:
    protocol = ready(PLAIN)
    exchange = begin(protocol)
    events: list[Event] = []
    for reply in replies:
        sent(protocol)
        events += protocol.receive(reply.encode() + b"\r\n")
    assert events == [Settled(exchange)]
    assert sent(protocol) == last


def test_nothing_is_written_behind_a_data_whose_reply_is_not_known() -> None:
    protocol = ready(PIPELINING)
    begin(protocol)
    protocol.receive(b"250 ok\r\n550 no\r\n")
    assert not protocol.may_begin


def test_chunked_messages_go_in_a_row_each_behind_an_rset() -> None:
    protocol = ready(CHUNKING)
    first, second = begin(protocol, at_once=True), begin(protocol, at_once=True, sender="s@b.c")
    assert sent(protocol) == [
        "MAIL FROM:<a@b.c>",
        "RCPT TO:<d@e.f>",
        "BDAT 3 LAST",
        "x",
        "RSET",
        "MAIL FROM:<s@b.c>",
        "RCPT TO:<d@e.f>",
        "BDAT 3 LAST",
        "x",
    ]
    events = protocol.receive(b"250 a\r\n550 no\r\n554 no recipients\r\n" + b"250 b\r\n" * 4)
    assert events == [Settled(first), Settled(second)]
    assert not first.result.dot_sent, "nobody to take it for"
    assert first.result.final_reply is None
    assert second.result.final_reply is not None
    begin(protocol, at_once=True)
    assert sent(protocol)[0] == "MAIL FROM:<a@b.c>", "the last one is over, so no RSET is needed"


def test_a_refused_chunk_stops_the_rest_and_resets() -> None:
    protocol = ready(CHUNKING)
    exchange = begin(protocol)
    assert protocol.receive(b"250 ok\r\n250 ok\r\n") == [GoAhead(exchange)]
    protocol.content(exchange, b"one")
    protocol.content(exchange, b"two")
    sent(protocol)
    assert protocol.receive(b"552 5.3.4 too big\r\n") == [Settled(exchange)]
    assert sent(protocol) == ["RSET"]
    assert exchange.result.final_reply is not None
    assert exchange.result.final_reply.code == 552
    assert not exchange.result.dot_sent
    assert protocol.receive(b"503 no\r\n250 reset\r\n") == []
    assert protocol.may_begin
    with pytest.raises(RuntimeError):
        protocol.content(exchange, b"three")


@pytest.mark.parametrize(
    ("before", "octets"),
    [
        ("idle", b"250 hello\r\n"),
        ("idle", b"garbage\r\n"),
        ("mail", b"354 what\r\n"),
        ("mail", b"250-a\r\n550 b\r\n"),
        ("mail", b"250 " + b"x" * 40_000),
        ("mail", b"\x00\r\n"),
        ("data", b"250 not 354\r\n"),
        ("data", b"334 not 354\r\n"),
        ("content", b"250 too early\r\n"),
        ("dot", b"354 again\r\n"),
    ],
)
def test_protocol_errors(before: str, octets: bytes) -> None:
    protocol = ready(PIPELINING)
    exchange = None
    if before != "idle":
        exchange = begin(protocol, kept=False)
    if before in ("data", "content", "dot"):
        protocol.receive(b"250 ok\r\n250 ok\r\n")
    if exchange is not None and before in ("content", "dot"):
        protocol.receive(b"354 go\r\n")
    if exchange is not None and before == "dot":
        protocol.end(exchange, b"x\r\n")
    events = protocol.receive(octets)
    assert protocol.closed
    assert protocol.error is not None
    if exchange is not None:
        assert events == [Settled(exchange)]
        failure = exchange.result.failure
        assert failure is not None
        assert failure.kind is FailureKind.PROTOCOL
        phases = {"mail": Phase.MAIL, "data": Phase.DATA, "content": Phase.BODY, "dot": Phase.DOT}
        assert failure.phase is phases[before]
        assert exchange.result.dot_sent is (before == "dot")
    assert protocol.receive(b"250 ok\r\n") == []


def test_a_verdict_before_a_fault_in_the_same_octets_counts() -> None:
    protocol = ready(PIPELINING)
    exchange = begin(protocol)
    protocol.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    protocol.end(exchange, b"x\r\n")
    assert protocol.receive(b"250 taken\r\n250 taken\r\n") == [Settled(exchange)]
    assert exchange.result.failure is None
    assert protocol.closed


def test_a_refusal_in_the_middle_of_the_content_is_the_verdict() -> None:
    protocol = ready(PIPELINING)
    exchange = begin(protocol)
    protocol.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    protocol.content(exchange, b"part")
    assert protocol.receive(b"552 5.3.4 too big\r\n") == [Settled(exchange)]
    result = exchange.result
    assert result.failure is None
    assert result.final_reply is not None
    assert result.final_reply.code == 552
    assert not result.dot_sent
    assert protocol.closed


@pytest.mark.parametrize("answered", ["mail", "rcpt", "data", "content", "dot"])
def test_421_closes_and_only_after_the_dot_is_unknown(answered: str) -> None:
    protocol = ready(PIPELINING)
    exchange = begin(protocol)
    steps = ["mail", "rcpt", "data", "content", "dot"]
    for reply in [b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"][: steps.index(answered)]:
        protocol.receive(reply)
    if answered == "dot":
        protocol.end(exchange, b"x\r\n")
    assert protocol.receive(b"421 4.3.2 closing\r\n") == [Settled(exchange)]
    result = exchange.result
    assert result.failure is not None
    assert result.failure.kind is FailureKind.CLOSED
    assert result.failure.reply is not None
    assert result.failure.reply.code == 421
    assert result.final_reply is None
    assert result.failure.phase.value == {"content": "body"}.get(answered, answered)
    assert result.dot_sent is (answered == "dot")
    assert not result.reused_dead
    assert protocol.closed


def test_what_stands_behind_a_421_was_not_tried() -> None:
    protocol = ready(CHUNKING)
    first, second, third = (begin(protocol, at_once=True) for _ in range(3))
    protocol.receive(b"250 ok\r\n250 ok\r\n250 taken\r\n")
    assert protocol.receive(b"250 reset\r\n421 too many messages\r\n") == [Settled(second)]
    assert not protocol.may_begin
    assert first.result.failure is None
    assert not second.result.dot_sent, "its MAIL was answered 421, so its content can't have been taken"
    assert second.result.mail_reply is not None
    assert protocol.lose(FailureKind.CLOSED, "gone") == [Settled(third)]
    assert not third.result.dot_sent
    assert third.result.reused_dead


def test_a_server_that_says_421_and_goes_on_is_listened_to() -> None:
    protocol = ready(CHUNKING)
    first, second, third = (begin(protocol, "d@e.f", "g@h.i", at_once=True) for _ in range(3))
    assert protocol.receive(b"250 ok\r\n250 ok\r\n421 too many\r\n") == []
    assert protocol.receive(b"250 taken\r\n") == [Settled(first)]
    assert first.result.failure is None
    assert first.accepted_mailboxes == ["d@e.f"]
    assert protocol.receive(b"250 reset\r\n250 ok\r\n250 ok\r\n250 ok\r\n250 taken\r\n") == [Settled(second)]
    assert protocol.lose(FailureKind.CLOSED, "gone") == [Settled(third)]
    assert third.result.dot_sent, "it went on, so it may have taken this one too"


@pytest.mark.parametrize(
    ("replies", "at_once", "phase", "unknown", "reused_dead"),
    [
        (b"", False, Phase.MAIL, False, True),
        (b"250 ok\r\n", False, Phase.RCPT, False, False),
        (b"250 ok\r\n250 ok\r\n", False, Phase.BODY, False, False),
        (b"", True, Phase.DOT, True, False),
        (b"250 ok\r\n250 ok\r\n", True, Phase.DOT, True, False),
    ],
)
def test_a_lost_connection(replies: bytes, at_once: bool, phase: Phase, unknown: bool, reused_dead: bool) -> None:
    protocol = ready(CHUNKING)
    exchange = begin(protocol, at_once=at_once)
    protocol.receive(replies)
    assert protocol.lose(FailureKind.CLOSED, "gone") == [Settled(exchange)]
    assert exchange.result.failure is not None
    assert exchange.result.failure.phase is phase
    assert exchange.result.dot_sent is unknown
    assert exchange.result.reused_dead is reused_dead


@pytest.mark.parametrize("refusal", [b"550 no\r\n", b"250 ok\r\n550 no\r\n"])
def test_refused_at_once_and_lost_is_refused_not_unknown(refusal: bytes) -> None:
    protocol = ready(CHUNKING)
    exchange = begin(protocol, at_once=True)
    assert protocol.receive(refusal) == [Settled(exchange)]
    assert protocol.lose(FailureKind.CLOSED, "gone") == []
    assert exchange.result.failure is None
    assert not exchange.result.dot_sent


@pytest.mark.parametrize("octets", [b"220 go\r\n250 injected\r\n", b"220 go\r\n25", b"220 go\r\n|250 later\r\n"])
def test_octets_behind_starttls_are_an_injection(octets: bytes) -> None:
    protocol = Wired()
    protocol.receive(b"220 mx\r\n")
    protocol.command(Command.STARTTLS, b"STARTTLS\r\n")
    for part in octets.split(b"|"):
        protocol.receive(part)
    assert isinstance(protocol.error, InjectedOctets)
    assert protocol.closed


def test_what_was_said_in_clear_is_forgotten() -> None:
    protocol = Wired()
    assert kinds(protocol.receive(b"220 mx\r\n")) == [Answered]
    protocol.capabilities = CHUNKING
    protocol.command(Command.STARTTLS, b"STARTTLS\r\n")
    protocol.receive(b"220 go\r\n")
    protocol.tls_done()
    assert not protocol.capabilities.pipelining


def _misuse(protocol: Wired, what: str) -> Any:
    match what:
        case "begin in COMMANDS":
            protocol.state = State.COMMANDS
            return begin(protocol)
        case "begin twice":
            begin(protocol)
            return begin(protocol)
        case "content unasked":
            return protocol.content(begin(protocol), b"x")
        case "end unasked":
            return protocol.end(begin(protocol), b"x")
        case "command in the midst":
            begin(protocol)
            return protocol.command(Command.NOOP, b"NOOP\r\n")
        case _:
            return protocol.open()


@pytest.mark.parametrize(
    "what", ["begin in COMMANDS", "begin twice", "content unasked", "end unasked", "command in the midst", "open twice"]
)
def test_misuse_raises(what: str) -> None:
    with pytest.raises(RuntimeError):
        _misuse(ready(PIPELINING), what)


def test_the_table_ends_only_in_over() -> None:
    assert TABLE[Step.OVER] == {}
    assert all(moves[Happening.LOST] is Step.OVER for step, moves in TABLE.items() if step is not Step.OVER)


def test_a_reply_before_its_command_has_left_was_not_asked_for() -> None:
    """DATA is refused twice: the second must not pass for the reply to the RSET that is about to leave."""
    protocol = ready(PLAIN)
    exchange = begin(protocol)
    for _ in range(2):
        protocol.receive(b"250 ok\r\n")
    assert protocol.receive(b"451 later\r\n250 and more\r\n") == [Settled(exchange)]
    assert protocol.closed
    assert exchange.result.data_reply is not None
    assert exchange.result.failure is None


def test_a_refusal_before_the_dot_has_left_is_the_verdict_and_a_success_is_none() -> None:
    for reply, dot_sent in ((b"554 spam\r\n", True), (b"250 taken\r\n", True)):
        protocol = ready(PLAIN)
        exchange = begin(protocol)
        for answer in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            protocol.receive(answer)
        protocol.end(exchange, b"x\r\n")
        assert SmtpProtocol.receive(protocol, reply) == [Settled(exchange)]
        final = exchange.result.final_reply
        assert (final.code if final else None) == (554 if reply.startswith(b"554") else None)
        assert exchange.result.dot_sent is dot_sent


@pytest.mark.parametrize("capabilities", [PLAIN, PIPELINING])
@pytest.mark.parametrize("begun", [b"2", b"250 2.0.0 early", b"250-2.0.0 one\r\n250", b"354"])
def test_a_reply_begun_before_the_dot_is_never_its_verdict(capabilities: Capabilities, begun: bytes) -> None:
    protocol = ready(capabilities)
    exchange = begin(protocol)
    for reply in (b"250 ok\r\n", b"250 ok\r\n"):
        protocol.receive(reply)
    (settled,) = [e for e in protocol.receive(b"354 go\r\n" + begun) if isinstance(e, Settled)]
    assert settled.exchange is exchange
    failure = exchange.result.failure
    assert failure is not None
    assert failure.kind is FailureKind.PROTOCOL
    assert not exchange.result.dot_sent
    assert protocol.closed


def test_half_a_refusal_in_the_middle_of_the_content_is_waited_for() -> None:
    protocol = ready(PIPELINING)
    exchange = begin(protocol)
    protocol.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    protocol.content(exchange, b"x\r\n")
    assert protocol.receive(b"452 4.3.") == []
    assert not protocol.closed
    assert kinds(protocol.receive(b"1 full\r\n")) == [Settled]
    assert exchange.result.final_reply is not None
    assert exchange.result.final_reply.code == 452


def test_nothing_begins_behind_half_a_reply_that_nobody_asked_for() -> None:
    protocol = ready(PIPELINING)
    protocol.receive(b"42")
    assert not protocol.may_begin
    protocol.receive(b"1 idle for too long\r\n")
    assert protocol.closed
    assert protocol.goodbye is not None


def test_half_a_reply_is_a_word_of_a_server_that_said_421_and_went_on() -> None:
    """It acted on what stood behind, as far as anybody can tell: unknown, not untried."""
    protocol = ready(CHUNKING)
    exchanges = [begin(protocol, at_once=True) for _ in range(2)]
    protocol.receive(b"250 ok\r\n250 ok\r\n421 4.7.0 busy\r\n")
    protocol.receive(b"25")
    protocol.lose(FailureKind.CLOSED, "gone")
    assert [exchange.result.dot_sent for exchange in exchanges] == [True, True]
