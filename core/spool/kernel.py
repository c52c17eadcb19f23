"""What the kernel and the file system can do, each with a portable fallback that is chosen by trying.

renameat2, leases and preallocation may be missing on the platform, the file system or by right. A feature that is
switched off in Features is never tried, which is how tests show its fallback.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast

_RENAME_NOREPLACE = 1

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
NO_RIGHT = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NOT_HERE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY})


@dataclass(slots=True)
class Features:
    """What may be tried in one directory. Turned off for good where the file system refuses it."""

    rename_noreplace: bool = True  # renameat2(RENAME_NOREPLACE); else link + unlink
    lease: bool = True  # F_SETLEASE; else events and rest
    flock: bool = True  # flock on read-only descriptors; else a lock file in .mpu/ (NFS)
    preallocate: bool = True  # posix_fallocate; else logs grow as they are written
    inotify: bool = True  # else the interval alone


class _Renameat2(Protocol):
    def __call__(self, old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int, /) -> int: ...


@cache
def _renameat2() -> _Renameat2 | None:
    file, name = ctypes.c_int, ctypes.c_char_p
    return cast("_Renameat2 | None", _of_libc("renameat2", ctypes.c_int, file, name, file, name, ctypes.c_uint))


def _of_libc(name: str, result: type, *arguments: type) -> Any:
    """A function of the C library; None on another platform, or where the library is older than the function."""
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError):
        return None
    function.argtypes, function.restype = arguments, result
    return function


def _rename_once(old_fd: int, old: bytes, new_fd: int, new: bytes) -> int:
    """0, or the error's number."""
    function = _renameat2()
    if function is None:
        return errno.ENOSYS
    return 0 if function(old_fd, old, new_fd, new, _RENAME_NOREPLACE) == 0 else ctypes.get_errno()


def rename_noreplace(old: bytes, new: bytes, *, old_fd: int, new_fd: int, features: Features) -> None:
    """Rename relative to directory descriptors, never overwriting. Raises OSError: EEXIST, ENOENT, EXDEV and others.

    The fallback is two steps; a kill between them leaves both names with one inode, which recovery knows.
    """
    if features.rename_noreplace:
        number = _rename_once(old_fd, old, new_fd, new)
        if number == 0:
            return
        if number not in _NOT_HERE:
            raise OSError(number, os.strerror(number), old)
        features.rename_noreplace = False
    os.link(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd, follow_symlinks=False)
    os.unlink(old, dir_fd=old_fd)


_SETLEASE = getattr(fcntl, "F_SETLEASE", None)
_SETSIG = getattr(fcntl, "F_SETSIG", 10)
_QUIET_SIGNAL = int(getattr(signal, "SIGURG", 0))  # a writer that meets the lease raises it; ignored by default


def no_writer(fd: int, features: Features) -> bool | None:
    """Whether nobody has the file open for writing, mmap included; None where that can't be told.

    A read lease is taken and dropped at once. A writer that opens the file in between makes the kernel signal us:
    F_SETSIG turns the deadly SIGIO into a signal that is ignored by default, for this descriptor alone, so this works
    in any thread and changes nothing of the process that embeds it.
    """
    if not features.lease or _SETLEASE is None or not _QUIET_SIGNAL:
        return None
    try:
        fcntl.fcntl(fd, _SETSIG, _QUIET_SIGNAL)
        fcntl.fcntl(fd, _SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOMEM):
            features.lease = False
        return None
    fcntl.fcntl(fd, _SETLEASE, fcntl.F_UNLCK)
    return True


class _Getdents64(Protocol):
    def __call__(self, fd: int, buffer: ctypes.Array[ctypes.c_char], octets: int, /) -> int: ...


@cache
def _getdents64() -> _Getdents64 | None:
    octets = ctypes.c_size_t
    return cast("_Getdents64 | None", _of_libc("getdents64", ctypes.c_ssize_t, ctypes.c_int, ctypes.c_char_p, octets))


_LISTING_OCTETS = 1 << 16  # of names at a time
_DIRENT = struct.Struct("=QqHB")  # struct linux_dirent64 (getdents64(2)): inode, offset, length, type; the name follows


def listing(dir_fd: int) -> Generator[bytes, None, None]:
    """Names in a directory, streaming. Raises OSError."""
    with closing(inodes(dir_fd)) as entries:
        for name, _ in entries:
            yield name


def inodes(dir_fd: int) -> Generator[tuple[bytes, int], None, None]:
    """Names in a directory with their inodes, streaming. Raises OSError.

    Many with one call: scandir lets go of the interpreter at each name, and beside a loop that is busy sending it takes
    longer to come back than to read hundreds (a count of 15,000 took 0.4 to 0.9 s, and the loop as much of its time).
    """
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)  # its own position, unlike a dup
    try:
        getdents = _getdents64()
        if getdents is None:
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield os.fsencode(entry.name), entry.inode()
            return
        buffer = ctypes.create_string_buffer(_LISTING_OCTETS)
        while size := _filled(getdents, fd, buffer):
            records, at = ctypes.string_at(buffer, size), 0
            while at < size:
                inode, _, length, _ = _DIRENT.unpack_from(records, at)
                begin = at + _DIRENT.size
                name = records[begin : records.index(0, begin)]
                at += length
                if name != b"." and name != b"..":
                    yield name, inode
    finally:
        os.close(fd)


def _filled(getdents: _Getdents64, fd: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Octets that were read; 0 at the end, which is where a removed directory is too (readdir(3)). Raises OSError."""
    while (size := getdents(fd, buffer, len(buffer))) < 0:
        number = ctypes.get_errno()
        if number == errno.ENOENT:
            return 0
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return size


def lock(fd: int) -> bool:
    """Take the exclusive flock; False if somebody holds it. Raises OSError where that can't be (NFS: EBADF)."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def preallocate(fd: int, size: int, features: Features) -> None:
    """Reserve blocks, so that later writes can't meet a full disk. Raises OSError ENOSPC, EDQUOT, EIO."""
    if not features.preallocate or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        features.preallocate = False


@cache
def boot_id() -> str:
    """Changes with each start of the machine; "" where that can't be told."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def boot_time() -> float | None:
    """When the machine was started, seconds since the epoch."""
    with suppress(OSError, ValueError), open("/proc/stat", encoding="ascii") as file:
        for line in file:
            if line.startswith("btime "):
                return float(line.split()[1])
    return None
