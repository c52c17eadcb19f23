"""Recovery: part of every start, and whenever the lock of a `.lck` can be had (spool.md, "Recovery").

The lock of the file decides who recovers it, so several processes may do this at once, beside living owners. What is
recovered becomes a claim of ours under the token of the dead owner's: a sidecar that bears this token shows that the
claim was committed and disposed of, and only the rename remains.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from core.domain.message import MessageIdentity, State
from core.errors import MessageError, RelayError
from core.spool import kernel, names
from core.spool.claim import claim, close_both, known, leads_to, open_message, release, stat_at, take_lock
from core.spool.dispose import sync_directory, write_reason
from core.spool.log import sync_names
from core.spool.logread import Logged, OwnerLog, read_logs
from core.spool.move import first_free, is_copy, move, parse_target, targets
from core.spool.place import Place
from core.spool.scan import spots
from core.spool.sidecars import Draft, Record
from core.spool.values import Claim, Opened, Recovered, Verdict

_Key = tuple[bytes, int, int]
_BATCH = 200  # files open at once


def recover(place: Place) -> Iterator[Recovered]:
    """Everything that dead owners left."""
    yield from _Recovery(place).run(_locked_names(place))


def orphans(place: Place) -> Iterator[Recovered]:
    """What the last scan saw in `.lck` and nobody holds, and what could not be told before."""
    candidates = [n for n in list(place.locked_names) if n not in place.claimed]
    place.locked_names.clear()
    free = [n for n in candidates if _lock_can_be_had(place, n)]
    if free or place.dead_logs:
        yield from _Recovery(place).run(iter(free))


def _locked_names(place: Place) -> Iterator[bytes]:
    for locked in kernel.listing(place.work_fd):
        name = locked.removesuffix(names.LOCK)
        if name != locked and place.matches(name):
            yield name


def _sync(log: OwnerLog, mpu_fd: int) -> None:
    """What we are about to act on must not be gone after a power cut."""
    with suppress(OSError):
        for fd in log.locks:
            os.fdatasync(fd)
        if log.claims:
            sync_names(mpu_fd)


def _lock_can_be_had(place: Place, name: bytes) -> bool:
    try:
        fd = open_message(place, place.work_fd, name + names.LOCK)
    except MessageError:
        return False
    lock_fd = -1
    try:
        lock_fd = take_lock(place, fd, name)
    except (MessageError, OSError):
        return False
    finally:
        close_both(place, fd, lock_fd, name)
    return True


@dataclass(frozen=True, slots=True)
class _Locked:
    """A file whose lock we took: whoever had it is dead, and all that it logged can be read now."""

    name: bytes  # without .lck
    file_name: bytes
    fd: int
    lock_fd: int
    found: os.stat_result


class _Recovery:
    def __init__(self, place: Place) -> None:
        self.place = place
        self.rebooted = False
        self.boot_time = kernel.boot_time() or 0.0
        self.latest: dict[_Key, Logged] = {}

    def run(self, locked: Iterator[bytes]) -> Iterator[Recovered]:
        place = self.place
        while batch := list(islice(locked, _BATCH)):
            held = deque(h for n in batch if n not in place.claimed and (h := self._lock(n, n + names.LOCK)))
            try:
                if held:
                    self._read()  # not before: an owner that still lived then may have sent since
                while held:
                    yield from self._adopt(held.popleft())
            finally:
                for each in held:
                    close_both(place, each.fd, each.lock_fd, each.name)
        self._read()
        for log in list(place.dead_logs.values()):
            for logged in list(log.claims.values()):
                if self.latest.get(logged.key) is logged and logged.file_name not in place.claimed:
                    yield from self._waiting(logged)
        for log in list(place.dead_logs.values()):
            self._let_go(log)

    def _read(self) -> None:
        place = self.place
        place.sidecars.refresh()
        fresh = read_logs(place.mpu_fd, but={place.log.owner, *place.dead_logs})
        logs = [*place.dead_logs.values(), *fresh]
        boots = {boot for log in logs if log.dead for boot in log.boots}
        self.rebooted = bool(boots - {kernel.boot_id()})
        self.latest.clear()
        for log in logs:
            for logged in log.claims.values():
                known_one = self.latest.get(logged.key)
                if known_one is None or (known_one.at, known_one.number) < (logged.at, logged.number):
                    self.latest[logged.key] = logged
        for log in fresh:
            if log.dead:
                place.dead_logs[log.owner] = log
                _sync(log, place.mpu_fd)
            else:
                log.close()

    # --- one message -------------------------------------------------------------------------------------------------

    def _adopt(self, locked: _Locked) -> Iterator[Recovered]:
        """A `.lck` whose lock could be had."""
        place, name = self.place, locked.name
        try:
            opened = self._opened(locked)
            base = stat_at(place.work_fd, name)
            if base is not None and base.st_ino == opened.inode:  # a kill between link and unlink
                os.unlink(name, dir_fd=place.work_fd)
            logged = self._logged(opened)
            record = place.sidecars.record_of(opened.identity.file_hash)
        except OSError:
            place.locked_names.add(name)  # another time
            close_both(place, locked.fd, locked.lock_fd, name)
            return
        except BaseException:
            close_both(place, locked.fd, locked.lock_fd, name)
            raise
        if record is not None and self._disposed_but_for_the_move(opened, record, logged):
            self._complete(opened, name + names.LOCK, record, logged)
            return
        number = place.log.next_number()
        token = logged.token if logged is not None else f"{place.log.owner}/{number}"
        adopted = Claim(opened, number, token)
        place.claimed[name] = adopted
        yield self._verdict(adopted, logged)

    def _waiting(self, logged: Logged) -> Iterator[Recovered]:
        """A name that waits, with an outcome that was not disposed of: the rename to `.lck` did not reach the disk."""
        place = self.place
        if not logged.fits(stat_at(place.work_fd, logged.file_name)):
            return
        locked = self._lock(logged.file_name, logged.file_name)
        if locked is None:
            return
        try:
            opened = self._opened(locked)
        except BaseException:
            close_both(place, locked.fd, locked.lock_fd, locked.name)
            raise
        record = place.sidecars.record_of(opened.identity.file_hash)
        if record is not None and record.token == logged.token:
            if record.file_name == place.prefix + logged.file_name:
                release(opened)
                place.forget_dead(logged.token)
            else:  # on its way to badmail, to be held, or to another name
                self._complete(opened, logged.file_name, record, logged)
            return
        if self._logged(opened) is not logged:
            release(opened)
            return
        try:
            claimed = claim(place, opened)
        except RelayError as error:
            place.stuck[opened.identity] = error.detail  # sent or unknown, and it can't be moved: never sent again
            return
        place.stuck.pop(opened.identity, None)
        claimed.token = logged.token
        yield self._verdict(claimed, logged)

    def _lock(self, name: bytes, file_name: bytes) -> _Locked | None:
        """None if somebody holds it or it can't be had."""
        place = self.place
        try:
            fd = open_message(place, place.work_fd, file_name)
        except MessageError:
            return None
        lock_fd = -1
        try:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode):
                lock_fd = take_lock(place, fd, name)
                leads_to(place.work_fd, file_name, found.st_ino)
                return _Locked(name, file_name, fd, lock_fd, os.fstat(fd))
        except (MessageError, OSError):
            pass
        close_both(place, fd, lock_fd, name)
        return None

    def _opened(self, locked: _Locked) -> Opened:
        """Who it is: the log knows the name it arrived with, else its sidecar."""
        place, name, found = self.place, locked.name, locked.found
        logged = self.latest.get((name, found.st_mtime_ns, found.st_size))
        if logged is None:
            raw = MessageIdentity(place.settings.name, name, found.st_mtime_ns, found.st_size)
            identity, sidecar = known(place, place.prefix + name, raw)
        else:
            identity = MessageIdentity(place.settings.name, logged.arrival_name, found.st_mtime_ns, found.st_size)
            record = place.sidecars.record_of(identity.file_hash)
            read = None if record is None else place.sidecars.read(record)
            sidecar = None if read is None else read[1]
        return Opened(place, locked.fd, identity, name, found.st_ino, found.st_mtime, sidecar, None, locked.lock_fd)

    def _logged(self, opened: Opened) -> Logged | None:
        return self.latest.get((opened.file_name, opened.identity.mtime_ns, opened.identity.size))

    def _verdict(self, claimed: Claim, logged: Logged | None) -> Recovered:
        changed = os.fstat(claimed.fd).st_ctime  # the rename to .lck
        restarted = self.rebooted or changed < self.boot_time
        if logged is None:
            return Recovered(claimed, Verdict.UNKNOWN if restarted else Verdict.UNTOUCHED, restarted=restarted)
        return Recovered(
            claimed,
            Verdict.UNKNOWN if logged.begun else Verdict.SETTLED,
            outcomes=tuple(logged.outcomes.values()),
            unknown=tuple(logged.begun),
            restarted=restarted,
            ways=logged.ways,
        )

    # --- what was committed ------------------------------------------------------------------------------------------

    def _disposed_but_for_the_move(self, opened: Opened, record: Record, logged: Logged | None) -> bool:
        if logged is not None:
            return record.token == logged.token
        return record.file_name != self.place.prefix + opened.file_name

    def _complete(self, opened: Opened, name: bytes, record: Record, logged: Logged | None) -> None:
        """The sidecar says where it goes; `name` is what it has now."""
        place, sidecar = self.place, opened.sidecar
        try:
            target = parse_target(place, record.file_name)
            there = stat_at(target.dir_fd, target.name)
            other = there is not None and not os.path.samestat(there, os.fstat(opened.fd))
            copied = other and is_copy(opened, target)
            if other and not copied and sidecar is not None:
                target = first_free(targets(place, target.state, opened.identity, opened.file_name))
                place.sidecars.write([Draft(opened.identity, target.file_name, sidecar, record.token)])
            if target.state is State.BADMAIL and stat_at(target.dir_fd, names.reason_name(target.base)) is None:
                write_reason(target, sidecar.reason if sidecar is not None else "")
            if copied:  # on another device: only the original was still to go
                sync_directory(place, target.dir_fd)
                os.unlink(name, dir_fd=place.work_fd)
            else:
                move(place, place.work_fd, name, target)
            for fd in {place.work_fd, target.dir_fd}:
                sync_directory(place, fd)
        except OSError as error:  # another time
            if name != opened.file_name:
                place.locked_names.add(opened.file_name)
            else:
                place.stuck[opened.identity] = error.strerror or str(error)  # and not sent until then
        else:
            place.stuck.pop(opened.identity, None)
            if logged is not None:
                place.forget_dead(logged.token)
        finally:
            release(opened)

    def _let_go(self, log: OwnerLog) -> None:
        """Forget claims of a dead log that are where they belong; it goes with the last of them."""
        place = self.place
        for logged in list(log.claims.values()):
            mine = place.claimed.get(logged.file_name)
            if mine is not None and mine.token == logged.token:
                continue
            if self.latest.get(logged.key) is logged:
                if self._still_there(logged):
                    continue
                with suppress(OSError):  # where it can't be told whether it is needed, it stays
                    self._remove_sidecar(logged)
            place.forget_dead(logged.token)
        if not log.claims and place.dead_logs.pop(log.owner, None) is not None:
            with suppress(OSError):
                log.remove(place.mpu_fd)
            log.close()

    def _still_there(self, logged: Logged) -> bool:
        here = (logged.file_name + names.LOCK, logged.file_name)
        return any(logged.fits(stat_at(self.place.work_fd, name)) for name in here)

    def _remove_sidecar(self, logged: Logged) -> None:
        """Its owner died between the unlink of the message and that of its sidecar, which stays if the message does.

        Raises OSError.
        """
        place = self.place
        identity = MessageIdentity(place.settings.name, logged.arrival_name, logged.mtime_ns, logged.size)
        record = place.sidecars.record_of(identity.file_hash)
        if record is None:
            return
        bases = {logged.file_name, names.base_of(record.file_name)}
        for _ in range(2):  # somebody may be moving it from a place not looked at yet to one that was
            for base in bases:
                for dir_fd, name, file_name in spots(place, base):
                    if dir_fd < 0:
                        if file_name == record.file_name:  # badmail/ is not there now
                            return
                        continue
                    if logged.fits(stat_at(dir_fd, name)):
                        return
        now = place.sidecars.read(record)
        if now is not None and now[0] == record:  # nobody has written it meanwhile, for another name
            place.sidecars.remove(identity)
