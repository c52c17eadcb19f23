"""Try what a directory has to offer (spool.md, "Permissions"): each step with its cause and remedy. Leaves nothing."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable
from contextlib import suppress

from core.errors import DirectoryUnavailable, RelayError
from core.spool import kernel
from core.spool.place import Place
from core.spool.sidecars import write_all
from core.spool.values import CheckStep
from core.spool.watch import can_watch

_RIGHTS = "give the service's group rwx on the directory (setgid and a default ACL keep it so)"
_LOW_SPACE_OCTETS = 64 << 20


class _NotPossible(Exception):
    """What isn't possible, and what to do."""

    def __init__(self, detail: str, remedy: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


def check(place: Place) -> list[CheckStep]:
    """All tries, in order. Raises DirectoryUnavailable."""
    place.check_path()
    return _Tries(place).run()


class _Tries:
    def __init__(self, place: Place) -> None:
        self.place = place
        self.name = b".mpu-check-" + secrets.token_hex(8).encode()  # hidden: no other reader takes it for a mail
        self.renamed = self.name + b".renamed"
        self.fd = -1

    def run(self) -> list[CheckStep]:
        steps: list[CheckStep] = []
        try:
            for name, attempt, required, remedy in (
                ("list", self._list, False, _RIGHTS),
                ("create", self._create, True, _RIGHTS),
                ("rename", self._rename, True, _RIGHTS),
                ("lease", self._lease, False, "add CAP_LEASE (AmbientCapabilities=CAP_LEASE, --cap-add LEASE)"),
                ("flock", self._flock, False, "use a file system with file locks, or one process only"),
                ("sync", self._sync, False, "use a file system that can sync directories"),
                ("unlink", self._unlink, True, f"{_RIGHTS}; a sticky directory lets only owners remove files"),
                ("inotify", self._inotify, False, "raise fs.inotify.max_user_watches or max_user_instances"),
                ("badmail", self._badmail, False, _RIGHTS),
                ("space", self._space, False, "make room on the file system"),
            ):
                steps.append(_step(name, attempt, required=required, remedy=remedy))
        finally:
            if self.fd >= 0:
                os.close(self.fd)
            for leftover in (self.name, self.renamed):
                with suppress(OSError):
                    os.unlink(leftover, dir_fd=self.place.work_fd)
        return steps

    def _list(self) -> str:
        next(kernel.listing(self.place.work_fd), None)
        return "names can be listed"

    def _create(self) -> str:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(self.name, flags, 0o640, dir_fd=self.place.work_fd)
        try:
            write_all(fd, b"x")
        finally:
            os.close(fd)
        self.fd = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.place.work_fd)
        return "a file can be written"

    def _rename(self) -> str:
        place = self.place
        fd = place.work_fd
        kernel.rename_noreplace(self.name, self.renamed, old_fd=fd, new_fd=fd, features=place.features)
        if place.features.rename_noreplace:
            return "by renameat2, without overwriting"
        return "by link and unlink: renameat2 with RENAME_NOREPLACE isn't possible here"

    def _lease(self) -> str:
        free = kernel.no_writer(self._open_fd(), self.place.features)
        if free is None:
            raise _NotPossible(
                f"no leases here: files wait for an event, or rest {self.place.settings.quiet_seconds} s"
            )
        if os.geteuid() != 0 and not _has_cap_lease():
            return "on the service's own files; those of other users need CAP_LEASE, else an event or rest decides"
        return "a writer that has a file open can be seen"

    def _flock(self) -> str:
        if not self.place.features.flock:
            raise _NotPossible("not on read-only descriptors: lock files in .mpu/ are used")
        try:
            kernel.lock(self._open_fd())
        except OSError as error:
            raise _NotPossible(f"{error.strerror}: lock files in .mpu/ are used") from None
        fcntl.flock(self._open_fd(), fcntl.LOCK_UN)
        return "files can be locked"

    def _sync(self) -> str:
        os.fsync(self._open_fd())
        os.fsync(self.place.work_fd)
        return "file and directory can be synced"

    def _unlink(self) -> str:
        os.unlink(self.renamed, dir_fd=self.place.work_fd)
        return "a file can be removed"

    def _inotify(self) -> str:
        if not self.place.features.inotify:
            raise _NotPossible("switched off: the interval alone finds new mail")
        why = can_watch(self.place.settings)
        if why:
            raise _NotPossible(f"{why}: the interval alone finds new mail")
        return "new mail is seen at once (on a network file system only what this machine writes)"

    def _badmail(self) -> str:
        fd = self.place.badmail_fd(create=True)
        name = b"." + self.name
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd))
        os.unlink(name, dir_fd=fd)
        if os.fstat(fd).st_dev != os.fstat(self.place.work_fd).st_dev:
            raise _NotPossible("badmail/ is on another device: dead letters are copied there", "put it on the same one")
        return "badmail/ can be written, on the same device"

    def _space(self) -> str:
        found = os.fstatvfs(self.place.work_fd)
        free = found.f_bavail * found.f_frsize
        if free < _LOW_SPACE_OCTETS:
            raise _NotPossible(f"{free >> 20} MiB free")
        return f"{free >> 20} MiB free"

    def _open_fd(self) -> int:
        if self.fd < 0:
            raise _NotPossible("no file could be made to try it")
        return self.fd


def _step(name: str, attempt: Callable[[], str], *, required: bool, remedy: str) -> CheckStep:
    try:
        return CheckStep(name, ok=True, detail=attempt(), required=required)
    except _NotPossible as no:
        return CheckStep(name, ok=False, detail=no.detail, remedy=no.remedy or remedy, required=required)
    except (OSError, RelayError) as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return CheckStep(name, ok=False, detail=detail, remedy=remedy, required=required)


def _has_cap_lease() -> bool:
    with suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> 28 & 1)
    return False


def unreachable(error: DirectoryUnavailable) -> list[CheckStep]:
    """The answer where the directory can't even be opened."""
    return [CheckStep("list", ok=False, detail=error.detail, remedy=error.remedy, required=True)]
