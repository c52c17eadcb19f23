"""The tables. Their classes never leave core/store: repositories take and give frozen values.

Times are INTEGER microseconds since the epoch (epoch.py). Names of accounts and directories are their keys, since they
never change. The history (message, recipient, attempt, act) keeps these names as plain text without foreign keys, so
that it outlives what it tells of.

`recipient` is the hot table, and made so that one key serves three ends. Its id is the time, in microseconds, at which
the row was recorded, made unique and never going back; so it is the order of the history, the column that `since` and
`until` look at, and, as the last column of every index of SQLite, it puts the rows of each filter in that order for
free. A row never changes: news of a recipient is a new row, and `superseded_by` of the old one names it. A listing that
began before still sees the old row, so that each recipient appears exactly once however long someone leafs
(history.py); an hour later retention takes it away.

Indexes cost writes. Those on directory, account, sender and domain have few distinct values and grow at a few warm
pages; only address, message_id and internet_message_id touch a page a row. The index on status leaves out what was
sent, and so costs nothing on the happy path.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

REVISION = "0002"  # what these tables look like; a test compares it with the newest in migrations/

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Row(SQLModel, registry=registry(metadata=sa.MetaData(naming_convention=NAMING))):
    """Base of all tables; has its own metadata, so that nothing foreign gets into the schema."""


class PausedRow(Row):
    """Columns of what can be paused; `pause_by` is NULL where it isn't."""

    pause_by: str | None = None  # operator | service
    pause_code: str | None = None
    pause_reason: str | None = None
    pause_since: int | None = None
    pause_until: int | None = None
    pause_remedy: str | None = None
    pause_trials: int = 0  # tried since, to see whether it can be lifted


class AccountRow(PausedRow, table=True):
    """An account's settings (core/domain/account.py). `password` is a token of secrets.py."""

    __tablename__ = "account"

    name: str = Field(primary_key=True)
    host: str
    port: int
    security: str
    auth: str
    username: str | None = None
    password: str | None = None
    password_changed_at: int | None = None
    from_address: str | None = None
    from_policy: str
    max_connections: int
    messages_per_connection: int
    recipients_per_message: int
    connect_timeout_seconds: float
    idle_timeout_seconds: float
    helo_name: str | None = None
    tls_ca_file: str | None = None
    allow_plaintext_login: bool
    enabled: bool
    preset: str | None = None
    password_from: str | None = None
    oauth: dict[str, Any] | None = Field(default=None, sa_type=sa.JSON)  # without its secrets
    oauth_secrets: str | None = None  # a token of secrets.py: a JSON object
    senders: list[str] = Field(sa_type=sa.JSON)
    messages_per_second: float | None = None
    messages_per_minute: int | None = None
    messages_per_hour: int | None = None
    messages_per_day: int | None = None
    recipients_per_day: int | None = None
    reply_rules: list[dict[str, Any]] = Field(sa_type=sa.JSON)
    slowed: dict[str, Any] | None = Field(default=None, sa_type=sa.JSON)  # by its server (slowdowns.py); no setting
    version: (
        int  # grows with every change of the settings; starts at the time of creation, so that it never comes again
    )
    created_at: int
    updated_at: int


class DirectoryRow(PausedRow, table=True):
    """A pickup directory's settings (core/domain/account.py)."""

    __tablename__ = "directory"

    name: str = Field(primary_key=True)
    path: str = Field(unique=True)
    strategy: str
    weights: list[int] = Field(sa_type=sa.JSON)
    enabled: bool
    patterns: list[str] = Field(sa_type=sa.JSON)
    format: str
    dot_stuffing: str
    interval_seconds: float | None = None
    schedule: str | None = None
    schedule_timezone: str
    watch: bool
    quiet_seconds: float
    retry_initial_seconds: float
    retry_max_seconds: float
    expire_after_seconds: float
    on_unknown: str
    unknown_max: int
    max_message_bytes: int
    max_recipients: int
    oldest_alert_seconds: float
    version: int
    created_at: int
    updated_at: int


class DirectoryAccountRow(Row, table=True):
    """Which accounts a directory sends through, in order."""

    __tablename__ = "directory_account"

    directory: str = Field(primary_key=True, foreign_key="directory.name", ondelete="CASCADE")
    position: int = Field(primary_key=True)
    account: str = Field(foreign_key="account.name", ondelete="RESTRICT", index=True)


class RelayRow(PausedRow, table=True):
    """The whole relay: one row, of id 1."""

    __tablename__ = "relay"

    id: int = Field(primary_key=True)


class MessageRow(Row, table=True):
    """One mail. `server`, `tls` and `first_attempt_at` tell the only attempt of a mail that went out at once."""

    __tablename__ = "message"

    id: int | None = Field(default=None, primary_key=True)
    message_id: str = Field(unique=True)  # core.domain.message.MessageIdentity.id
    directory: str
    account: str | None = None  # of the last attempt
    sender: str
    internet_message_id: str | None = Field(default=None, index=True)
    subject: str | None = None
    size_bytes: int
    status: str
    arrived_at: int
    first_attempt_at: int | None = None
    finished_at: int | None = None
    updated_at: int
    attempts: int
    possible_duplicate: bool
    server: str | None = None
    tls: str | None = None


class RecipientRow(Row, table=True):
    """The outcome for one recipient of one mail; see the module's text for `id` and `superseded_by`."""

    __tablename__ = "recipient"
    __table_args__ = (
        sa.Index("ix_recipient_message_address", "message", "address", "superseded_by", unique=True),
        sa.Index("ix_recipient_address", "address"),
        sa.Index("ix_recipient_domain", "domain"),
        sa.Index("ix_recipient_sender", "sender"),
        sa.Index("ix_recipient_directory", "directory"),
        sa.Index("ix_recipient_account", "account"),
        sa.Index("ix_recipient_status", "status", sqlite_where=sa.text("status <> 'sent'")),
        sa.Index("ix_recipient_superseded_by", "superseded_by", sqlite_where=sa.text("superseded_by > 0")),
    )

    id: int = Field(primary_key=True)
    message: int = Field(foreign_key="message.id", ondelete="CASCADE")
    address: str  # as in the envelope, but for lower case in its domain; "" for a mail of which no recipient is known
    domain: str  # lower case
    sender: str = Field(sa_type=sa.String(collation="NOCASE"))  # with the index: found whatever the case
    directory: str
    account: str | None = None
    status: str
    attempt: int
    code: int | None = None
    enhanced_code: str | None = None
    text: str
    phase: str
    superseded_by: int = 0  # id of the row with the newer outcome; 0: this is the newest


class AttemptRow(Row, table=True):
    """What an attempt meant for those of its recipients that fared alike. None of a mail that went out at once."""

    __tablename__ = "attempt"
    __table_args__ = (sa.UniqueConstraint("message", "number", "part"),)

    id: int | None = Field(default=None, primary_key=True)
    message: int = Field(foreign_key="message.id", ondelete="CASCADE")
    number: int
    part: int  # recipients that fared alike are one part
    account: str
    server: str
    tls: str | None = None
    phase: str
    code: int | None = None
    enhanced_code: str | None = None
    text: str
    started_at: int
    ended_at: int
    outcome: str
    recipients: list[str] = Field(sa_type=sa.JSON)
    possible_duplicate: bool
    counted: bool  # False: the account's fault


class AccountUsageRow(Row, table=True):
    """What an account's server took in 5 minutes of the last day; counted in the transaction that records it."""

    __tablename__ = "account_usage"

    account: str = Field(primary_key=True)
    since: int = Field(primary_key=True)
    messages: int  # transactions
    recipients: int


class OutsideTokenRow(Row, table=True):
    """What a provider put in the place of a refresh token that lies outside the database (outside_tokens.py)."""

    __tablename__ = "outside_token"

    digest: str = Field(primary_key=True)  # of the outside token, and of whom it goes to
    token: str  # a token of secrets.py
    used_at: int = Field(index=True)


class ActRow(Row, table=True):
    """What an operator did with a message."""

    __tablename__ = "act"

    id: int | None = Field(default=None, primary_key=True)
    message_id: str = Field(index=True)
    at: int = Field(index=True)
    key: str  # name of the API key, or "local"
    act: str  # retry | hold | release | delete
    detail: str


class ApiKeyRow(Row, table=True):
    """An API key: its SHA-256, never itself."""

    __tablename__ = "api_key"
    __table_args__ = {"sqlite_autoincrement": True}  # the audit names keys by their ids

    id: int | None = Field(default=None, primary_key=True)
    name: str
    prefix: str
    hash: str = Field(unique=True)
    scopes: list[str] = Field(sa_type=sa.JSON)
    directories: list[str] | None = Field(default=None, sa_type=sa.JSON)
    created_at: int
    expires_at: int | None = None
    last_used_at: int | None = None


class AuditRow(Row, table=True):
    """One change or act; secrets in `changes` are masked by the writer."""

    __tablename__ = "audit"

    id: int | None = Field(default=None, primary_key=True)
    at: int = Field(index=True)
    key: str
    action: str
    target: str
    changes: dict[str, Any] = Field(sa_type=sa.JSON)


class SettingRow(Row, table=True):
    """A setting that can be changed while the relay runs, or a fact of the store's own (`store.` keys)."""

    __tablename__ = "setting"

    key: str = Field(primary_key=True)
    value: Any = Field(default=None, sa_type=sa.JSON)


class IdempotencyRow(Row, table=True):
    """An Idempotency-Key, reserved before its mail is put into the directory."""

    __tablename__ = "idempotency"

    api_key: int = Field(primary_key=True)  # id of the API key, 0: none
    key: str = Field(primary_key=True)
    body_hash: str
    message_id: str
    created_at: int = Field(index=True)
    written: bool  # the mail was put into its directory; False: perhaps
