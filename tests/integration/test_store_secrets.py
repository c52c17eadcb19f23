"""Passwords in the database: unreadable there, moved to a new key however often that is killed, and told when lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from core.domain.account import Account, OAuth, OAuthGrant, OAuthProvider
from core.domain.oauth import without_secrets
from core.errors import SecretKeyLost, StateConflict
from core.store import accounts, secrets
from core.store.store import DATABASE_FILE, Store
from tests.support.database import START, open_store

PLANTED = "planted-Passw0rd-7f3a"


async def with_accounts(store: Store, *names: str) -> None:
    for name in names:
        account = Account(name, "smtp.example.com", username="u", password=f"{PLANTED}-{name}")
        await store.write(lambda s, a=account: accounts.create(s, store.secrets, a, now=START))  # type: ignore[misc]


OAUTH = OAuth(
    OAuthProvider.OTHER,
    OAuthGrant.REFRESH_TOKEN,
    client_id="c",
    token_url="https://id.example/token",
    client_secret=f"{PLANTED}-secret",
    refresh_token=f"{PLANTED}-refresh",
)
TOKENS = Account("t", "smtp.example.com", username="u", oauth=OAUTH)


async def record_of(store: Store, name: str = "t") -> accounts.AccountRecord:
    return await store.read(lambda s: accounts.get(s, store.secrets, name))


async def passwords(store: Store) -> dict[str, str | None]:
    loaded = await store.read(lambda s: accounts.load(s, store.secrets))
    return {record.account.name: record.account.password for record in loaded}


async def test_a_password_is_in_no_file_beside_the_database(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    try:
        await with_accounts(store, "a")
        files = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
        assert f"{DATABASE_FILE}-wal" in files
        await store.rotate_secret_key()
    finally:
        await asyncio.to_thread(store.close)
    for name in os.listdir(tmp_path):
        files[f"{name} at the end"] = (tmp_path / name).read_bytes()
    sealed = [name for name, content in files.items() if b"gAAAAA" in content]
    assert f"{DATABASE_FILE} at the end" in sealed  # it would have been found there
    assert [name for name, content in files.items() if PLANTED.encode() in content] == []
    assert PLANTED not in repr(Account("a", "h", password=PLANTED))


async def test_sealed_passwords_cannot_be_swapped(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    await with_accounts(store, "a", "b")
    await asyncio.to_thread(store.close)
    with sqlite3.connect(tmp_path / DATABASE_FILE) as connection:
        connection.execute("UPDATE account SET password = (SELECT password FROM account WHERE name='b') WHERE name='a'")
    connection.close()
    store = open_store(tmp_path)
    try:
        assert await passwords(store) == {"a": None, "b": f"{PLANTED}-b"}
        assert store.secret_error is not None
        assert "damaged" in store.secret_error.detail
    finally:
        await asyncio.to_thread(store.close)


async def test_rotation_forgets_the_old_key(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    await with_accounts(store, "a", "b")
    old = (tmp_path / secrets.KEY_FILE).read_text()
    steps: list[str] = []
    await store.rotate_secret_key(step=steps.append)
    assert steps == ["added", "resealed", "dropped"]
    await asyncio.to_thread(store.close)
    new = (tmp_path / secrets.KEY_FILE).read_text()
    assert old != new
    assert len(new.splitlines()) == 2  # a comment and one key
    store = open_store(tmp_path)
    assert await passwords(store) == {"a": f"{PLANTED}-a", "b": f"{PLANTED}-b"}
    await asyncio.to_thread(store.close)
    (tmp_path / secrets.KEY_FILE).write_text(old)
    store = open_store(tmp_path)
    assert await passwords(store) == {"a": None, "b": None}
    await asyncio.to_thread(store.close)


KILLED = """
import asyncio, os, shutil, signal, sys
from core.store.store import Store
from tests.support.database import MovableClock

real = {name: getattr(os, name) for name in ("open", "fsync", "rename", "unlink")}
left = -1

def boundary():
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1

def counted(name):
    def call(*arguments, **options):
        boundary()
        return real[name](*arguments, **options)
    return call

async def rotate(folder, boundaries):
    global left
    store = Store.open(folder, clock=MovableClock(), create=False)
    for name in real:
        setattr(os, name, counted(name))
    left = boundaries
    await store.rotate_secret_key(step=lambda name: boundary())
    os._exit(0)

for n in range(100):
    folder = f"{sys.argv[1]}/{n}"
    shutil.copytree(sys.argv[2], folder)
    child = os.fork()
    if child == 0:
        asyncio.run(rotate(folder, n))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(n, code, flush=True)
    if code != -signal.SIGKILL:
        break
"""


async def test_a_rotation_that_is_killed_at_any_step_loses_no_password(tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.mkdir()
    store = open_store(original)
    await with_accounts(store, "a", "b")
    await asyncio.to_thread(store.close)
    output = await asyncio.to_thread(
        subprocess.check_output,
        [sys.executable, "-c", KILLED, str(tmp_path), str(original)],
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[2],
    )
    codes = [int(line.split()[1]) for line in output.splitlines()]
    assert codes[-1] == 0
    assert set(codes[:-1]) == {-signal.SIGKILL}
    unfinished = 0
    for n in range(len(codes)):
        keys = (tmp_path / str(n) / secrets.KEY_FILE).read_text().splitlines()[1:]
        assert 1 <= len(keys) <= 2
        unfinished += len(keys) == 2
        store = open_store(tmp_path / str(n))
        assert store.secret_error is None
        assert await passwords(store) == {"a": f"{PLANTED}-a", "b": f"{PLANTED}-b"}
        assert not store.secrets.old_keys  # the start has finished it
        await asyncio.to_thread(store.close)
    assert unfinished >= 4
    assert len(codes) >= 12


async def test_a_lost_key_names_the_passwords_to_enter_again_and_is_over_when_they_are(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    await with_accounts(store, "a", "b")
    await asyncio.to_thread(store.close)
    (tmp_path / secrets.KEY_FILE).unlink()
    store = open_store(tmp_path)
    try:
        assert not store.healthy
        problem = store.problem
        assert isinstance(problem, SecretKeyLost)
        assert "a, b" in problem.detail
        assert secrets.KEY_FILE in problem.remedy
        with pytest.raises(SecretKeyLost):
            await store.rotate_secret_key()
        record = await store.read(lambda s: accounts.get(s, store.secrets, "a"))
        assert (record.password_set, record.password_lost, record.account.password) == (True, True, None)

        for name, password in (("a", "new"), ("b", None)):
            account = Account(name, "smtp.example.com", username="u")
            await store.write(
                lambda s, a=account, p=password: accounts.change(s, store.secrets, a, now=START, password=p)  # type: ignore[misc]
            )
            await store.check_secrets()
        assert store.problem is None
        assert await passwords(store) == {"a": "new", "b": None}
    finally:
        await asyncio.to_thread(store.close)
    store = open_store(tmp_path)
    assert store.healthy
    await asyncio.to_thread(store.close)


async def test_the_key_file_put_back_ends_the_trouble(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    await with_accounts(store, "a")
    await asyncio.to_thread(store.close)
    (tmp_path / secrets.KEY_FILE).rename(tmp_path / "kept")
    await asyncio.to_thread(open_store(tmp_path).close)
    (tmp_path / "kept").rename(tmp_path / secrets.KEY_FILE)
    store = open_store(tmp_path)
    assert store.healthy
    assert await passwords(store) == {"a": f"{PLANTED}-a"}
    await asyncio.to_thread(store.close)


async def test_a_lost_key_without_passwords_is_no_trouble(tmp_path: Path) -> None:
    await asyncio.to_thread(open_store(tmp_path).close)
    (tmp_path / secrets.KEY_FILE).unlink()
    store = open_store(tmp_path)
    assert store.healthy
    await asyncio.to_thread(store.close)


async def test_an_environment_key_is_rotated_by_two_starts(tmp_path: Path) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    store = open_store(tmp_path, secret_key=old)
    await with_accounts(store, "a")
    with pytest.raises(StateConflict):
        await store.rotate_secret_key()
    await asyncio.to_thread(store.close)
    await asyncio.to_thread(open_store(tmp_path, secret_key=f"{new},{old}").close)
    store = open_store(tmp_path, secret_key=new)
    assert store.healthy
    assert await passwords(store) == {"a": f"{PLANTED}-a"}
    await asyncio.to_thread(store.close)
    assert not (tmp_path / secrets.KEY_FILE).exists()


async def test_secrets_of_oauth_are_sealed_turned_to_a_new_key_and_cannot_be_swapped(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    await with_accounts(store, "a")
    await store.write(lambda s: accounts.create(s, store.secrets, TOKENS, now=START))
    old = (tmp_path / secrets.KEY_FILE).read_text()
    await store.rotate_secret_key()
    await asyncio.to_thread(store.close)
    assert not any(PLANTED.encode() in (tmp_path / name).read_bytes() for name in os.listdir(tmp_path))
    store = open_store(tmp_path)
    assert (await record_of(store)).account == TOKENS
    await asyncio.to_thread(store.close)
    with sqlite3.connect(tmp_path / DATABASE_FILE) as connection:
        connection.execute(
            "UPDATE account SET oauth_secrets = (SELECT password FROM account WHERE name='a') WHERE name='t'"
        )
    connection.close()
    store = open_store(tmp_path)
    try:
        record = await record_of(store)
        assert (record.oauth_lost, record.oauth_set) == (True, ("client_secret", "refresh_token"))
        assert store.secret_error is not None
        assert store.secret_error.accounts == ("t",)
    finally:
        await asyncio.to_thread(store.close)
    assert (tmp_path / secrets.KEY_FILE).read_text() != old


async def test_lost_secrets_of_oauth_are_over_when_all_are_given_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    await store.write(lambda s: accounts.create(s, store.secrets, TOKENS, now=START))
    await asyncio.to_thread(store.close)
    (tmp_path / secrets.KEY_FILE).unlink()
    store = open_store(tmp_path)
    try:
        problem = store.problem
        assert isinstance(problem, SecretKeyLost)
        assert problem.accounts == ("t",)
        plain = replace(TOKENS, port=2525, oauth=without_secrets(OAUTH))
        record = await store.write(lambda s: accounts.change(s, store.secrets, plain, now=START))
        assert (record.account.port, record.oauth_lost, record.oauth_set) == (
            2525,
            True,
            ("client_secret", "refresh_token"),
        )
        again = {"refresh_token": "new", "client_secret": None}
        record = await store.write(lambda s: accounts.change(s, store.secrets, plain, now=START, oauth_secrets=again))
        assert (record.oauth_lost, record.oauth_set) == (False, ("refresh_token",))
        assert record.account.oauth == replace(OAUTH, client_secret=None, refresh_token="new")
        await store.check_secrets()
        assert store.problem is None
    finally:
        await asyncio.to_thread(store.close)


async def test_an_account_without_a_refresh_token_gets_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    try:
        bare = replace(OAUTH, refresh_token=None)
        await store.write(lambda s: accounts.create(s, store.secrets, replace(TOKENS, oauth=bare), now=START))
        assert (
            await store.write(lambda s: accounts.refresh_token_changed(s, store.secrets, bare, "r1", now=START)) == []
        )
        assert (await record_of(store)).account.oauth == bare
    finally:
        await asyncio.to_thread(store.close)


async def test_a_refresh_token_that_changed_meanwhile_is_not_overwritten_by_a_save(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    try:
        await store.write(lambda s: accounts.create(s, store.secrets, TOKENS, now=START))
        changed = accounts.refresh_token_changed
        elsewhere = replace(OAUTH, client_id="another")
        unused = replace(OAUTH, grant=OAuthGrant.CLIENT_CREDENTIALS)
        assert await store.write(lambda s: changed(s, store.secrets, elsewhere, "r1", now=START)) == []
        assert await store.write(lambda s: changed(s, store.secrets, unused, "r1", now=START)) == []
        assert await store.write(lambda s: changed(s, store.secrets, OAUTH, "r1", now=START)) == ["t"]
        assert await store.write(lambda s: changed(s, store.secrets, OAUTH, "late", now=START)) == []
        before = await record_of(store)
        assert (before.version, before.oauth_first) == (
            (await store.write(lambda s: accounts.change(s, store.secrets, TOKENS, now=START + 1))).version,
            OAUTH.refresh_token,
        )
        record = await store.write(
            lambda s: accounts.change(
                s, store.secrets, TOKENS, now=START + 2, oauth_secrets={"client_secret": "another"}
            )
        )
        assert record.account.oauth == replace(OAUTH, client_secret="another", refresh_token="r1")
        assert record.oauth_first == OAUTH.refresh_token
        record = await store.write(
            lambda s: accounts.change(s, store.secrets, TOKENS, now=START + 3, oauth_secrets={"refresh_token": "mine"})
        )
        assert record.oauth_first is None
        assert PLANTED not in repr(record)
        gone = await store.write(
            lambda s: accounts.change(s, store.secrets, replace(TOKENS, oauth=None), now=START + 4)
        )
        assert (gone.account.oauth, gone.oauth_set) == (None, ())
    finally:
        await asyncio.to_thread(store.close)
