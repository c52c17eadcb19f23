"""Hooks at every effect that a relay has on the world: files, directories, the network, commits. Installed in a child.

An effect is one call: open with O_CREAT, mkdir, rename, link, unlink, write, pwrite, fallocate, truncate, fsync, send
to a mail server, commit of the database. SQLite's own calls are not seen one by one: the commit is the effect, since
that SQLite survives a kill or a power cut within it is SQLite's promise.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from core.spool import kernel
from core.spool.log import OutcomeLog
from core.store.ledger import Ledger

END_OF_DATA = b"\r\n.\r\n"


class Observer(Protocol):
    """What is told of effects."""

    def around(self, kind: str, do: Callable[[], Any], half: Callable[[], Any] | None, about: Sequence[Any]) -> Any:
        """Do it (or not). `half` does a part of it, where there is one. `about`: the arguments, by kind."""
        ...

    def said(self, word: str, *about: Any) -> None:
        """Something that is no effect of its own, but tells what goes on."""
        ...


def install(to: Observer) -> None:
    """Patch this process for good. Plain asyncio only: another loop sends without our knowing."""
    _files(to)
    _network(to)
    _relay(to)


def _files(to: Observer) -> None:  # noqa: C901  # one hook after another, nothing branches
    write, pwrite, rename, link, unlink = os.write, os.pwrite, os.rename, os.link, os.unlink
    fsync, fdatasync, mkdir, open_file, fallocate = os.fsync, os.fdatasync, os.mkdir, os.open, os.posix_fallocate
    once = kernel._rename_once

    def hooked_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def do() -> int:
            return open_file(path, flags, mode, dir_fd=dir_fd)

        if not flags & os.O_CREAT or not isinstance(path, bytes):
            return do()
        fd: int = to.around("open", do, None, (dir_fd, path, flags))
        return fd

    def hooked_write(fd: int, data: Any) -> int:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return write(fd, data)
        half = len(data) // 2
        count: int = to.around("write", lambda: write(fd, data), lambda: write(fd, data[:half]), (fd, bytes(data)))
        return count

    def hooked_pwrite(fd: int, data: Any, offset: int) -> int:
        half = len(data) // 2
        about = (fd, bytes(data), offset)
        count: int = to.around(
            "pwrite", lambda: pwrite(fd, data, offset), lambda: pwrite(fd, data[:half], offset), about
        )
        return count

    def hooked_fallocate(fd: int, offset: int, size: int) -> None:
        to.around("fallocate", lambda: fallocate(fd, offset, size), None, (fd, offset, size))

    def hooked_rename(old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        def do() -> None:
            rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        to.around("rename", do, None, (src_dir_fd, old, dst_dir_fd, new))

    def hooked_once(old_fd: int, old: bytes, new_fd: int, new: bytes) -> int:
        number: int = to.around("rename", lambda: once(old_fd, old, new_fd, new), None, (old_fd, old, new_fd, new))
        return number

    def hooked_link(
        old: Any,
        new: Any,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        def do() -> None:
            link(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)

        to.around("link", do, None, (src_dir_fd, old, dst_dir_fd, new))

    def hooked_unlink(path: Any, *, dir_fd: int | None = None) -> None:
        to.around("unlink", lambda: unlink(path, dir_fd=dir_fd), None, (dir_fd, path))

    def hooked_mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        to.around("mkdir", lambda: mkdir(path, mode, dir_fd=dir_fd), None, (dir_fd, path))

    def hooked_fsync(fd: int) -> None:
        to.around("fsync", lambda: fsync(fd), None, (fd,))

    def hooked_fdatasync(fd: int) -> None:
        to.around("fsync", lambda: fdatasync(fd), None, (fd,))

    hooks: dict[str, Any] = {
        "open": hooked_open,
        "write": hooked_write,
        "pwrite": hooked_pwrite,
        "posix_fallocate": hooked_fallocate,
        "rename": hooked_rename,
        "link": hooked_link,
        "unlink": hooked_unlink,
        "mkdir": hooked_mkdir,
        "fsync": hooked_fsync,
        "fdatasync": hooked_fdatasync,
    }
    for name, hook in hooks.items():
        setattr(os, name, hook)
    kernel._rename_once = hooked_once


def _network(to: Observer) -> None:
    send = socket.socket.send

    def hooked_send(self: socket.socket, data: Any, *flags: int) -> int:
        if self.family not in (socket.AF_INET, socket.AF_INET6):
            return send(self, data, *flags)
        half = len(data) // 2
        about = (self.fileno(), bytes(data))
        count: int = to.around("send", lambda: send(self, data, *flags), lambda: send(self, data[:half], *flags), about)
        return count

    receive, receive_into = socket.socket.recv, socket.socket.recv_into

    def hooked_receive(self: socket.socket, *about: Any) -> bytes:
        data = receive(self, *about)
        to.said("received", self.fileno())
        return data

    def hooked_receive_into(self: socket.socket, *about: Any) -> int:
        count = receive_into(self, *about)
        to.said("received", self.fileno())
        return count

    socket.socket.recv = hooked_receive  # type: ignore[assignment,method-assign]  # as below
    socket.socket.recv_into = hooked_receive_into  # type: ignore[assignment,method-assign]  # as below
    socket.socket.send = hooked_send  # type: ignore[assignment,method-assign]  # that is what a hook is


def _relay(to: Observer) -> None:
    begin, outcome, commit = OutcomeLog.begin, OutcomeLog.outcome, Ledger._commit

    def hooked_begin(self: OutcomeLog, claim: Any, recipients: Sequence[str]) -> None:
        begin(self, claim, recipients)
        to.said("begun", claim.identity.name, list(recipients))

    def hooked_outcome(self: OutcomeLog, claim: Any, outcomes: Sequence[Any]) -> None:
        outcome(self, claim, outcomes)
        to.said("outcome", claim.identity.name, [(o.recipient, o.outcome.value) for o in outcomes])

    def hooked_commit(self: Ledger, entries: Sequence[Any]) -> None:
        to.around("commit", lambda: commit(self, entries), None, ([e.message_id for e in entries],))

    hooks: dict[str, tuple[type, Any]] = {
        "begin": (OutcomeLog, hooked_begin),
        "outcome": (OutcomeLog, hooked_outcome),
        "_commit": (Ledger, hooked_commit),
    }
    for name, (owner, hook) in hooks.items():
        setattr(owner, name, hook)


REPLIES_AT_ONCE = 3  # replies that one read may bring, each logged by an effect of its own


@dataclass
class Dots:
    """Which final dots are out, from what is sent; which of them have their outcome in the log."""

    streams: dict[int, bytes] = field(default_factory=dict)  # by descriptor of the connection
    out: dict[str, int] = field(default_factory=dict)  # keys of mails, and their connections
    read_at: dict[str, int] = field(default_factory=dict)  # the count of effects when the reply was read
    on_dot: Callable[[str], None] = lambda _: None

    def sent(self, fd: int, data: bytes) -> None:
        """Octets left. Connections use a descriptor again only after its last message was answered."""
        stream = self.streams.get(fd, b"") + data
        end = stream.find(END_OF_DATA)
        while end >= 0:
            found = stream[:end].rfind(b"Message-ID: <")
            if found >= 0:
                key = stream[found + 13 : stream.index(b"@", found)].decode()
                self.out[key] = fd
                self.read_at.pop(key, None)
                self.on_dot(key)
            stream = stream[end + len(END_OF_DATA) :]
            end = stream.find(END_OF_DATA)
        self.streams[fd] = stream

    def answered(self, name: bytes) -> None:
        """Its outcome is in the log."""
        self.out.pop(name.decode().removesuffix(".eml"), None)

    def received(self, fd: int, count: int) -> None:
        """A reply was read on this connection."""
        for key, connection in self.out.items():
            if connection == fd:
                self.read_at.setdefault(key, count)

    def open_at(self, count: int, replies: int) -> list[str]:
        """Whose reply was not read before this effect; or just before, and it is the one that logs the outcome."""
        return sorted(key for key in self.out if count <= self.read_at.get(key, count) + replies)


@dataclass
class Killer:
    """Kills this process at the `at`-th effect: before it, halfway through it, or after it. Writes down where."""

    at: int
    mode: str  # before | half | after
    report_fd: int
    alone: bool = True  # one message, whose outcome is the very next effect once its reply was read
    stop_at: str = ""  # kill when a final dot is out ("dot"), or when an "outcome" is in the log
    count: int = 0
    own: int = 0
    dots: Dots = field(default_factory=Dots)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def around(self, kind: str, do: Callable[[], Any], half: Callable[[], Any] | None, about: Sequence[Any]) -> Any:
        if kind == "commit":  # it waits for an effect of another thread
            return self._around_commit(do, about)
        with self._lock:  # effects of other threads wait: the count is exact
            here = self._next(kind, about)
            if here and self.mode == "half" and half is not None:
                done = half()
                if kind == "send":
                    self.dots.sent(about[0], about[1][: int(done)])
                self._die(kind, about)
            result = do()
            if kind == "send":
                self.dots.sent(about[0], about[1][: int(result)])
            if here or (self.stop_at == "dot" and self.dots.out):
                self._die(kind, about)
            return result

    def _next(self, kind: str, about: Sequence[Any]) -> bool:
        self.count += 1
        if self.alone or threading.current_thread() is threading.main_thread():
            self.own += 1  # of the loop: what the ledger's thread does meanwhile delays no outcome
        here = self.count == self.at
        if here and self.mode == "before":
            self._die(kind, about)
        return here

    def _around_commit(self, do: Callable[[], Any], about: Sequence[Any]) -> Any:
        with self._lock:
            here = self._next("commit", about)
        result = do()
        if here:
            with self._lock:
                self._die("commit", about)
        return result

    def said(self, word: str, *about: Any) -> None:
        if word == "received":
            self.dots.received(about[0], self.own)
        elif word == "outcome":
            self.dots.answered(about[0])
            if self.stop_at == "outcome":
                self._die(word, about)

    def _die(self, kind: str, about: Sequence[Any]) -> NoReturn:
        what = next((a for a in about if isinstance(a, bytes)), b"")[:40]
        replies = 1 if self.alone else REPLIES_AT_ONCE
        line = f"{self.mode} {kind} {what!r}\t{','.join(self.dots.open_at(self.own, replies))}"
        os.pwritev(self.report_fd, [line.encode()], 0)
        os.kill(os.getpid(), signal.SIGKILL)
        while True:
            signal.pause()
