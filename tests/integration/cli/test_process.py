"""`mpu process`: with a real directory and a real SMTP server."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path

import pytest

from core.domain.limits import FewerConnections
from core.runtime.clock import SystemClock
from core.runtime.sandbox import Sandbox
from core.store import slowdowns
from core.store.slowdowns import Slowed
from core.store.store import Store
from tests.support.command import mpu
from tests.support.smtp_server import Script, ThreadedSmtpServer

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def pickup(tmp_path: Path) -> Path:
    path = tmp_path / "pickup"
    path.mkdir()
    return path


def put(pickup: Path, *names: str) -> None:
    for name in names:
        shutil.copy(EXAMPLES / name, pickup)


def server(sandbox: Sandbox) -> tuple[str, ...]:
    return ("--host", "127.0.0.1", "--port", str(sandbox.port), "--security", "none")


def test_without_send_nothing_is_touched(pickup: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(pickup, "dotnet.eml", "plain.eml")
    (pickup / "bad.eml").write_bytes(b"From: a@example.com\r\nSubject: to nobody\r\n\r\n")
    (pickup / "not-a-mail.txt").write_text("x")
    (pickup / "link.eml").symlink_to("/etc/passwd")
    before = sorted(pickup.iterdir())
    assert mpu("process", pickup) == 0
    shown = capsys.readouterr().out
    assert "jo@example.org, sales@example.com, archive@example.com" in shown
    assert "would go to badmail" in shown
    assert "2 of 3 would be sent" in shown
    assert sorted(pickup.iterdir()) == before


@pytest.mark.parametrize("where", ["badmail", ".mpu"])
def test_our_own_folders_are_not_worked_off(
    pickup: Path, sandbox: Sandbox, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (pickup / ".mpu").mkdir()
    (pickup / where).mkdir(exist_ok=True)
    put(pickup / where, "plain.eml")
    assert mpu("process", pickup / where, "--send", *server(sandbox)) == 2
    assert "mpu retry" in capsys.readouterr().err
    assert not sandbox.mails()
    assert [p.name for p in (pickup / where).iterdir()] == ["plain.eml"]


def test_a_pattern_that_matches_nothing_is_refused(pickup: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(pickup, "plain.eml")
    assert mpu("process", pickup, "--pattern", "*.lck") == 2
    assert ".lck" in capsys.readouterr().err


def test_send(pickup: Path, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    put(pickup, "dotnet.eml", "plain.eml", "attachment.eml", "utf8.eml")
    assert mpu("process", pickup, "--send", *server(sandbox)) == 0
    assert "4 sent" in capsys.readouterr().out
    assert [p.name for p in pickup.iterdir()] == [".mpu"]
    received = {mail.mail.subject: mail for mail in sandbox.mails()}
    dotnet = received["Bestätigung Ihrer Bestellung"]
    assert dotnet.mail.recipients == ("jo@example.org", "sales@example.com", "archive@example.com")
    assert b"archive@" not in dotnet.data
    assert b"\r\n.NET Framework doubles" in dotnet.data
    assert b"archive@" not in received["Your photo is ready"].data
    assert mpu("process", pickup, "--send", *server(sandbox)) == 0
    assert len(sandbox.mails()) == 4


def test_what_is_deferred_is_told_and_waits(pickup: Path, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    put(pickup, "refused.eml")
    assert mpu("process", pickup, "--send", "--json", *server(sandbox)) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["sent"], told["deferred"]) == (0, 1)
    assert told["recipients"] == {"sent": 1, "deferred": 1, "failed": 1, "unknown": 0}
    codes = {r["recipient"].partition("@")[0]: r["code"] for r in told["messages"][0]["recipients"]}
    assert codes == {"jo": 250, "reject": 550, "defer": 451}
    assert mpu("process", pickup) == 0
    assert "deferred until" in capsys.readouterr().out
    assert mpu("process", pickup, "--send", *server(sandbox)) == 0  # not due: nothing to do
    shown = capsys.readouterr().out
    assert "0 sent\n1 deferred waits, until 20" in shown
    assert "--include-deferred" in shown
    assert mpu("process", pickup, "--send", "--json", *server(sandbox)) == 0
    waiting = json.loads(capsys.readouterr().out)["waiting"]
    assert waiting["deferred"] == 1
    assert waiting["next_due_at"] > time.time()
    assert mpu("process", pickup, "--send", "--include-deferred", *server(sandbox)) == 1
    assert len(sandbox.mails()) == 1  # who accepted is not sent to again


def test_an_account_that_cannot_be_used(pickup: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(pickup, "plain.eml")
    assert mpu("process", pickup, "--send", "--host", "127.0.0.1", "--port", "9", "--security", "none") == 3
    assert "connect failed" in capsys.readouterr().err
    assert (pickup / "plain.eml").exists()
    assert list((pickup / ".mpu").glob("*.json")) == []  # no attempt is counted


def test_usage(pickup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mpu("process", tmp_path / "nowhere", "--host", "x") == 2
    assert mpu("process", pickup, "--send") == 2
    assert mpu("process", pickup, "--send", "--host", "x", "--account", "y") == 2
    assert mpu("process", pickup, "--send", "--host", "x", "--username", "u", "--password-file", tmp_path / "no") == 2
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert mpu("process", pickup, "--send", "--host", "x", "--username", "u") == 2


def test_login_with_a_password_from_the_environment(
    pickup: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(pickup, "plain.eml")
    monkeypatch.setenv("MPU_SMTP_PASSWORD", "secret")
    assert mpu("process", pickup, "--send", "--username", "u", *server(sandbox)) == 0


def test_saved_accounts_and_directories(
    pickup: Path, sandbox: Sandbox, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert mpu("setup", "-d", pickup, *server(sandbox), "--account", "box", "--interval", "5") == 0
    put(pickup, "plain.eml")
    assert mpu("process", pickup, "--send") == 0
    put(pickup, "utf8.eml")
    assert mpu("process", pickup, "--send", "--account", "box") == 0
    assert mpu("process", pickup, "--send", "--account", "nobody") == 3
    other = tmp_path / "other"
    other.mkdir()
    assert mpu("process", other, "--send") == 3
    assert len(sandbox.mails()) == 2
    assert "there is no account 'nobody'" in capsys.readouterr().err
    assert mpu("explain", EXAMPLES / "plain.eml", "--directory", "pickup") == 0
    assert "goes out through box" in capsys.readouterr().out
    assert mpu("explain", EXAMPLES / "plain.eml", "--directory", "nosuch") == 1


async def slow_down(data: Path, account: str, slowed: Slowed) -> None:
    """As a service wrote it down that ran before."""
    store = Store.open(str(data), clock=SystemClock(), create=False)
    await store.write(lambda session: slowdowns.put(session, account, slowed))
    store.close()


@pytest.mark.parametrize("most", [None, 1])
def test_an_account_that_its_server_slowed_down_sets_out_as_slowly(
    pickup: Path, tmp_path: Path, most: int | None
) -> None:
    with ThreadedSmtpServer(script=Script(round_trip_seconds=0.02)) as smtp:
        way = ("--host", "127.0.0.1", "--port", str(smtp.port), "--security", "none")
        assert mpu("setup", "-d", pickup, *way, "--account", "box") == 0
        if most is not None:
            asyncio.run(slow_down(tmp_path / "data", "box", Slowed(connections=FewerConnections(most, time.time()))))
        before = smtp.accepted
        for number in range(8):
            (pickup / f"{number}.eml").write_bytes((EXAMPLES / "plain.eml").read_bytes())
        assert mpu("process", pickup, "--send") == 0
        assert smtp.taken == 8
        assert (smtp.accepted - before == 1) is (most == 1)
