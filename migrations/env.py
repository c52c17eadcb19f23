"""Alembic's environment.

With a connection in `config.attributes` (core.store.engine.migrate) it is used, inside its transaction. From the
command line `-x database=PATH` names a file; without it a scratch database is made and migrated first, so that
`alembic -c migrations/alembic.ini check` compares the tables with what the revisions make of an empty file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import sqlalchemy as sa
from alembic import context

from core.store import engine as store_engine
from core.store.tables import Row

_MIGRATE = """
import sys
from core.store.engine import migrate, prepare
prepare(sys.argv[1], create=True)
migrate(sys.argv[1])
"""


def run(connection: sa.Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Row.metadata,
        render_as_batch=True,
        transactional_ddl=True,
        transaction_per_migration=False,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_on(path: str) -> None:
    store_engine.prepare(path, create=True)
    engine = store_engine.writer_engine(path)
    try:
        with engine.begin() as connection:
            run(connection)
    finally:
        engine.dispose()


def main() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        run(connection)
        return
    named = context.get_x_argument(as_dictionary=True).get("database")
    if named:
        run_on(named)
        return
    with tempfile.TemporaryDirectory(prefix="mpu-schema-") as folder:
        scratch = os.path.join(folder, "scratch.sqlite3")
        # In a process of its own: Alembic's context is one a process, and it is in use here. It runs this interpreter.
        subprocess.run(  # noqa: S603  # nosec B603
            [sys.executable, "-c", _MIGRATE, scratch],
            check=True,
        )
        run_on(scratch)


main()
