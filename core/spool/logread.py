"""Reading outcome logs, those of dead owners and of living ones (the format is in log.py)."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
from binascii import crc32
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from core.domain.outcome import Blame, Outcome, RecipientOutcome, Way
from core.domain.reply import Phase
from core.spool import kernel, names
from core.spool.log import FRAME, MARK, MAX_RECORD, NANOSECONDS

_READ_OCTETS = 1 << 18
_NONSENSE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, struct.error)
_SEGMENT = re.compile(rb"(\d+-[0-9a-f]+)\.log\.(\d+)")


@dataclass(slots=True)
class Logged:
    """What a log says of one claim that was not disposed of."""

    owner: str
    number: int
    at: float = 0.0  # of its newest record, seconds since the epoch
    arrival_name: bytes = b""
    file_name: bytes = b""  # when it was claimed
    mtime_ns: int = 0
    size: int = 0
    inode: int = 0
    begun: dict[str, None] = field(default_factory=dict)  # without an outcome since
    outcomes: dict[str, RecipientOutcome] = field(default_factory=dict)
    ways: dict[str, Way] = field(default_factory=dict)  # by recipient

    @property
    def token(self) -> str:
        return f"{self.owner}/{self.number}"

    @property
    def key(self) -> tuple[bytes, int, int]:
        """The message as a file: its name then, mtime, size."""
        return (self.file_name, self.mtime_ns, self.size)

    def fits(self, found: os.stat_result | None) -> bool:
        """Whether what was found somewhere is this message."""
        return found is not None and (found.st_mtime_ns, found.st_size) == (self.mtime_ns, self.size)


@dataclass(slots=True)
class OwnerLog:
    """All segments of one owner."""

    owner: str
    boots: set[str] = field(default_factory=set)
    claims: dict[int, Logged] = field(default_factory=dict)
    segments: dict[int, bytes] = field(default_factory=dict)  # number -> file name
    locks: list[int] = field(default_factory=list)  # descriptors whose locks show that the owner is dead
    records: dict[int, dict[int, bytes]] = field(
        default_factory=dict
    )  # of a claim by sequence: some were copied forward

    @property
    def dead(self) -> bool:
        return bool(self.segments) and len(self.locks) == len(self.segments)

    def close(self) -> None:
        """Let go of the locks."""
        while self.locks:
            os.close(self.locks.pop())

    def remove(self, mpu_fd: int) -> None:
        """Everything in it is where it belongs."""
        for _, name in sorted(self.segments.items()):  # oldest first: a disposal is never lost before its begin
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=mpu_fd)
        self.close()


def read_logs(mpu_fd: int, *, but: Collection[str]) -> list[OwnerLog]:
    """All logs but those of these owners; those of dead owners come locked. The caller closes them."""
    logs: dict[str, OwnerLog] = {}
    for name in kernel.listing(mpu_fd):
        match = _SEGMENT.fullmatch(name)
        if match is not None and (owner := match[1].decode("ascii")) not in but:
            logs.setdefault(owner, OwnerLog(owner)).segments[int(match[2])] = name
    try:
        for log in logs.values():
            for number, name in sorted(log.segments.items()):
                if not _read_segment(mpu_fd, name, log):
                    del log.segments[number]
            _merge(log)
    except BaseException:
        for log in logs.values():
            log.close()
        raise
    return [log for log in logs.values() if log.segments]


def _read_segment(mpu_fd: int, name: bytes, log: OwnerLog) -> bool:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            fd = os.open(name, os.O_RDWR | flags, dir_fd=mpu_fd)  # NFS locks only what is open for writing
        except PermissionError:
            fd = os.open(name, os.O_RDONLY | flags, dir_fd=mpu_fd)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        dead = kernel.lock(fd)
        for body in _bodies(fd):
            with suppress(*_NONSENSE):
                _sort(body, log)
        if dead:
            log.locks.append(fd)
    except OSError:
        return False
    else:
        return True
    finally:
        if fd not in log.locks:
            os.close(fd)


def _bodies(fd: int) -> Iterator[bytes]:
    """A segment's records, no more of it in memory than that; ends at zeros and at the first torn one."""
    data, offset, read = b"", 0, 0
    while True:
        while len(data) - offset < FRAME.size + (wanted := _length(data, offset)):
            part = os.pread(fd, max(_READ_OCTETS, wanted), read)
            if not part:
                return
            data, offset, read = data[offset:] + part, 0, read + len(part)
        length, checksum = FRAME.unpack_from(data, offset)
        body = data[offset + FRAME.size : offset + FRAME.size + length]
        if not 0 < length <= MAX_RECORD or crc32(body) != checksum:
            return
        offset += FRAME.size + length
        yield body


def _length(data: bytes, offset: int) -> int:
    """Of the record that begins there, as far as it can be told; 0 where it is none."""
    if len(data) - offset < FRAME.size:
        return 0
    length: int = FRAME.unpack_from(data, offset)[0]
    return length if length <= MAX_RECORD else 0


def _sort(body: bytes, log: OwnerLog) -> None:
    kind = body[:1]
    if kind == b"H":
        log.boots.add(body[1:].decode("ascii"))
    elif kind == b"D":
        for (number,) in struct.iter_unpack("<Q", body[1:]):
            log.records.pop(number, None)
    elif kind in (b"B", b"O"):
        _, number, sequence, *_ = MARK.unpack_from(body)
        log.records.setdefault(number, {})[sequence] = body


def _merge(log: OwnerLog) -> None:
    """Claims from their records, in the order in which these were written first."""
    for number, records in log.records.items():
        claim = log.claims[number] = Logged(log.owner, number)
        for _, body in sorted(records.items()):
            with suppress(*_NONSENSE):
                _apply(body, claim)
    log.records.clear()


def _apply(body: bytes, claim: Logged) -> None:
    kind, _, _, at, seconds, ns, size, inode, name_length, file_name_length = MARK.unpack_from(body)
    middle = MARK.size + name_length
    rest = body[middle + file_name_length :].decode("utf-8", "surrogateescape")
    arrival_name, file_name = body[MARK.size : middle], body[middle : middle + file_name_length]
    if not (names.is_plain(arrival_name) and names.is_plain(file_name)):
        raise ValueError("no file name")
    claim.at = max(claim.at, at)
    claim.arrival_name, claim.file_name = arrival_name, file_name
    claim.mtime_ns, claim.size, claim.inode = seconds * NANOSECONDS + ns, size, inode
    if kind == b"B":
        via, *recipients = rest.split("\0")
        way = _way(*json.loads(via)) if via else None
        for recipient in recipients:
            claim.begun[recipient] = None
            if way is not None:
                claim.ways[recipient] = way
    else:
        for outcome in map(_outcome, json.loads(rest)):
            claim.begun.pop(outcome.recipient, None)
            claim.outcomes[outcome.recipient] = outcome


def _outcome(row: list[Any]) -> RecipientOutcome:
    recipient, outcome, phase, blame, code, enhanced_code, text = row
    code = None if code is None else int(code)
    if code is not None and not 100 <= code <= 999:
        raise ValueError("no code of a reply")
    return RecipientOutcome(
        recipient=str(recipient),
        outcome=Outcome(outcome),
        phase=Phase(phase),
        blame=None if blame is None else Blame(blame),
        code=code,
        enhanced_code=None if enhanced_code is None else str(enhanced_code),
        text=str(text),
    )


def _way(account: object, server: object, tls: object, started_at: float) -> Way:
    if not math.isfinite(started_at):
        raise ValueError("no time")
    return Way(str(account), str(server), None if tls is None else str(tls), float(started_at))
