"""Scan, count and list a directory: streaming, unsorted, in constant memory; a scan makes no stat of everything."""

from __future__ import annotations

import errno
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing

from core.domain.message import MessageId, MessageIdentity, State
from core.errors import NotFound
from core.spool import names
from core.spool.claim import known, stat_at
from core.spool.kernel import listing
from core.spool.place import Place, unavailable
from core.spool.values import Counts, Entry

_VERIFIED_A_SCAN = 10_000  # deferred names that are looked at, since another message may have taken the name
_BADMAIL_PREFIX = names.BADMAIL + b"/"


class Scan:
    """One pass over what waits."""

    def __init__(self, place: Place, number: int) -> None:
        self.place = place
        self.number = number

    def names(self) -> Iterator[bytes]:
        """Names that are due. Raises DirectoryUnavailable."""
        place = self.place
        place.check_path()
        try:
            place.sidecars.refresh()
            deferred, locked = 0, set()
            due_at_of, prefix, matches = place.sidecars.due_at, place.prefix, place.matches
            share = len(place.sidecars) // _VERIFIED_A_SCAN + 1
            with closing(listing(place.work_fd)) as all_names:
                for name in all_names:
                    if matches(name):
                        due_at = due_at_of(prefix + name)
                        if due_at is not None and place.lies_ahead(due_at):
                            look = (deferred + self.number) % share == 0
                            if not look or _is_of_its_sidecar(place, name, prefix + name):
                                deferred += 1
                                continue
                        yield name
                    elif name.endswith(names.LOCK) and matches(name[:-4]):
                        locked.add(name[:-4])
            place.locked_names = {n for n in locked if n not in place.claimed}
        except OSError as error:
            raise unavailable(place.settings.path, error) from None


def _is_of_its_sidecar(place: Place, name: bytes, file_name: bytes) -> bool:
    """Whether a name that waits still leads to the message that the sidecar of that name is about."""
    found = stat_at(place.work_fd, name)
    return found is None or place.sidecars.belongs(file_name, found.st_mtime_ns, found.st_size)


def count(place: Place, *, stat_limit: int) -> Counts:
    """A pass of its own. Raises DirectoryUnavailable."""
    place.check_path()
    tally = Counter[State]()
    due_at_of = place.sidecars.due_at
    few: list[tuple[State, int, bytes]] | None = []  # to be looked at; None: they are too many
    try:
        place.sidecars.refresh()
        for state, dir_fd, name, file_name in everything(place):
            if state is State.WAITING:
                due_at = due_at_of(file_name)
                if due_at is not None and place.lies_ahead(due_at):
                    verified = tally[State.DEFERRED] < _VERIFIED_A_SCAN
                    if not verified or _is_of_its_sidecar(place, name, file_name):
                        state = State.DEFERRED  # the name told us no more
            tally[state] += 1
            if few is not None:
                few.append((state, dir_fd, name))
                if len(few) > stat_limit:
                    few = None
        size, oldest = (None, None) if few is None else _looked_at(few, tally)
    except OSError as error:
        raise unavailable(place.settings.path, error) from None
    return Counts(
        waiting=tally[State.WAITING],
        claimed=tally[State.CLAIMED],
        deferred=tally[State.DEFERRED],
        held=tally[State.HELD],
        badmail=tally[State.BADMAIL],
        size_bytes=size,
        oldest_mtime=oldest,
    )


def _looked_at(few: Iterable[tuple[State, int, bytes]], tally: Counter[State]) -> tuple[int, float | None]:
    """Octets of all, and the oldest time of those that wait; what is no file is taken from the tally."""
    size, oldest = 0, None
    for state, dir_fd, name in few:
        found = stat_at(dir_fd, name)
        if found is None:  # on its way
            continue
        if not stat.S_ISREG(found.st_mode):
            tally[state] -= 1
            continue
        size += found.st_size
        if state in (State.WAITING, State.DEFERRED):
            oldest = found.st_mtime if oldest is None else min(oldest, found.st_mtime)
    return size, oldest


def everything(place: Place) -> Iterator[tuple[State, int, bytes, bytes]]:
    """State by name (deferred ones as waiting), directory, name in it, name relative to the pickup directory."""
    matches = place.matches
    for name in listing(place.work_fd):
        if matches(name):
            yield State.WAITING, place.work_fd, name, place.prefix + name
        elif name.endswith(names.LOCK) and matches(name[:-4]):
            yield State.CLAIMED, place.work_fd, name, place.prefix + name
        elif not place.prefix and name.endswith(names.HOLD) and matches(name[:-5]):
            yield State.HELD, place.work_fd, name, name
    if place.prefix:
        for name in listing(place.root_fd):
            if name.endswith(names.HOLD) and matches(name[:-5]):
                yield State.HELD, place.root_fd, name, name
    fd = _badmail(place)
    for name in _dead(fd):
        yield State.BADMAIL, fd, name, _BADMAIL_PREFIX + name


def _badmail(place: Place) -> int:
    """Its descriptor; -1 where there is none, or none of ours: moves into it fail then, and are told."""
    try:
        return place.badmail_fd()
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            return -1
        raise


def _dead(fd: int) -> Iterator[bytes]:
    if fd >= 0:
        for name in listing(fd):
            if name[:1] != b"." and not name.endswith(names.REASON):
                yield name


def entries(place: Place, states: Collection[State] | None) -> Iterator[Entry]:
    """Raises DirectoryUnavailable."""
    place.check_path()
    try:
        place.sidecars.refresh()
        for state, dir_fd, name, file_name in everything(place):
            if states is not None and state not in states and not (state is State.WAITING and State.DEFERRED in states):
                continue
            entry = entry_at(place, dir_fd, name, file_name)
            if entry is not None and (states is None or entry.state in states):
                yield entry
    except OSError as error:
        raise unavailable(place.settings.path, error) from None


def entry_at(place: Place, dir_fd: int, name: bytes, file_name: bytes) -> Entry | None:
    """The message that lies there now; None if there is none, or something that is no file. Raises OSError."""
    found = stat_at(dir_fd, name)
    if found is None or not stat.S_ISREG(found.st_mode):
        return None
    plain = file_name[: -len(names.LOCK)] if name.endswith(names.LOCK) else file_name
    raw = MessageIdentity(place.settings.name, names.base_of(file_name), found.st_mtime_ns, found.st_size)
    identity, sidecar = known(place, plain, raw)
    state = State.WAITING
    if name.endswith(names.LOCK):
        state = State.CLAIMED
        mine = place.claimed.get(names.base_of(file_name))
        identity = mine.identity if mine is not None else identity
    elif file_name.startswith(_BADMAIL_PREFIX):
        state = State.BADMAIL
    elif name.endswith(names.HOLD):
        state = State.HELD
    elif sidecar is not None and place.lies_ahead(sidecar.due_at):
        state = State.DEFERRED
    return Entry(identity, state, file_name, found.st_size, found.st_mtime, sidecar)


def find(place: Place, message_id: MessageId) -> Entry:
    """In whatever state it is. Raises NotFound, DirectoryUnavailable."""
    place.check_path()
    try:
        place.sidecars.refresh()
        bases = [message_id.name]
        record = place.sidecars.record_of(message_id.file_hash)
        if record is not None:
            bases.insert(0, names.base_of(record.file_name))
        bases += [c.file_name for c in list(place.claimed.values()) if c.identity.name == message_id.name]
        for base in dict.fromkeys(bases):
            for dir_fd, name, file_name in spots(place, base):
                if dir_fd < 0:
                    continue
                entry = entry_at(place, dir_fd, name, file_name)
                if entry is not None and (entry.identity.name, entry.identity.tag) == (message_id.name, message_id.tag):
                    return entry
    except OSError as error:
        raise unavailable(place.settings.path, error) from None
    raise NotFound("message", message_id.id)


def spots(place: Place, base: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """All places where a message of this plain name can lie."""
    yield place.work_fd, base, place.prefix + base
    yield place.work_fd, base + names.LOCK, place.prefix + base + names.LOCK
    yield place.root_fd, base + names.HOLD, base + names.HOLD
    yield _badmail(place), base, _BADMAIL_PREFIX + base
