"""An open pickup directory: its descriptors, and what this process knows of it.

Everything is done relative to these descriptors, so a path that is replaced meanwhile can't lead elsewhere. Claims keep
the place they were made in, so a directory opened anew (unmounted, replaced) doesn't mix with them.
"""

from __future__ import annotations

import os
import secrets
import stat
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from core.domain.account import Directory, DotStuffing, MessageFormat
from core.domain.clock import Clock
from core.domain.message import MessageIdentity
from core.errors import DirectoryUnavailable, StorageFull
from core.spool import kernel, names
from core.spool.log import UNNAMED, OutcomeLog
from core.spool.logread import OwnerLog
from core.spool.sidecars import TEMPORARY, Sidecars, write_all
from core.spool.values import Claim, Disposal, Opened

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # a link could lead elsewhere; a mount may
_STUFFING = b"dot-stuffing"
_SKEW_SECONDS = 60.0  # that the clocks of two machines on one directory may differ
_LITTER_SECONDS = 3600.0  # temporary files this old have no writer any more
_UNNAMED_SECONDS = 60.0  # segments tell by their lock; a service that is killed at each start leaves 1 MiB a time


@dataclass(slots=True)
class Seen:
    """What was seen of a file that isn't ready, to tell whether it rests. Monotonic seconds."""

    inode: int
    mtime_ns: int
    size: int
    since: float
    looks: int = 0


@dataclass(slots=True, eq=False)
class Place:
    """One directory, open."""

    settings: Directory
    clock: Clock
    features: kernel.Features
    root_fd: int
    work_fd: int  # where messages wait: the directory, or new/ of a Maildir
    mpu_fd: int
    device: int
    inode: int
    prefix: bytes  # of file names that wait, relative to the directory: b"" or b"new/"
    sidecars: Sidecars
    log: OutcomeLog
    matches: names.Matcher
    claimed: dict[bytes, Claim] = field(default_factory=dict)  # in flight, by the name before the claim
    handles: set[Opened] = field(default_factory=set)  # open messages, claimed or not
    flocked: bool = False  # a file of it could be locked itself
    changed: dict[bytes, int] = field(default_factory=dict)  # put back while somebody wrote: inode by name
    stuck: dict[MessageIdentity, str] = field(default_factory=dict)  # sent, and can't be removed: why
    pending: dict[int, Disposal] = field(default_factory=dict)  # by number of claim
    short_of_space: set[int] = field(default_factory=set)  # those of them that wait for room
    seen: dict[bytes, Seen] = field(default_factory=dict)
    locked_names: set[bytes] = field(default_factory=set)  # `.lck` of others, from scans
    dead_logs: dict[str, OwnerLog] = field(default_factory=dict)
    proven: DotStuffing | None = None
    disposing: threading.Lock = field(default_factory=threading.Lock)
    skew: float = 0.0  # the file system's clock behind ours, seconds
    skew_monotonic: float = 0.0  # the file system's time less our monotonic time
    closed: bool = False
    badmail: int = -1
    _badmail_before: list[int] = field(default_factory=list)
    _users: int = 0  # threads that work on its descriptors
    _using: threading.RLock = field(default_factory=threading.RLock)  # the collector may end a scan anywhere

    def badmail_fd(self, *, create: bool = False) -> int:
        """Descriptor of badmail/; -1 if there is none. Raises OSError.

        Looked for anew each time: who tidies up moves it away, or removes it, while we run.
        """
        with self._using:
            if self.badmail >= 0 and not self._badmail_leads_there():
                self._badmail_before.append(self.badmail)  # a list of it may go on
                self.badmail = -1
            if self.badmail < 0:
                self.badmail = _subdirectory(self.root_fd, names.BADMAIL, create=create)
            return self.badmail

    def _badmail_leads_there(self) -> bool:
        try:
            found = os.stat(names.BADMAIL, dir_fd=self.root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self.badmail))

    def __enter__(self) -> Self:
        """Its descriptors stay open to the end of this, whoever closes it: their numbers might lead elsewhere then.

        Raises DirectoryUnavailable if it is closed.
        """
        with self._using:
            if not self.closed:
                self._users += 1
                return self
        raise DirectoryUnavailable(f"{self.settings.path} is closed", remedy="it is opened at the next run")

    def __exit__(self, *_: object) -> None:
        with self._using:
            self._users -= 1
            last = self.closed and not self._users
        if last:
            self._let_go()

    def close(self) -> None:
        """Let go of all descriptors, or have the last one who uses them do so.

        Locks of messages in flight stay with their claims.
        """
        with self._using:
            if self.closed:
                return
            self.closed = True
            used = self._users > 0
        if not used:
            self._let_go()

    def _let_go(self) -> None:
        self.log.close()
        for log in list(self.dead_logs.values()):
            log.close()
        for fd in {self.root_fd, self.work_fd, self.mpu_fd, self.badmail, *self._badmail_before} - {-1}:
            os.close(fd)

    def check_path(self) -> None:
        """Whether the path still leads here. Raises DirectoryUnavailable: unmounted or replaced, which is not empty."""
        path = self.settings.path
        try:
            found = os.stat(path)
            if os.fstat(self.work_fd).st_nlink == 0:
                raise DirectoryUnavailable(f"{path} was deleted", remedy="make it again")
        except OSError as error:
            raise unavailable(path, error) from None
        if (found.st_dev, found.st_ino) != (self.device, self.inode):
            raise DirectoryUnavailable(f"{path} was replaced or unmounted", remedy="it is opened anew at the next run")

    def lies_ahead(self, due_at: float | None) -> bool:
        """Whether a due time is still to come. One further off than any back-off is of a clock that was set back."""
        if due_at is None:
            return False
        left = due_at - self.clock.now()
        return 0 < left <= self.settings.retry_max_seconds + _SKEW_SECONDS

    def forget_dead(self, token: str) -> None:
        """A dead owner's claim is where it belongs; its log goes with the last of them."""
        owner, _, number = token.partition("/")
        log = self.dead_logs.get(owner)
        if log is not None:
            log.claims.pop(int(number), None)
            if not log.claims:
                del self.dead_logs[owner]
                with suppress(OSError):
                    log.remove(self.mpu_fd)
                log.close()

    def replace_settings(self, settings: Directory) -> None:
        """Take new settings of the same directory."""
        self.settings = settings
        self.matches = _matcher(settings)

    def set_proven(self, proven: DotStuffing) -> None:
        """Remember what the writers of this directory do. Raises StorageFull, DirectoryUnavailable (closed)."""
        if proven is self.proven:
            return
        with self:
            self._write_proven(proven)
        self.proven = proven

    def _write_proven(self, proven: DotStuffing) -> None:
        # a name that can be told beforehand could be a pipe or a link by now
        temporary = TEMPORARY + secrets.token_hex(8).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(temporary, flags, 0o660, dir_fd=self.mpu_fd)
            try:
                os.fchmod(fd, 0o660)
                write_all(fd, proven.value.encode())
            finally:
                os.close(fd)
            os.rename(temporary, _STUFFING, src_dir_fd=self.mpu_fd, dst_dir_fd=self.mpu_fd)
        except OSError as error:
            raise StorageFull(f"can't write in .mpu/: {error.strerror}") from None


def unavailable(path: str, error: OSError) -> DirectoryUnavailable:
    """What an error of the directory itself means."""
    if isinstance(error, FileNotFoundError):
        return DirectoryUnavailable(f"{path} does not exist", remedy="make the directory or mount its file system")
    if isinstance(error, NotADirectoryError):
        what = "a link, which is not followed" if os.path.islink(path) else "not a directory"
        return DirectoryUnavailable(f"{path} is {what}", remedy="give the path of a directory")
    remedy = ""
    if error.errno in kernel.NO_RIGHT:
        remedy = "give the service's group rwx on it (setgid and a default ACL keep that so)"
    return DirectoryUnavailable(f"{path}: {error.strerror}", remedy=remedy)


def _stayed(path: str, fd: int) -> None:
    """The path was free of links when it was saved; one laid in it since must not lead us elsewhere.

    Raises DirectoryUnavailable.
    """
    try:
        found = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # no /proc; the last name at least was not followed
        return
    if found != os.path.abspath(path):
        raise DirectoryUnavailable(
            f"{path} leads to {found} now, through a link that was not there when it was saved",
            remedy="remove the link, or save the directory with the path that is meant",
        )


def open_place(settings: Directory, *, clock: Clock, features: kernel.Features) -> Place:
    """Open a directory and make `.mpu/`. Raises DirectoryUnavailable, StorageFull, StorageBroken."""
    opened: list[int] = []
    log: OutcomeLog | None = None
    try:
        root_fd = os.open(settings.path, DIRECTORY)
        opened.append(root_fd)
        _stayed(settings.path, root_fd)
        found = os.fstat(root_fd)
        work_fd, prefix = root_fd, b""
        if settings.format is MessageFormat.MAILDIR:
            work_fd, prefix = os.open(b"new", DIRECTORY, dir_fd=root_fd), b"new/"
            opened.append(work_fd)
        mpu_fd = _subdirectory(root_fd, names.STATE_DIRECTORY, create=True)
        opened.append(mpu_fd)
        log = OutcomeLog(mpu_fd, clock=clock, features=features)
        _start_log(log)
        place = Place(
            settings=settings,
            clock=clock,
            features=features,
            root_fd=root_fd,
            work_fd=work_fd,
            mpu_fd=mpu_fd,
            device=found.st_dev,
            inode=found.st_ino,
            prefix=prefix,
            sidecars=Sidecars(mpu_fd),
            log=log,
            matches=_matcher(settings),
        )
        _start(place)
    except BaseException as error:
        if log is not None:
            log.close()
        for fd in opened:
            os.close(fd)
        if isinstance(error, OSError):
            raise unavailable(settings.path, error) from None
        raise
    return place


def _start_log(log: OutcomeLog) -> None:
    """On a full disk it starts later: what was sent must be removed all the same."""
    try:
        log.start()
    except StorageFull as error:
        if log.refused:
            raise DirectoryUnavailable(f".mpu/ can't be written: {error.detail}", remedy=error.remedy) from None


def _start(place: Place) -> None:
    """Compare clocks, remove litter, read what was proved."""
    written = os.fstat(place.mpu_fd).st_mtime  # the log was renamed in there just now
    place.skew = place.clock.now() - written
    place.skew_monotonic = written - place.clock.monotonic()
    for name in kernel.listing(place.mpu_fd):
        if name.startswith(TEMPORARY) or name.endswith(b".lock"):
            with suppress(OSError):
                seconds = _UNNAMED_SECONDS if name.startswith(UNNAMED) else _LITTER_SECONDS
                if written - os.stat(name, dir_fd=place.mpu_fd).st_mtime > seconds:
                    _remove_unheld(place.mpu_fd, name)
    with suppress(OSError, ValueError):
        fd = os.open(_STUFFING, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=place.mpu_fd)
        try:
            place.proven = DotStuffing(os.read(fd, 100).decode("ascii").strip())
        finally:
            os.close(fd)
    place.sidecars.refresh()


def _remove_unheld(mpu_fd: int, name: bytes) -> None:
    """What a killed process left; not what a living one has locked. Raises OSError."""
    fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=mpu_fd)
    try:
        if kernel.lock(fd):
            os.unlink(name, dir_fd=mpu_fd)
    finally:
        os.close(fd)


def _matcher(settings: Directory) -> names.Matcher:
    if settings.format is MessageFormat.MAILDIR:
        return names.maildir_name
    return names.matcher(settings.patterns)


def _subdirectory(root_fd: int, name: bytes, *, create: bool) -> int:
    """Open it; made 2770 in the directory's group, so that two users of one group can work on it. Raises OSError."""
    try:
        return os.open(name, DIRECTORY, dir_fd=root_fd)
    except FileNotFoundError:
        if not create:
            return -1
    made = True
    try:
        os.mkdir(name, 0o770, dir_fd=root_fd)
    except FileExistsError:
        made = False
    fd = os.open(name, DIRECTORY, dir_fd=root_fd)
    if made:
        with suppress(OSError):
            os.fchown(fd, -1, os.fstat(root_fd).st_gid)
        with suppress(OSError):
            os.fchmod(fd, 0o770 | stat.S_ISGID)
        with suppress(OSError):
            os.fsync(root_fd)  # else a power cut may forget it together with the mail that was moved into it
    return fd
