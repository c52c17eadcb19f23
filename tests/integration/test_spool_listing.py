"""Listings of directories: everything that is there, by hundreds with one call, or one by one where that can't be."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.spool import kernel

WAYS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "getdents64": lambda _: None,
    "scandir": lambda patch: patch.setattr(kernel, "_getdents64", lambda: None),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    WAYS[request.param](monkeypatch)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.usefixtures("way")
def test_all_names_with_their_inodes_whatever_octets_they_have(tmp_path: Path, fd: int) -> None:
    folder = os.fsencode(tmp_path)
    names = [b"%d%s" % (n, b"x" * (n % 250)) for n in range(1500)]  # several times what one call gives
    names += [b"\xff\xfe.eml", b"new\nline", b".hidden", b"...", b"a" * 255]
    for name in names:
        os.close(os.open(folder + b"/" + name, os.O_CREAT | os.O_WRONLY))
    os.mkdir(folder + b"/folder")
    os.symlink("nowhere", folder + b"/link")
    wanted = {name: os.lstat(folder + b"/" + name).st_ino for name in [*names, b"folder", b"link"]}
    found = [*kernel.inodes(fd)]
    assert dict(found) == wanted
    assert len(found) == len(wanted)
    assert sorted(kernel.listing(fd)) == sorted(wanted)
    assert sorted(kernel.listing(fd)) == sorted(wanted), "from its beginning each time"


@pytest.mark.usefixtures("way")
def test_an_empty_and_a_removed_directory_have_nothing(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    fd = os.open(gone, os.O_RDONLY | os.O_DIRECTORY)
    assert [*kernel.listing(fd)] == []
    (gone / "x").touch()
    listing = kernel.listing(fd)
    assert next(listing) == b"x"
    (gone / "x").unlink()
    gone.rmdir()
    assert [*listing] == []
    os.close(fd)


@pytest.mark.usefixtures("way")
def test_a_listing_that_is_left_early_leaves_no_descriptor(tmp_path: Path, fd: int) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    before = len(os.listdir("/proc/self/fd"))
    listing = kernel.listing(fd)
    next(listing)
    listing.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_the_kernel_says_is_raised_and_what_passes_is_tried_again(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [errno.EINTR, errno.EIO]

    def getdents(_fd: int, _buffer: object, _octets: int) -> int:
        ctypes.set_errno(answers.pop(0))
        return -1

    monkeypatch.setattr(kernel, "_getdents64", lambda: getdents)
    with pytest.raises(OSError, match="Input/output") as raised:
        next(kernel.listing(fd))
    assert raised.value.errno == errno.EIO
    assert answers == []
