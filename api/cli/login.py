"""`mpu account login NAME`: a person logs in at the provider, on any device, and the service gets the refresh token.

The code and the polling are RFC 8628 (core/domain/device_login.py). The refresh token goes over the HTTP interface into
the service's database and nowhere else; neither it nor a client secret is ever shown or an option. A client secret that
the service reads from outside stays there: this command needs it once, and gives it to the provider only.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli import account
from api.cli.client import Client, Failed, KeyFile, Url, segment
from api.cli.output import EXIT_FAILED, complain, duration, say
from core.domain import device_login as device
from core.domain.account import OAuth, OAuthGrant, OAuthProvider
from core.domain.oauth import ENDPOINTS, Answer, Granted, Trouble, token_url
from core.runtime.clock import SystemClock
from core.runtime.oauth_rules import url_reason
from core.transport.oauth import host_of, post

ANSWER_SECONDS = 30.0  # of the provider
CLOCK = SystemClock()

app = account.app

ProviderOption = Annotated[OAuthProvider | None, typer.Option("--provider", help="Default: the account's.")]
ClientId = Annotated[str | None, typer.Option(help="The application's id. Default: the account's.")]
Tenant = Annotated[str | None, typer.Option(help="Microsoft: the tenant. Default: the account's, or any.")]
TokenUrl = Annotated[
    str | None, typer.Option("--token-url", help="The token endpoint. Default: the account's, or the provider's.")
]
DeviceUrl = Annotated[str | None, typer.Option(help="Where a login begins. Default: the provider's.")]
Scope = Annotated[str | None, typer.Option(help="Default: the account's, or the provider's.")]
SecretFile = Annotated[
    Path | None,
    typer.Option(
        "--client-secret-file",
        help="File with the application's secret; else MPU_OAUTH_CLIENT_SECRET, else it is asked for where needed.",
        dir_okay=False,
    ),
]


@app.command("login")
def login(
    name: Annotated[str, typer.Argument(help="The account.")],
    provider: ProviderOption = None,
    client_id: ClientId = None,
    tenant: Tenant = None,
    endpoint: TokenUrl = None,
    device_url: DeviceUrl = None,
    scope: Scope = None,
    client_secret_file: SecretFile = None,
    url: Url = None,
    key_file: KeyFile = None,
) -> None:
    """Log an account in at its provider with a code, in any browser; the service keeps the refresh token.

    Exit codes: 0 logged in, 1 not, 2 usage, 4 the service does not answer.
    """
    path = f"/accounts/{segment(name)}"
    given = {"provider": provider, "client_id": client_id, "tenant": tenant, "token_url": endpoint, "scope": scope}
    options = {key: value for key, value in given.items() if value is not None}
    with Client(url, key_file) as client:
        saved = client.get(path)["oauth"] or {}
        oauth = _settings(saved, options, client_secret_file)
        start = device_url or device.device_url(oauth)
        if start is None:
            raise typer.BadParameter("is needed where the provider is other", param_hint="--device-url")
        _check_urls(oauth, start)
        granted = asyncio.run(_login(oauth, start))
        patch = {**options, "grant": OAuthGrant.REFRESH_TOKEN, "refresh_token": granted.refresh_token}
        if not saved:
            patch["provider"] = oauth.provider
        if saved.get("client_secret_from") is not None:
            patch["client_secret_from"] = saved["client_secret_from"]  # where it goes may be another place now
        elif oauth.client_secret is not None:
            patch["client_secret"] = oauth.client_secret
        outside = saved.get("refresh_token_from")
        patch |= {key: None for key in ("refresh_token_from", "service_account_key_from") if saved.get(key) is not None}
        client.call("PATCH", path, body={"oauth": patch})
    say(f"account {name} is logged in; the service has its refresh token")
    if outside is not None:
        say(f"It is not read from {outside} any more: refresh_token_from is null now.")


def _settings(saved: dict[str, Any], options: dict[str, Any], secret_file: Path | None) -> OAuth:
    """What the account has, with the options in its place."""
    fields: dict[str, Any] = {name: saved.get(name) for name in ("client_id", "tenant", "token_url", "scope")} | options
    named = fields.pop("provider", saved.get("provider"))
    if named is None:
        raise typer.BadParameter("the account names none: microsoft, google or other", param_hint="--provider")
    if fields["client_id"] is None:
        raise typer.BadParameter("the account has none: the id of the registered application", param_hint="--client-id")
    provider = OAuthProvider(named)
    if fields["token_url"] is None and ENDPOINTS[provider, OAuthGrant.REFRESH_TOKEN].url is None:
        raise typer.BadParameter("is needed where the provider is other", param_hint="--token-url")
    has_secret = saved.get("client_secret_set") or saved.get("client_secret_from") is not None
    wanted = bool(has_secret) or provider is OAuthProvider.GOOGLE
    secret = _client_secret(secret_file, wanted=wanted)
    return OAuth(provider, OAuthGrant.REFRESH_TOKEN, **fields, client_secret=secret)


def _client_secret(file: Path | None, *, wanted: bool) -> str | None:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is no text"
            raise typer.BadParameter(f"{file}: {reason}", param_hint="--client-secret-file") from None
    given = os.environ.get("MPU_OAUTH_CLIENT_SECRET")
    if given or not wanted:
        return given or None
    if not sys.stdin.isatty():
        detail = "the application has a secret: set MPU_OAUTH_CLIENT_SECRET or --client-secret-file"
        raise typer.BadParameter(detail, param_hint="--client-secret-file")
    return str(typer.prompt("Client secret", hide_input=True, err=True))


def _check_urls(oauth: OAuth, start: str) -> None:
    for option, where in (("--device-url", start), ("--token-url", token_url(oauth))):
        reason = url_reason(where)
        if reason is not None:
            raise typer.BadParameter(reason, param_hint=option)


async def _login(oauth: OAuth, start: str) -> Granted:
    """Begin, show, and ask until somebody has logged in. Raises Failed, having said why."""
    answer = await post(start, device.begin_form(oauth), clock=CLOCK, timeout_seconds=ANSWER_SECONDS)
    begun = device.read_begin(answer, oauth, where=host_of(start)) if isinstance(answer, Answer) else answer
    if isinstance(begun, Trouble):
        raise _failed(begun)
    say(f"Open   {begun.whole_url or begun.url}\nCode   {begun.user_code}")
    say(f"and log in as the account's mailbox. The code is good for {duration(begun.valid_seconds)}; waiting ...")
    granted = await _poll(oauth, begun)
    if granted.refresh_token is None:
        complain("the provider gave no refresh token", "The scope must ask for one (offline_access).")
        raise Failed(EXIT_FAILED)
    return granted


async def _poll(oauth: OAuth, begun: device.Begun) -> Granted:
    where = token_url(oauth)
    interval, waited = begun.interval_seconds, 0.0
    while waited < begun.valid_seconds:
        await _pause(interval)
        waited += max(interval, 1.0)  # how long answers took is not counted: the provider ends it, too
        form = device.poll_form(oauth, begun)
        answer = await post(where, form, clock=CLOCK, timeout_seconds=ANSWER_SECONDS)
        if isinstance(answer, Trouble):
            interval = device.longer(interval)
            continue
        found = device.read_poll(answer, oauth, begun, interval, where=host_of(where))
        if isinstance(found, Granted):
            return found
        if isinstance(found, Trouble):
            raise _failed(found)
        interval = found
    complain("nobody logged in in time", "Begin again.")
    raise Failed(EXIT_FAILED)


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _failed(trouble: Trouble) -> Failed:
    complain(trouble.detail, trouble.remedy)
    return Failed(EXIT_FAILED)
