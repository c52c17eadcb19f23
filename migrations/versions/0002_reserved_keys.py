"""An Idempotency-Key is reserved before its mail is written. Those from before came behind their mails.

Revision: 0002, after: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.add_column(sa.Column("written", sa.Boolean(), nullable=False, server_default=sa.true()))


def downgrade() -> None:
    op.execute("DELETE FROM idempotency WHERE NOT written")  # 0001 takes each row for a mail that is there
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.drop_column("written")
