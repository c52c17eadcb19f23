"""Dispose of a group of claims after its commit (spool.md, "Log"): sidecars, renames, unlinks, one sync, mark, close.

What can't be done now (no space, no right) is kept: locked, in `.lck`, its outcome in the log, to be tried again. It is
neither lost nor sent again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from core.domain.message import State
from core.domain.sidecar import Sidecar
from core.errors import DirectoryUnavailable, RelayError, StorageBroken
from core.spool import kernel, names
from core.spool.claim import release, release_all, stat_at
from core.spool.move import Target, first_free, move, targets
from core.spool.permission import describe
from core.spool.place import Place
from core.spool.sidecars import Draft, write_all
from core.spool.values import Claim, Delete, Disposal, Disposed, Hold, PutBack, ToBadmail

_TAKEN = frozenset({errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EACCES, errno.EPERM})
_STATES = {PutBack: State.WAITING, ToBadmail: State.BADMAIL, Hold: State.HELD}


@dataclass(slots=True)
class _Move:
    """A disposal that is a move."""

    disposal: PutBack | ToBadmail | Hold
    target: Target
    sidecar: Sidecar | None  # to be written

    @property
    def draft(self) -> Draft:
        claim = self.disposal.claim
        return Draft(claim.identity, self.target.file_name, self.sidecar or Sidecar(), claim.token)


def dispose(place: Place, disposals: Sequence[Disposal]) -> list[Disposed]:
    """One group. One answer a disposal, in order. Raises StorageBroken."""
    return _in_turn(place, disposals)


def before_commit(place: Place) -> None:
    """The outcomes that are about to be committed survive a power cut. EIO ends claims, and is never retried."""
    try:
        place.log.sync()
    except OSError as error:
        if error.errno == errno.EIO:
            place.log.stop(_broken(place, error))  # others: nothing there to sync, or the outcome is not in the log


def retry_pending(place: Place) -> list[Disposed]:
    """What could not be done before."""
    return _in_turn(place) if place.pending else []


def _in_turn(place: Place, disposals: Sequence[Disposal] | None = None) -> list[Disposed]:
    """One group after another; without one, what is pending by then."""
    with place.disposing, ExitStack() as stack:
        group = list(place.pending.values()) if disposals is None else disposals
        try:
            stack.enter_context(place)
        except DirectoryUnavailable:
            return [Disposed(d, ok=False, error="the directory is closed") for d in group]
        return _Group(place, group).run()


class _Group:
    def __init__(self, place: Place, disposals: Sequence[Disposal]) -> None:
        self.place = place
        self.disposals = disposals
        self.answers: dict[int, Disposed] = {}  # by number of claim
        self.changed: set[int] = set()  # directories to sync

    def run(self) -> list[Disposed]:
        place = self.place
        moves = self._plan()
        moves = self._write_sidecars(moves)
        for each in moves:
            self._move(each)
        deleted = [d.claim for d in self.disposals if isinstance(d, Delete) and self._unlink(d)]
        self._sync()
        for claim in deleted:  # by now they can't come back; and before the mark, without which a recovery removes them
            if claim.sidecar is not None:
                place.sidecars.remove(claim.identity)
        done = [self.answers[d.claim.number].disposal.claim for d in self.disposals if self.answers[d.claim.number].ok]
        with suppress(RelayError):  # recovery finds out by itself; new claims have stopped
            place.log.disposed([c.number for c in done])
        finish(place, done)
        return [self.answers[d.claim.number] for d in self.disposals]

    def _plan(self) -> list[_Move]:
        moves = []
        for disposal in self.disposals:
            if isinstance(disposal, Delete):
                continue
            claim = disposal.claim
            try:
                state = _STATES[type(disposal)]
                target = first_free(targets(self.place, state, claim.identity, claim.file_name))
            except OSError as error:
                self._fail(disposal, error)
                continue
            moves.append(_Move(disposal, target, self._sidecar(disposal, target)))
        return moves

    @staticmethod
    def _sidecar(disposal: PutBack | ToBadmail | Hold, target: Target) -> Sidecar | None:
        """What has to be written: a fault of the account writes none, unless the name changes."""
        if disposal.sidecar is not None:
            return disposal.sidecar
        if target.base == disposal.claim.file_name:
            return None
        return disposal.claim.sidecar or Sidecar()

    def _write_sidecars(self, moves: list[_Move]) -> list[_Move]:
        try:
            self.place.sidecars.write([m.draft for m in moves if m.sidecar is not None])
        except OSError as error:
            for each in moves:
                if each.sidecar is not None:
                    self._fail(each.disposal, error)
            return [m for m in moves if m.sidecar is None]
        return moves

    def _move(self, each: _Move) -> None:
        place, claim = self.place, each.disposal.claim
        locked, without = claim.file_name + names.LOCK, ""
        while True:
            target = each.target
            try:
                _note_change(place, claim, target.base)
                if isinstance(each.disposal, ToBadmail):
                    without = write_reason(target, each.disposal.reason_text)
                move(place, place.work_fd, locked, target)
            except FileExistsError:  # taken since it was planned
                try:
                    each.target = first_free(targets(place, target.state, claim.identity, claim.file_name))
                    each.sidecar = self._sidecar(each.disposal, each.target)
                    if each.sidecar is not None:
                        place.sidecars.write([each.draft])
                except OSError as error:
                    return self._fail(each.disposal, error)
                continue
            except OSError as error:
                if isinstance(error, FileNotFoundError) and stat_at(place.work_fd, locked) is None:
                    self._answer(Disposed(each.disposal, ok=True, error="it was removed by somebody else"))
                    return None
                return self._fail(each.disposal, error)
            self.changed.update((place.work_fd, target.dir_fd))
            self._answer(Disposed(each.disposal, ok=True, error=without, file_name=target.file_name))
            return None

    def _unlink(self, disposal: Delete) -> bool:
        place, claim = self.place, disposal.claim
        try:
            if not claim.discarded:
                os.unlink(claim.file_name + names.LOCK, dir_fd=place.work_fd)
        except FileNotFoundError:
            pass  # by somebody else
        except OSError as error:
            self._fail(disposal, error)
            place.stuck[claim.identity] = error.strerror or str(error)
            return False
        place.stuck.pop(claim.identity, None)
        self.changed.add(place.work_fd)
        self._answer(Disposed(disposal, ok=True))
        return True

    def _sync(self) -> None:
        for fd in self.changed:
            sync_directory(self.place, fd)

    def _answer(self, answer: Disposed) -> None:
        number = answer.disposal.claim.number
        self.place.pending.pop(number, None)
        self.place.short_of_space.discard(number)
        self.answers[number] = answer

    def _fail(self, disposal: Disposal, error: OSError) -> None:
        """Keep it: locked, and its outcome in the log."""
        claim = disposal.claim
        remedy = ""
        if error.errno in kernel.NO_SPACE:
            remedy = "make room on the file system"
            self.place.short_of_space.add(claim.number)
        if error.errno in kernel.NO_RIGHT:
            remedy = describe(os.fstat(claim.fd)).remedy if claim.fd >= 0 else ""
            remedy = f"give the service's user write rights on the directory; {remedy}"
        if error.errno == errno.EIO:
            self.place.log.stop(_broken(self.place, error))
        self.place.pending[claim.number] = disposal
        self.answers[claim.number] = Disposed(
            disposal, ok=False, error=error.strerror or str(error), remedy=remedy, pending=True
        )


def finish(place: Place, claims: Sequence[Claim]) -> None:
    """They are where they belong: no more in flight."""
    for claim in claims:
        if place.claimed.get(claim.file_name) is claim:
            del place.claimed[claim.file_name]
    try:
        for claim in claims:
            place.forget_dead(claim.token)
    finally:
        release_all([claim.opened for claim in claims])


def put_back_now(place: Place, claim: Claim) -> None:
    """Rename back and close; whatever stands in the way makes it an ordinary disposal."""
    fd, name = place.work_fd, claim.file_name
    try:
        with place:
            _note_change(place, claim, name)
            kernel.rename_noreplace(name + names.LOCK, name, old_fd=fd, new_fd=fd, features=place.features)
            if claim.logged:
                with suppress(RelayError):
                    place.log.disposed([claim.number])
            finish(place, [claim])
    except DirectoryUnavailable:  # closed meanwhile
        release(claim.opened)
    except OSError:
        dispose(place, [PutBack(claim)])


def _note_change(place: Place, claim: Claim, name: bytes) -> None:
    """Somebody wrote to it meanwhile: the event of its return must not be taken for that of a writer's end."""
    if claim.fd >= 0 and claim.opened.changed:
        place.changed[name] = claim.opened.inode


def discard_now(place: Place, claim: Claim) -> None:
    """Unlink at once what was sent wholly and could not be logged."""
    try:
        os.unlink(claim.file_name + names.LOCK, dir_fd=place.work_fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        place.stuck[claim.identity] = error.strerror or str(error)
        return
    claim.discarded = True


def write_reason(target: Target, text: str) -> str:
    """The plain words beside a dead letter, before it comes. Raises OSError.

    Where their name is taken by what is no file of ours (a link, a pipe) the letter comes without; why is given back.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(names.reason_name(target.base), flags, 0o640, dir_fd=target.dir_fd)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return f"it comes without its reason.txt: {error.strerror}"
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # a pipe that somebody reads
            return "it comes without its reason.txt: that is not a file"
        write_all(fd, text.rstrip().encode("utf-8", "backslashreplace") + b"\n")
        os.fsync(fd)
        return ""
    finally:
        os.close(fd)


def remove_reason(place: Place, base: bytes) -> None:
    """Its letter isn't dead any more."""
    with suppress(OSError):
        fd = place.badmail_fd()
        if fd >= 0:
            os.unlink(names.reason_name(base), dir_fd=fd)


def sync_directory(place: Place, fd: int) -> None:
    """Fsync of a directory. Raises StorageBroken (EIO, or whatever else it says), which is never retried."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EROFS, errno.EOPNOTSUPP):  # nothing there to sync
            return
        broken = _broken(place, error)
        place.log.stop(broken)
        raise broken from None


def _broken(place: Place, error: OSError) -> StorageBroken:
    return StorageBroken(f"{place.settings.path}: {error.strerror}", remedy="check the file system, then restart")
