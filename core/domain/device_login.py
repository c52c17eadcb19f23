"""A person's login with a code on another device (RFC 8628), whose end is a refresh token. Pure: what is posted, and
what answers mean; api/cli/login.py waits and asks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from core.domain.account import OAuth, OAuthProvider
from core.domain.oauth import (
    DEVICE_CODE,
    Answer,
    Granted,
    Trouble,
    endpoint_of,
    in_tenant,
    read_answer,
    scope_of,
)

INTERVAL_SECONDS = 5.0  # section 3.2, where none is named
SLOWER_SECONDS = 5.0  # section 3.5
MAX_INTERVAL_SECONDS = 60.0
MAX_VALID_SECONDS = 3600.0
NO_DEVICES = (
    "Google lets no device log in for mail. Make a refresh token in a browser (OAuth Playground with your own client, "
    "scope https://mail.google.com/) and set it: PATCH /accounts/NAME, oauth.refresh_token; or use a service account."
)


@dataclass(frozen=True, slots=True)
class Begun:
    """A login that waits for a person, for `valid_seconds`."""

    device_code: str = field(repr=False)
    user_code: str
    url: str
    whole_url: str | None  # with the code in it
    valid_seconds: float
    interval_seconds: float


def device_url(oauth: OAuth) -> str | None:
    """Where a login begins; None: nobody knows."""
    url = endpoint_of(oauth).device_url
    return None if url is None else in_tenant(url, oauth)


def begin_form(oauth: OAuth) -> dict[str, str]:
    """Section 3.1."""
    scope = scope_of(oauth)
    return {"client_id": oauth.client_id or ""} | ({} if scope is None else {"scope": scope})


def read_begin(answer: Answer, oauth: OAuth, *, where: str) -> Begun | Trouble:
    """Section 3.2."""
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError):
        content = None
    if not 200 <= answer.status < 300 or not isinstance(content, dict):
        return _refused(answer, oauth, where)
    words = [content.get(name) for name in ("device_code", "user_code")]
    url = content.get("verification_uri", content.get("verification_url"))  # the latter is Google's
    whole = content.get("verification_uri_complete")
    if not all(isinstance(word, str) and word for word in (*words, url)):
        return Trouble("token_malformed", f"{where} gave no code and URL", "Check --device-url.", None, passing=False)
    return Begun(
        str(words[0]),
        str(words[1]),
        str(url),
        whole if isinstance(whole, str) else None,
        _seconds(content.get("expires_in"), 900.0, MAX_VALID_SECONDS),
        _seconds(content.get("interval"), INTERVAL_SECONDS, MAX_INTERVAL_SECONDS),
    )


def _refused(answer: Answer, oauth: OAuth, where: str) -> Trouble:
    trouble = read_answer(answer, where=where, secrets=(oauth.client_secret,))
    if isinstance(trouble, Granted):
        return Trouble("token_malformed", f"{where} gave no code and URL", "Check --device-url.", None, passing=False)
    if oauth.provider is OAuthProvider.GOOGLE and trouble.error == "invalid_scope":
        return Trouble(trouble.code, trouble.detail, NO_DEVICES, None, passing=False, error=trouble.error)
    return trouble


def poll_form(oauth: OAuth, begun: Begun) -> dict[str, str]:
    """Section 3.4."""
    form = {"grant_type": DEVICE_CODE, "device_code": begun.device_code, "client_id": oauth.client_id or ""}
    return form if oauth.client_secret is None else {**form, "client_secret": oauth.client_secret}


def read_poll(answer: Answer, oauth: OAuth, begun: Begun, interval: float, *, where: str) -> Granted | Trouble | float:
    """Section 3.5: the token, why there will be none, or the seconds to wait before the next question."""
    secrets = (oauth.client_secret, begun.device_code)
    found = read_answer(answer, where=where, secrets=secrets)
    if isinstance(found, Granted):
        return found
    match found.error:
        case "authorization_pending":
            return interval
        case "slow_down":
            return interval + SLOWER_SECONDS
        case "access_denied" | "authorization_declined":
            return Trouble(found.code, "the login was declined", "Begin again.", None, passing=False, error=found.error)
        case "expired_token" | "code_expired":
            return Trouble(found.code, "nobody logged in in time", "Begin again.", None, passing=False)
    return longer(interval) if found.passing else found


def longer(interval: float) -> float:
    """After no answer, or a failure that passes."""
    return min(max(interval, 1.0) * 2, MAX_INTERVAL_SECONDS)


def _seconds(value: object, default: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        return default
    return min(float(value), most)
