"""A TCP proxy that stands for distance: what comes in leaves so much later, each way, and as fast as it came.

    python -m benchmarks.peers.proxy PORT_OF_SERVER [--seconds 0.025]

Prints its own port. For each line on its standard input it prints the round trips so far. What a client sends after it
was given octets of the server is one round trip further than what it had sent before; the longest such chain of a
connection counts, and those of all connections are added up. It is what would remain of the time if all work took
none, so a busy machine doesn't spoil it.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

DELAY_SECONDS = 0.025


class Side(asyncio.Protocol):
    """One end of a connection. `depth`: in how many round trips came about what it was given so far."""

    def __init__(self, seconds: float, *, client: bool) -> None:
        self.other = self
        self.depth = 0
        self._seconds = seconds
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._under_way: deque[tuple[bytes, int]] = deque()  # to the other end, and the depth with which it left
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.writelines(self._early)

    def data_received(self, data: bytes) -> None:
        self._later(data)

    def eof_received(self) -> bool:
        return True  # our end is closed when what is under way has arrived

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._later(b"")

    def _later(self, data: bytes) -> None:
        self._under_way.append((data, self.depth))
        asyncio.get_running_loop().call_later(self._seconds, self._arrive)

    def _arrive(self) -> None:
        data, depth = self._under_way.popleft()
        self.other.take(data, depth)

    def take(self, data: bytes, depth: int) -> None:
        """Octets of the other end; none: it has closed."""
        if not data:
            if self._transport is not None:
                self._transport.close()
            return
        self.depth = max(self.depth, depth + self._client)
        if self._transport is None:
            self._early.append(data)
        else:
            self._transport.write(data)


async def serve(port: int, seconds: float) -> None:
    """Until standard input ends."""
    loop = asyncio.get_running_loop()
    clients: list[Side] = []
    connecting: set[asyncio.Task[None]] = set()

    def accept() -> Side:
        client, server = Side(seconds, client=True), Side(seconds, client=False)
        client.other, server.other = server, client
        clients.append(client)
        connecting.add(loop.create_task(connect(client, server)))
        return client

    async def connect(client: Side, server: Side) -> None:
        try:
            await loop.create_connection(lambda: server, "127.0.0.1", port)
        except OSError:
            client.take(b"", 0)

    listening = await loop.create_server(accept, "127.0.0.1", 0, backlog=200)
    print(listening.sockets[0].getsockname()[1], flush=True)
    asked = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    while await asked.readline():
        print(sum(client.depth for client in clients), flush=True)


@contextmanager
def distance(port: int, seconds: float = DELAY_SECONDS) -> Iterator[tuple[int, Callable[[], int]]]:
    """In a process of its own: its port, and what tells the round trips so far."""
    command = [sys.executable, "-m", "benchmarks.peers.proxy", str(port), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asking, answering = process.stdin, process.stdout

        def round_trips() -> int:
            asking.write("\n")
            return int(answering.readline())

        try:
            yield int(answering.readline()), round_trips
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.proxy")
    parser.add_argument("port", type=int)
    parser.add_argument("--seconds", type=float, default=DELAY_SECONDS)
    options = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(options.port, options.seconds))


if __name__ == "__main__":
    main()
