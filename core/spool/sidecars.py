"""Sidecars: what is remembered of a message that goes back, one JSON file each in `.mpu/`.

Named by the hash of the message's identity, without the directory's configured name, so that any process finds it.
Written to a temporary file, synced, renamed. The index in memory holds the names and due times only: deferred can be
told from waiting without a stat. Other processes write here too: the time of the directory tells whether the index may
be old, and then the file itself is looked for.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from core.domain.message import MessageIdentity
from core.domain.outcome import Blame
from core.domain.sidecar import Sidecar
from core.spool import kernel, names

_SUFFIX = b".json"
_HASH_LENGTH = 32
TEMPORARY = b"tmp-"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_MAX_OCTETS = 128 << 20  # 10,000 accepted recipients are under 4 MiB, 100,000 of any kind under this; more is none
_TICK_NS = 50_000_000  # changes within one tick of the kernel's clock may bear the same time
_FEW = 1_000
_REFRESH_SECONDS = 0.1
_MAX_NUMBER = 1e12  # no count and no time of ours comes near it
_NO_FILE = frozenset({errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENODEV})
_FIELDS = {f.name: f for f in dataclasses.fields(Sidecar)}
_KINDS = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(Sidecar).items()}
_LISTS: dict[str, Callable[[Iterable[str]], Any]] = {"accepted": frozenset, "failed": frozenset, "refusals": tuple}


@dataclass(frozen=True, slots=True)
class Record:
    """One sidecar as the index knows it."""

    file_hash: str
    file_name: bytes  # of the message, relative to the directory
    arrival_name: bytes
    mtime_ns: int
    size: int
    due_at: float | None
    token: str  # of the claim it came from
    inode: int  # of the sidecar: a new one with each writing

    @property
    def key(self) -> tuple[bytes, int, int]:
        return (self.arrival_name, self.mtime_ns, self.size)


@dataclass(frozen=True, slots=True)
class Draft:
    """A sidecar to be written."""

    identity: MessageIdentity
    file_name: bytes  # the name the message is about to have, relative to the directory
    sidecar: Sidecar
    token: str = ""


def encode(draft: Draft) -> bytes:
    """JSON with the identity, the name and all fields that differ from their default."""
    record: dict[str, Any] = {
        "version": 1,
        "name": os.fsdecode(draft.identity.name),
        "mtime_ns": draft.identity.mtime_ns,
        "size": draft.identity.size,
        "file": os.fsdecode(draft.file_name),
        "claim": draft.token,
    }
    for name, field in _FIELDS.items():
        value = getattr(draft.sidecar, name)
        if value != field.default:
            record[name] = (list(value) if isinstance(value, tuple) else sorted(value)) if name in _LISTS else value
    return json.dumps(record, separators=(",", ":")).encode("ascii")


def decode(data: bytes, *, file_hash: str, inode: int) -> tuple[Record, Sidecar]:
    """The opposite. Raises ValueError for what isn't one: whoever may write mail here could have written it."""
    try:
        raw = json.loads(data)
        values: dict[str, Any] = {
            n: _LISTS[n](map(str, raw[n])) if n in _LISTS else _checked(n, raw[n]) for n in _FIELDS if n in raw
        }
        record = Record(
            file_hash=file_hash,
            file_name=os.fsencode(raw["file"]),
            arrival_name=os.fsencode(raw["name"]),
            mtime_ns=int(raw["mtime_ns"]),
            size=int(raw["size"]),
            due_at=values.get("due_at"),
            token=str(raw.get("claim", "")),
            inode=inode,
        )
        if values.get("blame") is not None:
            Blame(values["blame"])
        *folder, base = record.file_name.split(b"/")
        if len(folder) > 1 or not all(map(names.is_plain, (record.arrival_name, base, *folder))):
            raise ValueError("not a sidecar: no file name")
        return record, Sidecar(**values)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"not a sidecar: {error}") from None


def _checked(name: str, value: Any) -> Any:
    kinds = _KINDS[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        if (float in kinds or (int in kinds and isinstance(value, int))) and abs(value) < _MAX_NUMBER:
            return value
    elif isinstance(value, str) and str in kinds:
        return value.encode("utf-8", "replace").decode()  # halves of surrogate pairs would stop whoever shows it
    elif type(value) in kinds:
        return value
    raise ValueError(f"not a sidecar: {name}")


class Sidecars:
    """All sidecars of one directory."""

    def __init__(self, mpu_fd: int) -> None:
        self._fd = mpu_fd
        self._by_hash: dict[str, Record] = {}
        self._by_name: dict[bytes, Record] = {}
        self._by_key: dict[tuple[bytes, int, int], Record] = {}
        self._none: dict[str, tuple[int, int]] = {}  # inode and ctime of what isn't one: it may take seconds to read
        self._refreshed_at = 0.0  # monotonic seconds
        self._fresh_ns = -1  # the time of .mpu/ that the index is known to be as new as

    def __len__(self) -> int:
        return len(self._by_hash)

    # --- the index ---------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what others wrote since the last time."""
        self._refreshed_at = time.monotonic()
        changed = os.fstat(self._fd).st_mtime_ns
        if changed == self._fresh_ns:
            return
        seen = set()
        for name, inode in kernel.inodes(self._fd):
            if len(name) != _HASH_LENGTH + len(_SUFFIX) or not name.endswith(_SUFFIX):
                continue
            file_hash = name[:_HASH_LENGTH].decode("ascii", "replace")
            seen.add(file_hash)
            known = self._by_hash.get(file_hash)
            if known is None:
                none = self._none.get(file_hash)
                if none is None or none != self._seen(name):
                    self._read(file_hash)
            elif known.inode != inode:
                self._read(file_hash)
        for file_hash in [h for h in list(self._none) if h not in seen]:
            self._none.pop(file_hash, None)
        for file_hash in [h for h in list(self._by_hash) if h not in seen]:
            if not os.access(file_hash.encode() + _SUFFIX, os.F_OK, dir_fd=self._fd):
                self._forget(file_hash)
        self._fresh_ns = changed if time.time_ns() - changed > _TICK_NS else -1

    def _seen(self, name: bytes) -> tuple[int, int] | None:
        try:
            found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return None
        return (found.st_ino, found.st_ctime_ns)

    def stale(self) -> bool:
        """Whether another process may have written one that the index doesn't have."""
        if os.fstat(self._fd).st_mtime_ns == self._fresh_ns:
            return False
        if len(self._by_hash) < _FEW and time.monotonic() - self._refreshed_at > _REFRESH_SECONDS:
            self.refresh()  # cheaper than a look for each message
            return os.fstat(self._fd).st_mtime_ns != self._fresh_ns
        return True

    def due_at(self, file_name: bytes) -> float | None:
        """Due time of the message that had this name, without any look at the disk."""
        record = self._by_name.get(file_name)
        return None if record is None else record.due_at

    def due_times(self) -> Iterator[float]:
        """Due times of messages that wait."""
        for record in list(self._by_name.values()):
            if record.due_at is not None and not record.file_name.endswith(names.HOLD):
                if record.file_name.startswith(names.BADMAIL + b"/"):
                    continue
                yield record.due_at

    def belongs(self, file_name: bytes, mtime_ns: int, size: int) -> bool:
        """Whether the sidecar under this name is this file's; if not, another message took the name, and is due."""
        record = self._by_name.get(file_name)
        if record is None:
            return False
        if (record.mtime_ns, record.size) == (mtime_ns, size):
            return True
        self._by_name.pop(file_name, None)  # another thread may have done it
        return False

    def named(self, file_name: bytes) -> Record | None:
        """The one that names this file, whatever lies there now. Looks through all of them."""
        return next((record for record in list(self._by_hash.values()) if record.file_name == file_name), None)

    def record_of(self, file_hash: str) -> Record | None:
        """What the index has under this hash."""
        return self._by_hash.get(file_hash)

    def lookup(self, directory: str, file_name: bytes, mtime_ns: int, size: int) -> Record | None:
        """The record of the message that now has this name (relative to the directory, without `.lck`)."""
        record = self._by_name.get(file_name)
        if record is not None and record.mtime_ns == mtime_ns and record.size == size:
            return record
        base = names.base_of(file_name)
        record = self._by_key.get((base, mtime_ns, size))
        if record is not None:
            return record
        if self.stale():
            record = self._on_disk(directory, base, mtime_ns, size)
            if record is not None:
                return record
        arrival = names.arrival_of(base)
        if arrival is None:
            return None
        record = self._by_key.get((arrival, mtime_ns, size))
        if record is None and self.stale():
            record = self._on_disk(directory, arrival, mtime_ns, size)
        # another file that still has the name of the sidecar is the one it belongs to
        return None if record is None or self._claims_name(record) else record

    def _claims_name(self, record: Record) -> bool:
        """Whether the message that this sidecar names can still be there under that name."""
        root = os.open(b"..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            for name in (record.file_name, record.file_name + names.LOCK):
                with suppress(OSError):
                    found = os.stat(name, dir_fd=root, follow_symlinks=False)
                    if (found.st_mtime_ns, found.st_size) == (record.mtime_ns, record.size):
                        return True
            return False
        finally:
            os.close(root)

    def _on_disk(self, directory: str, arrival: bytes, mtime_ns: int, size: int) -> Record | None:
        file_hash = MessageIdentity(directory, arrival, mtime_ns, size).file_hash
        if not os.access(file_hash.encode() + _SUFFIX, os.F_OK, dir_fd=self._fd):
            return None
        self._read(file_hash)
        return self._by_hash.get(file_hash)

    # --- files -------------------------------------------------------------------------------------------------------

    def read(self, record: Record) -> tuple[Record, Sidecar] | None:
        """The sidecar itself, as it is on the disk now; None if it is gone."""
        return self._read(record.file_hash)

    def _read(self, file_hash: str) -> tuple[Record, Sidecar] | None:
        name = file_hash.encode() + _SUFFIX
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._fd)
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            self._forget(file_hash)
            return None
        try:
            found = os.fstat(fd)
            data = b""
            if stat.S_ISREG(found.st_mode) and found.st_size <= _MAX_OCTETS:
                while part := os.read(fd, found.st_size - len(data)):
                    data += part
        finally:
            os.close(fd)
        try:
            record, sidecar = decode(data, file_hash=file_hash, inode=found.st_ino)
        except ValueError:  # torn by a power loss before its sync, never relied on; or none of ours
            self._forget(file_hash)
            self._none[file_hash] = (found.st_ino, found.st_ctime_ns)
            return None
        self._remember(record)
        return record, sidecar

    def write(self, drafts: Iterable[Draft]) -> None:
        """Write a group durably. Raises OSError; what was written before the error stays written."""
        written: list[tuple[Draft, bytes, str, int]] = []
        temporary = b""
        try:
            for draft in drafts:
                temporary = TEMPORARY + secrets.token_hex(8).encode()
                fd = os.open(temporary, _CREATE, 0o660, dir_fd=self._fd)
                try:
                    os.fchmod(fd, 0o660)
                    write_all(fd, encode(draft))
                    os.fsync(fd)
                    written.append((draft, temporary, draft.identity.file_hash, os.fstat(fd).st_ino))
                finally:
                    os.close(fd)
        except OSError:
            for name in [temporary, *(w[1] for w in written)]:
                with suppress(OSError):
                    os.unlink(name, dir_fd=self._fd)
            raise
        for draft, name, file_hash, inode in written:
            os.rename(name, file_hash.encode() + _SUFFIX, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            identity = draft.identity
            self._remember(
                Record(
                    file_hash=file_hash,
                    file_name=draft.file_name,
                    arrival_name=identity.name,
                    mtime_ns=identity.mtime_ns,
                    size=identity.size,
                    due_at=draft.sidecar.due_at,
                    token=draft.token,
                    inode=inode,
                )
            )
        if written:
            os.fsync(self._fd)

    def remove(self, identity: MessageIdentity) -> None:
        """Its message is gone. A leftover does no harm, so errors are not raised."""
        file_hash = identity.file_hash
        with suppress(OSError):
            os.unlink(file_hash.encode() + _SUFFIX, dir_fd=self._fd)
        self._forget(file_hash)

    def _remember(self, record: Record) -> None:
        self._forget(record.file_hash)
        self._none.pop(record.file_hash, None)
        self._by_hash[record.file_hash] = record
        self._by_name[record.file_name] = record
        self._by_key[record.key] = record

    def _forget(self, file_hash: str) -> None:
        record = self._by_hash.pop(file_hash, None)
        if record is None:
            return
        if self._by_name.get(record.file_name) is record:
            self._by_name.pop(record.file_name, None)
        if self._by_key.get(record.key) is record:
            self._by_key.pop(record.key, None)


def write_all(fd: int, data: bytes) -> None:
    """All of it, however many writes it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
