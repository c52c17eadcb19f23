"""The connections of one account: opened when all are busy, kept while they are of use, shared in turns.

Rules
- Turns are given first come, first served. An idle connection is taken before one whose next envelope would go behind
  a final dot; a new one is opened when there are more turns wanted than connections, up to `max_connections`.
- Connections are opened one at a time: a login that the server refuses is tried once, not once for each that waits.
  If it fails and no other connection is left, all who wait at that time are told (ConnectFailed). If others are left,
  they serve, and no more are opened for as long as `rest_after` says.
- A turn passes on as soon as the final dot is written where the server offers PIPELINING. With CHUNKING up to
  `in_flight_per_connection` messages may be under way on one connection.
- After `messages_per_connection` messages, or idle for `idle_timeout_seconds`, a connection is left with QUIT.
- One that is found dead when it is to be used again takes those with it that have been silent as long.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from core.domain.account import Security
from core.domain.reply import Phase
from core.smtp.connection import Connection
from core.smtp.dial import dial, tls_context
from core.smtp.dialogue import Capabilities, ConnectFailed, Target, Transaction, TransactionResult

REOPEN_SECONDS = 90.0  # after a failure, while other connections serve


class PoolTurn:
    """The right to send one message over one connection now. Must be used or released."""

    __slots__ = ("_connection", "_over", "_pool", "capabilities", "server", "tls")

    def __init__(self, pool: Pool, connection: Connection) -> None:
        self._pool = pool
        self._connection = connection
        self._over = False
        self.capabilities: Capabilities = connection.capabilities
        self.server = connection.server  # host:port
        self.tls = connection.tls  # "TLSv1.3 TLS_AES_256_GCM_SHA384"; None: plain

    def send(self, transaction: Transaction) -> Coroutine[Any, Any, TransactionResult]:
        """Send one message. Raises ValueError (nothing was sent), and what body.chunks() or on_begin raised."""
        if self._over:
            raise RuntimeError("this turn is over")
        self._over = True
        return self._connection.send(transaction)

    def release(self) -> None:
        """Give it back unused. Harmless after use."""
        if self._over:
            return
        self._over = True
        self._connection.reserved = False
        self._pool._moved(self._connection)


class Pool:
    """Connections of one account."""

    def __init__(
        self,
        target: Target,
        *,
        max_connections: int = 5,
        messages_per_connection: int = 1000,
        idle_timeout_seconds: float = 30,
        in_flight_per_connection: int = 8,
        rest_after: Callable[[ConnectFailed, int], float] = lambda _failure, _in_a_row: REOPEN_SECONDS,
    ) -> None:
        self.target = target
        self.last_failure: ConnectFailed | None = None  # of the last attempt to open a connection; None: it went well
        self._max_connections = max_connections
        self._messages_per_connection = messages_per_connection
        self._idle_timeout = idle_timeout_seconds
        self._in_flight_max = in_flight_per_connection
        self._rest_after = rest_after  # seconds, of a failure and how many there were in a row
        self._failures = 0  # in a row, of one kind
        self._context: ssl.SSLContext | None = None
        self._connections: list[Connection] = []
        self._waiters: deque[asyncio.Future[PoolTurn]] = deque()
        self._opening: asyncio.Task[None] | None = None
        self._open_not_before = 0.0
        self._leaving: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closing = False

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._connections)

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return len(self._waiters)

    @property
    def rate(self) -> float:
        """Messages a second, about: of each open connection since it was opened."""
        now = asyncio.get_running_loop().time()
        return sum(c.protocol.begun / max(now - c.opened_at, 1.0) for c in self._connections)

    def limit(self, max_connections: int) -> None:
        """So many connections at most from now on; those beyond are left, idle ones first, busy ones when they are."""
        self._max_connections = max_connections
        staying = sorted((c for c in self._connections if not c.retiring), key=lambda connection: connection.idle)
        for connection in staying[max_connections:]:
            connection.retiring = True
            self._moved(connection)
        self._consider_opening()

    async def turn(self) -> PoolTurn:
        """Wait for a connection that is ready, first come, first served. Raises ConnectFailed."""
        if self._closing:
            raise _closed()
        if not self._waiters:
            connection = self._pick()
            if connection is not None:
                turn = self._grant(connection)
                self._consider_opening()
                return turn
        waiter: asyncio.Future[PoolTurn] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._consider_opening()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    async def close(self) -> None:
        """No more turns; QUIT on idle connections; what is in flight goes on to its end, and this waits for it.

        Cancelled, it closes at once: what still awaits its reply is told as lost.
        """
        self._closing = True
        opening = self._opening
        if opening is not None:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        self._tell_waiters(_closed())
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        try:
            for connection in list(self._connections):
                connection.retiring = True
                self._moved(connection)
            while self._connections or self._leaving:
                waits = [*(connection.closed for connection in self._connections), *self._leaving]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                self._connections = [c for c in self._connections if not c.closed.done()]
        except asyncio.CancelledError:
            self.abort()
            raise

    def abort(self) -> None:
        """Close all connections now; what is in flight is told as lost."""
        self._closing = True
        if self._opening is not None:
            self._opening.cancel()
        self._tell_waiters(_closed())
        for task in self._leaving:
            task.cancel()
        for connection in list(self._connections):
            connection.abort()

    # --- turns --------------------------------------------------------------------------------------------------------

    def _pick(self) -> Connection | None:
        """The connection for the next message: an idle one, the last used of those, else the one least loaded."""
        best: Connection | None = None
        for connection in self._connections:
            if not connection.ready(self._in_flight_max):
                continue
            if (
                best is None
                or connection.in_flight < best.in_flight
                or (connection.in_flight == best.in_flight == 0 and connection.last_heard > best.last_heard)
            ):
                best = connection
        return best

    def _grant(self, connection: Connection) -> PoolTurn:
        connection.reserved = True
        return PoolTurn(self, connection)

    def _moved(self, connection: Connection) -> None:
        """Something happened on a connection that may let the next message on, or ended it."""
        if connection.protocol.closed:
            self._lost(connection)
            return
        if connection.protocol.begun >= self._messages_per_connection:
            connection.retiring = True
        while self._waiters and connection.ready(self._in_flight_max):
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(self._grant(connection))
        if connection.retiring and connection.idle:
            self._leave(connection)
        elif self._sweep is None and not self._closing:
            self._sweep = asyncio.get_running_loop().call_later(self._idle_timeout, self._on_sweep)

    def _lost(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        if connection.protocol.alone_only:
            self._in_flight_max = 1
        if connection.found_dead:
            for other in list(self._connections):
                if other.idle and other.last_heard <= connection.last_heard:
                    self._leave(other)
        self._consider_opening()

    def _leave(self, connection: Connection) -> None:
        connection.retiring = True
        if connection in self._connections:
            self._connections.remove(connection)
            task = asyncio.get_running_loop().create_task(connection.leave())
            self._leaving.add(task)
            task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        self._consider_opening()

    def _on_sweep(self) -> None:
        """Leave what has been idle for too long, and look again when the next one may be."""
        self._sweep = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._connections):
            if connection.idle and now - connection.last_heard >= self._idle_timeout:
                self._leave(connection)
        if self._connections:
            oldest = min((c.last_heard for c in self._connections if c.idle), default=now)
            self._sweep = loop.call_at(max(oldest + self._idle_timeout, now + 0.001), self._on_sweep)

    # --- opening ------------------------------------------------------------------------------------------------------

    def _consider_opening(self) -> None:
        """Open one more if more turns are wanted than there are connections to give them."""
        if self._closing or self._opening is not None:
            return
        if len(self._connections) + len(self._leaving) >= self._max_connections:
            return
        usable = sum(not connection.retiring for connection in self._connections)
        turns_out = sum(connection.in_flight + connection.reserved for connection in self._connections)
        if len(self._waiters) + turns_out <= usable or (usable == 0 and not self._waiters):
            return
        loop = asyncio.get_running_loop()
        if usable and loop.time() < self._open_not_before:
            return
        self._opening = loop.create_task(self._open())

    async def _open(self) -> None:
        failure: Exception | None = None
        connection: Connection | None = None
        try:
            if self._context is None and self.target.security is not Security.NONE:
                self._context = await asyncio.to_thread(tls_context, self.target)
            connection = await dial(self.target, self._context, self._moved)
        except ConnectFailed as failed:
            failure = failed
        except Exception as error:  # noqa: BLE001  # a defect: those who wait must hear of it, or they wait for ever
            failure = error
        finally:
            self._opening = None
        before, self.last_failure = self.last_failure, failure if isinstance(failure, ConnectFailed) else None
        if self.last_failure is None:
            self._failures = 0
        else:
            self._failures = self._failures + 1 if before is not None and before.code == self.last_failure.code else 1
        if self.last_failure is not None and self.last_failure.phase in (Phase.TLS, Phase.STARTTLS):
            self._context = None  # the authorities may be others the next time
        if connection is not None:
            self._open_not_before = 0.0
            self._connections.append(connection)
            self._moved(connection)
        elif self._connections and self.last_failure is not None:
            rest = self._rest_after(self.last_failure, self._failures)
            self._open_not_before = asyncio.get_running_loop().time() + rest
        elif failure is not None:
            self._tell_waiters(failure)
        self._consider_opening()

    def _tell_waiters(self, failure: Exception) -> None:
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(failure.copy() if isinstance(failure, ConnectFailed) else failure)


def _closed() -> ConnectFailed:
    return ConnectFailed(Phase.LOCAL, "closed", "the account's connections are being closed")
