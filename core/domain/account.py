"""Accounts and directories as values: what delivery goes by. What is in flight keeps the value it started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from core.domain.outcome import Blame
from core.domain.reply import Phase


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


class OAuthGrant(StrEnum):
    """How an access token is had (RFC 6749, RFC 7523)."""

    CLIENT_CREDENTIALS = "client_credentials"  # RFC 6749 section 4.4
    REFRESH_TOKEN = "refresh_token"  # noqa: S105 - the name of a grant; section 6
    SERVICE_ACCOUNT = "service_account"  # RFC 7523 section 2.1: a JWT signed with the provider's key file


class OAuthProvider(StrEnum):
    """Who gives the tokens; knows the token endpoint and the scope."""

    MICROSOFT = "microsoft"
    GOOGLE = "google"
    OTHER = "other"  # token_url names the endpoint


@dataclass(frozen=True, slots=True)
class OAuth:
    """Where the access tokens of an account with XOAUTH2 come from. Secrets are never shown."""

    provider: OAuthProvider
    grant: OAuthGrant
    tenant: str | None = None  # Microsoft: the directory's id or one of its domains
    client_id: str | None = None
    token_url: str | None = None  # None: the provider's
    scope: str | None = None  # None: the provider's
    client_secret: str | None = field(default=None, repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    service_account_key: str | None = field(default=None, repr=False)  # the JSON file's content, as Google gives it
    client_secret_from: str | None = None  # as Account.password_from, each instead of the secret itself
    refresh_token_from: str | None = None
    service_account_key_from: str | None = None


@dataclass(frozen=True, slots=True)
class ReplyRule:
    """A user's row before the table of core/domain/blame.py. Patterns are regular expressions; None: any."""

    blame: Blame
    phase: Phase | None = None
    code: str | None = None  # as "550" or "4.."
    enhanced_code: str | None = None
    text: str | None = None  # searched for, without case
    final: bool = False
    pause_seconds: float | None = None  # of an account that is to blame; None: until it is resumed


@dataclass(frozen=True, slots=True)
class Account:
    """A way out over SMTP. Durations in seconds; a limit of None is none."""

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
    preset: str | None = None  # whose defaults it was made with (core/domain/presets.py)
    password_from: str | None = None  # env:NAME, file:/path or credential:NAME, instead of a password
    oauth: OAuth | None = None
    senders: tuple[str, ...] = ()  # addresses and @domains that it may send as; none: any
    messages_per_second: float | None = None
    messages_per_minute: int | None = None
    messages_per_hour: int | None = None
    messages_per_day: int | None = None  # any 24 hours
    recipients_per_day: int | None = None
    reply_rules: tuple[ReplyRule, ...] = ()


class MessageFormat(StrEnum):
    """How mails lie in a directory."""

    EML = "eml"  # one file a mail, by pattern
    MAILDIR = "maildir"  # claimed in new/


class DotStuffing(StrEnum):
    """Whether writers doubled leading dots in the file (writers.md)."""

    AUTO = "auto"
    STUFFED = "stuffed"
    PLAIN = "plain"


class Strategy(StrEnum):
    """Which account of a directory takes a message."""

    FAILOVER = "failover"  # the first in order that may be used now
    BALANCE = "balance"  # by weights
    BY_SENDER = "by_sender"  # those that name the sender come first


@dataclass(frozen=True, slots=True)
class SenderRoute:
    """For all directories: mail of these senders goes through these accounts, in order."""

    senders: tuple[str, ...]  # addresses and @domains
    accounts: tuple[str, ...]


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
    strategy: Strategy = Strategy.FAILOVER
    weights: tuple[int, ...] = ()  # of the accounts, in their order; none: all alike
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
