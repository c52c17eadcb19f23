"""An account's own rows, and the pauses of the table, through the HTTP interface against a server that says it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from core.domain.account import Account, AuthMethod, Directory, ReplyRule
from core.domain.outcome import Blame
from core.domain.reply import Phase
from tests.support.clock import ManualClock
from tests.support.relay import SIMPLE, Bench, account, mail, running, until
from tests.support.smtp_server import Script, SmtpServer

HOUR, DAY = 3600.0, 86_400.0
RULE = "rule 1 of the account"
SAID = "550 5.7.1 You are out of credit"
CREDIT = ReplyRule(Blame.ACCOUNT, text="out of credit", pause_seconds=600)


def transactions(server: SmtpServer) -> int:
    return sum(command.startswith("MAIL") for command in server.commands)


# --- the account is to blame -----------------------------------------------------------------------------------------


@asynccontextmanager
async def one_directory_each(
    tmp_path: Path, cases: Mapping[str, tuple[ReplyRule, Script]], **login: Any
) -> AsyncIterator[Bench]:
    """A relay with an account, its server and a directory with one mail for each case, drained once."""
    async with AsyncExitStack() as stack:
        accounts = []
        for name, (rule, script) in cases.items():
            server = SmtpServer(script, credentials={"shop": "right"}, mechanisms=["PLAIN"])
            await stack.enter_async_context(server)
            accounts.append(account(server, name, reply_rules=(rule,), **login))
        pickups = [Directory(name, str(tmp_path / "spool" / name), (name,), watch=False) for name in cases]
        bench = await stack.enter_async_context(running(tmp_path, accounts, pickups=pickups))
        for name in cases:
            bench.drop("a.eml", SIMPLE, name)
        await bench.drain()
        yield bench


async def test_a_rule_pauses_the_account_in_every_phase(tmp_path: Path) -> None:
    scripts = {
        "banner": Script(banner=SAID),
        "ehlo": Script(ehlo=SAID),
        "auth": Script(auth=SAID),
        "mail": Script(mail={"*": SAID}),
        "rcpt": Script(rcpt={"*": SAID}),
        "data": Script(data=SAID),
        "dot": Script(dot=SAID),
        "two-lines": Script(dot="550 5.7.1 You are out\n5.7.1 of credit, sorry"),
    }
    login = {"auth": AuthMethod.PLAIN, "username": "shop", "password": "right"}
    cases = {name: (CREDIT, script) for name, script in scripts.items()}
    async with one_directory_each(tmp_path, cases, **login) as bench:
        for name in scripts:
            await named_everywhere(bench, name, seconds=600)
        for name in ("auth", "dot"):
            sent = (await bench.http.post(f"/accounts/{name}/test-message", json={"to": "jo@example.org"})).json()
            assert not sent["ok"]
            assert RULE in sent["text"]
            assert "reply_rules/0" in sent["remedy"]


async def named_everywhere(bench: Bench, name: str, *, seconds: float | None) -> None:
    """The one mail waits, no attempt was counted, and pause, queue, reasons and alerts name the rule."""
    pause = (await bench.get(f"/accounts/{name}"))["pause"]
    assert (pause["by"], pause["code"]) == ("service", "reply_rule")
    assert RULE in pause["reason"]
    assert "reply_rules/0" in pause["remedy"]
    assert (pause["until"] is None) == (seconds is None)
    (queued,) = (await bench.get("/queue/messages", account=name))["items"]
    assert (queued["state"], queued["attempts"], queued["waiting_for"]) == ("waiting", 0, "account_paused")
    assert queued["reason"] == f"{pause['code']}: {pause['reason']}"
    assert queued["due_at"] == pause["until"]
    (reason,) = [row for row in (await bench.get("/queue/reasons"))["items"] if row["account"] == name]
    assert (reason["blame"], reason["messages"]) == ("account", 1)
    assert RULE in reason["text"]
    assert "reply_rules/0" in reason["remedy"]
    (alert,) = [alert for alert in (await bench.get("/alerts"))["items"] if alert["account"] == name]
    assert (alert["code"], alert["messages_affected"]) == ("reply_rule", 1)
    assert alert["severity"] == ("error" if seconds is None else "warning")
    assert RULE in alert["detail"]


async def test_the_pause_of_a_rule_ends_when_it_says(tmp_path: Path) -> None:
    clock, script = ManualClock(), Script(dot=[SAID, SAID, None])
    async with SmtpServer(script) as server:
        async with running(tmp_path, [account(server, reply_rules=(CREDIT,))], clock=clock) as bench:
            bench.drop("a.eml", SIMPLE)
            await bench.drain()
            for _ in range(2):  # the same length each time
                clock.advance(599)
                before = transactions(server)
                await bench.drain()
                assert transactions(server) == before
                clock.advance(1)
                await bench.drain()
                assert transactions(server) == before + 1
            assert (len(server.messages), bench.names()) == (1, [])
            assert (await bench.get("/accounts/main"))["pause"] is None


async def test_a_rule_without_a_time_pauses_until_the_account_is_edited(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=[SAID, None])) as server:
        own = account(server, reply_rules=(ReplyRule(Blame.ACCOUNT, text="out of credit"),))
        async with running(tmp_path, [own]) as bench:
            bench.drop("a.eml", SIMPLE)
            await bench.drain()
            await named_everywhere(bench, "main", seconds=None)
            answer = await bench.http.patch("/accounts/main", json={"reply_rules": []})
            assert answer.status_code == 200, answer.text
            await until(lambda: server.messages and not bench.names(), "delivery")


async def test_the_next_account_takes_over_where_a_rule_blames_the_first(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=SAID)) as server, SmtpServer() as other:
        accounts = [account(server, "main", reply_rules=(CREDIT,)), account(other, "spare")]
        async with running(tmp_path, accounts) as bench:
            bench.drop("a.eml", SIMPLE)
            await bench.sends(1)
            assert len(other.messages) == 1
            assert (await bench.get("/accounts/main"))["pause"]["code"] == "reply_rule"


async def test_a_refused_login_that_a_rule_calls_passing_is_tried_again_in_a_minute(tmp_path: Path) -> None:
    clock = ManualClock()
    script = Script(auth=["535 5.7.8 directory service is away", None])
    async with SmtpServer(script, credentials={"shop": "right"}, mechanisms=["PLAIN"]) as server:
        rule = ReplyRule(Blame.TRANSIENT, phase=Phase.AUTH, text="directory service")
        own = account(server, auth=AuthMethod.PLAIN, username="shop", password="right", reply_rules=(rule,))
        async with running(tmp_path, [own], clock=clock) as bench:
            bench.drop("a.eml", SIMPLE)
            await bench.drain()
            pause = (await bench.get("/accounts/main"))["pause"]
            assert pause["code"] == "reply_rule"
            assert pause["until"] is not None
            clock.advance(70)
            await bench.sends(1)


# --- somebody else is to blame ---------------------------------------------------------------------------------------


FAILED, DEFERRED = "failed", "deferred"
BLAMES = {
    "virus": (ReplyRule(Blame.MESSAGE, code="4..", text="virus", final=True), Script(dot="451 4.3.0 virus"), FAILED),
    "spam": (ReplyRule(Blame.MESSAGE, text="spam"), Script(dot="554 5.7.1 spam"), DEFERRED),
    "gone": (ReplyRule(Blame.RECIPIENT, text="gone", final=True), Script(rcpt={"*": "450 4.2.1 gone"}), FAILED),
    "moving": (ReplyRule(Blame.RECIPIENT, text="moving"), Script(rcpt={"*": "550 5.1.1 moving"}), DEFERRED),
    "nobody": (ReplyRule(Blame.SENDER, text="who", final=True), Script(mail={"*": "451 4.7.1 who?"}), FAILED),
    "stranger": (ReplyRule(Blame.SENDER, text="who"), Script(mail={"*": "550 5.7.1 who?"}), DEFERRED),
    "later": (ReplyRule(Blame.TRANSIENT, enhanced_code=r"5\.7\.9"), Script(data="554 5.7.9 not now"), DEFERRED),
}


async def test_a_rule_blames_message_recipient_or_sender(tmp_path: Path) -> None:
    cases = {name: (rule, script) for name, (rule, script, _) in BLAMES.items()}
    async with one_directory_each(tmp_path, cases) as bench:
        reasons = {row["account"]: row for row in (await bench.get("/queue/reasons"))["items"]}
        for name, (rule, _, status) in BLAMES.items():
            (row,) = (await bench.get("/history", account=name))["items"]
            assert (name, row["status"]) == (name, status)
            assert RULE in row["text"]
            assert (await bench.get(f"/accounts/{name}"))["pause"] is None
            (queued,) = (await bench.get("/queue/messages", directory=name))["items"]
            assert queued["state"] == ("badmail" if status == FAILED else "deferred")
            if status == DEFERRED:
                assert (reasons[name]["blame"], reasons[name]["messages"]) == (rule.blame.value, 1)
                assert RULE in reasons[name]["text"]
            else:
                (letter,) = [p for p in (bench.paths[name] / "badmail").iterdir() if p.suffix == ".txt"]
                assert RULE in letter.read_text()


async def test_only_the_recipients_that_a_rule_names_fail(tmp_path: Path) -> None:
    rule = ReplyRule(Blame.RECIPIENT, phase=Phase.RCPT, text="left the company", final=True)
    script = Script(rcpt={"ann@example.org": "450 4.1.1 Ann left the company", "bob@example.org": "450 4.1.1 later"})
    async with SmtpServer(script) as server, running(tmp_path, [account(server, reply_rules=(rule,))]) as bench:
        bench.drop("a.eml", mail(1, to="ann@example.org, bob@example.org, cid@example.org"))
        await bench.drain()
        assert await bench.history() == {
            "ann@example.org": "failed",
            "bob@example.org": "deferred",
            "cid@example.org": "sent",
        }


async def test_a_sender_that_a_rule_names_goes_through_the_next_account(tmp_path: Path) -> None:
    rule = ReplyRule(Blame.SENDER, text="not your domain", final=True)
    async with SmtpServer(Script(dot="451 4.7.1 not your domain")) as server, SmtpServer() as other:
        accounts = [account(server, "main", reply_rules=(rule,)), account(other, "spare")]
        async with running(tmp_path, accounts) as bench:
            bench.drop("a.eml", SIMPLE)
            await bench.sends(1)
            assert len(other.messages) == 1


async def test_rules_are_saved_over_http_and_hold_from_then_on(tmp_path: Path) -> None:
    async with SmtpServer(Script(dot=SAID)) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", SIMPLE)
        await bench.drain()
        assert (await bench.get("/queue"))["totals"]["badmail"] == 1  # by the table the message's fault
        rule = {"blame": "account", "code": "5..", "text": "out of credit", "pause_seconds": 60}
        refused = await bench.http.patch("/accounts/main", json={"reply_rules": [{**rule, "text": "out of (credit"}]})
        assert refused.status_code == 422
        assert [error["pointer"] for error in refused.json()["errors"]] == ["/reply_rules/0/text"]
        answer = await bench.http.patch("/accounts/main", json={"reply_rules": [rule]})
        assert answer.status_code == 200, answer.text
        bench.drop("b.eml", SIMPLE)
        await bench.drain()
        assert (await bench.get("/queue"))["totals"]["badmail"] == 1
        assert (await bench.get("/accounts/main"))["pause"]["code"] == "reply_rule"


# --- what the table says ---------------------------------------------------------------------------------------------


async def alert_codes(bench: Bench) -> list[str]:
    return [alert["code"] for alert in (await bench.get("/alerts"))["items"]]


async def test_a_quota_is_tried_hourly_by_one_mail_and_becomes_an_error_after_a_day(tmp_path: Path) -> None:
    clock = ManualClock()
    text = "550 5.4.5 Daily user sending limit exceeded. d9443c01a7336-2 - gsmtp"
    async with SmtpServer(Script(dot=text)) as server, running(tmp_path, [account(server)], clock=clock) as bench:
        for number in range(3):
            bench.drop(f"{number}.eml", mail(number))
        await bench.drain()
        tried = transactions(server)
        for hour in range(1, 26):
            clock.advance(HOUR)
            await bench.drain()
            assert transactions(server) == tried + hour
            (alert,) = [a for a in (await bench.get("/alerts"))["items"] if a["code"] == "quota_exceeded"]
            assert alert["severity"] == ("error" if hour > DAY / HOUR else "warning")
        queued = (await bench.get("/queue/messages"))["items"]
        assert [(q["state"], q["attempts"], q["waiting_for"]) for q in queued] == [("waiting", 0, "quota")] * 3
        server.script.dot = None
        clock.advance(HOUR)
        await bench.drain()
        await until(lambda: len(server.messages) == 3 and not bench.names(), "delivery")
        assert "quota_exceeded" not in await alert_codes(bench)


async def test_a_tenants_limit_pauses_all_its_accounts_and_no_other(tmp_path: Path) -> None:
    clock = ManualClock()
    text = "550 5.7.233 Your message can't be sent because your tenant exceeded its daily limit for sending email"
    async with SmtpServer(Script(dot=[text, None])) as server:
        names = {"one": "one@tenant.example", "two": "two@tenant.example", "other": "three@elsewhere.example"}

        def of(name: str) -> Account:
            return account(server, name, from_address=names[name])

        async with running(tmp_path, [of(name) for name in names], clock=clock) as bench:
            bench.drop("a.eml", SIMPLE)
            await bench.sends(1)  # the third took over
            pauses = {name: (await bench.get(f"/accounts/{name}"))["pause"] for name in names}
            codes = {name: pause and pause["code"] for name, pause in pauses.items()}
            assert codes == {"one": "tenant_blocked", "two": "tenant_blocked", "other": None}
            await bench.http.patch("/accounts/other", json={"enabled": False})
            bench.drop("b.eml", SIMPLE)
            await bench.drain()
            (queued,) = (await bench.get("/queue/messages"))["items"]
            assert (queued["waiting_for"], queued["attempts"]) == ("quota", 0)
            clock.advance(HOUR)
            await bench.sends(1)
            assert (await bench.get("/accounts/one"))["pause"] is None


async def test_senders_refused_again_and_again_raise_an_alert(tmp_path: Path) -> None:
    clock = ManualClock()
    text = (
        "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process "
        "message due to a permanent exception with message Cannot submit message."
    )

    async def alerts(bench: Bench) -> list[dict[str, Any]]:
        return [a for a in (await bench.get("/alerts"))["items"] if a["code"] == "sender_refused"]

    async with SmtpServer(Script(dot=text)) as server, running(tmp_path, [account(server)], clock=clock) as bench:
        for number in range(3):
            assert await alerts(bench) == []
            bench.drop(f"{number}.eml", mail(number))
            await bench.drain()
        (alert,) = await alerts(bench)
        assert (alert["severity"], alert["blame"], alert["account"]) == ("error", "sender", "main")
        assert alert["messages_affected"] == 3
        assert "shop@example.com" in alert["detail"]
        assert "SendAsDenied" in alert["detail"]
        assert alert["remedy"]
        assert (await bench.get("/accounts/main"))["pause"] is None
        clock.advance(DAY + 1)
        assert await alerts(bench) == []


@pytest.mark.parametrize("change", [{"max_connections": 2}, None], ids=["edited", "deleted"])
async def test_an_edited_account_starts_anew_with_refused_senders(
    tmp_path: Path, change: dict[str, Any] | None
) -> None:
    text = "550 5.7.60 SMTP; Client does not have permissions to send as this sender"
    async with SmtpServer(Script(dot=text)) as server, running(tmp_path, [account(server)]) as bench:
        for number in range(4):
            bench.drop(f"{number}.eml", mail(number))
        await bench.drain()
        assert "sender_refused" in await alert_codes(bench)
        if change is None:
            assert (await bench.http.delete("/directories/pickup")).status_code == 204
            assert (await bench.http.delete("/accounts/main")).status_code == 204
        else:
            assert (await bench.http.patch("/accounts/main", json=change)).status_code == 200
        assert "sender_refused" not in await alert_codes(bench)
