"""Accounts, directories, pauses, keys and the audit, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session

from core.domain.account import (
    Account,
    AuthMethod,
    Directory,
    DotStuffing,
    FromPolicy,
    MessageFormat,
    OAuth,
    OAuthGrant,
    OAuthProvider,
    OnUnknown,
    ReplyRule,
    Security,
    Strategy,
)
from core.domain.outcome import Blame
from core.domain.reply import Phase
from core.errors import AlreadyExists, InUse, InvalidSettings, NotFound, PreconditionFailed, StateConflict
from core.store import accounts, audit, directories, keys, pauses
from core.store.accounts import AccountRecord, Password
from core.store.pauses import Pause, PausedBy, PauseOf
from core.store.store import Store
from core.store.tables import AccountRow
from tests.support.database import START, MovableClock, open_store

MAIN = Account("main", "smtp.example.com", username="shop", password="hush")
EVERYTHING = Account(
    name="all",
    host="mail.example.org",
    port=465,
    security=Security.TLS,
    auth=AuthMethod.XOAUTH2,
    username="u",
    password="p",
    from_address="shop@example.org",
    from_policy=FromPolicy.REPLY_TO,
    max_connections=2,
    messages_per_connection=3,
    recipients_per_message=4,
    connect_timeout_seconds=5.5,
    idle_timeout_seconds=6.5,
    helo_name="relay.example.org",
    tls_ca_file="/etc/ca.pem",
    allow_plaintext_login=True,
    enabled=False,
    preset="office365",
    password_from="env:OFFICE_PASSWORD",
    oauth=OAuth(
        OAuthProvider.MICROSOFT,
        OAuthGrant.REFRESH_TOKEN,
        tenant="example.org",
        client_id="c",
        token_url="https://login.example.org/token",
        scope="s",
        client_secret="cs",
        refresh_token="rt",
        service_account_key="{}",
    ),
    senders=("shop@example.org", "@example.net"),
    messages_per_second=1.5,
    messages_per_minute=2,
    messages_per_hour=3,
    messages_per_day=4,
    recipients_per_day=5,
    reply_rules=(ReplyRule(Blame.ACCOUNT, Phase.DOT, "5..", r"5\.7\.1", "quota", final=True, pause_seconds=60.0),),
)
WEB = Directory("web", "/var/spool/mpu/web")
EVERY_SETTING = Directory(
    name="all",
    path="/var/spool/mpu/all",
    accounts=("main", "all"),
    strategy=Strategy.BALANCE,
    weights=(2, 1),
    enabled=False,
    patterns=("*.eml", "*.msg"),
    format=MessageFormat.MAILDIR,
    dot_stuffing=DotStuffing.PLAIN,
    interval_seconds=None,
    schedule="0 3 * * *",
    schedule_timezone="Europe/Berlin",
    watch=False,
    quiet_seconds=3,
    retry_initial_seconds=4,
    retry_max_seconds=5,
    expire_after_seconds=6,
    on_unknown=OnUnknown.HOLD,
    unknown_max=7,
    max_message_bytes=8,
    max_recipients=9,
    oldest_alert_seconds=10,
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = open_store(tmp_path, MovableClock())
    yield made
    await asyncio.to_thread(made.close)


async def create(store: Store, *made: Account | Directory, now: float = START) -> None:
    for one in made:
        if isinstance(one, Account):
            await store.write(lambda s, one=one: accounts.create(s, store.secrets, one, now=now))  # type: ignore[misc]
        else:
            await store.write(lambda s, one=one: directories.create(s, one, now=now))  # type: ignore[misc]


async def change(store: Store, account: Account, **options: Any) -> AccountRecord:
    options = {"now": START + 60} | options
    return await store.write(lambda s: accounts.change(s, store.secrets, account, **options))


async def account_of(store: Store, name: str = "main") -> AccountRecord:
    return await store.read(lambda s: accounts.get(s, store.secrets, name))


@pytest.mark.parametrize("value", [EVERYTHING, EVERY_SETTING])
def test_the_examples_set_every_field(value: Account | Directory) -> None:
    for field in fields(value):
        assert getattr(value, field.name) != field.default, field.name


async def test_an_account_comes_back_as_it_was(store: Store) -> None:
    await create(store, EVERYTHING, MAIN)
    loaded = await store.read(lambda s: accounts.load(s, store.secrets))
    assert [record.account for record in loaded] == [EVERYTHING, MAIN]
    record = loaded[1]
    assert (record.created_at, record.updated_at, record.password_changed_at) == (START, START, START)
    assert (record.password_set, record.password_lost, record.pause) == (True, False, None)


async def test_a_change_shows_in_the_version_and_no_change_does_not(store: Store) -> None:
    await create(store, MAIN)
    before = await account_of(store)
    assert await change(store, MAIN) == before
    assert await change(store, MAIN, password="hush") == before
    after = await change(store, replace(MAIN, port=2525))
    assert after.version > before.version
    assert (after.account.port, after.account.password) == (2525, "hush")
    assert (after.updated_at, after.password_changed_at) == (START + 60, START)


@pytest.mark.parametrize(
    ("password", "left", "changed_at"),
    [(Password.KEEP, "hush", START), ("new", "new", START + 60), (None, None, None), ("", "", START + 60)],
)
async def test_a_password_is_kept_replaced_or_removed(
    store: Store, password: Any, left: str | None, changed_at: float | None
) -> None:
    await create(store, MAIN)
    await change(store, replace(MAIN, password="not looked at"), password=password)
    record = await account_of(store)
    assert (record.account.password, record.password_changed_at) == (left, changed_at)
    assert record.password_set is (left is not None)


async def test_a_stale_version_is_refused_for_changes_and_deletes(store: Store) -> None:
    await create(store, MAIN, WEB)
    first = (await account_of(store)).version
    second = (await change(store, replace(MAIN, port=26), if_match=["0", str(first)])).version
    await store.write(lambda s: directories.change(s, replace(WEB, watch=False), now=START + 60))
    for stale in ([str(first)], ["abc"], []):
        with pytest.raises(PreconditionFailed):
            await change(store, MAIN, if_match=stale)
        with pytest.raises(PreconditionFailed):
            await store.write(lambda s, stale=stale: accounts.delete(s, "main", if_match=stale))  # type: ignore[misc]
        with pytest.raises(PreconditionFailed):
            await store.write(lambda s, stale=stale: directories.change(s, WEB, now=START, if_match=stale))  # type: ignore[misc]
        with pytest.raises(PreconditionFailed):
            await store.write(lambda s, stale=stale: directories.delete(s, "web", if_match=stale))  # type: ignore[misc]
    assert (await account_of(store)).version == second
    await change(store, replace(MAIN, port=27), if_match=["*"])
    await store.write(lambda s: accounts.delete(s, "main", if_match=[str(second + 1)]))
    with pytest.raises(NotFound):
        await account_of(store)


async def test_a_version_never_comes_again_after_a_delete(store: Store) -> None:
    await create(store, MAIN)
    old = (await change(store, replace(MAIN, port=26))).version
    await store.write(lambda s: accounts.delete(s, "main"))
    await create(store, MAIN, now=START + 1)
    assert (await account_of(store)).version > old


async def test_names_are_taken_once(store: Store) -> None:
    await create(store, MAIN, WEB)
    with pytest.raises(AlreadyExists):
        await create(store, MAIN)
    with pytest.raises(AlreadyExists):
        await create(store, replace(WEB, path="/elsewhere"))


async def test_an_account_that_is_used_stays(store: Store) -> None:
    await create(store, MAIN, replace(WEB, accounts=("main",)), Directory("b", "/b", accounts=("main", "main")))
    with pytest.raises(InUse) as caught:
        await store.write(lambda s: accounts.delete(s, "main"))
    assert caught.value.used_by == ["b", "web"]
    for name in ("b", "web"):
        await store.write(lambda s, name=name: directories.delete(s, name))  # type: ignore[misc]
    await store.write(lambda s: accounts.delete(s, "main"))


async def test_a_directory_comes_back_as_it_was(store: Store) -> None:
    await create(store, MAIN, EVERYTHING, EVERY_SETTING, WEB)
    loaded = await store.read(directories.load)
    assert [record.directory for record in loaded] == [EVERY_SETTING, WEB]


async def test_a_directorys_accounts_keep_their_order(store: Store) -> None:
    await create(store, MAIN, EVERYTHING, EVERY_SETTING)
    before = await store.read(lambda s: directories.get(s, "all"))
    same = await store.write(lambda s: directories.change(s, EVERY_SETTING, now=START + 1))
    assert same == before
    turned = replace(EVERY_SETTING, accounts=("all", "main"))
    after = await store.write(lambda s: directories.change(s, turned, now=START + 1))
    assert after.version > before.version
    assert (await store.read(lambda s: directories.get(s, "all"))).directory == turned
    one = replace(EVERY_SETTING, accounts=("all",))
    await store.write(lambda s: directories.change(s, one, now=START + 1))
    assert (await store.read(directories.load))[0].directory == one


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/var/spool/mpu/web", AlreadyExists),
        ("/var/spool/mpu/web/", AlreadyExists),
        ("/var/spool/mpu/web/inner", InvalidSettings),
        ("/var/spool", InvalidSettings),
        ("/var/spool/mpu/website", None),
    ],
)
async def test_paths_do_not_overlap(store: Store, path: str, error: type[Exception] | None) -> None:
    await create(store, WEB)
    if error is None:
        await create(store, Directory("other", path))
        return
    with pytest.raises(error):
        await create(store, Directory("other", path))
    await create(store, Directory("other", "/elsewhere"))
    with pytest.raises(error):
        await store.write(lambda s: directories.change(s, Directory("other", path), now=START))


async def test_unknown_accounts_of_a_directory_are_named(store: Store) -> None:
    await create(store, MAIN)
    with pytest.raises(InvalidSettings) as caught:
        await create(store, replace(WEB, accounts=("main", "none")))
    assert [error.pointer for error in caught.value.errors] == ["/accounts/1"]
    assert await store.read(directories.load) == []


OPERATOR = Pause(PausedBy.OPERATOR, "operator", "maintenance", START)
SERVICE = Pause(PausedBy.SERVICE, "login_refused", "535", START, remedy="enter the password", trials=1)


@pytest.mark.parametrize(
    ("place", "name"), [(PauseOf.ACCOUNT, "main"), (PauseOf.DIRECTORY, "web"), (PauseOf.RELAY, "")], ids=str
)
@pytest.mark.parametrize("pause", [OPERATOR, SERVICE, replace(OPERATOR, until=START + 60)])
async def test_pauses_survive_and_are_lifted(store: Store, place: PauseOf, name: str, pause: Pause) -> None:
    await create(store, MAIN, WEB)
    get = pauses.get
    assert await store.read(lambda s: get(s, place, name)) is None
    assert await store.write(lambda s: pauses.pause(s, place, name, pause)) == pause
    assert await store.read(lambda s: get(s, place, name)) == pause
    assert await store.write(lambda s: pauses.resume(s, place, name, by=PausedBy.OPERATOR, now=START)) is None
    assert await store.read(lambda s: get(s, place, name)) is None


@pytest.mark.parametrize(
    ("present", "wanted", "left"),
    [
        (OPERATOR, SERVICE, OPERATOR),
        (SERVICE, OPERATOR, OPERATOR),
        (replace(OPERATOR, until=START - 1, since=START - 9), SERVICE, SERVICE),  # it was over
        (OPERATOR, replace(OPERATOR, since=START + 9, reason="longer"), replace(OPERATOR, reason="longer")),
        (SERVICE, replace(SERVICE, since=START + 9, trials=2), replace(SERVICE, trials=2)),
        (SERVICE, replace(SERVICE, since=START + 9, code="quota"), replace(SERVICE, since=START + 9, code="quota")),
    ],
)
async def test_which_pause_wins(store: Store, present: Pause, wanted: Pause, left: Pause) -> None:
    await create(store, MAIN)
    version = (await account_of(store)).version
    await store.write(lambda s: pauses.pause(s, PauseOf.ACCOUNT, "main", present))
    assert await store.write(lambda s: pauses.pause(s, PauseOf.ACCOUNT, "main", wanted)) == left
    record = await account_of(store)
    assert (record.pause, record.version) == (left, version)


async def test_the_service_does_not_lift_an_operators_pause_before_its_end(store: Store) -> None:
    wanted = replace(OPERATOR, until=START + 60)
    await store.write(lambda s: pauses.pause(s, PauseOf.RELAY, "", wanted))
    resume = pauses.resume
    by = PausedBy.SERVICE
    assert await store.write(lambda s: resume(s, PauseOf.RELAY, "", by=by, now=START + 59)) == wanted
    assert await store.write(lambda s: resume(s, PauseOf.RELAY, "", by=by, now=START + 60)) is None


async def test_what_is_not_there_cannot_be_paused(store: Store) -> None:
    for place in (PauseOf.ACCOUNT, PauseOf.DIRECTORY):
        with pytest.raises(NotFound):
            await store.write(lambda s, place=place: pauses.pause(s, place, "none", OPERATOR))  # type: ignore[misc]


async def test_a_key_is_known_by_its_text_alone(store: Store, tmp_path: Path) -> None:
    record, secret = await store.write(
        lambda s: keys.create(
            s, name="ops", scopes=["read", "submit"], directories=["web"], expires_at=START + 60, now=START
        )
    )
    assert len(secret) >= 43 + len(keys.PREFIX)
    assert secret.startswith(record.prefix)
    check = keys.authenticate
    assert await store.read(lambda s: check(s, secret, now=START + 59)) == record
    assert await store.read(lambda s: check(s, secret, now=START + 60)) is None
    for wrong in ("", secret[:-1], secret + "x", record.prefix, "\udcff"):
        assert await store.read(lambda s, wrong=wrong: check(s, wrong, now=START)) is None  # type: ignore[misc]
    await store.write(lambda s: keys.used(s, record.id, at=START + 5))
    await store.write(lambda s: keys.used(s, record.id, at=START + 3))
    await store.write(lambda s: keys.used(s, 999, at=START + 3))
    assert await store.read(keys.load) == [replace(record, last_used_at=START + 5)]
    assert not any(secret.encode() in file.read_bytes() for file in tmp_path.iterdir())


async def test_the_last_key_that_may_administer_stays(store: Store) -> None:
    def made(session: Session) -> list[int]:
        wanted = [("a", ["admin"], None), ("b", ["read"], None), ("c", ["admin"], START + 1)]
        return [keys.create(session, name=n, scopes=s, expires_at=e, now=START)[0].id for n, s, e in wanted]

    first, reader, expired = await store.write(made)
    with pytest.raises(StateConflict):
        await store.write(lambda s: keys.delete(s, first, now=START + 2))
    for key in (reader, expired):
        await store.write(lambda s, key=key: keys.delete(s, key, now=START + 2))  # type: ignore[misc]
    await store.write(lambda s: keys.create(s, name="d", scopes=["admin"], now=START))
    await store.write(lambda s: keys.delete(s, first, now=START + 2))
    with pytest.raises(NotFound):
        await store.write(lambda s: keys.delete(s, first, now=START + 2))


async def test_lists_of_keys_and_of_the_audit_come_in_pages(store: Store) -> None:
    def fill(session: Session) -> None:
        for n in range(5):
            keys.create(session, name=f"k{n}", scopes=["read"], now=START)
            audit.record(session, key="ops", action=f"a{n}", target="t", now=START + n, changes={"port": [1, n]})

    await store.write(fill)
    names: list[str] = []
    cursor: str | None = None
    while True:
        shown, cursor = await store.read(lambda s, c=cursor: keys.page(s, limit=2, cursor=c))  # type: ignore[misc]
        names += [record.name for record in shown]
        if cursor is None:
            break
    assert names == ["k0", "k1", "k2", "k3", "k4"]
    acts, cursor = await store.read(lambda s: audit.page(s, limit=3))
    assert (acts[0].action, acts[0].at, acts[0].changes) == ("a4", START + 4, {"port": [1, 4]})
    rest, end = await store.read(lambda s: audit.page(s, limit=3, cursor=cursor))
    assert [record.action for record in (*acts, *rest)] == ["a4", "a3", "a2", "a1", "a0"]
    assert end is None
    with pytest.raises(InvalidSettings):
        await store.read(lambda s: audit.page(s, cursor="x"))


async def test_a_reader_that_writes_is_refused(store: Store) -> None:
    def writes(session: Session) -> None:
        row = session.get(AccountRow, "main")
        assert row is not None
        row.host = "evil.example"
        session.add(row)
        session.flush()

    await create(store, MAIN)
    with pytest.raises(Exception, match="readonly"):
        await store.read(writes)
    assert (await account_of(store)).account.host == "smtp.example.com"
