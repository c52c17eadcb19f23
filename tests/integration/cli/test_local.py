"""Commands on this machine's database and files: setup, explain, key, migrate, rotate-secrets, openapi."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlmodel import Session

from api.cli.account import account_of
from api.cli.keys import in_database
from api.cli.undo import Undo, make_folder
from api.openapi import document_text
from core.domain.account import AuthMethod, Security
from core.errors import StorageFull
from core.runtime.clock import SystemClock
from core.runtime.instance import DataDirLock
from core.runtime.sandbox import Sandbox
from core.store import accounts, audit, directories
from core.store.store import Store
from tests.support.command import mpu, mpu_apart

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_setup_checks_before_it_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    account = ("--host", "127.0.0.1", "--port", "9", "--security", "none")
    assert mpu("setup", "-d", tmp_path / "in", *account) == 3
    assert "nothing was saved\n" in capsys.readouterr().err
    assert not (tmp_path / "in").exists()
    assert saved(tmp_path) == ([], [])
    assert mpu("setup", "-d", tmp_path / "in", *account, "--no-check") == 0
    assert (tmp_path / "in").stat().st_mode & 0o7777 == 0o2770
    assert (tmp_path / "data" / "api-key").stat().st_mode & 0o777 == 0o600


def test_setup_again_changes_what_is_there(
    tmp_path: Path, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    account = ("--host", "127.0.0.1", "--port", str(sandbox.port), "--security", "none", "--account", "box")
    assert mpu("setup", "-d", tmp_path / "in", "-d", tmp_path / "two", *account) == 0
    assert mpu("setup", "-d", tmp_path / "in", "--interval", "7", *account) == 0
    assert "directory in: " in capsys.readouterr().out


LOCAL = ("--host", "127.0.0.1", "--security", "none", "--no-check")


def saved(tmp_path: Path) -> tuple[list[tuple[str, str]], list[tuple[str, tuple[str, ...], float | None]]]:
    """Accounts (name, host) and directories (name, accounts, interval) in the database."""
    store = Store.open(str(tmp_path / "data"), clock=SystemClock(), create=False)
    try:
        found = store.read_now(lambda session: accounts.load(session, store.secrets))
        places = store.read_now(directories.load)
    finally:
        store.close()
    return (
        [(record.account.name, record.account.host) for record in found],
        [(r.directory.name, tuple(r.directory.accounts), r.directory.interval_seconds) for r in places],
    )


def test_setup_makes_nothing_where_it_may_not_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    monkeypatch.setenv("MPU_PICKUP_ROOTS", str(tmp_path / "root"))
    assert mpu("setup", "-d", tmp_path / "root" / "in", "-d", tmp_path / "out" / "side", *LOCAL) == 1
    shown = capsys.readouterr()
    assert shown.err.count("lies under none of the pickup roots") == 1
    assert "nothing was saved\n" in shown.err
    assert shown.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "root"]
    assert list((tmp_path / "root").iterdir()) == []
    assert saved(tmp_path) == ([], [])


def test_setup_takes_everything_back_where_a_directory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mpu("setup", "-d", tmp_path / "in", "--account", "first", "--interval", "7", *LOCAL) == 0
    before = saved(tmp_path)
    new = ("-d", tmp_path / "two", "-d", tmp_path / "in", "-d", tmp_path / "a" / "b" / "in")
    capsys.readouterr()
    assert mpu("setup", *new, "--account", "other", "--interval", "9", *LOCAL) == 1  # the name "in" is taken
    shown = capsys.readouterr()
    assert "nothing was saved\n" in shown.err
    assert shown.err.count("there is a directory 'in' already") == 1
    assert shown.out == ""
    assert saved(tmp_path) == before == ([("first", "127.0.0.1")], [("in", ("first",), 7.0)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "in"]


def test_setup_says_what_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mpu("setup", "-d", tmp_path / "in", "--account", "a", *LOCAL) == 0
    assert mpu("setup", "-d", tmp_path / "b" / "in", "--account", "a", *LOCAL[2:], "--host", "127.0.0.2") == 1
    assert "nothing was saved but what stays: account a as given\n" in capsys.readouterr().err
    assert saved(tmp_path)[0] == [("a", "127.0.0.2")]
    assert not (tmp_path / "b").exists()


async def test_a_new_folder_with_mail_in_it_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    undo = Undo()
    make_folder(str(tmp_path / "new" / "in"), undo)
    (tmp_path / "new" / "in" / "x.eml").write_text("mail")
    await undo.run()
    assert f"what stays: the new folder {tmp_path}/new; the new folder {tmp_path}/new/in" in capsys.readouterr().err
    assert (tmp_path / "new" / "in" / "x.eml").exists()


def test_setup_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    account = ("--host", "127.0.0.1", "--security", "none", "--no-check")
    assert mpu("setup", "-d", "/usr", *account) == 1
    assert "MPU_PICKUP_ROOTS" in capsys.readouterr().err
    assert mpu("setup", "-d", tmp_path / "in") == 2
    assert mpu("setup", "-d", tmp_path / "in", "--preset", "nosuch") == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("--preset", "gmail"), ("smtp.gmail.com", 587, Security.STARTTLS, 2000, 100)),
        (("--preset", "gmail", "--port", "465"), ("smtp.gmail.com", 465, Security.TLS, 2000, 100)),
        (("--preset", "gmail", "--security", "tls"), ("smtp.gmail.com", 465, Security.TLS, 2000, 100)),
        (
            ("--preset", "ses", "--host", "email-smtp.eu-central-1.amazonaws.com", "--port", "2587"),
            ("email-smtp.eu-central-1.amazonaws.com", 2587, Security.STARTTLS, None, 50),
        ),
        (("--host", "smtp.example.org"), ("smtp.example.org", 587, Security.STARTTLS, None, 100)),
    ],
)
def test_setup_takes_what_the_preset_says(
    tmp_path: Path, given: tuple[str, ...], expected: tuple[str, int, Security, int | None, int]
) -> None:
    assert mpu("setup", "-d", tmp_path / "in", *given, "--account", "out", "--no-check") == 0
    store = Store.open(str(tmp_path / "data"), clock=SystemClock(), create=False)
    try:
        (record,) = store.read_now(lambda session: accounts.load(session, store.secrets))
    finally:
        store.close()
    found = record.account
    assert (found.host, found.port, found.security, found.messages_per_day, found.recipients_per_message) == expected
    assert found.preset == (given[1] if given[0] == "--preset" else "smtp")


def test_setup_asks_for_the_host_that_a_preset_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mpu("setup", "-d", tmp_path / "in", "--preset", "ses") == 2
    assert "email-smtp.REGION.amazonaws.com" in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize(
    ("port", "security", "expected"),
    [
        (587, None, Security.STARTTLS),
        (465, None, Security.TLS),
        (2465, None, Security.TLS),
        (465, Security.NONE, Security.NONE),
    ],
)
def test_security_follows_the_port(port: int, security: Security | None, expected: Security) -> None:
    account = account_of("h", port, security, None, None)
    assert (account.security, account.auth) == (expected, AuthMethod.NONE)


def test_password_file(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("p w\n")
    account = account_of("h", 587, None, "u", tmp_path / "pw")
    assert (account.password, account.auth) == ("p w", AuthMethod.AUTO)
    assert "p w" not in repr(account)


def test_explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mpu("explain", EXAMPLES / "dotnet.eml") == 0
    shown = capsys.readouterr().out
    for words in ("archive@example.com", "X-Sender, X-Receiver", "stuffed"):
        assert words in shown
    bad = tmp_path / "bad.eml"
    bad.write_bytes(b"From: a@example.com\r\nSubject: \x1b[2J\r\n\r\n")
    assert mpu("explain", bad, "--json") == 1
    assert json.loads(capsys.readouterr().out)["outcome"] == "badmail"
    assert mpu("explain", tmp_path / "missing.eml") == 2
    assert mpu("explain", tmp_path) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "data", bad] or {p.name for p in tmp_path.iterdir()} == {
        "data",
        "bad.eml",
    }


def test_explain_follows_no_link_and_takes_no_hidden_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mail = (EXAMPLES / "plain.eml").read_bytes()
    (tmp_path / "target").write_bytes(mail)
    (tmp_path / "link.eml").symlink_to(tmp_path / "target")
    (tmp_path / "dangling.eml").symlink_to("/nonexistent/secret")
    (tmp_path / ".foo.eml").write_bytes(mail)
    (tmp_path / ".eml").write_bytes(mail)  # a writer with an empty name: taken
    for name, why in (("link.eml", "symbolic link"), ("dangling.eml", "symbolic link"), (".foo.eml", "hidden")):
        assert mpu("explain", tmp_path / name) == 1
        shown = capsys.readouterr().out
        assert "It would be left alone" in shown
        assert why in shown
        assert "invoice" not in shown
    assert mpu("explain", tmp_path / ".eml") == 0
    (tmp_path / "folder").symlink_to(EXAMPLES)
    assert mpu("explain", tmp_path / "folder" / "plain.eml") == 0
    capsys.readouterr()
    assert mpu("explain", tmp_path / ".foo.eml", "--json") == 1
    assert json.loads(capsys.readouterr().out)["outcome"] == "left"


def test_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mpu("key", "list") == 1  # no database yet
    assert mpu("migrate") == 0
    assert mpu("key", "create", "ops", "-o", tmp_path / "k") == 0
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    capsys.readouterr()
    web = ("key", "create", "web", "--scope", "submit", "--directory", "inbox", "--json")
    assert mpu(*web) == 1
    assert "there is no directory 'inbox'" in capsys.readouterr().err
    assert mpu("setup", "-d", tmp_path / "inbox", *LOCAL) == 0
    capsys.readouterr()
    assert mpu(*web) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["scopes"], made["directories"]) == (["submit"], ["inbox"])
    assert mpu("key", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [key["name"] for key in listed["items"]] == ["ops", "web"]
    assert made["key"] not in str(listed)
    assert mpu("key", "revoke", made["id"]) == 0
    assert mpu("key", "revoke", "1") == 1
    assert "last key that may administer" in capsys.readouterr().err
    assert mpu("key", "list") == 0
    assert "ops" in capsys.readouterr().out


def test_keys_in_the_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An id is used once, and what it was is told where it came and where it went."""
    assert mpu("migrate") == 0
    assert mpu("key", "create", "ops") == 0
    found = []
    for name in ("one", "two"):
        capsys.readouterr()
        assert mpu("key", "create", name, "--scope", "read", "--expires", "2099-01-31", "--json") == 0
        made = json.loads(capsys.readouterr().out)
        assert mpu("key", "revoke", made["id"]) == 0
        found.append((str(made["id"]), name, made["key"][:12]))
    assert found[0][0] != found[1][0]
    rows = in_database(lambda session: audit.page(session)[0], tmp_path / "data", None)
    for target, name, prefix in found:
        deleted, created = (row for row in rows if row.target == target)
        assert (deleted.action, deleted.changes) == ("key.delete", {"name": [name, None], "prefix": [prefix, None]})
        assert created.action == "key.create"
        assert created.changes["name"] == [None, name]
        assert created.changes["prefix"] == [None, prefix]
        assert created.changes["expires_at"][1].startswith("2099-01-3")


def test_revoke_says_when_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert mpu("key", "--help") == 0
    said = capsys.readouterr().out
    assert "within a" in said
    assert "at once" not in said


@pytest.mark.parametrize(
    "wrong",
    [
        ("x", "--expires", "2001-01-01"),
        ("x", "--directory", "inbox"),
        ("x", "--scope", "root"),
        ("x", "--expires", "soon"),
        ("x", "--scope", "submit", "--directory", "No Such"),
        ("a\nb",),
        ("a\x1b[2J",),
        ("",),
        ("x" * 101,),
    ],
)
def test_key_usage(wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert mpu("migrate") == 0
    assert mpu("key", "create", *wrong) == 2
    capsys.readouterr()
    assert mpu("key", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"items": []}


def test_a_key_file_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mpu("migrate") == 0
    (tmp_path / "k").write_text("another key\n")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path in (tmp_path / "k", tmp_path / "link", tmp_path / "no" / "k"):
        assert mpu("key", "create", "x", "-o", path) == 1
    shown = capsys.readouterr().err
    assert shown.count("is there already") == 2
    assert shown.count("can't be written") == 1
    assert (tmp_path / "k").read_text() == "another key\n"
    assert not (tmp_path / "target").exists()
    assert mpu("key", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"items": []}  # nor is a key left that nobody has


def test_no_file_is_left_of_a_key_that_was_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_commit(run: Callable[[Session], object], *_: object) -> object:
        def full(session: Session) -> object:
            run(session)
            assert (tmp_path / "k").exists()
            raise StorageFull("no space left")

        return in_database(full, None, None)

    assert mpu("migrate") == 0
    monkeypatch.setattr("api.cli.keys.in_database", without_commit)
    assert mpu("key", "create", "x", "-o", tmp_path / "k") == 1
    assert not (tmp_path / "k").exists()


def test_rotation_needs_the_data_directory_for_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mpu("migrate") == 0
    assert mpu("rotate-secrets") == 0
    before = (tmp_path / "data" / "secret.key").read_text()
    with DataDirLock(tmp_path / "data"):
        assert mpu("rotate-secrets") == 1
    assert "Stop the service first" in capsys.readouterr().err
    assert (tmp_path / "data" / "secret.key").read_text() == before
    assert mpu("rotate-secrets") == 0
    assert (tmp_path / "data" / "secret.key").read_text() != before


def test_secret_key_is_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert mpu("secret-key") == 0
    monkeypatch.setenv("MPU_SECRET_KEY", capsys.readouterr().out.strip())
    assert mpu("migrate") == 0
    assert mpu("key", "create", "x") == 0


def test_a_lost_database_is_not_replaced_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mpu("migrate") == 0
    assert mpu("rotate-secrets") == 0
    (tmp_path / "data" / "mpu.sqlite3").unlink()
    assert mpu("migrate") == 1
    assert "--new-database" in capsys.readouterr().err


def test_nor_where_both_keys_come_from_outside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mpu("secret-key") == 0
    monkeypatch.setenv("MPU_SECRET_KEY", capsys.readouterr().out.strip())
    monkeypatch.setenv("MPU_API_KEY", "k" * 32)
    assert mpu("setup", "-d", tmp_path / "in", "--host", "127.0.0.1", "--security", "none", "--no-check") == 0
    (tmp_path / "data" / "mpu.sqlite3").unlink()
    assert mpu("migrate") == 1
    assert "--new-database" in capsys.readouterr().err


def test_migrations_match_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert mpu("migrate", "--check") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_goes_on_as_the_owner_of_the_data_directory() -> None:
    """What root leaves there would lock the service out."""
    with tempfile.TemporaryDirectory(prefix="mpu-owner-") as folder:  # pytest's own folders are closed to others
        data = Path(folder) / "data"
        data.mkdir()
        assert mpu("migrate", "--data-dir", data) == 0
        (data / "mpu.lock").unlink()
        for path in (Path(folder), data, *data.iterdir()):
            os.chown(path, 12345, 12345)
        other = Path(folder) / "other"
        other.mkdir()
        commands = [
            ("migrate", "--data-dir", other),
            *(("key", "create", "x", "-o", folder / "key", "--data-dir", folder) for folder in (other, data)),
        ]
        assert mpu_apart(*commands) == 0
        assert {path.name: path.stat().st_uid for path in data.iterdir()} == {
            "mpu.sqlite3": 12345,
            "database-made": 12345,
            "secret.key": 12345,
            "mpu.lock": 12345,
            "key": 12345,
        }


def test_openapi(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = document_text()
    monkeypatch.setattr("api.openapi.document_text", lambda: text)  # writing it takes seconds
    assert mpu("openapi", "--check") == 1  # not here
    assert mpu("openapi", "-o", tmp_path / "nowhere" / "x") == 1
    assert "can't be written: No such file or directory" in capsys.readouterr().err
    assert mpu("openapi", "-o", "openapi.yaml") == 0
    assert mpu("openapi", "--check") == 0
    (tmp_path / "openapi.yaml").write_text("openapi: 3.1.0\n")
    capsys.readouterr()
    assert mpu("openapi", "--check") == 1
    assert "make openapi" in capsys.readouterr().err
    assert mpu("openapi") == 0
    assert capsys.readouterr().out.startswith("openapi: 3.")


def test_version_and_wrong_settings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert mpu("--version") == 0
    assert capsys.readouterr().out.startswith("mpu ")
    monkeypatch.setenv("MPU_PORT", "eighty")
    assert mpu("migrate") == 2
    assert "MPU_PORT: " in capsys.readouterr().err
    assert mpu("nonsense") == 2
