"""What token endpoints are asked, and what their answers mean: tables with the providers' own words."""

from __future__ import annotations

import base64
import html
import json
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from core.domain.account import OAuth, OAuthGrant, OAuthProvider
from core.domain.masking import repeats, without
from core.domain.oauth import (
    ENDPOINTS,
    SECRETS,
    Answer,
    Granted,
    Trouble,
    claims_of,
    form_of,
    missing,
    read_answer,
    token_url,
    without_secrets,
)

MICROSOFT, GOOGLE, OTHER = OAuthProvider
CLIENT, REFRESH, SERVICE = OAuthGrant
APP = OAuth(MICROSOFT, CLIENT, tenant="example.org", client_id="c", client_secret="s")


@pytest.mark.parametrize(
    ("oauth", "url", "form"),
    [
        (
            APP,
            "https://login.microsoftonline.com/example.org/oauth2/v2.0/token",
            {
                "grant_type": "client_credentials",
                "client_id": "c",
                "client_secret": "s",
                "scope": "https://outlook.office365.com/.default",
            },
        ),
        (
            OAuth(MICROSOFT, REFRESH, client_id="c", refresh_token="r"),
            "https://login.microsoftonline.com/common/oauth2/v2.0/token",
            {
                "grant_type": "refresh_token",
                "client_id": "c",
                "refresh_token": "r",
                "scope": "https://outlook.office.com/SMTP.Send offline_access",
            },
        ),
        (
            OAuth(GOOGLE, REFRESH, client_id="c", client_secret="s", refresh_token="r"),
            "https://oauth2.googleapis.com/token",
            {
                "grant_type": "refresh_token",
                "client_id": "c",
                "client_secret": "s",
                "refresh_token": "r",
                "scope": "https://mail.google.com/",
            },
        ),
        (
            OAuth(OTHER, CLIENT, token_url="https://id.example/t", client_id="c", client_secret="s"),
            "https://id.example/t",
            {"grant_type": "client_credentials", "client_id": "c", "client_secret": "s"},
        ),
        (
            OAuth(OTHER, REFRESH, token_url="https://id.example/t", client_id="c", refresh_token="r", scope="mail"),
            "https://id.example/t",
            {"grant_type": "refresh_token", "client_id": "c", "refresh_token": "r", "scope": "mail"},
        ),
        (
            OAuth(MICROSOFT, CLIENT, tenant="a/../b", client_id="c", client_secret="s", token_url="https://cn/t"),
            "https://cn/t",
            {
                "grant_type": "client_credentials",
                "client_id": "c",
                "client_secret": "s",
                "scope": "https://outlook.office365.com/.default",
            },
        ),
    ],
)
def test_what_is_asked_where(oauth: OAuth, url: str, form: dict[str, str]) -> None:
    assert token_url(oauth) == url
    assert form_of(oauth) == form


def test_a_service_account_asks_with_a_signed_assertion() -> None:
    oauth = OAuth(GOOGLE, SERVICE, service_account_key="{}")
    assert form_of(oauth, "a.b.c") == {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "assertion": "a.b.c",
    }
    assert claims_of(oauth, "robot@p", "relay@example.org", 1000.9) == {
        "iss": "robot@p",
        "sub": "relay@example.org",
        "scope": "https://mail.google.com/",
        "aud": "https://oauth2.googleapis.com/token",
        "iat": 1000,
        "exp": 4600,
    }


def test_the_table_names_fields_that_there_are() -> None:
    for row in ENDPOINTS.values():
        for name in (*row.needs, *row.sends):
            assert hasattr(APP, name)
        assert row.url is None or row.url.startswith("https://")


def test_without_a_refresh_token_nothing_is_asked() -> None:
    trouble = missing(OAuth(MICROSOFT, REFRESH, client_id="c"))
    assert trouble is not None
    assert (trouble.code, trouble.pause_seconds) == ("token_missing", None)
    assert "mpu account login" in trouble.remedy
    assert missing(APP) is None


def answer(status: int, body: Any, **options: Any) -> Granted | Trouble:
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_answer(
        Answer(status, octets, **options), where="id.example", secrets=("the secret+1", "r-1", "rt", "rf99")
    )


@pytest.mark.parametrize(
    ("body", "token", "life", "refresh"),
    [
        ({"access_token": "a", "token_type": "Bearer", "expires_in": 3599}, "a", 3599, None),
        ({"access_token": "a.b-c_d~e/f+g=", "token_type": "bearer"}, "a.b-c_d~e/f+g=", 3600, None),
        ({"access_token": "a", "expires_in": "3599", "refresh_token": "r2"}, "a", 3599, "r2"),
        ({"access_token": "a", "expires_in": 0, "refresh_token": ""}, "a", 0, None),
        ({"access_token": "a", "expires_in": 1e99, "refresh_token": "with blank"}, "a", 366 * 86400, None),
    ],
)
def test_tokens(body: dict[str, Any], token: str, life: float, refresh: str | None) -> None:
    assert answer(200, body) == Granted(token, life, refresh)
    assert (
        token not in repr(Granted(token, life, refresh)).replace("Granted", "").replace("lifetime", "") or token == "a"
    )


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"<html>"),
        (200, b"[" * 100_000),
        (200, []),
        (200, {"token": "a"}),
        (200, {"access_token": ""}),
        (200, {"access_token": None}),
        (200, {"access_token": "a\x01auth=Bearer b"}),
        (200, {"access_token": "a\r\nRSET"}),
        (200, {"access_token": "x" * 16_385}),
        (200, {"access_token": "ä"}),
        (200, {"access_token": "a", "token_type": "mac"}),
        (200, {"access_token": "a", "expires_in": -1}),
        (200, {"access_token": "a", "expires_in": "soon"}),
        (200, {"access_token": "a", "expires_in": True}),
        (200, b'{"access_token": "a", "expires_in": NaN}'),
        (302, b""),
        (404, b"<html>not here</html>"),
        (403, {"error": {"code": 403}}),
    ],
)
def test_what_is_no_token_is_told_as_such_and_tried_again(status: int, body: Any) -> None:
    trouble = answer(status, body)
    assert isinstance(trouble, Trouble)
    assert (trouble.code, trouble.pause_seconds, trouble.passing) == ("token_malformed", 60, True)
    assert "id.example" in trouble.detail


@pytest.mark.parametrize(
    ("status", "body", "retry_after", "pause"),
    [
        (500, b"oops", None, 60),
        (503, b"", 120, 120),
        (503, b"", 86_400, 3600),
        (429, {"error": "too_many_requests"}, 0.0, 60),
        (429, b"", 7, 7),
        (400, {"error": "temporarily_unavailable"}, None, 60),
        (400, {"error": "invalid_request", "error_description": "AADSTS90033: A transient error occurred"}, None, 60),
    ],
)
def test_what_passes(status: int, body: Any, retry_after: float | None, pause: float) -> None:
    trouble = answer(status, body, retry_after_seconds=retry_after)
    assert isinstance(trouble, Trouble)
    assert (trouble.code, trouble.pause_seconds, trouble.passing) == ("token_delayed", pause, True)


WRONG_SECRET = (
    "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the client secret "
    "value, not the client secret ID, for a secret added to app 'c'. Trace ID: 5a Correlation ID: 6b Timestamp: 2026"
)
NO_DELEGATION = (
    "Client is unauthorized to retrieve access tokens using this method, or client not authorized for any of the "
    "scopes requested."
)
REFUSED = [
    ("invalid_client", WRONG_SECRET, "not its id"),
    ("invalid_client", "AADSTS7000222: The provided client secret keys for app 'c' are expired.", "has expired"),
    (
        "unauthorized_client",
        "AADSTS700016: Application with identifier 'c' was not found in the tenant",
        "client_id",
    ),
    ("invalid_request", "AADSTS90002: Tenant 'example.com' not found.", "no such tenant"),
    ("invalid_grant", "AADSTS65001: The user or administrator has not consented to use the application", "consent"),
    ("invalid_grant", "AADSTS700082: The refresh token has expired due to inactivity.", "mpu account login"),
    ("invalid_grant", "AADSTS50173: The provided grant has expired due to it being revoked", "password changed"),
    ("invalid_grant", "AADSTS50076: Due to a configuration change you must use multi-factor", "conditional access"),
    ("invalid_grant", "AADSTS50057: The user account is disabled.", "disabled"),
    ("invalid_scope", "AADSTS1002012: The provided value for scope x is not valid.", "leave `scope` out"),
    ("invalid_grant", "Token has been expired or revoked.", "mpu account login"),
    ("invalid_grant", "reauth related error (invalid_rapt)", "session control"),
    ("invalid_client", "The OAuth client was not found.", "client_id"),
    ("invalid_grant", "Invalid JWT Signature.", "make a new one"),
    (
        "invalid_grant",
        "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe.",
        "clock",
    ),
    ("invalid_grant", "Invalid grant: account not found", "mailbox"),
    ("unauthorized_client", NO_DELEGATION, "domain-wide delegation"),
    ("unsupported_grant_type", "", "provider, grant"),
    ("brand_new_error", "nobody knows", "Look the error up"),
]


@pytest.mark.parametrize(("error", "description", "remedy"), REFUSED)
@pytest.mark.parametrize("status", [400, 401])
def test_what_waits_for_somebody(status: int, error: str, description: str, remedy: str) -> None:
    trouble = answer(status, {"error": error, "error_description": description})
    assert isinstance(trouble, Trouble)
    assert (trouble.code, trouble.pause_seconds, trouble.passing) == ("token_denied", None, False)
    assert trouble.error == error
    assert error in trouble.detail
    assert description[:40] in trouble.detail
    assert "Trace ID" not in trouble.detail
    assert remedy in trouble.remedy


def test_nothing_that_a_provider_repeats_shows_a_secret() -> None:
    said = 'no "the secret+1" (the%20secret%2B1, the+secret%2B1) rf99\r\nsecond line \x1b[31m'
    trouble = answer(401, {"error": "invalid_client", "error_description": said})
    assert isinstance(trouble, Trouble)
    assert (
        trouble.detail
        == 'id.example gives no token: invalid_client: no "[redacted]" ([redacted], [redacted]) [redacted]'
    )
    assert without("a b", (None, "")) == "a b"


SECRET = 'Ab~1/c+d &<"é8Q'
ENTITIES = "".join(f"&#{ord(char)};" for char in SECRET)
ESCAPES = "".join(f"\\u{ord(char):04x}" for char in SECRET)
EVERY_OCTET = "".join(f"%{octet:02x}" for octet in SECRET.encode())
SPELLINGS = [
    SECRET,
    quote(SECRET),
    quote_plus(SECRET),
    quote(SECRET, safe="").replace("~", "%7E"),
    quote(SECRET, safe="").lower(),
    quote_plus(SECRET).replace("+", "%20"),
    quote(SECRET.replace("+", " ")),
    quote(quote(SECRET, safe=""), safe=""),
    EVERY_OCTET,
    html.escape(SECRET),
    html.escape(quote(SECRET, safe="~")),
    ENTITIES,
    ESCAPES,
    json.dumps(SECRET),
    SECRET.upper(),
    f"{SECRET[:7]}\r\n{SECRET[7:]}",
    SECRET.encode().hex(),
    base64.b64encode(SECRET.encode()).decode(),
    base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
    *(base64.b64encode(f"{client}:{SECRET}".encode()).decode() for client in ("a", "ab", "abc")),
    base64.b64encode(f"client:{quote(SECRET, safe='')}".encode()).decode(),
    quote(base64.b64encode(SECRET.encode()).decode(), safe=""),
]


@pytest.mark.parametrize("spelled", SPELLINGS)
@pytest.mark.parametrize("status", [200, 400, 503])
def test_no_spelling_of_a_secret_is_shown(status: int, spelled: str) -> None:
    body = {"error": "invalid_client", "error_description": f"AADSTS7000215: not {spelled} here"}
    trouble = read_answer(
        Answer(status, json.dumps(body).encode()), where="id.example", secrets=(None, "other", SECRET)
    )
    assert isinstance(trouble, Trouble)
    assert spelled not in trouble.detail
    assert not repeats(trouble.detail, [SECRET])
    assert SECRET[2:] not in trouble.detail
    assert "invalid_client" in trouble.detail
    assert "AADSTS7000215" in trouble.detail
    if status != 503:
        assert "client secret is wrong" in trouble.remedy, "told by what is not shown"
    body = {"error": spelled}
    trouble = read_answer(Answer(400, json.dumps(body).encode()), where="id.example", secrets=(SECRET,))
    assert isinstance(trouble, Trouble)
    assert not repeats(trouble.detail, [SECRET])


def test_words_without_a_secret_are_shown_as_they_are() -> None:
    said = "100% of &lt;users&gt; \\u0041 with YWJjZA== and s+e+c: ask a%20b"
    assert not repeats(said, (None, "", "abc", SECRET, "secret-1"))
    trouble = read_answer(
        Answer(400, json.dumps({"error": "invalid_grant", "error_description": said}).encode()),
        where="id.example",
        secrets=(SECRET,),
    )
    assert isinstance(trouble, Trouble)
    assert trouble.detail == f"id.example gives no token: invalid_grant: {said}"


def test_words_too_long_to_be_looked_through_are_not_shown() -> None:
    body = {"error": "invalid_grant", "error_description": "word " * 10_000}
    trouble = answer(400, body)
    assert isinstance(trouble, Trouble)
    assert trouble.detail == "id.example gives no token: invalid_grant (the rest is not shown: it may repeat a secret)"


def test_an_error_with_status_200_is_judged_by_its_error() -> None:
    found = answer(200, {"error": "invalid_grant", "error_description": "it was used"})
    assert isinstance(found, Trouble)
    assert (found.code, found.pause_seconds, found.error) == ("token_denied", None, "invalid_grant")
    assert "mpu account login" in found.remedy
    found = answer(200, {"error": "slow_down"})
    assert isinstance(found, Trouble)
    assert (found.code, found.passing) == ("token_delayed", True)


def test_settings_without_secrets() -> None:
    full = OAuth(GOOGLE, SERVICE, client_secret="PLANTED", refresh_token="PLANTED", service_account_key="PLANTED")
    assert "PLANTED" not in repr(full)
    assert all(getattr(without_secrets(full), name) is None for name in SECRETS)
