"""An act and its record: with a database that can't be written either both come about or neither."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.domain.account import Directory
from core.errors import DirectoryUnavailable
from core.spool import operate
from core.store import engine
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

    def killed(*_: object) -> None:
        raise DirectoryUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(operate, "put_in", killed)
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
    begun, go_on, put_in = threading.Event(), threading.Event(), operate.put_in

    def slow(*args: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return put_in(*args)

    async with running(tmp_path) as bench:
        monkeypatch.setattr(operate, "put_in", slow)
        first = asyncio.create_task(submit(bench))
        await asyncio.to_thread(begun.wait, 10)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await submit(bench)).status_code == 409
        go_on.set()
        await until(lambda: not bench.relay.messages._under_way, "its end")
        assert await replayed(bench)
        assert len(bench.names()) == 1
