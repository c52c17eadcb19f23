"""A message that comes in piece by piece and is written by us: at the end whole, durable and named, or not there.

Once it is staged it is whole and synced under a temporary name, and the identity that it will have is known. Nothing is
opened before the first piece. Each call may come from another thread. Errors: MessageRejected (empty, too large),
DirectoryUnavailable, StorageFull, StorageBroken.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import threading
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from core.domain.account import MessageFormat
from core.domain.message import MessageIdentity, State
from core.errors import MessageRejected, NotRunning
from core.spool import kernel, names
from core.spool.claim import claim_error
from core.spool.dispose import sync_directory
from core.spool.place import DIRECTORY, Place
from core.spool.sidecars import TEMPORARY, write_all
from core.spool.values import Entry

_UNSAFE = re.compile(rb"[^A-Za-z0-9._@+=,-]")


class Submission:
    """See the module's text. `write` as often as wanted, `stage` and `put_in` once, `close` at last."""

    def __init__(self, place: Place, name: bytes | str | None = None) -> None:
        self._place = place
        self._name = name
        self._size = 0
        self._base = b""
        self._temporary = b""  # while it has no other name
        self._fd = self._spool_fd = -1
        self._staged: os.stat_result | None = None
        self._closed = False
        self._held = ExitStack()
        self._lock = threading.Lock()  # a close waits for a write that nobody waits for any more

    def write(self, chunk: bytes) -> None:
        """The next piece."""
        with self._lock:
            try:
                self._write(chunk)
            except OSError as error:
                raise claim_error(self._place, error) from None

    def stage(self, chunk: bytes = b"") -> MessageIdentity:
        """The last piece, then sync. The identity that it has once `put_in` gave it its name."""
        with self._lock:
            try:
                self._write(chunk)
                os.fchmod(self._fd, 0o640)
                os.fsync(self._fd)
                self._staged = os.fstat(self._fd)
                return self._identity(self._base, self._staged)
            except OSError as error:
                raise claim_error(self._place, error) from None

    def put_in(self, *, exactly: bool = False) -> Entry:
        """Rename without overwriting, sync the directory. `exactly`: no other name will do where it is taken."""
        with self._lock:
            assert self._staged is not None
            self._must_be_open()
            try:
                return self._put_in([self._base] if exactly else names.alternatives(self._base), self._staged)
            except OSError as error:
                raise claim_error(self._place, error) from None

    def close(self) -> None:
        """Let go; what has no name of its own by now is removed."""
        with self._lock:
            self._closed = True  # a write that comes late would go to whatever has the descriptor's number by then
            self._held.close()

    def _write(self, chunk: bytes) -> None:
        self._must_be_open()
        self._size += len(chunk)
        limit = self._place.settings.max_message_bytes
        if self._size > limit:
            raise MessageRejected("5.3.4", f"the message has more than max_message_bytes ({limit})")
        if not self._size:
            raise MessageRejected("5.6.0", "the message is empty")
        if self._fd < 0:
            self._open()
        write_all(self._fd, chunk)

    def _must_be_open(self) -> None:
        if self._closed:
            raise NotRunning("the mail was given up", remedy="hand it in again")

    def _open(self) -> None:
        place = self._held.enter_context(self._place)
        place.check_path()
        self._base = _suggested(place, self._name)
        self._spool_fd = place.mpu_fd
        if place.settings.format is MessageFormat.MAILDIR:
            with suppress(OSError):  # its own place for half files
                self._spool_fd = os.open(b"tmp", DIRECTORY, dir_fd=place.root_fd)
                self._held.callback(os.close, self._spool_fd)
        temporary = TEMPORARY + secrets.token_hex(8).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(temporary, flags, 0o640, dir_fd=self._spool_fd)
        self._temporary = temporary
        self._held.callback(os.close, self._fd)
        self._held.callback(self._remove)

    def _identity(self, file_name: bytes, found: os.stat_result) -> MessageIdentity:
        return MessageIdentity(self._place.settings.name, file_name, found.st_mtime_ns, found.st_size)

    def _put_in(self, candidates: Iterable[bytes], found: os.stat_result) -> Entry:
        place = self._place
        place.check_path()
        file_name = self._rename(candidates)
        sync_directory(place, place.work_fd)
        # of before the rename: it may be sent and gone already
        identity = self._identity(file_name, found)
        return Entry(identity, State.WAITING, place.prefix + file_name, found.st_size, found.st_mtime)

    def _rename(self, candidates: Iterable[bytes]) -> bytes:
        place = self._place
        for name in candidates:
            with suppress(FileExistsError):
                kernel.rename_noreplace(
                    self._temporary, name, old_fd=self._spool_fd, new_fd=place.work_fd, features=place.features
                )
                self._temporary = b""
                return name
        raise FileExistsError(errno.EEXIST, "the name is taken")

    def _remove(self) -> None:
        if self._temporary:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._spool_fd)


def _suggested(place: Place, name: bytes | str | None) -> bytes:
    raw = os.fsencode(name) if isinstance(name, str) else name or b""
    base = _UNSAFE.sub(b"_", raw.rpartition(b"/")[2]).lstrip(b".")[:200] or secrets.token_hex(16).encode()
    if place.matches(base):
        return base
    for pattern in place.settings.patterns:
        candidate = base + names.split_extension(os.fsencode(pattern).replace(b"*", b"x"))[1]
        if place.matches(candidate):
            return candidate
    raise MessageRejected("5.3.5", "no file name of ours fits the directory's patterns", remedy="add *.eml to patterns")
