"""Accounts over the wire: Create, Put, Update and Public. Public knows no password."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from api.schemas.base import In, MailboxText, Name, Number, Out, Pause, Printable, Time, Word
from api.schemas.oauth import REFERENCE, OAuthPublic, OAuthShape, OAuthUpdate, oauth_typed
from core.domain.account import Account, AuthMethod, FromPolicy, OAuth, ReplyRule, Security
from core.domain.oauth import SECRETS
from core.domain.outcome import Blame
from core.domain.presets import filled, host_needed
from core.domain.reply import Phase
from core.errors import FieldError, InvalidSettings
from core.runtime.views import AccountView

Host = Annotated[
    str,
    Word,
    Field(
        min_length=1,
        max_length=253,
        description="Name or IP address of the SMTP server; with a preset that has one it may be omitted. A new host "
        "needs the password again.",
    ),
]
Port = Annotated[
    int,
    Field(
        ge=1,
        le=65535,
        description="TCP port: 587 with `starttls`, 465 with `tls`; elsewhere those of MPU_ALLOWED_SMTP_PORTS, on "
        "loopback any. A new port needs the password again. Default 587.",
    ),
]
SecurityWord = Annotated[
    Literal["starttls", "tls", "none"],
    Field(
        description="starttls: RFC 3207, never plain where it is missing; tls: from the first octet (RFC 8314); none. "
        "Default starttls."
    ),
]
AuthWord = Annotated[
    Literal["auto", "plain", "login", "cram-md5", "xoauth2", "none"],
    Field(description="How to log in. auto: the best that the server offers, if there is a username. Default auto."),
]
Username = Annotated[str, Printable, Field(min_length=1, max_length=320, description="Login name. Default null.")]
Password = Annotated[
    str,
    Printable,
    Field(
        min_length=1,
        max_length=4096,
        description="Login password; with xoauth2 the access token. Kept encrypted, never shown. Omitted: stays as it "
        "is; null: removed.",
        json_schema_extra={"writeOnly": True, "format": "password"},
    ),
]
FromAddress = Annotated[
    str,
    Printable,
    Field(
        min_length=3,
        max_length=320,
        description="The account's own address: `from_policy` puts it in the sender's place, and test messages come "
        "from it. Default null.",
    ),
]
FromPolicyWord = Annotated[
    Literal["keep", "replace", "reply_to"],
    Field(
        description="What becomes of the sender where there is a `from_address`. keep: nothing; replace: the envelope "
        "sender and the From header become it (the writer's display name stays, a Sender field leaves); reply_to: the "
        "same, and the writer's From becomes Reply-To where there is none. The envelope of bounces (the null sender) "
        "stays. A DKIM signature, which covers From, leaves with the old one; where From is the address already, "
        "nothing changes. Default keep."
    ),
]
MaxConnections = Annotated[int, Field(ge=1, le=200, description="Connections at once. Default 5, 1 to 200.")]
MessagesPerConnection = Annotated[
    int, Field(ge=1, le=1_000_000, description="Messages before a connection is renewed. Default 1000.")
]
RecipientsPerMessage = Annotated[
    int, Field(ge=1, le=10_000, description="Recipients of one transaction; more are split. Default 100, 1 to 10000.")
]
ConnectTimeout = Annotated[float, Field(ge=1, le=600, description="Seconds to connect. Default 30, 1 to 600.")]
IdleTimeout = Annotated[
    float, Field(ge=0, le=3600, description="Seconds an unused connection is kept. Default 30, 0 to 3600.")
]
HeloName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        pattern=r"^[A-Za-z0-9.:\-\[\]]+$",
        description="Name said in EHLO. Default null: the host's full name.",
    ),
]
CaFile = Annotated[
    str,
    Printable,
    Field(
        min_length=1,
        max_length=4096,
        pattern=r"^/",
        description="PEM file with the authorities to trust instead of the system's. Default null.",
    ),
]
PlaintextLogin = Annotated[
    bool, Field(description="Log in without TLS elsewhere than to loopback, where it is always allowed. Default false.")
]
PresetName = Annotated[
    Literal["office365", "gmail", "google-relay", "ses", "azure", "smtp"],
    Field(
        description="Whose values the settings take that are not named: see GET /account-presets. Changing it changes "
        "nothing else, only what null in a PATCH goes back to. Default null."
    ),
]
PasswordFrom = Annotated[
    str,
    Printable,
    Field(
        min_length=5,
        max_length=4096,
        pattern=REFERENCE,
        description="Where the password is read from, at each login, instead of the database: `env:NAME` (NAME begins "
        "with MPU_SECRET_), `file:/run/secrets/NAME` (Docker, Kubernetes; other directories: MPU_SECRET_FILES) or "
        "`credential:NAME` (systemd). Excludes `password`; a new host or port needs it again. Default null.",
    ),
]
Sender = Annotated[str, Printable, Field(min_length=2, max_length=320)]
Senders = Annotated[
    list[Sender],
    Field(
        max_length=1000,
        description="Envelope senders that the account may send as: addresses, and `@domains` (not their subdomains). "
        "Compared without the case of ASCII letters; sent as written. Mail of others goes through another account, "
        "and to badmail where none may send it; bounces (the null sender) go everywhere. Where `from_policy` puts "
        "`from_address` in the sender's place, that address is the one that counts. Default []: any.",
    ),
]
PerSecond = Annotated[
    float,
    Field(ge=0.001, le=100_000, description="Most messages a second, 0.001 or more. Default null: no limit of ours."),
]
PerMinute = Annotated[int, Field(ge=1, le=10_000_000, description="Most messages in any minute. Default null.")]
PerHour = Annotated[int, Field(ge=1, le=100_000_000, description="Most messages in any hour. Default null.")]
PerDay = Annotated[int, Field(ge=1, le=1_000_000_000, description="Most messages in any 24 hours. Default null.")]
RecipientsPerDay = Annotated[
    int, Field(ge=1, le=1_000_000_000, description="Most recipients in any 24 hours. Default null.")
]


class ReplyRuleShape(In):
    """A row of your own before the table by which replies are judged.

    Patterns are regular expressions; codes match as a whole. At least one of phase, code, enhanced_code and text is
    needed. Before MAIL only account and transient can be blamed.
    """

    blame: Literal["message", "recipient", "sender", "account", "transient"] = Field(
        description="Whose fault it is. account: it is paused, and no attempt is counted."
    )
    phase: Literal["banner", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "body", "dot"] | None = Field(
        default=None, description="Answer to which command; null: any. dot: the final dot."
    )
    code: Annotated[str, Printable, Field(min_length=1, max_length=50)] | None = Field(
        default=None, description="The reply's three digits, as `550` or `4..`."
    )
    enhanced_code: Annotated[str, Printable, Field(min_length=1, max_length=100)] | None = Field(
        default=None, description=r"The enhanced code (RFC 3463), as `5\.7\.1`."
    )
    text: Annotated[str, Printable, Field(min_length=1, max_length=500)] | None = Field(
        default=None,
        description="Is searched for in the first 500 characters of the text, without regard to case. So that no reply "
        "can take long: no repeated groups, look-arounds and back-references, and few `*` and `+`, best after words.",
    )
    final: bool = Field(default=False, description="Never try again (message, recipient, sender).")
    pause_seconds: Annotated[float, Field(ge=1, le=86_400)] | None = Field(
        default=None, description="How long the account rests; null: until it is resumed."
    )


ReplyRules = Annotated[
    list[ReplyRuleShape],
    Field(
        max_length=100,
        description="Rows before the table of replies, first match wins. Together their patterns must not be able to "
        "take longer than about 50 ms. Default [].",
    ),
]
Enabled = Annotated[bool, Field(description="false: nothing is sent through it. Default true.")]


_OAUTH = "Log in with access tokens (XOAUTH2) instead of a password. Default null."


class AccountSettings(In):
    """The settings of an account. What is omitted takes the preset's value, or the default."""

    host: Host | None = None
    port: Port = 587
    security: SecurityWord = "starttls"
    auth: AuthWord = "auto"
    username: Username | None = None
    password: Password | None = None
    from_address: FromAddress | None = None
    from_policy: FromPolicyWord = "keep"
    max_connections: MaxConnections = 5
    messages_per_connection: MessagesPerConnection = 1000
    recipients_per_message: RecipientsPerMessage = 100
    connect_timeout_seconds: ConnectTimeout = 30
    idle_timeout_seconds: IdleTimeout = 30
    helo_name: HeloName | None = None
    tls_ca_file: CaFile | None = None
    allow_plaintext_login: PlaintextLogin = False
    enabled: Enabled = True
    preset: PresetName | None = None
    password_from: PasswordFrom | None = None
    oauth: OAuthShape | None = Field(default=None, description=_OAUTH)
    senders: Senders = Field(default_factory=list, json_schema_extra={"default": []})
    messages_per_second: PerSecond | None = None
    messages_per_minute: PerMinute | None = None
    messages_per_hour: PerHour | None = None
    messages_per_day: PerDay | None = None
    recipients_per_day: RecipientsPerDay | None = None
    reply_rules: ReplyRules = Field(default_factory=list, json_schema_extra={"default": []})

    def value(self, name: str) -> Account:
        """As the relay's value. Raises InvalidSettings where neither this nor the preset names a host."""
        named = _typed({**self.model_dump(exclude_unset=True), "name": name})
        if named.get("host", "") is None:
            del named["host"]
        if named.get("oauth") is not None:
            named["oauth"] = OAuth(**oauth_typed(named["oauth"]))
        settings = filled(named)
        if "host" not in settings:
            raise InvalidSettings([FieldError("/host", "required", host_needed(self.preset))])
        return Account(**settings)


class AccountCreate(AccountSettings):
    """A new account."""

    name: Name

    def account(self) -> Account:
        return self.value(self.name)


class AccountPut(AccountSettings):
    """The whole of an account; an omitted password stays."""

    name: Name | None = Field(default=None, description="Only the name in the path, if at all.")

    @property
    def keeps_password(self) -> bool:
        return "password" not in self.model_fields_set

    @property
    def keeps_oauth(self) -> list[str]:
        """Secrets of `oauth` that are not named."""
        return [] if self.oauth is None else [name for name in SECRETS if name not in self.oauth.model_fields_set]


class AccountTry(AccountSettings):
    """An account that is tried without being saved."""

    name: Name = "unsaved"


class AccountUpdate(In):
    """A merge patch (RFC 7396): what is named changes, null puts the default back."""

    host: Host | None = None
    port: Port | None = None
    security: SecurityWord | None = None
    auth: AuthWord | None = None
    username: Username | None = None
    password: Password | None = None
    from_address: FromAddress | None = None
    from_policy: FromPolicyWord | None = None
    max_connections: MaxConnections | None = None
    messages_per_connection: MessagesPerConnection | None = None
    recipients_per_message: RecipientsPerMessage | None = None
    connect_timeout_seconds: ConnectTimeout | None = None
    idle_timeout_seconds: IdleTimeout | None = None
    helo_name: HeloName | None = None
    tls_ca_file: CaFile | None = None
    allow_plaintext_login: PlaintextLogin | None = None
    enabled: Enabled | None = None
    preset: PresetName | None = None
    password_from: PasswordFrom | None = None
    oauth: OAuthUpdate | None = Field(default=None, description=f"{_OAUTH} A patch within the patch; null removes it.")
    senders: Senders | None = None
    messages_per_second: PerSecond | None = None
    messages_per_minute: PerMinute | None = None
    messages_per_hour: PerHour | None = None
    messages_per_day: PerDay | None = None
    recipients_per_day: RecipientsPerDay | None = None
    reply_rules: ReplyRules | None = None

    def changes(self) -> dict[str, Any]:
        """What was named, in the relay's types; `oauth` as a dictionary of what was named of it."""
        changes = _typed(self.model_dump(exclude_unset=True))
        if changes.get("oauth") is not None:
            changes["oauth"] = oauth_typed(changes["oauth"])
        return changes


class ReplyRulePublic(Out):
    """A row of one's own before the table of replies."""

    blame: str
    phase: str | None
    code: str | None
    enhanced_code: str | None
    text: str | None
    final: bool
    pause_seconds: Number | None


class UsagePublic(Out):
    """What an account sent of late."""

    messages_last_hour: int = Field(
        description="Messages that its server took, or may have taken. Counted in buckets of 5 minutes, of which the "
        "oldest counts as a whole."
    )
    messages_last_day: int = Field(description="Likewise, of the last 24 hours.")
    recipients_last_day: int = Field(description="Recipients of these messages.")
    next_at: Time | None = Field(
        description="When one more message may go, where that is a while: a limit is spent, or so many stand in line "
        "for `messages_per_second` or `rate_per_second` that it takes more than 5 s. null: it may go now, or soon."
    )
    rate_per_second: Number | None = Field(
        description="Messages a second that it is slowed down to because its server asked for it; creeps back by a "
        "tenth a minute. null: it isn't."
    )


class AccountPublic(Out):
    """An account as it is shown."""

    name: str
    host: str
    port: int
    security: str
    auth: str
    username: str | None
    from_address: str | None
    from_policy: str
    max_connections: int
    messages_per_connection: int
    recipients_per_message: int
    connect_timeout_seconds: Number
    idle_timeout_seconds: Number
    helo_name: str | None
    tls_ca_file: str | None
    allow_plaintext_login: bool
    enabled: bool
    preset: str | None
    password_from: str | None
    oauth: OAuthPublic | None
    senders: list[str]
    messages_per_second: Number | None
    messages_per_minute: int | None
    messages_per_hour: int | None
    messages_per_day: int | None
    recipients_per_day: int | None
    reply_rules: list[ReplyRulePublic]
    password_set: bool = Field(
        description="Whether a password is saved, or can be read now where `password_from` says; it is never shown."
    )
    password_changed_at: Time | None
    password_lost: bool = Field(description="The encryption key does not open it: nothing is sent until it is set.")
    created_at: Time
    updated_at: Time
    used_by: list[str] = Field(
        description="Directories and sender routes (`sender_routes/N` of GET /settings) that send through it."
    )
    pause: Pause | None = Field(description="Why it stands still; null: it doesn't.")
    usage: UsagePublic

    @classmethod
    def of(cls, view: AccountView) -> AccountPublic:
        account = view.account
        settings = {name: getattr(account, name) for name in cls.model_fields if hasattr(account, name)}
        return cls(
            **{**settings, "oauth": OAuthPublic.of(view)},
            password_set=view.password_set,
            password_changed_at=view.password_changed_at,
            password_lost=view.password_lost,
            created_at=view.created_at,
            updated_at=view.updated_at,
            used_by=list(view.used_by),
            pause=None if view.pause is None else Pause.model_validate(view.pause),
            usage=UsagePublic.model_validate(view.usage),
        )


AccountSettings.shown_as = AccountUpdate.shown_as = (AccountPublic,)


class TestMessageIn(In):
    """Where the small mail goes."""

    __test__ = False

    to: Annotated[str, MailboxText] = Field(min_length=3, max_length=320, description="One address.")


class TestMessagePublic(Out):
    """What became of the test message."""

    __test__ = False

    ok: bool = Field(description="The server took it.")
    status: Literal["sent", "deferred", "failed", "unknown"]
    account: str
    server: str = Field(description="host:port")
    tls: str | None
    phase: str = Field(description="How far the conversation came.")
    code: int | None
    enhanced_code: str | None
    text: str = Field(description="The server's words.")
    seconds: float
    internet_message_id: str
    remedy: str
    over_quota_until: Time | None = Field(
        description="One of the account's limits by minute, hour or day is spent, with this message counted: mail of "
        "directories waits until then. null: there is room for more."
    )


class CheckStepPublic(Out):
    """One step of a check."""

    step: str = Field(
        description="Of an account: secret, dns, port, banner, tls, certificate, ehlo, extensions, extension_NAME (of "
        "each that is missing), token, login, noop, send_as, as far as it came."
    )
    ok: bool
    required: bool = Field(description="false: a failure costs speed or comfort, not mail.")
    seconds: float = Field(description="How long it took.")
    detail: str = Field(description="What was found, the server's words with it.")
    code: str = Field(description="Where it is not ok, in one stable word, as `smtp_auth_off_for_mailbox`.")
    cause: str = Field(description="Where it is not ok, the probable cause.")
    remedy: str = Field(description="Where it is not ok, what to do.")


class CheckPublic(Out):
    """What a check found. `ok`: every required step was."""

    ok: bool
    steps: list[CheckStepPublic]


def _reply_rules(rows: list[dict[str, Any]]) -> tuple[ReplyRule, ...]:
    return tuple(
        ReplyRule(**{**row, "blame": Blame(row["blame"]), "phase": Phase(row["phase"]) if row.get("phase") else None})
        for row in rows
    )


_WORDS: dict[str, Callable[[Any], Any]] = {
    "security": Security,
    "auth": AuthMethod,
    "from_policy": FromPolicy,
    "senders": tuple,
    "reply_rules": _reply_rules,
}


def _typed(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _WORDS[name](value) if name in _WORDS and value is not None else value for name, value in settings.items()
    }
