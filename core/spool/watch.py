"""Watch directories with inotify: a name is told as soon as its file was closed or moved there.

asyncinotify makes the watches; the events are read here, since names must stay bytes (any but "/" and NUL) and
thousands a second come, half of them of our own renames. Without inotify nothing is watched: the interval is the net.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from core.domain.account import Directory, MessageFormat
from core.errors import DirectoryUnavailable
from core.spool import names

try:
    from asyncinotify import Inotify, Mask, Watch
except (ImportError, OSError, RuntimeError):  # another platform
    _AVAILABLE = False
else:
    _AVAILABLE = True

_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of name
_READ_OCTETS = 1 << 18
_IN_Q_OVERFLOW, _IN_IGNORED, _IN_UNMOUNT = 0x4000, 0x8000, 0x2000
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_ISDIR = 0x400, 0x800, 0x40000000
_LOST = _IN_IGNORED | _IN_UNMOUNT | _IN_DELETE_SELF | _IN_MOVE_SELF
_OURS = (names.LOCK, names.HOLD)


@dataclass(slots=True)
class _Watched:
    name: str
    watch: Watch


class Watcher:
    """Calls back in the event loop. `on_overflow(name)`: events of it may be missing, or it went: scan it."""

    def __init__(
        self,
        on_name: Callable[[str, bytes], None],
        on_overflow: Callable[[str], None],
    ) -> None:
        self._on_name = on_name
        self._on_overflow = on_overflow
        self._by_number: dict[int, _Watched] = {}
        self._inotify: Inotify | None = None
        self._unavailable = "" if _AVAILABLE else "there is no inotify on this platform"

    @property
    def unavailable(self) -> str:
        """Why nothing can be watched; "" if it can."""
        return self._unavailable

    def add(self, directory: Directory) -> str:
        """Watch it, or watch it anew; "" or the reason why not. Raises DirectoryUnavailable if it isn't there."""
        self.remove(directory.name)
        if self._unavailable:
            return self._unavailable
        try:
            inotify = self._inotify or Inotify()
            self._inotify = inotify
            mask = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR
            watch = inotify.add_watch(os.fsencode(watched_path(directory)), mask)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                raise DirectoryUnavailable(f"{directory.path}: {os.strerror(error.errno)}") from None
            if self._inotify is None:
                self._unavailable = _why(error)
            return _why(error)
        self._by_number[watch.wd] = _Watched(directory.name, watch)
        return ""

    def remove(self, name: str) -> None:
        """Watch it no longer. Harmless if it isn't watched."""
        for number, watched in list(self._by_number.items()):
            if watched.name == name:
                del self._by_number[number]
                if self._inotify is not None:
                    with suppress(OSError):  # the kernel let go of it before
                        self._inotify.rm_watch(watched.watch)

    async def run(self) -> None:
        """Tell until cancelled. Directories may be added and removed meanwhile."""
        if not self._unavailable and self._inotify is None:
            try:
                self._inotify = Inotify()
            except OSError as error:
                self._unavailable = _why(error)
        if self._inotify is None:
            await asyncio.get_running_loop().create_future()  # nothing to tell, ever
            return
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[None] = loop.create_future()
        fd = self._inotify.fd
        loop.add_reader(fd, self._readable, fd, failed)
        try:
            await failed
        finally:
            loop.remove_reader(fd)

    def close(self) -> None:
        """Let go of all watches."""
        self._by_number.clear()
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def _readable(self, fd: int, failed: asyncio.Future[None]) -> None:
        try:
            data = os.read(fd, _READ_OCTETS)
        except BlockingIOError:
            return
        except OSError as error:
            if not failed.done():
                failed.set_exception(error)
            return
        self._tell(data)

    def _tell(self, data: bytes) -> None:
        offset, end = 0, len(data)
        while offset < end:
            number, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size
            if mask & _IN_Q_OVERFLOW:
                for watched in list(self._by_number.values()):
                    self._on_overflow(watched.name)
                continue
            found = self._by_number.get(number)
            if found is not None and mask & _LOST:
                self.remove(found.name)
                self._on_overflow(found.name)
            elif found is not None and length and not mask & _IN_ISDIR:
                name = data[offset : offset + length].rstrip(b"\0")
                if not name.endswith(_OURS):
                    self._on_name(found.name, name)
            offset += length


def watched_path(directory: Directory) -> str:
    """Where new mail appears."""
    return os.path.join(directory.path, "new") if directory.format is MessageFormat.MAILDIR else directory.path


def can_watch(directory: Directory) -> str:
    """Why a directory can't be watched; "" if it can."""
    watcher = Watcher(lambda _name, _file: None, lambda _name: None)
    try:
        return watcher.add(directory)
    except DirectoryUnavailable as error:
        return error.detail
    finally:
        watcher.close()


def _why(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the limit of inotify watches is reached (fs.inotify.max_user_watches)"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "the limit of inotify instances or open files is reached (fs.inotify.max_user_instances)"
    return f"inotify: {error.strerror}"
