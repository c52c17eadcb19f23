"""What is the account's fault keeps every mail, says why everywhere, and ends with a correction."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from core.domain.account import Account, AuthMethod, FromPolicy, Security
from tests.support.clock import ManualClock
from tests.support.relay import SIMPLE, Bench, account, mail, running, until
from tests.support.smtp_server import Close, Late, Script, SmtpServer, certificate


async def _kept(bench: Bench, code: str, count: int = 3) -> dict[str, Any]:
    """All mail waits, no attempt was counted, and every place names the cause; gives the account."""
    assert bench.names() == [f"{n}.eml" for n in range(count)]
    queued = (await bench.get("/queue/messages"))["items"]
    assert [(m["state"], m["waiting_for"], m["attempts"]) for m in queued] == [("waiting", "account_paused", 0)] * count
    shown: dict[str, Any] = await bench.get("/accounts/main")
    assert (shown["pause"]["by"], shown["pause"]["code"]) == ("service", code)
    assert shown["pause"]["remedy"]
    (reason,) = (await bench.get("/queue/reasons"))["items"]
    assert (reason["account"], reason["blame"], reason["messages"]) == ("main", "account", count)
    assert code in reason["text"]
    assert reason["remedy"]
    (alert,) = (await bench.get("/alerts"))["items"]
    assert (alert["code"], alert["account"], alert["messages_affected"]) == (code, "main", count)
    return shown


async def _fill(bench: Bench, count: int = 3) -> None:
    for number in range(count):
        bench.drop(f"{number}.eml", mail(number))
    result = await bench.drain()
    assert result["sent"] == 0
    (row,) = result["directories"]
    assert row["remaining"] == count
    assert sum(b["count"] for b in row["blocked"] if b["reason"] == "account_paused") == count


async def test_a_wrong_password_pauses_the_account_after_one_try_and_a_right_one_sends_all(
    tmp_path: Path, caplog: Any
) -> None:
    server = SmtpServer(credentials={"shop": "right"}, mechanisms=["PLAIN"], require_auth=True)
    async with server:
        wrong = account(server, auth=AuthMethod.AUTO, username="shop", password="wrong")
        async with running(tmp_path, [wrong]) as bench:
            await _fill(bench)
            shown = await _kept(bench, "login_refused")
            assert shown["pause"]["until"] is None
            await bench.drain()
            assert len(server.logins) == 1, "a refused login must not be tried again by itself"
            answer = await bench.http.patch("/accounts/main", json={"password": "right"})
            assert answer.status_code == 200, answer.text
            await until(lambda: len(server.messages) == 3 and not bench.names(), "delivery")
            assert (await bench.get("/accounts/main"))["pause"] is None
            assert (await bench.get("/alerts"))["items"] == []


async def test_the_pause_and_the_check_tell_the_same_cause_of_a_refused_login(tmp_path: Path) -> None:
    words = "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit x."
    async with SmtpServer(Script(auth=words), mechanisms=["PLAIN"]) as server:
        value = account(server, auth=AuthMethod.AUTO, username="shop", password="right")
        async with running(tmp_path, [value]) as bench:
            await _fill(bench)
            pause = (await _kept(bench, "login_refused"))["pause"]
            checked = (await bench.http.post("/accounts/main/check")).json()
            assert checked["ok"] is False
            step = checked["steps"][-1]
            assert (step["step"], step["code"]) == ("login", "smtp_auth_off_for_mailbox")
            assert pause["reason"] == f"{step['cause'].rstrip('.')}: {words}"
            assert pause["remedy"] == step["remedy"]
            assert "Set-CASMailbox" in step["remedy"]
            saved = await bench.http.patch("/accounts/main?check=true", json={"max_connections": 2})
            assert saved.status_code == 422
            assert step["cause"] in saved.json()["detail"]


async def test_a_dead_host_pauses_for_a_while_and_mail_goes_when_it_is_back(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    dead = Account("main", "127.0.0.1", port, security=Security.NONE, auth=AuthMethod.NONE)
    async with running(tmp_path, [dead]) as bench:
        await _fill(bench)
        shown = await _kept(bench, "connect_failed")
        assert shown["pause"]["until"] is not None
        async with SmtpServer(port=port) as server:
            answer = await bench.http.post("/accounts/main/resume")
            assert answer.status_code == 200, answer.text
            await until(lambda: len(server.messages) == 3 and not bench.names(), "delivery")


async def test_a_private_target_is_asked_nothing_where_the_settings_forbid_these(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)], allow_private_targets=False) as bench:
        await _fill(bench)
        await _kept(bench, "target_forbidden")
        checked = (await bench.http.post("/accounts/main/check")).json()
        assert [step["code"] for step in checked["steps"] if not step["ok"]] == ["target_forbidden"]
        assert server.accepted == 0


async def test_an_untrusted_certificate_sends_nothing_until_its_authority_is_given(tmp_path: Path) -> None:
    authority, context = certificate("localhost", "127.0.0.1")
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    async with SmtpServer(context=context) as server:
        unknown = account(server, host="localhost", security=Security.STARTTLS)
        async with running(tmp_path, [unknown]) as bench:
            await _fill(bench)
            await _kept(bench, "certificate_untrusted")
            assert not any(c.startswith("MAIL") for c in server.commands)
            answer = await bench.http.patch("/accounts/main", json={"tls_ca_file": str(ca_file)})
            assert answer.status_code == 200, answer.text
            await until(lambda: len(server.messages) == 3 and not bench.names(), "delivery")


async def test_the_next_account_takes_over(tmp_path: Path) -> None:
    refusing = SmtpServer(Script(banner="554 5.7.1 go away"))
    async with refusing, SmtpServer() as good:
        accounts = [account(refusing, "first"), account(good, "second")]
        async with running(tmp_path, accounts) as bench:
            bench.drop("a.eml", SIMPLE)
            result = await bench.drain()
            assert result["sent"] == 1
            assert len(good.messages) == 1
            assert (await bench.get("/accounts/first"))["pause"]["code"] == "banner_refused"
            assert (await bench.get("/accounts/second"))["pause"] is None


async def test_a_sender_that_an_account_may_not_use_goes_through_the_next(tmp_path: Path) -> None:
    denies = SmtpServer(Script(dot="550 5.7.60 SMTP; Client does not have permissions to send as this sender"))
    async with denies, SmtpServer() as good:
        async with running(tmp_path, [account(denies, "first"), account(good, "second")]) as bench:
            bench.drop("a.eml", SIMPLE)
            await bench.sends(1)
            assert len(good.messages) == 1
            assert (await bench.get("/accounts/first"))["pause"] is None


async def test_a_quota_pauses_the_account_and_counts_no_attempt(tmp_path: Path) -> None:
    text = "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed"
    async with SmtpServer(Script(dot=text)) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", SIMPLE)
        result = await bench.drain()
        assert (result["failed"], result["deferred"]) == (0, 0)
        (queued,) = (await bench.get("/queue/messages"))["items"]
        assert (queued["state"], queued["attempts"], queued["waiting_for"]) == ("waiting", 0, "quota")


async def test_an_attempt_that_was_not_counted_stays_in_the_mails_life(tmp_path: Path) -> None:
    script = Script(dot=["550 5.4.5 Daily user sending limit exceeded", None])
    async with SmtpServer(script) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", SIMPLE)
        await bench.drain()
        (queued,) = (await bench.get("/queue/messages"))["items"]
        await bench.http.post("/accounts/main/resume")
        await until(lambda: server.messages and not bench.names(), "delivery")
        life = await bench.get(f"/messages/{queued['id']}")
        assert [(a["number"], a["code"], a["outcome"]) for a in life["attempts"]] == [
            (1, 550, "deferred"),
            (2, 250, "sent"),
        ]


async def test_the_accounts_address_replaces_the_writers_in_envelope_and_header(tmp_path: Path) -> None:
    async with SmtpServer(Script(hide={"SMTPUTF8"})) as server:
        own = account(server, from_address="relay@bücher.example", from_policy=FromPolicy.REPLY_TO)
        async with running(tmp_path, [own]) as bench:
            bench.drop("a.eml", SIMPLE)
            await bench.sends(1)
        (taken,) = server.messages
        assert taken.sender == "relay@xn--bcher-kva.example"
        assert b"From: relay@xn--bcher-kva.example\r\n" in taken.body
        assert b"Reply-To: shop@example.com\r\n" in taken.body


async def test_an_operators_pause_holds_through_faults_edits_and_restarts(tmp_path: Path) -> None:
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)]) as bench:
            answer = await bench.http.post("/accounts/main/pause", json={"reason": "maintenance"})
            assert answer.status_code == 200, answer.text
            bench.drop("a.eml", SIMPLE)
            await bench.http.patch("/accounts/main", json={"max_connections": 2})
            await bench.drain()
            assert server.messages == []
        async with running(tmp_path, [account(server)]) as bench:
            pause = (await bench.get("/accounts/main"))["pause"]
            assert (pause["by"], pause["reason"]) == ("operator", "maintenance")
            await bench.drain()
            assert server.messages == []
            await bench.http.post("/accounts/main/resume")
            await until(lambda: len(server.messages) == 1, "delivery")


async def test_resuming_tries_one_message_first(tmp_path: Path) -> None:
    script = Script()
    async with SmtpServer(script) as server, running(tmp_path, [account(server, max_connections=4)]) as bench:
        await bench.http.post("/accounts/main/pause", json={"reason": "look"})
        for number in range(20):
            bench.drop(f"{number}.eml", mail(number))
        script.mail["*"] = "421 4.3.2 closing"
        await bench.http.post("/accounts/main/resume")
        await until(lambda: any(c.startswith("MAIL") for c in server.commands), "a try")
        await bench.drain()
        assert sum(c.startswith("MAIL") for c in server.commands) == 1


async def test_pausing_a_directory_or_the_whole_relay_stops_claims_and_resuming_goes_on(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)], watch=True) as bench:
        for what in ("/directories/pickup", ""):
            server.messages.clear()
            answer = await bench.http.post(f"{what}/pause", json={"reason": "look"})
            assert answer.status_code == 200, answer.text
            bench.drop("a.eml", SIMPLE)
            result = await bench.drain()
            assert result["directories"][0]["skipped"] == "paused"
            (queued,) = (await bench.get("/queue/messages"))["items"]
            assert queued["waiting_for"] == "directory_paused"
            assert server.messages == []
            await bench.http.post(f"{what}/resume")
            await until(lambda: len(server.messages) == 1 and not bench.names(), "delivery")


async def test_settings_changed_in_mid_send_leave_what_is_in_flight_alone(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=Late(0.3, "250 2.0.0 taken"))) as server, SmtpServer() as other:
        async with running(tmp_path, [account(server)], watch=True) as bench:
            bench.drop("a.eml", SIMPLE)
            await until(lambda: "DATA" in server.commands, "the transaction")
            answer = await bench.http.patch("/accounts/main", json={"port": other.port})
            assert answer.status_code == 200, answer.text
            await until(lambda: not bench.names(), "the end of what was in flight")
            bench.drop("b.eml", SIMPLE)
            await until(lambda: other.messages and not bench.names(), "delivery")
            assert (len(server.messages), len(other.messages)) == (1, 1)


async def test_of_two_changes_at_once_what_was_saved_last_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        store, has_read, go_on = bench.relay.store, asyncio.Event(), asyncio.Event()
        read = store.read

        async def slow(load: Any) -> Any:
            found = await read(load)
            has_read.set()
            await go_on.wait()
            return found

        with monkeypatch.context() as slowly:
            slowly.setattr(store, "read", slow)
            first = asyncio.create_task(bench.relay.apply_account("main"))
            await has_read.wait()
        second = asyncio.create_task(bench.http.patch("/accounts/main", json={"enabled": False}))
        await asyncio.wait({second}, timeout=0.3)  # without order it would be through by then
        go_on.set()
        await first
        assert (await second).status_code == 200
        assert not bench.relay.outlets.account("main").enabled


async def test_a_server_that_takes_the_connection_and_says_nothing_to_mail_pauses_the_account(tmp_path: Path) -> None:
    """Else it would be connected to, and logged in at, once for each mail that waits, and good mail would expire."""
    async with SmtpServer(Script(mail={"*": Close()})) as server:
        async with running(tmp_path, [account(server, max_connections=2)]) as bench:
            for number in range(20):
                bench.drop(f"{number}.eml", mail(number))
            await bench.drain()
            assert server.accepted <= 4
            assert len(bench.names()) == 20
            pause = (await bench.get("/accounts/main"))["pause"]
            assert (pause["by"], pause["code"]) == ("service", "server_closing")
            assert pause["until"] is not None
            server.script.mail.clear()
            await bench.http.post("/accounts/main/resume")
            await bench.drain(include_deferred=True)
            await until(lambda: len(server.messages) == 20 and not bench.names(), "delivery")


@pytest.mark.parametrize("reply", ["503 5.5.1 Error: authentication expired, send AUTH first", "503 5.5.1 nested MAIL"])
async def test_a_session_that_the_server_has_lost_is_given_up_and_costs_no_mail(tmp_path: Path, reply: str) -> None:
    clock = ManualClock()
    async with SmtpServer() as server:
        server.scripts[0] = Script(mail={"*": reply})
        async with running(tmp_path, [account(server, max_connections=1)], clock=clock) as bench:
            for number in range(5):
                bench.drop(f"{number}.eml", mail(number))
            await bench.drain()
            clock.advance(120.0)
            await bench.http.post("/accounts/main/resume")
            await bench.drain(include_deferred=True)
            await until(lambda: len(server.messages) == 5 and not bench.names(), "delivery")
            assert len([c for c in server.sessions[0].commands if c.startswith("MAIL")]) <= 2


async def test_a_further_login_that_is_refused_is_told_while_the_open_connections_go_on(tmp_path: Path) -> None:
    async with SmtpServer(mechanisms=["PLAIN"], credentials={"shop": "right"}) as server:
        server.scripts = {number: Script(auth="535 5.7.8 no") for number in range(1, 50)}
        value = account(server, auth=AuthMethod.AUTO, username="shop", password="right", max_connections=5)
        async with running(tmp_path, [value]) as bench:
            for number in range(30):
                bench.drop(f"{number}.eml", mail(number))
            await bench.sends(30)
            assert server.accepted == 2, "no login is tried in a loop"
            assert (await bench.get("/accounts/main"))["pause"] is None
            (alert,) = (await bench.get("/alerts"))["items"]
            assert (alert["code"], alert["account"]) == ("login_refused", "main")
            assert "open already" in alert["detail"]


async def test_a_corrected_file_of_authorities_counts_once_the_account_is_resumed(tmp_path: Path) -> None:
    other, _ = certificate("localhost", "127.0.0.1")
    authority, context = certificate("localhost", "127.0.0.1")
    ca_file = tmp_path / "ca.pem"
    other.cert_pem.write_to_path(str(ca_file))
    async with SmtpServer(context=context) as server:
        value = account(server, host="localhost", security=Security.STARTTLS, tls_ca_file=str(ca_file))
        async with running(tmp_path, [value]) as bench:
            await _fill(bench)
            await _kept(bench, "certificate_untrusted")
            authority.cert_pem.write_to_path(str(ca_file))
            await bench.http.post("/accounts/main/resume")
            await until(lambda: len(server.messages) == 3 and not bench.names(), "delivery")


async def test_a_trial_that_asked_the_server_nothing_proves_nothing(tmp_path: Path) -> None:
    async with SmtpServer(Script(hide={"SMTPUTF8"}, mail={"*": "421 4.3.2 closing"})) as server:
        async with running(tmp_path, [account(server)]) as bench:
            bench.drop("first.eml", SIMPLE)
            await bench.drain()
            assert (await bench.get("/accounts/main"))["pause"]["code"] == "server_closing"
            (bench.paths["pickup"] / "first.eml").unlink()
            await bench.http.post("/accounts/main/resume")
            bench.drop("x.eml", "From: a@example.com\r\nTo: j\u00f6@example.org\r\n\r\nHi\r\n".encode())
            await bench.drain()
            assert (await bench.history())["j\u00f6@example.org"] == "failed"
            assert bench.relay.outlets._get("main").circuit.half_open, "it is still to be tried"


async def test_the_words_of_a_421_behind_the_dot_are_told_and_the_account_rests(tmp_path: Path) -> None:
    words = "421 4.7.28 rate of unsolicited mail"
    async with SmtpServer(Script(dot=Close(words))) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", SIMPLE)
        bench.drop("b.eml", mail(2))
        await bench.drain()
        rows = (await bench.get("/history"))["items"]
        told = [row for row in rows if row["status"] == "unknown"]
        assert told
        assert all("rate of unsolicited mail" in row["text"] for row in told)
        pause = (await bench.get("/accounts/main"))["pause"]
        assert (pause["code"], "rate of unsolicited" in pause["reason"]) == ("server_closing", True)


async def test_what_may_be_said_of_one_recipient_alone_is_where_others_are_taken(tmp_path: Path) -> None:
    script = Script(rcpt={"bob@example.net": "550 5.7.64 TenantAttribution; Relay Access Denied"})
    async with SmtpServer(script) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1, to="jo@example.org, bob@example.net"))
        await bench.drain()
        assert await bench.history() == {"jo@example.org": "sent", "bob@example.net": "deferred"}
        assert (await bench.get("/accounts/main"))["pause"] is None
        assert len(server.messages) == 1
