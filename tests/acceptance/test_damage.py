"""What is lost or damaged beside the mail: database, encryption key. The mail is all still there, and goes once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.domain.account import AuthMethod
from core.runtime import relay as relay_module
from core.runtime.relay import Relay
from core.store.store import DATABASE_FILE
from tests.support.command import mpu
from tests.support.database import database
from tests.support.relay import Bench, account, mail, running, settings_for, until
from tests.support.rights import open_folder, owner_of
from tests.support.service import mail_server, service, taken, wait_until
from tests.support.smtp_server import SmtpServer

TWO = mail(0, to="good@example.org, later@example.org")


def remove_database(data: Path) -> None:
    for path in data.glob(f"{DATABASE_FILE}*"):
        path.unlink()


# --- database lost ----------------------------------------------------------------------------------------------------


async def _deferred(bench: Bench, server: SmtpServer) -> None:
    """One mail of which one recipient was accepted and one deferred, one untouched, one held, one dead."""
    server.script.rcpt = {"later@example.org": "450 4.2.1 later", "never@example.org": "550 5.1.1 no such user"}
    bench.drop("two.eml", TWO)
    bench.drop("dead.eml", mail(1, to="never@example.org"))
    await bench.drain()
    bench.drop("held.eml", mail(2))
    (waiting,) = (await bench.get("/queue/messages", state="waiting"))["items"]
    assert (await bench.http.post(f"/queue/messages/{waiting['id']}/hold")).is_success
    bench.drop("new.eml", mail(3))
    assert server.messages[0].to == ["good@example.org"]


async def _goes_on(bench: Bench, server: SmtpServer) -> None:
    """Nothing is lost and nothing sent twice, whatever the database knows."""
    totals = (await bench.get("/queue"))["totals"]
    assert [totals[state] for state in ("deferred", "held", "badmail")] == [1, 1, 1]  # new.eml may be gone already
    server.script.rcpt = {}
    await bench.drain(include_deferred=True)
    (held,) = (await bench.get("/queue/messages", state="held"))["items"]
    (dead,) = (await bench.get("/queue/messages", state="badmail"))["items"]
    assert (await bench.http.post(f"/queue/messages/{held['id']}/release")).is_success
    assert (await bench.http.post(f"/queue/messages/{dead['id']}/retry")).is_success
    await bench.drain()
    assert bench.names() == ["badmail"]
    assert os.listdir(bench.paths["pickup"] / "badmail") == []
    assert Counter(to for message in server.messages for to in message.to) == {
        "good@example.org": 1,
        "later@example.org": 1,
        "never@example.org": 1,
        "jo@example.org": 2,  # held and new
    }
    assert set(await bench.history()) == {"later@example.org", "never@example.org", "jo@example.org"}


async def test_a_lost_database_loses_no_mail_and_repeats_no_recipient(tmp_path: Path) -> None:
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)]) as bench:
            await _deferred(bench, server)
        remove_database(tmp_path / "data")
        async with running(tmp_path, [], pickups=[]) as bench:  # as after a start without the option
            assert bench.relay.state == "failed"
        async with running(tmp_path, [account(server)], new_database=True) as bench:
            await _goes_on(bench, server)


async def test_a_restored_old_copy_repeats_no_recipient(tmp_path: Path) -> None:
    """What happened after the copy was made is in the directory."""
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)]) as bench:
            assert mpu("backup", tmp_path / "copy", "--data-dir", tmp_path / "data") == 0
            await _deferred(bench, server)
        assert mpu("restore", tmp_path / "copy", "--data-dir", tmp_path / "data") == 0
        async with running(tmp_path, [account(server)]) as bench:
            await _goes_on(bench, server)


def test_the_service_makes_a_new_database_only_when_asked_and_goes_on(tmp_path: Path) -> None:
    """Killed under load, the database gone: by processes, from the command line."""
    path, ledger, data, count = tmp_path / "spool" / "pickup", tmp_path / "ledger", tmp_path / "data", 300
    path.mkdir(parents=True)
    settings = {"host": "127.0.0.1", "security": "none", "auth": "none"}
    directory: dict[str, Any] = {"path": str(path), "accounts": ["main"]}
    directory |= {"retry_initial_seconds": 1, "retry_max_seconds": 1}  # what was in flight at the kill is tried again
    with mail_server(ledger) as port:
        with service(data, tmp_path / "spool", MPU_ALLOWED_SMTP_PORTS="0") as one:
            one.http.put("/accounts/main", json={**settings, "port": port}).raise_for_status()
            one.http.put("/directories/pickup", json=directory).raise_for_status()
            for number in range(count):
                (path / f"{number}.eml").write_bytes(mail(number))
            wait_until(lambda: len(taken(ledger)) > count // 4, "a quarter")
            one.kill()
        before = len(taken(ledger))
        assert before < count, "all was sent before the kill: the test shows nothing"
        remove_database(data)
        with service(data, tmp_path / "spool", MPU_ALLOWED_SMTP_PORTS="0") as one:
            ready = one.http.get("/health/ready")
            assert (ready.status_code, ready.json()) == (
                503,
                {"status": "unavailable", "reason": "database_unavailable"},
            )
            assert one.http.get("/health/live").status_code == 200
            assert "--new-database" in one.http.get("/queue").json()["remedy"]
            assert one.stop() == 0
        assert not (data / DATABASE_FILE).exists()
        assert len(taken(ledger)) == before
        with service(data, tmp_path / "spool", MPU_ALLOWED_SMTP_PORTS="0", MPU_NEW_DATABASE="true") as one:
            one.http.put("/accounts/main", json={**settings, "port": port}).raise_for_status()
            one.http.put("/directories/pickup", json=directory).raise_for_status()
            wait_until(lambda: len(set(taken(ledger))) == count, "the rest")
            wait_until(lambda: not list(path.glob("*.eml*")), "the end of the files")
            doubled = [number for number, times in Counter(taken(ledger)).items() if times > 1]
            assert len(doubled) <= 5, "more than were in flight at the kill"  # max_connections
            assert one.stop() == 0


# --- database damaged -------------------------------------------------------------------------------------------------


def _newer(path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("damage", "reason", "words", "remedy"),
    [
        (lambda path: path.write_bytes(b"\0" * 100 + path.read_bytes()), "database_unavailable", "damaged", "restore"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-8192] + b"\xa5" * 8192),
            "database_unavailable",
            "damaged",
            "mpu restore",
        ),
        (_newer, "database_newer", "newer MPU", "newer version"),
        (lambda path: path.write_bytes(b""), "database_unavailable", "is empty", "mpu restore"),
        (lambda path: (path.unlink(), path.mkdir()), "database_unavailable", "not a file", "away"),
    ],
    ids=["first pages", "last pages", "newer", "empty", "a directory"],
)
async def test_a_damaged_database_stops_the_sending_and_the_api_says_why(
    tmp_path: Path, damage: Callable[[Path], object], reason: str, words: str, remedy: str
) -> None:
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)]) as bench:
            assert mpu("backup", tmp_path / "copy", "--data-dir", tmp_path / "data") == 0
        path = tmp_path / "data" / DATABASE_FILE
        (tmp_path / "spool" / "pickup" / "a.eml").write_bytes(mail(1))
        damage(path)
        async with running(tmp_path, [], pickups=[]) as bench:
            ready = await bench.http.get("/health/ready")
            assert (ready.status_code, ready.json()) == (503, {"status": "unavailable", "reason": reason})
            assert ready.headers["retry-after"]
            assert (await bench.http.get("/health/live")).status_code == 200
            for method, route in (("GET", "/queue"), ("POST", "/drain"), ("GET", "/health"), ("PUT", "/accounts/main")):
                answer = await bench.http.request(method, route)
                problem = answer.json()
                assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json"), route
                assert problem["type"] == "urn:mpu:problem:database_unavailable"
                assert words in problem["detail"]
                assert remedy in problem["remedy"]
                assert answer.headers["retry-after"]
        assert server.messages == []
        assert mpu("restore", tmp_path / "copy", "--data-dir", tmp_path / "data") == 0
        async with running(tmp_path, [account(server)]) as bench:
            await bench.drain()
            assert [message.to for message in server.messages] == [["jo@example.org"]]


# --- encryption key lost ----------------------------------------------------------------------------------------------


async def test_a_lost_key_pauses_all_names_the_accounts_and_ends_with_the_last_password(tmp_path: Path) -> None:
    credentials = {"one": "first password", "two": "second password"}
    async with SmtpServer(credentials=credentials, mechanisms=["PLAIN"], require_auth=True) as server:
        login: Any = {"auth": AuthMethod.AUTO}
        accounts = [
            account(server, "one", username="one", password=credentials["one"], **login),
            account(server, "two", username="two", password=credentials["two"], **login),
            account(server, "three"),
        ]
        async with running(tmp_path, accounts) as bench:
            bench.drop("0.eml", mail(0))
            await bench.drain()
            assert len(server.messages) == 1
        (tmp_path / "data" / "secret.key").rename(tmp_path / "kept.key")
        async with running(tmp_path, [], pickups=[]) as bench:  # everything is in the database
            bench.paths["pickup"] = tmp_path / "spool" / "pickup"
            await _says_which(bench, ["one", "two"])
            bench.drop("1.eml", mail(1))
            answer = await bench.drain()
            assert (answer["sent"], answer["directories"][0]["remaining"]) == (0, 1)
            first = await bench.http.patch("/accounts/one", json={"password": credentials["one"]})
            assert first.json()["password_lost"] is False
            await _says_which(bench, ["two"])
            assert (await bench.drain())["sent"] == 0
            assert len(server.logins) == 1, "a login without the password would have been refused, and counted"
            assert (await bench.http.patch("/accounts/two", json={"password": credentials["two"]})).is_success
            assert (await bench.http.get("/health/ready")).json() == {"status": "ready"}
            assert (await bench.get("/alerts"))["items"] == []
            await bench.drain()  # beside the run that the last password woke
            await until(lambda: len(server.messages) == 2)
            assert [item["pause"] for item in (await bench.get("/accounts"))["items"]] == [None] * 3
        async with running(tmp_path, [], pickups=[]) as bench:  # the new key is in its file
            assert (await bench.http.get("/health/ready")).json() == {"status": "ready"}


async def _says_which(bench: Bench, names: list[str]) -> None:
    ready = await bench.http.get("/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "unavailable", "reason": "secret_key_lost"})
    (part,) = [part for part in (await bench.get("/health"))["parts"] if not part["ok"]]
    assert part["name"] == "secret_key"
    assert f"passwords or tokens of {', '.join(names)}" in part["detail"]
    shown = {item["name"]: item["password_lost"] for item in (await bench.get("/accounts"))["items"]}
    assert [name for name, lost in shown.items() if lost] == names
    alerts = (await bench.get("/alerts"))["items"]
    assert alerts[0]["code"] == "secret_key_lost"
    assert "PATCH /accounts/" in alerts[0]["remedy"]
    assert [a["account"] for a in alerts if a["code"] == "password_lost"] == names


@pytest.mark.parametrize("by", ["delete", "no password"])
async def test_every_directory_wakes_when_the_last_lost_password_is_dealt_with(tmp_path: Path, by: str) -> None:
    """The directory sends through another account than the one whose password was lost."""
    async with SmtpServer() as server:
        spare = account(server, "spare", username="u", password="spare password", auth=AuthMethod.NONE)
        async with running(tmp_path, [account(server)], watch=True) as bench:
            from tests.support.relay import add_account

            await add_account(bench.relay, spare)
        (tmp_path / "data" / "secret.key").unlink()
        async with running(tmp_path, [], pickups=[]) as bench:
            bench.paths["pickup"] = tmp_path / "spool" / "pickup"
            bench.drop("a.eml", mail(1))
            assert (await bench.http.get("/health/ready")).status_code == 503
            if by == "delete":
                answer = await bench.http.delete("/accounts/spare")
            else:
                answer = await bench.http.patch("/accounts/spare", json={"password": None})
            assert answer.is_success, answer.text
            await until(lambda: len(server.messages) == 1, "delivery without the interval")


def test_the_command_says_what_to_do_when_the_key_is_no_key(tmp_path: Path) -> None:
    """A key file that is garbage: the API is up, a new password can't be sealed, and the answer says why."""
    data = tmp_path / "data"
    (tmp_path / "spool").mkdir()
    body = {"host": "127.0.0.1", "username": "u", "password": "planted password"}
    with service(data, tmp_path / "spool", MPU_ALLOWED_SMTP_PORTS="0") as one:
        one.http.put("/accounts/main", json=body).raise_for_status()
        assert one.stop() == 0
    (data / "secret.key").write_text("garbage\n")
    with service(data, tmp_path / "spool", MPU_ALLOWED_SMTP_PORTS="0") as one:
        assert one.http.get("/health/ready").json()["reason"] == "secret_key_lost"
        answer = one.http.patch("/accounts/main", json={"password": "another"})
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:mpu:problem:secret_key_lost")
        assert "secret.key" in answer.json()["remedy"] + answer.json()["detail"]
        assert one.stop() == 0
    assert (data / "secret.key").read_text() == "garbage\n", "what might still be mended must not be replaced"


async def test_a_start_that_failed_for_want_of_room_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "START_AGAIN_SECONDS", (0.01,))
    settings = settings_for(tmp_path)
    settings.data_dir.parent.mkdir(exist_ok=True)
    settings.data_dir.write_text("not a folder yet: as good as a full or missing disk")
    relay = Relay(settings)
    await relay.start()
    try:
        assert relay.health().status == "unavailable"
        settings.data_dir.unlink()
        await until(lambda: relay.health().status == "ready", "the start")
    finally:
        await relay.stop()
    assert relay.state == "stopped"


async def test_a_database_that_can_only_be_read_is_no_start_and_sends_nothing_until_it_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_module, "START_AGAIN_SECONDS", (0.01,))
    with open_folder() as folder:
        settings = settings_for(folder)
        settings.data_dir.mkdir()
        path = database(settings.data_dir)
        path.chmod(0o400)
        with owner_of(folder):
            relay = Relay(settings)
            await relay.start()
            try:
                assert relay.health().status == "unavailable"
                assert relay.failure is not None
                assert "can't be written" in relay.failure.detail
                path.chmod(0o600)
                await until(lambda: relay.health().status == "ready", "the start")
            finally:
                await relay.stop()


async def test_a_start_tried_again_that_fails_with_the_database_open_is_told_and_stops_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "START_AGAIN_SECONDS", (0.01,))
    settings = settings_for(tmp_path)
    settings.data_dir.parent.mkdir(exist_ok=True)
    settings.data_dir.write_text("not a folder yet")
    relay = Relay(settings)

    async def fails() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(relay, "_take_over", fails)
    await relay.start()
    settings.data_dir.unlink()
    await until(lambda: relay.failure is not None and "a defect" in relay.failure.detail, "the failure")
    assert relay.health().status == "unavailable"
    relay.begin_stop()
    assert relay.state == "stopping", "and not cut off at once, whatever is at work already"
    await relay.stop()
    assert relay.state == "stopped"
