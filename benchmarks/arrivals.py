"""A mail server in a process of its own that takes all it gets and says when: CLOCK_MONOTONIC, all processes' own.

It does little for a message, so that the relay is what is measured. A message whose sender is `wait.NAME@...` is told
one by one (`marks`); of the others there are sums (`seen`). With `gate` it holds the content of each message at its
middle until so many are under way at once; with `hang` it takes connections and never answers.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

_HELLO = b"250-sink.test\r\n250-PIPELINING\r\n250-SIZE 104857600\r\n250 8BITMIME\r\n"
_ANSWERS = {
    b"EHLO": _HELLO,
    b"DATA": b"354 Go ahead\r\n",
    b"RCPT": b"250 2.1.5 Ok\r\n",
    b"RSET": b"250 2.0.0 Ok\r\n",
    b"NOOP": b"250 2.0.0 Ok\r\n",
    b"QUIT": b"221 2.0.0 Bye\r\n",
}
_MARK = b"<wait."
_GATE_SECONDS = 60.0  # then it opens by itself
_GATE_BUFFER = 1 << 18  # octets
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """Since the last `reset`. Times: CLOCK_MONOTONIC, 0 where nothing came."""

    count: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    longest_gap: float = 0.0  # seconds between two messages
    most_at_once: int = 0  # contents under way

    @property
    def rate(self) -> float:
        """Messages a second from the first to the last."""
        return (self.count - 1) / (self.last_at - self.first_at) if self.count > 1 else 0.0


class Sink:
    """The parent's end: starts the process, and asks it."""

    def __init__(self, *, gate: int = 0, gate_bytes: int = 0) -> None:
        self.marks: dict[str, float] = {}  # those that `collect` or `arrival` took so far
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, gate, gate_bytes), daemon=True)
        self._process.start()
        child.close()
        if not self._pipe.poll(PATIENCE_SECONDS):
            raise RuntimeError("the sink did not start")
        self.port: int = self._pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def reset(self) -> None:
        """Begin the sums anew."""
        self._ask("reset")

    def seen(self) -> Seen:
        """The sums so far."""
        return self._ask("seen")

    def arrival(self, mark: str, patience: float = PATIENCE_SECONDS) -> float:
        """Wait for one message; when it came."""
        deadline = time.monotonic() + patience
        while mark not in self.marks:
            if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"{mark} did not come within {patience:.0f} s")
            self._note(self._pipe.recv())
        return self.marks[mark]

    def collect(self) -> None:
        """Take what was told meanwhile."""
        while self._pipe.poll():
            self._note(self._pipe.recv())

    def _ask(self, what: str) -> Seen:
        self._pipe.send(what)
        while True:
            answer = self._pipe.recv()
            if isinstance(answer, Seen):
                return answer
            self._note(answer)

    def _note(self, told: object) -> None:
        if isinstance(told, tuple):
            mark, at = told
            self.marks.setdefault(mark, at)


class Silent:
    """A port whose connections are never answered: the kernel takes them, and nobody reads."""

    def __enter__(self) -> int:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        port: int = self._socket.getsockname()[1]
        return port

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


# --- the process ------------------------------------------------------------------------------------------------------


def _serve(pipe: Connection, gate: int, gate_bytes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    import uvloop

    uvloop.run(_Server(pipe, gate, gate_bytes).run())


class _Server:
    def __init__(self, pipe: Connection, gate: int, gate_bytes: int) -> None:
        self.pipe = pipe
        self.gate = gate
        self.gate_bytes = gate_bytes
        self.held: list[_Session] = []
        self.at_once = 0
        self.most_at_once = 0
        self._forget()

    def _forget(self) -> None:
        self.count = 0
        self.first_at = self.last_at = self.longest_gap = 0.0
        self.most_at_once = self.at_once

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        listener = socket.socket()
        if self.gate:  # else the kernel takes all the rest of a message that is held at its middle
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _GATE_BUFFER)
        listener.bind(("127.0.0.1", 0))
        await loop.create_server(lambda: _Session(self), sock=listener, backlog=512)
        loop.add_reader(self.pipe.fileno(), self._asked)
        self.pipe.send(listener.getsockname()[1])
        await asyncio.Event().wait()

    def _asked(self) -> None:
        try:
            what = self.pipe.recv()
        except EOFError:
            asyncio.get_running_loop().stop()
            return
        if what == "reset":
            self._forget()
        self.pipe.send(Seen(self.count, self.first_at, self.last_at, self.longest_gap, self.most_at_once))

    def took(self, sender: bytes) -> None:
        """A message is there, whole."""
        now = time.monotonic()
        if self.count:
            self.longest_gap = max(self.longest_gap, now - self.last_at)
        else:
            self.first_at = now
        self.count += 1
        self.last_at = now
        if sender.startswith(_MARK):
            with suppress(OSError):
                self.pipe.send((sender[len(_MARK) : sender.index(b"@")].decode(), now))

    def begun(self) -> None:
        """Content begins on one connection."""
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)

    def hold(self, session: _Session) -> None:
        """One more is at its middle; the last one opens the gate for all."""
        self.held.append(session)
        if len(self.held) == 1:
            asyncio.get_running_loop().call_later(_GATE_SECONDS, self.open)
        if len(self.held) >= self.gate:
            self.open()

    def open(self) -> None:
        """All go on."""
        self.gate = 0
        held, self.held = self.held, []
        for session in held:
            session.go_on()


class _Session(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._rest = b""
        self._in_content = False
        self._octets = 0
        self._sender = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's, which uvloop's types don't say
        assert self._transport is not None
        self._transport.write(b"220 sink.test ESMTP\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        if self._in_content:
            self._server.at_once -= 1

    def data_received(self, data: bytes) -> None:
        answers: list[bytes] = []
        octets = self._rest + data if self._rest else data
        place, end = 0, len(octets)
        self._rest = b""
        while place < end:
            if self._in_content:
                dot = octets.find(b"\r\n.\r\n", place)
                if dot < 0:
                    self._content(end - place, octets[max(place, end - 4) :])
                    break
                place = dot + 5
                self._in_content = False
                self._server.at_once -= 1
                self._server.took(self._sender)
                answers.append(b"250 2.0.0 Ok\r\n")
            else:
                line = octets.find(b"\r\n", place)
                if line < 0:
                    self._rest = octets[place:]
                    break
                answers.append(self._command(octets[place:line]))
                place = line + 2
        if answers and self._transport is not None:
            self._transport.write(b"".join(answers))

    def _content(self, octets: int, rest: bytes) -> None:
        self._rest = rest
        self._octets += octets - len(rest)
        if self._server.gate and self._octets > self._server.gate_bytes and self._transport is not None:
            self._transport.pause_reading()
            self._server.hold(self)

    def go_on(self) -> None:
        """The gate is open."""
        if self._transport is not None:
            self._transport.resume_reading()

    def _command(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        if verb == b"MAIL":
            self._sender = line[10:].lstrip()
            return b"250 2.1.0 Ok\r\n"
        if verb == b"DATA":
            self._in_content = True
            self._octets = 0
            self._server.begun()
        elif verb == b"QUIT" and self._transport is not None:
            self._transport.write(_ANSWERS[verb])
            self._transport.close()
            return b""
        return _ANSWERS.get(verb, b"500 5.5.2 unknown command\r\n")
