"""What an operator does to a message: hold, release, retry, delete, look at.

Each takes the message's lock first, so none can race a claim, and compares the identity under it. `before` is called
under the lock when it is certain that there is something to do: what it raises leaves the message as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from core.domain.lifecycle import restart
from core.domain.message import MessageId, State
from core.domain.sidecar import Sidecar
from core.errors import (
    MessageBusy,
    MessageGone,
    NotFound,
    StateConflict,
)
from core.spool import names
from core.spool.claim import claim_error, close_both, leads_to, open_message, take_lock
from core.spool.dispose import remove_reason, sync_directory
from core.spool.move import Target, first_free, move, targets
from core.spool.place import Place
from core.spool.scan import entry_at, find
from core.spool.sidecars import Draft
from core.spool.values import Entry

Before = Callable[[], object]


@dataclass(slots=True)
class _Held:
    """A message under its lock."""

    dir_fd: int
    name: bytes
    entry: Entry  # as it is now
    fd: int
    lock_fd: int


def hold(place: Place, entry: Entry, before: Before) -> Entry:
    """Waiting or deferred to held."""
    with _locked(place, entry) as held:
        if held.entry.state not in (State.WAITING, State.DEFERRED):
            raise _conflict(held.entry, "only a message that waits can be held")
        before()
        return _move(place, held, State.HELD, held.entry.sidecar)


def release_hold(place: Place, entry: Entry, before: Before) -> Entry:
    """Held to waiting."""
    with _locked(place, entry) as held:
        if held.entry.state is not State.HELD:
            raise _conflict(held.entry, "only a held message can be released")
        before()
        return _move(place, held, State.WAITING, held.entry.sidecar)


def retry(place: Place, entry: Entry, before: Before) -> Entry:
    """Deferred becomes due; badmail waits again, attempts and age restarted; what waits stays as it is."""
    with _locked(place, entry) as held:
        now = held.entry
        if now.state is State.WAITING:
            return now
        if now.state is State.DEFERRED and now.sidecar is not None:
            before()
            sidecar = replace(now.sidecar, due_at=None)
            place.sidecars.write([Draft(now.identity, now.file_name, sidecar, _token(place, now))])
            return Entry(now.identity, State.WAITING, now.file_name, now.size, now.mtime, sidecar)
        if now.state is not State.BADMAIL:
            raise _conflict(now, "release it first" if now.state is State.HELD else "it is being sent")
        before()
        was = now.sidecar or _before_it_was_corrected(place, now)
        back = _move(place, held, State.WAITING, None if was is None else restart(was), rewrite=True)
        remove_reason(place, names.base_of(now.file_name))
        return back


def delete(place: Place, entry: Entry, before: Before) -> None:
    """Remove it for good."""
    with _locked(place, entry) as held:
        if held.entry.state is State.CLAIMED:
            raise _conflict(held.entry, "it is being sent")
        before()
        try:
            os.unlink(held.name, dir_fd=held.dir_fd)
        except OSError as error:
            raise claim_error(place, error) from None
        sync_directory(place, held.dir_fd)
        place.sidecars.remove(held.entry.identity)
        if held.entry.state is State.BADMAIL:
            remove_reason(place, names.base_of(held.entry.file_name))


def open_raw(place: Place, entry: Entry) -> int:
    """A read-only descriptor. Raises NotFound, MessageUnreadable, MessageRefused."""
    dir_fd, name = _spot(place, entry)
    try:
        fd = open_message(place, dir_fd, name)
    except MessageGone:
        raise NotFound("message", entry.identity.id) from None
    found = os.fstat(fd)
    if (found.st_mtime_ns, found.st_size) != (entry.identity.mtime_ns, entry.identity.size):
        os.close(fd)
        raise NotFound("message", entry.identity.id)
    return fd


def holds(place: Place, message_id: MessageId) -> bool:
    """Whether it lies here in whatever state, or is in flight."""
    for _ in range(3):  # it may be on its way from one state to another
        claimed = [claim.identity for claim in list(place.claimed.values())]
        if any((one.name, one.tag) == (message_id.name, message_id.tag) for one in claimed):
            return True
        with suppress(NotFound):
            find(place, message_id)
            return True
    return False


# --- parts -----------------------------------------------------------------------------------------------------------


@contextmanager
def _locked(place: Place, entry: Entry) -> Iterator[_Held]:
    """The message as it lies now, under its lock. Raises NotFound, StateConflict."""
    place.check_path()
    held = None
    try:
        for _ in range(3):  # it may be on its way from one state to another
            held = _take(place, entry)
            if held is not None:
                break
            entry = find(place, MessageId(entry.identity.directory, entry.identity.name, entry.identity.tag))
    except OSError as error:
        raise claim_error(place, error) from None
    if held is None:
        raise StateConflict("it is moving", state=entry.state, remedy="try again")
    try:
        yield held
    except OSError as error:
        raise claim_error(place, error) from None
    finally:
        close_both(place, held.fd, held.lock_fd, names.base_of(held.name))


def _take(place: Place, entry: Entry) -> _Held | None:
    """None if it is elsewhere now. Raises NotFound, StateConflict, MessageUnreadable."""
    dir_fd, name = _spot(place, entry)
    base = names.base_of(name)
    try:
        fd = open_message(place, dir_fd, name)
    except MessageGone:
        return None
    lock_fd = -1
    try:
        lock_fd = take_lock(place, fd, base)
        leads_to(dir_fd, name, os.fstat(fd).st_ino)
        now = entry_at(place, dir_fd, name, entry.file_name)
        _same(now, entry)
    except MessageBusy:
        close_both(place, fd, lock_fd, base)
        raise StateConflict("it is being sent", state=State.CLAIMED, remedy="try again when it is done") from None
    except MessageGone:
        close_both(place, fd, lock_fd, base)
        return None
    except BaseException:
        close_both(place, fd, lock_fd, base)
        raise
    return _Held(dir_fd, name, now or entry, fd, lock_fd)


def _same(now: Entry | None, entry: Entry) -> None:
    if now is None or now.identity != entry.identity:
        raise NotFound("message", entry.identity.id)


def _spot(place: Place, entry: Entry) -> tuple[int, bytes]:
    place_name, _, name = entry.file_name.rpartition(b"/")
    if place_name == names.BADMAIL:
        fd = place.badmail_fd()
        if fd < 0:
            raise NotFound("message", entry.identity.id)
        return fd, name
    return (place.root_fd if name.endswith(names.HOLD) else place.work_fd), name


def _move(place: Place, held: _Held, state: State, sidecar: Sidecar | None, *, rewrite: bool = False) -> Entry:
    """Write the sidecar under the new name if there is one or the name changes, then move and sync."""
    now = held.entry
    base = names.base_of(now.file_name)
    while True:
        target = first_free(targets(place, state, now.identity, base))
        if now.sidecar is not None or rewrite or target.base != now.identity.name:
            place.sidecars.write([Draft(now.identity, target.file_name, sidecar or Sidecar(), _token(place, now))])
        try:
            move(place, held.dir_fd, held.name, target)
        except FileExistsError:
            continue
        break
    for fd in {held.dir_fd, target.dir_fd}:
        sync_directory(place, fd)
    return _entry(place, target, now)


def _entry(place: Place, target: Target, before: Entry) -> Entry:
    entry = entry_at(place, target.dir_fd, target.name, target.file_name)
    if entry is None:
        raise NotFound("message", before.identity.id)
    return entry


def _before_it_was_corrected(place: Place, entry: Entry) -> Sidecar | None:
    """A dead letter that was edited is another message by size and time; who has it, has it all the same."""
    record = place.sidecars.named(entry.file_name)
    read = None if record is None else place.sidecars.read(record)
    return None if read is None else read[1]


def _token(place: Place, entry: Entry) -> str:
    """Kept, since recovery tells by it what was disposed of."""
    record = place.sidecars.record_of(entry.identity.file_hash)
    return "" if record is None else record.token


def _conflict(entry: Entry, remedy: str) -> StateConflict:
    return StateConflict(f"the message is {entry.state}", state=entry.state, remedy=remedy)
