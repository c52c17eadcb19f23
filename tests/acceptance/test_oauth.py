"""Accounts with XOAUTH2, from the HTTP interface to a server that wants tokens, with all that token endpoints do."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.domain.account import Directory
from core.store import accounts
from core.transport.remedies import in_a_check
from tests.support.clock import ManualClock
from tests.support.command import mpu
from tests.support.relay import Bench, add_directory, mail, running, until
from tests.support.service import COMMAND, KEY, environment, service
from tests.support.smtp_server import Late, SmtpServer
from tests.support.token_server import HTML, PENDING, REVOKED, Hang, Reply, TokenServer, refusal, service_key

USER = "relay@example.org"


class OneOf(set[str]):
    """Tokens of which each is good."""

    def __eq__(self, other: object) -> bool:
        return other in self

    __hash__ = None


@dataclass
class Office:
    """A relay, the server that it sends to, and the endpoint that gives the tokens."""

    bench: Bench
    smtp: SmtpServer
    tokens: TokenServer
    root: Path

    def body(self, oauth: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        return {
            "host": "127.0.0.1",
            "port": self.smtp.port,
            "security": "none",
            "username": USER,
            "oauth": {"token_url": self.tokens.url, **(oauth or CLIENT)},
            **settings,
        }

    async def put(self, oauth: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        answer = await self.bench.http.put("/accounts/main", json=self.body(oauth, **settings))
        assert answer.status_code in (200, 201), answer.text
        if "pickup" not in self.bench.paths:
            pickup = Directory("pickup", str(self.root / "spool" / "pickup"), ("main",), watch=False)
            await add_directory(self.bench.relay, pickup)
            self.bench.paths["pickup"] = Path(pickup.path)
        shown: dict[str, Any] = answer.json()
        return shown

    async def sends(self, total: int) -> None:
        """So many in all by now, by the drain or by a run beside it that an edit woke."""
        await self.bench.drain()
        await until(lambda: len(self.smtp.messages) == total, f"{total} messages")

    def drop(self, count: int = 1, first: int = 0) -> None:
        for number in range(first, first + count):
            self.bench.drop(f"{number}.eml", mail(number))

    async def pause(self) -> dict[str, Any]:
        """The account's, all mail still there."""
        account = await self.bench.get("/accounts/main")
        pause: dict[str, Any] = account["pause"]
        assert pause is not None
        assert pause["by"] == "service"
        assert self.smtp.messages == []
        queued = (await self.bench.get("/queue/messages"))["items"]
        assert queued
        assert {(one["state"], one["waiting_for"], one["attempts"]) for one in queued} == {
            ("waiting", "account_paused", 0)
        }
        return pause

    async def stored(self) -> str | None:
        """The refresh token in the database."""
        store = self.bench.relay.store
        record = await store.read(lambda session: accounts.get(session, store.secrets, "main"))
        return record.account.oauth.refresh_token if record.account.oauth is not None else None


@asynccontextmanager
async def office(root: Path, tokens: TokenServer | None = None, **settings: Any) -> AsyncIterator[Office]:
    """Every token that was given is good."""
    good = OneOf()
    async with tokens or TokenServer() as tokens:
        tokens.on_token = good.add
        smtp = SmtpServer(mechanisms=["XOAUTH2", "PLAIN"], tokens={USER: good}, require_auth=True)
        async with smtp, running(root, **{"pickups": [], **settings}) as bench:
            yield Office(bench, smtp, tokens, root)


CLIENT = {"provider": "other", "grant": "client_credentials", "client_id": "app", "client_secret": "its-secret"}
REFRESH = {**CLIENT, "grant": "refresh_token", "refresh_token": "refresh-0"}
MICROSOFT = {"provider": "microsoft", "tenant": "example.org"}
GRANTS: list[tuple[dict[str, Any], dict[str, str]]] = [
    (CLIENT, {"grant_type": "client_credentials"}),
    ({**REFRESH, "scope": "mail"}, {"grant_type": "refresh_token", "refresh_token": "refresh-0", "scope": "mail"}),
    (
        {**CLIENT, **MICROSOFT},
        {"grant_type": "client_credentials", "scope": "https://outlook.office365.com/.default"},
    ),
    (
        {**REFRESH, **MICROSOFT},
        {"grant_type": "refresh_token", "scope": "https://outlook.office.com/SMTP.Send offline_access"},
    ),
    ({**REFRESH, "provider": "google"}, {"grant_type": "refresh_token", "scope": "https://mail.google.com/"}),
    (
        {"provider": "google", "grant": "service_account", "service_account_key": service_key()},
        {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"},
    ),
]


NOTHING_KEPT = dict.fromkeys(("client_secret", "refresh_token", "service_account_key"))


@pytest.mark.parametrize("auth", ["auto", "xoauth2"])
async def test_mail_flows_with_every_grant(tmp_path: Path, auth: str) -> None:
    async with office(tmp_path) as one:
        for number, (oauth, asked) in enumerate(GRANTS):
            await one.put({**NOTHING_KEPT, **oauth}, auth=auth)
            one.drop(1, number)
            await one.sends(number + 1)
            form = one.tokens.forms[number]
            assert {name: form[name] for name in asked} == asked
        assert len(one.tokens.forms) == len(GRANTS)
        assert [claims["sub"] for claims in one.tokens.claims] == [USER]
        assert one.tokens.claims[0]["aud"] == one.tokens.url
        assert {login.mechanism for login in one.smtp.logins} == {"XOAUTH2"}
        assert {message.user for message in one.smtp.messages} == {USER}


async def test_a_token_by_hand_is_the_password_where_there_is_no_oauth(tmp_path: Path) -> None:
    async with office(tmp_path) as one:
        one.tokens.on_token("by-hand")
        body = {**one.body(), "oauth": None, "auth": "xoauth2", "password": "by-hand"}
        assert (await one.bench.http.put("/accounts/main", json=body)).status_code == 201
        answer = await one.bench.http.post("/accounts/main/test-message", json={"to": "jo@example.org"})
        assert answer.json()["ok"], answer.text
        assert one.tokens.forms == []


async def test_one_fetch_serves_all_connections_and_checks(tmp_path: Path) -> None:
    async with office(tmp_path) as one:
        await one.put(max_connections=10)
        one.smtp.script.dot = lambda _session, _argument: Late(0.05, "250 2.0.0 taken")
        one.drop(40)
        await one.sends(40)
        assert one.smtp.accepted > 1, "connections side by side"
        assert (await one.bench.http.post("/accounts/main/check")).json()["ok"]
        await one.put(max_connections=9)  # another transport, the same token
        one.drop(1, 100)
        await one.sends(41)
        assert len(one.tokens.forms) == 1


async def test_it_is_fetched_ahead_of_its_end(tmp_path: Path) -> None:
    clock = ManualClock()
    async with office(tmp_path, clock=clock) as one:
        await one.put(messages_per_connection=1)
        one.drop(1, 0)
        await one.sends(1)
        clock.advance(3299)
        one.drop(1, 1)
        await one.sends(2)
        assert len(one.tokens.forms) == 1
        clock.advance(2)
        one.tokens.script = [Hang()]
        one.drop(1, 2)
        await one.sends(3)  # while the next is being fetched
        await until(lambda: len(one.tokens.forms) == 2)


async def test_a_refused_token_is_replaced_and_the_mail_goes(tmp_path: Path) -> None:
    async with office(tmp_path) as one:
        one.tokens.on_token = lambda token: one.smtp.tokens.update({USER: token}) if token != "access-1" else None
        await one.put()
        one.drop(3)
        await one.sends(3)
        assert [login.ok for login in one.smtp.logins].count(False) == 1
        assert len(one.tokens.forms) == 2
        assert (await one.bench.get("/accounts/main"))["pause"] is None
        assert (await one.bench.get("/alerts"))["items"] == []


async def test_two_refusals_pause_the_account_and_nothing_hammers_the_login(tmp_path: Path) -> None:
    async with office(tmp_path) as one:
        one.smtp.tokens.clear()
        await one.put()
        one.drop(5)
        await one.bench.drain()
        pause = await one.pause()
        assert (pause["code"], pause["until"]) == ("login_refused", None)
        await one.bench.drain()
        assert ([login.ok for login in one.smtp.logins], len(one.tokens.forms)) == ([False, False], 2)
        await one.bench.http.post("/accounts/main/resume")
        await until(lambda: len(one.smtp.logins) == 3, "a trial")
        await one.bench.drain()
        assert len(one.smtp.logins) == 3, "one login a trial, not two"
        assert (await one.pause())["code"] == "login_refused"
        one.tokens.on_token = lambda token: one.smtp.tokens.update({USER: token})
        await one.bench.http.post("/accounts/main/resume")
        await until(lambda: len(one.smtp.messages) == 5, "delivery")
        assert (await one.bench.get("/accounts/main"))["pause"] is None


FAULTS: list[tuple[Any, str, bool, str]] = [
    (Reply(500, b"oops"), "token_delayed", True, "by itself"),
    (Reply(429, b"", {"Retry-After": "1800"}), "token_delayed", True, "by itself"),
    (Reply(503, b"", {"Retry-After": "Fri, 15 Jan 2027 08:30:00 GMT"}), "token_delayed", True, "by itself"),
    (Reply(200, b"{"), "token_malformed", True, "token_url"),
    (Reply(200, b"x" * 100_000), "token_malformed", True, "token_url"),
    (Reply(302, b"", {"Location": "http://127.0.0.1:1/elsewhere"}), "token_malformed", True, "token_url"),
    (Reply(200, b"not gzip", {"Content-Encoding": "gzip"}), "token_unreachable", True, "reach"),
    (HTML, "token_malformed", True, "token_url"),
    (Hang(), "token_unreachable", True, "reach"),
    (REVOKED, "token_denied", False, "mpu account login"),
    (refusal("invalid_client", "AADSTS7000222: The client secret is expired."), "token_denied", False, "new one"),
]


@pytest.mark.parametrize(("fault", "code", "passes", "remedy"), FAULTS)
async def test_what_the_endpoint_does_wrong_keeps_the_mail_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, code: str, passes: bool, remedy: str
) -> None:
    patience = 0.5 if isinstance(fault, Hang) else 30
    async with office(tmp_path, clock=ManualClock(), oauth_timeout_seconds=patience) as one:
        await one.put()
        one.tokens.script = [fault]
        one.drop(3)
        await one.bench.drain()
        pause = await one.pause()
        assert (pause["code"], pause["until"] is not None) == (code, passes)
        assert remedy in pause["remedy"]
        assert f"127.0.0.1:{one.tokens.port}" in pause["reason"]
        if isinstance(fault, Reply) and "Retry-After" in fault.headers:
            assert pause["until"] >= "2027-01-15T08:2", "half an hour, less what chance takes off"
        alerts = (await one.bench.get("/alerts"))["items"]
        assert [alert["code"] for alert in alerts if alert["account"] == "main"] == [code]
        await one.bench.drain()
        assert len(one.tokens.forms) == 1, "nothing asks on"
        one.tokens.script = [fault]
        found = (await one.bench.http.post("/accounts/main/check")).json()
        assert "by itself" not in str(found), "a check is made once"
        (step,) = [step for step in found["steps"] if not step["ok"] and step["required"]]
        assert (step["code"], step["remedy"]) == (code, in_a_check(pause["remedy"]))
        assert one.smtp.logins == []
        patient = one.bench.settings.model_copy(update={"oauth_timeout_seconds": 30})  # for the answer that is good
        monkeypatch.setattr(one.bench.relay.tokens, "_settings", patient)
        assert (await one.bench.http.post("/accounts/main/resume")).status_code == 200
        await until(lambda: len(one.smtp.messages) == 3 and not one.bench.names(), "delivery")


async def test_a_dead_endpoint_keeps_the_mail(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        dead = f"http://127.0.0.1:{placeholder.getsockname()[1]}/token"
    async with office(tmp_path) as one:
        await one.put({**CLIENT, "token_url": dead})
        one.drop()
        await one.bench.drain()
        assert (await one.pause())["code"] == "token_unreachable"


async def test_an_account_without_its_first_login_says_what_to_do(tmp_path: Path) -> None:
    async with office(tmp_path) as one:
        await one.put({**REFRESH, "refresh_token": None})
        one.drop()
        await one.bench.drain()
        pause = await one.pause()
        assert (pause["code"], pause["until"]) == ("token_missing", None)
        assert "mpu account login" in pause["remedy"]
        patch = {"oauth": {"refresh_token": "refresh-0"}}
        assert (await one.bench.http.patch("/accounts/main", json=patch)).status_code == 200
        await until(lambda: len(one.smtp.messages) == 1, "delivery")


async def test_a_refresh_token_that_changes_is_stored_sealed_and_is_no_change_of_the_settings(tmp_path: Path) -> None:
    tokens = TokenServer(rotates=True, lifetime=0)
    clock = ManualClock()
    async with office(tmp_path, tokens, clock=clock) as one:
        before = await one.put(REFRESH)
        etag = (await one.bench.http.get("/accounts/main")).headers["ETag"]
        one.drop(1, 0)
        await one.sends(1)
        assert await one.stored() == "refresh-1"
        after = await one.bench.http.get("/accounts/main")
        assert (after.headers["ETag"], after.json()["updated_at"]) == (etag, before["updated_at"]), "no act of anybody"
        answer = await one.bench.http.patch("/accounts/main", json={"max_connections": 2})
        assert answer.status_code == 200, answer.text
        one.drop(1, 1)
        await one.sends(2)
        assert await one.stored() == "refresh-2"
        content = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
        assert b"refresh-" not in content


async def test_after_a_restart_the_stored_refresh_token_is_used(tmp_path: Path) -> None:
    clock = ManualClock()
    async with TokenServer(rotates=True) as tokens:
        async with SmtpServer(mechanisms=["XOAUTH2"], require_auth=True) as smtp:
            tokens.on_token = lambda token: smtp.tokens.update({USER: token})
            async with running(tmp_path, pickups=[], clock=clock) as bench:
                one = Office(bench, smtp, tokens, tmp_path)
                await one.put(REFRESH)
                assert (await bench.http.post("/accounts/main/check")).json()["ok"]
            async with running(tmp_path, pickups=[], clock=clock) as bench:
                assert (await bench.http.post("/accounts/main/check")).json()["ok"]
        assert [form["refresh_token"] for form in tokens.forms] == ["refresh-0", "refresh-1"]


async def test_one_pass_without_the_service_keeps_what_the_refresh_token_becomes(tmp_path: Path) -> None:
    async with office(tmp_path, TokenServer(rotates=True)) as one:
        await one.put(REFRESH)
        one.drop()
        await one.bench.relay.stop()
        arguments = ("process", str(tmp_path / "spool" / "pickup"), "--send", "--data-dir", str(tmp_path / "data"))
        done = await asyncio.to_thread(
            subprocess.run, [*COMMAND, *arguments], env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(one.smtp.messages) == 1
        async with running(tmp_path, pickups=[]) as bench:
            assert await Office(bench, one.smtp, one.tokens, tmp_path).stored() == "refresh-1"


async def test_a_login_with_a_code_lets_the_waiting_mail_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line, over HTTP, into a service that runs."""
    inbox = tmp_path / "spool" / "pickup"
    inbox.mkdir(parents=True)
    tokens = TokenServer()
    tokens.interval, tokens.device = 0, [PENDING, PENDING]
    async with tokens, SmtpServer(mechanisms=["XOAUTH2"], require_auth=True) as smtp:
        tokens.on_token = lambda token: smtp.tokens.update({USER: token})
        starting = service(tmp_path / "data", tmp_path / "spool", MPU_ALLOWED_SMTP_PORTS="0")
        one = await asyncio.to_thread(starting.__enter__)
        try:
            http = httpx.AsyncClient(base_url=one.http.base_url, headers=one.http.headers, timeout=30)
            async with http:
                oauth = {**CLIENT, "grant": "refresh_token", "token_url": tokens.url}
                body = {"host": "127.0.0.1", "port": smtp.port, "security": "none", "username": USER, "oauth": oauth}
                assert (await http.put("/accounts/main", json=body)).status_code == 201
                directory = {"path": str(inbox), "accounts": ["main"]}
                assert (await http.put("/directories/pickup", json=directory)).status_code == 201
                (inbox / "a.eml").write_bytes(mail(1))
                await http.post("/drain", json={})
                assert (await http.get("/accounts/main")).json()["pause"]["code"] == "token_missing"
                monkeypatch.setenv("MPU_URL", str(one.http.base_url))
                monkeypatch.setenv("MPU_API_KEY", KEY)
                monkeypatch.setenv("MPU_OAUTH_CLIENT_SECRET", "its-secret")
                assert await asyncio.to_thread(mpu, "account", "login", "main", "--device-url", tokens.device_url) == 0
                await until(lambda: len(smtp.messages) == 1, "delivery")
                shown = (await http.get("/accounts/main")).json()
                assert (shown["pause"], shown["oauth"]["refresh_token_set"]) == (None, True)
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)
    said = capsys.readouterr()
    assert "WDJB-MJHT" in said.out
    assert "its-secret" not in said.out + said.err + (tmp_path / "data.log").read_text()


async def test_a_check_before_the_save_does_not_use_the_refresh_token_up(tmp_path: Path) -> None:
    """Where each may be used once: the save, which brings the first one, is led to the newest."""
    async with office(tmp_path, TokenServer(rotates=True, lifetime=0)) as one:
        answer = await one.bench.http.post("/accounts/check", json=one.body(REFRESH))
        assert answer.json()["ok"], answer.text
        answer = await one.bench.http.put("/accounts/main?check=true", json=one.body(REFRESH))
        assert answer.status_code == 201, answer.text
        await until(lambda: one.tokens.forms[-1]["refresh_token"] == "refresh-1")
        etag = (await one.bench.http.get("/accounts/main")).headers["ETag"]
        await one.put(REFRESH)
        assert (await one.bench.http.get("/accounts/main")).headers["ETag"] == etag, "the same again is no change"
        one.drop()
        await one.bench.sends(1)
        assert await one.stored() == f"refresh-{len(one.tokens.forms)}"
        assert [form["refresh_token"] for form in one.tokens.forms] == [
            f"refresh-{n}" for n in range(len(one.tokens.forms))
        ]


MOVED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"token_url": "elsewhere"}),
    ({}, {"client_id": "another"}),
    ({"host": "localhost"}, {}),
]


@pytest.mark.parametrize(("account", "oauth"), MOVED)
async def test_an_old_refresh_token_opens_nothing_in_a_save_or_a_check_of_something_else(
    tmp_path: Path, account: dict[str, Any], oauth: dict[str, Any]
) -> None:
    """Who knows the first one need not know what it became."""
    async with office(tmp_path, TokenServer(rotates=True, lifetime=0)) as one, TokenServer() as evil:
        await one.put(REFRESH)
        assert (await one.bench.http.post("/accounts/main/check")).json()["ok"]
        assert await one.stored() == "refresh-1"
        one.tokens.forms.clear()
        if "token_url" in oauth:
            oauth = {"token_url": evil.url}
        body = one.body({**REFRESH, **oauth}, **account)
        await one.bench.http.post("/accounts/check", json=body)
        patch = {"oauth": {**oauth, "client_secret": "its-secret", "refresh_token": "refresh-0"}, **account}
        answer = await one.bench.http.patch("/accounts/main", json=patch)
        assert answer.status_code == 200, answer.text
        assert await one.stored() == "refresh-0"
        await one.bench.http.post("/accounts/main/check")
        asked = one.tokens.forms + evil.forms
        assert {form["refresh_token"] for form in asked} == {"refresh-0"}
        assert bool(evil.forms) == ("token_url" in oauth), "he was asked with what he knew"


async def test_accounts_that_share_a_login_share_what_it_becomes(tmp_path: Path) -> None:
    async with office(tmp_path, TokenServer(rotates=True, lifetime=0)) as one:
        await one.put(REFRESH)
        assert (await one.bench.http.put("/accounts/other", json=one.body(REFRESH))).status_code == 201
        for name in ("main", "other", "main", "other"):
            assert (await one.bench.http.post(f"/accounts/{name}/check")).json()["ok"]
        assert await one.stored() == "refresh-4"
