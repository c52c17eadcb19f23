"""An act and its record: with a database that can't be written either both come about or neither."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.domain.account import Directory
from core.errors import DirectoryUnavailable
from core.runtime import pause_records
from core.runtime.pause_records import PauseRecords
from core.runtime.queue import Queue
from core.spool import operate
from core.spool.submission import Submission
from core.store import engine
from core.store.pauses import PauseOf
from tests.support.clock import ManualClock
from tests.support.relay import SIMPLE, Bench, account, add_directory, mail, running, until
from tests.support.smtp_server import Script, SmtpServer


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_SECONDS", 0.02)


@contextmanager
def locked(root: Path) -> Iterator[sqlite3.Connection]:
    """Another program keeps the database locked."""
    other = sqlite3.connect(root / "data" / "mpu.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield other
    finally:
        other.close()


# --- handed in with an Idempotency-Key ------------------------------------------------------------------------------


async def submit(bench: Bench, directory: str = "pickup", data: bytes = SIMPLE, key: str = "k") -> httpx.Response:
    return await bench.http.post(
        "/messages",
        params={"directory": directory},
        content=data,
        headers={"Content-Type": "message/rfc822", "Idempotency-Key": key},
    )


async def replayed(bench: Bench, **changes: Any) -> bool:
    answer = await submit(bench, **changes)
    assert answer.status_code == 202, answer.text
    return bool(answer.json()["replayed"])


def litter(bench: Bench, directory: str = "pickup") -> list[str]:
    return [path.name for path in (bench.paths[directory] / ".mpu").glob("tmp-*") if "log-" not in path.name]


async def test_where_the_key_cannot_be_kept_nothing_is_written(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        with locked(tmp_path):
            for _ in range(3):
                assert (await submit(bench)).status_code == 503
            assert (bench.names(), litter(bench)) == ([], [])
        assert [await replayed(bench) for _ in range(2)] == [False, True]
        assert len(bench.names()) == 1


async def test_a_key_counts_for_one_directory(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        assert not await replayed(bench)
        await add_directory(bench.relay, Directory("second", str(tmp_path / "spool" / "second"), ()))
        other = await submit(bench, "second")
        assert other.status_code == 422
        assert other.json()["errors"][0]["pointer"] == "header/Idempotency-Key"
        assert list((tmp_path / "spool" / "second").glob("*.eml")) == []
        assert await replayed(bench)


async def _cut_short_before(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is reserved, and the mail not yet put in."""

    def killed(*_: object, **__: object) -> None:
        raise DirectoryUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(Submission, "put_in", killed)
        assert (await submit(bench)).status_code == 503
    assert (bench.names(), litter(bench)) == ([], [])


async def test_a_mail_that_never_came_is_written_by_the_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as bench:
        await _cut_short_before(bench, monkeypatch)
        await _cut_short_before(bench, monkeypatch)
        assert (await submit(bench, data=mail(2))).status_code == 422
        assert (bench.names(), litter(bench)) == ([], [])
        assert [await replayed(bench) for _ in range(2)] == [False, True]
        assert len(bench.names()) == 1


def _forget_written(root: Path) -> None:
    """As after a kill before it was marked as written."""
    with sqlite3.connect(root / "data" / "mpu.sqlite3") as database:
        assert database.execute("UPDATE idempotency SET written = 0").rowcount == 1
    database.close()


async def _waits(bench: Bench, server: SmtpServer) -> None:
    assert server.messages == []


async def _held(bench: Bench, server: SmtpServer) -> None:
    (queued,) = (await bench.get("/queue/messages"))["items"]
    assert (await bench.http.post(f"/queue/messages/{queued['id']}/hold")).status_code == 200


async def _in_badmail(bench: Bench, server: SmtpServer) -> None:
    server.script.rcpt["*"] = "550 5.1.1 nobody"
    await _sent(bench, server)


async def _sent(bench: Bench, server: SmtpServer) -> None:
    await bench.http.post("/resume")
    await until(lambda: bench.names() in ([], ["badmail"]), "the outcome")


async def _deleted(bench: Bench, server: SmtpServer) -> None:
    (queued,) = (await bench.get("/queue/messages"))["items"]
    assert (await bench.http.delete(f"/queue/messages/{queued['id']}")).status_code == 204


@pytest.mark.parametrize("state", [_waits, _held, _in_badmail, _sent, _deleted])
async def test_a_mail_that_came_is_found_whatever_became_of_it(
    tmp_path: Path, state: Callable[[Bench, SmtpServer], Any]
) -> None:
    async with SmtpServer(Script(rcpt={})) as server, running(tmp_path, [account(server)]) as bench:
        await bench.http.post("/pause")
        assert not await replayed(bench)
        await state(bench, server)
        await bench.relay.store.ledger.flush()
        _forget_written(tmp_path)
        before, sent = bench.names(), len(server.messages)
        assert await replayed(bench)
        assert (bench.names(), len(server.messages)) == (before, sent)


async def test_a_mail_whose_outcome_waits_for_the_database_came(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)], watch=True) as bench:
        await bench.http.post("/pause")
        assert not await replayed(bench)
        await bench.relay.store.ledger.flush()
        _forget_written(tmp_path)
        bench.relay.inlets.resume(None)
        await bench.relay.store.ledger.flush()
        with locked(tmp_path):
            bench.relay.scheduler.wake("pickup")
            await until(lambda: server.messages, "the mail")
            assert await replayed(bench)
            for path in bench.paths["pickup"].glob("*.lck"):
                path.unlink()  # as where its outcome could not be logged
            assert await replayed(bench)
        await bench.drain()
        assert len(server.messages) == 1


async def test_a_client_that_hangs_up_leaves_the_key_taken_while_its_mail_is_put_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, put_in = threading.Event(), threading.Event(), Submission.put_in

    def slow(submission: Submission, *, exactly: bool = False) -> Any:
        begun.set()
        go_on.wait(10)
        return put_in(submission, exactly=exactly)

    async with running(tmp_path) as bench:
        monkeypatch.setattr(Submission, "put_in", slow)
        first = asyncio.create_task(submit(bench))
        await asyncio.to_thread(begun.wait, 10)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await submit(bench)).status_code == 409
        go_on.set()
        await until(lambda: not bench.relay.messages._under_way, "its end")
        assert await replayed(bench)
        assert len(bench.names()) == 1


# --- acts of operators on messages ------------------------------------------------------------------------------------


def rows(root: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(root / "data" / "mpu.sqlite3")) as database:
        return database.execute(query).fetchall()


def mails_in(bench: Bench) -> list[str]:
    path = bench.paths["pickup"]
    return sorted(str(file.relative_to(path)) for file in path.rglob("*.eml*"))


async def queued_id(bench: Bench) -> str:
    (queued,) = (await bench.get("/queue/messages"))["items"]
    return str(queued["id"])


async def _badmail(bench: Bench) -> None:
    (bench.paths["pickup"] / "badmail").mkdir()
    bench.drop("badmail/a.eml", SIMPLE)


async def _hold(bench: Bench) -> None:
    bench.drop("a.eml.hold", SIMPLE)


async def _wait(bench: Bench) -> None:
    bench.drop("a.eml", SIMPLE)


@pytest.mark.parametrize(
    ("lies", "method", "path", "act"),
    [
        (_wait, "DELETE", "", "delete"),
        (_wait, "POST", "/hold", "hold"),
        (_hold, "POST", "/release", "release"),
        (_badmail, "POST", "/retry", "retry"),
    ],
)
async def test_an_act_on_a_message_that_cannot_be_written_down_is_not_done(
    tmp_path: Path, lies: Callable[[Bench], Any], method: str, path: str, act: str
) -> None:
    async with running(tmp_path) as bench:
        await bench.http.post("/pause")
        await lies(bench)
        one = await queued_id(bench)
        before = mails_in(bench)
        with locked(tmp_path):
            answer = await bench.http.request(method, f"/queue/messages/{one}{path}")
            assert answer.status_code == 503, answer.text
            assert "retry-after" in answer.headers
        assert mails_in(bench) == before
        assert rows(tmp_path, "SELECT act FROM act") == []
        answer = await bench.http.request(method, f"/queue/messages/{one}{path}")
        assert answer.is_success, answer.text
        assert mails_in(bench) != before
        assert rows(tmp_path, "SELECT act FROM act") == [(act,)]
        assert rows(tmp_path, "SELECT target FROM audit WHERE action LIKE 'queue.%'") == [(one,)]
        deleted = [("deleted",)] if act == "delete" else []
        assert rows(tmp_path, "SELECT status FROM recipient") == deleted


async def test_an_act_that_is_refused_leaves_no_record(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await _badmail(bench)
        one = await queued_id(bench)
        assert (await bench.http.post(f"/queue/messages/{one}/hold")).status_code == 409
        assert rows(tmp_path, "SELECT act FROM act") == []


async def test_the_life_of_a_message_tells_of_an_act_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    async with running(tmp_path) as bench:
        await bench.http.post("/pause")
        await _wait(bench)
        one = await queued_id(bench)
        monkeypatch.setattr(operate, "move", fails)
        assert (await bench.http.post(f"/queue/messages/{one}/hold")).status_code == 503
        (act,) = (await bench.get(f"/messages/{one}"))["acts"]
        assert act["act"] == "hold"
        assert "not done: " in act["detail"]
        assert "Read-only" in act["detail"]


async def test_the_history_takes_back_a_deletion_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = os.unlink

    def fails(path: Any, **at: Any) -> None:
        if path == b"a.eml":
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(path, **at)

    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        await bench.http.post("/pause")
        await _wait(bench)
        one = await queued_id(bench)
        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", fails)
            assert (await bench.http.delete(f"/queue/messages/{one}")).status_code == 503
        assert await bench.history() == {"jo@example.org": "deferred"}
        assert bench.names() == ["a.eml"]
        await bench.http.post("/resume")
        await until(lambda: server.messages and not bench.names(), "delivery")
        assert await bench.history() == {"jo@example.org": "sent"}


# --- what runs in the background --------------------------------------------------------------------------------------


async def test_a_bulk_act_that_cannot_be_written_down_does_not_begin(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.http.post("/pause")
        for number in range(3):
            bench.drop(f"{number}.eml", mail(number))
        with locked(tmp_path):
            answer = await bench.http.post("/queue/messages/delete", json={"all": True, "filter": {}})
            assert answer.status_code == 503
        assert bench.relay.operations._register.open() == []
        await bench.relay.operations.ended()
        assert len(bench.names()) == 3
        answer = await bench.http.post("/queue/messages/delete", json={"all": True, "filter": {}})
        assert answer.status_code == 202
        await bench.relay.operations.ended()
        assert bench.names() == []
        assert rows(tmp_path, "SELECT count(*) FROM audit WHERE action = 'queue.delete_all'") == [(1,)]
        assert rows(tmp_path, "SELECT status FROM recipient") == [("deleted",)] * 3


async def test_a_bulk_act_leaves_what_it_cannot_write_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as bench:
        await bench.http.post("/pause")
        bench.drop("a.eml", SIMPLE)
        carry_out = Queue.carry_out

        async def under_lock(*args: Any) -> Any:
            with locked(tmp_path):
                return await carry_out(*args)

        monkeypatch.setattr(Queue, "carry_out", under_lock)
        answer = await bench.http.post("/queue/messages/delete", json={"all": True, "filter": {}})
        await bench.relay.operations.ended()
        operation = await bench.get(f"/operations/{answer.json()['id']}")
        assert (operation["done"], operation["failed"]) == (0, 1)
        assert bench.names() == ["a.eml"]
        assert rows(tmp_path, "SELECT act FROM act") == []


async def test_a_drain_that_cannot_be_written_down_does_not_begin(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", SIMPLE)
        with locked(tmp_path):
            assert (await bench.http.post("/drain?wait=false", json={})).status_code == 503
        assert bench.relay.drains._register.open() == []
        await bench.relay.drains.ended()
        assert (server.messages, bench.names()) == ([], ["a.eml"])
        await bench.sends(1)


async def test_a_test_message_that_cannot_be_written_down_is_not_sent(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        with locked(tmp_path):
            answer = await bench.http.post("/accounts/main/test-message", json={"to": "jo@example.org"})
            assert answer.status_code == 503
        assert server.messages == []


# --- pauses -----------------------------------------------------------------------------------------------------------


PAUSED = ("", "/accounts/main", "/directories/pickup")


def pause_of(bench: Bench, path: str) -> tuple[str, str, float] | None:
    pauses = bench.relay.pauses
    if path == "/accounts/main":
        found = pauses.account("main")
    else:
        found = pauses.relay() if path == "" else pauses.directory("pickup")
    return None if found is None else (found.by, found.reason, found.since)


@pytest.mark.parametrize("path", PAUSED)
async def test_a_pause_that_cannot_be_written_down_does_not_hold(tmp_path: Path, path: str) -> None:
    clock = ManualClock()
    async with SmtpServer() as server, running(tmp_path, [account(server)], clock=clock) as bench:
        with locked(tmp_path):
            assert (await bench.http.post(f"{path}/pause", json={"reason": "x"})).status_code == 503
        assert pause_of(bench, path) is None
        since = clock.now()
        for reason in ("first", "second"):
            assert (await bench.http.post(f"{path}/pause", json={"reason": reason})).status_code == 200
            clock.advance(5)
        with locked(tmp_path):
            assert (await bench.http.post(f"{path}/resume")).status_code == 503
        assert pause_of(bench, path) == ("operator", "second", since)
        assert len(rows(tmp_path, "SELECT id FROM audit WHERE action LIKE '%.pause'")) == 2
        assert rows(tmp_path, "SELECT id FROM audit WHERE action LIKE '%.resume'") == []
    async with running(tmp_path, pickups=[], clock=clock) as bench:
        assert pause_of(bench, path) == ("operator", "second", since)
        assert (await bench.http.post(f"{path}/resume")).status_code in (200, 204)
        assert pause_of(bench, path) is None
    async with running(tmp_path, pickups=[], clock=clock) as bench:
        assert pause_of(bench, path) is None


async def paused_while_locked(bench: Bench, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause of the service's own, which the database does not take at first."""
    left: list[int] = []
    write = PauseRecords._write

    async def counted(self: PauseRecords) -> None:
        await write(self)
        left.append(len(self._behind))

    monkeypatch.setattr(PauseRecords, "_write", counted)
    with locked(root):
        bench.drop("a.eml", SIMPLE)
        bench.relay.scheduler.wake("pickup")
        await until(lambda: left, "the first try")
        assert left[0] == 1
        found = pause_of(bench, "/accounts/main")
        assert found is not None
        assert found[0] == "service"


def kept(root: Path) -> list[tuple[Any, ...]]:
    return rows(root, "SELECT pause_by FROM account")


async def test_a_pause_of_the_service_is_written_when_the_database_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pause_records, "AGAIN_SECONDS", (0.01,))
    async with SmtpServer(Script(banner="554 5.7.1 no")) as server, running(tmp_path, [account(server)]) as bench:
        await paused_while_locked(bench, tmp_path, monkeypatch)
        await until(lambda: kept(tmp_path) == [("service",)], "the record")
        assert bench.relay.pause_records._behind == {}


async def test_a_stop_writes_the_pause_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pause_records, "AGAIN_SECONDS", (3600.0,))
    async with SmtpServer(Script(banner="554 5.7.1 no")) as server:
        async with running(tmp_path, [account(server)]) as bench:
            await paused_while_locked(bench, tmp_path, monkeypatch)
            assert kept(tmp_path) == [(None,)]
        assert kept(tmp_path) == [("service",)]


@pytest.mark.parametrize(("act", "left"), [("resume", None), ("pause", "operator")])
async def test_an_operators_act_takes_the_place_of_a_pause_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, left: str | None
) -> None:
    monkeypatch.setattr(pause_records, "AGAIN_SECONDS", (3600.0,))
    async with SmtpServer(Script(banner="554 5.7.1 no")) as server:
        async with running(tmp_path, [account(server)]) as bench:
            await paused_while_locked(bench, tmp_path, monkeypatch)
            await bench.http.post("/pause")  # so that nothing is tried
            assert (await bench.http.post(f"/accounts/main/{act}", json={})).is_success
            assert bench.relay.pause_records._behind == {}
        assert kept(tmp_path) == [(left,)]


async def test_the_pause_of_an_account_that_is_gone_is_not_written_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pause_records, "AGAIN_SECONDS", (0.01,))
    async with running(tmp_path) as bench:
        records = bench.relay.pause_records
        records.behind(PauseOf.ACCOUNT, "gone", None)
        await until(lambda: records._writing is None, "its end")
        assert records._behind == {}
