"""An open message file, read with pread and held against what fstat said of it.

Every read is checked: a file that is shorter or longer than it was, or was written since, raises MessageChanged, so
that the connection is closed before the final dot. The descriptor belongs to the caller.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from core.domain.content import BodyNormaliser
from core.errors import MessageChanged, MessageUnreadable

CHUNK_OCTETS = 262_144


@dataclass(slots=True)  # one a message (core/domain)
class MessageFile:
    """An open message file and what fstat said of it. Raises MessageChanged and MessageUnreadable."""

    fd: int
    size: int
    mtime_ns: int

    def read(self, offset: int, length: int) -> bytes:
        """`length` octets at `offset`, all of which must be there."""
        data = self._pread(offset, length)
        while len(data) < length:
            more = self._pread(offset + len(data), length - len(data))
            if not more:
                raise MessageChanged(f"the file is shorter than the {self.size} octets it had")
            data += more
        return data

    def read_all(self) -> bytes:
        """All of it, and nothing behind it."""
        return self.read_rest(0)

    def read_rest(self, offset: int) -> bytes:
        """All from `offset` on, and nothing behind it."""
        size = self.size - offset
        data = self._pread(offset, size + 1)
        if len(data) < size:
            data += self.read(offset + len(data), size - len(data))
        if len(data) > size:
            raise MessageChanged(f"the file is longer than the {self.size} octets it had")
        return data

    def check(self) -> None:
        """Size and mtime are what they were."""
        now = os.fstat(self.fd)
        if now.st_size != self.size or now.st_mtime_ns != self.mtime_ns:
            raise MessageChanged(f"the file changed while it was read: {self.size} octets before, {now.st_size} now")

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self.fd, length, offset)
        except OSError as error:
            raise MessageUnreadable(f"the file can't be read: {error.strerror}") from error


@dataclass(slots=True)
class BodySource:
    """The body in its file: raw octets from `start` to `end`, and how they become what is sent."""

    file: MessageFile
    start: int
    end: int
    held: bytes | None  # all of it, where it is kept in memory
    size: int  # octets of `chunks`
    unstuff: bool
    as_is: bool

    def raw(self) -> Iterator[bytes]:
        """The file's octets, half a chunk at a time where they may grow."""
        if self.held is not None:
            yield self.held
            return
        step = CHUNK_OCTETS if self.as_is else CHUNK_OCTETS // 2
        for offset in range(self.start, self.end, step):
            yield self.file.read(offset, min(step, self.end - offset))

    def chunks(self) -> Iterator[bytes]:
        """The body with CRLF line ends, without doubled dots if they were."""
        if self.as_is:
            yield from self.raw()
            return
        normaliser = BodyNormaliser(unstuff=self.unstuff)
        for piece in self.raw():
            yield normaliser.feed(piece)
        yield normaliser.end()
