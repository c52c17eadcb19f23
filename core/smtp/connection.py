"""One connection: the I/O around the state machine of protocol.py.

Guarantees
- on_begin is called before the final dot or BDAT LAST is written; if it raises, or the body does, no dot leaves.
- Each Transaction that send() took is told its result exactly once, as soon as the last reply it needs was read, or
  the connection is lost; the caller of send() gets the same result, or the exception.
- What is written in one turn of the event loop leaves in one write: content, dot and the next envelope.
- Small bodies are read before their envelope is written, so that a file that changed costs no connection. Larger ones
  are streamed, block by block, as fast as the network takes them.
- Nothing waits for ever: each reply, each block and the whole of a transaction have their limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import cast

from core.domain.reply import Phase, Reply
from core.smtp.dialogue import (
    Capabilities,
    Failure,
    FailureKind,
    Target,
    Timeouts,
    Transaction,
    TransactionResult,
)
from core.smtp.errors import ConversationEnded
from core.smtp.exchange import Exchange, Step
from core.smtp.protocol import Answered, Command, Event, GoAhead, Settled, SmtpProtocol

SMALL_BODY_BYTES = 256 * 1024  # read before the envelope; with CHUNKING sent behind it at once
THREAD_BODY_BYTES = 1024 * 1024  # over this, reading may block for long: it is done in a thread
JOIN_BYTES = 64 * 1024  # writes up to this size are joined into one
QUIET_SECONDS = 2.0  # after such a silence a kept connection may be dead: see _at_once


class _Sending:
    """What send() keeps of one exchange."""

    __slots__ = ("abandoned", "chunks", "error", "go_ahead", "waiter")

    def __init__(self, waiter: asyncio.Future[TransactionResult], chunks: list[bytes] | None) -> None:
        self.waiter = waiter
        self.chunks = chunks  # of a small body
        self.go_ahead: asyncio.Future[None] | None = None  # of a streamed one
        self.error: BaseException | None = None  # what the body or on_begin raised
        self.abandoned = False  # the caller was cancelled


class Connection(asyncio.Protocol):
    """A connection to `target`; `moved` is told after anything that may make it ready for a message, or unready."""

    def __init__(self, target: Target, moved: Callable[[Connection], None]) -> None:
        self.target = target
        self.protocol = SmtpProtocol()
        self.server = f"{target.host}:{target.port}"
        self.tls: str | None = None
        self.reserved = False  # a turn is out that was not used yet
        self.retiring = False  # no more turns
        self.made = False  # a transport had it
        self.found_dead = False  # it was dead when it was to be used again
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last_heard = 0.0
        self._loop = asyncio.get_running_loop()
        self._moved = moved
        self._transport: asyncio.Transport | None = None
        self._spare: socket.socket | None = None
        self._sendings: dict[Exchange, _Sending] = {}
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

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self.made = True
        self.last_heard = self._loop.time()

    def keep_spare(self, sock: socket.socket) -> None:
        """Keep a second descriptor of a plain connection, to read what came in before a write failed."""
        self._spare = sock

    def data_received(self, data: bytes) -> None:
        self.last_heard = self._loop.time()
        answers = self.protocol.answers
        events = self.protocol.receive(data)
        if self.protocol.answers != answers:  # a reply that comes octet by octet gains no time by it
            self._waiting_since = self.last_heard
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
        self._moved(self)

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
            self._moved(self)

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
        self._moved(self)  # first: who is woken by it writes before the flush
        self._arrange()

    def _answered(self, reply: Reply) -> None:
        if self._answer is None:
            self._early = reply  # the banner can be faster than its reader
        elif not self._answer.done():
            self._answer.set_result(reply)

    def _settle(self, exchange: Exchange) -> None:
        self._settled_at = self._loop.time()
        sending = self._sendings.pop(exchange)
        result = exchange.result
        if result.reused_dead:
            self.found_dead = True
        if sending.error is None:
            try:
                exchange.transaction.on_result(result)
            except Exception as error:  # noqa: BLE001  # it is the caller's, and goes there
                sending.error = error
        if sending.go_ahead is not None and not sending.go_ahead.done():
            sending.go_ahead.set_result(None)
        if sending.waiter.done():
            return
        if sending.error is not None:
            sending.waiter.set_exception(sending.error)
        else:
            sending.waiter.set_result(result)

    def _go_ahead(self, exchange: Exchange) -> None:
        if exchange.step is not Step.CONTENT:
            return  # refused by what was read together with the 354
        sending = self._sendings[exchange]
        if sending.abandoned:
            self._give_up("the transaction was cancelled")
        elif sending.chunks is not None:
            self._write_whole(exchange, sending)
        elif sending.go_ahead is not None and not sending.go_ahead.done():
            sending.go_ahead.set_result(None)

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
        self._moved(self)

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
        output = self.protocol.output
        if not output or self._transport is None or self.protocol.closed:
            return
        self.protocol.output = []
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
            self.tls = f"{self._transport.get_extra_info('ssl_object').version()} {cipher[0]}"

    @property
    def capabilities(self) -> Capabilities:
        return self.protocol.capabilities

    @property
    def in_flight(self) -> int:
        return self.protocol.in_flight

    @property
    def idle(self) -> bool:
        """Nothing under way, nobody about to send."""
        return not self.reserved and self.protocol.waiting_for is None and self.protocol.in_flight == 0

    def ready(self, in_flight_max: int) -> bool:
        """Whether one more message may be begun now."""
        protocol = self.protocol
        if self.reserved or self.retiring or not protocol.may_begin or self._writable is not None:
            return False
        return protocol.in_flight < in_flight_max if self._chunking else True

    @property
    def _chunking(self) -> bool:
        return self.target.chunking and self.protocol.chunks_many

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

    # --- transactions -------------------------------------------------------------------------------------------------

    async def send(self, transaction: Transaction) -> TransactionResult:
        """Send one message. See Transaction and TransactionResult.

        Raises ValueError if nothing was sent because it must not be, and what body.chunks() or on_begin raised.
        Cancelled before the dot, it closes the connection; after it, the reply is still awaited for on_result.
        """
        result = self._not_sendable(transaction)
        if result is not None:
            self.reserved = False
            self._moved(self)
            transaction.on_result(result)
            return result
        try:
            exchange, sending = self._begin(transaction)
        finally:
            self.reserved = False
            self._moved(self)
        self._arrange()
        try:
            if sending.go_ahead is not None:
                await self._stream(exchange, sending)
            return await sending.waiter
        except asyncio.CancelledError:
            sending.abandoned = True
            if not exchange.over and not exchange.result.dot_sent and self.protocol.first is exchange:
                self._give_up("the transaction was cancelled")  # else, when those before it have their verdicts
            raise

    def _not_sendable(self, transaction: Transaction) -> TransactionResult | None:
        """A result that needs no server."""
        result = TransactionResult(rcpt_replies=[None] * len(transaction.recipients))
        if self.protocol.closed or self._transport is None or self.protocol.goodbye is not None:
            self.found_dead = result.reused_dead = True
            detail = self._ended.detail if self._ended else "the connection is closed"
            result.failure = Failure(Phase.MAIL, FailureKind.CLOSED, detail)
            return result
        limit = self.capabilities.size_limit
        if limit is not None and transaction.body.size > limit:
            detail = f"5.3.4 the message has {transaction.body.size} octets, the server takes {limit}"
            result.failure = Failure(Phase.LOCAL, FailureKind.TOO_LARGE, detail)
            return result
        return None

    def _at_once(self, now: float) -> bool:
        """Whether content may follow its envelope before any reply.

        Not after a silence: the connection may be dead by now, and if so the message would be unknown for nothing.
        """
        return self.protocol.in_flight > 0 or now - self.last_heard < QUIET_SECONDS

    def _begin(self, transaction: Transaction) -> tuple[Exchange, _Sending]:
        protocol = self.protocol
        now = self._loop.time()
        lines = protocol.envelope(transaction)
        small = transaction.body.size <= SMALL_BODY_BYTES
        chunks = _whole(transaction.body.chunks(), transaction.body.size) if small else None
        chunked = self._chunking
        at_once = chunked and chunks is not None and self._at_once(now)
        if at_once:
            transaction.on_begin([recipient.mailbox for recipient in transaction.recipients])
        if protocol.waiting_for is None:
            self._waiting_since = now
        kept = protocol.begun > 0 or now - self.last_heard > QUIET_SECONDS
        exchange = protocol.begin(transaction, lines, chunked=chunked, at_once=at_once, kept=kept)
        exchange.began_at = now
        sending = _Sending(self._loop.create_future(), chunks)
        self._sendings[exchange] = sending
        if chunks is None:
            sending.go_ahead = self._loop.create_future()
        elif at_once:
            self._write_chunks(exchange, chunks)
            sending.chunks = None
        return exchange, sending

    def _write_chunks(self, exchange: Exchange, chunks: list[bytes]) -> None:
        for chunk in chunks[:-1]:
            self.protocol.content(exchange, chunk)
        self.protocol.end(exchange, chunks[-1] if chunks else b"")

    def _write_whole(self, exchange: Exchange, sending: _Sending) -> None:
        """The content of a small message, and its end."""
        try:
            exchange.transaction.on_begin(exchange.accepted_mailboxes)
        except Exception as error:  # noqa: BLE001  # it is the caller's, and goes there
            sending.error = error
            self._give_up("the dot was held back")
            return
        assert sending.chunks is not None
        self._write_chunks(exchange, sending.chunks)
        sending.chunks = None

    async def _stream(self, exchange: Exchange, sending: _Sending) -> None:
        """The content of a large message, one block ahead, so that its last is known before the dot is written."""
        assert sending.go_ahead is not None
        await sending.go_ahead
        if exchange.step is not Step.CONTENT:
            return
        try:
            await self._stream_chunks(exchange)
        except Exception as error:  # noqa: BLE001  # of the body or on_begin: it is the caller's, and goes there
            if exchange.over:
                return
            sending.error = error
            self._give_up("the content could not be read to its end")

    async def _stream_chunks(self, exchange: Exchange) -> None:
        body = exchange.transaction.body
        chunks = body.chunks()
        in_thread = body.size > THREAD_BODY_BYTES
        held = b""
        total = 0
        try:
            while True:
                chunk = await asyncio.to_thread(_next, chunks) if in_thread else _next(chunks)
                if exchange.step is not Step.CONTENT:
                    return  # refused in the middle, or lost
                if chunk is None:
                    break
                total += len(chunk)
                if held:
                    self.protocol.content(exchange, held)
                    self._arrange()
                    self._flush()
                    await self._drain()
                held = chunk
            _check_size(total, body.size)
            exchange.transaction.on_begin(exchange.accepted_mailboxes)
            self.protocol.end(exchange, held)
            self._waiting_since = self._loop.time()
            self._moved(self)
            self._arrange()
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                with contextlib.suppress(ValueError):  # a generator that still runs in its thread, after a cancel
                    close()


def _whole(chunks: Iterator[bytes], size: int) -> list[bytes]:
    """A small body, read to its end."""
    whole = [chunk for chunk in chunks if chunk]
    _check_size(sum(map(len, whole)), size)
    return whole


def _next(chunks: Iterator[bytes]) -> bytes | None:
    return next(chunks, None)


def _check_size(total: int, size: int) -> None:
    if total != size:
        raise ValueError(f"the body was to have {size} octets and has {total}")


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
