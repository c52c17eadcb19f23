"""Copies of the database: whole while others write, refused where they are no use; restores that no kill can spoil."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from core.domain.account import Account
from core.errors import AlreadyExists, DatabaseNewer, DatabaseUnavailable, RelayError, SecretKeyLost
from core.store import accounts
from core.store.copies import KEY_SUFFIX, Restored, back_up, restore
from core.store.secrets import KEY_FILE
from core.store.store import DATABASE_FILE
from core.store.tables import REVISION
from tests.support.database import START, entry, open_store

STAMP = "20270115T080000Z"


async def filled(folder: Path, *names: str) -> None:
    """A closed store with these accounts; the password of each is its name, backwards."""
    folder.mkdir(exist_ok=True)
    store = open_store(folder)
    for name in names:
        value = Account(name, "smtp.example.com", username="u", password=name[::-1])
        await store.write(lambda s, a=value: accounts.create(s, store.secrets, a, now=START))  # type: ignore[misc]
    await asyncio.to_thread(store.close)


async def passwords(folder: Path) -> dict[str, str | None]:
    store = open_store(folder)
    try:
        loaded = await store.read(lambda s: accounts.load(s, store.secrets))
        return {record.account.name: record.account.password for record in loaded}
    finally:
        await asyncio.to_thread(store.close)


def put_back(folder: Path, copy: Path, *, with_key: bool = False, secret_key: str | None = None) -> Restored:
    with copy.open("rb") as source:
        if not with_key:
            return restore(str(folder), source, None, stamp=STAMP, secret_key=secret_key)
        with Path(f"{copy}{KEY_SUFFIX}").open("rb") as key:
            return restore(str(folder), source, key, stamp=STAMP, secret_key=secret_key)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


async def test_a_copy_is_one_closed_file_for_its_owner_alone(tmp_path: Path) -> None:
    await filled(tmp_path / "data", "alphabet")
    copy = tmp_path / "copy.sqlite3"
    assert back_up(str(tmp_path / "data"), str(copy), with_key=True) == copy.stat().st_size
    key = Path(f"{copy}{KEY_SUFFIX}")
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir() if p.is_file()} == {
        copy.name: 0o600,
        key.name: 0o600,
    }
    assert key.read_text() == (tmp_path / "data" / KEY_FILE).read_text()
    assert b"gAAAA" in copy.read_bytes()  # the password is there, sealed
    assert b"alphabet" in copy.read_bytes()
    assert b"tebahpla" not in copy.read_bytes()
    with sqlite3.connect(f"file:{copy}?mode=ro&immutable=1", uri=True) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()


async def test_a_copy_made_under_load_is_one_state_of_the_database(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    store = open_store(folder)
    ended = threading.Event()

    async def write() -> int:
        number = 0
        while not ended.is_set():
            await store.ledger.settle(entry(f"{number}.eml", [f"r{n}@example.com" for n in range(5)]))
            number += 1
        return number

    writing = asyncio.create_task(write())
    sizes = []
    try:
        for number in range(8):
            copy = tmp_path / f"{number}.sqlite3"
            await asyncio.to_thread(back_up, str(folder), str(copy))
            connection = sqlite3.connect(copy)
            messages, recipients = (
                connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("message", "recipient")
            )
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            connection.close()
            assert recipients == 5 * messages
            sizes.append(messages)
    finally:
        ended.set()
        written = await writing
        await asyncio.to_thread(store.close)
    assert sizes == sorted(sizes)
    assert 0 < sizes[-1] <= written
    assert sizes[0] < sizes[-1], "nothing was written meanwhile: the test shows nothing"


async def test_a_backup_overwrites_only_what_it_is_told_to(tmp_path: Path) -> None:
    await filled(tmp_path / "data", "a")
    data, copy = str(tmp_path / "data"), tmp_path / "copy"
    copy.write_text("mine")
    with pytest.raises(AlreadyExists):
        back_up(data, str(copy))
    assert copy.read_text() == "mine"
    Path(f"{copy}{KEY_SUFFIX}").write_text("mine too")
    with pytest.raises(AlreadyExists):
        back_up(data, str(tmp_path / "copy"), with_key=True)
    back_up(data, str(copy), with_key=True, overwrite=True)
    assert copy.read_bytes().startswith(b"SQLite format 3")
    with pytest.raises(AlreadyExists, match="the database itself"):
        back_up(data, f"{data}/../data/{DATABASE_FILE}", overwrite=True)
    with pytest.raises(DatabaseUnavailable, match="can't be used"):
        back_up(data, str(tmp_path / "missing" / "copy"))


async def test_a_damaged_database_gives_no_copy(tmp_path: Path) -> None:
    await filled(tmp_path / "data", "a")
    path = tmp_path / "data" / DATABASE_FILE
    data = path.read_bytes()
    path.write_bytes(data[:-8192] + b"\xa5" * 8192)
    with pytest.raises(DatabaseUnavailable, match="damaged"):
        back_up(str(path.parent), str(tmp_path / "copy"))
    (tmp_path / "data" / KEY_FILE).write_text("nonsense")
    path.write_bytes(data)
    with pytest.raises(SecretKeyLost):
        back_up(str(path.parent), str(tmp_path / "copy"), with_key=True)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


async def test_a_restore_keeps_what_was_there_aside(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    await filled(data, "a")
    back_up(str(data), str(copy))
    await filled(data, "b")
    (data / f"{DATABASE_FILE}-wal").write_bytes(b"of the old one")
    before = content(data)
    done = put_back(data, copy)
    assert done == Restored(REVISION, str(data / f"before-restore-{STAMP}"), ())
    assert {f"before-restore-{STAMP}/{name}": octets for name, octets in before.items() if name != "database-made"} == {
        name: octets for name, octets in content(data).items() if name.startswith("before")
    }
    assert not (data / f"{DATABASE_FILE}-wal").exists()
    assert await passwords(data) == {"a": "a"}
    assert stat.S_IMODE((data / DATABASE_FILE).stat().st_mode) == 0o600
    assert put_back(data, copy).kept == str(data / f"before-restore-{STAMP}~2")


async def test_a_restore_on_a_new_machine_needs_the_key(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    await filled(data, "alpha", "beta")
    back_up(str(data), str(copy), with_key=True)
    for name, with_key in (("with", True), ("without", False)):
        new = tmp_path / name
        new.mkdir()
        done = put_back(new, copy, with_key=with_key)
        assert (done.kept, done.lost) == (None, () if with_key else ("alpha", "beta"))
        lost = None if not with_key else "ahpla"
        assert await passwords(new) == {"alpha": lost, "beta": lost and "ateb"}


async def test_after_a_rotation_the_key_of_the_copy_is_needed_and_replaces_the_new_one(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    await filled(data, "alpha")
    back_up(str(data), str(copy), with_key=True)
    store = open_store(data)
    await store.rotate_secret_key()
    await asyncio.to_thread(store.close)
    assert put_back(data, copy).lost == ("alpha",)
    assert put_back(data, copy, with_key=True).lost == ()
    assert await passwords(data) == {"alpha": "ahpla"}
    assert (data / KEY_FILE).read_text() == Path(f"{copy}{KEY_SUFFIX}").read_text()  # the start dropped the other


async def test_a_key_of_the_environment_is_what_counts(tmp_path: Path) -> None:
    from cryptography.fernet import Fernet

    data, copy, key = tmp_path / "data", tmp_path / "copy", Fernet.generate_key().decode()
    await filled(data, "alpha")
    back_up(str(data), str(copy), with_key=True)
    assert put_back(data, copy, with_key=True, secret_key=key).lost == ("alpha",)


def _newer(copy: Path) -> None:
    connection = sqlite3.connect(copy)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()


def _foreign(copy: Path) -> None:
    copy.unlink()
    connection = sqlite3.connect(copy)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda copy: copy.write_bytes(b"no database" * 1000), DatabaseUnavailable),
        (lambda copy: copy.write_bytes(b""), DatabaseUnavailable),
        (lambda copy: copy.write_bytes(copy.read_bytes()[:9000]), DatabaseUnavailable),
        (lambda copy: copy.write_bytes(copy.read_bytes()[:-8192] + b"\xa5" * 8192), DatabaseUnavailable),
        (_newer, DatabaseNewer),
        (_foreign, DatabaseUnavailable),
        (lambda copy: Path(f"{copy}-wal").write_bytes(b"x"), DatabaseUnavailable),
    ],
    ids=["garbage", "empty", "cut", "overwritten", "newer", "of another program", "copied live"],
)
async def test_what_is_no_whole_copy_changes_nothing(
    tmp_path: Path, spoil: Callable[[Path], object], error: type[RelayError]
) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    await filled(data, "a")
    back_up(str(data), str(copy))
    spoil(copy)
    before = content(data)
    with pytest.raises(error) as caught:
        put_back(data, copy)
    assert str(copy) in caught.value.detail
    assert ".new" not in caught.value.detail
    assert caught.value.remedy
    assert content(data) == before


async def test_a_wrong_key_file_changes_nothing(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    await filled(data, "a")
    back_up(str(data), str(copy))
    Path(f"{copy}{KEY_SUFFIX}").write_bytes(b"\xff no key")
    before = content(data)
    with pytest.raises(SecretKeyLost):
        put_back(data, copy, with_key=True)
    assert content(data) == before


KILLED = """
import os, shutil, signal, sys
from core.store import copies

real = {name: getattr(os, name) for name in ("open", "fsync", "rename", "unlink", "link", "mkdir")}
left = -1

def counted(name):
    def call(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real[name](*arguments, **options)
    return call

base, original, copy = sys.argv[1:]
for n in range(200):
    folder = f"{base}/{n}"
    shutil.copytree(original, folder)
    child = os.fork()
    if child == 0:
        for name in real:
            setattr(os, name, counted(name))
        left = n
        with open(copy, "rb") as source, open(copy + ".key", "rb") as key:
            copies.restore(folder, source, key, stamp="s")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(n, code, flush=True)
    if code != -signal.SIGKILL:
        break
"""


async def test_a_restore_that_is_killed_at_any_step_leaves_the_old_or_none_and_can_be_repeated(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    await filled(original, "old")
    back_up(str(original), str(copy), with_key=True)
    store = open_store(original)
    await store.rotate_secret_key()
    await asyncio.to_thread(store.close)
    await filled(original, "new")
    output = await asyncio.to_thread(
        subprocess.check_output,
        [sys.executable, "-c", KILLED, str(tmp_path), str(original), str(copy)],
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[2],
    )
    codes = [int(line.split()[1]) for line in output.splitlines()]
    assert codes[-1] == 0
    assert set(codes[:-1]) == {-signal.SIGKILL}
    seen = set()
    for n in range(len(codes)):
        folder = tmp_path / str(n)
        if (folder / DATABASE_FILE).exists():
            found = await passwords(folder)
            assert found in ({"old": "dlo", "new": "wen"}, {"old": "dlo"}), n
            seen.add(len(found))
        else:
            seen.add(0)
            put_back(folder, copy, with_key=True)
            assert await passwords(folder) == {"old": "dlo"}
            assert [name for name in os.listdir(folder) if name.endswith(".new")] == []
    assert seen == {0, 1, 2}
