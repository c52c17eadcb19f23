"""promises.md, "Files": what may happen to the files meanwhile, in a running relay (see tests/promises.toml)."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.domain.account import Directory
from core.spool import kernel
from core.spool.kernel import Features
from tests.support.clock import ManualClock
from tests.support.relay import SIMPLE, Bench, account, mail, running, until
from tests.support.smtp_server import Late, Script, SmtpServer
from tests.support.spool import claim, spool_at


async def _alert(bench: Bench) -> dict[str, Any]:
    (alert,) = (await bench.get("/alerts"))["items"]
    assert isinstance(alert, dict)
    return alert


async def test_a_lck_with_a_living_owner_is_left_and_so_is_a_new_file_of_that_name(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SmtpServer() as server, running(tmp_path, [account(server)], clock=clock) as bench:
        other = spool_at(bench.paths["pickup"], name="other")  # as another process: an own lock, an own log
        bench.drop("a.eml", mail(1))
        claimed = claim(other, b"a.eml")
        bench.drop("a.eml", mail(2))
        for _ in range(2):
            await bench.drain()
            assert bench.names() == ["a.eml", "a.eml.lck"]
            assert server.messages == []
        other.put_back_now(claimed)
        other.close()
        await bench.drain()
        assert bench.names() == []
        assert sorted(b"Subject: 1" in taken.body for taken in server.messages) == [False, True]


async def test_an_unreadable_file_is_left_with_an_alert_that_names_owner_mode_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def closed(path: Any, *rest: Any, **more: Any) -> int:
        if path == b"secret.eml":  # root could read it whatever its mode
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *rest, **more)

    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("secret.eml", SIMPLE).chmod(0o600)
        bench.drop("open.eml", SIMPLE)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", closed)
            result = await bench.drain()
            assert (result["sent"], result["failed"]) == (1, 0)
            alert = await _alert(bench)
            assert alert["code"] == "unreadable"
            assert "secret.eml" in alert["detail"]
            assert "mode -rw-------" in alert["detail"]
            assert f"owner {pwd.getpwuid(os.getuid()).pw_name}" in alert["detail"]
            assert alert["remedy"]
            assert bench.names() == ["secret.eml"], "never to badmail"
        await bench.drain()
        assert bench.names() == []
        assert (await bench.get("/alerts"))["items"] == []


async def test_an_unlink_that_fails_leaves_the_message_sent_never_sent_again_and_an_alert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.unlink

    def read_only(path: Any, **more: Any) -> None:
        if path == b"a.eml.lck":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        real(path, **more)

    async with SmtpServer() as server:
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", read_only)
            async with running(tmp_path, [account(server)]) as bench:
                bench.drop("a.eml", mail(1))
                bench.drop("b.eml", mail(2))
                await bench.sends(2)
                assert bench.names() == ["a.eml.lck"]
                assert await bench.history() == {"jo@example.org": "sent"}
                alert = await _alert(bench)
                assert (alert["code"], alert["messages_affected"]) == ("not_disposed", 1)
                assert alert["remedy"]
                await bench.drain(include_deferred=True)
                assert len(server.messages) == 2
            async with running(tmp_path, [account(server)]) as bench:  # a restart does not forget it
                await bench.drain(include_deferred=True)
                assert len(server.messages) == 2
        async with running(tmp_path, [account(server)]) as bench:
            await bench.drain()
            assert bench.names() == []
            assert len(server.messages) == 2
            assert (await bench.get("/alerts"))["items"] == []


async def test_a_file_that_vanishes_before_the_claim_is_skipped_in_silence(tmp_path: Path) -> None:
    script = Script()
    async with SmtpServer(script) as server, running(tmp_path, [account(server)]) as bench:

        def gone(*_: object) -> str:
            for path in bench.paths["pickup"].glob("*.eml"):
                path.unlink()  # opened and read already: it waits for this connection
            return "220 server.test"

        script.banner = gone
        bench.drop("a.eml", SIMPLE)
        result = await bench.drain()
        assert (result["sent"], result["failed"], result["deferred"], result["unknown"]) == (0, 0, 0, 0)
        assert not any(c.startswith("MAIL") for c in server.commands)
        assert (await bench.get("/alerts"))["items"] == []
        assert await bench.history() == {}
        assert bench.names() == []


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more\r\n")


def _shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"HELLO")


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("change", [_grow, _shrink, _overwrite], ids=["grows", "shrinks", "is overwritten"])
async def test_a_file_that_grows_or_shrinks_while_sent_is_closed_before_the_dot_and_put_back(
    tmp_path: Path, change: Any, size: str
) -> None:
    script = Script()
    lines = b"line of a mail\r\n" * (40_000 if size == "large" else 1)
    async with SmtpServer(script) as server, running(tmp_path, [account(server)]) as bench:

        def meanwhile(*_: object) -> str:
            change(bench.paths["pickup"] / "a.eml.lck")
            return "354 go ahead"

        script.data = [meanwhile]
        bench.drop("a.eml", mail(1, body=lines))
        result = await bench.drain()
        assert (result["sent"], result["unknown"]) == (0, 0)
        assert server.messages == [], "the dot did not leave"
        assert bench.names() == ["a.eml"]
        whole = (bench.paths["pickup"] / "a.eml").read_bytes()
        server.drop()
        await bench.sends(1, include_deferred=True)
        assert len(server.messages) == 1
        sent, there = (data.partition(b"\r\n\r\n")[2] for data in (server.messages[0].body, whole))
        assert sent == (there if there.endswith(b"\r\n") else there + b"\r\n")


async def test_badmail_on_another_device_is_copied_synced_renamed_and_unlinked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = kernel.rename_noreplace, []
    sync, unlink = os.fsync, os.unlink

    def across(old: bytes, new: bytes, *, old_fd: int, new_fd: int, features: Features) -> None:
        if old_fd != new_fd:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        if new == b"bad.eml":
            steps.append("rename")
        real(old, new, old_fd=old_fd, new_fd=new_fd, features=features)

    def noted(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").rsplit("/", 2)[-2] == "badmail":
            steps.append("sync")
        sync(fd)

    def removed(path: Any, **more: Any) -> None:
        if path == b"bad.eml.lck":
            steps.append("unlink")
        unlink(path, **more)

    data = b"no mail at all\r\n" * 1000
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        monkeypatch.setattr(kernel, "rename_noreplace", across)
        monkeypatch.setattr(os, "fsync", noted)
        monkeypatch.setattr(os, "unlink", removed)
        bench.drop("bad.eml", data)
        assert (await bench.drain())["failed"] == 1
        assert bench.names() == ["badmail"]
        assert (bench.paths["pickup"] / "badmail" / "bad.eml").read_bytes() == data
        order = [step for step in steps if step != "sync"]
        assert order == ["rename", "unlink"]
        assert "sync" in steps[: steps.index("rename")]


@pytest.mark.parametrize("how", ["unmounted", "replaced"])
async def test_a_directory_that_is_unmounted_or_replaced_is_unavailable_and_not_empty(tmp_path: Path, how: str) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        path, away = bench.paths["pickup"], tmp_path / "away"
        await bench.http.post("/directories/pickup/pause", json={"reason": "look"})
        bench.drop("a.eml", mail(1))
        path.rename(away)  # its descriptor still leads there
        if how == "replaced":
            path.mkdir()
            bench.drop("b.eml", mail(2))
        await bench.http.post("/directories/pickup/resume")
        await bench.drain()
        if how == "unmounted":
            (alert,) = (await bench.get("/alerts"))["items"]
            assert (alert["code"], alert["directory"]) == ("directory_unavailable", "pickup")
            (row,) = (await bench.drain())["directories"]
            assert row["skipped"] == "unavailable"
            assert server.messages == []
        else:  # what lies there now is what counts
            assert [b"Subject: 2" in taken.body for taken in server.messages] == [True]
        assert (away / "a.eml").exists(), "nothing was taken from where the path does not lead"
        shutil.rmtree(path, ignore_errors=True)
        away.rename(path)
        await bench.drain()
        assert sum(b"Subject: 1" in taken.body for taken in server.messages) == 1
        assert (await bench.get("/alerts"))["items"] == []


async def test_an_overflow_of_the_event_queue_scans_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)], watch=True) as bench:
        monkeypatch.setattr(bench.relay.watcher, "_on_name", lambda *_: None)  # events are lost from here on
        before = bench.relay.scheduler.runs("pickup")
        for number in range(20):
            bench.drop(f"{number}.eml", mail(number))
        bench.relay.watcher._on_overflow("pickup")
        await until(lambda: len(server.messages) == 20 and not bench.names(), "delivery")
        await until(lambda: bench.relay.scheduler.runs("pickup") > before, "the scan")


async def test_very_many_files_are_scanned_in_a_stream_and_counted_by_the_last_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few are open at any time, the first leave before the last is listed, and no scan looks at each."""
    count, seen = 400, 0
    pickup = Directory("pickup", str(tmp_path / "spool" / "pickup"), ("main",), watch=False)
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)], pickups=[pickup], scan_batch=20, max_open_messages=64) as bench:
            for number in range(count):
                bench.drop(f"{number}.eml", mail(number))
            spool = bench.relay.inlets.get("pickup").spool
            real = spool.scan

            def scan() -> Any:
                nonlocal seen
                for name in real():
                    seen += 1
                    assert spool.in_flight <= 64
                    yield name

            monkeypatch.setattr(spool, "scan", scan)
            script = server.script
            first: list[int] = []

            def note(*_: object) -> str:
                first.append(seen)
                return "250 2.1.0 ok"

            script.mail["*"] = [note]
            await bench.sends(count)
            assert first[0] < count, "the first left before the last was listed"
            assert (await bench.get("/queue"))["totals"]["waiting"] == 0


async def test_a_slow_server_does_not_let_thousands_of_files_be_opened(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=[Late(0.05, "250 2.0.0 taken")] * 400)) as server:
        accounts = [account(server, max_connections=2)]
        # the second bound is of those that wait for their commit, too
        async with running(tmp_path, accounts, look_ahead=8, max_open_messages=16) as bench:
            before = len(os.listdir("/proc/self/fd"))
            for number in range(60):
                bench.drop(f"{number}.eml", mail(number))
            most = 0

            def look(*_: object) -> str:
                nonlocal most
                most = max(most, len(os.listdir("/proc/self/fd")))
                return "250 2.1.0 ok"

            server.script.mail["*"] = look
            server.script.dot = None
            await bench.sends(60)
            assert most < before + 40
