"""Watching directories: names at once, as bytes; losses are told."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from core.domain.account import Directory, MessageFormat
from core.errors import DirectoryUnavailable
from core.spool import watch
from core.spool.watch import Watcher
from tests.support.spool import MAIL, write

pytestmark = pytest.mark.skipif(bool(Watcher(lambda *_: None, lambda _: None).unavailable), reason="needs inotify")


class Heard:
    """What was told, in order."""

    def __init__(self) -> None:
        self.names: list[tuple[str, bytes]] = []
        self.overflowed: list[str] = []
        self.at: list[float] = []
        self.watcher = Watcher(self._name, self.overflowed.append)

    def _name(self, directory: str, name: bytes) -> None:
        self.names.append((directory, name))
        self.at.append(time.perf_counter())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def heard() -> AsyncIterator[Heard]:
    heard = Heard()
    task = asyncio.create_task(heard.watcher.run())
    await asyncio.sleep(0)
    yield heard
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    heard.watcher.close()


def directory(path: Path, name: str = "in", form: MessageFormat = MessageFormat.EML) -> Directory:
    return Directory(name, str(path), format=form)


@pytest.mark.parametrize("name", [b"x.eml", b"\xff\xfe.eml", b"a\nb.eml", b"\xc3\xbc.eml", b"a" * 255, b". "])
async def test_a_closed_file_is_told_with_the_bytes_of_its_name(tmp_path: Path, heard: Heard, name: bytes) -> None:
    assert heard.watcher.add(directory(tmp_path)) == ""
    write(tmp_path, name)
    await until(lambda: bool(heard.names))
    assert heard.names == [("in", name)]


async def test_a_file_moved_there_is_told_and_our_own_renames_are_not(tmp_path: Path, heard: Heard) -> None:
    path = tmp_path / "in"
    path.mkdir()
    heard.watcher.add(directory(path))
    write(tmp_path, "y.eml")
    write(path, "x.eml")
    (path / "x.eml").rename(path / "x.eml.lck")
    (path / "x.eml.lck").rename(path / "x.eml.hold")
    (path / "dir.eml").mkdir()
    (tmp_path / "y.eml").rename(path / "y.eml")
    await until(lambda: ("in", b"y.eml") in heard.names)
    assert heard.names == [("in", b"x.eml"), ("in", b"y.eml")]


async def test_a_file_that_is_still_open_is_not_told(tmp_path: Path, heard: Heard) -> None:
    heard.watcher.add(directory(tmp_path))
    with open(tmp_path / "slow.eml", "wb") as file:
        file.write(MAIL)
        file.flush()
        write(tmp_path, "quick.eml")
        await until(lambda: bool(heard.names))
        assert heard.names == [("in", b"quick.eml")]
    await until(lambda: ("in", b"slow.eml") in heard.names)


async def test_several_directories_and_a_maildir_are_told_apart(tmp_path: Path, heard: Heard) -> None:
    for name in ("one", "two", "mail"):
        (tmp_path / name).mkdir()
    (tmp_path / "mail" / "new").mkdir()
    heard.watcher.add(directory(tmp_path / "one", "one"))
    heard.watcher.add(directory(tmp_path / "two", "two"))
    heard.watcher.add(directory(tmp_path / "mail", "mail", MessageFormat.MAILDIR))
    write(tmp_path / "two", "2.eml")
    write(tmp_path / "mail" / "new", "1.2.h")
    write(tmp_path / "one", "1.eml")
    await until(lambda: len(heard.names) == 3)
    assert heard.names == [("two", b"2.eml"), ("mail", b"1.2.h"), ("one", b"1.eml")]


async def test_a_removed_directory_is_told_no_more_and_can_be_added_again(tmp_path: Path, heard: Heard) -> None:
    (tmp_path / "other").mkdir()
    heard.watcher.add(directory(tmp_path / "other", "other"))
    heard.watcher.add(directory(tmp_path))
    heard.watcher.remove("in")
    heard.watcher.remove("in")
    write(tmp_path, "x.eml")
    write(tmp_path / "other", "y.eml")
    await until(lambda: bool(heard.names))
    assert heard.names == [("other", b"y.eml")]
    heard.watcher.add(directory(tmp_path))
    write(tmp_path, "x.eml")
    await until(lambda: len(heard.names) == 2)
    assert heard.overflowed == []


@pytest.mark.parametrize("act", ["delete", "move"])
async def test_a_directory_that_goes_is_told_as_lost_once(tmp_path: Path, heard: Heard, act: str) -> None:
    path = tmp_path / "in"
    path.mkdir()
    heard.watcher.add(directory(path))
    if act == "delete":
        path.rmdir()
    else:
        path.rename(tmp_path / "elsewhere")
    await until(lambda: bool(heard.overflowed))
    await asyncio.sleep(0.01)
    assert heard.overflowed == ["in"]
    with pytest.raises(DirectoryUnavailable):
        heard.watcher.add(directory(path))


async def test_an_overflow_of_the_queue_asks_for_a_scan_of_every_directory(tmp_path: Path, heard: Heard) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        heard.watcher.add(directory(tmp_path / name, name))
    heard.watcher._tell(b"\xff\xff\xff\xff\x00\x40\x00\x00" + bytes(8))
    assert heard.overflowed == ["one", "two"]


async def test_a_real_overflow_is_noticed(tmp_path: Path, heard: Heard) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
        limit = int(file.read())
    if limit > 50_000:
        pytest.skip("the queue is too long here")
    heard.watcher.add(directory(tmp_path))
    fds = [os.open(tmp_path / f"{n}.eml", os.O_CREAT | os.O_WRONLY) for n in range(2)]
    for fd in fds:
        os.close(fd)
    for number in range(limit // 2 + 10):  # equal events next to each other are merged, so two take turns
        for name in ("0.eml", "1.eml"):
            os.close(os.open(tmp_path / name, os.O_WRONLY))
        del number
    await until(lambda: bool(heard.overflowed))
    assert heard.overflowed == ["in"]


async def test_the_latency_is_far_below_a_poll(tmp_path: Path, heard: Heard) -> None:
    heard.watcher.add(directory(tmp_path))
    waits = []
    for number in range(20):
        write(tmp_path, f"{number}.eml")
        closed = time.perf_counter()
        await until(lambda count=number: len(heard.at) > count)  # type: ignore[misc] # bound now
        waits.append(heard.at[-1] - closed)
    assert sorted(waits)[10] < 0.005


async def test_without_inotify_it_says_so_and_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_AVAILABLE", False)
    watcher = Watcher(lambda *_: None, lambda _: None)
    assert "no inotify" in watcher.unavailable
    assert watcher.add(directory(tmp_path)) == watcher.unavailable
    task = asyncio.create_task(watcher.run())
    await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_limit_of_the_machine_is_named(tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    heard.watcher.add(directory(tmp_path, "first"))
    inotify = heard.watcher._inotify
    assert inotify is not None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(inotify), "add_watch", full)
    assert "max_user_watches" in heard.watcher.add(directory(tmp_path / ".."))
