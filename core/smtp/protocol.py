"""The client's side of SMTP as a state machine without I/O: octets in, events out; octets to send gather in `output`.

Rules
- The server speaks in replies only, and each reply answers the oldest command not yet answered (RFC 5321 section
  4.2, RFC 2920 section 3.1). So commands go into a queue as they are written, and a reply takes its head, once that
  has left. A reply that nobody asked for, one whose first digit does not fit its command, and what is no reply at all
  are protocol errors: the connection is of no use any more, and nothing is ever paired with a later command. That
  counts for a reply of which only the beginning is there, too: what will end as 2xx or 3xx and began before anything
  was asked is an error at once; what may be a refusal (421, or of the content) is waited for before the next MAIL.
- 421 answers any command by closing (section 3.8). In answer to a final dot it leaves the message unknown. What was
  written behind the command that it answers is not acted upon: if the connection then ends without another reply, the
  transactions behind were not tried, even if their content was written. Some servers say 421 and go on: so where
  content is out, the replies that still come are read and count. Nothing more is written.
- The session: banner, then one command at a time (EHLO, STARTTLS, AUTH) until `open`, then transactions.
      BANNER -> COMMANDS -> READY -> LEAVING        COMMANDS -> TLS -> COMMANDS        any -> CLOSED
  In TLS (the 220 to STARTTLS is in, the handshake is not done) no octet may come: it could be injected (RFC 3207).
- A transaction: see exchange.py. Without PIPELINING one command at a time. With it MAIL, RCPT and DATA go together, and
  the next envelope goes behind the final dot. With CHUNKING too, a small message goes whole, several in a row.
- RFC 2920 section 3.1 allows the envelope behind the dot, but some servers (Haraka) answer it 503, against smuggling.
  503 says nothing of the message: it counts as not tried, the connection is given up, `alone_only` is remembered.
- Nothing is written behind a DATA whose reply is not known, and nothing but content behind a 354.
- All recipients refused: DATA was refused too: RSET. DATA was answered 354: a lone dot, whose reply is ignored.
- A chunked transaction that is not known to be over when the next begins is put to an end by RSET: if all its
  recipients were refused it would still be open, and the next mail would go out under its sender.
- A 4xx or 5xx in the middle of the content is the verdict, and the end of the connection, since DATA can't be left.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

from core.domain.content import Octets
from core.domain.reply import Reply
from core.smtp.commands import mail_line, rcpt_line
from core.smtp.dialogue import Capabilities, FailureKind, Transaction
from core.smtp.errors import InjectedOctets, ProtocolError
from core.smtp.events import FITTING, Answered, Command, Event, Expected, GoAhead, Settled
from core.smtp.exchange import Exchange, Happening, Step
from core.smtp.reply_parser import ReplyParser
from core.smtp.stuffing import DotStuffer


class State(StrEnum):
    """Where the session is."""

    BANNER = "banner"
    COMMANDS = "commands"
    TLS = "tls"
    READY = "ready"
    LEAVING = "leaving"  # QUIT is written
    CLOSED = "closed"


# with every message (core/domain)
_TLS, _READY, _CLOSED = State.TLS, State.READY, State.CLOSED
_QUIT, _RCPT, _MAIL, _DATA, _LAST = Command.QUIT, Command.RCPT, Command.MAIL, Command.DATA, Command.LAST
_GO_AHEAD, _LAST_WRITTEN, _ANSWERED = Happening.GO_AHEAD, Happening.LAST_WRITTEN, Happening.ANSWERED
_ENVELOPE, _CONTENT = Step.ENVELOPE, Step.CONTENT


class SmtpProtocol:
    """One connection's conversation. Raises ValueError for what must not be sent, RuntimeError for misuse."""

    def __init__(self) -> None:
        self.state = State.BANNER
        self.capabilities = Capabilities()
        self.output: list[Octets] = []
        self.error: ProtocolError | None = None  # why the state is CLOSED, where the server broke the protocol
        self.goodbye: Reply | None = None  # the 421 that closed
        self._answers_at_goodbye = 0
        self.begun = 0  # transactions
        self.answers = 0  # replies that were paired with a command
        self._written = self._left = 1  # commands in all, and of them those that left; the banner counts as one
        self._parser = ReplyParser()
        self._expected: deque[Expected] = deque([(Command.BANNER, None, 0)])
        self._open: deque[Exchange] = deque()  # begun and not settled; they settle in this order
        self._current: Exchange | None = None  # the one that still has something to write
        self._last: Exchange | None = None
        self.alone_only = False  # the server refuses what comes behind a final dot
        self._clean = True  # the server surely has no transaction open when the next MAIL comes
        self._stuffer = DotStuffer()

    # --- octets in ----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """Take octets from the server."""
        events: list[Event] = []
        if self.state is _CLOSED:
            return events
        if self.state is _TLS:
            return self._break(InjectedOctets("the server sent octets between its 220 to STARTTLS and the handshake"))
        replies = self._parser.feed(data)
        error = self._parser.error
        try:
            for reply in replies:
                self._take(reply, events)
                if self.state is _CLOSED:
                    return events
        except ProtocolError as fault:
            error = fault
        if error is None and self._injected:
            error = InjectedOctets("the server sent octets behind its 220 to STARTTLS")
        if error is None and self.unasked_part and self._parser.partial_digit not in (b"4", b"5"):
            error = ProtocolError("the server began a reply that nobody asked for")
        if error is not None:
            events += self._break(error)
        elif self.goodbye is not None and not self.closed and not any(ex.result.dot_sent for ex in self._open):
            events += self.lose(FailureKind.CLOSED, "the server closed the connection (421)")
        return events

    @property
    def closed(self) -> bool:
        return self.state is _CLOSED

    @property
    def unasked_part(self) -> bool:
        """A reply has begun, and all that left is answered."""
        return self.answers >= self._left and self._parser.has_partial

    @property
    def _injected(self) -> bool:
        return self.state is _TLS and self._parser.has_partial

    def lose(self, kind: FailureKind, detail: str) -> list[Event]:
        """The connection is lost, or given up: no exchange gets a verdict any more."""
        self.state = State.CLOSED
        not_a_word = self.answers == self._answers_at_goodbye and not self._parser.has_partial
        if kind is FailureKind.CLOSED and self.goodbye is not None and not_a_word:
            for exchange in self._open:
                exchange.result.dot_sent = False  # 421, and not another word: it acted on nothing behind it
        self._expected.clear()
        self._current = None
        events: list[Event] = []
        while self._open:
            exchange = self._open.popleft()
            exchange.lose(kind, detail)  # a 421 is the answer to one exchange, which had it
            events.append(Settled(exchange))
        return events

    def _break(self, error: ProtocolError) -> list[Event]:
        self.error = error
        return self.lose(FailureKind.PROTOCOL, str(error))

    def _take(self, reply: Reply, events: list[Event]) -> None:
        """Pair one reply with its command."""
        expected = self._expected
        if self.state is _TLS:
            raise InjectedOctets("the server sent a reply behind its 220 to STARTTLS")
        if not expected or (self.answers >= self._left and self._too_early(reply)):
            self._unasked(reply, events)
            return
        command, exchange, index = expected.popleft()
        self.answers += 1
        if reply.code == 421 and command is not _QUIT:
            self._closing(command, exchange, index, reply, events)
            return
        if reply.severity not in FITTING[command] and command is not _QUIT:
            raise ProtocolError(f"the server answered {reply.code} to {command.value}")
        if exchange is None:
            self._session_answer(command, reply, events)
        elif command is _RCPT:
            self._rcpt_answer(exchange, index, reply, events)
        elif command is _MAIL:
            self._mail_answer(exchange, reply, events)
        elif command is _DATA:
            self._data_answer(exchange, reply, events)
        elif command is _LAST:
            self._last_answer(exchange, reply, events)
        elif command is Command.BDAT:
            self._bdat_answer(exchange, reply, events)

    def _too_early(self, reply: Reply) -> bool:
        """The oldest command not answered has not left yet. A refusal of the content counts even before its end."""
        return self._expected[0][0] is not Command.LAST or reply.severity not in (4, 5)

    def _unasked(self, reply: Reply, events: list[Event]) -> None:
        exchange = self._current
        if exchange is not None and exchange.step is Step.CONTENT and reply.severity in (4, 5):
            if reply.code == 421:
                self.goodbye = reply
                exchange.lose(FailureKind.CLOSED, "the server closed in the middle of the content", reply)
            else:
                exchange.result.final_reply = reply
                exchange.move(Happening.ANSWERED)
            self._open.popleft()
            events.append(Settled(exchange))
            events += self.lose(FailureKind.CLOSED, "the connection was given up")
        elif reply.code == 421:
            self.goodbye = reply
            events += self.lose(FailureKind.CLOSED, "the server closed the connection")
        else:
            raise ProtocolError(f"the server sent a reply that nobody asked for: {reply.code}")

    def _closing(
        self, command: Command, exchange: Exchange | None, index: int, reply: Reply, events: list[Event]
    ) -> None:
        """421: the server closes. Its own exchange is lost, unless its content is out and others may be taken."""
        self.goodbye = reply
        self._answers_at_goodbye = self.answers
        if exchange is None:
            events.append(Answered(command, reply))
        if exchange is None or exchange.over:
            return
        result = exchange.result
        if command is Command.RCPT and exchange.at_once:
            self._rcpt_answer(exchange, index, reply, events)
            return
        if command is not Command.LAST:
            result.dot_sent = False
        exchange.lose(FailureKind.CLOSED, "the server closed the connection (421)", reply)
        result.reused_dead = False  # it was tried, and answered
        if command is Command.MAIL:
            result.mail_reply = reply
        elif command is Command.RCPT:
            result.rcpt_replies[index] = reply
        elif command is Command.DATA:
            result.data_reply = reply
        self._open.popleft()
        events.append(Settled(exchange))

    # --- the session --------------------------------------------------------------------------------------------------

    def _session_answer(self, command: Command, reply: Reply, events: list[Event]) -> None:
        if command is Command.RSET:
            if reply.severity != 2:  # there is no knowing what the server holds now
                raise ProtocolError(f"the server refused RSET: {reply.code}")
            return
        if command is Command.LONE_DOT:
            return
        if command is Command.BANNER and self.state is State.BANNER:
            self.state = State.COMMANDS
        elif command is Command.STARTTLS and reply.severity == 2:
            self.state = State.TLS
        elif command is Command.QUIT:
            self.state = State.CLOSED
        events.append(Answered(command, reply))

    def command(self, command: Command, line: bytes) -> None:
        """Write one command of the session (EHLO, HELO, STARTTLS, AUTH or its continuation, NOOP) with its CRLF."""
        if self.state not in (State.COMMANDS, State.READY) or self._expected:
            raise RuntimeError(f"{command.value} can't be sent in state {self.state.value}")
        self._write(command, line)

    def tls_done(self) -> None:
        """The handshake after STARTTLS is done: what was said in clear is forgotten (RFC 3207 section 4.2)."""
        if self.state is not State.TLS:
            raise RuntimeError("no STARTTLS was answered")
        self.capabilities = Capabilities()
        self.state = State.COMMANDS

    def open(self) -> None:
        """Greeted, protected and logged in: transactions may begin."""
        if self.state is not State.COMMANDS or self._expected:
            raise RuntimeError(f"not to be opened in state {self.state.value}")
        self.state = State.READY

    def quit(self) -> None:
        """Write QUIT. Nothing may be under way."""
        if self.state in (State.COMMANDS, State.READY) and self._current is None:
            self._write(Command.QUIT, b"QUIT\r\n")
            self.state = State.LEAVING

    @property
    def waiting_for(self) -> Command | None:
        """The command whose reply comes next; None: none is due."""
        return self._expected[0][0] if self._expected else None

    @property
    def in_flight(self) -> int:
        """Exchanges without a result."""
        return len(self._open)

    @property
    def first(self) -> Exchange | None:
        """The exchange that settles next."""
        return self._open[0] if self._open else None

    @property
    def may_begin(self) -> bool:
        """Whether the envelope of another message may be written now."""
        if self.state is not _READY or self._current is not None or self.goodbye is not None or self.unasked_part:
            return False
        return self.capabilities.pipelining or not self._expected

    @property
    def chunks_many(self) -> bool:
        """Whether several messages may be in flight behind one another."""
        return self.capabilities.chunking and self.capabilities.pipelining

    def _write(self, command: Command, line: bytes, exchange: Exchange | None = None, index: int = 0) -> None:
        self._expected.append((command, exchange, index))
        self._written += 1
        self.output.append(line)

    def take_output(self) -> list[Octets]:
        """What is to be sent now. From here on its commands may be answered."""
        output, self.output = self.output, []
        self._left = self._written
        return output

    # --- the envelope -------------------------------------------------------------------------------------------------

    def envelope(self, transaction: Transaction) -> list[bytes]:
        """The lines of its envelope, MAIL first.

        Raises ValueError for a mailbox or parameter that must not be written, and for a mail that needs what the server
        does not offer.
        """
        if not transaction.recipients:
            raise ValueError("a transaction needs a recipient")
        lines = [mail_line(transaction, self.capabilities)]
        lines += [rcpt_line(recipient, transaction, self.capabilities) for recipient in transaction.recipients]
        return lines

    def begin(
        self, transaction: Transaction, lines: list[bytes], *, chunked: bool, at_once: bool, kept: bool
    ) -> Exchange:
        """Write the envelope; with `at_once` the caller writes the content right behind it."""
        if not self.may_begin:
            raise RuntimeError("no transaction can begin now")
        if chunked and not self.chunks_many:
            raise RuntimeError("CHUNKING is not offered with PIPELINING")
        exchange = Exchange(transaction, chunked=chunked, at_once=at_once, kept=kept, behind=bool(self._expected))
        if not self._clean:
            self._write(Command.RSET, b"RSET\r\n")
            self._clean = True
        self._write(_MAIL, lines[0], exchange)
        if self.capabilities.pipelining:
            for index in range(1, len(lines)):
                self._write(_RCPT, lines[index], exchange, index - 1)
            if not chunked:
                self._write(_DATA, b"DATA\r\n", exchange)
        self.begun += 1
        self._open.append(exchange)
        self._current = self._last = exchange
        return exchange

    def _step(self, exchange: Exchange, index: int) -> None:
        """Without PIPELINING: the next command of the envelope."""
        transaction = exchange.transaction
        if index < len(transaction.recipients):
            line = rcpt_line(transaction.recipients[index], transaction, self.capabilities)
            self._write(Command.RCPT, line, exchange, index)
        else:
            self._write(Command.DATA, b"DATA\r\n", exchange)

    def _refused(self, exchange: Exchange) -> None:
        """A transaction ended in its envelope and has nothing more to write: leave no open one at the server."""
        if self._current is exchange:
            self._current = None
        if self._last is exchange and self.goodbye is None:  # else RSET stands before the next MAIL already
            if exchange.result.mail_reply is not None and exchange.result.mail_reply.severity == 2:
                self._write(Command.RSET, b"RSET\r\n")
            self._clean = True

    def _settle(self, exchange: Exchange, happening: Happening, events: list[Event]) -> None:
        exchange.move(happening)
        self._open.popleft()
        events.append(Settled(exchange))

    def _mail_answer(self, exchange: Exchange, reply: Reply, events: list[Event]) -> None:
        if reply.code == 503 and exchange.behind and not exchange.at_once:
            self.alone_only = True
            events += self.lose(FailureKind.CLOSED, "the server takes no envelope behind a final dot (503)")
            return
        exchange.result.mail_reply = reply
        pipelining = self.capabilities.pipelining
        if reply.severity != 2:
            exchange.result.dot_sent = False  # no transaction, so the content can't be taken
            self._settle(exchange, Happening.REFUSED, events)
            if exchange.chunked or not pipelining:  # else DATA is on its way, and may be answered 354
                self._refused(exchange)
        elif not pipelining:
            self._step(exchange, 0)

    def _rcpt_answer(self, exchange: Exchange, index: int, reply: Reply, events: list[Event]) -> None:
        exchange.unanswered_rcpts -= 1
        if exchange.over:
            return
        exchange.result.rcpt_replies[index] = reply
        if reply.severity == 2:
            exchange.accepted += 1
        pipelining = self.capabilities.pipelining
        if exchange.unanswered_rcpts:
            if not pipelining:
                self._step(exchange, index + 1)
            return
        if not exchange.accepted:
            exchange.result.dot_sent = False  # nobody to take it for
            if self.goodbye is not None:
                exchange.lose(FailureKind.CLOSED, "the server closed the connection (421)", self.goodbye)
                self._open.popleft()
                events.append(Settled(exchange))
                return
            self._settle(exchange, Happening.REFUSED, events)
            if exchange.chunked or not pipelining:
                self._refused(exchange)
        elif exchange.chunked:
            if not exchange.at_once:
                self._go_ahead(exchange, events)
        elif not pipelining:
            self._step(exchange, index + 1)

    def _go_ahead(self, exchange: Exchange, events: list[Event]) -> None:
        exchange.move(_GO_AHEAD)
        events.append(GoAhead(exchange))

    def _data_answer(self, exchange: Exchange, reply: Reply, events: list[Event]) -> None:
        if reply.severity == 3 and reply.code != 354:
            raise ProtocolError(f"the server answered {reply.code} to DATA")
        if exchange.over:
            if reply.code == 354:
                self._write(Command.LONE_DOT, b".\r\n")
                self._current = None
            else:
                self._refused(exchange)
            return
        exchange.result.data_reply = reply
        if reply.code == 354:
            self._stuffer = DotStuffer()
            self._go_ahead(exchange, events)
        else:
            self._settle(exchange, Happening.REFUSED, events)
            self._refused(exchange)

    # --- the content --------------------------------------------------------------------------------------------------

    def content(self, exchange: Exchange, chunk: Octets) -> None:
        """Write some of the content that is not its end."""
        self._must_write(exchange)
        if exchange.chunked:
            if chunk:
                self._write(Command.BDAT, b"BDAT %d\r\n" % len(chunk), exchange)
                self.output.append(chunk)
        else:
            self._stuffer.stuff(chunk, self.output, dotless=exchange.transaction.body.dotless)

    def end(self, exchange: Exchange, chunk: Octets) -> None:
        """Write the last of the content and its end. The server may take responsibility from here on."""
        self._must_write(exchange)
        if exchange.chunked:
            self._write(Command.LAST, b"BDAT %d LAST\r\n" % len(chunk), exchange)
            self.output.append(chunk)
            self._clean = False
        else:
            self._stuffer.stuff(chunk, self.output, dotless=exchange.transaction.body.dotless)
            self._write(_LAST, self._stuffer.end(), exchange)
        exchange.result.dot_sent = True
        exchange.move(_LAST_WRITTEN)
        self._current = None

    def _must_write(self, exchange: Exchange) -> None:
        allowed = _ENVELOPE if exchange.at_once else _CONTENT
        if self._current is not exchange or exchange.step is not allowed:
            raise RuntimeError("no content is asked for")

    def _bdat_answer(self, exchange: Exchange, reply: Reply, events: list[Event]) -> None:
        """A chunk was refused: no more of them, and RSET (RFC 3030 section 2)."""
        if exchange.over or reply.severity == 2:
            return
        exchange.result.final_reply = reply
        exchange.result.dot_sent = False  # what follows a refused chunk can't make a message
        self._settle(exchange, Happening.ANSWERED, events)
        self._refused(exchange)

    def _last_answer(self, exchange: Exchange, reply: Reply, events: list[Event]) -> None:
        if exchange.over:
            return
        exchange.result.final_reply = reply
        self._settle(exchange, _ANSWERED, events)
        if exchange.chunked and self._last is exchange:
            if reply.severity == 2:
                self._clean = True
            elif not self._clean:
                self._refused(exchange)
