"""The service itself over the wire: alerts, health, version, keys, audit, settings, sandbox."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from api.schemas.accounts import Sender
from api.schemas.base import NAME_PATTERN, FutureTimeIn, In, Out, Printable, Time
from api.schemas.directories import AccountName
from core.settings import Settings

ScopeWord = Literal["read", "operate", "admin", "submit"]


class AlertPublic(Out):
    """Something that a person should know now."""

    code: str
    severity: Literal["warning", "error", "critical"]
    blame: Literal["message", "recipient", "sender", "account", "transient"] | None
    directory: str | None
    account: str | None
    since: Time
    messages_affected: int | None
    detail: str
    remedy: str


class AlertsPublic(Out):
    """Worst first."""

    items: list[AlertPublic]
    next: None = None


class LivePublic(Out):
    """One word."""

    status: Literal["live"] = "live"


class ReadyPublic(Out):
    """One word; where it is `unavailable`, another one for the reason."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)  # the reason is left out elsewhere

    status: Literal["ready", "degraded", "unavailable"]
    reason: str | None = Field(
        default=None,
        description="Why it is `unavailable`: database_unavailable, database_newer, secret_key_lost, storage_full, "
        "starting, stopping, scheduler. GET /health and the log say more.",
    )


class HealthPartPublic(Out):
    """One thing that must work."""

    name: str
    ok: bool
    detail: str


class HealthPublic(Out):
    """How the relay is, part by part."""

    status: Literal["ready", "degraded", "unavailable"]
    parts: list[HealthPartPublic]


class VersionPublic(Out):
    """What runs here."""

    version: str
    python: str
    platform: str
    database_revision: str | None
    started_at: Time


class KeyIn(In):
    """A new API key."""

    name: Annotated[str, Printable] = Field(min_length=1, max_length=100, description="For people and the audit.")
    scopes: list[ScopeWord] = Field(
        min_length=1,
        max_length=4,
        description="read < operate < admin; submit: only POST /messages, to the key's directories.",
    )
    directories: list[Annotated[str, Field(pattern=NAME_PATTERN)]] = Field(
        default_factory=list, max_length=100, description="Limits the scope submit; empty: every directory."
    )
    expires_at: FutureTimeIn | None = Field(default=None, description="null: never.")

    @field_validator("scopes", "directories")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))


class KeyPublic(Out):
    """An API key, without the key."""

    id: int
    name: str
    prefix: str = Field(description="Its first characters, to tell keys apart.")
    scopes: list[ScopeWord]
    directories: list[str]
    created_at: Time
    expires_at: Time | None
    last_used_at: Time | None = Field(description="To the minute.")


class NewKeyPublic(KeyPublic):
    """A key that was just made. `key` is shown this once."""

    key: str


KeyIn.shown_as = (KeyPublic,)


class AuditPublic(Out):
    """One change or act."""

    id: int
    at: Time
    key: str = Field(description="Name of the API key, or local.")
    action: str
    target: str
    changes: dict[str, Any] = Field(description="Field: [before, after]; secrets are masked.")


class SenderRouteIn(In):
    """Mail of these senders goes through these accounts, whatever directory it comes from."""

    senders: list[Sender] = Field(
        min_length=1,
        max_length=1000,
        description="Envelope senders: addresses, and `@domains` (not their subdomains). An address counts before its "
        "`@domain`; each may stand once in all routes.",
    )
    accounts: list[AccountName] = Field(
        min_length=1,
        max_length=20,
        description="In order: the next one helps out. An account with `senders` takes only those all the same.",
    )


class SenderRoutePublic(Out):
    """Mail of these senders goes through these accounts, whatever directory it comes from."""

    senders: list[str]
    accounts: list[str]


class SettingsUpdate(In):
    """A merge patch (RFC 7396): what is named changes, null puts the default back."""

    history_days: Annotated[int, Field(ge=1, le=3650)] | None = Field(
        default=None, description="Days that the history is kept. Default 90, 1 to 3650."
    )
    sender_routes: list[SenderRouteIn] | None = Field(
        default=None,
        max_length=200,
        description="For all directories, before their own accounts. The whole list: what is left out is gone. "
        "Default []: none.",
    )


class SettingsPublic(Out):
    """What can be changed while the service runs, and what it was started with."""

    history_days: int = Field(description="Days that the history is kept.")
    sender_routes: list[SenderRoutePublic] = Field(
        description="Mail of these senders goes through these accounts, whatever directory it comes from."
    )
    read_only: dict[str, Any] = Field(description="Set at the start: TOML file, MPU_... variables, options.")


SettingsUpdate.shown_as = (SettingsPublic, Settings)  # `read_only` shows all of the latter


class SandboxMailPublic(Out):
    """A mail that the sandbox received."""

    id: int
    received_at: Time
    sender: str
    recipients: list[str]
    subject: str
    size_bytes: int
