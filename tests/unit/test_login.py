"""Refused logins by the providers' real words: the cause that is told, and what to do."""

from __future__ import annotations

import pytest

from core.domain.login import REFUSALS, explain_login
from core.domain.reply import Reply

OFFICE, GMAIL, SES = "smtp.office365.com", "smtp.gmail.com", "email-smtp.eu-central-1.amazonaws.com"
_END = "[FR0P281CA0123.DEUP281.PROD.OUTLOOK.COM 2026-03-01T10:00:00.000Z 08DE000000000000]"
_GOOGLE_END = "d9443c01a7336-29bceb55192sm75317325ad.91 - gsmtp"

# host, reply as it was on the wire, code of the cause, a word of the remedy
PASSWORDS = [
    # the four causes of 535 5.7.139, and those beside them
    (
        OFFICE,
        (
            "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. "
            f"Visit https://aka.ms/smtp_auth_disabled for more information. {_END}"
        ),
        "smtp_auth_off_for_tenant",
        "Set-TransportConfig",
    ),
    (
        OFFICE,
        (
            "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. "
            f"Visit https://aka.ms/smtp_auth_disabled for more information. {_END}"
        ),
        "smtp_auth_off_for_mailbox",
        "Authenticated SMTP",
    ),
    (
        OFFICE,
        f"535 5.7.139 Authentication unsuccessful, the user credentials were incorrect. {_END}",
        "credentials_incorrect",
        "outlook.office.com",
    ),
    (
        OFFICE,
        f"535 5.7.139 Authentication unsuccessful, basic authentication is disabled. {_END}",
        "basic_authentication_off",
        "XOAUTH2",
    ),
    (
        OFFICE,
        (
            "535 5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults policy. "
            f"Contact your administrator. {_END}"
        ),
        "blocked_by_security_defaults",
        "security defaults",
    ),
    (
        OFFICE,
        (
            "535 5.7.139 Authentication unsuccessful, the request did not meet the criteria to be authenticated "
            f"successfully. Contact your administrator. {_END}"
        ),
        "blocked_by_policy",
        "sign-in log",
    ),
    (
        OFFICE,
        f"535 5.7.139 Authentication unsuccessful, the account is locked. {_END}",
        "account_locked",
        "unlocks",
    ),
    (
        OFFICE,
        f"535 5.7.139 Authentication unsuccessful, the user's password has expired. {_END}",
        "account_locked",
        "new password",
    ),
    (OFFICE, "535 5.7.139 Authentication unsuccessful", "login_refused_by_microsoft", "sign-in log"),
    (OFFICE, f"535 5.7.3 Authentication unsuccessful {_END}", "login_refused_by_microsoft", "sign-in log"),
    (
        OFFICE,
        f"550 5.7.30 Basic authentication is not supported for Client Submission. {_END}",
        "basic_authentication_off",
        "XOAUTH2",
    ),
    # Google
    (
        GMAIL,
        (
            "534-5.7.9 Application-specific password required. For more information, go to\n"
            f"534 5.7.9  https://support.google.com/mail/?p=InvalidSecondFactor {_GOOGLE_END}"
        ),
        "app_password_needed",
        "apppasswords",
    ),
    (
        GMAIL,
        (
            "535-5.7.8 Username and Password not accepted. For more information, go to\n"
            f"535 5.7.8  https://support.google.com/mail/?p=BadCredentials {_GOOGLE_END}"
        ),
        "credentials_incorrect",
        "app password",
    ),
    (
        GMAIL,
        (
            "534-5.7.9 Please log in with your web browser and then try again. For more\n"
            f"534 5.7.9  information, go to https://support.google.com/mail/?p=WebLoginRequired {_GOOGLE_END}"
        ),
        "browser_login_needed",
        "Sign in once",
    ),
    (
        GMAIL,
        (
            "534-5.7.14 <https://accounts.google.com/signin/continue?sarp=1> Please log in via your\n"
            f"534 5.7.14 web browser and then try again. {_GOOGLE_END}"
        ),
        "browser_login_needed",
        "Sign in once",
    ),
    (
        GMAIL,
        f"454 4.7.0 Too many login attempts, please try again later. {_GOOGLE_END}",
        "too_many_logins",
        "Wait",
    ),
    # Amazon, Azure
    (SES, "535 Authentication Credentials Invalid", "credentials_incorrect", "region of the host name"),
    ("mail.gmx.net", "535 Authentication credentials invalid", "credentials_incorrect", "app password"),
    ("smtp.azurecomm.net", "535 5.7.3 Authentication unsuccessful", "credentials_incorrect", "client secret"),
    # others
    (
        "mx.example.org",
        "535 5.7.8 Error: authentication failed: (reason unavailable)",
        "credentials_incorrect",
        "Check",
    ),
    ("mx.example.org", "535 Incorrect authentication data", "credentials_incorrect", "Check"),
    ("smtp.sendgrid.net", "451 Authentication failed: Maximum credits exceeded", "plan_used_up", "buy"),
    ("smtp.mail.yahoo.com", "535 5.7.0 (#AUTH005) Too many bad auth attempts.", "too_many_logins", "Wait"),
    ("mx.example.org", "525 5.7.13 User account is disabled", "account_disabled", "provider"),
    ("mx.example.org", "535 5.7.13 no", "account_disabled", "provider"),
    ("mx.example.org", "535 5.7.0 Your account has been locked", "account_disabled", "provider"),
    ("mx.example.org", "538 no", "encryption_needed", "starttls"),
    ("mx.example.org", "535 5.7.11 no", "encryption_needed", "starttls"),
    ("smtp.azurecomm.net", "535 5.7.8 no", "credentials_incorrect", "client secret"),
    ("mx.example.org", "530 5.7.0 Must issue a STARTTLS command first", "encryption_needed", "starttls"),
    ("mx.example.org", "538 5.7.11 Encryption required for requested mechanism", "encryption_needed", "starttls"),
    ("mx.example.org", "534 5.7.9 Authentication mechanism is too weak", "mechanism_too_weak", "another mechanism"),
    ("mx.example.org", "504 5.5.4 Unrecognized authentication type", "mechanism_not_taken", "offers"),
    ("mx.example.org", "432 4.7.12 A password transition is needed", "password_transition_needed", "plain"),
    ("mx.example.org", "454 4.7.0 Temporary authentication failure", "login_deferred", "by itself"),
    ("mx.example.org", "554 5.7.0 go away", "login_refused", "words"),
]
TOKENS = [
    (OFFICE, f"535 5.7.3 Authentication unsuccessful {_END}", "token_refused_by_microsoft", "SMTP.SendAsApp"),
    (
        OFFICE,
        f"535 5.7.139 Authentication unsuccessful, the user credentials were incorrect. {_END}",
        "token_refused_by_microsoft",
        "Add-MailboxPermission",
    ),
    (
        OFFICE,
        (
            "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit "
            f"https://aka.ms/smtp_auth_disabled for more information. {_END}"
        ),
        "smtp_auth_off_for_tenant",
        "Set-CASMailbox",
    ),
    (
        GMAIL,
        (
            "535-5.7.8 Username and Password not accepted. For more information, go to\n"
            f"535 5.7.8  https://support.google.com/mail/?p=BadCredentials {_GOOGLE_END}"
        ),
        "token_refused_by_google",
        "https://mail.google.com/",
    ),
    (GMAIL, "535 5.7.0 no", "token_refused_by_google", "delegation"),
    ("mx.example.org", "535 5.7.8 no", "token_refused", "token"),
]


def reply_of(wire: str) -> Reply:
    lines = wire.split("\n")
    return Reply(int(lines[0][:3]), tuple(line[4:] for line in lines))


@pytest.mark.parametrize(("host", "wire", "code", "word"), PASSWORDS)
def test_a_refused_password(host: str, wire: str, code: str, word: str) -> None:
    found = explain_login(reply_of(wire), host=host)
    assert found.code == code
    assert word in found.remedy


@pytest.mark.parametrize(("host", "wire", "code", "word"), TOKENS)
def test_a_refused_token(host: str, wire: str, code: str, word: str) -> None:
    found = explain_login(reply_of(wire), host=host, by_token=True)
    assert found.code == code
    assert word in found.remedy


def test_causes_that_need_different_remedies_are_told_apart() -> None:
    by_code: dict[str, set[str]] = {}
    for row in REFUSALS:
        by_code.setdefault(row.refusal.code, set()).add(row.refusal.cause)
    assert {code for code, causes in by_code.items() if len(causes) > 1} == {"credentials_incorrect"}


def test_every_row_is_reached_by_a_text_above() -> None:
    """A row that another one hides would be no row."""
    reached = set()
    for texts, by_token in ((PASSWORDS, False), (TOKENS, True)):
        for host, wire, *_ in texts:
            reply = reply_of(wire)
            reached.add(next((r for r in REFUSALS if r.matches(reply, host, by_token=by_token)), None))
    assert [row for row in REFUSALS if row not in reached] == []


def test_of_a_long_reply_only_the_beginning_is_looked_at() -> None:
    """So that none costs more than a glance."""
    words = "SmtpClientAuthentication is disabled for the Tenant."
    near, far = (
        explain_login(Reply(535, (f"5.7.139 {'account ' * number}{words}",)), host=OFFICE) for number in (1, 200)
    )
    assert near.code == "smtp_auth_off_for_tenant"
    assert far.code != near.code
