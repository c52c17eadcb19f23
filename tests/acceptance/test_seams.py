"""Where the rooms meet: faults that come from one and must be borne by another. Nothing is lost, doubled or stuck."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import cycle as cycles
from core.delivery import Delivery
from core.domain.account import Directory
from core.errors import StorageFull
from core.runtime import relay
from core.spool import recover
from core.spool.body import FileContent
from core.spool.log import OutcomeLog
from tests.support.clock import ManualClock
from tests.support.relay import SIMPLE, Bench, account, add_account, add_directory, mail, running, until
from tests.support.smtp_server import Hang, Late, Script, SmtpServer
from tests.support.spool import claim, sent, spool_at

SCHEDULED = "0 3 1 1 *"  # not while this test runs
FULL = StorageFull("the outcome log can't grow: No space left on device")


def pickup_at(root: Path, **settings: Any) -> Directory:
    return Directory("pickup", str(root / "spool" / "pickup"), ("main",), **{"watch": False, **settings})


def dead_owners(path: Path, data: bytes, *accepted: str, locked: bool) -> None:
    """A mail whose owner died after these recipients were accepted; not `locked`: its rename did not reach the disk."""
    spool = spool_at(path, name="pickup")
    (path / "a.eml").write_bytes(data)
    taken = claim(spool, b"a.eml")
    taken.begin(accepted)
    taken.outcome(sent(*accepted))
    spool.close()
    if not locked:
        os.rename(path / "a.eml.lck", path / "a.eml")


# --- in the middle of a message --------------------------------------------------------------------------------------


async def test_a_log_that_fills_up_between_two_transactions_neither_repeats_nor_keeps_the_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, calls = OutcomeLog.begin, 0

    def second_fails(self: OutcomeLog, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise FULL
        begin(self, *arguments)

    monkeypatch.setattr(OutcomeLog, "begin", second_fails)
    names = [f"r{n}@b.example" for n in range(4)]
    async with SmtpServer() as server, running(tmp_path, [account(server, recipients_per_message=2)]) as bench:
        bench.drop("a.eml", mail(1, to=", ".join(names)))
        await bench.drain()
        assert bench.names() == ["a.eml"]
        await bench.drain()
        assert [taken.to for taken in server.messages] == [names[:2], names[2:]]
        assert bench.names() == []
        assert await bench.history() == dict.fromkeys(names, "sent")


async def test_a_quota_in_the_middle_keeps_who_was_accepted_and_counts_nothing(tmp_path: Path) -> None:
    names = [f"r{n}@b.example" for n in range(4)]
    script = Script(dot=[None, "550 5.4.5 Daily user sending limit exceeded"])
    async with SmtpServer(script) as server, running(tmp_path, [account(server, recipients_per_message=2)]) as bench:
        bench.drop("a.eml", mail(1, to=", ".join(names)))
        await bench.drain()
        (queued,) = (await bench.get("/queue/messages"))["items"]
        assert (queued["state"], queued["attempts"]) == ("waiting", 0)
        await bench.http.post("/accounts/main/resume")
        await until(lambda: bench.names() == [], "delivery")
        assert [taken.to for taken in server.messages] == [names[:2], names[2:]]


async def test_a_failure_in_the_middle_of_ten_thousand_recipients_concerns_its_hundred_alone(tmp_path: Path) -> None:
    clock = ManualClock()
    names = [f"r{n}@b.example" for n in range(10_000)]
    script = Script(dot=[*[None] * 49, "451 4.3.0 later"])
    async with SmtpServer(script) as server, running(tmp_path, [account(server)], clock=clock) as bench:
        bench.drop("a.eml", mail(1, to=",\r\n ".join(names)))
        result = await bench.drain()
        assert result["recipients"] == {"sent": 9_900, "deferred": 100, "failed": 0, "unknown": 0}
        clock.advance(100)
        await bench.drain()
        assert bench.names() == []
        assert sorted(r for taken in server.messages for r in taken.to) == sorted(names)


async def test_what_nobody_foresaw_is_tried_later_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, body, broken = ManualClock(), FileContent.body, True

    def fails(self: FileContent, **options: Any) -> Any:
        if broken:
            raise ValueError("a defect")
        return body(self, **options)

    monkeypatch.setattr(FileContent, "body", fails)
    async with SmtpServer() as server, running(tmp_path, [account(server)], clock=clock) as bench:
        bench.drop("a.eml", SIMPLE)
        assert (await bench.drain())["deferred"] == 1
        (queued,) = (await bench.get("/queue/messages"))["items"]
        assert (queued["state"], queued["attempts"]) == ("deferred", 1)
        assert "a defect" in queued["reason"]
        broken = False
        clock.advance(100)
        await bench.drain()
        assert (len(server.messages), bench.names()) == (1, [])


async def test_a_sender_that_one_account_refuses_waits_for_the_other_that_is_paused(tmp_path: Path) -> None:
    clock = ManualClock()
    denies = SmtpServer(Script(dot="550 5.7.60 Client does not have permissions to send as this sender"))
    async with denies, SmtpServer() as good:
        async with running(tmp_path, [account(denies, "first"), account(good, "second")], clock=clock) as bench:
            await bench.http.post("/accounts/second/pause", json={"reason": "look"})
            bench.drop("a.eml", SIMPLE)
            assert (await bench.drain())["deferred"] == 1
            await bench.http.post("/accounts/second/resume")
            clock.advance(100)
            await bench.drain()
            assert (len(good.messages), bench.names()) == (1, [])


# --- stop ------------------------------------------------------------------------------------------------------------


async def _settled_as_unknown(bench: Bench) -> None:
    """After the stop: put back, marked, and nothing left claimed."""
    assert bench.names() == ["a.eml"]
    (sidecar,) = (bench.paths["pickup"] / ".mpu").glob("*.json")
    assert b'"possible_duplicate":true' in sidecar.read_bytes()


async def _in_flight(bench: Bench, server: SmtpServer) -> None:
    bench.drop("a.eml", SIMPLE)
    await until(lambda: "DATA" in server.commands, "the transaction")
    await until(lambda: bench.relay.inlets.get("pickup").spool.place.log._open, "the final dot")


async def test_a_stop_cuts_off_what_goes_through_an_account_that_was_edited_meanwhile(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=Hang())) as server:
        async with running(tmp_path, [account(server)], watch=True, grace_seconds=0.1) as bench:
            await _in_flight(bench, server)
            await add_account(bench.relay, account(server, max_connections=2))
            await bench.relay.stop()
            await _settled_as_unknown(bench)


async def test_a_stop_cuts_off_what_came_from_a_directory_that_was_changed_meanwhile(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=Hang())) as server:
        async with running(tmp_path, [account(server)], watch=True, grace_seconds=0.1) as bench:
            await _in_flight(bench, server)
            await add_directory(bench.relay, pickup_at(tmp_path / "spool" / "elsewhere"))
            await bench.relay.stop()
            await _settled_as_unknown(bench)


async def test_a_stop_that_cuts_off_is_not_held_against_the_account(tmp_path: Path) -> None:
    async with SmtpServer(Script(data=Hang())) as server:
        one = account(server, max_connections=1)
        async with running(tmp_path, [one], watch=True, grace_seconds=0.1) as bench:
            for number in range(5):  # one is under way, the others wait for the connection
                bench.drop(f"{number}.eml", SIMPLE)
            await until(lambda: "DATA" in server.commands, "the transaction")
            await until(lambda: bench.relay.inlets.get("pickup").cycle.in_flight == 5, "those that wait")
        assert bench.names() == [f"{number}.eml" for number in range(5)]
        with closing(sqlite3.connect(tmp_path / "data" / "mpu.sqlite3")) as database:
            assert database.execute("SELECT pause_by FROM account").fetchall() == [(None,)]


async def test_a_stop_does_not_wait_for_a_locked_database_and_the_next_start_sends_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "CLOSE_SECONDS", 0.5)
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)], watch=True, grace_seconds=0.1) as bench:
            other = sqlite3.connect(tmp_path / "data" / "mpu.sqlite3", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            bench.drop("a.eml", SIMPLE)
            await until(lambda: server.messages, "the mail")
            await bench.relay.stop()
            assert bench.names() == ["a.eml.lck"]  # its outcome is in the log
            other.close()
        async with running(tmp_path, [account(server)]) as bench:
            await until(lambda: bench.names() == [], "recovery")
            await bench.drain()
            assert len(server.messages) == 1
            assert await bench.history() == {"jo@example.org": "sent"}


async def test_a_database_that_is_locked_for_a_while_delays_mail_and_repeats_none(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)], watch=True) as bench:
        other = sqlite3.connect(tmp_path / "data" / "mpu.sqlite3", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        bench.drop("a.eml", SIMPLE)
        await until(lambda: not bench.relay.store.healthy, "the trouble")
        await bench.relay._forget_old()  # which is due just now, and in an hour again
        bench.drop("b.eml", mail(2))
        await until(lambda: not bench.relay.inlets.get("pickup").cycle._working.get(b"b.eml"), "its look at it")
        assert bench.names() == ["a.eml.lck", "b.eml"]
        other.close()
        await until(lambda: bench.names() == [], "delivery")
        assert len(server.messages) == 2


# --- recovery --------------------------------------------------------------------------------------------------------


async def test_one_mail_that_cannot_be_recovered_stalls_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Delivery.settle_recovered

    async def fails_for_a(self: Delivery, spool: Any, directory: Any, recovered: Any) -> Any:
        if recovered.claim.file_name == b"a.eml":
            raise ValueError("a defect")
        return await settle(self, spool, directory, recovered)

    monkeypatch.setattr(Delivery, "settle_recovered", fails_for_a)
    path = tmp_path / "spool" / "pickup"
    path.mkdir(parents=True)
    for name in ("a.eml.lck", "b.eml.lck", "c.eml.lck"):
        (path / name).write_bytes(SIMPLE)
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        await until(lambda: bench.names() == ["a.eml.lck"], "the others' delivery")
        assert len(server.messages) == 2


async def test_a_directory_that_cannot_be_read_at_the_start_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmtpServer() as server:
        pickups = [replace(pickup_at(tmp_path), name=n, path=str(tmp_path / "spool" / n)) for n in ("bad", "good")]
        async with running(tmp_path, [account(server)], pickups=pickups):
            pass
        (tmp_path / "spool" / "good" / "a.eml").write_bytes(SIMPLE)
        names = recover._locked_names

        def fails_for_bad(place: Any) -> Any:
            if place.settings.name == "bad":
                raise OSError(5, "Input/output error")
            return names(place)

        monkeypatch.setattr(recover, "_locked_names", fails_for_bad)
        async with running(tmp_path, pickups=[]) as bench:
            await until(lambda: server.messages, "delivery")
            assert bench.relay.inlets.get("bad").cycle.unavailable is not None


async def test_a_directory_that_was_replaced_is_recovered_before_anything_is_sent(tmp_path: Path) -> None:
    dead_owners(tmp_path / "other", SIMPLE, "jo@example.org", locked=False)
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        path = bench.paths["pickup"]
        os.rename(path, tmp_path / "before")
        os.rename(tmp_path / "other", path)
        await bench.get("/queue")  # opens it too
        await bench.drain()
        assert (server.messages, bench.names()) == ([], [])


async def test_who_was_accepted_is_remembered_though_the_recovered_mail_may_not_be_sent_any_more(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spool" / "pickup"
    path.parent.mkdir(parents=True)
    dead_owners(path, mail(1, to="r0@b.example, r1@b.example"), "r0@b.example", locked=True)
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)], pickups=[pickup_at(tmp_path, max_recipients=1)]) as bench:
            await bench.drain()
            assert bench.names() == ["badmail"]
            await add_directory(bench.relay, pickup_at(tmp_path))
            (queued,) = (await bench.get("/queue/messages"))["items"]
            answer = await bench.http.post(f"/queue/messages/{queued['id']}/retry")
            assert answer.status_code == 200, answer.text
            await bench.drain()
            await until(lambda: bench.names() == ["badmail"], "delivery")
            assert [taken.to for taken in server.messages] == [["r1@b.example"]]


async def test_a_message_that_waits_for_its_turn_when_its_directory_is_moved_away_goes_all_the_same(
    tmp_path: Path,
) -> None:
    async with SmtpServer(Script(banner=Late(0.3, "220 ready"))) as server:
        async with running(tmp_path, [account(server)], watch=True) as bench:
            path = bench.paths["pickup"]
            bench.drop("a.eml", SIMPLE)
            await until(lambda: server.accepted, "a connection")
            os.rename(path, tmp_path / "before")
            path.mkdir()
            await bench.get("/queue")  # opens the new one
            bench.drop("a.eml", mail(2))
            await until(lambda: len(server.messages) == 2, "delivery")
            await until(lambda: not bench.names() and os.listdir(tmp_path / "before") == [".mpu"], "the files' end")


# --- what wakes it ---------------------------------------------------------------------------------------------------


async def test_an_event_of_a_directory_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        os.rename(bench.paths["pickup"], tmp_path / "before")
        await bench.get("/queue")
        bench.relay.inlets.on_name("pickup", b"a.eml")


async def test_a_directory_that_comes_back_is_watched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycles, "LOST_SECONDS", 0.05, raising=False)
    async with SmtpServer() as server, running(tmp_path, [account(server)], watch=True) as bench:
        path = bench.paths["pickup"]
        os.rename(path, tmp_path / "before")
        await until(lambda: bench.relay.inlets.get("pickup").cycle.unavailable, "the loss")
        path.mkdir()
        await until(lambda: not bench.relay.inlets.get("pickup").cycle.unavailable, "the return")
        bench.drop("a.eml", SIMPLE)
        await until(lambda: server.messages and not bench.names(), "delivery")


@pytest.mark.parametrize("there_before", [True, False])
async def test_a_schedule_with_watch_sends_at_once(tmp_path: Path, there_before: bool) -> None:
    path = tmp_path / "spool" / "pickup"
    path.mkdir(parents=True)
    if there_before:
        (path / "a.eml").write_bytes(SIMPLE)
    async with SmtpServer() as server:
        pickup = pickup_at(tmp_path, watch=True, schedule=SCHEDULED)
        async with running(tmp_path, [account(server)], pickups=[pickup]) as bench:
            if not there_before:
                bench.drop("a.eml", SIMPLE)
            await until(lambda: server.messages and not bench.names(), "delivery")


async def test_a_schedule_without_watch_sends_nothing_between_its_runs(tmp_path: Path) -> None:
    script = Script(rcpt={"nightly@b.example": ["450 4.2.0 later"], "watched@b.example": ["450 4.2.0 later"]})
    async with SmtpServer(script) as server:
        nightly = pickup_at(tmp_path, schedule=SCHEDULED, retry_initial_seconds=0.01)
        witness = replace(nightly, name="witness", path=str(tmp_path / "spool" / "witness"), schedule=None, watch=True)
        async with running(tmp_path, [account(server)], pickups=[nightly, witness]) as bench:
            bench.drop("a.eml", mail(1, to="nightly@b.example"))
            await bench.drain(directories=["pickup"])
            bench.drop("w.eml", mail(2, to="watched@b.example"), "witness")
            bench.drop("b.eml", mail(3))
            await until(lambda: not bench.names("witness"), "the other's delivery")
            assert bench.names() == ["a.eml", "b.eml"]
            await bench.drain()
            assert bench.names() == []


async def test_a_new_file_under_the_name_of_one_in_flight_is_not_forgotten(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=[Late(0.2, "250 2.0.0 taken")])) as server:
        async with running(tmp_path, [account(server)], watch=True) as bench:
            bench.drop("a.eml", mail(1))
            await until(lambda: "DATA" in server.commands, "the transaction")
            bench.drop("a.eml", mail(2))
            await until(lambda: len(server.messages) == 2 and not bench.names(), "delivery")


async def test_a_file_that_changed_at_its_claim_must_rest_although_its_return_is_an_event(tmp_path: Path) -> None:
    async with SmtpServer(Script(banner=Late(0.2, "220 ready"))) as server:
        pickup = pickup_at(tmp_path, watch=True, quiet_seconds=3600)
        async with running(tmp_path, [account(server)], pickups=[pickup]) as bench:
            cycle = bench.relay.inlets.get("pickup").cycle
            cycle.spool.place.features.lease = False
            path = bench.drop("a.eml", SIMPLE)
            await until(lambda: server.accepted, "a connection")
            with path.open("ab") as file:
                file.write(b"half a li")
                file.flush()
                await until(lambda: b"a.eml" in cycle.writing, "the look at its change")
                bench.drop("b.eml", mail(2))
                await until(lambda: len(server.messages) == 1, "the other's delivery")
                await until(lambda: not cycle.in_flight, "rest")
                assert bench.names() == ["a.eml"]
                assert b"half" not in server.messages[0].body


async def test_when_there_is_room_again_it_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycles, "STORAGE_SECONDS", 0.05, raising=False)
    write, full = OutcomeLog._write, True

    def no_room(self: OutcomeLog, *arguments: Any, **options: Any) -> None:
        if full:
            self._error = FULL
            raise FULL
        write(self, *arguments, **options)

    async with SmtpServer(Script(rcpt={"later@b.example": "450 4.2.0 later"})) as server:
        pickup = pickup_at(tmp_path, watch=True, interval_seconds=3600)
        async with running(tmp_path, [account(server)], pickups=[pickup]) as bench:
            bench.drop("z.eml", mail(1, to="later@b.example"))  # something else that is due later
            await bench.drain()
            monkeypatch.setattr(OutcomeLog, "_write", no_room)
            bench.drop("a.eml", SIMPLE)
            await until(lambda: bench.relay.inlets.get("pickup").cycle.storage, "the trouble")
            assert not server.messages
            full = False
            await until(lambda: server.messages and bench.names() == ["z.eml"], "delivery")


async def test_mail_that_waits_for_an_account_that_is_edited_goes_through_it_as_it_is_now(tmp_path: Path) -> None:
    async with SmtpServer(Script(banner=Hang())) as server, SmtpServer() as other:
        pickup = pickup_at(tmp_path, watch=True, interval_seconds=3600)
        async with running(tmp_path, [account(server)], pickups=[pickup]) as bench:
            for number in range(5):
                bench.drop(f"{number}.eml", mail(number))
            await until(lambda: server.accepted, "a connection")
            await add_account(bench.relay, account(other))
            await until(lambda: len(other.messages) == 5 and not bench.names(), "delivery")


async def test_a_clock_that_is_set_back_keeps_no_deferred_mail_waiting(tmp_path: Path) -> None:
    clock = ManualClock()
    script = Script(rcpt={"*": ["450 4.2.0 later"]})
    async with SmtpServer(script) as server, running(tmp_path, [account(server)], clock=clock) as bench:
        bench.drop("a.eml", SIMPLE)
        assert (await bench.drain())["deferred"] == 1
        script.rcpt.clear()
        clock.jump(-86_400)
        clock.advance(70)
        await bench.drain()
        assert (len(server.messages), bench.names()) == (1, [])
