"""Moves of a message between its states: never overwriting, `x~N.eml` where taken, copied to another device."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from core.domain.message import MessageIdentity, State
from core.spool import kernel, names
from core.spool.claim import stat_at
from core.spool.place import Place
from core.spool.sidecars import TEMPORARY, write_all
from core.spool.values import Opened

_CHUNK_OCTETS = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """Where a message is to lie."""

    state: State
    base: bytes  # without place and suffix
    dir_fd: int
    name: bytes  # in dir_fd
    file_name: bytes  # relative to the directory


def targets(place: Place, state: State, identity: MessageIdentity, base: bytes) -> Iterator[Target]:
    """The name it has, then the one it arrived with, then `x~1.eml`, ... Raises OSError where badmail/ can't be had."""
    yield _target(place, state, base)
    for candidate in names.alternatives(identity.name):
        if candidate != base:
            yield _target(place, state, candidate)


def _target(place: Place, state: State, base: bytes) -> Target:
    if state is State.BADMAIL:
        return Target(state, base, place.badmail_fd(create=True), base, names.BADMAIL + b"/" + base)
    if state is State.HELD:
        return Target(state, base, place.root_fd, base + names.HOLD, base + names.HOLD)
    return Target(state, base, place.work_fd, base, place.prefix + base)


def parse_target(place: Place, file_name: bytes) -> Target:
    """The target that a sidecar names. Raises OSError."""
    base = names.base_of(file_name)
    if file_name.startswith(names.BADMAIL + b"/"):
        return _target(place, State.BADMAIL, base)
    return _target(place, State.HELD if file_name.endswith(names.HOLD) else State.WAITING, base)


def first_free(candidates: Iterator[Target]) -> Target:
    """The first whose name is free now; the move itself still never overwrites."""
    for target in candidates:
        if stat_at(target.dir_fd, target.name) is None:
            return target
    raise OSError(errno.EEXIST, "no free name")


def move(place: Place, old_fd: int, old: bytes, target: Target) -> None:
    """Raises OSError: EEXIST if the name was taken by another file meanwhile."""
    try:
        kernel.rename_noreplace(old, target.name, old_fd=old_fd, new_fd=target.dir_fd, features=place.features)
    except FileExistsError:
        here, there = stat_at(old_fd, old), stat_at(target.dir_fd, target.name)
        if here is None or there is None or (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise
        os.unlink(old, dir_fd=old_fd)  # a kill between link and unlink
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(place, old_fd, old, target)


def is_copy(opened: Opened, target: Target) -> bool:
    """Whether the file at the target has all of the message, time and octets; it is synced then. Raises OSError."""
    identity = opened.identity
    try:
        fd = os.open(target.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=target.dir_fd)
    except OSError:  # a link, a socket, or another user's: none of ours
        return False
    try:
        there = os.fstat(fd)
        if (there.st_mtime_ns, there.st_size) != (identity.mtime_ns, identity.size):
            return False
        for at in range(0, identity.size, _CHUNK_OCTETS):
            if os.pread(fd, _CHUNK_OCTETS, at) != os.pread(opened.fd, _CHUNK_OCTETS, at):
                return False
        os.fsync(fd)
        return True
    finally:
        os.close(fd)


def _copy(place: Place, old_fd: int, old: bytes, target: Target) -> None:
    """To another device: copy, sync, no-replace rename, sync, unlink. Keeps mtime, a part of the identity."""
    temporary = b"." + TEMPORARY + secrets.token_hex(8).encode()
    source = os.open(old, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=old_fd)
    try:
        found = os.fstat(source)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        copy = os.open(temporary, flags, 0o600, dir_fd=target.dir_fd)
        try:
            while chunk := os.read(source, _CHUNK_OCTETS):
                write_all(copy, chunk)
            os.fchmod(copy, found.st_mode & 0o777)
            os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))
            os.fsync(copy)
            fd = target.dir_fd
            kernel.rename_noreplace(temporary, target.name, old_fd=fd, new_fd=fd, features=place.features)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=target.dir_fd)
            raise
        finally:
            os.close(copy)
    finally:
        os.close(source)
    os.fsync(target.dir_fd)
    os.unlink(old, dir_fd=old_fd)
