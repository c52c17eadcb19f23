"""A model of a disk that forgets at a power cut what was not synced.

A recorder (effects.py) writes down each write, size, rename, link, unlink, mkdir and sync of a directory tree. `after`
gives the tree as it may be found after a cut: what was synced is there; of the rest any subset, in any order. That is
weaker than ext4 (whose journal keeps the order of directory changes) on purpose:

- fsync of a file makes its data and size last, not its name;
- fsync of a directory makes the changes of its names last; a rename or link is whole or not at all;
- an unsynced write may be there, be missing (zeros, where the size grew), or be there in its first part.
"""

from __future__ import annotations

import os
import random
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.effects import Dots


@dataclass(frozen=True, slots=True)
class Op:
    """One recorded effect. Directories by their path in the tree, files by number."""

    kind: str  # create link rename unlink mkdir | write size | sync syncdir | commit begun dot outcome
    directory: str = ""
    name: bytes = b""
    node: int = -1
    target: str = ""  # directory of a rename or link
    new_name: bytes = b""
    offset: int = 0
    data: bytes = b""
    about: Any = None

    @property
    def touched(self) -> set[str]:
        """Directories whose names it changes."""
        return {self.directory, self.target} if self.kind in ("rename", "link") else {self.directory}


NAMES = frozenset({"create", "link", "rename", "unlink", "mkdir"})
CONTENT = frozenset({"write", "size"})


@dataclass
class Recorder:
    """Writes down what happens below one directory, from now on. An Observer (effects.py)."""

    root: str
    snapshot: Callable[[int], None]  # called in the writer thread after a commit, with its number
    ops: list[Op] = field(default_factory=list)
    nodes: dict[int, int] = field(default_factory=dict)  # inode -> number
    directories: dict[int, str] = field(default_factory=dict)  # inode -> path in the tree
    count: int = 0
    commits: int = 0
    dots: Dots = field(default_factory=Dots)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.directories[os.stat(self.root).st_ino] = ""
        self.dots.on_dot = lambda key: self.ops.append(Op("dot", about=key))

    def know(self, name: bytes) -> int:
        """A file that is there from the beginning, synced. Its number."""
        return self._new(os.stat(os.path.join(os.fsencode(self.root), name)).st_ino)

    def _new(self, inode: int) -> int:
        self.nodes[inode] = self.count
        self.count += 1
        return self.nodes[inode]

    def around(self, kind: str, do: Callable[[], Any], half: Callable[[], Any] | None, about: Sequence[Any]) -> Any:
        if kind == "commit":  # it waits for an effect of another thread
            result = do()
            with self._lock:
                self._commit(about)
            return result
        with self._lock:
            before = getattr(self, f"_before_{kind}", lambda _: None)(about)
            result = do()
            getattr(self, f"_{kind}", lambda *_: None)(about, result, before)
            return result

    def said(self, word: str, *about: Any) -> None:
        if word == "received":
            return
        with self._lock:
            self.ops.append(Op(word, name=about[0], about=about[1]))

    # --- by kind ---

    def _dir(self, fd: int | None) -> str | None:
        return None if fd is None else self.directories.get(os.fstat(fd).st_ino)

    def _before_open(self, about: Sequence[Any]) -> bool:
        return self._dir(about[0]) is not None and _inode(about[1], about[0]) is None

    def _open(self, about: Sequence[Any], fd: int, created: bool) -> None:
        directory = self._dir(about[0])
        if directory is None:
            return
        if created:
            self.ops.append(Op("create", directory, about[1], self._new(os.fstat(fd).st_ino)))
        elif about[2] & os.O_TRUNC:
            self._content(Op("size", node=self.nodes.get(os.fstat(fd).st_ino, -1), offset=0, about="truncate"))

    def _content(self, op: Op) -> None:
        if op.node >= 0:
            self.ops.append(op)

    def _before_write(self, about: Sequence[Any]) -> int:
        return os.lseek(about[0], 0, os.SEEK_CUR)

    def _write(self, about: Sequence[Any], count: int, offset: int) -> None:
        node = self.nodes.get(os.fstat(about[0]).st_ino, -1)
        self._content(Op("write", node=node, offset=offset, data=about[1][:count]))

    def _pwrite(self, about: Sequence[Any], count: int, _: None) -> None:
        node = self.nodes.get(os.fstat(about[0]).st_ino, -1)
        self._content(Op("write", node=node, offset=about[2], data=about[1][:count]))

    def _fallocate(self, about: Sequence[Any], _result: None, _: None) -> None:
        self._content(Op("size", node=self.nodes.get(os.fstat(about[0]).st_ino, -1), offset=about[1] + about[2]))

    def _before_rename(self, about: Sequence[Any]) -> int | None:
        return None if self._dir(about[0]) is None else _inode(about[1], about[0])

    def _rename(self, about: Sequence[Any], result: int | None, inode: int | None) -> None:
        if inode is None or result:  # renameat2 gives the number of its error
            return
        source, target = self._dir(about[0]), self._dir(about[2])
        assert source is not None
        assert target is not None
        self.ops.append(Op("rename", source, about[1], self.nodes.get(inode, -1), target, about[3]))

    _before_link = _before_rename

    def _link(self, about: Sequence[Any], _result: None, inode: int | None) -> None:
        source, target = self._dir(about[0]), self._dir(about[2])
        if inode is not None and source is not None and target is not None:
            self.ops.append(Op("link", source, about[1], self.nodes.get(inode, -1), target, about[3]))

    def _unlink(self, about: Sequence[Any], _result: None, _: None) -> None:
        directory = self._dir(about[0])
        if directory is not None:
            self.ops.append(Op("unlink", directory, about[1]))

    def _mkdir(self, about: Sequence[Any], _result: None, _: None) -> None:
        directory = self._dir(about[0])
        if directory is not None:
            inode = _inode(about[1], about[0])
            assert inode is not None
            path = os.path.join(directory, os.fsdecode(about[1]))
            self.directories[inode] = path
            self.ops.append(Op("mkdir", directory, about[1], target=path))

    def _fsync(self, about: Sequence[Any], _result: None, _: None) -> None:
        found = os.fstat(about[0])
        if stat.S_ISDIR(found.st_mode):
            if found.st_ino in self.directories:
                self.ops.append(Op("syncdir", self.directories[found.st_ino]))
        else:
            self._content(Op("sync", node=self.nodes.get(found.st_ino, -1)))

    def _send(self, about: Sequence[Any], count: int, _: None) -> None:
        self.dots.sent(about[0], about[1][:count])

    def _commit(self, about: Sequence[Any]) -> None:
        self.commits += 1
        self.snapshot(self.commits)
        self.ops.append(Op("commit", about=about[0], offset=self.commits))


def _inode(name: Any, dir_fd: int) -> int | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


# --- the cut ----------------------------------------------------------------------------------------------------------

Tree = dict[str, dict[bytes, int]]  # directory -> name -> file
MODES = ("all forgotten", "names kept", "content kept", "all kept", "some", "few", "most")
_SHARES = {"some": 0.5, "few": 0.15, "most": 0.85}


@dataclass
class Found:
    """A tree after a cut."""

    tree: Tree
    content: dict[int, bytearray]


def after(
    ops: Sequence[Op], first: dict[bytes, int], content: dict[int, bytes], chance: random.Random, mode: str
) -> Found:
    """What is found of `ops` after a cut behind the last of them. `first`: the names that were there, with content."""
    found = Found({"": dict(first)}, {node: bytearray(data) for node, data in content.items()})
    lasting = _lasting(ops)
    for index, op in enumerate(ops):
        if op.kind in NAMES:
            if index in lasting or _kept(mode, "names", chance):
                _name(found, op)
        elif op.kind in CONTENT and (index in lasting or _kept(mode, "content", chance)):
            torn = index not in lasting and mode in _SHARES and chance.random() < 0.2
            _write(found, op, len(op.data) * chance.random() if torn else len(op.data))
    _forget_unreachable(found)
    return found


def _lasting(ops: Sequence[Op]) -> set[int]:
    """Those of them that a later sync made last."""
    lasting: set[int] = set()
    synced: set[str | int] = set()
    for index in range(len(ops) - 1, -1, -1):
        op = ops[index]
        if op.kind == "sync":
            synced.add(op.node)
        elif op.kind == "syncdir":
            synced.add(op.directory)
        elif (op.kind in NAMES and op.touched & synced) or (op.kind in CONTENT and op.node in synced):
            lasting.add(index)
    return lasting


def _kept(mode: str, what: str, chance: random.Random) -> bool:
    if mode in _SHARES:
        return chance.random() < _SHARES[mode]
    return mode == "all kept" or mode == f"{what} kept"


def _name(found: Found, op: Op) -> None:
    tree = found.tree
    if op.kind == "mkdir":
        tree[op.directory][op.name] = -1
        tree.setdefault(op.target, {})
    elif op.kind == "unlink":
        tree.get(op.directory, {}).pop(op.name, None)
    elif op.kind == "create":
        tree.setdefault(op.directory, {})[op.name] = op.node
    else:
        if op.kind == "rename" and tree.get(op.directory, {}).get(op.name) == op.node:
            del tree[op.directory][op.name]
        tree.setdefault(op.target, {})[op.new_name] = op.node


def _write(found: Found, op: Op, octets: float) -> None:
    data = found.content.setdefault(op.node, bytearray())
    if op.kind == "size":
        if op.about == "truncate":
            data.clear()
        data.extend(bytes(max(op.offset - len(data), 0)))
        return
    part = op.data[: int(octets)]
    data.extend(bytes(max(op.offset + len(part) - len(data), 0)))
    data[op.offset : op.offset + len(part)] = part


def _forget_unreachable(found: Found) -> None:
    """A directory whose own name was forgotten takes what is in it along."""
    for path in list(found.tree):
        if path and os.fsencode(path) not in found.tree[""]:
            del found.tree[path]


def materialise(found: Found, root: str, times: dict[int, int]) -> None:
    """Write the tree into an empty directory. `times`: mtime in ns of the files that were there from the beginning."""
    made: dict[int, bytes] = {}
    for path, entries in sorted(found.tree.items()):
        folder = os.path.join(root, path)
        os.makedirs(folder, exist_ok=True)
        for name, node in entries.items():
            full = os.path.join(os.fsencode(folder), name)
            if node < 0:
                continue
            if node in made:  # two names of one file
                os.link(made[node], full)
                continue
            with open(full, "wb") as file:
                file.write(found.content.get(node, b""))
            made[node] = full
            if node in times:
                os.utime(full, ns=(times[node], times[node]))
