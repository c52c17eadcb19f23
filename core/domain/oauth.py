"""Access tokens for XOAUTH2: where each provider gives them, what it is told, and what its answers mean.

`ENDPOINTS` is the whole of it: a row for each provider and grant (RFC 6749 sections 4.4 and 6, RFC 7523 section 2.1).
Answers follow RFC 6749 sections 5.1 and 5.2; what providers say beyond that is in `REMEDIES`. No text that comes out of
here holds a secret: what a provider repeats of the request is masked, or not shown at all (masking.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from core.domain.account import OAuth, OAuthGrant, OAuthProvider
from core.domain.masking import repeats, without

SECRETS = ("client_secret", "refresh_token", "service_account_key")  # fields of OAuth that are never shown
REFERENCES = {name: f"{name}_from" for name in SECRETS}  # fields that say where a secret lies outside
MANY_LINES = frozenset({"service_account_key"})  # secrets that are files of several lines
MINUTE = 60.0
DEFAULT_LIFETIME_SECONDS = 3600.0  # RFC 6749 section 5.1: expires_in may be left out
MAX_LIFETIME_SECONDS = 366 * 86_400.0
MAX_TOKEN_CHARACTERS = 16_384
MAX_RETRY_AFTER_SECONDS = 3600.0
_MAX_DETAIL_CHARACTERS = 400
_MAX_WORDS_CHARACTERS = 16_384  # longer ones are not looked through, nor shown
_TOKEN = re.compile(r"[\x21-\x7e]+")  # VSCHAR without the blank: nothing that could end the login's response early

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
_MICROSOFT = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0"
_GOOGLE = "https://oauth2.googleapis.com"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row. `{tenant}` in the URLs is the account's, or `common`."""

    url: str | None  # None: the account's token_url
    scope: str | None  # where the account names none
    grant_type: str
    needs: tuple[str, ...]  # fields of OAuth without which nothing can be asked for
    sends: tuple[str, ...] = ()  # fields that go along, where they are set
    device_url: str | None = None  # RFC 8628 section 3.1: where a person's login begins


ENDPOINTS: dict[tuple[OAuthProvider, OAuthGrant], Endpoint] = {
    (OAuthProvider.MICROSOFT, OAuthGrant.CLIENT_CREDENTIALS): Endpoint(
        f"{_MICROSOFT}/token",
        "https://outlook.office365.com/.default",  # application permission SMTP.SendAsApp
        "client_credentials",
        ("tenant", "client_id", "client_secret"),
        ("client_id", "client_secret"),
    ),
    (OAuthProvider.MICROSOFT, OAuthGrant.REFRESH_TOKEN): Endpoint(
        f"{_MICROSOFT}/token",
        "https://outlook.office.com/SMTP.Send offline_access",
        "refresh_token",
        ("client_id",),
        ("client_id", "client_secret", "refresh_token"),
        f"{_MICROSOFT}/devicecode",
    ),
    (OAuthProvider.GOOGLE, OAuthGrant.REFRESH_TOKEN): Endpoint(
        f"{_GOOGLE}/token",
        "https://mail.google.com/",
        "refresh_token",
        ("client_id", "client_secret"),
        ("client_id", "client_secret", "refresh_token"),
        f"{_GOOGLE}/device/code",
    ),
    (OAuthProvider.GOOGLE, OAuthGrant.SERVICE_ACCOUNT): Endpoint(
        f"{_GOOGLE}/token",
        "https://mail.google.com/",  # in the assertion, as is the mailbox: the account's username
        JWT_BEARER,
        ("service_account_key",),
    ),
    (OAuthProvider.OTHER, OAuthGrant.CLIENT_CREDENTIALS): Endpoint(
        None,
        None,
        "client_credentials",
        ("token_url", "client_id", "client_secret"),
        ("client_id", "client_secret"),
    ),
    (OAuthProvider.OTHER, OAuthGrant.REFRESH_TOKEN): Endpoint(
        None,
        None,
        "refresh_token",
        ("token_url", "client_id"),
        ("client_id", "client_secret", "refresh_token"),
    ),
}

_LOGIN_AGAIN = "Log in again: mpu account login NAME."
_CONSENT = (
    "An administrator must consent to the application's permission: SMTP.SendAsApp, or SMTP.Send where delegated."
)

_NEW_LOGIN = f"A rule of the tenant (conditional access) wants a new login. {_LOGIN_AGAIN}"
_ENDED = f"The refresh token has ended (password changed, or not used for long). {_LOGIN_AGAIN}"
_RAPT = f"Google wants a new login (session control of the organisation). {_LOGIN_AGAIN}"
_DELEGATION = (
    "Let the service account's client id have the scope https://mail.google.com/ in the Google Admin console "
    "(domain-wide delegation), and name the mailbox as username."
)
_OTHER_GRANT = "The token endpoint does not give tokens this way: correct provider, grant and token_url."

# first match wins; searched for in "error: error_description", without case
REMEDIES: tuple[tuple[str, str], ...] = (
    (r"AADSTS7000215\b", "The client secret is wrong: give the secret's value, not its id, as client_secret."),
    (r"AADSTS7000222\b", "The client secret has expired: make a new one in Microsoft Entra and give it."),
    (r"AADSTS700016\b", "There is no such application in this tenant: correct client_id or tenant."),
    (r"AADSTS90002\b|AADSTS900023\b", "There is no such tenant: correct tenant."),
    (r"AADSTS7000218\b", "This application wants its client_secret, or must be set to allow public client flows."),
    (r"AADSTS65001\b|AADSTS650057\b", _CONSENT),
    (r"AADSTS70011\b|AADSTS1002012\b", "The scope is wrong for this grant: leave `scope` out."),
    (r"AADSTS500(57|34)\b", "The user is disabled or does not exist any more."),
    (r"AADSTS(53003|50076|50079|50158|530003)\b", _NEW_LOGIN),
    (r"AADSTS(50173|700082|700084|70043|70008|54005)\b", _ENDED),
    (r"invalid_rapt|rapt_required", _RAPT),
    (r"reasonable timeframe|iat and exp", "This machine's clock is wrong: set it, by NTP."),
    (r"invalid jwt signature|invalid_jwt", "The service account's key was deleted or is another's: make a new one."),
    (r"account not found|invalid email or user", "Correct the service account's key, or the mailbox in `username`."),
    (r"using this method|access_denied|not authorized for any of the scopes", _DELEGATION),
    (r"deleted_client|invalid_client|unauthorized_client", "Correct client_id and client_secret of the account."),
    (r"invalid_scope", "Correct the account's scope, or leave it out."),
    (r"invalid_grant", f"The refresh token has ended or was revoked. {_LOGIN_AGAIN}"),
    (r"unsupported_grant_type|invalid_request", _OTHER_GRANT),
)
_PASSING_ERRORS = frozenset({"temporarily_unavailable", "server_error", "slow_down"})
_CODE = re.compile(r"\bAADSTS\d{5,8}\b", re.ASCII)
_PASSING_TEXT = re.compile(r"AADSTS(90033|90055|50196)\b")


@dataclass(frozen=True, slots=True)
class Granted:
    """A token, as the provider gave it."""

    access_token: str = field(repr=False)
    lifetime_seconds: float
    refresh_token: str | None = field(default=None, repr=False)  # the next one, where it changes with each use


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no token, in the terms of an account's fault (core/domain/outcome.py). Holds no secret.

    `code`: token_unreachable, token_delayed, token_malformed, token_denied, token_missing.
    """

    code: str
    detail: str
    remedy: str
    pause_seconds: float | None  # None: until the account is edited or resumed
    passing: bool
    error: str | None = None  # RFC 6749 section 5.2


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer of a token endpoint."""

    status: int
    body: bytes
    retry_after_seconds: float | None = None


def endpoint_of(oauth: OAuth) -> Endpoint:
    """Its row. Raises KeyError where the provider has no such grant (such an account is not saved)."""
    return ENDPOINTS[oauth.provider, oauth.grant]


def token_url(oauth: OAuth) -> str:
    """Where its tokens are asked for."""
    return oauth.token_url or in_tenant(endpoint_of(oauth).url, oauth)


def in_tenant(url: str | None, oauth: OAuth) -> str:
    """The URL of a row with the account's tenant in it."""
    return (url or "").replace("{tenant}", quote(oauth.tenant or "common", safe=""))


def scope_of(oauth: OAuth) -> str | None:
    """What the token is for."""
    return oauth.scope or endpoint_of(oauth).scope


def form_of(oauth: OAuth, assertion: str | None = None) -> dict[str, str]:
    """What is posted. `assertion`: the signed JWT of a service account, which holds the scope."""
    row = endpoint_of(oauth)
    form = {"grant_type": row.grant_type}
    if assertion is not None:
        return {**form, "assertion": assertion}
    for name in row.sends:
        value = getattr(oauth, name)
        if value is not None:
            form[name] = value
    scope = scope_of(oauth)
    return form if scope is None else {**form, "scope": scope}


def claims_of(oauth: OAuth, issuer: str, subject: str | None, now: float) -> dict[str, str | int]:
    """The claims of a service account's assertion (RFC 7523 section 3). `now`: seconds since the epoch."""
    issued = int(now)
    claims: dict[str, str | int] = {
        "iss": issuer,
        "scope": scope_of(oauth) or "",
        "aud": token_url(oauth),
        "iat": issued,
        "exp": issued + 3600,
    }
    return claims if subject is None else {**claims, "sub": subject}


def without_secrets(oauth: OAuth) -> OAuth:
    """As it may be shown."""
    return replace(oauth, client_secret=None, refresh_token=None, service_account_key=None)


def outside_of(oauth: OAuth | None) -> dict[str, str]:
    """Which of its secrets lie outside, and where."""
    found = {name: getattr(oauth, reference) for name, reference in REFERENCES.items()} if oauth is not None else {}
    return {name: reference for name, reference in found.items() if reference is not None}


def missing(oauth: OAuth) -> Trouble | None:
    """Why there is nothing to ask with; None: there is."""
    if oauth.grant is not OAuthGrant.REFRESH_TOKEN or oauth.refresh_token is not None:
        return None
    return Trouble(
        "token_missing",
        "the account has no refresh token yet",
        "Log in once: mpu account login NAME; or set oauth.refresh_token.",
        None,
        passing=False,
    )


def read_answer(answer: Answer, *, where: str, secrets: Iterable[str | None] = ()) -> Granted | Trouble:
    """What the token endpoint at `where` said. `secrets`: what must not show where the answer repeats it."""
    content = _object(answer.body)
    error = content.get("error")
    if not isinstance(error, str):
        error = None
    status = answer.status
    if 200 <= status < 300:
        granted = _granted(content)
        if isinstance(granted, Granted):
            return granted
        if error is None or "access_token" in content:
            return _malformed(f"{where} answered {status}, but {granted}")
    said = _words(error, content.get("error_description"))
    text = _shown(error, content.get("error_description"), tuple(secrets))
    passing = status in (408, 425, 429) or status >= 500
    if passing or error in _PASSING_ERRORS or _PASSING_TEXT.search(said):
        pause = min(max(answer.retry_after_seconds or MINUTE, 1.0), MAX_RETRY_AFTER_SECONDS)
        detail = f"{where} answered {status}{': ' if text else ''}{text}"
        return Trouble("token_delayed", detail, "Nothing to do: MPU tries again by itself.", pause, True, error)
    if 300 <= status < 400:
        return _malformed(f"{where} answered {status}, a redirect, which is not followed")
    if error is not None:  # some say it with 200
        return Trouble("token_denied", f"{where} gives no token: {text}", remedy_of(said), None, False, error)
    return _malformed(f"{where} answered {status} and no OAuth error")


def unreachable(where: str, reason: str) -> Trouble:
    """Nobody answered there."""
    return Trouble(
        "token_unreachable",
        f"{where}: {reason}",
        "Check that this machine may reach the token endpoint (443); MPU tries again by itself.",
        MINUTE,
        passing=True,
    )


def remedy_of(text: str) -> str:
    """What to do about an error, in plain words."""
    for pattern, remedy in REMEDIES:
        if re.search(pattern, text, re.IGNORECASE):
            return remedy
    return "Look the error up at the provider, then correct the account's oauth."


def _malformed(detail: str) -> Trouble:
    remedy = "Check the account's token_url: what answers there is no token endpoint. MPU tries again by itself."
    return Trouble("token_malformed", detail, remedy, MINUTE, passing=True)


def _object(body: bytes) -> dict[str, object]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _granted(content: dict[str, object]) -> Granted | str:
    """The token, or what is wrong with the answer."""
    token = content.get("access_token")
    if not isinstance(token, str) or len(token) > MAX_TOKEN_CHARACTERS or not _TOKEN.fullmatch(token):
        return "there is no usable access_token in it"
    kind = content.get("token_type", "Bearer")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        return "the token is no bearer token"
    lifetime = _seconds(content.get("expires_in", DEFAULT_LIFETIME_SECONDS))
    if lifetime is None:
        return "expires_in is no number of seconds"
    renewed = content.get("refresh_token")
    usable = isinstance(renewed, str) and len(renewed) <= MAX_TOKEN_CHARACTERS and _TOKEN.fullmatch(renewed)
    return Granted(token, lifetime, str(renewed) if usable else None)


def _seconds(value: object) -> float | None:
    """Some write the number as a text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        return None
    return min(float(value), MAX_LIFETIME_SECONDS)


def _words(error: str | None, description: object) -> str:
    """The provider's words: one line, without the ids that differ from one answer to the next."""
    said = description if isinstance(description, str) else ""
    said = re.split(r"[\r\n]|\s*Trace ID:", said, maxsplit=1)[0]
    text = ": ".join(part for part in (error, said) if part)
    return "".join(char if char.isprintable() else " " for char in text).strip()


def _shown(error: str | None, description: object, secrets: Sequence[str | None]) -> str:
    """The provider's words as they may be shown: masked; only known ones where a secret can be read all the same."""
    whole = without(description, secrets) if isinstance(description, str) else ""
    name = without(error or "", secrets)
    if len(name) + len(whole) > _MAX_WORDS_CHARACTERS or repeats(f"{name}: {whole}", secrets):
        named = name if len(name) <= _MAX_DETAIL_CHARACTERS and not repeats(name, secrets) else ""
        parts = [named, *_CODE.findall(whole)[:5], "(the rest is not shown: it may repeat a secret)"]
        text = " ".join(dict.fromkeys(filter(None, parts)))
    else:
        text = without(_words(error, description), secrets)
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= _MAX_DETAIL_CHARACTERS else f"{text[:_MAX_DETAIL_CHARACTERS]}..."
