"""Opening: what is refused, and with which remedy; the two engines; migrations."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from core.errors import DatabaseNewer, DatabaseUnavailable
from core.store import engine, settings
from core.store.store import DATABASE_FILE, Store
from core.store.tables import REVISION, Row
from tests.support.database import MovableClock, database, entry
from tests.support.rights import open_folder, owner_of


def open_at(folder: Path, *, create: bool = False, mountinfo: str = "/proc/self/mountinfo") -> Store:
    return Store.open(str(folder), clock=MovableClock(), create=create, mountinfo=mountinfo)


def test_a_missing_database_is_created_only_if_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with pytest.raises(DatabaseUnavailable) as caught:
        open_at(folder)
    assert caught.value.remedy
    assert not folder.exists()
    store = open_at(folder, create=True)
    try:
        assert store.created
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for name in os.listdir(folder):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    finally:
        store.close()
    again = open_at(folder)
    assert not again.created
    again.close()


def test_an_empty_file_is_a_lost_database_unless_one_is_to_be_created(tmp_path: Path) -> None:
    path = tmp_path / DATABASE_FILE
    path.touch(0o600)
    with pytest.raises(DatabaseUnavailable, match="is empty") as caught:
        open_at(tmp_path)
    assert "mpu restore" in caught.value.remedy
    assert path.stat().st_size == 0
    store = open_at(tmp_path, create=True)
    assert store.created
    store.close()
    open_at(tmp_path).close()


def test_a_file_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    database(tmp_path).chmod(0o644)
    open_at(tmp_path).close()
    assert stat.S_IMODE((tmp_path / DATABASE_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("which", ["", "-wal", "-shm"])
def test_a_file_that_can_only_be_read_is_refused_until_it_can_be_written(which: str) -> None:
    with open_folder() as folder:
        path = database(folder)
        open_at(folder).close()
        with owner_of(folder), ExitStack() as opened:
            if which:  # beside the file while somebody has it open, or was killed
                opened.enter_context(closing(engine.connect(str(path), "journal_mode=WAL")))
            there = sorted(os.listdir(folder))
            Path(f"{path}{which}").chmod(0o400)
            with pytest.raises(DatabaseUnavailable, match=f"{DATABASE_FILE}{which} can't be written") as caught:
                open_at(folder)
            assert "-wal and -shm" in caught.value.remedy
            assert sorted(os.listdir(folder)) == there, "no -shm that would be as read-only"
            Path(f"{path}{which}").chmod(0o600)
            open_at(folder).close()


def test_a_database_that_turns_out_to_be_read_only_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the mode says: SQLite opens it all the same, and begins a transaction that only reads."""
    with open_folder() as folder:
        database(folder).chmod(0o400)
        monkeypatch.setattr(os, "access", lambda *_, **__: True)
        with owner_of(folder), pytest.raises(DatabaseUnavailable, match="can't be opened for writing") as caught:
            open_at(folder)
    assert "-wal and -shm" in caught.value.remedy


async def test_a_database_that_can_be_written_again_is_written_again() -> None:
    """Connections that were opened meanwhile would stay read-only, and so would the -shm that they made."""
    with open_folder() as folder:
        path = database(folder)
        store = open_at(folder)
        path.chmod(0o400)
        try:
            with owner_of(folder):
                await _fails_until_it_can_be_written(store)
        finally:
            await asyncio.to_thread(store.close)


async def _fails_until_it_can_be_written(store: Store) -> None:
    with pytest.raises(DatabaseUnavailable, match="can't be opened for writing"):
        await store.write(lambda session: settings.put(session, "x", 1))
    await store.read(lambda session: settings.get(session, "x"))  # this one opens the -shm that the other left
    settled = store.ledger.settle(entry())
    async with asyncio.timeout(10):
        while store.healthy:
            await asyncio.sleep(0.005)
    for file in Path(store.path).parent.glob(f"{DATABASE_FILE}*"):
        file.chmod(0o600)
    async with asyncio.timeout(10):
        await settled
    assert store.healthy


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"this is no database" * 500,
        lambda data: data[:5000],
        lambda data: data[:100] + b"\xff" * 4000 + data[4100:],
        lambda data: data[:-8192] + b"\xa5" * 8192,
    ],
    ids=["garbage", "truncated", "schema overwritten", "last pages overwritten"],
)
def test_a_damaged_file_is_refused_with_a_remedy_and_left_as_it_is(tmp_path: Path, damage: object) -> None:
    path = database(tmp_path)
    broken = damage(path.read_bytes())  # type: ignore[operator] # a table of functions
    path.write_bytes(broken)
    with pytest.raises(DatabaseUnavailable) as caught:
        open_at(tmp_path, create=True)
    assert "damaged" in caught.value.detail
    assert caught.value.remedy
    assert path.read_bytes() == broken


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).mkdir()
    with pytest.raises(DatabaseUnavailable):
        open_at(tmp_path, create=True)


def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = database(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(DatabaseNewer) as caught:
        open_at(tmp_path)
    assert "9999" in caught.value.detail
    assert caught.value.remedy


@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TABLE theirs (x)",
        "CREATE TABLE account (x); CREATE TABLE message (x)",
        "CREATE TABLE theirs (x); CREATE TABLE alembic_version (version_num); INSERT INTO alembic_version VALUES ('1')",
        "CREATE TABLE alembic_version (version_num)",
    ],
    ids=["no name of ours", "some names as ours", "with Alembic", "nothing but Alembic's"],
)
def test_another_programs_database_is_refused(tmp_path: Path, statements: str) -> None:
    changed(tmp_path / DATABASE_FILE, statements)
    with pytest.raises(DatabaseUnavailable, match="another program") as caught:
        open_at(tmp_path, create=True)
    assert not isinstance(caught.value, DatabaseNewer)
    assert caught.value.remedy == "move it away"


@pytest.mark.parametrize(
    "statements",
    ["DROP TABLE alembic_version", "DELETE FROM alembic_version", "DROP TABLE attempt", "DROP TABLE setting"],
)
def test_our_database_with_something_missing_is_damaged(tmp_path: Path, statements: str) -> None:
    path = database(tmp_path)
    changed(path, statements)
    was = path.read_bytes()
    with pytest.raises(DatabaseUnavailable, match="is damaged") as caught:
        open_at(tmp_path, create=True)
    assert caught.value.remedy == engine.DAMAGED
    assert path.read_bytes() == was


def changed(path: Path, statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)


@pytest.mark.parametrize("kind", ["nfs4", "nfs", "cifs", "smb3", "fuse.sshfs"])
def test_a_network_file_system_is_refused(tmp_path: Path, kind: str) -> None:
    table = tmp_path / "mountinfo"
    place = str(tmp_path / "data dir").replace(" ", "\\040")
    table.write_text(
        f"20 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n21 20 0:40 / {place} rw shared:5 - {kind} server:/x rw\n"
    )
    with pytest.raises(DatabaseUnavailable) as caught:
        open_at(tmp_path / "data dir", create=True, mountinfo=str(table))
    assert kind in caught.value.detail
    assert not (tmp_path / "data dir" / DATABASE_FILE).exists()
    open_at(tmp_path / "data", create=True, mountinfo=str(table)).close()


def test_the_file_system_is_that_of_the_innermost_and_latest_mount(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /srv rw - xfs b rw\n3 1 8:3 / /srv rw - btrfs c rw\n"
        "4 1 0:9 / /srvx rw - nfs d rw\n"
    )
    assert engine.file_system_of("/srv/a/b", str(table)) == "btrfs"
    assert engine.file_system_of("/srvother", str(table)) == "ext4"
    assert engine.file_system_of("/", str(tmp_path / "missing")) is None


def test_readers_cannot_write_and_see_one_state_throughout(tmp_path: Path) -> None:
    path = str(database(tmp_path))
    writer, readers = engine.writer_engine(path), engine.reader_engine(path)
    try:
        with readers.begin() as reading:
            count = "SELECT count(*) FROM setting"
            assert reading.exec_driver_sql(count).scalar() == 0
            with writer.begin() as writing:
                writing.exec_driver_sql("INSERT INTO setting VALUES ('a', '1')")
            assert reading.exec_driver_sql(count).scalar() == 0
            with pytest.raises(DBAPIError, match="readonly"):
                reading.exec_driver_sql("DELETE FROM setting")
        with readers.begin() as reading:
            assert reading.exec_driver_sql(count).scalar() == 1
    finally:
        writer.dispose()
        readers.dispose()


def test_a_reader_neither_makes_a_file_nor_opens_another_one(tmp_path: Path) -> None:
    path = database(tmp_path)
    with pytest.raises(DatabaseUnavailable, match="is gone"):
        engine.reader_engine(str(tmp_path / "other"))
    store = open_at(tmp_path)
    try:
        path.rename(tmp_path / "aside")
        with pytest.raises(DatabaseUnavailable, match="is gone"):
            store.read_now(lambda session: settings.get(session, "x"))
        assert not path.exists()
        database(tmp_path)
        with pytest.raises(DatabaseUnavailable, match="replaced"):
            store.read_now(lambda session: settings.get(session, "x"))
    finally:
        store.close()


@pytest.mark.parametrize("name", ["a b", "a?mode=memory", "a%41#b", "caf\udce9"])
def test_the_last_connection_leaves_one_file_whatever_the_folder_is_called(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    database(folder)
    store = open_at(folder)
    store.read_now(lambda session: settings.get(session, "x"))  # a reader, which is closed behind the writer
    store.close()
    assert [found for found in os.listdir(folder) if found.startswith(DATABASE_FILE)] == [DATABASE_FILE]


def test_the_writer_is_durable_and_checks_foreign_keys(tmp_path: Path) -> None:
    writer = engine.writer_engine(str(database(tmp_path)))
    try:
        with writer.begin() as connection:
            facts = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }
    finally:
        writer.dispose()
    assert facts == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_the_revisions_make_what_the_tables_say(tmp_path: Path) -> None:
    writer = engine.writer_engine(str(database(tmp_path)))
    try:
        with writer.begin() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, Row.metadata) == []
            indexes = sa.inspect(connection).get_indexes("recipient")
    finally:
        writer.dispose()
    assert ScriptDirectory.from_config(engine.alembic_config()).get_current_head() == REVISION
    wheres = {i["name"]: str(i["dialect_options"]["sqlite_where"]) for i in indexes if i.get("dialect_options")}
    assert wheres == {
        "ix_recipient_status": "status <> 'sent'",
        "ix_recipient_superseded_by": "superseded_by > 0",
    }


def test_keys_that_came_behind_their_mails_count_as_written(tmp_path: Path) -> None:
    path = str(tmp_path / DATABASE_FILE)
    engine.prepare(path, create=True)
    writer = engine.writer_engine(path)
    try:
        with writer.begin() as connection:
            config = engine.alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "0001")
            connection.exec_driver_sql("INSERT INTO idempotency VALUES (1, 'k', 'hash', 'web.YQ.00000000', 5)")
        engine.migrate(path)
        with writer.begin() as connection:
            rows = connection.exec_driver_sql("SELECT key, created_at, written FROM idempotency").all()
    finally:
        writer.dispose()
    assert rows == [("k", 5, 1)]


def test_a_migration_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / DATABASE_FILE
    engine.prepare(str(path), create=True)
    upgrade = engine._upgrade

    def fails(connection: sa.Connection, present: str | None, name: str) -> None:
        upgrade(connection, present, name)
        raise DatabaseUnavailable("cut short")

    monkeypatch.setattr(engine, "_upgrade", fails)
    with pytest.raises(DatabaseUnavailable, match="cut short"):
        engine.migrate(str(path))
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()
