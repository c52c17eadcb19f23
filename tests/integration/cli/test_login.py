"""`mpu account login`: RFC 8628 against a real endpoint, and what the service is told at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from api.cli import login
from core.domain.account import OAuth, OAuthGrant, OAuthProvider
from core.domain.device_login import (
    Begun,
    begin_form,
    device_url,
    poll_form,
    read_begin,
    read_poll,
)
from core.domain.oauth import Answer, Granted, Trouble
from tests.support.command import mpu
from tests.support.http_answers import Answers, http_answers
from tests.support.token_server import DENIED, HTML, PENDING, SLOW_DOWN, Reply, TokenServer, refusal

SAVED = {"provider": "other", "grant": "refresh_token", "tenant": None, "client_id": "app", "scope": "mail offline"}
NO_SECRETS = {"client_secret_set": False, "refresh_token_set": False, "service_account_key_set": False}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    with http_answers() as answers:
        monkeypatch.setenv("MPU_URL", answers.url)
        monkeypatch.setenv("MPU_API_KEY", "k" * 32)
        answers.lay("PATCH /accounts/office", {})
        yield answers


@pytest.fixture
async def tokens() -> AsyncIterator[TokenServer]:
    async with TokenServer() as server:
        server.clients["app"] = None
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited, without waiting."""
    waited: list[float] = []

    async def note(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(login, "_pause", note)
    return waited


def lay(service: Answers, tokens: TokenServer, **changes: Any) -> None:
    service.lay("GET /accounts/office", {"oauth": {**SAVED, **NO_SECRETS, "token_url": tokens.url, **changes}})


def patches(service: Answers) -> list[Any]:
    return [asked.body for asked in service.asked if asked.method == "PATCH"]


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(mpu, "account", "login", "office", *arguments)


async def test_a_login_waits_as_it_is_told_and_gives_the_service_the_refresh_token(
    service: Answers, tokens: TokenServer, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    lay(service, tokens)
    tokens.device = [PENDING, SLOW_DOWN, PENDING, Reply(503), PENDING]
    assert await run("--device-url", tokens.device_url) == 0
    assert pauses == [5, 5, 10, 10, 20, 20]
    assert patches(service) == [{"oauth": {"grant": "refresh_token", "refresh_token": "refresh-1"}}]
    said = capsys.readouterr()
    assert "https://example.com/device" in said.out
    assert "WDJB-MJHT" in said.out
    assert "refresh-1" not in said.out + said.err
    assert tokens.forms[0]["device_code"] == "d1"
    assert "client_secret" not in tokens.forms[0]


async def test_an_account_without_oauth_gets_what_the_options_say(
    service: Answers,
    tokens: TokenServer,
    pauses: list[float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPU_OAUTH_CLIENT_SECRET", "its-secret")
    service.lay("GET /accounts/office", {"oauth": None})
    tokens.clients["app"] = "its-secret"
    options = ["--provider", "microsoft", "--client-id", "app", "--tenant", "example.org", "--token-url", tokens.url]
    assert await run("--device-url", tokens.device_url, *options) == 0
    (patch,) = patches(service)
    assert patch["oauth"] == {
        "provider": "microsoft",
        "grant": "refresh_token",
        "client_id": "app",
        "tenant": "example.org",
        "token_url": tokens.url,
        "client_secret": "its-secret",
        "refresh_token": "refresh-1",
    }
    said = capsys.readouterr()
    assert "its-secret" not in said.out + said.err


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([PENDING, DENIED], "declined"),
        ([refusal("expired_token")], "in time"),
        ([refusal("invalid_client", "AADSTS7000218: must contain client_secret")], "public client flows"),
        ([PENDING] * 200, "in time"),
    ],
)
async def test_a_login_that_comes_to_nothing_changes_nothing(
    service: Answers,
    tokens: TokenServer,
    pauses: list[float],
    capsys: pytest.CaptureFixture[str],
    answers: list[Reply],
    said: str,
) -> None:
    lay(service, tokens)
    tokens.device, tokens.interval = list(answers), 60
    assert await run("--device-url", tokens.device_url) == 1
    assert said in capsys.readouterr().err
    assert patches(service) == []


@pytest.mark.parametrize(
    ("saved", "options", "code", "said"),
    [
        ({}, [], 2, "--device-url"),
        ({"client_id": None}, ["--device-url", "{}"], 2, "--client-id"),
        ({"provider": None}, ["--device-url", "{}"], 2, "--provider"),
        ({"token_url": None}, ["--device-url", "{}"], 2, "--token-url"),
        ({"client_secret_set": True}, ["--device-url", "{}"], 2, "MPU_OAUTH_CLIENT_SECRET"),
        ({}, ["--device-url", "http://192.0.2.1/device"], 2, "https"),
        ({}, ["--device-url", "http://127.0.0.1:9/device"], 1, "127.0.0.1:9"),
        ({"client_id": "nobody"}, ["--device-url", "{}"], 1, "no such client"),
        ({}, ["--device-url", "{}", "--client-secret-file", "nowhere"], 2, "No such file"),
    ],
)
async def test_what_is_missing_or_wrong_is_said(
    service: Answers,
    tokens: TokenServer,
    pauses: list[float],
    capsys: pytest.CaptureFixture[str],
    saved: dict[str, Any],
    options: list[str],
    code: int,
    said: str,
) -> None:
    lay(service, tokens, **saved)
    assert await run(*(option.format(tokens.device_url) for option in options)) == code
    told = capsys.readouterr()
    assert said in told.err.replace("\n", " ")
    assert patches(service) == []
    assert tokens.forms == []


PUBLIC = OAuth(OAuthProvider.MICROSOFT, OAuthGrant.REFRESH_TOKEN, client_id="c")
GOOGLE = OAuth(OAuthProvider.GOOGLE, OAuthGrant.REFRESH_TOKEN, client_id="c", client_secret="s3cret")
BEGUN = Begun("d", "u", "https://x", None, 900, 5)


def test_what_is_asked_where() -> None:
    assert device_url(PUBLIC) == "https://login.microsoftonline.com/common/oauth2/v2.0/devicecode"
    assert device_url(GOOGLE) == "https://oauth2.googleapis.com/device/code"
    assert begin_form(PUBLIC) == {"client_id": "c", "scope": "https://outlook.office.com/SMTP.Send offline_access"}
    assert poll_form(GOOGLE, BEGUN) == {
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
        "device_code": "d",
        "client_id": "c",
        "client_secret": "s3cret",
    }


def test_googles_own_words_are_understood_and_its_refusal_explained() -> None:
    body = b'{"device_code": "d", "user_code": "u", "verification_url": "https://g", "expires_in": 1800, "interval": 0}'
    assert read_begin(Answer(200, body), GOOGLE, where="x") == Begun("d", "u", "https://g", None, 1800, 0)
    trouble = read_begin(Answer(400, b'{"error": "invalid_scope"}'), GOOGLE, where="x")
    assert isinstance(trouble, Trouble)
    assert "OAuth Playground" in trouble.remedy


@pytest.mark.parametrize("answer", [HTML, Reply(200, b'{"device_code": "d"}'), Reply(200, b'{"access_token": "a"}')])
def test_what_is_no_beginning(answer: Reply) -> None:
    trouble = read_begin(Answer(answer.status, answer.body), PUBLIC, where="x")
    assert isinstance(trouble, Trouble)
    assert trouble.code == "token_malformed"


def test_a_token_ends_it() -> None:
    found = read_poll(Answer(200, b'{"access_token": "a", "refresh_token": "r"}'), PUBLIC, BEGUN, 5, where="x")
    assert found == Granted("a", 3600, "r")
