"""Claim, steps 2 to 4 and 6 (spool.md): open, look, no writer any more, lock, rename.

A file that isn't ready or isn't ours is left exactly as it is: no rename, so a slow writer causes no events of ours.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from core.domain.account import MessageFormat
from core.domain.lifecycle import restart
from core.domain.message import MessageIdentity
from core.domain.sidecar import Sidecar
from core.errors import (
    DirectoryUnavailable,
    MessageBusy,
    MessageGone,
    MessageNotDue,
    MessageNotReady,
    MessageRefused,
    MessageRejected,
    MessageUnreadable,
    RelayError,
    StorageBroken,
    StorageFull,
)
from core.spool import kernel, names
from core.spool.permission import describe
from core.spool.place import Place, Seen, unavailable
from core.spool.values import Claim, Opened

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
LINK_SECONDS = 60.0  # a writer may link and unlink
EMPTY_SECONDS = 60.0
_WRITER_BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
_ELSEWHERE_SECONDS = 1.0
_SEEN_LIMIT = 200_000
_REGULAR = stat.S_IFREG
_MAILDIR = MessageFormat.MAILDIR  # with every message (core/domain)


def examine(place: Place, name: bytes, *, event_seen: bool) -> Opened:
    """Steps 2 to 4. Raises what DirectorySpool.examine names."""
    due_at = place.sidecars.due_at(place.prefix + name)
    if due_at is not None and not event_seen and place.lies_ahead(due_at):
        raise MessageNotDue(due_at)
    if len(name) > names.MAX_NAME:
        raise MessageRefused(
            f"the name has {len(name)} octets, and {names.MAX_NAME} leave room for .lck", remedy="rename it"
        )
    fd = open_message(place, place.work_fd, name)
    lock_fd = -1
    try:
        found = os.fstat(fd)
        if stat.S_IFMT(found.st_mode) != _REGULAR or found.st_nlink > 1:
            _only_regular(place, name, fd, found)
        identity = MessageIdentity(place.settings.name, name, found.st_mtime_ns, found.st_size)
        if place.stuck:
            _not_stuck(place, identity, found)
        if place.settings.format is not _MAILDIR:
            _no_writer(place, name, fd, found, event_seen=event_seen)
        elif not found.st_size:
            _rested(place, name, found, EMPTY_SECONDS, "it is empty")
        lock_fd = take_lock(place, fd, name)
        place.flocked = place.flocked or lock_fd < 0
        leads_to(place.work_fd, name, found.st_ino)
        place.seen.pop(name, None)
        place.changed.pop(name, None)
        identity, sidecar = known(place, place.prefix + name, identity)
        if place.stuck:
            _not_stuck(place, identity, found)
        if sidecar is not None:
            _due(place, sidecar)
        return Opened(place, fd, identity, name, found.st_ino, found.st_mtime, sidecar, _reject(place, found), lock_fd)
    except OSError as error:
        close_both(place, fd, lock_fd, name)
        raise claim_error(place, error) from None
    except BaseException:
        close_both(place, fd, lock_fd, name)
        raise


def claim(place: Place, opened: Opened) -> Claim:
    """Step 6. Raises what DirectorySpool.claim names; `opened` is closed then."""
    name = opened.file_name
    locked = name + names.LOCK
    try:
        try:
            kernel.rename_noreplace(name, locked, old_fd=place.work_fd, new_fd=place.work_fd, features=place.features)
        except FileExistsError:
            _taken(place, name)
        _same_file(place, opened, locked)
    except OSError as error:
        release(opened)
        raise claim_error(place, error) from None
    except BaseException:
        release(opened)
        raise
    number = place.log.next_number()
    claimed = Claim(opened, number, f"{place.log.owner}/{number}")
    place.claimed[name] = claimed
    return claimed


def _taken(place: Place, name: bytes) -> None:
    place.locked_names.add(name)  # its owner may be dead
    raise MessageBusy(f"{os.fsdecode(name)}.lck is still there: another message of that name is in flight")


def _same_file(place: Place, opened: Opened, locked: bytes) -> None:
    """What was renamed is what was looked at. Raises MessageGone, MessageNotReady; it is renamed back then."""
    found = stat_at(place.work_fd, locked)
    if found is None:
        raise MessageGone("it vanished while it was claimed")
    identity = opened.identity
    if found.st_ino == opened.inode and found.st_mtime_ns == identity.mtime_ns and found.st_size == identity.size:
        return
    name = opened.file_name
    place.changed[name] = found.st_ino
    with suppress(OSError):
        kernel.rename_noreplace(locked, name, old_fd=place.work_fd, new_fd=place.work_fd, features=place.features)
    if found.st_ino != opened.inode:
        raise MessageGone("its name leads to another file now")
    raise MessageNotReady("it changed after it was looked at", retry_after_seconds=_ELSEWHERE_SECONDS)


def release(opened: Opened) -> None:
    """Let go of it. Harmless if closed."""
    if opened.fd >= 0:
        fd, lock_fd = opened.fd, opened.lock_fd
        opened.fd = opened.lock_fd = -1
        opened.place.handles.discard(opened)
        close_both(opened.place, fd, lock_fd, opened.file_name)


def release_all(handles: Iterable[Opened]) -> None:
    """Let go of them; neighbouring descriptors in one call, since at each the interpreter is given away."""
    together: list[Opened] = []
    alone: list[Opened] = []
    for opened in handles:
        (together if opened.fd >= 0 and opened.lock_fd < 0 else alone).append(opened)
    fds = sorted(opened.fd for opened in together)
    for opened in together:
        opened.fd = -1
        opened.place.handles.discard(opened)
    first = 0
    for at in range(1, len(fds) + 1):
        if at == len(fds) or fds[at] != fds[at - 1] + 1:
            os.closerange(fds[first], fds[at - 1] + 1)
            first = at
    for opened in alone:
        release(opened)


def claim_error(place: Place, error: OSError) -> RelayError:
    """What an error of a rename means."""
    if isinstance(error, FileNotFoundError):
        return MessageGone("it vanished before it was claimed")
    if error.errno in kernel.NO_SPACE:
        return StorageFull(f"{place.settings.path}: {error.strerror}", remedy="make room on the file system")
    if error.errno == errno.EIO:
        return StorageBroken(f"{place.settings.path}: {error.strerror}", remedy="check the file system, then restart")
    remedy = ""
    if error.errno in kernel.NO_RIGHT:
        remedy = "the service needs write and execute rights on the directory"
        if not place.features.rename_noreplace:  # fs.protected_hardlinks
            remedy += (
                ", and, since this file system can't rename without overwriting, mode 0660 on files of other users"
            )
    return DirectoryUnavailable(f"{place.settings.path}: can't rename: {error.strerror}", remedy=remedy)


# --- the steps -------------------------------------------------------------------------------------------------------


def open_message(place: Place, dir_fd: int, name: bytes) -> int:
    """Step 2's open.

    Raises MessageGone, MessageRefused, MessageUnreadable, MessageNotReady, DirectoryUnavailable.
    """
    try:
        return os.open(name, _OPEN, dir_fd=dir_fd)
    except FileNotFoundError:
        place.seen.pop(name, None)
        raise MessageGone("it is gone") from None
    except OSError as error:
        number = error.errno
        if number == errno.ELOOP:
            raise MessageRefused("it is a symbolic link", remedy="put the mail itself there") from None
        if number in (errno.ENXIO, errno.ENODEV):
            raise MessageRefused("it is a socket or a device", remedy="remove it") from None
        if number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR):
            raise MessageNotReady(
                f"it can't be opened now: {error.strerror}", retry_after_seconds=_ELSEWHERE_SECONDS
            ) from None
        try:
            found = stat_at(dir_fd, name)
        except OSError as lost:  # a share that went away
            raise unavailable(place.settings.path, lost) from None
        if found is None:
            raise MessageGone("it is gone") from None
        if not stat.S_ISREG(found.st_mode):
            raise MessageRefused("it is not a regular file", remedy="remove it") from None
        rights = describe(found)
        raise MessageUnreadable(f"{error.strerror}: {rights.text}", remedy=rights.remedy) from None


def _not_stuck(place: Place, identity: MessageIdentity, found: os.stat_result) -> None:
    why = place.stuck.get(identity)
    if why is not None:
        detail = f"it is done with (sent, held or refused), but can't be moved away: {why}"
        raise MessageRefused(detail, remedy=describe(found).remedy)


def _due(place: Place, sidecar: Sidecar) -> None:
    if sidecar.due_at is not None and place.lies_ahead(sidecar.due_at):
        raise MessageNotDue(sidecar.due_at)


def _pair(place: Place, name: bytes, fd: int, found: os.stat_result) -> None:
    """X and x.lck with one inode: a kill between link and unlink. Unlink x; recovery takes the .lck."""
    other = stat_at(place.work_fd, name + names.LOCK)
    if other is None or other.st_ino != found.st_ino:
        return
    lock_fd = take_lock(place, fd, name)
    try:
        leads_to(place.work_fd, name + names.LOCK, found.st_ino)
        os.unlink(name, dir_fd=place.work_fd)
        place.locked_names.add(name)
    finally:
        _close_lock(place, lock_fd, name)
    raise MessageGone("its claim was interrupted: it is recovered")


def _only_regular(place: Place, name: bytes, fd: int, found: os.stat_result) -> None:
    if stat.S_IFMT(found.st_mode) != _REGULAR:
        kinds = {
            stat.S_IFDIR: "a directory",
            stat.S_IFIFO: "a FIFO",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
        }
        kind = kinds.get(stat.S_IFMT(found.st_mode), "not a regular file")
        raise MessageRefused(f"it is {kind}", remedy="remove it, or choose patterns that leave it out")
    if found.st_nlink > 1:
        _pair(place, name, fd, found)
        seen = _see(place, name, found)
        left = seen.since + LINK_SECONDS - place.clock.monotonic()
        if left > 0:
            raise MessageNotReady(f"it has {found.st_nlink} hard links", retry_after_seconds=min(left, 5.0))
        raise MessageRefused(f"it has {found.st_nlink} hard links", remedy="remove the other names, or copy the mail")


def _no_writer(place: Place, name: bytes, fd: int, found: os.stat_result, *, event_seen: bool) -> None:
    """Step 3. Raises MessageNotReady."""
    if not found.st_size:
        _rested(place, name, found, EMPTY_SECONDS, "it is empty")
    free = kernel.no_writer(fd, place.features)
    if free:
        return
    if free is None:
        ours = place.changed.get(name) == found.st_ino  # the event may be that of its return
        if ours or not (event_seen and found.st_size):
            _rested(place, name, found, place.settings.quiet_seconds, "it may still be written")
        return
    seen = _see(place, name, found)
    looks = min(seen.looks, len(_WRITER_BACKOFF_SECONDS) - 1)
    seen.looks += 1
    raise MessageNotReady("a writer has it open", retry_after_seconds=_WRITER_BACKOFF_SECONDS[looks])


def _see(place: Place, name: bytes, found: os.stat_result) -> Seen:
    seen = place.seen.get(name)
    if seen is None or (seen.inode, seen.mtime_ns, seen.size) != (found.st_ino, found.st_mtime_ns, found.st_size):
        if len(place.seen) >= _SEEN_LIMIT:
            place.seen.pop(next(iter(place.seen)), None)
        looks = seen.looks if seen is not None and seen.inode == found.st_ino else 0
        seen = Seen(found.st_ino, found.st_mtime_ns, found.st_size, place.clock.monotonic(), looks)
        place.seen[name] = seen
    return seen


def _rested(place: Place, name: bytes, found: os.stat_result, seconds: float, what: str) -> None:
    """Size and mtime have rested so long: seen by us, or plainly older at first sight.

    The latter is measured in the file system's time (a server's clock may differ from ours) and by wall and monotonic
    clock both (ours may jump), with a second to spare.
    """
    if name not in place.seen:
        monotonic = place.clock.monotonic()
        age = min(place.clock.now() - place.skew, place.skew_monotonic + monotonic) - found.st_mtime
        if age >= seconds + 1.0:
            return
    seen = _see(place, name, found)
    left = seen.since + seconds - place.clock.monotonic()
    if left > 0:
        raise MessageNotReady(what, retry_after_seconds=left)


def _reject(place: Place, found: os.stat_result) -> MessageRejected | None:
    if found.st_size > place.settings.max_message_bytes:
        return MessageRejected(
            "5.3.4",
            f"the message has {found.st_size} octets, more than max_message_bytes ({place.settings.max_message_bytes})",
            remedy="raise max_message_bytes of the directory, if the server takes messages of this size",
        )
    if not found.st_size:
        return MessageRejected("5.6.0", "the file is empty", remedy="look for a full disk or a writer that crashed")
    return None


def take_lock(place: Place, fd: int, base: bytes) -> int:
    """Step 4's lock. The lock file's descriptor where files themselves can't be locked, else -1. Raises MessageBusy."""
    if place.features.flock:
        try:
            if kernel.lock(fd):
                return -1
        except OSError as error:
            if os.fstat(fd).st_dev == place.device:  # badmail/ may be a mount of another kind
                if place.flocked:  # with lock files we would not see the others' locks, nor they ours
                    raise MessageBusy(f"it can't be locked now: {error.strerror}") from None
                place.features.flock = False
        else:
            raise MessageBusy("somebody else has locked it")
    name = _lock_name(base)
    while True:
        lock_fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660, dir_fd=place.mpu_fd)
        try:
            held = kernel.lock(lock_fd)
            found = stat_at(place.mpu_fd, name)
            if held and found is not None and found.st_ino == os.fstat(lock_fd).st_ino:
                return lock_fd
        except OSError:
            os.close(lock_fd)
            raise
        os.close(lock_fd)  # not held, or its last holder removed it meanwhile
        if not held:
            raise MessageBusy("somebody else has locked it")


def close_both(place: Place, fd: int, lock_fd: int, base: bytes) -> None:
    """Close a message and its lock file."""
    _close_lock(place, lock_fd, base)
    os.close(fd)


def _close_lock(place: Place, lock_fd: int, base: bytes) -> None:
    if lock_fd < 0:
        return
    with suppress(OSError, DirectoryUnavailable), place:
        os.unlink(_lock_name(base), dir_fd=place.mpu_fd)
    os.close(lock_fd)


def _lock_name(base: bytes) -> bytes:
    return hashlib.sha256(base).hexdigest()[:32].encode() + b".lock"


def leads_to(dir_fd: int, name: bytes, inode: int) -> None:
    """The name still leads to this inode: a lock can be had on a deleted file. Raises MessageGone."""
    found = stat_at(dir_fd, name)
    if found is None or found.st_ino != inode:
        raise MessageGone("its name leads to another file now")


def known(place: Place, file_name: bytes, identity: MessageIdentity) -> tuple[MessageIdentity, Sidecar | None]:
    """Identity and sidecar of the message that lies under this name now (relative, without `.lck`)."""
    sidecars = place.sidecars
    if not len(sidecars) and not sidecars.stale():
        return identity, None
    record = sidecars.lookup(place.settings.name, file_name, identity.mtime_ns, identity.size)
    found = None if record is None else sidecars.read(record)
    if found is None:
        return identity, None
    record, sidecar = found
    if record.file_name.startswith(names.BADMAIL + b"/") and not file_name.startswith(names.BADMAIL + b"/"):
        sidecar = restart(sidecar)  # moved back by hand: that is a retry
    return MessageIdentity(identity.directory, record.arrival_name, identity.mtime_ns, identity.size), sidecar


def stat_at(dir_fd: int, name: bytes) -> os.stat_result | None:
    """Relative, links not followed; None if there is nothing. Raises OSError."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
