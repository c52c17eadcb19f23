"""The outcome log of one process in one directory: what survives a kill -9 of what was sent.

Segments `.mpu/<owner>.log.N`, flocked while the owner lives, preallocated so that an outcome can't meet a full disk.
A record is its length, the CRC-32 of its body, and the body; zeros end a segment. Records, of claim numbers:

    H boot id                                      first in each segment
    B number, identity, file name, way, recipients begin: the final dot leaves
    O number, identity, file name, outcomes        outcome: the reply was read
    D numbers                                      the group was disposed of

One write(2) a record. A group's outcomes are synced before it is committed, once for all of them, so that a power cut
between the commit and the disposal repeats nothing. Segments go oldest first, so a D never goes before its B; what
keeps an old one is copied forward. Room for the outcomes of all that is begun is kept free.
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
import threading
from binascii import crc32
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from json.encoder import encode_basestring_ascii as _quote
from typing import TYPE_CHECKING

from core.domain.clock import Clock
from core.domain.outcome import RecipientOutcome, Way
from core.errors import RelayError, StorageBroken, StorageFull
from core.spool import kernel
from core.spool.sidecars import TEMPORARY

if TYPE_CHECKING:
    from core.spool.values import Claim

FRAME = struct.Struct("<II")
# kind, number, sequence, time, mtime in seconds and ns (past 2262 one number would not hold it), size, inode, lengths
MARK = struct.Struct("<cQQdqIqQHH")
NANOSECONDS = 1_000_000_000
_SEGMENT_OCTETS = 1 << 20
_SEGMENTS_KEPT = 4  # more than that, and what keeps the oldest is copied forward
_ROOM_PER_RECIPIENT = 400  # octets of an outcome, usually 150
_PROBE_SECONDS = 1.0
_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})
MAX_RECORD = 64 << 20
UNNAMED = TEMPORARY + b"log-"  # segments that are being made: locked from the first moment on, and large


def _row(outcome: RecipientOutcome, text_limit: int) -> str:
    """JSON by hand: this is written for every message."""
    code, enhanced_code, blame = outcome.code, outcome.enhanced_code, outcome.blame
    return (
        f'[{_quote(outcome.recipient)},"{outcome.outcome}","{outcome.phase}",'
        f"{'null' if blame is None else _quote(blame)},{'null' if code is None else int(code)},"
        f"{'null' if enhanced_code is None else _quote(enhanced_code)},{_quote(outcome.text[:text_limit])}]"
    )


def _way(way: Way) -> str:
    tls = "null" if way.tls is None else _quote(way.tls)
    return f"[{_quote(way.account)},{_quote(way.server)},{tls},{way.started_at!r}]"


@dataclass(slots=True)
class _Kept:
    """Records of a claim of ours that is not disposed of, as written."""

    first: int  # the oldest segment that has one
    records: list[bytes] = field(default_factory=list)
    room: int = 0  # reserved for its outcomes


class OutcomeLog:
    """Ours. Thread-safe: outcomes come from the event loop, disposals from the writer thread."""

    def __init__(
        self, mpu_fd: int, *, clock: Clock, features: kernel.Features, segment_octets: int = _SEGMENT_OCTETS
    ) -> None:
        self.owner = f"{os.getpid()}-{secrets.token_hex(6)}"
        self.boot = kernel.boot_id()
        self.refused = False  # the last fault was a missing right
        self._mpu_fd = mpu_fd
        self._clock = clock
        self._features = features
        self._segment_octets = segment_octets
        self._lock = threading.RLock()  # the collector may close a log anywhere
        self._segments: deque[tuple[int, int]] = deque()  # number, descriptor; the last is written to
        self._next_segment = 0
        self._offset = 0
        self._end = 0
        self._reserved = 0
        self._numbers = count(1)
        self._sequence = count()  # makes each record unlike any other, so that copies can be told
        self._open: dict[int, _Kept] = {}
        self._unsynced: set[int] = set()  # segments with outcomes that a power cut would take
        self._unnamed = False  # the newest segment's name isn't synced
        self._error: RelayError | None = None
        self._probe_at = 0.0

    @property
    def usable(self) -> bool:
        """False after an append failed: until one works again (no space; tried once a second), or for good (EIO, or
        whatever else is no want of room or right).
        """
        if self._error is None:
            return True
        if isinstance(self._error, StorageBroken) or self._clock.monotonic() < self._probe_at:
            return False
        with self._lock, suppress(RelayError):
            self._write(b"N", room=_ROOM_PER_RECIPIENT * 100)
        return self._error is None

    @property
    def error(self) -> RelayError | None:
        """Why it isn't usable."""
        return self._error

    def stop(self, error: StorageBroken) -> None:
        """A sync failed with EIO: never retried, no more claims."""
        with self._lock:  # an append that is under way would forget it
            self._error = error

    # --- appending ---------------------------------------------------------------------------------------------------

    def next_number(self) -> int:
        """The number of a new claim."""
        return next(self._numbers)

    def begin(self, claim: Claim, recipients: Sequence[str]) -> None:
        """Before the final dot leaves. Raises StorageFull, StorageBroken."""
        way = claim.way
        via = "" if way is None else _way(way)
        body = self._mark(b"B", claim) + "\0".join([via, *recipients]).encode("utf-8", "surrogateescape")
        self._append(body, claim.number, room=_ROOM_PER_RECIPIENT * len(recipients))

    def outcome(self, claim: Claim, outcomes: Sequence[RecipientOutcome]) -> None:
        """As soon as the reply was read. Raises StorageFull, StorageBroken."""
        limit = MAX_RECORD // (32 * len(outcomes))  # characters; one takes up to 12 octets, a mailbox 1,500
        rows = ",".join([_row(outcome, limit) for outcome in outcomes])
        body = self._mark(b"O", claim) + f"[{rows}]".encode("ascii")
        self._append(body, claim.number, room=-_ROOM_PER_RECIPIENT * len(outcomes))

    def disposed(self, numbers: Iterable[int]) -> None:
        """The group is where it belongs. Raises StorageFull, StorageBroken: recovery then finds that out itself."""
        done = [n for n in numbers if n in self._open]
        if not done:
            return
        body = b"D" + struct.pack(f"<{len(done)}Q", *done)
        with self._lock:
            try:
                self._write(body)
            finally:
                for number in done:
                    kept = self._open.pop(number, None)
                    self._reserved -= kept.room if kept else 0
                self._drop_segments()

    def sync(self) -> None:
        """What was appended so far survives a power cut. Beside appends: they don't wait for it. Raises OSError."""
        with ExitStack() as stack:

            def kept(fd: int) -> int:
                """One of our own: the segment may be dropped meanwhile."""
                copy = os.dup(fd)
                stack.callback(os.close, copy)
                return copy

            with self._lock:
                unsynced = {number: kept(fd) for number, fd in self._segments if number in self._unsynced}
                unnamed = kept(self._mpu_fd) if unsynced and self._unnamed else -1
                self._unsynced.clear()
                self._unnamed = self._unnamed and unnamed < 0
            try:
                for fd in unsynced.values():
                    os.fdatasync(fd)
                if unnamed >= 0:
                    sync_names(unnamed)
            except OSError as error:
                if error.errno != errno.EIO:  # which is never retried
                    with self._lock:
                        self._unsynced |= unsynced.keys() & {number for number, _ in self._segments}
                        self._unnamed = self._unnamed or unnamed >= 0
                raise

    def _mark(self, kind: bytes, claim: Claim) -> bytes:
        opened = claim.opened
        identity = opened.identity
        name, file_name = identity.name, opened.file_name
        mark = MARK.pack(
            kind,
            claim.number,
            next(self._sequence),
            self._clock.now(),
            *divmod(identity.mtime_ns, NANOSECONDS),
            identity.size,
            opened.inode,
            len(name),
            len(file_name),
        )
        return mark + name + file_name

    def _append(self, body: bytes, number: int, *, room: int) -> None:
        with self._lock:
            self._write(body, room=max(0, room))
            newest = self._segments[-1][0]
            self._unsynced.add(newest)
            kept = self._open.get(number)
            if kept is None:
                kept = self._open[number] = _Kept(newest)
            kept.records.append(body)
            change = max(-kept.room, room)
            kept.room += change
            self._reserved += change

    def _write(self, body: bytes, *, room: int = 0) -> None:
        """One record. `room` is left free behind it, and what is reserved."""
        record = FRAME.pack(len(body), crc32(body)) + body
        needed = len(record) + room
        if body[:1] in b"BN":  # outcomes are what the rest is reserved for
            needed += self._reserved
        if self._error is not None and isinstance(self._error, StorageBroken):
            raise self._error
        try:
            if self._offset + needed > self._end:
                self._rotate(len(record) + room + self._reserved)
            self._put(record)
        except OSError as error:
            self._error = self._fault(error)
            self.refused = error.errno in kernel.NO_RIGHT
            self._probe_at = self._clock.monotonic() + _PROBE_SECONDS
            raise self._error from None
        self._error = None

    def _put(self, record: bytes) -> None:
        fd = self._segments[-1][1]
        if os.pwrite(fd, record, self._offset) != len(record):
            os.pwrite(fd, bytes(FRAME.size), self._offset)  # the next record overwrites the torn one
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._offset += len(record)

    @staticmethod
    def _fault(error: OSError) -> RelayError:
        if error.errno in kernel.NO_RIGHT:
            return StorageFull(
                f"the outcome log can't be written: {error.strerror}",
                remedy="give the service's user write rights on .mpu/, or remount the file system writable",
            )
        if error.errno in kernel.NO_SPACE or error.errno in _LIMITS:
            return StorageFull(f"the outcome log can't grow: {error.strerror}", remedy="make room on the file system")
        return StorageBroken(
            f"the outcome log can't be written: {error.strerror}", remedy="check the file system, then restart"
        )

    # --- segments ----------------------------------------------------------------------------------------------------

    def _rotate(self, needed: int) -> None:
        """Begin a new segment with `needed` octets of room and what keeps the oldest one, if there are many."""
        copied: list[_Kept] = []
        if len(self._segments) >= _SEGMENTS_KEPT:
            copied = [k for k in self._open.values() if k.first == self._segments[0][0]]
        frames = [FRAME.pack(len(body), crc32(body)) + body for kept in copied for body in kept.records]
        header = b"H" + self.boot.encode("ascii")
        needed += sum(map(len, frames)) + len(header) + FRAME.size
        fd = self._create_segment(header, max(self._segment_octets, needed))
        self._segments.append((self._next_segment, fd))
        self._next_segment += 1
        self._unnamed = True
        self._offset = FRAME.size + len(header)
        self._end = max(self._segment_octets, needed)
        for frame in frames:
            self._put(frame)
        for kept in copied:
            kept.first = self._segments[-1][0]
            self._unsynced.add(kept.first)
        self._drop_segments()

    def _create_segment(self, header: bytes, size: int) -> int:
        temporary = UNNAMED + secrets.token_hex(8).encode()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(temporary, flags, 0o660, dir_fd=self._mpu_fd)
        try:
            kernel.lock(fd)  # before it has its name, so that nobody takes it for a dead owner's
            os.fchmod(fd, 0o660)
            kernel.preallocate(fd, size, self._features)
            os.pwrite(fd, FRAME.pack(len(header), crc32(header)) + header, 0)
            if not self._segments:
                os.fsync(fd)  # so that a restart of the machine can be told
            os.rename(temporary, self._name(self._next_segment), src_dir_fd=self._mpu_fd, dst_dir_fd=self._mpu_fd)
        except OSError:
            os.close(fd)
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._mpu_fd)
            raise
        return fd

    def _name(self, number: int) -> bytes:
        return b"%s.log.%d" % (self.owner.encode(), number)

    def _drop_segments(self, *, all_of_them: bool = False) -> None:
        """Unlink the oldest ones, as far as no open claim needs them; the newest is kept in use."""
        needed = min((k.first for k in self._open.values()), default=self._next_segment)
        while self._segments and self._segments[0][0] < needed and (all_of_them or len(self._segments) > 1):
            number, fd = self._segments.popleft()
            self._unsynced.discard(number)
            with suppress(OSError):
                os.unlink(self._name(number), dir_fd=self._mpu_fd)
            os.close(fd)

    def start(self) -> None:
        """Make the first segment, so that other processes see that we live. Raises StorageFull, StorageBroken."""
        with self._lock:
            self._write(b"N")

    def close(self) -> None:
        """Let go of the locks. What is not disposed of stays in the segments, for the next start's recovery."""
        with self._lock:
            self._error = StorageBroken("the directory is closed")  # its descriptor may be another's from now on
            self._drop_segments(all_of_them=True)
            while self._segments:
                os.close(self._segments.popleft()[1])
            self._offset = self._end = 0


def sync_names(mpu_fd: int) -> None:
    """The names in `.mpu/`, and that of `.mpu/` itself, survive a power cut. Raises OSError."""
    os.fsync(mpu_fd)
    root_fd = os.open(b"..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mpu_fd)
    try:
        os.fsync(root_fd)
    finally:
        os.close(root_fd)
