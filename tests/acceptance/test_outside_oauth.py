"""OAuth secrets outside the database, through the HTTP interface: used, replaced, missing, and out of reach."""

from __future__ import annotations

import asyncio
import json
import subprocess
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from core.domain.account import Directory
from core.store import outside_tokens
from core.store.tables import OutsideTokenRow
from tests.acceptance.test_oauth import CLIENT, USER, Office, OneOf, office
from tests.support.clock import ManualClock
from tests.support.command import mpu
from tests.support.relay import Bench, mail, running, until
from tests.support.service import COMMAND, KEY, environment, service
from tests.support.smtp_server import SmtpServer
from tests.support.token_server import TokenServer, refusal, service_key

SECRET = "its-secret"
KEYS = json.dumps(service_key(), indent=2) + "\n"
REFRESH = {**CLIENT, "grant": "refresh_token", "client_secret": None}
ROBOT: dict[str, Any] = {"provider": "google", "grant": "service_account"}


def outside(root: Path, **contents: str) -> Path:
    """Where the orchestrator mounts secrets, with these."""
    folder = root / "secrets"
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(content)
    return folder


def place(root: Path, tokens: TokenServer | None = None, **settings: Any) -> AbstractAsyncContextManager[Office]:
    """An office whose secrets lie in files."""
    return office(root, tokens, **{"secret_files": (root / "secrets",), **settings})


async def checks(one: Office) -> dict[str, Any]:
    found: dict[str, Any] = (await one.bench.http.post("/accounts/main/check")).json()
    return found


async def rows(one: Office) -> int:
    return await one.bench.relay.store.read(lambda session: len(session.exec(select(OutsideTokenRow)).all()))


def reference(root: Path, kind: str, name: str) -> str:
    return {
        "file": f"file:{root}/secrets/{name}",
        "env": f"env:MPU_SECRET_{name.upper()}",
        "credential": f"credential:{name}",
    }[kind]


# --- used, and never shown --------------------------------------------------------------------------------------------

SOURCES: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("client_secret", {**CLIENT, "client_secret": None}, {"client_secret": SECRET}),
    ("refresh_token", {**REFRESH, "client_secret": SECRET}, {"refresh_token": "refresh-0"}),
    ("service_account_key", ROBOT, {}),
]
CONTENT = {"client_secret": SECRET, "refresh_token": "refresh-0", "service_account_key": KEYS}


@pytest.mark.parametrize("kind", ["file", "env", "credential"])
@pytest.mark.parametrize(("name", "oauth", "asked"), SOURCES)
async def test_mail_goes_with_oauth_secrets_from_outside_and_nothing_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, oauth: dict[str, Any], asked: dict[str, str]
) -> None:
    folder = outside(tmp_path, **{name: CONTENT[name] + "\n"})
    monkeypatch.setenv(f"MPU_SECRET_{name.upper()}", CONTENT[name])
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    where = reference(tmp_path, kind, name)
    oauth = {**oauth, f"{name}_from": where}
    files = () if kind == "credential" else (folder,)
    async with place(tmp_path, secret_files=files) as one:
        shown = (await one.put(oauth))["oauth"]
        assert (shown[f"{name}_from"], shown[f"{name}_set"]) == (where, True)
        assert (await one.bench.get("/accounts"))["items"][0]["oauth"] == shown
        one.drop()
        await one.sends(1)
        assert {key: one.tokens.forms[0][key] for key in asked} == asked
        found = await checks(one)
        assert found["ok"], found
        (step,) = [step for step in found["steps"] if step["step"] == "token"]
        assert step["detail"] == f"an access token is there by {name}_from {where}"
        assert (await one.bench.http.post("/accounts/check", json=one.body(oauth))).json()["ok"]
        etag = (await one.bench.http.get("/accounts/main")).headers["ETag"]
        await one.put(oauth)
        assert (await one.bench.http.get("/accounts/main")).headers["ETag"] == etag, "the same again is no change"
        said = [await one.bench.get(path) for path in ("/accounts/main", "/audit", "/settings", "/health", "/alerts")]
        assert where in json.dumps(said)
    secret = json.loads(KEYS)["private_key"].splitlines()[1] if name == "service_account_key" else CONTENT[name]
    content = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir() if path.is_file())
    assert where.encode() in content
    assert secret.encode() not in content + json.dumps([*said, found]).encode()


# --- what may be saved ------------------------------------------------------------------------------------------------


async def refused(one: Office, oauth: dict[str, Any], pointer: str, code: str, words: str) -> None:
    calls = [
        await one.bench.http.put("/accounts/main", json=one.body(oauth)),
        await one.bench.http.post("/accounts", json={"name": "other", **one.body(oauth)}),
        await one.bench.http.post("/accounts/check", json=one.body(oauth)),
        await one.bench.http.put("/accounts/main?check=true", json=one.body(oauth)),
    ]
    for answer in calls:
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["errors"]
        assert (error["pointer"], error["code"]) == (pointer, code), error
        assert words in error["detail"]


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("client_secret", {**CLIENT, "client_secret": None}, "file:/etc/shadow", "MPU_SECRET_FILES"),
    ("client_secret", {**CLIENT, "client_secret": None}, "env:MPU_SECRET_KEY", "setting of the service"),
    ("refresh_token", {**REFRESH, "client_secret": SECRET}, "file:/proc/self/environ", "MPU_SECRET_FILES"),
    ("refresh_token", {**REFRESH, "client_secret": SECRET}, "env:PATH", "MPU_SECRET_ENV_PREFIX"),
    ("service_account_key", ROBOT, "file:{root}/data/secret.key", "MPU_SECRET_FILES"),
    ("service_account_key", ROBOT, "credential:..", "credential"),
]


@pytest.mark.parametrize(("name", "oauth", "where", "words"), WRONG)
async def test_nothing_else_can_be_named(
    tmp_path: Path, name: str, oauth: dict[str, Any], where: str, words: str
) -> None:
    outside(tmp_path)
    async with place(tmp_path) as one:
        where = where.format(root=tmp_path)
        await refused(one, {**oauth, f"{name}_from": where}, f"/oauth/{name}_from", "not_allowed", words)
        assert one.tokens.forms == []
        assert one.smtp.accepted == 0


async def test_each_excludes_the_secret_itself_and_what_has_no_use_is_refused(tmp_path: Path) -> None:
    folder = outside(tmp_path, **CONTENT)
    both = {name: f"file:{folder}/{name}" for name in CONTENT}
    cases: list[tuple[dict[str, Any], str]] = [
        ({**CLIENT, "client_secret_from": both["client_secret"]}, "client_secret"),
        ({**CLIENT, **REFRESH, "client_secret": SECRET, "refresh_token": "x"}, "refresh_token"),
        ({**ROBOT, "service_account_key": service_key()}, "service_account_key"),
    ]
    async with place(tmp_path) as one:
        for oauth, name in cases:
            oauth = {**oauth, f"{name}_from": both[name]}
            await refused(one, oauth, f"/oauth/{name}_from", f"excludes_{name}", f'"{name}": null')
        useless = {**CLIENT, "refresh_token_from": both["refresh_token"]}
        await refused(one, useless, "/oauth/refresh_token_from", "conflict", "no use")
        await one.put()
        patch: dict[str, Any] = {"client_secret_from": both["client_secret"]}
        for body in (patch, {**patch, "client_secret": SECRET}):
            answer = await one.bench.http.patch("/accounts/main", json={"oauth": body})
            assert answer.json()["errors"][0]["code"] == "excludes_client_secret", "the saved one stays unless removed"
        answer = await one.bench.http.patch("/accounts/main", json={"oauth": {**patch, "client_secret": None}})
        assert answer.status_code == 200, answer.text
        assert (await checks(one))["ok"]
        answer = await one.bench.http.patch("/accounts/main", json={"oauth": {"client_secret": SECRET}})
        assert answer.status_code == 422
        body = {"client_secret": SECRET, "client_secret_from": None}
        answer = await one.bench.http.patch("/accounts/main", json={"oauth": body})
        assert (answer.status_code, answer.json()["oauth"]["client_secret_from"]) == (200, None)


MOVES: list[dict[str, Any]] = [
    {"port": 1},
    {"host": "localhost"},
    {"oauth": {"client_id": "other"}},
    {"oauth": {"token_url": "http://127.0.0.1:1/token"}},
]


async def test_who_else_gets_it_needs_it_named_again_and_a_try_needs_an_admin(tmp_path: Path) -> None:
    folder = outside(tmp_path, **CONTENT)
    oauth = {**CLIENT, "client_secret": None, "client_secret_from": f"file:{folder}/client_secret"}
    async with place(tmp_path) as one:
        await one.put(oauth)
        for move in MOVES:
            answer = await one.bench.http.patch("/accounts/main", json=move)
            (error,) = answer.json()["errors"]
            assert (error["pointer"], error["code"]) == ("/oauth/client_secret_from", "secret_needed"), move
            named = {**move, "oauth": {**move.get("oauth", {}), "client_secret_from": oauth["client_secret_from"]}}
            assert (await one.bench.http.patch("/accounts/main", json=named)).status_code == 200, move
            await one.put(oauth)
        made = await one.bench.http.post("/keys", json={"name": "operator", "scopes": ["operate"]})
        header = {"Authorization": f"Bearer {made.json()['key']}"}
        answer = await one.bench.http.post("/accounts/check", json=one.body(oauth), headers=header)
        assert (answer.status_code, answer.json()["required_scope"]) == (403, "admin")
        assert (await one.bench.http.put("/accounts/main", json=one.body(oauth), headers=header)).status_code == 403
        assert one.tokens.forms == []
        assert (await one.bench.http.post("/accounts/main/check", headers=header)).json()["ok"], "a saved one"


# --- read again -------------------------------------------------------------------------------------------------------


async def test_a_secret_that_is_replaced_while_a_token_is_asked_for_is_tried_before_anybody_is_blamed(
    tmp_path: Path,
) -> None:
    folder = outside(tmp_path, client_secret="old")
    oauth = {**CLIENT, "client_secret": None, "client_secret_from": f"file:{folder}/client_secret"}
    async with place(tmp_path) as one:
        await one.put(oauth)
        give = one.tokens._answer

        def rotate(path: str, form: dict[str, str]) -> Any:
            (folder / "client_secret").write_text(SECRET)
            return give(path, form)

        one.tokens._answer = rotate  # type: ignore[method-assign]  # on its way
        one.drop()
        await one.sends(1)
        assert [form["client_secret"] for form in one.tokens.forms] == ["old", SECRET]
        assert (await one.bench.get("/accounts/main"))["pause"] is None


async def test_the_same_wrong_secret_is_tried_once_and_the_next_token_takes_the_new_one(tmp_path: Path) -> None:
    folder = outside(tmp_path, client_secret="wrong-secret")
    oauth = {**CLIENT, "client_secret": None, "client_secret_from": f"file:{folder}/client_secret"}
    async with place(tmp_path) as one:
        await one.put(oauth)
        one.drop()
        await one.bench.drain()
        pause = await one.pause()
        assert (pause["code"], len(one.tokens.forms)) == ("token_denied", 1)
        assert f"client_secret_from file:{folder}/client_secret" in pause["remedy"]
        assert "wrong-secret" not in json.dumps(pause)
        (folder / "client_secret").write_text(SECRET)
        await one.bench.http.post("/accounts/main/resume")
        await until(lambda: one.smtp.messages and not one.bench.names(), "delivery")


async def test_a_token_that_the_server_refuses_is_fetched_anew_with_what_lies_there_now(tmp_path: Path) -> None:
    folder = outside(tmp_path, refresh_token="refresh-0")
    async with place(tmp_path) as one:
        one.tokens.refresh_tokens.add("of-the-right-mailbox")
        one.smtp.tokens.clear()
        one.tokens.on_token = lambda token: one.smtp.tokens.update({USER: token}) if token != "access-1" else None
        await one.put({**REFRESH, "client_secret": SECRET, "refresh_token_from": f"file:{folder}/refresh_token"})

        def replace_it(_session: Any, _argument: str) -> str:
            (folder / "refresh_token").write_text("of-the-right-mailbox")
            return "535 5.7.3 Authentication unsuccessful"

        one.smtp.script.auth = [replace_it]
        one.drop()
        await one.sends(1)
        assert [form["refresh_token"] for form in one.tokens.forms] == ["refresh-0", "of-the-right-mailbox"]


async def test_a_missing_secret_pauses_the_account_keeps_the_mail_and_ends_by_itself(tmp_path: Path) -> None:
    folder, clock = outside(tmp_path), ManualClock()
    async with place(tmp_path, clock=clock) as one:
        where = f"file:{folder}/key.json"
        shown = await one.put({**ROBOT, "service_account_key_from": where})
        assert shown["oauth"]["service_account_key_set"] is False
        one.drop()
        await one.bench.drain()
        pause = await one.pause()
        assert pause["code"] == "secret_missing"
        assert f"{where} can't be read: No such file" in pause["reason"]
        assert pause["until"] is not None
        alerts = (await one.bench.get("/alerts"))["items"]
        assert ("secret_missing", "main") in [(alert["code"], alert["account"]) for alert in alerts]
        found = await checks(one)
        failed = [step for step in found["steps"] if step["required"] and not step["ok"]]
        assert [(step["step"], step["code"]) for step in failed] == [("token", "secret_missing")]
        assert one.tokens.forms == []
        (folder / "key.json").write_text(KEYS)
        clock.advance(31)
        await one.sends(1)
        shown = await one.bench.get("/accounts/main")
        assert (shown["pause"], shown["oauth"]["service_account_key_set"]) == (None, True)


async def test_a_file_that_is_no_key_file_says_so(tmp_path: Path) -> None:
    folder = outside(tmp_path, key="two\nlines that are no JSON\n")
    async with place(tmp_path) as one:
        await one.put({**ROBOT, "service_account_key_from": f"file:{folder}/key"})
        (step,) = [step for step in (await checks(one))["steps"] if step["step"] == "token"]
        assert (step["ok"], step["code"]) == (False, "token_denied")
        assert "is no JSON" in step["detail"]
        assert f"file:{folder}/key" in step["remedy"]


# --- a refresh token that the provider replaces -----------------------------------------------------------------------


def rotating() -> TokenServer:
    return TokenServer(rotates=True, lifetime=0)


def refresh_from(folder: Path) -> dict[str, Any]:
    return {**REFRESH, "client_secret": SECRET, "refresh_token_from": f"file:{folder}/refresh_token"}


def used(tokens: TokenServer) -> list[str]:
    return [form["refresh_token"] for form in tokens.forms]


async def test_the_kept_one_is_used_by_all_accounts_and_saves_and_a_new_one_outside_wins(tmp_path: Path) -> None:
    folder = outside(tmp_path, refresh_token="refresh-0")
    async with place(tmp_path, rotating()) as one:
        oauth = refresh_from(folder)
        assert (await one.bench.http.post("/accounts/check", json=one.body(oauth))).json()["ok"], "before the save"
        etags = set()
        for _ in range(2):
            await one.put(oauth)
            assert (await checks(one))["ok"]
            etags.add((await one.bench.http.get("/accounts/main")).headers["ETag"])
        assert len(etags) == 1, "no act of anybody"
        (folder / "same").write_text("refresh-0\n")
        other = one.body({**oauth, "refresh_token_from": f"file:{folder}/same"})
        assert (await one.bench.http.put("/accounts/other", json=other)).status_code == 201
        assert (await one.bench.http.post("/accounts/other/check")).json()["ok"]
        assert used(one.tokens) == [f"refresh-{n}" for n in range(4)]
        one.tokens.refresh_tokens.add("by-a-new-login")
        (folder / "refresh_token").write_text("by-a-new-login")
        assert (await checks(one))["ok"]
        assert (await checks(one))["ok"]
        assert used(one.tokens)[4:] == ["by-a-new-login", "refresh-5"]
        assert await rows(one) == 2
        content = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
        assert b"refresh-0" not in content
        assert b"refresh-5" not in content


def stored_one() -> dict[str, Any]:
    return {**REFRESH, "client_secret": SECRET, "refresh_token": "refresh-0"}


async def test_the_successor_is_found_where_a_token_moves_outside_and_back(tmp_path: Path) -> None:
    """Each is good for one use: who moves it has the first one only."""
    folder = outside(tmp_path, refresh_token="refresh-0")
    out = {"refresh_token": None, "refresh_token_from": f"file:{folder}/refresh_token"}
    back = {"refresh_token": "refresh-0", "refresh_token_from": None}
    good = OneOf()
    smtp = SmtpServer(mechanisms=["XOAUTH2"], tokens={USER: good}, require_auth=True)
    async with rotating() as tokens, smtp:
        tokens.on_token = good.add
        for patches in (({}, out), (back,), (out, back)):  # a start between them
            async with running(tmp_path, pickups=[], secret_files=(folder,)) as bench:
                one = Office(bench, smtp, tokens, tmp_path)
                for patch in patches:
                    if not patch:
                        await one.put(stored_one())
                    answer = await bench.http.patch("/accounts/main", json={"oauth": patch})
                    assert answer.status_code == 200, answer.text
                    for _ in range(2):
                        found = await checks(one)
                        assert found["ok"], (patch, found)
        assert used(tokens) == [f"refresh-{n}" for n in range(10)]
    content = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir() if path.is_file())
    assert not [n for n in range(11) if f"refresh-{n}".encode() in content], "sealed"


async def test_one_that_is_stored_and_outside_is_the_same_for_both(tmp_path: Path) -> None:
    folder = outside(tmp_path, refresh_token="refresh-0")
    async with place(tmp_path, rotating()) as one:
        await one.put(stored_one())
        other = one.body(refresh_from(folder))
        assert (await one.bench.http.put("/accounts/other", json=other)).status_code == 201
        for name in ("other", "main", "main", "other", "other", "main", "other", "main"):
            found = (await one.bench.http.post(f"/accounts/{name}/check")).json()
            assert found["ok"], (name, found)
        assert used(one.tokens) == [f"refresh-{n}" for n in range(8)]
        assert await rows(one) == 1, "of what was used up on the way nothing stays"


async def test_the_successor_of_a_stored_one_goes_nowhere_else_by_a_reference(tmp_path: Path) -> None:
    folder = outside(tmp_path, refresh_token="refresh-0")
    async with place(tmp_path, rotating()) as one, TokenServer() as evil:
        await one.put(stored_one())
        assert (await checks(one))["ok"]
        one.tokens.forms.clear()
        for body in (
            one.body({**refresh_from(folder), "token_url": evil.url}),
            one.body(refresh_from(folder), host="localhost"),
            one.body({**stored_one(), "token_url": evil.url}),
            one.body(stored_one(), host="localhost"),
        ):
            await one.bench.http.post("/accounts/check", json=body)
        assert set(used(one.tokens) + used(evil)) == {"refresh-0"}


async def test_it_goes_nowhere_else(tmp_path: Path) -> None:
    """Who may name the reference has the token outside sent where he likes, but not what it became."""
    folder = outside(tmp_path, refresh_token="refresh-0")
    async with place(tmp_path, rotating()) as one, TokenServer() as evil:
        oauth = refresh_from(folder)
        await one.put(oauth)
        assert (await checks(one))["ok"]
        one.tokens.forms.clear()
        for body in (
            one.body({**oauth, "token_url": evil.url}),
            one.body(oauth, host="localhost"),
            one.body({**oauth, "client_id": "another"}),
        ):
            await one.bench.http.post("/accounts/check", json=body)
        assert len(evil.forms) == 1
        assert set(used(one.tokens) + used(evil)) == {"refresh-0"}


async def test_after_a_kill_and_without_the_service_the_kept_one_is_used(tmp_path: Path) -> None:
    """A service that was killed, `mpu process`, a rotation of the encryption key, a copy that is brought back."""
    folder = outside(tmp_path, refresh_token="refresh-0")
    (tmp_path / "spool" / "pickup").mkdir(parents=True)
    good = OneOf()
    more = {"MPU_ALLOWED_SMTP_PORTS": "0", "MPU_SECRET_FILES": json.dumps([str(folder)])}
    smtp = SmtpServer(mechanisms=["XOAUTH2"], tokens={USER: good}, require_auth=True)
    data = tmp_path / "data"
    async with rotating() as tokens, smtp:
        tokens.on_token = good.add

        def first() -> None:
            with service(data, tmp_path / "spool", **more) as one:
                body = Office(Bench(None, None, tmp_path, None), smtp, tokens, tmp_path).body(refresh_from(folder))  # type: ignore[arg-type]  # no relay is asked
                assert one.http.put("/accounts/main", json=body).status_code == 201
                pickup = {"path": str(tmp_path / "spool" / "pickup"), "accounts": ["main"], "watch": False}
                assert one.http.put("/directories/pickup", json=pickup).status_code == 201
                assert one.post("/accounts/main/check")["ok"]
                assert mpu("backup", tmp_path / "copy", "--with-key", "--data-dir", data) == 0
                one.kill()

        def pass_once() -> None:
            (tmp_path / "spool" / "pickup" / f"{len(tokens.forms)}.eml").write_bytes(mail(len(tokens.forms)))
            arguments = ("process", str(tmp_path / "spool" / "pickup"), "--send", "--data-dir", str(data))
            done = subprocess.run(
                [*COMMAND, *arguments], env=environment(**more), capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr

        await asyncio.to_thread(first)
        assert await asyncio.to_thread(mpu, "rotate-secrets", "--data-dir", data) == 0
        await asyncio.to_thread(pass_once)
        assert used(tokens) == ["refresh-0", "refresh-1"]
        tokens.refresh_tokens.add("refresh-1")
        assert await asyncio.to_thread(mpu, "restore", tmp_path / "copy", "--data-dir", data) == 0
        await asyncio.to_thread(pass_once)
        assert used(tokens)[-1] == "refresh-1", "the copy's"
        assert len(smtp.messages) == 2


async def test_a_lost_encryption_key_stops_that_account_only_until_a_new_token_lies_there(tmp_path: Path) -> None:
    folder, clock = outside(tmp_path, refresh_token="refresh-0"), ManualClock()
    async with rotating() as tokens:
        good = OneOf()
        tokens.on_token = good.add
        smtp = SmtpServer(mechanisms=["XOAUTH2"], tokens={USER: good}, require_auth=True)
        tokens.clients["app"] = None
        oauth = {**refresh_from(folder), "client_secret": None}
        async with smtp:
            async with running(tmp_path, pickups=[], clock=clock, secret_files=(folder,)) as bench:
                one = Office(bench, smtp, tokens, tmp_path)
                await one.put(oauth)
                assert (await checks(one))["ok"]
            (tmp_path / "data" / "secret.key").unlink()
            pickup = Directory("pickup", str(tmp_path / "spool" / "pickup"), ("main",), watch=False)
            async with running(tmp_path, pickups=[pickup], clock=clock, secret_files=(folder,)) as bench:
                one = Office(bench, smtp, tokens, tmp_path)
                one.drop()
                await bench.drain()
                pause = await one.pause()
                assert (pause["code"], used(tokens)) == ("secret_missing", ["refresh-0"]), "the old one is used up"
                assert f"file:{folder}/refresh_token" in pause["reason"]
                assert "the encryption key does not open" in pause["reason"]
                assert "new refresh token" in pause["remedy"]
                tokens.refresh_tokens.add("by-a-new-login")
                (folder / "refresh_token").write_text("by-a-new-login")
                clock.advance(31)
                await one.sends(1)
            await asyncio.to_thread(mpu, "rotate-secrets", "--data-dir", tmp_path / "data")
            async with running(tmp_path, pickups=[], clock=clock, secret_files=(folder,)) as bench:
                assert (await checks(Office(bench, smtp, tokens, tmp_path)))["ok"]


async def test_what_nobody_used_for_long_is_forgotten(tmp_path: Path) -> None:
    folder, clock = outside(tmp_path, refresh_token="refresh-0"), ManualClock()
    async with place(tmp_path, rotating(), clock=clock) as one:
        await one.put(refresh_from(folder))
        assert (await checks(one))["ok"]
        one.tokens.rotates = False
        for _ in range(3):
            clock.advance(outside_tokens.KEPT_SECONDS - 86_400)
            assert (await checks(one))["ok"]
            await one.bench.relay._forget_old()
            assert await rows(one) == 1
        clock.advance(outside_tokens.KEPT_SECONDS + 1)
        await one.bench.relay._forget_old()
        assert await rows(one) == 0


async def test_a_denied_refresh_token_says_where_a_new_one_belongs(tmp_path: Path) -> None:
    folder = outside(tmp_path, refresh_token="refresh-0")
    async with place(tmp_path) as one:
        one.tokens.script = [refusal("invalid_grant", "expired")]
        await one.put(refresh_from(folder))
        (step,) = [step for step in (await checks(one))["steps"] if step["step"] == "token"]
        assert (step["ok"], step["code"]) == (False, "token_denied")
        assert f"refresh_token_from file:{folder}/refresh_token" in step["remedy"]


async def test_a_login_with_a_code_puts_its_token_in_the_place_of_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = outside(tmp_path, client_secret=SECRET, refresh_token="ended")
    tokens = TokenServer()
    tokens.interval = 0
    good = OneOf()
    smtp = SmtpServer(mechanisms=["XOAUTH2"], tokens={USER: good}, require_auth=True)
    more = {"MPU_ALLOWED_SMTP_PORTS": "0", "MPU_SECRET_FILES": json.dumps([str(folder)])}
    (tmp_path / "spool").mkdir()
    async with tokens, smtp:
        tokens.on_token = good.add
        oauth = {**refresh_from(folder), "client_secret": None, "client_secret_from": f"file:{folder}/client_secret"}
        body = Office(Bench(None, None, tmp_path, None), smtp, tokens, tmp_path).body(oauth)  # type: ignore[arg-type]  # no relay is asked

        def run() -> None:
            with service(tmp_path / "data", tmp_path / "spool", **more) as one:
                assert one.http.put("/accounts/main", json=body).status_code == 201
                monkeypatch.setenv("MPU_URL", str(one.http.base_url))
                monkeypatch.setenv("MPU_API_KEY", KEY)
                assert mpu("account", "check", "main") == 1
                assert mpu("account", "login", "main", "--device-url", tokens.device_url) == 2, "needs it once"
                monkeypatch.setenv("MPU_OAUTH_CLIENT_SECRET", SECRET)
                assert mpu("account", "login", "main", "--device-url", tokens.device_url) == 0
                shown = one.http.get("/accounts/main").json()["oauth"]
                assert (shown["refresh_token_from"], shown["refresh_token_set"]) == (None, True)
                assert shown["client_secret_from"] == oauth["client_secret_from"]
                assert mpu("account", "check", "main") == 0

        await asyncio.to_thread(run)
    said = capsys.readouterr()
    assert f"file:{folder}/refresh_token" in said.out
    assert "by client_secret_from" in said.out.replace("\n", " ")
    assert SECRET not in said.out + said.err
