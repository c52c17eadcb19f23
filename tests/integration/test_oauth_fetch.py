"""One question to a token endpoint: over which wire, to whom, and with what signature."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from core.domain.account import OAuth, OAuthGrant, OAuthProvider
from core.domain.oauth import Answer, Granted, Trouble
from core.smtp.dialogue import TokenFailed
from core.transport.oauth import KeyUnusable, fetch, host_of, post, read_service_account_key
from tests.support.clock import ManualClock
from tests.support.smtp_server import certificate
from tests.support.token_server import Reply, TokenServer, service_key

FORM = {"grant_type": "client_credentials", "client_id": "app", "client_secret": "its-secret"}


async def ask(url: str, *, allow_private: bool = True) -> Answer | Trouble:
    return await post(url, FORM, clock=ManualClock(), timeout_seconds=5, allow_private=allow_private)


async def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, context = certificate()
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    async with TokenServer(context=context) as tokens:
        trouble = await ask(tokens.url)
        assert isinstance(trouble, Trouble)
        assert (trouble.code, tokens.forms) == ("token_unreachable", [])
        assert "certificate" in trouble.detail.lower()
        monkeypatch.setenv("SSL_CERT_FILE", str(file))  # what the system trusts
        found = await ask(tokens.url)
        assert isinstance(found, Answer)
        assert found.status == 200
        Resolver(monkeypatch, ["127.0.0.1"])
        trouble = await ask(tokens.url.replace("127.0.0.1", "id.example"))
        assert isinstance(trouble, Trouble), "the certificate is another host's, though the address's"
        assert "id.example" in trouble.detail


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_what_a_name_resolves_to_is_judged(host: str) -> None:
    async with TokenServer() as tokens:
        url = tokens.url.replace("127.0.0.1", host)
        trouble = await ask(url, allow_private=False)
        assert isinstance(trouble, Trouble)
        assert "private address" in trouble.detail
        assert tokens.forms == []
        assert isinstance(await ask(url), Answer)


class Resolver:
    """Names in place of DNS: each answer once, the last of them for good."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self.answers = list(answers)
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        if host not in ("id.example", b"id.example"):
            return self._real(host, port, *rest, **more)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [entry for address in found for entry in self._real(address, port, *rest, **more)]


async def test_what_was_judged_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that means something else when it is asked for again (DNS rebinding)."""
    async with TokenServer() as tokens:
        resolver = Resolver(monkeypatch, ["127.0.0.1"], ["169.254.169.254"])
        assert isinstance(await ask(tokens.url.replace("127.0.0.1", "id.example")), Answer)
        assert tokens.hosts == [f"id.example:{tokens.port}"]
        resolver.answers = [["203.0.113.7", "127.0.0.1"]]
        trouble = await ask(tokens.url.replace("127.0.0.1", "id.example"), allow_private=False)
        assert isinstance(trouble, Trouble)
        assert "private address" in trouble.detail
        assert len(tokens.forms) == 1


async def test_the_next_address_is_asked_where_one_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TokenServer() as tokens:
        Resolver(monkeypatch, ["127.0.0.2", "127.0.0.1"])
        url = tokens.url.replace("127.0.0.1", "id.example")
        assert isinstance(await ask(url), Answer)
        assert len(tokens.forms) == 1
    trouble = await ask(url)
    assert isinstance(trouble, Trouble)
    assert trouble.code == "token_unreachable"


@pytest.mark.parametrize("url", ["http://169.254.169.254/token", "http://[fe80::1]/token", "https://no.invalid/token"])
async def test_where_nothing_may_or_can_connect(url: str) -> None:
    trouble = await ask(url)
    assert isinstance(trouble, Trouble)
    assert (trouble.code, trouble.passing) == ("token_unreachable", True)


async def test_no_proxy_of_the_environment_hears_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TokenServer() as tokens, TokenServer() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert isinstance(await ask(tokens.url), Answer)
        assert (len(tokens.forms), len(proxy.forms)) == (1, 0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0),
        ("soon", None),
        ("-1", None),
        ("9" * 400, 999_999_999),
    ],
)
async def test_when_to_come_again(value: str, seconds: float | None) -> None:
    async with TokenServer() as tokens:
        tokens.script = [Reply(429, b"", {"Retry-After": value})]
        assert await ask(tokens.url) == Answer(429, b"", seconds)


async def test_a_service_account_signs_for_the_mailbox() -> None:
    async with TokenServer() as tokens:
        key = json.dumps(service_key("robot@project.example"))
        oauth = OAuth(OAuthProvider.GOOGLE, OAuthGrant.SERVICE_ACCOUNT, token_url=tokens.url, service_account_key=key)
        clock = ManualClock(1_800_000_000)
        assert await fetch(oauth, "relay@example.org", clock=clock, timeout_seconds=5) == Granted("access-1", 3600)
        assert tokens.claims == [
            {
                "iss": "robot@project.example",
                "sub": "relay@example.org",
                "scope": "https://mail.google.com/",
                "aud": tokens.url,
                "iat": 1_800_000_000,
                "exp": 1_800_003_600,
            }
        ]


def _elliptic() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        json.dumps({"client_email": "a@b"}),
        json.dumps({**service_key(), "private_key": "-----BEGIN PRIVATE KEY-----\nPLANTED\n-----END PRIVATE KEY-----"}),
        json.dumps({**service_key(), "private_key": _elliptic()}),
    ],
)
async def test_a_key_that_is_none_is_told_without_showing_it(text: str) -> None:
    with pytest.raises(KeyUnusable) as caught:
        read_service_account_key(text)
    assert "PLANTED" not in str(caught.value)
    oauth = OAuth(OAuthProvider.GOOGLE, OAuthGrant.SERVICE_ACCOUNT, service_account_key=text)
    with pytest.raises(TokenFailed) as failed:
        await fetch(oauth, "u", clock=ManualClock(), timeout_seconds=5)
    assert (failed.value.code, failed.value.pause_seconds) == ("token_denied", None)


def test_people_are_shown_host_and_port_alone() -> None:
    assert host_of("https://u:p@id.example:8443/token?x=y") == "id.example:8443"
    assert host_of("https://id.example/token") == "id.example"
