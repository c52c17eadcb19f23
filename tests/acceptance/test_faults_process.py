"""promises.md, "Process and machine": signals, clocks, disks, databases (see tests/promises.toml)."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from core.domain.account import AuthMethod, Directory
from core.runtime import relay as relay_module
from core.spool import watch
from core.store import engine
from tests.support.clock import ManualClock
from tests.support.database import database
from tests.support.relay import SIMPLE, Bench, account, add_account, mail, running, until
from tests.support.service import environment, service
from tests.support.smtp_server import Hang, Late, Script, SmtpServer
from tests.support.spool import claim, raises_errno, spool_at


async def _alerts(bench: Bench) -> dict[str, dict[str, Any]]:
    return {alert["code"]: alert for alert in (await bench.get("/alerts"))["items"]}


# --- watches ----------------------------------------------------------------------------------------------------------


async def test_inotify_that_fails_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "WATCH_AGAIN_SECONDS", 0.01)
    async with SmtpServer() as server, running(tmp_path, [account(server)], watch=True) as bench:
        with monkeypatch.context() as failing:
            failing.setattr(watch, "_READ_OCTETS", 1)  # the kernel refuses to give an event in so few
            bench.drop("a.eml", SIMPLE)
            await until(lambda: server.messages, "what came meanwhile")
        bench.drop("b.eml", mail(2))
        await until(lambda: len(server.messages) == 2, "the event")


async def test_a_directory_that_can_not_be_watched_is_an_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.spool.watch.Inotify.add_watch", raises_errno(errno.ENOSPC))
    async with SmtpServer() as server, running(tmp_path, [account(server)], watch=True) as bench:
        alert = (await _alerts(bench))["not_watched"]
        assert "max_user_watches" in alert["detail"]
        answer = await bench.http.patch("/directories/pickup", json={"watch": False})
        assert answer.status_code == 200, answer.text
        assert "not_watched" not in await _alerts(bench)


# --- stops, runs, clocks ----------------------------------------------------------------------------------------------


async def test_a_stop_in_the_final_dot_waits_for_the_reply_up_to_the_grace_time(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=Late(0.3, "250 2.0.0 taken"))) as server:
        async with running(tmp_path, [account(server)], watch=True) as bench:
            bench.drop("a.eml", SIMPLE)
            await until(lambda: "DATA" in server.commands, "the transaction")
        assert bench.names() == []
        assert len(server.messages) == 1
        async with running(tmp_path, [account(server)]) as bench:
            await bench.drain(include_deferred=True)
            assert await bench.history() == {"jo@example.org": "sent"}
            assert len(server.messages) == 1


async def test_behind_the_grace_time_a_final_dot_without_reply_is_unknown_and_no_lck_is_left(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=Hang(take=True))) as server:
        async with running(tmp_path, [account(server)], watch=True, grace_seconds=0.2) as bench:
            bench.drop("a.eml", SIMPLE)
            await until(lambda: server.messages, "the dot")
        assert bench.names() == ["a.eml"]
        async with running(tmp_path, [account(server)]) as bench:
            (queued,) = (await bench.get("/queue/messages"))["items"]
            assert (queued["state"], queued["possible_duplicate"]) == ("deferred", True)
            assert await bench.history() == {"jo@example.org": "unknown"}


async def test_runs_of_one_directory_do_not_overlap_and_are_coalesced(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=Late(0.2, "250 2.0.0 taken"))) as server:
        async with running(tmp_path, [account(server)]) as bench:
            scheduler = bench.relay.scheduler
            cycle = bench.relay.inlets.get("pickup").cycle
            before = scheduler.runs("pickup")
            bench.drop("a.eml", SIMPLE)
            scheduler.wake("pickup")
            await until(lambda: cycle.in_flight, "the first run")
            for _ in range(50):
                scheduler.wake("pickup")
            await until(lambda: scheduler.runs("pickup") == before + 2, "one more run for all of them")
            await asyncio.sleep(0.05)
            assert scheduler.runs("pickup") == before + 2
            assert len(server.messages) == 1


@pytest.mark.parametrize("days", [1, -1, 400])
async def test_a_clock_that_jumps_expires_nothing_and_leaves_waits_as_they_are(tmp_path: Path, days: int) -> None:
    clock = ManualClock()
    async with SmtpServer(Script(rcpt={"*": "450 4.2.0 later"})) as server:
        async with running(tmp_path, [account(server)], clock=clock) as bench:
            for number in range(5):
                bench.drop(f"{number}.eml", mail(number))
            for _ in range(6):  # enough attempts to be given up, were they old
                await bench.drain(include_deferred=True)
                clock.advance(1)
            clock.jump(days * 86_400)
            result = await bench.drain(include_deferred=True)
            assert (result["deferred"], result["failed"]) == (5, 0)
            assert bench.names() == [f"{n}.eml" for n in range(5)]
            server.script.rcpt.clear()
            clock.advance(4000)
            await bench.sends(5, include_deferred=days < 0)


# --- a directory that hangs -------------------------------------------------------------------------------------------

HANGING = """
import sys, threading
from core.runtime import relay
from core.spool import directory
real = directory.open_place
def open_place(settings, **more):
    if settings.path.endswith("hangs"):
        print("hangs", flush=True)
        threading.Event().wait()  # as a file system that is frozen, or whose server is gone
    return real(settings, **more)
directory.open_place = open_place
relay.RECOVERY_SECONDS = float(sys.argv.pop(1))
from api.cli import main; main()
"""


def _with_a_directory_that_will_hang(folder: Path) -> None:
    with service(folder / "data", folder) as first:
        account = {"name": "out", "host": "127.0.0.1", "port": 9, "security": "none", "auth": "none"}
        first.post("/accounts", **account)
        for name in ("hangs", "works"):
            (folder / name).mkdir()
            first.post("/directories", name=name, path=str(folder / name), accounts=["out"])
        assert first.stop() == 0


def test_a_directory_that_hangs_keeps_neither_the_others_nor_the_end_waiting(tmp_path: Path) -> None:
    _with_a_directory_that_will_hang(tmp_path)
    with service(tmp_path / "data", tmp_path, command=[sys.executable, "-c", HANGING, "0.3"]) as second:
        health = second.http.get("/health").json()
        assert health["status"] == "degraded"
        assert "was not recovered within 0.3 s" in str(health)
        assert "directory works" not in str(health)
        began = time.monotonic()
        assert second.stop() == 0
        assert time.monotonic() - began < 15
    log = second.log.read_text()
    assert log.count('"stopped"') == 2
    assert "threads that do not end are left" in log


def test_a_stop_ends_a_start_and_nothing_is_claimed_behind_it(tmp_path: Path) -> None:
    _with_a_directory_that_will_hang(tmp_path)
    arguments = ["serve", "--port", "0", "--data-dir", str(tmp_path / "data"), "--pickup-root", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, "1000", *arguments],
        env=environment(MPU_LOG_FORMAT="json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGTERM)
        try:
            log = process.communicate(timeout=20)[1]
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert [json.loads(line)["event"] for line in log.splitlines() if '"warning"' not in line] == [
        "starting",
        "signal taken",
        "stopping",
        "stopped",
        "ended",
    ]


# --- what runs out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM], ids=["EMFILE", "ENFILE", "ENOMEM"])
async def test_too_many_open_files_or_no_memory_leaves_the_message_and_it_goes_later(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def none_left(path: Any, *rest: Any, **more: Any) -> int:
        if path == b"a.eml":
            raise OSError(number, os.strerror(number), path)
        return real(path, *rest, **more)

    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", none_left)
            result = await bench.drain()
            assert (result["sent"], result["failed"]) == (0, 0)
            assert bench.names() == ["a.eml"]
        await bench.sends(1)


@pytest.mark.parametrize(
    "where", ["core.delivery.read_message", "core.delivery.judge", "core.domain.content.edit_header"]
)
async def test_no_memory_while_a_message_is_worked_on_releases_the_claim(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1))
        with monkeypatch.context() as patch:
            patch.setattr(where.replace("core.domain.content", "core.spool.body"), exhausted)
            result = await bench.drain()
            assert (result["sent"], result["failed"]) == (0, 0)
            assert bench.names() == ["a.eml"], "no .lck is left"
        bench.drop("b.eml", mail(2))
        result = await bench.drain(include_deferred=True)
        assert result["sent"] == 2, "the lock is free, the others go on"


async def test_open_messages_are_bounded_over_all_directories(tmp_path: Path) -> None:
    async with SmtpServer(Script(round_trip_seconds=0.002)) as server:
        pickups = [Directory(f"p{n}", str(tmp_path / "spool" / f"p{n}"), ("main",), watch=False) for n in range(3)]
        async with running(tmp_path, [account(server)], pickups=pickups, max_open_messages=8) as bench:
            for number in range(60):
                bench.drop(f"{number}.eml", mail(number), f"p{number % 3}")
            claimed: list[int] = []

            def look(*_: object) -> str:
                claimed.append(sum(n.endswith(".lck") for p in pickups for n in os.listdir(p.path)))
                return "250 2.1.0 ok"

            server.script.mail["*"] = look
            await bench.sends(60)
            assert max(claimed) <= 8


async def test_enospc_makes_no_new_claims_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    async with SmtpServer() as server, running(tmp_path, [account(server)], clock=clock) as bench:
        for number in range(5):
            bench.drop(f"{number}.eml", mail(number))
        with monkeypatch.context() as full:
            full.setattr(os, "pwrite", raises_errno(errno.ENOSPC))
            full.setattr("core.spool.kernel.preallocate", raises_errno(errno.ENOSPC))
            await bench.drain()
            assert len(server.messages) == 0, "no dot leaves that could not be logged"
            assert bench.names() == [f"{n}.eml" for n in range(5)]
            assert (await _alerts(bench))["storage_full"]["remedy"]
            accepted = len(server.commands)
            await bench.drain()
            assert len(server.commands) == accepted, "no new claims"
        clock.advance(60)
        await bench.drain()
        await bench.drain()
        assert bench.names() == []
        assert len(server.messages) == 5
        assert await _alerts(bench) == {}


async def test_fsync_eio_is_never_retried_and_the_next_start_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)]) as bench:
            bench.drop("a.eml", mail(1))
            synced: list[str] = []

            def broken(fd: int) -> None:
                synced.append(os.readlink(f"/proc/self/fd/{fd}"))
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            with monkeypatch.context() as patch:
                patch.setattr("core.spool.dispose.os.fsync", broken)
                await bench.drain()
                assert len(server.messages) == 1
                bench.drop("b.eml", mail(2))
                once = list(synced)
                assert str(bench.paths["pickup"]) in once
                assert len(set(once)) == len(once)
                await bench.drain()
                await bench.drain()
            assert synced == once, "never retried"
            await bench.drain()
            assert len(server.messages) == 1, "no new claims until somebody looked"
            assert (await _alerts(bench))["storage_broken"]["remedy"]
        async with running(tmp_path, [account(server)]) as bench:
            await bench.drain()
            assert bench.names() == []
            assert [b"Subject: 2" in t.body for t in server.messages] == [False, True]


async def test_a_sent_file_whose_outcome_can_not_be_logged_is_unlinked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a kill before the commit would send it again."""
    full = monkeypatch.context()

    def taken(*_: object) -> str:
        patch.setattr(os, "pwrite", raises_errno(errno.ENOSPC))
        return "250 2.0.0 taken"

    async with SmtpServer(Script(dot=[taken])) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1))
        there: list[str] = []
        settle = bench.relay.store.ledger.settle

        def look(entry: Any) -> Any:
            there.extend(bench.names())
            return settle(entry)

        monkeypatch.setattr(bench.relay.store.ledger, "settle", look)
        with full as patch:
            await bench.sends(1)
        assert there == [], "it was gone before the commit"
        assert await bench.history() == {"jo@example.org": "sent"}


# --- what the logs and sidecars know ----------------------------------------------------------------------------------


async def test_a_kill_behind_the_dot_is_unknown_and_held_after_unknown_max(tmp_path: Path) -> None:
    clock = ManualClock()
    path = tmp_path / "spool" / "pickup"
    pickup = Directory("pickup", str(path), ("main",), unknown_max=1, watch=False)
    path.mkdir(parents=True)
    (path / "a.eml").write_bytes(SIMPLE)
    async with SmtpServer() as server:
        for state, name in (("deferred", "a.eml"), ("held", "a.eml.hold")):
            killed = spool_at(path, clock=clock, name="pickup")
            claim(killed, b"a.eml").begin(["jo@example.org"])
            killed.close()  # the lock goes, the log and the .lck stay
            assert "a.eml.lck" in os.listdir(path)
            async with running(tmp_path, [account(server)], pickups=[pickup], clock=clock) as bench:
                assert bench.names() == [name]
                (queued,) = (await bench.get("/queue/messages"))["items"]
                assert (queued["state"], queued["possible_duplicate"]) == (state, True)
                assert await bench.history() == {"jo@example.org": "unknown"}
                assert ("held" in await _alerts(bench)) is (state == "held")
                await bench.drain()
                assert server.messages == [], "nothing is sent on the strength of the log alone"
            clock.advance(4000)


async def test_a_new_database_neither_repeats_a_recipient_nor_forgets_a_back_off(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SmtpServer(Script(rcpt={"late@b.example": ["450 4.2.0 later", None]})) as server:
        async with running(tmp_path, [account(server)], clock=clock) as bench:
            bench.drop("a.eml", mail(1, to="now@b.example, late@b.example"))
            await bench.drain()
            path = Path(bench.relay.store.path)
        _missing(path, pytest.MonkeyPatch())
        async with running(tmp_path, [account(server)], clock=clock, new_database=True) as bench:
            await bench.drain()
            (queued,) = (await bench.get("/queue/messages"))["items"]
            assert (queued["state"], queued["attempts"]) == ("deferred", 1)
            clock.advance(67)
            await bench.drain()
            assert bench.names() == []
        assert [taken.to for taken in server.messages] == [["now@b.example"], ["late@b.example"]]


async def test_age_does_not_count_while_all_accounts_are_paused(tmp_path: Path) -> None:
    clock = ManualClock()
    path = str(tmp_path / "spool" / "p")
    pickup = Directory("pickup", path, ("main",), expire_after_seconds=86_400, retry_max_seconds=60, watch=False)
    async with SmtpServer(Script(rcpt={"*": "450 4.2.0 later"})) as server:
        async with running(tmp_path, [account(server)], pickups=[pickup], clock=clock) as bench:
            bench.drop("a.eml", SIMPLE)
            for _ in range(6):
                await bench.drain()
                clock.advance(67)
            await bench.http.post("/accounts/main/pause", json={"reason": "holidays"})
            clock.advance(30 * 86_400)
            await bench.drain()
            await bench.http.post("/accounts/main/resume")
            await bench.drain(include_deferred=True)
            assert bench.names() == ["a.eml"], "not given up"
            server.script.rcpt.clear()
            clock.advance(67)
            await bench.drain(include_deferred=True)
            await until(lambda: server.messages and not bench.names(), "delivery")  # the resume's own run, or the drain


# --- the database -----------------------------------------------------------------------------------------------------


async def test_sqlite_busy_drops_no_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_SECONDS", 0.02)
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        other = sqlite3.connect(bench.relay.store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for number in range(5):
            bench.drop(f"{number}.eml", mail(number))
        bench.relay.scheduler.wake("pickup")
        await until(lambda: server.messages, "the first")
        await until(lambda: not bench.relay.store.ledger.healthy, "the lock to be noticed")
        assert "database_unavailable" in await _alerts(bench)
        other.execute("ROLLBACK")
        other.close()
        await until(lambda: bench.relay.store.ledger.healthy, "the end of the lock")
        await bench.drain()
        assert bench.names() == []
        assert len(server.messages) == 5
        assert len((await bench.get("/history"))["items"]) == 5


@pytest.mark.parametrize("other", [False, True], ids=["deleted", "replaced"])
async def test_a_database_lost_while_the_service_runs_is_told_and_nothing_new_is_claimed(
    tmp_path: Path, other: bool
) -> None:
    aside = tmp_path / "aside"
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        path = Path(bench.relay.store.path)
        bench.drop("a.eml", mail(1))
        await bench.sends(1)
        path.rename(aside)
        if other:
            database(path.parent)
        ready = await bench.http.get("/health/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "database_unavailable")
        alert = (await _alerts(bench))["database_unavailable"]
        assert ("replaced" if other else "is gone") in alert["detail"]
        assert "mpu restore" in alert["remedy"]
        assert (await bench.http.post("/drain")).status_code == 503
        bench.drop("b.eml", mail(2))
        before = bench.relay.scheduler.runs("pickup")
        bench.relay.scheduler.wake("pickup")
        await until(lambda: bench.relay.scheduler.runs("pickup") > before, "the run")
        assert bench.names() == ["b.eml"]
        assert len(server.messages) == 1
        assert path.exists() is other, "none is made by accident"
        aside.rename(path)
        assert (await bench.http.get("/health/ready")).json() == {"status": "ready"}
        await until(lambda: len(server.messages) == 2, "the mail that waited, without another word")


async def test_a_stop_while_the_database_is_locked_is_no_fault_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_SECONDS", 0.02)
    monkeypatch.setattr(relay_module, "CLOSE_SECONDS", 0.3)
    async with SmtpServer(Script(dot=Late(0.3, "250 2.0.0 taken"))) as server:
        async with running(tmp_path, [account(server)], grace_seconds=300) as bench:
            other = sqlite3.connect(bench.relay.store.path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            for number in range(3):
                bench.drop(f"{number}.eml", mail(number))
            bench.relay.scheduler.wake("pickup")
            spool = bench.relay.inlets.get("pickup").spool
            await until(lambda: spool.in_flight == 3 and "DATA" in server.commands, "the transactions")
            with capture_logs() as said:
                async with asyncio.timeout(30):
                    await bench.relay.stop()
        assert len(server.messages) == 3
        assert {line["event"] for line in said if line["log_level"] == "error"} == {"nothing new is claimed"}
        assert [line["messages"] for line in said if "outcomes wait" in line["event"]] == [3]
        other.close()
        async with running(tmp_path, [account(server)]) as bench:
            await bench.drain()
            assert await bench.history() == {"jo@example.org": "sent"}
            assert len((await bench.get("/history"))["items"]) == 3
        assert len(server.messages) == 3
        assert bench.names() == []


def _missing(path: Path, _: pytest.MonkeyPatch) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def _corrupt(path: Path, _: pytest.MonkeyPatch) -> None:
    for file in path.parent.glob(f"{path.name}-*"):
        file.unlink()
    path.write_bytes(b"this was a database once\n" * 1000)


def _network(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "file_system_of", lambda *_: "nfs4")


def _newer(path: Path, _: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()


DATABASES = {
    "missing": (_missing, "there is no database"),
    "corrupt": (_corrupt, "damaged"),
    "on a network file system": (_network, "nfs4"),
    "of a newer schema": (_newer, "newer"),
}


@pytest.mark.parametrize("what", DATABASES)
async def test_a_database_that_can_not_be_used_sends_nothing_says_why_and_keeps_the_api_up(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, why = DATABASES[what]
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)]) as bench:
            path = Path(bench.relay.store.path)
        (tmp_path / "spool" / "pickup" / "a.eml").write_bytes(SIMPLE)
        spoil(path, monkeypatch)
        was = path.read_bytes() if path.exists() else None
        async with running(tmp_path, [], pickups=[]) as bench:
            assert (await bench.http.get("/health/live")).status_code == 200
            assert (await bench.http.get("/health/ready")).status_code == 503
            answer = await bench.http.get("/queue")
            assert answer.status_code == 503
            assert answer.json()["type"].endswith("database_unavailable")
            assert why in answer.json()["detail"]
            assert answer.json()["remedy"]
            assert (await bench.http.get("/openapi.json")).status_code == 200
        assert (path.read_bytes() if path.exists() else None) == was, "left as it is"
        assert server.messages == []
        assert (tmp_path / "spool" / "pickup" / "a.eml").exists()


async def test_the_encryption_key_lost_pauses_sending_with_a_clear_error_and_the_api_up(tmp_path: Path) -> None:
    async with SmtpServer(credentials={"u": "right"}, mechanisms=["PLAIN"], require_auth=True) as server:
        value = account(server, auth=AuthMethod.AUTO, username="u", password="right")
        async with running(tmp_path, [value]) as bench:
            (key,) = (p for p in (tmp_path / "data").iterdir() if "key" in p.name)
        key.unlink()
        pickup = tmp_path / "spool" / "pickup"
        (pickup / "a.eml").write_bytes(SIMPLE)
        async with running(tmp_path, [], pickups=[]) as bench:
            bench.paths["pickup"] = pickup
            assert (await bench.http.get("/health/ready")).status_code == 503
            alert = (await _alerts(bench))["secret_key_lost"]
            assert "main" in alert["detail"] + alert["remedy"], "it names the accounts to enter again"
            await bench.drain()
            assert server.messages == []
            assert bench.names() == ["a.eml"]
            answer = await bench.http.patch("/accounts/main", json={"password": "right"})
            assert answer.status_code == 200, answer.text
            await bench.drain()
            assert len(server.messages) == 1
            assert (await bench.http.get("/health/ready")).status_code == 200


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["pickup", "pickup/sub", ".", "pickup/../pickup", "link"])
async def test_overlapping_nested_or_equal_directories_are_refused_at_save(tmp_path: Path, where: str) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        (tmp_path / "spool" / "pickup" / "sub").mkdir()
        (tmp_path / "spool" / "link").symlink_to(tmp_path / "spool" / "pickup")
        body = {"name": "other", "path": f"{tmp_path}/spool/{where}", "accounts": ["main"]}
        answer = await bench.http.post("/directories", json=body)
        assert answer.status_code in (409, 422), answer.text
        assert [d["name"] for d in (await bench.get("/directories"))["items"]] == ["pickup"]


async def test_an_account_with_queued_mail_is_not_deleted(tmp_path: Path) -> None:
    async with (
        SmtpServer(Script(rcpt={"*": "450 4.2.0 later"})) as server,
        running(tmp_path, [account(server)]) as bench,
    ):
        bench.drop("a.eml", SIMPLE)
        await bench.drain()
        answer = await bench.http.delete("/accounts/main")
        assert answer.status_code == 409
        assert answer.json()["used_by"] == ["pickup"]
        assert bench.names() == ["a.eml"]


async def test_settings_of_a_directory_changed_in_mid_send_leave_what_is_in_flight_alone(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=[Late(0.3, "451 4.3.0 later"), None])) as server:
        async with running(tmp_path, [account(server)], watch=True) as bench:
            bench.drop("a.eml", SIMPLE)
            await until(lambda: "DATA" in server.commands, "the transaction")
            new = tmp_path / "spool" / "new"
            new.mkdir()
            answer = await bench.http.patch("/directories/pickup", json={"path": str(new)})
            assert answer.status_code == 200, answer.text
            await until(lambda: bench.names() == ["a.eml"], "its way back to where it came from")
            (new / "b.eml").write_bytes(mail(2))
            await until(lambda: server.messages, "delivery from the new place")
            assert b"Subject: 2" in server.messages[0].body
            assert len(server.messages) == 1


async def test_an_accounts_new_settings_are_for_the_next_message(tmp_path: Path) -> None:
    """The old one is sent as it began, recipient limit and all."""
    async with SmtpServer(Script(dot=[Late(0.2, "250 2.0.0 taken"), None, None, None])) as server:
        value = account(server)
        async with running(tmp_path, [value], watch=True) as bench:
            bench.drop("a.eml", mail(1, to="a@b.example, b@b.example"))
            await until(lambda: "DATA" in server.commands, "the transaction")
            await add_account(bench.relay, replace(value, recipients_per_message=1))
            await until(lambda: server.messages and not bench.names(), "delivery")
            bench.drop("b.eml", mail(2, to="a@b.example, b@b.example"))
            await until(lambda: len(server.messages) == 3 and not bench.names(), "delivery")
            assert [len(taken.to) for taken in server.messages] == [2, 1, 1]
