"""One connection's transactions: the bodies and callbacks around the state machine of protocol.py.

Guarantees
- on_begin is called before the final dot or BDAT LAST is written; if it raises, or the body does, no dot leaves.
- Each Transaction that send() took is told its result exactly once, as soon as the last reply it needs was read, or
  the connection is lost; the caller of send() gets the same result, or the exception.
- Small bodies are read before their envelope is written, so that a file that changed costs no connection. Larger ones
  are streamed, block by block, as fast as the network takes them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from core.domain.content import Octets
from core.domain.reply import Phase, Reply
from core.smtp.dialogue import Capabilities, Failure, FailureKind, Target, Transaction, TransactionResult
from core.smtp.exchange import Exchange, Step
from core.smtp.link import Link

SMALL_BODY_BYTES = 256 * 1024  # read before the envelope; with CHUNKING sent behind it at once
THREAD_BODY_BYTES = 1024 * 1024  # over this, reading may block for long: it is done in a thread
QUIET_SECONDS = 2.0  # after such a silence a kept connection may be dead: see _at_once
_SESSION_LOST = frozenset({500, 502, 503, 530, 535, 538})  # to MAIL: with another session it may go
_CONTENT = Step.CONTENT  # with every message (core/domain)


class _Sending:
    """What send() keeps of one exchange."""

    __slots__ = ("abandoned", "chunks", "error", "go_ahead", "waiter")

    def __init__(self, waiter: asyncio.Future[TransactionResult], chunks: list[Octets] | None) -> None:
        self.waiter = waiter
        self.chunks = chunks  # of a small body
        self.go_ahead: asyncio.Future[None] | None = None  # of a streamed one
        self.error: BaseException | None = None  # what the body or on_begin raised
        self.abandoned = False  # the caller was cancelled


class Connection(Link):
    """A connection to `target`; `moved` is told after anything that may make it ready for a message, or unready."""

    def __init__(self, target: Target, moved: Callable[[Connection], None]) -> None:
        super().__init__(target)
        self.reserved = False  # a turn is out that was not used yet
        self._tell = moved
        self._sendings: dict[Exchange, _Sending] = {}

    def _moved(self) -> None:
        self._tell(self)

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
        """Whether one more message may be begun now; `in_flight_max` 1: only when nothing is due from the server."""
        protocol = self.protocol
        if self.reserved or self.retiring or not protocol.may_begin or self._writable is not None:
            return False
        if in_flight_max == 1:
            return protocol.waiting_for is None
        return protocol.in_flight < in_flight_max if self._chunking else True

    @property
    def _chunking(self) -> bool:
        return self.target.chunking and self.protocol.chunks_many

    # --- transactions -------------------------------------------------------------------------------------------------

    async def send(self, transaction: Transaction) -> TransactionResult:
        """Send one message. See Transaction and TransactionResult.

        Raises ValueError if nothing was sent because it must not be, and what body.chunks() or on_begin raised.
        Cancelled before the dot, it closes the connection; after it, the reply is still awaited for on_result.
        """
        result = self._not_sendable(transaction)
        if result is not None:
            self.reserved = False
            self._moved()
            transaction.on_result(result)
            return result
        try:
            exchange, sending = self._begin(transaction)
        finally:
            self.reserved = False
            self._moved()
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
        if self.protocol.unasked_part:  # it came while the turn was out; what it will be is no answer to this
            self._give_up("a reply began that nobody asked for")
        if self.protocol.closed or self._transport is None or self.protocol.goodbye is not None:
            self.found_dead = True
            detail = self._ended.detail if self._ended else "the connection is closed"
            return _unsent(transaction, Failure(Phase.MAIL, FailureKind.CLOSED, detail), reused_dead=True)
        limit = self.capabilities.size_limit
        if limit is not None and transaction.body.size > limit:
            detail = f"5.3.4 the message has {transaction.body.size} octets, the server takes {limit}"
            return _unsent(transaction, Failure(Phase.LOCAL, FailureKind.TOO_LARGE, detail))
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

    def _write_chunks(self, exchange: Exchange, chunks: list[Octets]) -> None:
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
        held: Octets = b""
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
            self._moved()
            self._arrange()
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                with contextlib.suppress(ValueError):  # a generator that still runs in its thread, after a cancel
                    close()

    # --- what the state machine says --------------------------------------------------------------------------------

    def _settle(self, exchange: Exchange) -> None:
        self._settled_at = self._loop.time()
        sending = self._sendings.pop(exchange)
        result = exchange.result
        if result.reused_dead:
            self.found_dead = True
        if result.mail_reply is not None and result.mail_reply.code in _SESSION_LOST:
            self.retiring = True
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
        if exchange.step is not _CONTENT:
            return  # refused by what was read together with the 354
        sending = self._sendings[exchange]
        if sending.abandoned:
            self._give_up("the transaction was cancelled")
        elif sending.chunks is not None:
            self._write_whole(exchange, sending)
        elif sending.go_ahead is not None and not sending.go_ahead.done():
            sending.go_ahead.set_result(None)


def _unsent(transaction: Transaction, failure: Failure, *, reused_dead: bool = False) -> TransactionResult:
    replies: list[Reply | None] = [None] * len(transaction.recipients)
    return TransactionResult(replies, failure=failure, reused_dead=reused_dead)


def _whole(chunks: Iterator[Octets], size: int) -> list[Octets]:
    """A small body, read to its end."""
    whole = [chunk for chunk in chunks if chunk]
    _check_size(sum(map(len, whole)), size)
    return whole


def _next(chunks: Iterator[Octets]) -> Octets | None:
    return next(chunks, None)


def _check_size(total: int, size: int) -> None:
    if total != size:
        raise ValueError(f"the body was to have {size} octets and has {total}")
