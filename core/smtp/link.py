"""The wire: one TCP or TLS connection around the state machine of protocol.py. Octets, time limits, session commands.

- What is written in one turn of the event loop leaves in one write: content, dot and the next envelope.
- Nothing waits for ever: each reply, each block of content and the whole of a transaction have their limits. A reply
  that comes octet by octet gains no time by it.
- What a server said before it closed is read, even if a write fails first.
The transactions are connection.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import cast

from core.domain.reply import Reply
from core.smtp.dialogue import FailureKind, Target, Timeouts
from core.smtp.errors import ConversationEnded
from core.smtp.events import Answered, Command, Event, GoAhead, Settled
from core.smtp.exchange import Exchange
from core.smtp.protocol import SmtpProtocol

JOIN_BYTES = 64 * 1024  # writes up to this size are joined into one


class Link(asyncio.Protocol):
    """A connection to `target`. What becomes of exchanges is the subclass's matter."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.protocol = SmtpProtocol()
        self.server = f"{target.host}:{target.port}"
        self.tls: str | None = None
        self.certificate: bytes | None = None  # the server's, DER
        self.retiring = False  # no more turns
        self.made = False  # a transport had it
        self.found_dead = False  # it was dead when it was to be used again
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last_heard = 0.0
        self.opened_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._spare: socket.socket | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self._early: Reply | None = None
        self._ended: ConversationEnded | None = None
        self._flush_due = False
        self._writable: asyncio.Future[None] | None = None  # pending: the network takes no more now
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._waiting_since = 0.0
        self._settled_at = 0.0
        self._timeout_of = _timeouts_by_command(target.timeouts)

    def _moved(self) -> None:
        """Told after anything that may make it ready for a message, or unready."""
        raise NotImplementedError

    def _settle(self, exchange: Exchange) -> None:
        """The result of this exchange is complete."""
        raise NotImplementedError

    def _go_ahead(self, exchange: Exchange) -> None:
        """The server waits for the content of this exchange."""
        raise NotImplementedError

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self.made = True
        self.opened_at = self.last_heard = self._loop.time()

    def keep_spare(self, sock: socket.socket) -> None:
        """Keep a second descriptor of a plain connection, to read what came in before a write failed."""
        self._spare = sock

    def data_received(self, data: bytes) -> None:
        answers = self.protocol.answers
        events = self.protocol.receive(data)
        if self.protocol.answers != answers:  # a reply that comes octet by octet gains no time by it
            self._waiting_since = self.last_heard = self._loop.time()
        self._act(events)

    def eof_received(self) -> bool:
        return False  # the transport closes; connection_lost tells the rest

    def connection_lost(self, exc: Exception | None) -> None:
        if self._spare is not None:
            if not self.protocol.closed and self.tls is None:
                self._read_spare()
            self._spare.close()
            self._spare = None
        detail = "the server closed the connection" if exc is None else f"the connection was lost: {exc}"
        self._end(FailureKind.CLOSED, detail)
        if not self.closed.done():
            self.closed.set_result(None)
        self._transport = None
        self._moved()

    def _read_spare(self) -> None:
        """A server that refuses in the middle of the content and closes: its reply may lie unread (it counts)."""
        assert self._spare is not None
        with contextlib.suppress(OSError):
            self._spare.setblocking(False)
            while not self.protocol.closed and (data := self._spare.recv(65536)):
                self._act(self.protocol.receive(data))

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None
            self._moved()

    # --- events -------------------------------------------------------------------------------------------------------

    def _act(self, events: list[Event]) -> None:
        for event in events:
            kind = type(event)
            if kind is Settled:
                self._settle(event.exchange)  # type: ignore[union-attr]  # narrowed by the line above, for speed
            elif kind is GoAhead:
                self._go_ahead(event.exchange)  # type: ignore[union-attr]  # as above
            else:
                assert isinstance(event, Answered)
                self._answered(event.reply)
        if self.protocol.closed:
            self._drop()
        self._moved()  # first: who is woken by it writes before the flush
        self._arrange()

    def _answered(self, reply: Reply) -> None:
        if self._answer is None:
            self._early = reply  # the banner can be faster than its reader
        elif not self._answer.done():
            self._answer.set_result(reply)

    def _end(self, kind: FailureKind, detail: str) -> None:
        """Every exchange without a verdict fails; a session command's caller is told."""
        if self._ended is None:
            error = self.protocol.error
            self._ended = (
                ConversationEnded(FailureKind.PROTOCOL, str(error)) if error else ConversationEnded(kind, detail)
            )
        for event in self.protocol.lose(kind, detail):
            assert isinstance(event, Settled)
            self._settle(event.exchange)
        self._drop()

    def _drop(self) -> None:
        """The conversation is over: let go of the transport."""
        if self._ended is None:
            error = self.protocol.error
            self._ended = ConversationEnded(
                FailureKind.PROTOCOL if error else FailureKind.CLOSED, str(error or "the server closed the connection")
            )
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._ended)
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
            self._writable = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    def _give_up(self, detail: str, kind: FailureKind = FailureKind.CLOSED) -> None:
        """Close from this side, before the dot of what is being written."""
        self.protocol.output.clear()
        self._end(kind, detail)
        self._moved()

    def abort(self, detail: str = "the connection was given up") -> None:
        """Close now, whatever is in flight."""
        self._give_up(detail)

    # --- writing ------------------------------------------------------------------------------------------------------

    def _arrange(self) -> None:
        """After anything was written or read: a flush at the end of this turn of the loop, a timer for what is due."""
        if self.protocol.closed:
            return
        if self.protocol.output and not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        due = self._due_at()
        if due is not None and (self._timer is None or due < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self._loop.call_at(due, self._on_timer)

    def _flush(self) -> None:
        self._flush_due = False
        if not self.protocol.output or self._transport is None or self.protocol.closed:
            return
        output = self.protocol.take_output()
        if len(output) == 1:
            self._transport.write(output[0])
            return
        if sum(map(len, output)) <= JOIN_BYTES:
            self._transport.write(b"".join(output))
            return
        for part in output:
            self._transport.write(part)

    def _due_at(self) -> float | None:
        """When to give up waiting, in the loop's time; None: nothing is awaited."""
        protocol = self.protocol
        awaited = protocol.waiting_for
        due = None if awaited is None else self._waiting_since + self._timeout_of[awaited]
        if due is not None and protocol.goodbye is not None:  # it said that it closes: that is not waited for as long
            due = min(due, self._waiting_since + self.target.timeouts.quit_seconds)
        exchange = protocol.first
        if exchange is not None and not exchange.result.dot_sent:
            whole = max(exchange.began_at, self._settled_at) + self.target.timeouts.transaction_seconds
            due = whole if due is None else min(due, whole)
        return due

    def _on_timer(self) -> None:
        self._timer = None
        due = self._due_at()
        if due is None or self.protocol.closed:
            return
        if due > self._loop.time():
            self._timer_at = due
            self._timer = self._loop.call_at(due, self._on_timer)
            return
        awaited = self.protocol.waiting_for
        what = f"{awaited.value} was not answered in time" if awaited else "the content was not taken in time"
        self._give_up(what, FailureKind.TIMEOUT)

    async def _drain(self) -> None:
        """Wait until the network takes more, at most the time for a block."""
        writable = self._writable
        if writable is None:
            await asyncio.sleep(0)  # so that a refusal in the middle is read before more is written
            return
        try:
            async with asyncio.timeout(self.target.timeouts.block_seconds):
                await asyncio.shield(writable)
        except TimeoutError:
            self._give_up("a block of the content was not taken in time", FailureKind.TIMEOUT)

    # --- the session --------------------------------------------------------------------------------------------------

    async def answer(self, timeout_seconds: float) -> Reply:
        """The reply to what was written last. Raises ConversationEnded."""
        if self._early is not None:
            reply, self._early = self._early, None
            return reply
        self._must_be_alive()
        self._answer = self._loop.create_future()
        self._flush()
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._answer
        except TimeoutError:
            raise ConversationEnded(FailureKind.TIMEOUT, "the server did not answer in time") from None
        finally:
            self._answer = None

    def _must_be_alive(self) -> None:
        if self._ended is not None:
            raise self._ended

    async def command(self, command: Command, line: bytes) -> Reply:
        """One command of the session and its reply. Raises ConversationEnded."""
        self._must_be_alive()
        self.protocol.command(command, line)
        return await self.answer(self.target.timeouts.command_seconds)

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """The handshake after the 220 to STARTTLS. Raises ssl.SSLError, OSError, ConversationEnded."""
        self._must_be_alive()
        assert self._transport is not None
        transport = await self._loop.start_tls(
            self._transport,
            self,
            context,
            server_hostname=self.target.host,
            ssl_handshake_timeout=self.target.timeouts.connect_seconds,
        )
        self._must_be_alive()
        assert transport is not None
        self._transport = transport
        self.note_tls()

    def note_tls(self) -> None:
        """Remember what protects the connection."""
        assert self._transport is not None
        cipher = self._transport.get_extra_info("cipher")
        if cipher is not None:
            secured = self._transport.get_extra_info("ssl_object")
            self.tls = f"{secured.version()} {cipher[0]}"
            self.certificate = secured.getpeercert(binary_form=True)

    def say_goodbye(self) -> None:
        """Write QUIT and close once it is out, without waiting for a reply."""
        if self.protocol.waiting_for is None:
            self.protocol.quit()
            self._flush()
        if self._transport is not None:
            self._transport.close()

    async def leave(self) -> None:
        """QUIT, wait a little for its reply, close."""
        self.retiring = True
        try:
            if not self.protocol.closed and self._transport is not None:
                self.protocol.quit()
                self._flush()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.target.timeouts.quit_seconds):
                        await asyncio.shield(self.closed)
        finally:
            self.abort("the connection was left")


def _timeouts_by_command(timeouts: Timeouts) -> dict[Command, float]:
    return dict.fromkeys(Command, timeouts.command_seconds) | {
        Command.BANNER: timeouts.banner_seconds,
        Command.MAIL: timeouts.mail_seconds,
        Command.RCPT: timeouts.rcpt_seconds,
        Command.DATA: timeouts.data_seconds,
        Command.BDAT: timeouts.block_seconds,
        Command.LAST: timeouts.dot_seconds,
        Command.LONE_DOT: timeouts.dot_seconds,
        Command.QUIT: timeouts.quit_seconds,
    }
