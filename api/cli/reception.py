"""Takes connections in for HTTP, so many at once: each takes a descriptor that mail needs too.

Who is owed an answer stays. Who owes something is a guest with a time limit: the rest of a TLS handshake or of a
header, a next request, or to take the answer that was written. When all places are taken, the guest that owes longest
goes and the new one comes in: were the new one refused, whoever opens a thousand connections and says nothing would
keep all others out, while a client that says at once what it wants is never the oldest for long. Only where every place
has its request under way is the new one closed.
"""

from __future__ import annotations

import asyncio
import resource
import ssl
import time
from collections.abc import Callable
from socket import socket
from typing import Protocol

import structlog

log = structlog.get_logger()

SHARE_OF_DESCRIPTORS = 4  # HTTP has at most one in so many
TAKEN_AT_ONCE = 16  # connections in one turn of the loop
SWEEP_SECONDS = 1.0  # time limits are kept to this much
AGAIN_SECONDS = 0.1  # after the system had no descriptor or memory for another connection
TOLD_AGAIN_SECONDS = 60.0  # between two lines of the log that say the same


class Guest(Protocol):
    """A connection as seen from here."""

    def time_is_over(self) -> None:
        """What it owes did not come in time."""
        ...

    def drop(self) -> None:
        """Close at once: its place is needed, or its time is long over."""
        ...

    def unsent(self) -> int:
        """0: its client has taken all of its answers; else a number that changes as it takes more."""
        ...


def places(wanted: int) -> int:
    """How many connections there may be: no more than a share of the descriptors that this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft // SHARE_OF_DESCRIPTORS))


class Guests:
    """Who is here, who owes what since when. `header_seconds`: for handshake and header; `answer_seconds`: without any
    octet of an answer taken.
    """

    def __init__(self, *, most: int, header_seconds: float, answer_seconds: float) -> None:
        self.header_seconds = header_seconds
        self._most = most
        self.answer_seconds = answer_seconds
        self._here: set[Guest] = set()
        self._waiting: dict[Guest, float] = {}  # the oldest first
        self._stalled: dict[Guest, tuple[float, int]] = {}  # since when no octet of how many was taken; likewise

    def came(self, guest: Guest) -> None:
        """It takes a place."""
        self._here.add(guest)

    def waits(self, guest: Guest) -> None:
        """It owes a request, or the rest of one, from now on."""
        self._stalled.pop(guest, None)
        self._waiting.pop(guest, None)  # so that the oldest stays first
        if guest in self._here:  # one that is gone may have an answer finished behind it
            self._waiting[guest] = time.monotonic()

    def begins(self, guest: Guest) -> None:
        """The first octet of what it owes came: from now on it has time for the rest."""
        if guest in self._waiting:  # not one that is owed an answer, and sends the next request already
            self.waits(guest)

    def asked(self, guest: Guest) -> None:
        """Its request is under way."""
        self._waiting.pop(guest, None)
        self._stalled.pop(guest, None)

    def stalls(self, guest: Guest) -> None:
        """It does not take what was written to it."""
        self._waiting.pop(guest, None)
        self._stalled.pop(guest, None)
        if guest in self._here:
            self._stalled[guest] = (time.monotonic(), guest.unsent())

    def left(self, guest: Guest) -> None:
        """Its connection is gone."""
        self._here.discard(guest)
        self._waiting.pop(guest, None)
        self._stalled.pop(guest, None)

    def make_room(self) -> bool:
        """For one more, if need be at the cost of who owes longest; False: nobody owes anything."""
        if len(self._here) < self._most:
            return True
        for owing in (self._waiting, self._stalled):
            for oldest in owing:
                self.left(oldest)  # now: the connection itself is gone a turn of the loop later
                oldest.drop()
                return True
        return False

    def sweep(self) -> None:
        """Call it now and then: ends the time of those that owe something too long."""
        now = time.monotonic()
        for guest, since in list(self._waiting.items()):
            if now - since < self.header_seconds:
                break
            if guest.unsent():
                self.stalls(guest)
            else:
                self.waits(guest)  # for its end
                guest.time_is_over()
        for guest, (since, unsent) in list(self._stalled.items()):
            if guest.unsent() != unsent:
                self.stalls(guest)
            elif now - since >= self.answer_seconds:
                guest.drop()


class Reception:
    """Accepts on `listener` and makes a connection of each that there is room for. `make`: its protocol."""

    def __init__(
        self, guests: Guests, listener: socket, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
    ) -> None:
        self._guests = guests
        self._listener = listener
        self._make = make
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._arrivals: dict[asyncio.Task[None], _Arrival] = {}
        self._told_at: dict[str, float] = {}
        self._open = True
        self._watch()
        self._sweep()

    async def close(self) -> None:
        """No more; those in the middle of their handshake go. Time limits are kept on: requests are under way."""
        self._open = False
        self._loop.remove_reader(self._listener)
        if self._tls is not None:
            for arrival in self._arrivals.values():
                arrival.drop()
        await asyncio.gather(*self._arrivals, return_exceptions=True)

    def _watch(self) -> None:
        if self._open:
            self._loop.add_reader(self._listener, self._accept)

    def _sweep(self) -> None:
        self._loop.call_later(SWEEP_SECONDS, self._sweep)  # first: no time limit may end with an error
        self._guests.sweep()

    def _accept(self) -> None:
        for _ in range(TAKEN_AT_ONCE):
            if self._tls is None and len(self._arrivals) >= TAKEN_AT_ONCE:
                return  # those first, so that there are some that can go
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # it would be there at once again, and the loop turn for nothing else
                self._tell("no connection can be taken", f"{error.strerror}; look at LimitNOFILE of the unit")
                self._loop.remove_reader(self._listener)
                self._loop.call_later(AGAIN_SECONDS, self._watch)
                return
            if self._guests.make_room():
                self._begin(connection)
            else:
                connection.close()
                self._tell("too many connections", "all have requests under way: raise MPU_MAX_HTTP_CONNECTIONS")

    def _begin(self, connection: socket) -> None:
        connection.setblocking(False)
        task = self._loop.create_task(self._take(connection))
        self._arrivals[task] = arrival = _Arrival(task)
        self._guests.came(arrival)
        # without TLS it is here in a turn of the loop; and uvloop, cancelled, would tell no protocol
        if self._tls is not None:
            self._guests.waits(arrival)
        task.add_done_callback(self._arrived)

    async def _take(self, connection: socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._guests.header_seconds if self._tls else None,
                ssl_shutdown_timeout=self._guests.answer_seconds if self._tls else None,
            )
        except OSError as error:  # it hung up, or spoke no TLS
            log.debug("connection not taken", reason=str(error))
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise

    def _arrived(self, task: asyncio.Task[None]) -> None:
        self._guests.left(self._arrivals.pop(task))  # the connection itself came just before

    def _tell(self, event: str, remedy: str) -> None:
        now = time.monotonic()
        if now - self._told_at.get(event, -TOLD_AGAIN_SECONDS) >= TOLD_AGAIN_SECONDS:
            self._told_at[event] = now
            log.warning(event, remedy=remedy)


class _Arrival:
    """A guest until its handshake is through."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def time_is_over(self) -> None:
        self.drop()

    def drop(self) -> None:
        self._task.cancel()

    def unsent(self) -> int:
        return 0
