"""Several accounts a directory, through the HTTP interface: who sends what, and what mail waits or ends for."""

from __future__ import annotations

import fcntl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session

from core.domain.account import Account, Directory, FromPolicy
from core.store.tables import AccountRow
from tests.support.command import mpu
from tests.support.relay import Bench, account, running, until
from tests.support.smtp_server import Script, SmtpServer

Settings = dict[str, dict[str, Any]]  # of accounts, by name
DENIED = "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied"


def mail(sender: str, number: int = 0, *, to: str = "jo@example.org") -> bytes:
    return f"From: {sender}\r\nTo: {to}\r\nSubject: {number}\r\nMessage-ID: <{number}.{sender}>\r\n\r\nHi\r\n".encode()


@dataclass
class Place:
    """A relay with a server an account, and directories that send through all of them."""

    bench: Bench
    servers: dict[str, SmtpServer]

    def sent(self, *names: str) -> dict[str, int]:
        """How many mails each account's server has taken."""
        return {name: len(self.servers[name].messages) for name in names or self.servers}

    def senders(self, name: str) -> set[str]:
        return {message.sender for message in self.servers[name].messages}

    async def patch(self, path: str, **body: Any) -> dict[str, Any]:
        answer = await self.bench.http.patch(path, json=body)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    async def refused(self, path: str, **body: Any) -> dict[str, str]:
        """Pointers and codes of a 422."""
        answer = await self.bench.http.patch(path, json=body)
        assert answer.status_code == 422, answer.text
        return {error["pointer"]: error["code"] for error in answer.json()["errors"]}

    async def explain(self, data: bytes, directory: str = "pickup") -> dict[str, Any]:
        answer = await self.bench.http.post("/messages/explain", params={"directory": directory}, content=data)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    async def waiting(self) -> list[tuple[str, str | None, str | None]]:
        """File name, what it waits for, and the account that it is about."""
        rows = (await self.bench.get("/queue/messages", state="waiting"))["items"]
        return [(row["file_name"], row["waiting_for"], row["account"]) for row in rows]


@asynccontextmanager
async def place(
    root: Path,
    scripts: dict[str, Script | None],
    *,
    directories: Sequence[str] = ("pickup",),
    accounts: Settings | None = None,
) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        servers = {name: await stack.enter_async_context(SmtpServer(script)) for name, script in scripts.items()}
        values: list[Account] = [
            account(server, name, **(accounts or {}).get(name, {})) for name, server in servers.items()
        ]
        (root / "spool").mkdir(exist_ok=True)
        pickups = [Directory(name, str(root / "spool" / name), tuple(servers), watch=False) for name in directories]
        bench = await stack.enter_async_context(running(root, values, pickups=pickups))
        yield Place(bench, servers)


# --- send-as ----------------------------------------------------------------------------------------------------------


async def test_fail_over_keeps_send_as(tmp_path: Path) -> None:
    senders: Settings = {"first": {"senders": ("@a.example",)}, "second": {"senders": ("@b.example", "shop@a.example")}}
    async with place(tmp_path, {"first": None, "second": None}, accounts=senders) as here:
        bench = here.bench
        answer = await bench.http.post("/accounts/first/pause", json={"reason": "maintenance"})
        assert answer.status_code == 200, answer.text
        for name, sender in (("1.eml", "jo@a.example"), ("2.eml", "jo@B.example"), ("3.eml", "shop@a.example")):
            bench.drop(name, mail(sender))
        result = await bench.drain()
        assert here.sent() == {"first": 0, "second": 2}
        assert await here.waiting() == [("1.eml", "account_paused", "first")]
        cycle = bench.relay.inlets.get("pickup").cycle
        assert (list(cycle.blocked), cycle._later) == (
            [b"1.eml"],
            [],
        )  # it waits to be woken, and is not looked at again
        (blocked,) = result["directories"][0]["blocked"]
        assert (blocked["reason"], blocked["account"], blocked["count"]) == ("account_paused", "first", 1)
        (reason,) = (await bench.get("/queue/reasons"))["items"]
        assert (reason["account"], reason["messages"]) == ("first", 1)
        await bench.http.post("/accounts/first/resume")
        await until(lambda: not bench.names(), "delivery")
        assert here.senders("first") == {"jo@a.example"}


async def test_senders_are_the_same_whatever_their_case_and_are_sent_as_written(tmp_path: Path) -> None:
    senders: Settings = {"main": {"senders": ("app@a.example",)}, "routed": {}}
    async with place(tmp_path, {"main": None, "routed": None}, accounts=senders) as here:
        bench = here.bench
        await here.patch("/directories/pickup", accounts=["main"])
        await here.patch("/settings", sender_routes=[{"senders": ["x@b.example"], "accounts": ["routed"]}])
        for number, sender in enumerate(("App@a.example", "APP@A.Example", "X@B.example")):
            bench.drop(f"{number}.eml", mail(sender))
        assert (await bench.drain())["sent"] == 3
        assert here.senders("main") == {"App@a.example", "APP@A.Example"}
        assert here.senders("routed") == {"X@B.example"}
        for asked, found in (
            ("app@A.EXAMPLE", {"App@a.example", "APP@A.Example"}),
            ("x@b.example", {"X@B.example"}),
            ("y@b.example", set[str]()),
        ):
            rows = (await bench.get("/history", sender=asked))["items"]
            assert {row["sender"] for row in rows} == found


async def test_mail_that_nobody_may_send_goes_to_badmail_and_says_what_to_do(tmp_path: Path) -> None:
    senders = {"first": {"senders": ("@a.example",)}, "second": {"senders": ("@b.example",)}}
    async with place(tmp_path, {"first": None, "second": None}, accounts=senders) as here:
        bench = here.bench
        bench.drop("x.eml", mail("jo@c.example"))
        assert (await bench.drain())["failed"] == 1
        assert here.sent() == {"first": 0, "second": 0}
        (dead,) = (await bench.get("/queue/messages"))["items"]
        assert (dead["state"], dead["code"], dead["enhanced_code"]) == ("badmail", 554, "5.7.1")
        (row,) = (await bench.get("/history"))["items"]
        assert (row["code"], row["enhanced_code"]) == (554, "5.7.1"), "the history tells the same"
        assert "no account may send as jo@c.example: asked were first, second" in dead["reason"]
        letter = next((bench.paths["pickup"] / "badmail").glob("*.txt")).read_text()
        assert "add jo@c.example or @c.example to the `senders` of an account" in letter
        assert await bench.history() == {"jo@example.org": "failed"}
        await here.patch("/accounts/second", senders=["@b.example", "@c.example"])
        answer = await bench.http.post(f"/queue/messages/{dead['id']}/retry")
        assert answer.status_code == 200, answer.text
        await bench.drain()
        assert here.sent() == {"first": 0, "second": 1}
        assert await bench.history() == {"jo@example.org": "sent"}


async def test_mail_that_nobody_may_send_stays_locked_while_badmail_cannot_be_had(tmp_path: Path) -> None:
    """Without the lock another process would take it for a dead owner's, and put it back."""
    async with place(tmp_path, {"shop": None}, accounts={"shop": {"senders": ("shop@example.org",)}}) as p:
        bench = p.bench
        (bench.paths["pickup"] / "badmail").symlink_to(tmp_path)
        bench.drop("x.eml", mail("other@example.org"))
        await bench.drain()
        (kept,) = bench.relay.inlets.get("pickup").spool.pending()
        assert kept.claim.fd >= 0
        with (bench.paths["pickup"] / "x.eml.lck").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (bench.paths["pickup"] / "badmail").unlink()
        await bench.drain()
        assert (bench.paths["pickup"] / "badmail" / "x.eml").exists()


async def test_bounces_go_through_any_account(tmp_path: Path) -> None:
    async with place(tmp_path, {"only": None}, accounts={"only": {"senders": ("@a.example",)}}) as here:
        here.bench.drop("x.eml", b"X-Sender: <>\r\nX-Receiver: jo@example.org\r\n" + mail("robot@c.example"))
        await here.bench.sends(1)
        assert here.senders("only") == {""}


async def test_a_server_that_denies_send_as_moves_the_mail_to_the_next_that_may(tmp_path: Path) -> None:
    scripts = {"denies": Script(dot=DENIED), "strict": None, "takes": None}
    async with place(tmp_path, scripts, accounts={"strict": {"senders": ("@b.example",)}}) as here:
        here.bench.drop("x.eml", mail("jo@a.example"))
        await here.bench.sends(1)
        assert here.sent() == {"denies": 0, "strict": 0, "takes": 1}
        assert here.servers["strict"].accepted == 0
        assert (await here.bench.get("/accounts/denies"))["pause"] is None


async def test_a_denied_mail_waits_for_an_account_that_may_and_dies_where_there_is_none(tmp_path: Path) -> None:
    async with place(tmp_path, {"denies": Script(dot=DENIED), "spare": None}) as here:
        bench = here.bench
        await bench.http.post("/accounts/spare/pause", json={"reason": "maintenance"})
        bench.drop("x.eml", mail("jo@a.example"))
        assert (await bench.drain())["deferred"] == 1
        await here.patch("/accounts/spare", senders=["@b.example"])
        await bench.drain(include_deferred=True)
        assert await bench.history() == {"jo@example.org": "failed"}
        assert here.sent() == {"denies": 0, "spare": 0}


# --- strategies -------------------------------------------------------------------------------------------------------


async def test_balance_gives_each_its_exact_share_and_follows_changes(tmp_path: Path) -> None:
    async with place(tmp_path, {"big": None, "small": None, "spare": None}) as here:
        bench = here.bench

        async def send(count: int) -> None:
            for number in range(count):
                bench.drop(f"{number}.eml", mail("jo@a.example", number))
            await bench.sends(count)

        shown = await here.patch("/directories/pickup", strategy="balance", weights=[3, 1, 0])
        assert (shown["strategy"], shown["weights"]) == ("balance", [3, 1, 0])
        await send(40)
        assert here.sent() == {"big": 30, "small": 10, "spare": 0}
        await here.patch("/directories/pickup", weights=None)
        await send(30)
        assert here.sent() == {"big": 40, "small": 20, "spare": 10}
        await here.patch("/directories/pickup", weights=[3, 1, 0])
        await bench.http.post("/accounts/big/pause")
        await send(4)
        assert here.sent() == {"big": 40, "small": 24, "spare": 10}
        await bench.http.post("/accounts/small/pause")
        await send(4)
        assert here.sent() == {"big": 40, "small": 24, "spare": 14}


async def test_balance_keeps_the_parts_of_one_mail_together(tmp_path: Path) -> None:
    one_each = {"recipients_per_message": 1}
    async with place(tmp_path, {"a": None, "b": None}, accounts={"a": one_each, "b": one_each}) as here:
        await here.patch("/directories/pickup", strategy="balance")
        for number in range(2):
            here.bench.drop(f"{number}.eml", mail("jo@a.example", number, to="a@b.example, c@d.example, e@f.example"))
        await here.bench.sends(2)
        assert here.sent() == {"a": 3, "b": 3}
        for server in here.servers.values():
            assert len({message.body for message in server.messages}) == 1


async def test_by_sender_the_account_that_names_the_sender_comes_first(tmp_path: Path) -> None:
    senders = {"domain": {"senders": ("@a.example",)}, "own": {"senders": ("shop@a.example",)}}
    async with place(tmp_path, {"any": None, "domain": None, "own": None}, accounts=senders) as here:
        await here.patch("/directories/pickup", strategy="by_sender")
        for number, sender in enumerate(("shop@a.example", "jo@a.example", "jo@sub.a.example", "jo@b.example")):
            here.bench.drop(f"{number}.eml", mail(sender))
        await here.bench.sends(4)
        assert here.senders("own") == {"shop@a.example"}
        assert here.senders("domain") == {"jo@a.example"}
        assert here.senders("any") == {"jo@sub.a.example", "jo@b.example"}
        await here.bench.http.post("/accounts/own/pause")  # the next that may takes over
        here.bench.drop("5.eml", mail("shop@a.example"))
        await here.bench.sends(1)
        assert here.senders("domain") == {"jo@a.example", "shop@a.example"}


# --- sender routes ----------------------------------------------------------------------------------------------------


async def test_sender_routes_count_for_all_directories_from_the_next_message_on(tmp_path: Path) -> None:
    async with place(tmp_path, {"main": None, "a": None, "b": None}, directories=("one", "two")) as here:
        bench = here.bench
        for name in ("one", "two"):
            await here.patch(f"/directories/{name}", accounts=["main"])
        routes = [
            {"senders": ["@a.example"], "accounts": ["a", "b"]},
            {"senders": ["vip@A.example"], "accounts": ["b"]},
        ]
        assert (await here.patch("/settings", sender_routes=routes))["sender_routes"] == routes

        async def send(prefix: str) -> None:
            for name in ("one", "two"):
                for number, sender in enumerate(("jo@a.example", "vip@a.example", "jo@sub.a.example")):
                    bench.drop(f"{prefix}{number}.eml", mail(sender), name)
            await bench.drain()

        await send("x")
        assert here.sent() == {"main": 2, "a": 2, "b": 2}
        assert here.senders("b") == {"vip@a.example"}
        await bench.http.post("/accounts/a/pause")
        await send("y")
        assert here.sent() == {"main": 4, "a": 2, "b": 6}
        await bench.http.post("/accounts/b/pause")
        await send("z")  # the directory's own account doesn't help out
        assert here.sent() == {"main": 6, "a": 2, "b": 6}
        assert {(row[1], row[2]) for row in await here.waiting()} == {("account_paused", "a"), ("account_paused", "b")}
        assert len(await here.waiting()) == 4
        await here.patch("/settings", sender_routes=None)  # what waits goes by itself
        await until(lambda: not bench.names("one") and not bench.names("two"), "delivery")
        assert here.sent() == {"main": 10, "a": 2, "b": 6}


async def test_mail_with_a_route_goes_where_none_of_the_directorys_accounts_can_be_used(tmp_path: Path) -> None:
    async with place(tmp_path, {"main": None, "other": None}) as here:
        bench = here.bench
        await here.patch("/directories/pickup", accounts=["main"])
        await here.patch("/settings", sender_routes=[{"senders": ["@a.example"], "accounts": ["other"]}])
        await bench.http.post("/accounts/main/pause")
        bench.drop("a.eml", mail("jo@a.example"))
        bench.drop("b.eml", mail("jo@b.example"))
        await bench.sends(1)
        assert here.sent() == {"main": 0, "other": 1}
        assert await here.waiting() == [("b.eml", "account_paused", "main")]


async def test_an_accounts_senders_hold_on_a_sender_route_too(tmp_path: Path) -> None:
    strict = {"strict": {"senders": ("ann@a.example",)}}
    async with place(tmp_path, {"main": None, "strict": None}, accounts=strict) as here:
        await here.patch("/settings", sender_routes=[{"senders": ["@a.example"], "accounts": ["strict"]}])
        here.bench.drop("x.eml", mail("jo@a.example"))
        await here.bench.drain()
        assert await here.bench.history() == {"jo@example.org": "failed"}
        assert here.sent() == {"main": 0, "strict": 0}


async def test_a_route_that_none_of_its_accounts_may_serve_is_refused(tmp_path: Path) -> None:
    """All mail of its senders would go to badmail."""
    limits: dict[str, dict[str, Any]] = {
        "strict": {"senders": ("ann@a.example", "@b.example")},
        "own": {"from_address": "own@c.example", "from_policy": FromPolicy.REPLACE, "senders": ("own@c.example",)},
    }
    async with place(tmp_path, {"main": None, "strict": None, "own": None}, accounts=limits) as here:
        wrong = [
            {"senders": ["jo@a.example", "@d.example", "@a.example", "Ann@A.example"], "accounts": ["strict"]},
            {"senders": ["jo@e.example"], "accounts": ["strict", "own"]},
        ]
        refused = {f"/sender_routes/0/senders/{n}": "conflict" for n in (0, 1, 2)}
        assert await here.refused("/settings", sender_routes=wrong) == refused, "`own` sends for anybody, as itself"
        routes = [{"senders": ["@a.example", "jo@b.example"], "accounts": ["strict"]}]
        await here.patch("/settings", sender_routes=routes)
        for left in (["@b.example"], ["ann@a.example"]):
            assert await here.refused("/accounts/strict", senders=left) == {"/senders": "conflict"}
        other = {"from_address": "own@c.example", "from_policy": "replace", "senders": ["own@c.example"]}
        await here.patch("/accounts/strict", **other)
        await here.patch("/accounts/strict", senders=[])
        await here.patch("/accounts/strict", senders=["own@c.example"])
        assert await here.refused("/accounts/strict", from_policy="keep") == {"/from_policy": "conflict"}
        await here.patch("/accounts/strict", senders=[])
        routed = [
            {"senders": ["@a.example"], "accounts": ["strict"]},
            {"senders": ["ann@a.example"], "accounts": ["main"]},
        ]
        await here.patch("/settings", sender_routes=routed)
        assert await here.refused("/accounts/strict", senders=["ann@a.example"], from_policy="keep") == {
            "/senders": "conflict"
        }


async def test_an_account_may_be_changed_beside_a_route_that_was_wrong_before(tmp_path: Path) -> None:
    async with place(tmp_path, {"main": None, "spare": None}) as here:
        await here.patch("/settings", sender_routes=[{"senders": ["@a.example"], "accounts": ["spare"]}])

        def as_an_earlier_version_did(session: Session) -> None:
            row = session.get(AccountRow, "spare")
            assert row is not None
            row.senders = ["@b.example"]

        await here.bench.relay.store.write(as_an_earlier_version_did)
        routes = (await here.bench.get("/settings"))["sender_routes"]
        await here.patch("/settings", sender_routes=routes)
        await here.patch("/accounts/spare", max_connections=3)
        await here.patch("/accounts/spare", senders=[])


async def test_sender_routes_are_checked_audited_kept_and_hold_their_accounts(tmp_path: Path) -> None:
    routes = [{"senders": ["@a.example", "jo@b.example"], "accounts": ["spare"]}]
    async with place(tmp_path, {"main": None, "spare": None}) as here:
        bench = here.bench
        await here.patch("/directories/pickup", accounts=["main"])
        wrong = [
            {"senders": ["a.example", "a@@b", "@A.example"], "accounts": ["main", "nosuch", "main"]},
            {"senders": ["@a.example"], "accounts": ["main"]},
            {"senders": ["@A.EXAMPLE", "x@bücher.example", "x@xn--bcher-kva.example"], "accounts": ["main"]},
            {"senders": ["@a.example "], "accounts": ["main"]},
        ]
        assert await here.refused("/settings", sender_routes=wrong) == {
            "/sender_routes/0/senders/0": "wrong_form",
            "/sender_routes/0/senders/1": "wrong_form",
            "/sender_routes/0/accounts/1": "unknown_account",
            "/sender_routes/0/accounts/2": "twice",
            "/sender_routes/2/senders/2": "twice",
            "/sender_routes/3/senders/0": "wrong_form",
        }
        doubled = [{"senders": ["@a.example"], "accounts": ["main"]}, *routes]
        assert await here.refused("/settings", sender_routes=doubled) == {"/sender_routes/1/senders/0": "twice"}
        assert "/sender_routes/0/accounts" in await here.refused(
            "/settings", sender_routes=[{"senders": ["@a.example"], "accounts": []}]
        )
        assert (await bench.get("/settings"))["sender_routes"] == []
        await here.patch("/settings", sender_routes=routes)
        (entry,) = [row for row in (await bench.get("/audit"))["items"] if row["action"] == "settings.change"]
        assert entry["changes"] == {"sender_routes": [[], routes]}
        answer = await bench.http.delete("/accounts/spare")
        assert (answer.status_code, answer.json()["used_by"]) == (409, ["sender_routes/0"])
        assert (await bench.get("/accounts/spare"))["used_by"] == ["sender_routes/0"]
    async with running(tmp_path, pickups=[]) as again:  # the database is the same
        assert (await again.get("/settings"))["sender_routes"] == routes
        told = await Place(again, {}).explain(mail("jo@b.example"))
        assert told["why"] == "goes out through spare"
        assert (await again.http.delete("/accounts/spare")).status_code == 409
        await again.http.patch("/settings", json={"sender_routes": []})
        assert (await again.http.delete("/accounts/spare")).status_code == 204


SENSELESS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("/directories/pickup", {"weights": [1, 1]}, {"/weights": "conflict"}),
    ("/directories/pickup", {"strategy": "by_sender", "weights": [1, 1]}, {"/weights": "conflict"}),
    ("/directories/pickup", {"strategy": "balance", "weights": [1]}, {"/weights": "wrong_length"}),
    ("/directories/pickup", {"strategy": "balance", "weights": [1, 2, 3]}, {"/weights": "wrong_length"}),
    ("/directories/pickup", {"strategy": "balance", "weights": [0, 0]}, {"/weights": "all_zero"}),
    ("/directories/pickup", {"strategy": "balance", "weights": [1, -1]}, {"/weights/1": "out_of_range"}),
    (
        "/accounts/a",
        {"senders": ["ok@x.example", "x.example", "@x..example", "@@", "a b@x.example", "OK@x.example"]},
        {f"/senders/{n}": "wrong_form" for n in (1, 2, 3, 4)} | {"/senders/5": "twice"},
    ),
    (
        "/settings",
        {"sender_routes": [{"senders": [sender], "accounts": ["a"]} for sender in ("jo@x.example", "Jo@X.example")]},
        {"/sender_routes/1/senders/0": "twice"},
    ),
    ("/accounts/a", {"senders": ["@x.example", "@X.example"]}, {"/senders/1": "twice"}),
    ("/accounts/a", {"senders": ["*@x.example"]}, {"/senders/0": "wrong_form"}),
    (
        "/accounts/a",
        {"from_address": "own@z.example", "from_policy": "replace", "senders": ["@x.example"]},
        {"/from_address": "not_among_senders"},
    ),
]


async def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    async with place(tmp_path, {"a": None, "b": None}) as here:
        for path, body, errors in SENSELESS:
            assert await here.refused(path, **body) == errors, body


# --- From -------------------------------------------------------------------------------------------------------------


SIGNED = (
    b"X-Sender: agent@a.example\r\nX-Receiver: jo@example.org\r\n"
    b"DKIM-Signature: v=1; d=a.example; h=From:Sender:To;\r\n b=x\r\n"
    b"From: The Shop <shop@a.example>\r\nSender: agent@a.example\r\nTo: jo@example.org\r\n"
    b"Date: Tue, 24 Nov 2026 09:00:00 +0000\r\nMessage-ID: <1@a.example>\r\n\r\nHi\r\n"
)
REST = b"To: jo@example.org\r\nDate: Tue, 24 Nov 2026 09:00:00 +0000\r\nMessage-ID: <1@a.example>\r\n"


POLICIES = [
    (FromPolicy.KEEP, "own@z.example", "agent@a.example", SIGNED[SIGNED.index(b"DKIM") : -6]),
    (
        FromPolicy.REPLACE,
        "own@z.example",
        "own@z.example",
        REST + b"From: The Shop <own@z.example>\r\n",
    ),
    (
        FromPolicy.REPLY_TO,
        "own@z.example",
        "own@z.example",
        REST + b"From: The Shop <own@z.example>\r\nReply-To: The Shop <shop@a.example>\r\n",
    ),
    (  # From is its own already, but the Sender isn't
        FromPolicy.REPLY_TO,
        "shop@A.example",
        "shop@A.example",
        REST + b"From: The Shop <shop@A.example>\r\n",
    ),
]


async def test_the_from_policy_to_the_octet(tmp_path: Path) -> None:
    async with place(tmp_path, {"main": None}) as here:
        for policy, own, sender, header in POLICIES:
            await here.patch("/accounts/main", from_address=own, from_policy=policy)
            here.bench.drop("x.eml", SIGNED)
            await here.bench.sends(1)
            taken = here.servers["main"].messages.pop()
            assert (taken.sender, taken.body) == (sender, header + b"\r\nHi\r\n"), policy


async def test_an_account_that_replaces_from_takes_everybodys_mail_where_it_may_send_as_itself(tmp_path: Path) -> None:
    own = {"from_address": "own@z.example", "from_policy": FromPolicy.REPLACE, "senders": ("@z.example",)}
    async with place(tmp_path, {"main": None}, accounts={"main": own}) as here:
        here.bench.drop("x.eml", mail("jo@a.example"))
        await here.bench.sends(1)
        assert here.senders("main") == {"own@z.example"}


# --- explain ----------------------------------------------------------------------------------------------------------


async def test_explain_says_of_each_account_why(tmp_path: Path) -> None:
    accounts: Settings = {
        "any": {"from_address": "own@z.example", "from_policy": FromPolicy.REPLY_TO},
        "domain": {"senders": ("@a.example",)},
        "own": {"senders": ("shop@a.example",)},
        "other": {"senders": ("@b.example",)},
        "off": {"enabled": False},
    }
    async with place(tmp_path, dict.fromkeys(accounts), accounts=accounts) as here:

        async def choices(data: bytes) -> dict[str, tuple[bool, str]]:
            rows = (await here.explain(data))["accounts"]
            return {row["account"]: (row["chosen"], row["why"]) for row in rows}

        until_ = "2099-01-01T00:00:00+00:00"
        await here.bench.http.post("/accounts/own/pause", json={"until": "2099-01-01T00:00:00Z"})
        await here.patch("/directories/pickup", strategy="by_sender")
        found = await choices(mail("shop@a.example"))
        assert list(found) == ["own", "domain", "any", "off", "other"]
        assert found == {
            "own": (False, f"is paused until {until_} (its senders name shop@a.example)"),
            "domain": (True, "takes it: its senders name @a.example"),
            "any": (False, "helps out where domain can't (takes any sender)"),
            "off": (False, "is disabled (takes any sender)"),
            "other": (False, "may not send as shop@a.example (its senders do not name this one)"),
        }
        told = await here.explain(mail("jo@c.example"))
        assert (told["outcome"], told["why"]) == ("send", "goes out through any")
        assert told["rewritten"] == [
            "envelope sender: own@z.example",
            "From: own@z.example",
            "Reply-To: jo@c.example",
        ]
        assert (await here.explain(SIGNED))["stripped"] == ["X-Sender", "X-Receiver"]

        await here.patch("/directories/pickup", strategy="balance", weights=[0, 2, 1, 1, 1])
        assert await choices(mail("x@a.example")) == {
            "domain": (True, "takes it: shares the mail by weight 2"),
            "own": (False, "may not send as x@a.example (shares the mail by weight 1)"),
            "other": (False, "may not send as x@a.example (shares the mail by weight 1)"),
            "off": (False, "is disabled (shares the mail by weight 1)"),
            "any": (False, "helps out where domain can't (has weight 0: only if no other may)"),
        }
        await here.patch("/directories/pickup", strategy="failover", weights=None)
        assert (await choices(mail("x@a.example")))["any"] == (True, "takes it: in the directory's order")
        assert (await here.explain(SIGNED))["stripped"] == ["X-Sender", "X-Receiver", "Sender", "DKIM-Signature"]

        await here.patch("/settings", sender_routes=[{"senders": ["@a.example"], "accounts": ["own", "other"]}])
        told = await here.explain(mail("shop@a.example"))
        assert (told["outcome"], told["state"]) == ("wait", "waiting")
        assert told["why"] == f"no account may be used now: is paused until {until_}"
        assert [row["why"] for row in told["accounts"]] == [
            f"is paused until {until_} (a sender route names @a.example)",
            "may not send as shop@a.example (a sender route names @a.example)",
        ]
        told = await here.explain(mail("x@a.example"))
        assert (told["outcome"], told["state"], told["enhanced_code"]) == ("badmail", "badmail", "5.7.1")
        assert told["why"].startswith("no account may send as x@a.example: asked were own, other; add x@a.example or")
        assert here.sent() == dict.fromkeys(accounts, 0)


async def test_mpu_explain_knows_sender_routes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place(tmp_path, {"main": None, "other": None}) as here:
        await here.patch("/directories/pickup", accounts=["main"])
        await here.patch("/settings", sender_routes=[{"senders": ["@a.example"], "accounts": ["other"]}])
        file = here.bench.drop("x.eml", mail("jo@a.example"))
        file.rename(tmp_path / "x.eml")
    monkeypatch.setenv("MPU_DATA_DIR", str(tmp_path / "data"))
    assert mpu("explain", tmp_path / "x.eml", "--directory", "pickup") == 0
    shown = capsys.readouterr().out
    assert "goes out through other" in shown
    assert "takes it: a sender route names @a.example" in shown
    (tmp_path / "spool" / "pickup" / "y.eml").write_bytes(mail("jo@b.example"))
    assert mpu("process", tmp_path / "spool" / "pickup") == 0
    assert "would be sent" in capsys.readouterr().out


async def test_what_one_accounts_server_can_not_take_goes_through_the_next(tmp_path: Path) -> None:
    """No SMTPUTF8 for a recipient, a SIZE that is too small: the account's limits, not the mail's faults."""
    small = Script(extensions=("SIZE 200", "8BITMIME"))
    async with place(tmp_path, {"first": small, "second": None}) as here:
        bench = here.bench
        bench.drop("utf8.eml", mail("app@example.com", to="jo@example.org, j\u00f6@example.org"))
        bench.drop("large.eml", mail("app@example.com", 2) + b"x" * 70 + b"\r\n" + b"y" * 200)
        await bench.drain()
        assert set((await bench.history()).values()) == {"sent"}
        assert {to for message in here.servers["second"].messages for to, _ in message.recipients} == {
            "j\u00f6@example.org",
            "jo@example.org",
        }
        await here.bench.http.post("/accounts/second/pause", json={"reason": "x"})
        bench.drop("later.eml", mail("app@example.com", 3, to="j\u00f6@example.org"))
        await bench.drain()
        (waiting,) = (await bench.get("/queue/messages"))["items"]
        assert waiting["state"] == "deferred"
