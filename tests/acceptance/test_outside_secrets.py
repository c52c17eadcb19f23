"""Passwords that lie outside the database, through the HTTP interface: used, rotated, missing, and out of reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.domain.account import Directory
from tests.support.clock import ManualClock
from tests.support.relay import SIMPLE, Bench, add_directory, running, until
from tests.support.smtp_server import SmtpServer

SECRET = "pl4nted-S3cret-7Q"
USER = "shop@example.org"


def place(root: Path) -> Path:
    """Where the orchestrator mounts secrets."""
    folder = root / "secrets"
    folder.mkdir(exist_ok=True)
    return folder


def body(server: SmtpServer, password_from: str | None, **more: Any) -> dict[str, Any]:
    base = {"host": "127.0.0.1", "port": server.port, "security": "none", "username": USER}
    return {**base, "password_from": password_from, **more}


def login_server(password: str = SECRET) -> SmtpServer:
    return SmtpServer(credentials={USER: password}, mechanisms=["PLAIN"], require_auth=True)


async def put(bench: Bench, value: dict[str, Any], status: int = 201) -> dict[str, Any]:
    answer = await bench.http.put("/accounts/main", json=value)
    assert answer.status_code == status, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def with_directory(bench: Bench) -> None:
    await add_directory(bench.relay, Directory("pickup", str(bench.root / "spool" / "pickup"), ("main",), watch=False))
    bench.paths["pickup"] = bench.root / "spool" / "pickup"


@pytest.mark.parametrize("kind", ["file", "env", "credential"])
async def test_mail_goes_with_a_password_from_outside_and_nothing_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = place(tmp_path)
    (folder / "office").write_text(SECRET + "\n")
    monkeypatch.setenv("MPU_SECRET_OFFICE", SECRET)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    name = {"file": f"{folder}/office", "env": "MPU_SECRET_OFFICE", "credential": "office"}[kind]
    reference = f"{kind}:{name}"
    files = () if kind == "credential" else (folder,)
    async with login_server() as server, running(tmp_path, pickups=[], secret_files=files) as bench:
        shown = await put(bench, body(server, reference))
        assert (shown["password_from"], shown["password_set"]) == (reference, True)
        assert (await bench.get("/accounts"))["items"][0]["password_set"] is True
        await with_directory(bench)
        bench.drop("a.eml", SIMPLE)
        await bench.sends(1)
        checked = (await bench.http.post("/accounts/main/check")).json()
        assert checked["ok"], checked
        assert checked["steps"][0] == {**checked["steps"][0], "step": "secret", "ok": True, "detail": reference}
        assert (await bench.http.post("/accounts/check", json=body(server, reference))).json()["ok"]
        sent = await bench.http.post("/accounts/main/test-message", json={"to": "jo@example.org"})
        assert sent.json()["ok"], sent.text
        said = [await bench.get(path) for path in ("/accounts/main", "/audit", "/settings", "/health", "/alerts")]
        assert reference in json.dumps(said)
        assert SECRET not in json.dumps([*said, checked, sent.json()])
    content = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir() if path.is_file())
    assert reference.encode() in content
    assert SECRET.encode() not in content


@pytest.mark.parametrize("form", ["a hard link", "secret.key without its comment", "a key made over HTTP"])
async def test_the_services_own_keys_can_not_be_named_and_go_nowhere(tmp_path: Path, form: str) -> None:
    """Where they lie in the data directory, as they do unless told otherwise. MPU looks at each login, too."""
    folder, file = place(tmp_path), place(tmp_path) / "office"
    async with SmtpServer() as server, running(tmp_path, pickups=[], secret_files=(folder,)) as bench:
        data = tmp_path / "data"
        reference = f"file:{file}"
        await put(bench, body(server, reference))  # it is not there yet
        if form == "a hard link":
            file.hardlink_to(data / "secret.key")
        elif form == "a key made over HTTP":
            made = await bench.http.post("/keys", json={"name": "other", "scopes": ["read"]})
            file.write_text(made.json()["key"])
        else:
            lines = (data / "secret.key").read_text().splitlines()
            file.write_text("\n".join(line for line in lines if not line.startswith("#")))
        key_in_oauth = {
            "provider": "microsoft",
            "tenant": "contoso.example",
            "grant": "client_credentials",
            "client_id": "app",
            "client_secret_from": reference,
        }
        for name, more in (("b", {}), ("c", {"oauth": key_in_oauth, "password_from": None})):
            refused = await bench.http.put(f"/accounts/{name}", json=body(server, reference) | more)
            assert refused.status_code == 422, refused.text
            (error,) = refused.json()["errors"]
            pointer = "/oauth/client_secret_from" if more else "/password_from"
            assert (error["pointer"], error["code"]) == (pointer, "not_allowed")
            assert "key of the service" in error["detail"]
        checked = (await bench.http.post("/accounts/main/check")).json()
        assert not checked["ok"]
        assert "key of the service" in checked["steps"][0]["cause"] + checked["steps"][0]["detail"]
        await with_directory(bench)
        bench.drop("a.eml", SIMPLE)
        await bench.drain()
        pause = (await bench.get("/accounts/main"))["pause"]
        assert pause["code"] == "secret_missing"
        assert server.logins == []


async def test_a_password_that_is_replaced_while_a_login_is_under_way_is_tried_before_anybody_is_blamed(
    tmp_path: Path,
) -> None:
    folder = place(tmp_path)
    (folder / "office").write_text("old")
    async with login_server() as server, running(tmp_path, pickups=[], secret_files=(folder,)) as bench:
        await put(bench, body(server, f"file:{folder}/office"))
        await with_directory(bench)

        def rotate(_session: Any, _argument: str) -> str:
            (folder / "office").write_text(SECRET)
            return "535 5.7.8 no"

        server.script.auth = [rotate]
        bench.drop("a.eml", SIMPLE)
        await bench.sends(1)
        assert [login.ok for login in server.logins] == [False, True]
        assert (await bench.get("/accounts/main"))["pause"] is None


async def test_the_same_wrong_password_is_tried_once_and_the_next_login_takes_the_new_one(tmp_path: Path) -> None:
    folder = place(tmp_path)
    (folder / "office").write_text("wrong")
    async with login_server() as server, running(tmp_path, pickups=[], secret_files=(folder,)) as bench:
        await put(bench, body(server, f"file:{folder}/office"))
        await with_directory(bench)
        bench.drop("a.eml", SIMPLE)
        await bench.drain()
        pause = (await bench.get("/accounts/main"))["pause"]
        assert (pause["code"], len(server.logins)) == ("login_refused", 1)
        assert "535 5.7.8 authentication failed" in pause["reason"]
        assert "User name or password is wrong" in pause["reason"]
        (folder / "office").write_text(SECRET)
        await bench.http.post("/accounts/main/resume")
        await until(lambda: server.messages and not bench.names(), "delivery")


async def test_a_missing_secret_pauses_the_account_keeps_the_mail_and_ends_by_itself(tmp_path: Path) -> None:
    folder, clock = place(tmp_path), ManualClock()
    async with login_server() as server, running(tmp_path, pickups=[], clock=clock, secret_files=(folder,)) as bench:
        shown = await put(bench, body(server, f"file:{folder}/office"))
        assert shown["password_set"] is False
        await with_directory(bench)
        bench.drop("a.eml", SIMPLE)
        await bench.drain()
        pause = (await bench.get("/accounts/main"))["pause"]
        assert (pause["by"], pause["code"]) == ("service", "secret_missing")
        assert f"file:{folder}/office can't be read: No such file" in pause["reason"]
        assert "password_from" in pause["remedy"]
        assert pause["until"] is not None
        (queued,) = (await bench.get("/queue/messages"))["items"]
        assert (queued["state"], queued["waiting_for"], queued["attempts"]) == ("waiting", "account_paused", 0)
        alerts = (await bench.get("/alerts"))["items"]
        assert ("secret_missing", "main") in [(alert["code"], alert["account"]) for alert in alerts]
        for _ in range(3):  # looks again, as often as it may; never less and less often
            clock.advance(31)
            await bench.drain()
        assert server.accepted == 0, "the server isn't bothered while there is nothing to say to it"
        checked = (await bench.http.post("/accounts/main/check")).json()
        assert [(step["step"], step["ok"], step["code"]) for step in checked["steps"]] == [
            ("secret", False, "secret_missing")
        ]
        (folder / "office").write_text(SECRET)
        clock.advance(31)
        await bench.sends(1)
        shown = await bench.get("/accounts/main")
        assert (shown["pause"], shown["password_set"]) == (None, True)


FORBIDDEN = [
    ("file:/etc/shadow", "MPU_SECRET_FILES"),
    ("file:/proc/self/environ", "MPU_SECRET_FILES"),
    ("file:{root}/secrets/../elsewhere", "MPU_SECRET_FILES"),
    ("file:{root}/secrets/link", "MPU_SECRET_FILES"),
    ("file:{root}/data/secret.key", "MPU_SECRET_FILES"),
    ("env:PATH", "MPU_SECRET_ENV_PREFIX"),
    ("env:MPU_API_KEY", "MPU_SECRET_ENV_PREFIX"),
    ("env:MPU_SECRET_KEY", "setting of the service"),
    ("credential:..", "credential"),
]


async def test_nobody_can_have_other_files_or_variables_sent_to_a_server_of_his_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PUT, POST, PATCH and the check of an unsaved account: all say 422, name the setting, and send nothing."""
    folder = place(tmp_path)
    (tmp_path / "elsewhere").write_text(SECRET)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("MPU_SECRET_KEY", SECRET)
    async with login_server() as theirs, running(tmp_path, pickups=[], secret_files=(folder,)) as bench:
        await put(bench, body(theirs, None))
        for form, words in FORBIDDEN:
            reference = form.format(root=tmp_path)
            calls = [
                await bench.http.put("/accounts/main", json=body(theirs, reference)),
                await bench.http.post("/accounts", json={"name": "other", **body(theirs, reference)}),
                await bench.http.patch("/accounts/main", json={"password_from": reference}),
                await bench.http.post("/accounts/check", json=body(theirs, reference)),
                await bench.http.put("/accounts/main?check=true", json=body(theirs, reference)),
            ]
            for answer in calls:
                assert answer.status_code == 422, (reference, answer.text)
                (error,) = answer.json()["errors"]
                assert error["pointer"] == "/password_from"
                assert words in error["detail"]
        assert theirs.accepted == 0


async def test_what_was_allowed_once_is_not_read_where_the_settings_allow_it_no_more(tmp_path: Path) -> None:
    folder = place(tmp_path)
    (folder / "office").write_text(SECRET)
    async with login_server() as server:
        async with running(tmp_path, pickups=[], secret_files=(folder,)) as bench:
            await put(bench, body(server, f"file:{folder}/office"))
        async with running(tmp_path, pickups=[], secret_files=()) as bench:
            shown = await bench.get("/accounts/main")
            assert shown["password_set"] is False
            answer = await bench.http.patch("/accounts/main", json={"max_connections": 2})
            assert answer.status_code == 200, "other fields can be changed"
            checked = (await bench.http.post("/accounts/main/check")).json()
            assert checked["steps"][0]["code"] == "secret_missing"
            assert "MPU_SECRET_FILES" in checked["steps"][0]["detail"]
        assert server.accepted == 0


async def test_password_and_password_from_exclude_one_another(tmp_path: Path) -> None:
    folder = place(tmp_path)
    (folder / "office").write_text(SECRET)
    reference = f"file:{folder}/office"
    async with login_server() as server, running(tmp_path, pickups=[], secret_files=(folder,)) as bench:
        answer = await bench.http.put("/accounts/main", json=body(server, reference, password="x"))
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["code"] == "excludes_password"
        await put(bench, body(server, None, password="x"))
        for method, value in (("PATCH", {"password_from": reference}), ("PUT", body(server, reference))):
            answer = await bench.http.request(method, "/accounts/main", json=value)
            assert answer.status_code == 422, "the saved one stays unless it is removed"
            assert answer.json()["errors"][0]["code"] == "excludes_password"
        answer = await bench.http.patch("/accounts/main", json={"password_from": reference, "password": None})
        assert answer.status_code == 200, answer.text
        answer = await bench.http.patch("/accounts/main", json={"password": "x"})
        assert answer.status_code == 422
        answer = await bench.http.patch("/accounts/main", json={"password": "x", "password_from": None})
        assert (answer.status_code, answer.json()["password_from"]) == (200, None)


async def test_a_new_host_or_port_needs_it_named_again_and_a_try_needs_an_admin(tmp_path: Path) -> None:
    folder = place(tmp_path)
    (folder / "office").write_text(SECRET)
    reference = f"file:{folder}/office"
    async with login_server() as own, login_server() as theirs:
        async with running(tmp_path, pickups=[], secret_files=(folder,)) as bench:
            await put(bench, body(own, reference))
            for move in ({"port": theirs.port}, {"host": "localhost"}):
                answer = await bench.http.patch("/accounts/main", json=move)
                assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/password_from")
            made = await bench.http.post("/keys", json={"name": "operator", "scopes": ["operate"]})
            header = {"Authorization": f"Bearer {made.json()['key']}"}
            answer = await bench.http.post("/accounts/check", json=body(theirs, reference), headers=header)
            assert (answer.status_code, answer.json()["required_scope"]) == (403, "admin")
            assert (await bench.http.post("/accounts/main/check", headers=header)).json()["ok"], "a saved one"
            assert theirs.accepted == 0


async def test_the_settings_say_what_may_be_named(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        shown = (await bench.get("/settings"))["read_only"]
        assert (shown["secret_files"], shown["secret_env_prefix"]) == (["/run/secrets"], "MPU_SECRET_")
