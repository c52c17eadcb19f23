"""Named examples for the bodies, in the words of http.md; shown by Swagger UI, and tried by a test."""

from __future__ import annotations

from typing import Any

Examples = dict[str, Any]


def _example(summary: str, value: object, description: str = "") -> dict[str, object]:
    entry: dict[str, object] = {"summary": summary, "value": value}
    if description:
        entry["description"] = description
    return entry


_OWN_SERVER = {
    "name": "office",
    "host": "smtp.example.org",
    "port": 587,
    "security": "starttls",
    "username": "relay@example.org",
    "password": "correct horse battery staple",
}

ACCOUNT_CREATE: Examples = {
    "own_server": _example("An own server", _OWN_SERVER),
    "office365": _example(
        "Office 365",
        {
            "name": "office365",
            "preset": "office365",
            "username": "relay@example.org",
            "password": "the mailbox's password",
            "from_address": "relay@example.org",
            "from_policy": "reply_to",
        },
        "The preset knows host, port and limits. SMTP AUTH must be on for the mailbox. Login with a password is off by "
        "default from the end of December 2026: give `oauth` instead of it then.",
    ),
    "office365_oauth": _example(
        "Office 365 with an application's token",
        {
            "name": "office365-app",
            "preset": "office365",
            "username": "relay@example.org",
            "oauth": {
                "provider": "microsoft",
                "grant": "client_credentials",
                "tenant": "example.org",
                "client_id": "11111111-2222-3333-4444-555555555555",
                "client_secret": "the secret's value, not its id",
            },
        },
        "Register an application in Entra with the permission SMTP.SendAsApp, let an administrator consent, make it a "
        "service principal in Exchange Online and give it the mailbox. The token is fetched and renewed by itself.",
    ),
    "office365_login": _example(
        "Office 365 with a person's login",
        {
            "name": "office365-login",
            "preset": "office365",
            "username": "relay@example.org",
            "oauth": {
                "provider": "microsoft",
                "grant": "refresh_token",
                "tenant": "example.org",
                "client_id": "11111111-2222-3333-4444-555555555555",
            },
        },
        "Then once: `mpu account login office365-login`. It shows a code to enter in any browser.",
    ),
    "gmail_oauth": _example(
        "Gmail with a refresh token",
        {
            "name": "gmail-oauth",
            "preset": "gmail",
            "username": "relay@example.org",
            "oauth": {
                "provider": "google",
                "grant": "refresh_token",
                "client_id": "1234.apps.googleusercontent.com",
                "client_secret": "GOCSPX-example",
                "refresh_token": "1//example",
            },
        },
        "The refresh token is made once in a browser for the scope https://mail.google.com/.",
    ),
    "google_service_account": _example(
        "Google Workspace with a service account",
        {
            "name": "workspace",
            "preset": "gmail",
            "username": "relay@example.org",
            "oauth": {
                "provider": "google",
                "grant": "service_account",
                "service_account_key": {
                    "type": "service_account",
                    "client_email": "mpu@project.iam.gserviceaccount.com",
                    "private_key_id": "0123",
                    "private_key": "paste the whole JSON file here instead of this object",
                },
            },
        },
        "Give the service account domain-wide delegation for https://mail.google.com/; it acts for `username`.",
    ),
    "gmail": _example(
        "Gmail",
        {
            "name": "gmail",
            "preset": "gmail",
            "port": 465,
            "username": "relay@example.org",
            "password": "abcd efgh ijkl mnop",
        },
        "Needs an app password. Port 465 takes security `tls` along; without it is 587 with `starttls`.",
    ),
    "ses": _example(
        "Amazon SES",
        {
            "name": "ses",
            "preset": "ses",
            "host": "email-smtp.eu-central-1.amazonaws.com",
            "username": "AKIAEXAMPLE",
            "password": "the SMTP password, not the secret key",
            "messages_per_second": 14,
            "messages_per_day": 50000,
        },
        "The region is in the host. The limits are those that SES granted: what exceeds them it drops.",
    ),
    "docker_secret": _example(
        "A password that is mounted",
        {
            "name": "mounted",
            "host": "smtp.example.org",
            "username": "relay@example.org",
            "password_from": "file:/run/secrets/office",
        },
        "Docker and Kubernetes mount secrets as files; a changed file counts from the next login on.",
    ),
}

ACCOUNT_PUT: Examples = {
    "own_server": _example(
        "The whole account; the password stays",
        {"host": "smtp.example.org", "port": 587, "security": "starttls", "username": "relay@example.org"},
    ),
}

ACCOUNT_UPDATE: Examples = {
    "password_rotation": _example("A new password", {"password": "a new password"}),
    "token_rotation": _example("A new client secret", {"oauth": {"client_secret": "the new one"}}),
    "slower": _example("Fewer connections", {"max_connections": 2}),
    "senders": _example("Who it may send as", {"senders": ["@shop.example", "billing@example.org"]}),
    "default": _example("Back to the default", {"helo_name": None}),
}

ACCOUNT_TRY: Examples = {
    "own_server": _example("An own server", {key: value for key, value in _OWN_SERVER.items() if key != "name"}),
}

DIRECTORY_CREATE: Examples = {
    "dotnet": _example(
        ".NET: SpecifiedPickupDirectory",
        {"name": "shop", "path": "/var/spool/mpu/shop", "accounts": ["office"]},
    ),
    "iis": _example(
        "IIS SMTP: any file name",
        {
            "name": "iis",
            "path": "/var/spool/mpu/iis",
            "accounts": ["office"],
            "patterns": ["*"],
            "dot_stuffing": "stuffed",
        },
    ),
    "maildir": _example(
        "Maildir",
        {"name": "maildir", "path": "/var/spool/mpu/maildir", "accounts": ["office"], "format": "maildir"},
    ),
    "balance": _example(
        "Three mails through the first account for each through the second",
        {
            "name": "shared",
            "path": "/var/spool/mpu/shared",
            "accounts": ["office", "ses"],
            "strategy": "balance",
            "weights": [3, 1],
        },
    ),
    "nightly": _example(
        "Nightly at two",
        {
            "name": "newsletter",
            "path": "/var/spool/mpu/newsletter",
            "accounts": ["office"],
            "schedule": "0 2 * * *",
            "schedule_timezone": "Europe/Vienna",
            "watch": False,
        },
        "With `watch` false mail goes only at the scheduled runs and drains.",
    ),
}

DIRECTORY_PUT: Examples = {
    "whole": _example("The whole directory", {"path": "/var/spool/mpu/shop", "accounts": ["office", "ses"]}),
}

DIRECTORY_UPDATE: Examples = {
    "second_account": _example("A second account that helps out", {"accounts": ["office", "ses"]}),
    "balance": _example("Share the mail among the accounts", {"strategy": "balance"}),
    "by_sender": _example("Each sender's mail through the account that names it", {"strategy": "by_sender"}),
    "nightly": _example("Nightly at two instead of the interval", {"schedule": "0 2 * * *"}),
    "default": _example("Back to the default interval", {"schedule": None}),
}

PAUSE: Examples = {
    "maintenance": _example(
        "Until the provider's maintenance is over",
        {"reason": "maintenance of the provider", "until": "2099-01-01T06:00:00Z"},
    ),
    "open_end": _example("Until it is resumed", {"reason": "too many complaints"}),
}

DRAIN: Examples = {
    "everything": _example("Everything that is due", {}),
    "one_directory": _example("One directory, deferred mail too", {"directories": ["shop"], "include_deferred": True}),
}

BULK: Examples = {
    "requeue_dry_run": _example(
        "Send dead mail of an account again: count only",
        {"filter": {"state": "badmail", "account": "office"}, "dry_run": True},
    ),
    "requeue": _example("The same in earnest", {"filter": {"state": "badmail", "account": "office"}}),
    "domain": _example("All mail for a domain", {"filter": {"recipient": "@example.org"}}),
}

TEST_MESSAGE: Examples = {"postmaster": _example("To the postmaster", {"to": "postmaster@example.org"})}

KEY: Examples = {
    "application": _example(
        "An application that hands mails over by HTTP",
        {"name": "shop", "scopes": ["submit"], "directories": ["shop"]},
    ),
    "monitoring": _example("Monitoring", {"name": "prometheus", "scopes": ["read"]}),
}

SETTINGS: Examples = {
    "history": _example("Keep the history for a year", {"history_days": 365}),
    "sender_routes": _example(
        "One domain's mail through its own account, from every directory",
        {"sender_routes": [{"senders": ["@shop.example", "billing@example.org"], "accounts": ["office"]}]},
    ),
}
