"""Accounts over the wire: Create, Put, Update and Public. Public knows no password."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from api.schemas.base import In, Name, Number, Out, Pause, Printable, Time, Word
from core.domain.account import Account, AuthMethod, FromPolicy, Security
from core.runtime.views import AccountView

Host = Annotated[
    str,
    Word,
    Field(
        min_length=1,
        max_length=253,
        description="Name or IP address of the SMTP server. A new host needs the password again.",
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
        description="The address that this account may send as. Default null.",
    ),
]
FromPolicyWord = Annotated[
    Literal["keep", "replace", "reply_to"],
    Field(
        description="What becomes of the From header where there is a `from_address`. keep: nothing; replace: From "
        "becomes it; reply_to: the same, and the writer's address becomes Reply-To. Default keep."
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
Enabled = Annotated[bool, Field(description="false: nothing is sent through it. Default true.")]


class AccountSettings(In):
    """The settings of an account. What is omitted takes its default."""

    host: Host
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

    def value(self, name: str) -> Account:
        """As the relay's value."""
        return account_value({**self.model_dump(), "name": name})


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

    def changes(self) -> dict[str, Any]:
        """What was named, in the relay's types."""
        return _typed(self.model_dump(exclude_unset=True))


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
    password_set: bool = Field(description="Whether a password is saved; it is never shown.")
    password_changed_at: Time | None
    password_lost: bool = Field(description="The encryption key does not open it: nothing is sent until it is set.")
    created_at: Time
    updated_at: Time
    used_by: list[str] = Field(description="Directories that send through it.")
    pause: Pause | None = Field(description="Why it stands still; null: it doesn't.")

    @classmethod
    def of(cls, view: AccountView) -> AccountPublic:
        account = view.account
        settings = {name: getattr(account, name) for name in cls.model_fields if hasattr(account, name)}
        return cls(
            **settings,
            password_set=view.password_set,
            password_changed_at=view.password_changed_at,
            password_lost=view.password_lost,
            created_at=view.created_at,
            updated_at=view.updated_at,
            used_by=list(view.used_by),
            pause=None if view.pause is None else Pause.model_validate(view.pause),
        )


class TestMessageIn(In):
    """Where the small mail goes."""

    __test__ = False

    to: Annotated[str, Word] = Field(min_length=3, max_length=320, description="One address.")


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


class CheckStepPublic(Out):
    """One step of a check."""

    step: str
    ok: bool
    required: bool = Field(description="false: a failure costs speed or comfort, not mail.")
    seconds: float
    detail: str
    cause: str
    remedy: str


class CheckPublic(Out):
    """What a check found. `ok`: every required step was."""

    ok: bool
    steps: list[CheckStepPublic]


def account_value(settings: dict[str, Any]) -> Account:
    """The relay's value of settings in words of the wire."""
    return Account(**_typed(settings))


_WORDS = {"security": Security, "auth": AuthMethod, "from_policy": FromPolicy}


def _typed(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _WORDS[name](value) if name in _WORDS and value is not None else value for name, value in settings.items()
    }
