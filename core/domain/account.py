"""Accounts and directories as values: what delivery goes by. What is in flight keeps the value it started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Security(StrEnum):
    """How the connection is protected."""

    STARTTLS = "starttls"  # RFC 3207, refused or missing: never plain
    TLS = "tls"  # implicit TLS, RFC 8314
    NONE = "none"


class AuthMethod(StrEnum):
    """How to log in (RFC 4954)."""

    AUTO = "auto"  # the best that the server offers, if there is a username
    PLAIN = "plain"
    LOGIN = "login"
    CRAM_MD5 = "cram-md5"
    XOAUTH2 = "xoauth2"
    NONE = "none"


class FromPolicy(StrEnum):
    """What becomes of the From header where the account has a `from_address`."""

    KEEP = "keep"
    REPLACE = "replace"  # From is the account's address
    REPLY_TO = "reply_to"  # From is the account's address, the writer's becomes Reply-To


@dataclass(frozen=True, slots=True)
class Account:
    """A way out over SMTP. Durations in seconds."""

    name: str
    host: str
    port: int = 587
    security: Security = Security.STARTTLS
    auth: AuthMethod = AuthMethod.AUTO
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    from_address: str | None = None
    from_policy: FromPolicy = FromPolicy.KEEP
    max_connections: int = 5
    messages_per_connection: int = 1000
    recipients_per_message: int = 100
    connect_timeout_seconds: float = 30
    idle_timeout_seconds: float = 30
    helo_name: str | None = None
    tls_ca_file: str | None = None
    allow_plaintext_login: bool = False
    enabled: bool = True


class MessageFormat(StrEnum):
    """How mails lie in a directory."""

    EML = "eml"  # one file a mail, by pattern
    MAILDIR = "maildir"  # claimed in new/


class DotStuffing(StrEnum):
    """Whether writers doubled leading dots in the file (writers.md)."""

    AUTO = "auto"
    STUFFED = "stuffed"
    PLAIN = "plain"


class OnUnknown(StrEnum):
    """What follows where no reply came after the final dot."""

    RETRY = "retry"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Directory:
    """A pickup directory and its settings. Sizes in octets, durations in seconds."""

    name: str
    path: str
    accounts: tuple[str, ...] = ()
    enabled: bool = True
    patterns: tuple[str, ...] = ("*.eml",)
    format: MessageFormat = MessageFormat.EML
    dot_stuffing: DotStuffing = DotStuffing.AUTO
    interval_seconds: float | None = 60
    schedule: str | None = None
    schedule_timezone: str = "UTC"
    watch: bool = True
    quiet_seconds: float = 2
    retry_initial_seconds: float = 60
    retry_max_seconds: float = 3600
    expire_after_seconds: float = 432_000
    on_unknown: OnUnknown = OnUnknown.RETRY
    unknown_max: int = 3
    max_message_bytes: int = 52_428_800
    max_recipients: int = 10_000
    oldest_alert_seconds: float = 900
