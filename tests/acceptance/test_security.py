"""The security list, promise by promise; each is a test or more that could fail. `PROMISES` says which.

What docs/security.md says is protected, and the floors under it. Real sockets, files and processes, but where a thing
can only be read (Dockerfile, unit, lock).
"""

from __future__ import annotations

import ast
import asyncio
import base64
import configparser
import contextlib
import hmac
import io
import json
import os
import re
import socket
import sqlite3
import ssl
import stat
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import trustme

from api.app import create_app
from core.domain.account import AuthMethod
from core.domain.address import AddressError, parse_mailbox
from core.domain.oauth import SECRETS
from core.logs import configure_logs
from core.settings import Settings
from core.store import keys
from core.store.secrets import KEY_FILE
from core.store.store import DATABASE_FILE
from tests.support.command import mpu
from tests.support.relay import SIMPLE, account, mail, running
from tests.support.service import Service, answer_on, begin_body, connected, is_closed, service, wait_until
from tests.support.smtp_server import Close, Raw, SmtpServer, certificate
from tests.support.token_server import Reply, TokenServer, service_key

ROOT = Path(__file__).parents[2]
PLANTED = "pl4nted-S3cret-9f2c-Zq"

PROMISES = {
    "Address grammar is an allow-list at the boundary": ["address_grammar", "no_address_reaches_the_wire"],
    "Every route needs a key but those http.md names": ["every_route_needs_a_key"],
    "Keys: 256 random bits, SHA-256 stored, compared in constant time, scopes read, operate, admin": [
        "keys_have_256_random_bits",
        "keys_are_compared_in_constant_time",
        "scopes_are_kept_apart",
    ],
    "No password in any answer, error or log": [
        "no_password_anywhere",
        "no_password_in_the_traceback",
        "a_server_that_repeats_the_login",
    ],
    "a changed host or port asks for the password again": ["a_changed_host_or_port", "an_unsaved_account"],
    "Passwords from outside: only what the start allows can be named": ["no_other_file_or_variable"],
    "Pickup paths only under configured roots, resolved; never the data directory": [
        "pickup_paths_lie_under_a_root",
        "without_roots",
        "a_pickup_directory_that_was_swapped",
    ],
    "Files opened relative to the directory, O_NOFOLLOW, fstat regular": [
        "what_is_no_regular_file",
        "every_file_is_opened_relative_and_without_following_links",
    ],
    "SMTP and webhook targets: ports by allow-list, no link-local or metadata addresses, no redirects": [
        "ports_by_allow_list",
        "link_local_and_metadata_addresses",
        "what_a_name_resolves_to",
        "nothing_follows_redirects",
    ],
    "Request bodies capped": ["request_bodies_are_capped"],
    "Bodies bounded in time": ["a_body_that_does_not_come", "a_body_that_drips"],
    "Connections bounded in number and time": [
        "silent_connections",
        "a_header_has_a_time",
        "every_place_is_at_work",
        "nobody_takes",
    ],
    "Headers capped before any key, what is no HTTP answered": ["headers_are_capped", "what_is_no_http"],
    "MultiFernet with a 0600 key file, rotation that survives a kill": [
        "files_of_the_data_directory_are_closed",
        "a_rotation_that_was_killed",
        "no_rotation_under_a_running_service",
    ],
    "No pickled job store": ["no_pickle"],
    "Container: own user, read-only root, no capabilities": ["the_container", "the_unit"],
    "Floors: starlette 1.0.1, h11 0.16, aiosmtpd 1.4.6, cryptography current": ["floors_of_the_lock"],
    "bandit in lint": ["bandit_is_part_of_lint"],
}


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_has_its_tests(promise: str) -> None:
    there = [name for name in globals() if name.startswith("test_")]
    for part in PROMISES[promise]:
        assert [name for name in there if part in name], part


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that is logged, down to debug, as JSON."""
    out = io.StringIO()
    import logging

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure_logs(log_format="json", log_level="debug", stream=out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


# --- addresses --------------------------------------------------------------------------------------------------------

HOSTILE = [
    "d@e.f>\r\nRCPT TO:<x@y>",
    "a@b\r\n X: y",
    "d@e.f> SIZE=1",
    "d@e.f\x00",
    "@h1:d@e.f",
    '"a\r\nb"@e.f',
    "a@b@c",
    "a@",
    "@b",
    "postmaster",
    "d@[127.0.0.1]",
    "x" * 65 + "@y.z",
    "a@" + "b" * 256,
    "alice@x)bob@y",
    "<d@e.f>",
    "d@e.f NOTIFY=NEVER",
    "d@e.f\tX",
]


@pytest.mark.parametrize("address", HOSTILE)
def test_address_grammar_is_an_allow_list(address: str) -> None:
    with pytest.raises(AddressError):
        parse_mailbox(address)


@pytest.mark.parametrize("field", ["X-Receiver", "X-Sender", "To"])
async def test_no_address_reaches_the_wire_but_as_one(tmp_path: Path, field: str) -> None:
    """Every hostile one in a file of its own: no command of the conversation is anything but what we say."""
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        for number, address in enumerate(HOSTILE):
            others = {"X-Sender": "shop@example.com", "X-Receiver": "jo@example.org"}
            fields = {**others, field: address} if field != "To" else {"From": "shop@example.com", "To": address}
            text = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            bench.drop(f"{number}.eml", text.encode() + b"Subject: x\r\n\r\nHello\r\n")
        await bench.drain()
        said = [line for session in server.sessions for line in session.commands]
        paths = re.compile(r"(MAIL FROM|RCPT TO):<[^<>\s\x00]*>( [A-Z0-9]+(=[A-Za-z0-9;.@+-]+)?)*")
        for line in said:
            assert line.split(" ")[0] in ("EHLO", "MAIL", "RCPT", "DATA", "RSET", "QUIT", "NOOP"), line
            if line.startswith(("MAIL", "RCPT")):
                assert paths.fullmatch(line), line
        assert {"x@y", "x@y.z"}.isdisjoint(to for message in server.messages for to in message.to)
        for body, where in (({"to": HOSTILE[0]}, "/accounts/main/test-message"),):
            assert (await bench.http.post(where, json=body)).status_code == 422
        changed = {"from_address": HOSTILE[0], "from_policy": "replace"}
        assert (await bench.http.patch("/accounts/main", json=changed)).status_code == 422


# --- who may call -----------------------------------------------------------------------------------------------------

OPEN = {"/docs", "/docs/{file}", "/openapi.json", "/health/live", "/health/ready"}  # http.md


async def test_every_route_needs_a_key_but_the_named_ones(tmp_path: Path) -> None:
    from fastapi.routing import iter_route_contexts

    async with running(tmp_path) as bench:
        app = create_app(bench.settings, bench.relay)
        transport = httpx.ASGITransport(app=app)
        seen = set()
        for header in ({}, {"Authorization": "Bearer mpu_" + "x" * 43}, {"Authorization": "Basic YTpi"}):
            async with httpx.AsyncClient(transport=transport, base_url="http://relay", headers=header) as nobody:
                for context in iter_route_contexts(app.routes):
                    assert context.path is not None
                    for method in context.methods or ():
                        answer = await nobody.request(method, re.sub(r"\{\w+\}", "1", context.path))
                        seen.add(context.path)
                        assert (answer.status_code != 401) == (context.path in OPEN), (method, context.path)
        assert len(seen) > 40


async def test_keys_have_256_random_bits_and_only_their_sha256_is_stored(tmp_path: Path) -> None:
    import hashlib

    async with running(tmp_path) as bench:
        made = [
            (await bench.http.post("/keys", json={"name": f"k{n}", "scopes": ["read"]})).json()["key"] for n in range(9)
        ]
        for key in made:
            bits = base64.urlsafe_b64decode(key.removeprefix(keys.PREFIX) + "=")
            assert len(bits) == 32
        assert len({key[4:8] for key in made}) > 7  # nothing of it is fixed
        listed = (await bench.http.get("/keys")).text
        assert all(key not in listed for key in made)
    content = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
    for key in made:
        assert hashlib.sha256(key.encode()).hexdigest().encode() in content
        assert key.encode() not in content
        assert key[len(keys.PREFIX) + 9 :].encode() not in content


async def test_keys_are_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: Any, other: Any) -> bool:
        compared.append(one)
        return hmac.compare_digest(one, other)

    async with running(tmp_path) as bench:
        monkeypatch.setattr("core.store.keys.hmac", type("Spy", (), {"compare_digest": staticmethod(compare)}))
        assert (await bench.http.get("/queue")).status_code == 200
    assert len(compared) == 1


async def test_scopes_are_kept_apart(tmp_path: Path) -> None:
    calls = {
        "read": ("GET", "/queue"),
        "operate": ("POST", "/drain"),
        "admin": ("GET", "/audit"),
        "submit": ("POST", "/messages?directory=none"),
    }
    allowed = {
        "read": {"read"},
        "operate": {"read", "operate", "submit"},
        "admin": {"read", "operate", "admin", "submit"},
        "submit": {"submit"},
    }
    async with running(tmp_path) as bench:
        for scope, may in allowed.items():
            key = (await bench.http.post("/keys", json={"name": scope, "scopes": [scope]})).json()["key"]
            header = {"Authorization": f"Bearer {key}"}
            for what, (method, path) in calls.items():
                answer = await bench.http.request(method, path, headers=header)
                assert (answer.status_code == 403) == (what not in may), (scope, what, answer.text)


# --- passwords --------------------------------------------------------------------------------------------------------

PLANTED_KEY = service_key()  # of a service account
FORMS = [
    PLANTED,
    base64.b64encode(PLANTED.encode()).decode(),
    base64.b64encode(f"\0u\0{PLANTED}".encode()).decode(),
    base64.b64encode(f"user=u\x01auth=Bearer {PLANTED}\x01\x01".encode()).decode(),
    PLANTED.encode().hex(),
    *PLANTED_KEY["private_key"].splitlines()[1:-1],
]
GOOD = (  # accounts that work
    "takes",
    "outside-takes",
    *("token-takes", "token-changes", "token-robot"),
    *("outside-token-takes", "outside-token-changes", "outside-token-robot"),
)


def leaks(text: str | bytes) -> list[str]:
    octets = text.encode() if isinstance(text, str) else text
    return [form for form in FORMS if form.encode() in octets]


def test_leaks_would_be_found() -> None:
    assert leaks(f"x {PLANTED} y") == [PLANTED]
    assert leaks(f"AUTH PLAIN {FORMS[2]}")


@asynccontextmanager
async def servers() -> AsyncIterator[dict[str, dict[str, Any]]]:
    """Accounts with the planted password at servers that do what makes programs talk."""
    _, context = certificate()
    plain: dict[str, Any] = {"mechanisms": ["PLAIN"], "credentials": {"u": "another"}}
    async with (
        SmtpServer(**plain) as refuses,
        SmtpServer(**{**plain, "mechanisms": ["LOGIN"]}) as login,
        SmtpServer(**{**plain, "mechanisms": ["CRAM-MD5"]}) as cram,
        SmtpServer(**plain) as repeats,
        SmtpServer(**plain) as garbles,
        SmtpServer(**plain) as closes,
        SmtpServer(**plain, context=context) as untrusted,
        SmtpServer(**{**plain, "credentials": {"u": PLANTED}}) as takes,
    ):
        repeats.script.auth = lambda _session, argument: f"535 5.7.8 no {PLANTED}: AUTH {argument}"
        garbles.script.auth = lambda _session, argument: Raw(f"AUTH {argument}\r\n".encode())
        closes.script.auth = Close("421 4.3.0 not now")
        named = {
            "refuses": refuses,
            "login": login,
            "cram": cram,
            "repeats": repeats,
            "garbles": garbles,
            "closes": closes,
            "untrusted": untrusted,
            "takes": takes,
        }
        told: dict[str, dict[str, Any]] = {
            name: {
                "host": "127.0.0.1",
                "port": server.port,
                "security": "starttls" if name == "untrusted" else "none",
                "username": "u",
                "password": PLANTED,
            }
            for name, server in named.items()
        }
        outside = {"password": None, "password_from": "env:MPU_SECRET_PLANTED"}
        told |= {f"outside-{name}": {**told[name], **outside} for name in ("repeats", "garbles", "takes")}
        async with token_accounts() as more:
            yield told | more


@asynccontextmanager
async def token_accounts() -> AsyncIterator[dict[str, dict[str, Any]]]:
    """The same with tokens: client secret, refresh token, key file and access token are planted."""
    offer: dict[str, Any] = {"mechanisms": ["XOAUTH2"], "tokens": {"u": PLANTED}}
    async with (
        SmtpServer(**offer) as takes,
        SmtpServer(**{**offer, "tokens": {}}) as refuses,
        SmtpServer(**offer) as repeats,
        TokenServer(token=PLANTED) as gives,
        TokenServer(token=PLANTED, refresh=PLANTED + "{}", rotates=True) as changes,
        TokenServer() as denies,
        TokenServer() as garbles,
    ):
        repeats.script.auth = lambda _session, argument: f"535 5.7.8 no {PLANTED}: AUTH {argument}"
        gives.clients["app"] = changes.clients["app"] = PLANTED
        gives.refresh_tokens.add(PLANTED)
        changes.refresh_tokens.add(PLANTED)
        garbles.script = [Reply(200, f"not JSON: {PLANTED}".encode())] * 100
        named = {
            "token-takes": (takes, gives),
            "token-changes": (takes, changes),
            "token-robot": (takes, gives),
            "token-refuses": (refuses, gives),
            "token-repeats": (repeats, gives),
            "token-denied": (takes, denies),
            "token-garbled": (takes, garbles),
        }
        oauth: dict[str, Any] = {"provider": "other", "grant": "refresh_token", "client_id": "app"}
        oauth |= {"client_secret": PLANTED, "refresh_token": PLANTED}
        robot = {"provider": "google", "grant": "service_account", "service_account_key": PLANTED_KEY}
        told: dict[str, dict[str, Any]] = {
            name: {
                "host": "127.0.0.1",
                "port": smtp.port,
                "security": "none",
                "username": "u",
                "oauth": {**(robot if name == "token-robot" else oauth), "token_url": tokens.url},
            }
            for name, (smtp, tokens) in named.items()
        }
        async with TokenServer(token=PLANTED, refresh=PLANTED + "x{}", rotates=True) as changes_too:
            changes_too.clients["app"] = PLANTED
            changes_too.refresh_tokens.add(PLANTED)
            for name in ("token-takes", "token-changes", "token-robot", "token-repeats", "token-denied"):
                value: dict[str, Any] = {**told[name]["oauth"]}
                for secret in SECRETS:
                    variable = "MPU_SECRET_PLANTED_KEY" if secret == "service_account_key" else "MPU_SECRET_PLANTED"
                    if value.pop(secret, None) is not None:
                        value[f"{secret}_from"] = f"env:{variable}"
                if name == "token-changes":
                    value["token_url"] = changes_too.url
                told[f"outside-{name}"] = {**told[name], "oauth": value}
            yield told


_OAUTH = {"provider": "other", "grant": "client_credentials", "client_id": "c", "client_secret": PLANTED}
WRONG_BODIES: list[dict[str, Any]] = [
    {"host": "h", "password": PLANTED, "port": "x"},
    {"host": "h", "password": PLANTED, "port": 99999},
    {"host": "h", "password": [PLANTED]},
    {"host": "h", "password": {"a": PLANTED}},
    {"host": "h", "password": PLANTED * 1000},
    {"host": "h", "password": PLANTED + "\x00"},
    {"host": "h", "password": PLANTED + "\ud800"},
    {"host": "169.254.169.254", "password": PLANTED},
    {"host": "h", "password": PLANTED, PLANTED[:3]: 1},
    {"host": "h", "oauth": PLANTED},
    {"host": "h", "oauth": {**_OAUTH, "grant": "no such grant"}},
    {"host": "h", "oauth": {**_OAUTH, "token_url": "http://192.0.2.1/token"}},
    {"host": "h", "oauth": {**_OAUTH, "token_url": f"https://u:{PLANTED}@192.0.2.1/token"}},
    {"host": "h", "oauth": {**_OAUTH, "client_secret": [PLANTED]}},
    {"host": "h", "oauth": {**_OAUTH, "refresh_token": PLANTED + "\x00"}},
    {"host": "h", "oauth": {**_OAUTH, "refresh_token": PLANTED * 1000}},
    {"host": "h", "oauth": {**_OAUTH, "service_account_key": {"client_email": 1, "private_key": PLANTED}}},
    {"host": "h", "oauth": {**_OAUTH, "service_account_key": PLANTED}},
]


async def test_no_password_anywhere(tmp_path: Path) -> None:
    """A service at debug level, every account failing its way; then all it said, wrote and answered is searched."""
    answers: list[httpx.Response] = []
    data = tmp_path / "data"
    (tmp_path / "spool").mkdir()

    planted = {"MPU_SECRET_PLANTED": PLANTED, "MPU_SECRET_PLANTED_KEY": json.dumps(PLANTED_KEY, indent=1)}

    def starting() -> Any:
        return service(data, tmp_path / "spool", MPU_ALLOWED_SMTP_PORTS="0", MPU_LOG_LEVEL="debug", **planted)

    async with servers() as accounts:
        running_service = starting()
        one = await asyncio.to_thread(running_service.__enter__)
        try:
            async with httpx.AsyncClient(base_url=one.http.base_url, headers=one.http.headers, timeout=60) as http:
                await _tell_it_the_password(http, accounts, answers, tmp_path)
                await _ask_for_everything(http, answers)
            files = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
            assert f"{DATABASE_FILE}-wal" in {path.name for path in files}, "the WAL must have been looked at"
            assert await asyncio.to_thread(mpu, "backup", tmp_path / "copy", "--data-dir", data) == 0
        finally:
            await asyncio.to_thread(running_service.__exit__, None, None, None)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            files[path] = path.read_bytes()
    log = (tmp_path / "data.log").read_text()
    assert len(log.splitlines()) > 20
    for code in ("login_refused", "token_denied", "token_malformed", "a new refresh token was stored"):
        assert code in log
    sealed = [path.name for path, octets in files.items() if b"gAAAAA" in octets]
    assert DATABASE_FILE in sealed or f"{DATABASE_FILE}-wal" in sealed, "it would have been found there"
    assert {str(path): found for path, octets in files.items() if (found := leaks(octets))} == {}
    assert len(answers) > 80
    for answer in answers:
        assert not leaks(answer.content), (answer.request.method, str(answer.request.url), answer.text[:500])
        assert not leaks(str(answer.headers))


async def _tell_it_the_password(
    http: httpx.AsyncClient, accounts: dict[str, dict[str, Any]], answers: list[httpx.Response], root: Path
) -> None:
    for name, body in accounts.items():
        answers.append(await http.put(f"/accounts/{name}", json=body))
        assert answers[-1].status_code == 201, answers[-1].text
        answers.append(await http.put(f"/accounts/{name}?check=true", json=body))
        assert (answers[-1].status_code == 200) == (name in GOOD), (name, answers[-1].text)
        answers.append(await http.post("/accounts/check", json=body))
        assert answers[-1].json()["ok"] == (name in GOOD), answers[-1].text
        answers.append(await http.post(f"/accounts/{name}/check"))
        answers.append(await http.post(f"/accounts/{name}/test-message", json={"to": "jo@example.org"}))
        path = root / "spool" / name
        path.mkdir()
        answers.append(await http.put(f"/directories/{name}", json={"path": str(path), "accounts": [name]}))
        (path / "a.eml").write_bytes(SIMPLE)
    for body in WRONG_BODIES:
        for method, where in (("PUT", "/accounts/wrong"), ("POST", "/accounts"), ("PATCH", "/accounts/takes")):
            answer = await http.request(method, where, content=json.dumps(body))
            answers.append(answer)
            assert answer.status_code in (400, 422), (str(body)[:200], method, answer.text)
    for raw in (f'{{"password": "{PLANTED}"', f'"{PLANTED}"', f'[{{"password": "{PLANTED}"}}]'):
        answers.append(await http.post("/accounts", content=raw))
        assert answers[-1].status_code in (400, 422), answers[-1].text
    answers.append(await http.post("/drain", json={"timeout_seconds": 20}))
    answers.append(await http.patch("/accounts/takes", json={"password": PLANTED + "x"}))
    answers.append(await http.patch("/accounts/takes", json={"password": PLANTED}))
    for secret in ("client_secret", "refresh_token"):
        answers.append(await http.patch("/accounts/token-takes", json={"oauth": {secret: PLANTED + "x"}}))
        answers.append(await http.patch("/accounts/token-takes", json={"oauth": {secret: PLANTED}}))
        assert answers[-1].status_code == 200, answers[-1].text
    answers.append(await http.delete("/directories/cram"))
    answers.append(await http.delete("/accounts/cram"))


async def _ask_for_everything(http: httpx.AsyncClient, answers: list[httpx.Response]) -> None:
    document = (await http.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        if "get" in methods:
            for name in ("refuses", "takes", "token-takes", "token-changes", "outside-token-changes", "token-denied"):
                answers.append(await http.get(path.replace("{name}", name)))
    for path in ("/queue/messages", "/history", "/audit", "/accounts", "/alerts", "/queue/reasons"):
        answers.append(await http.get(path, params={} if path in ("/alerts", "/queue/reasons") else {"limit": 500}))
        assert answers[-1].status_code == 200
        for item in answers[-1].json()["items"][:20]:
            if path == "/queue/messages":
                answers.append(await http.get(f"/messages/{item['id']}"))
    audit = (await http.get("/audit", params={"limit": 500})).text
    for name in ("password", "oauth.client_secret", "oauth.refresh_token", "oauth.service_account_key"):
        assert name in audit, "masked"


async def test_a_server_that_repeats_the_login_gives_nothing_away(tmp_path: Path, log: io.StringIO) -> None:
    """What a server answers is shown to people and kept: without the password, in the clear or in base64."""
    async with SmtpServer(mechanisms=["PLAIN"]) as server:
        server.script.auth = lambda _session, argument: f"535 5.7.8 no {PLANTED}: AUTH {argument}"
        value = account(server, auth=AuthMethod.AUTO, username="u", password=PLANTED)
        async with running(tmp_path, [value]) as bench:
            bench.drop("a.eml", SIMPLE)
            await bench.drain()
            said = [await bench.get(path) for path in ("/accounts/main", "/alerts", "/queue/reasons", "/health")]
            assert said[0]["pause"]["code"] == "login_refused"
            said.append((await bench.http.post("/accounts/main/check")).json())
            assert "no [redacted]: AUTH PLAIN [redacted]" in json.dumps(said)
            assert not leaks(json.dumps(said))
    assert not leaks(log.getvalue())


async def test_halves_of_surrogate_pairs_are_refused_not_stumbled_over(tmp_path: Path) -> None:
    """JSON can carry them, UTF-8 and SQLite can't; the error of a codec would hold the whole text."""
    bodies: dict[str, list[tuple[str, str, str]]] = {
        "account": [("PUT", "/accounts/a", field) for field in ("host", "username", "password", "helo_name")],
        "directory": [("PUT", "/directories/a", "path")],
        "others": [("POST", "/keys", "name"), ("POST", "/pause", "reason"), ("POST", "/accounts/a/pause", "reason")],
    }
    base: dict[str, Any] = {"/accounts/a": {"host": "h"}, "/directories/a": {"accounts": ["a"]}}
    async with running(tmp_path) as bench:
        assert (await bench.http.put("/accounts/a", json={"host": "h"})).status_code == 201
        for method, path, field in (entry for entries in bodies.values() for entry in entries):
            more = {"scopes": ["read"]} if path == "/keys" else base.get(path, {})
            body = json.dumps({**more, field: "/a\ud800b"})
            answer = await bench.http.request(method, path, content=body)
            assert answer.status_code == 422, (path, field, answer.text)
        for path in ("/history?recipient=%ED%A0%80", "/queue/messages?recipient=%ED%A0%80", "/accounts/%ED%A0%80"):
            assert (await bench.http.get(path)).status_code < 500, path


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_no_password_in_the_traceback_of_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: io.StringIO, log_format: Any
) -> None:
    """An error nobody thought of, in functions that hold the password in their variables."""
    configure_logs(log_format=log_format, log_level="debug", stream=log)

    def crash(session: Any, secrets: Any, value: Any, **_more: Any) -> None:
        password = value.password
        assert password == PLANTED
        raise RuntimeError(f"nobody thought of {value!r}")

    monkeypatch.setattr("core.store.accounts.create", crash)
    async with running(tmp_path) as bench:
        transport = httpx.ASGITransport(app=create_app(bench.settings, bench.relay), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://relay", headers=bench.http.headers) as http:
            answer = await http.post(
                "/accounts", json={"name": "a", "host": "127.0.0.1", "port": 587, "username": "u", "password": PLANTED}
            )
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:mpu:problem:internal")
    assert "nobody thought of" in log.getvalue()
    assert "Traceback" in log.getvalue()
    assert not leaks(log.getvalue())
    assert not leaks(answer.content)


async def test_a_changed_host_or_port_asks_for_the_password_again(tmp_path: Path) -> None:
    """Who may change settings must not learn the password by sending it to a server of his own."""
    async with SmtpServer(credentials={"u": PLANTED}, mechanisms=["PLAIN"]) as own, SmtpServer() as theirs:
        value = account(own, auth=AuthMethod.AUTO, username="u", password=PLANTED)
        async with running(tmp_path, [value]) as bench:
            theirs.mechanisms = ("PLAIN",)
            shown = await bench.get("/accounts/main")
            whole = {name: shown[name] for name in ("host", "port", "security", "auth", "username")}
            moves: list[dict[str, Any]] = [{"port": theirs.port}, {"host": "localhost"}]
            for move in moves:
                for query in ("", "?check=true"):
                    for answer in (
                        await bench.http.patch(f"/accounts/main{query}", json=move),
                        await bench.http.put(f"/accounts/main{query}", json={**whole, **move}),
                    ):
                        assert answer.status_code == 422, answer.text
                        assert answer.json()["errors"][0]["code"] == "password_needed"
            assert (await bench.http.patch("/accounts/main", json={"max_connections": 2})).status_code == 200
            both = {"port": theirs.port, "password": "another"}
            assert (await bench.http.patch("/accounts/main", json=both)).status_code == 200
            bench.drop("a.eml", SIMPLE)
            await bench.drain()
        assert len(theirs.logins) == 1
        assert not leaks("".join(line for session in theirs.sessions for line in session.commands))


async def test_no_other_file_or_variable_can_be_named_as_a_password(tmp_path: Path) -> None:
    """By an admin, who could have it sent to his own server; tests/acceptance/test_outside_secrets.py has them all."""
    (tmp_path / "hostage").write_text(PLANTED)
    async with SmtpServer(mechanisms=["PLAIN"]) as theirs, running(tmp_path) as bench:
        base = {"host": "127.0.0.1", "port": theirs.port, "security": "none", "username": "u"}
        for reference in (f"file:{tmp_path}/hostage", "file:/etc/passwd", "env:HOME", "env:MPU_SECRET_KEY"):
            for path in ("/accounts/check", "/accounts"):
                body = {**base, "name": "mine", "password_from": reference}
                assert (await bench.http.post(path, json=body)).status_code == 422, reference
        assert theirs.accepted == 0


async def test_an_unsaved_account_is_tried_without_anybodys_password(tmp_path: Path) -> None:
    async with SmtpServer() as theirs:
        theirs.mechanisms = ("PLAIN",)
        saved = replace(account(theirs, auth=AuthMethod.AUTO, username="u"), password=PLANTED, port=9)
        async with running(tmp_path, [saved]) as bench:
            body = {"name": "main", "host": "127.0.0.1", "port": theirs.port, "security": "none", "username": "u"}
            await bench.http.post("/accounts/check", json=body)
            assert not theirs.sessions, "without a password nobody is asked"
            await bench.http.post("/accounts/check", json={**body, "password": "their own"})
        said = [line for session in theirs.sessions for line in session.commands]
        assert said, "it was tried"
        assert not leaks("".join(said))


# --- directories and files --------------------------------------------------------------------------------------------


async def test_pickup_paths_lie_under_a_root_resolved_and_never_in_the_data_directory(tmp_path: Path) -> None:
    inside, outside = tmp_path / "spool", tmp_path / "outside"
    data = inside / "data"  # a root that contains the data directory
    for path in (inside, outside, inside / "fine", tmp_path / "spool-twin"):
        path.mkdir(exist_ok=True)
    (inside / "link").symlink_to(outside)
    (inside / "back").symlink_to(data)
    async with SmtpServer() as server, running(tmp_path, [account(server)], pickups=[], data_dir=data) as bench:
        refused = {
            str(outside): "outside_roots",
            str(inside / ".." / "outside"): "outside_roots",
            str(inside / "link"): "outside_roots",
            str(tmp_path / "spool-twin"): "outside_roots",
            "/": "outside_roots",
            "/etc": "outside_roots",
            str(inside): "data_directory",
            str(data): "data_directory",
            str(inside / "back"): "data_directory",
        }
        (data / "below").mkdir()
        refused[str(data / "below")] = "data_directory"
        for where, code in refused.items():
            answer = await bench.http.put("/directories/a", json={"path": where, "accounts": ["main"]})
            assert answer.status_code == 422, (where, answer.text)
            assert answer.json()["errors"][0]["code"] == code, where
        for wrong in ("relative", "", "\0", str(inside) + "\0"):
            answer = await bench.http.put("/directories/a", json={"path": wrong, "accounts": ["main"]})
            assert answer.status_code == 422, (wrong, answer.text)
        answer = await bench.http.put("/directories/a", json={"path": str(inside / "fine"), "accounts": ["main"]})
        assert answer.status_code == 201, answer.text


async def test_without_roots_there_are_no_directories(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    async with SmtpServer() as server, running(tmp_path, [account(server)], pickups=[], pickup_roots=()) as bench:
        answer = await bench.http.put("/directories/a", json={"path": str(tmp_path / "spool"), "accounts": ["main"]})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "no_pickup_roots")
        assert "MPU_PICKUP_ROOTS" in answer.text


@pytest.mark.parametrize("swapped", ["pickup", "its parent"])
async def test_a_pickup_directory_that_was_swapped_for_a_link_is_not_followed(tmp_path: Path, swapped: str) -> None:
    """Who may write beside the directory must not be able to lead the service elsewhere."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "private.eml").write_bytes(mail(7))
    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)]) as bench:
            pickup = bench.paths["pickup"]
        place = pickup if swapped == "pickup" else pickup.parent
        place.rename(tmp_path / "moved")
        if swapped != "pickup":
            secret = (secret / "private.eml").parent.rename(tmp_path / "pickup")
        place.symlink_to(secret if swapped == "pickup" else tmp_path)
        async with running(tmp_path, [], pickups=[]) as bench:
            await bench.drain()
            (row,) = (await bench.drain())["directories"]
            assert row["skipped"] == "unavailable"
        assert server.messages == []
        assert sorted(os.listdir(secret)) == ["private.eml"]


async def test_what_is_no_regular_file_is_neither_opened_nor_waited_for(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(mail(8))
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        pickup = bench.paths["pickup"]
        (pickup / "link.eml").symlink_to(secret)
        (pickup / "dangling.eml").symlink_to(tmp_path / "missing")
        (pickup / "folder.eml").mkdir()
        os.mkfifo(pickup / "fifo.eml")
        with socket.socket(socket.AF_UNIX) as listening:
            os.chdir(pickup)
            listening.bind("socket.eml")
        os.chdir(ROOT)
        before = secret.stat().st_atime_ns
        bench.drop("fine.eml", mail(9))
        async with asyncio.timeout(30):
            await bench.drain()
        assert [message.to for message in server.messages] == [["jo@example.org"]]
        assert secret.read_bytes() == mail(8)
        assert before <= secret.stat().st_atime_ns
        assert "fine.eml" not in bench.names()
        (alert,) = [item for item in (await bench.get("/alerts"))["items"] if item["code"] == "left_alone"]
        assert alert["messages_affected"] == 5


async def test_every_file_is_opened_relative_and_without_following_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the directory: a name without a slash, a directory descriptor, O_NOFOLLOW and O_CLOEXEC."""
    opened: list[tuple[bytes, int, int | None]] = []
    real = os.open

    def spy(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        opened.append((os.fsencode(path), flags, dir_fd))
        return real(path, flags, mode, dir_fd=dir_fd)

    async with SmtpServer() as server:
        server.script.rcpt = {"no@example.org": "550 5.1.1 no", "later@example.org": "450 4.2.1 later"}
        async with running(tmp_path, [account(server)]) as bench:
            monkeypatch.setattr(os, "open", spy)
            for number, to in enumerate(("jo@example.org", "no@example.org", "later@example.org")):
                bench.drop(f"{number}.eml", mail(number, to=to))
            await bench.drain()
            monkeypatch.undo()
    mails = [(path, flags, fd) for path, flags, fd in opened if b".eml" in path]
    assert len(mails) >= 3
    for path, flags, fd in mails:
        assert b"/" not in path, path
        assert fd is not None, path
        assert flags & os.O_NOFOLLOW, path
        assert flags & os.O_CLOEXEC, path
    for path, flags, fd in opened:
        if b".mpu" in path or b"badmail" in path or (fd is not None and b"/" not in path):
            assert flags & os.O_NOFOLLOW or flags & os.O_DIRECTORY, path


# --- where it connects to ---------------------------------------------------------------------------------------------


async def test_ports_by_allow_list(tmp_path: Path) -> None:
    allowed = Settings.model_validate({}).allowed_smtp_ports
    assert set(allowed) <= {25, 465, 587, 588, 2465, 2525, 2526, 2587}
    async with running(tmp_path, allowed_smtp_ports=allowed) as bench:
        for port in (22, 80, 443, 3306, 6379, 8025, 11211):
            answer = await bench.http.put("/accounts/a", json={"host": "mail.example.com", "port": port})
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "not_allowed"), port
            assert (
                await bench.http.post("/accounts/check", json={"host": "192.0.2.1", "port": port})
            ).status_code == 422
        assert (await bench.http.put("/accounts/a", json={"host": "mail.example.com"})).status_code == 201


FORBIDDEN = [
    "169.254.169.254",
    "169.254.1.1",
    "fe80::1",
    "fe80::1%eth0",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "metadata.google.internal",
    "METADATA.google.internal.",
    "0.0.0.0",
    "2852039166",
    "0xa9fea9fe",
    "169.254.43518",
]


@pytest.mark.parametrize("host", FORBIDDEN)
async def test_link_local_and_metadata_addresses_are_refused(tmp_path: Path, host: str) -> None:
    async with running(tmp_path) as bench:
        for answer in (
            await bench.http.put("/accounts/a", json={"host": host}),
            await bench.http.post("/accounts/check", json={"host": host}),
        ):
            assert answer.status_code == 422, answer.text
            assert answer.json()["errors"][0]["pointer"] == "/host"


@pytest.mark.parametrize(
    "found", [["169.254.169.254"], ["fd00:ec2::254"], ["64:ff9b::a9fe:a9fe"], ["127.0.0.1", "fe80::1"]]
)
async def test_what_a_name_resolves_to_is_judged_when_connecting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: list[str]
) -> None:
    """A name that was fine when it was saved, and is pointed elsewhere later: nothing is connected to."""
    connected = []

    async with SmtpServer() as server:
        value = replace(account(server), host="mail.rebound.example")
        async with running(tmp_path, [value]) as bench:
            loop = asyncio.get_running_loop()

            async def resolve(host: Any, port: Any, **_more: Any) -> list[Any]:
                assert host == "mail.rebound.example"
                return [
                    (
                        socket.AF_INET6 if ":" in address else socket.AF_INET,
                        socket.SOCK_STREAM,
                        6,
                        "",
                        (address, port, 0, 0) if ":" in address else (address, port),
                    )
                    for address in found
                ]

            async def connect(_sock: Any, address: Any) -> None:
                connected.append(address)

            monkeypatch.setattr(loop, "getaddrinfo", resolve)
            monkeypatch.setattr(loop, "sock_connect", connect)
            bench.drop("a.eml", SIMPLE)
            await bench.drain()
            pause = (await bench.get("/accounts/main"))["pause"]
            assert pause["code"] == "target_forbidden"
            check = (await bench.http.post("/accounts/main/check")).json()
            assert not check["ok"]
            assert bench.names() == ["a.eml"]
    assert connected == []


def _sources() -> Iterator[tuple[Path, ast.Module]]:
    for folder in ("api", "core", "migrations"):
        for path in (ROOT / folder).rglob("*.py"):
            yield path, ast.parse(path.read_text())


def test_nothing_follows_redirects() -> None:
    """httpx follows none unless told to, and nothing else speaks HTTP; there are no webhooks."""
    clients = 0
    for path, tree in _sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword):
                assert node.arg not in ("follow_redirects", "allow_redirects"), path
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
                assert not {name.partition(".")[0] for name in names} & {"requests", "urllib3", "aiohttp"}, path
                assert not {"urllib.request", "http.client"} & names, path
            if isinstance(node, ast.Attribute) and node.attr in ("Client", "AsyncClient"):
                clients += 1
    assert clients
    assert httpx.Client().follow_redirects is False


# --- requests ---------------------------------------------------------------------------------------------------------


async def test_request_bodies_are_capped(tmp_path: Path) -> None:
    async def endless(octets: int) -> AsyncIterator[bytes]:
        while octets > 0:
            octets -= 1000
            yield b"x" * 1000

    async with SmtpServer() as server:
        async with running(tmp_path, [account(server)], max_request_bytes=10_000, max_submit_bytes=20_000) as bench:
            for path, limit in (("/accounts", 10_000), ("/drain", 10_000), ("/messages?directory=pickup", 20_000)):
                kind = "message/rfc822" if "messages" in path else "application/json"
                whole = await bench.http.post(path, content=b"x" * (limit + 1), headers={"Content-Type": kind})
                assert whole.status_code == 413, (path, whole.text)
                chunked = await bench.http.post(path, content=endless(10_000_000), headers={"Content-Type": kind})
                assert chunked.status_code == 413, (path, chunked.text)
                assert chunked.json()["type"] == "urn:mpu:problem:too_large"
            assert bench.names() == [], "half a mail must not be left"
            liar = {"Content-Length": "10", "Content-Type": "message/rfc822"}
            assert (
                await bench.http.post("/messages?directory=pickup", content=b"x" * 30_000, headers=liar)
            ).status_code == 413


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("http")
    with service(root / "data", root) as running_service:
        yield running_service


def test_headers_are_capped_before_any_key(listening: Service) -> None:
    """In one piece or in many, as one field, many, a URL, or behind a chunked body; others are served meanwhile."""
    endless = [b"x" * 65_536] * 400  # 25 MB
    begin = b"GET /queue HTTP/1.1\r\nHost: mpu\r\n"
    chunked = b"POST /drain HTTP/1.1\r\nHost: mpu\r\nTransfer-Encoding: chunked\r\n\r\n"
    hostile = {
        "one field": (431, [begin + b"X-A: ", *endless]),
        "many fields": (431, [begin, *[b"X-A: " + b"y" * 1000 + b"\r\n"] * 25_000]),
        "whole": (431, [begin + b"X-A: " + b"y" * 65_536 + b"\r\n\r\n"]),
        "a name": (431, [begin + b"X", *endless]),
        "a URL": (414, [b"GET /", *endless]),
        "a whole URL": (414, [b"GET /" + b"x" * 65_540 + b" HTTP/1.1\r\nHost: mpu\r\n\r\n"]),
    }
    behind = {"fields behind": [b"0\r\nX-A: ", *endless], "a chunk": [b"1;x=", *endless]}
    before = _resident_kib(listening)
    for what, (status, pieces) in (hostile | {name: (431, pieces) for name, pieces in behind.items()}).items():
        with connected(listening) as connection:
            if what in behind:
                connection.sendall(chunked)
                assert answer_on(connection).status == 401, what
            with contextlib.suppress(ConnectionError):  # it is not read for ever
                for piece in pieces:
                    connection.sendall(piece)
            answer = answer_on(connection)
            assert (answer.status, answer.headers["connection"]) == (status, "close"), what
            assert answer.problem() == {431: "header_too_large", 414: "url_too_long"}[status], what
            assert is_closed(connection), what
    assert _resident_kib(listening) - before < 16 << 10


def test_a_header_that_fits_is_taken(listening: Service) -> None:
    answer = listening.http.get("/queue", headers={"X-Long": "y" * 60_000})
    assert answer.status_code == 200


def _resident_kib(of: Service) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{of.process.pid}/status").read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize(
    "request_",
    [
        b"FOO /queue HTTP/1.1\r\nHost: mpu\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # TLS to a port without it
        b"POST /drain HTTP/1.1\r\nHost: mpu\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12",
        b"POST /drain HTTP/1.1\r\nHost: mpu\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST /drain HTTP/1.1\r\nHost: mpu\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /queue HTTP/1.1\r\nHost mpu\r\n\r\n",
        b"CONNECT mpu:25 HTTP/1.1\r\nHost: mpu\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_as_every_error_is(listening: Service, request_: bytes) -> None:
    with connected(listening) as connection:
        connection.sendall(request_)
        answer = answer_on(connection)
        assert (answer.status, answer.problem()) == (400, "malformed_request")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert is_closed(connection)


def test_what_comes_behind_a_whole_request_does_not_take_its_answer(listening: Service) -> None:
    with connected(listening) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: mpu\r\n\r\nFOO BAR\r\n\r\n")
        assert answer_on(connection).status == 200
        assert is_closed(connection)


LIVE = b"GET /health/live HTTP/1.1\r\nHost: mpu\r\n\r\n"
FEW_FILES = ["sh", "-c", 'ulimit -n 240; exec "$@"', "sh"]  # a quarter: 60


def _sockets(of: Service) -> int:
    """How many descriptors of it are TCP connections or the listener."""
    links = []
    for number in Path(f"/proc/{of.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(number.readlink()))
    return sum(link.startswith("socket:") for link in links)


def _make_inbox(of: Service, root: Path) -> None:
    """A directory `in` that takes mail."""
    (root / "in").mkdir()
    of.post("/accounts", name="main", host="127.0.0.1", security="none", auth="none")
    of.post("/directories", name="in", path=str(root / "in"), accounts=["main"])
    wait_until(lambda: of.http.post("/messages?directory=in", content=SIMPLE).is_success, "the directory")


def _certificate_in(folder: Path) -> dict[str, str]:
    """Settings of a service that speaks TLS."""
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "chain.pem")
    return {"MPU_TLS_CERTIFICATE_FILE": f"{folder}/chain.pem", "MPU_TLS_KEY_FILE": f"{folder}/key.pem"}


@pytest.mark.parametrize("tls", [False, True])
def test_silent_connections_take_neither_the_files_of_mail_nor_the_place_of_others(tmp_path: Path, tls: bool) -> None:
    """Three hundred that say nothing, on a service that may have 240 files open: no more than sixty stay."""
    files = _certificate_in(tmp_path) if tls else {}
    with (
        service(tmp_path / "data", tmp_path, FEW_FILES, **files) as listening,
        contextlib.ExitStack() as held,
    ):
        _make_inbox(listening, tmp_path)
        before = _sockets(listening)
        silent = [held.enter_context(connected(listening)) for _ in range(300)]
        for _ in range(5):
            with httpx.Client(base_url=listening.http.base_url, headers=listening.http.headers, verify=False) as http:
                taken = http.post("/messages?directory=in", content=SIMPLE)
                assert taken.status_code == 202, taken.text
        assert is_closed(silent[0]), "the oldest made room"
        assert _sockets(listening) <= before + 60


def test_a_header_has_a_time_to_be_whole(tmp_path: Path) -> None:
    settings = {"MPU_REQUEST_HEADER_TIMEOUT_SECONDS": "0.5"}
    with service(tmp_path / "data", tmp_path, **settings) as listening, contextlib.ExitStack() as held:
        silent, half, second, drip = (held.enter_context(connected(listening)) for _ in range(4))
        half.sendall(LIVE[:20])
        second.sendall(LIVE + LIVE[:20])
        assert answer_on(second).status == 200
        for connection in (half, second):
            answer = answer_on(connection)
            assert (answer.status, answer.problem()) == (408, "request_timeout")
            assert is_closed(connection)
        assert is_closed(silent)
        while not _ended_at(drip, b"\r\n"):  # lines before a request are skipped, and no reason to wait for ever
            pass


def _ended_at(connection: socket.socket, octets: bytes) -> bool:
    connection.settimeout(0.1)
    try:
        connection.sendall(octets)
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_where_every_place_is_at_work_new_connections_are_closed(tmp_path: Path) -> None:
    with (
        service(tmp_path / "data", tmp_path, MPU_MAX_HTTP_CONNECTIONS="2") as listening,
        contextlib.ExitStack() as held,
    ):
        working = [held.enter_context(connected(listening)) for _ in range(2)]
        for connection in working:
            begin_body(connection, "POST /drain", length=2)
        for _ in range(3):
            with connected(listening) as another:
                assert is_closed(another)
        for connection in working:
            connection.sendall(b"{}")
            assert answer_on(connection).status == 200
        assert listening.http.get("/queue").status_code == 200


def test_an_answer_that_nobody_takes_is_cut_off(tmp_path: Path) -> None:
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: mpu\r\n\r\n" * 200
    with service(tmp_path / "data", tmp_path, MPU_ANSWER_TIMEOUT_SECONDS="0.5") as listening:
        before = _sockets(listening)
        with connected(listening) as deaf:
            deaf.sendall(asked)
            wait_until(lambda: _sockets(listening) > before, "the connection")
            wait_until(lambda: _sockets(listening) == before, "its end")


def test_a_client_that_takes_its_answers_slowly_over_tls_gets_them_whole(tmp_path: Path) -> None:
    """What lies below the TLS layer is not taken yet."""
    count, limits = 30, {"MPU_ANSWER_TIMEOUT_SECONDS": "0.5", "MPU_REQUEST_HEADER_TIMEOUT_SECONDS": "0.5"}
    with service(tmp_path / "data", tmp_path, **limits, **_certificate_in(tmp_path)) as listening:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with connected(listening) as plain, context.wrap_socket(plain) as slow:
            last = b"GET /openapi.json HTTP/1.1\r\nHost: mpu\r\nConnection: close\r\n\r\n"
            slow.sendall(last.replace(b"Connection: close\r\n", b"") * (count - 1) + last)
            taken, until = bytearray(), time.monotonic() + 2.5
            while time.monotonic() < until:
                taken += slow.recv(16_384)
                time.sleep(0.1)  # what a slow network does
            while data := slow.recv(1 << 20):
                taken += data
        assert taken.count(b"HTTP/1.1 200") == count
        assert taken.endswith(b"}")


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("bodies")
    with service(
        root / "data",
        root,
        MPU_UPLOADS_MAX="1",
        MPU_REQUEST_BODY_TIMEOUT_SECONDS="1",
        MPU_REQUEST_DEADLINE_SECONDS="2",
    ) as running_service:
        _make_inbox(running_service, root)
        yield running_service


@pytest.mark.parametrize(
    "call",
    ["POST /messages?directory=in", "POST /accounts", "PATCH /accounts/main", "GET /health/live", "DELETE /accounts/x"],
)
@pytest.mark.parametrize("sent", [b"", b"{"])
def test_a_body_that_does_not_come_is_not_waited_for(impatient: Service, call: str, sent: bytes) -> None:
    """Neither by its client, which is told, nor by others: there is one thread for uploads here."""
    with contextlib.ExitStack() as held:
        stalled = [held.enter_context(connected(impatient)) for _ in range(3)]
        for connection in stalled:
            begin_body(connection, call)
            connection.sendall(sent)
        assert impatient.http.post("/messages?directory=in", content=SIMPLE).status_code == 202
        for connection in stalled:
            answer = answer_on(connection)
            assert (answer.status, answer.problem()) == (408, "request_timeout")
            assert is_closed(connection)
    assert not [path for path in (impatient.data_dir.parent / "in" / ".mpu").iterdir() if path.name.startswith("tmp")]


def test_a_body_that_drips_has_an_end_too(impatient: Service) -> None:
    with connected(impatient) as connection:
        begin_body(connection, "POST /messages?directory=in")
        connection.settimeout(0.1)
        received = b""
        while not received:
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                received = connection.recv(1)
        connection.settimeout(30)
        assert received == b"H"
        assert b"408" in connection.recv(20)


# --- the encryption key -----------------------------------------------------------------------------------------------


def _modes(data: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (data, *data.iterdir())}


async def test_files_of_the_data_directory_are_closed_to_others(tmp_path: Path) -> None:
    """Whatever umask the service has; and a file that was opened up by mistake is closed again."""
    before = os.umask(0)
    try:
        async with SmtpServer() as server, running(tmp_path, [account(server)], api_key=None) as bench:
            modes = _modes(tmp_path / "data")
            assert {KEY_FILE, DATABASE_FILE, "api-key", f"{DATABASE_FILE}-wal", "data"} <= set(modes)
            assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
            assert bench.relay.state == "ready"
        (tmp_path / "data" / KEY_FILE).chmod(0o644)
        async with running(tmp_path):
            assert _modes(tmp_path / "data")[KEY_FILE] == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("step", ["added", "resealed", "dropped"])
async def test_a_rotation_that_was_killed_is_finished_by_the_next_start(tmp_path: Path, step: str) -> None:
    """Between its steps here; at every system call in tests/integration/test_store_secrets.py."""

    class Killed(BaseException):
        pass

    def kill(name: str) -> None:
        if name == step:
            raise Killed

    key_file = tmp_path / "data" / KEY_FILE
    async with SmtpServer(credentials={"u": PLANTED}, mechanisms=["PLAIN"], require_auth=True) as server:
        value = account(server, auth=AuthMethod.AUTO, username="u", password=PLANTED)
        async with running(tmp_path, [value]) as bench:
            old = key_file.read_text()
            with pytest.raises(Killed):
                await bench.relay.store.rotate_secret_key(step=kill)
        async with running(tmp_path, [], pickups=[]) as bench:
            bench.paths["pickup"] = tmp_path / "spool" / "pickup"
            assert (await bench.http.get("/health/ready")).json() == {"status": "ready"}
            bench.drop("a.eml", SIMPLE)
            await bench.sends(1)
        now = [line for line in key_file.read_text().splitlines() if not line.startswith("#")]
        assert len(now) == 1
        assert now[0] not in old
        assert _modes(tmp_path / "data")[KEY_FILE] == 0o600


async def test_no_rotation_under_a_running_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from core.runtime.instance import DataDirLock

    async with running(tmp_path):
        pass
    before = (tmp_path / "data" / KEY_FILE).read_text()
    with DataDirLock(tmp_path / "data"):  # as `mpu serve` holds it
        assert await asyncio.to_thread(mpu, "rotate-secrets", "--data-dir", tmp_path / "data") == 1
    assert "Stop the service first" in capsys.readouterr().err
    assert (tmp_path / "data" / KEY_FILE).read_text() == before


# --- what is only read ------------------------------------------------------------------------------------------------


async def test_no_pickle_and_no_pickled_job_store(tmp_path: Path) -> None:
    for path, tree in _sources():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
                assert not names & {"pickle", "cPickle", "dill", "shelve", "marshal", "jsonpickle"}, path
                assert not any("jobstores.sqlalchemy" in name for name in names), path
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        stores = bench.relay.scheduler._scheduler._jobstores
        assert {type(store).__name__ for store in stores.values()} == {"MemoryJobStore"}
    connection = sqlite3.connect(tmp_path / "data" / DATABASE_FILE)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    assert not [name for name in tables if "job" in name]


def test_the_container_has_its_own_user_and_needs_no_writable_root() -> None:
    lines = (ROOT / "Dockerfile").read_text()
    run = " ".join(line.lstrip("# ").rstrip("\\") for line in lines.splitlines() if line.startswith("#"))
    for option in ("--read-only", "--cap-drop ALL", "--security-opt no-new-privileges", "--stop-timeout 60"):
        assert option in run
    stage = lines[lines.rindex("\nFROM ") :]
    assert re.search(r"^USER mpu$", stage, re.MULTILINE)
    assert stage.index("\nUSER mpu") < stage.index("\nENTRYPOINT")
    assert not re.search(r"^USER (root|0)", stage, re.MULTILINE)
    assert "chmod 777" not in lines
    assert re.search(r'VOLUME \["/var/lib/mpu", "/var/spool/mpu"\]', stage), "all that is written lies in volumes"
    assert "PYTHONDONTWRITEBYTECODE=1" in stage
    assert not re.search(r"(?i)\b(ARG|ENV)\b.*(password|secret|token|api_key)", lines), "no secret in a layer"
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored, "the builder gets what is named only, so no ./var"
    assert "!var" not in ignored


def test_the_unit_shuts_the_service_in() -> None:
    unit = configparser.RawConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # as the module's documentation does it
    unit.read(ROOT / "deploy" / "mpu.service")
    found = dict(unit["Service"])
    expected = {
        "User": "mpu",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "PrivateDevices": "yes",
        "CapabilityBoundingSet": "CAP_LEASE",
        "AmbientCapabilities": "CAP_LEASE",
        "RestrictSUIDSGID": "yes",
        "MemoryDenyWriteExecute": "yes",
        "StateDirectoryMode": "0700",
        "UMask": "0007",
        "TimeoutStopSec": "60",
        "LimitCORE": "0",
    }
    assert {name: found.get(name) for name in expected} == expected


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


@pytest.mark.parametrize(
    ("package", "floor"),
    [("starlette", "1.0.1"), ("h11", "0.16"), ("aiosmtpd", "1.4.6"), ("cryptography", "46")],
)
def test_floors_of_the_lock(package: str, floor: str) -> None:
    for lock in ("requirements.lock", "requirements-dev.lock"):
        found = re.findall(rf"^{package}==(\S+)", (ROOT / lock).read_text(), re.MULTILINE)
        assert found, lock
        assert all(_version(version) >= _version(floor) for version in found)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (line,) = [line for line in project if line.startswith(package + ">=")]
    assert _version(line) >= _version(floor), "a new resolution must not go below it"
    unhashed = re.search(r"^[a-z0-9-]+==\S+\s*$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert unhashed is None, "each package is pinned by its hash"


def test_bandit_is_part_of_lint_and_each_skip_has_its_reason() -> None:
    assert (
        "bandit --quiet --configfile pyproject.toml --recursive api core migrations" in (ROOT / "Makefile").read_text()
    )
    text = (ROOT / "pyproject.toml").read_text()
    skips = tomllib.loads(text)["tool"]["bandit"]["skips"]
    for skip in skips:
        assert re.search(rf'"{skip}", # \w+.*: .{{20,}}', text), skip
    for path, _ in _sources():
        for line in path.read_text().splitlines():
            assert not re.search(r"# nosec(?! B\d)", line), f"{path}: which test?"
