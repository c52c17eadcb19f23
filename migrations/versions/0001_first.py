"""All tables of the first version.

Revision: 0001, after: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("pause_by", sa.String(), nullable=True),
        sa.Column("pause_code", sa.String(), nullable=True),
        sa.Column("pause_reason", sa.String(), nullable=True),
        sa.Column("pause_since", sa.Integer(), nullable=True),
        sa.Column("pause_until", sa.Integer(), nullable=True),
        sa.Column("pause_remedy", sa.String(), nullable=True),
        sa.Column("pause_trials", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("security", sa.String(), nullable=False),
        sa.Column("auth", sa.String(), nullable=False),
        sa.Column("username", sa.String(), nullable=True),
        sa.Column("password", sa.String(), nullable=True),
        sa.Column("password_changed_at", sa.Integer(), nullable=True),
        sa.Column("from_address", sa.String(), nullable=True),
        sa.Column("from_policy", sa.String(), nullable=False),
        sa.Column("max_connections", sa.Integer(), nullable=False),
        sa.Column("messages_per_connection", sa.Integer(), nullable=False),
        sa.Column("recipients_per_message", sa.Integer(), nullable=False),
        sa.Column("connect_timeout_seconds", sa.Float(), nullable=False),
        sa.Column("idle_timeout_seconds", sa.Float(), nullable=False),
        sa.Column("helo_name", sa.String(), nullable=True),
        sa.Column("tls_ca_file", sa.String(), nullable=True),
        sa.Column("allow_plaintext_login", sa.Boolean(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("preset", sa.String(), nullable=True),
        sa.Column("password_from", sa.String(), nullable=True),
        sa.Column("oauth", sa.JSON(), nullable=True),
        sa.Column("oauth_secrets", sa.String(), nullable=True),
        sa.Column("senders", sa.JSON(), nullable=False),
        sa.Column("messages_per_second", sa.Float(), nullable=True),
        sa.Column("messages_per_minute", sa.Integer(), nullable=True),
        sa.Column("messages_per_hour", sa.Integer(), nullable=True),
        sa.Column("messages_per_day", sa.Integer(), nullable=True),
        sa.Column("recipients_per_day", sa.Integer(), nullable=True),
        sa.Column("reply_rules", sa.JSON(), nullable=False),
        sa.Column("slowed", sa.JSON(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_account")),
    )
    op.create_table(
        "act",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("at", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("act", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_act")),
    )
    with op.batch_alter_table("act", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_act_at"), ["at"], unique=False)
        batch_op.create_index(batch_op.f("ix_act_message_id"), ["message_id"], unique=False)

    op.create_table(
        "api_key",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("directories", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Integer(), nullable=True),
        sa.Column("last_used_at", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
        sa.UniqueConstraint("hash", name=op.f("uq_api_key_hash")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("changes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_at"), ["at"], unique=False)

    op.create_table(
        "directory",
        sa.Column("pause_by", sa.String(), nullable=True),
        sa.Column("pause_code", sa.String(), nullable=True),
        sa.Column("pause_reason", sa.String(), nullable=True),
        sa.Column("pause_since", sa.Integer(), nullable=True),
        sa.Column("pause_until", sa.Integer(), nullable=True),
        sa.Column("pause_remedy", sa.String(), nullable=True),
        sa.Column("pause_trials", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("strategy", sa.String(), nullable=False),
        sa.Column("weights", sa.JSON(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("patterns", sa.JSON(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("dot_stuffing", sa.String(), nullable=False),
        sa.Column("interval_seconds", sa.Float(), nullable=True),
        sa.Column("schedule", sa.String(), nullable=True),
        sa.Column("schedule_timezone", sa.String(), nullable=False),
        sa.Column("watch", sa.Boolean(), nullable=False),
        sa.Column("quiet_seconds", sa.Float(), nullable=False),
        sa.Column("retry_initial_seconds", sa.Float(), nullable=False),
        sa.Column("retry_max_seconds", sa.Float(), nullable=False),
        sa.Column("expire_after_seconds", sa.Float(), nullable=False),
        sa.Column("on_unknown", sa.String(), nullable=False),
        sa.Column("unknown_max", sa.Integer(), nullable=False),
        sa.Column("max_message_bytes", sa.Integer(), nullable=False),
        sa.Column("max_recipients", sa.Integer(), nullable=False),
        sa.Column("oldest_alert_seconds", sa.Float(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_directory")),
        sa.UniqueConstraint("path", name=op.f("uq_directory_path")),
    )
    op.create_table(
        "account_usage",
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("since", sa.Integer(), nullable=False),
        sa.Column("messages", sa.Integer(), nullable=False),
        sa.Column("recipients", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("account", "since", name=op.f("pk_account_usage")),
    )
    op.create_table(
        "outside_token",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("used_at", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_outside_token")),
    )
    with op.batch_alter_table("outside_token", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_outside_token_used_at"), ["used_at"], unique=False)

    op.create_table(
        "idempotency",
        sa.Column("api_key", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("body_hash", sa.String(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("api_key", "key", name=op.f("pk_idempotency")),
    )
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_idempotency_created_at"), ["created_at"], unique=False)

    op.create_table(
        "message",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("directory", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=True),
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("internet_message_id", sa.String(), nullable=True),
        sa.Column("subject", sa.String(), nullable=True),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("arrived_at", sa.Integer(), nullable=False),
        sa.Column("first_attempt_at", sa.Integer(), nullable=True),
        sa.Column("finished_at", sa.Integer(), nullable=True),
        sa.Column("updated_at", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("possible_duplicate", sa.Boolean(), nullable=False),
        sa.Column("server", sa.String(), nullable=True),
        sa.Column("tls", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_message")),
        sa.UniqueConstraint("message_id", name=op.f("uq_message_message_id")),
    )
    with op.batch_alter_table("message", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_message_internet_message_id"), ["internet_message_id"], unique=False)

    op.create_table(
        "relay",
        sa.Column("pause_by", sa.String(), nullable=True),
        sa.Column("pause_code", sa.String(), nullable=True),
        sa.Column("pause_reason", sa.String(), nullable=True),
        sa.Column("pause_since", sa.Integer(), nullable=True),
        sa.Column("pause_until", sa.Integer(), nullable=True),
        sa.Column("pause_remedy", sa.String(), nullable=True),
        sa.Column("pause_trials", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_relay")),
    )
    op.create_table(
        "setting",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_setting")),
    )
    op.create_table(
        "attempt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("message", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("server", sa.String(), nullable=False),
        sa.Column("tls", sa.String(), nullable=True),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("code", sa.Integer(), nullable=True),
        sa.Column("enhanced_code", sa.String(), nullable=True),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("started_at", sa.Integer(), nullable=False),
        sa.Column("ended_at", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("recipients", sa.JSON(), nullable=False),
        sa.Column("possible_duplicate", sa.Boolean(), nullable=False),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["message"], ["message.id"], name=op.f("fk_attempt_message_message"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempt")),
        sa.UniqueConstraint("message", "number", "part", name=op.f("uq_attempt_message_number_part")),
    )
    op.create_table(
        "directory_account",
        sa.Column("directory", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account"], ["account.name"], name=op.f("fk_directory_account_account_account"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["directory"], ["directory.name"], name=op.f("fk_directory_account_directory_directory"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("directory", "position", name=op.f("pk_directory_account")),
    )
    with op.batch_alter_table("directory_account", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_directory_account_account"), ["account"], unique=False)

    op.create_table(
        "recipient",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("message", sa.Integer(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("domain", sa.String(), nullable=False),
        sa.Column("sender", sa.String(collation="NOCASE"), nullable=False),
        sa.Column("directory", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("code", sa.Integer(), nullable=True),
        sa.Column("enhanced_code", sa.String(), nullable=True),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("superseded_by", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["message"], ["message.id"], name=op.f("fk_recipient_message_message"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recipient")),
    )
    with op.batch_alter_table("recipient", schema=None) as batch_op:
        batch_op.create_index("ix_recipient_account", ["account"], unique=False)
        batch_op.create_index("ix_recipient_address", ["address"], unique=False)
        batch_op.create_index("ix_recipient_directory", ["directory"], unique=False)
        batch_op.create_index("ix_recipient_domain", ["domain"], unique=False)
        batch_op.create_index("ix_recipient_message_address", ["message", "address", "superseded_by"], unique=True)
        batch_op.create_index("ix_recipient_sender", ["sender"], unique=False)
        batch_op.create_index("ix_recipient_status", ["status"], unique=False, sqlite_where=sa.text("status <> 'sent'"))
        batch_op.create_index(
            "ix_recipient_superseded_by", ["superseded_by"], unique=False, sqlite_where=sa.text("superseded_by > 0")
        )


def downgrade() -> None:
    with op.batch_alter_table("recipient", schema=None) as batch_op:
        batch_op.drop_index("ix_recipient_superseded_by", sqlite_where=sa.text("superseded_by > 0"))
        batch_op.drop_index("ix_recipient_status", sqlite_where=sa.text("status <> 'sent'"))
        batch_op.drop_index("ix_recipient_sender")
        batch_op.drop_index("ix_recipient_message_address")
        batch_op.drop_index("ix_recipient_domain")
        batch_op.drop_index("ix_recipient_directory")
        batch_op.drop_index("ix_recipient_address")
        batch_op.drop_index("ix_recipient_account")

    op.drop_table("recipient")
    with op.batch_alter_table("directory_account", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_directory_account_account"))

    op.drop_table("directory_account")
    op.drop_table("attempt")
    op.drop_table("setting")
    op.drop_table("relay")
    with op.batch_alter_table("message", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_message_internet_message_id"))

    op.drop_table("message")
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_idempotency_created_at"))

    op.drop_table("idempotency")
    with op.batch_alter_table("outside_token", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_outside_token_used_at"))

    op.drop_table("outside_token")
    op.drop_table("account_usage")
    op.drop_table("directory")
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_at"))

    op.drop_table("audit")
    op.drop_table("api_key")
    with op.batch_alter_table("act", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_act_message_id"))
        batch_op.drop_index(batch_op.f("ix_act_at"))

    op.drop_table("act")
    op.drop_table("account")
