"""What whoever may write mail can do beside it: in `.mpu/` and badmail/. It concerns that directory at most."""

from __future__ import annotations

import asyncio
import json
import os
from binascii import crc32
from collections.abc import Callable
from pathlib import Path

import pytest

from core.domain.account import Directory
from core.domain.message import MessageIdentity
from core.spool.log import FRAME, MARK, NANOSECONDS
from tests.support.relay import account, mail, running, until
from tests.support.smtp_server import Hang, Script, SmtpServer

HASH = "0123456789abcdef" * 2


def _sparse_log(mpu: Path) -> None:
    (mpu / "9-ab.log.0").touch()
    os.truncate(mpu / "9-ab.log.0", 1 << 40)


def _forged(mpu: Path, name: bytes, found: os.stat_result, rest: bytes) -> None:
    """An outcome in the log of an owner who is dead."""
    mark = MARK.pack(
        b"O", 1, 0, 1.0, *divmod(found.st_mtime_ns, NANOSECONDS), found.st_size, found.st_ino, len(name), len(name)
    )
    body = mark + name + name + rest
    (mpu / "9-ab.log.0").write_bytes(FRAME.pack(len(body), crc32(body)) + body)


def _deep_log(mpu: Path) -> None:
    left = mpu.parent / "left.eml.lck"
    left.write_bytes(b"no mail")
    _forged(mpu, b"left.eml", left.stat(), b"[" * 100_000)


def _unreadable(mpu: Path) -> None:
    (mpu / f"{HASH}.json").mkdir()
    (mpu / f"{'b' * 32}.json").symlink_to("/dev/zero")
    os.mkfifo(mpu / f"{'c' * 32}.json")
    os.mkfifo(mpu / f"tmp-dot-stuffing-{os.getpid()}")
    os.mkfifo(mpu / "dot-stuffing")


MADE: dict[str, Callable[[Path], object]] = {
    "a deep sidecar": lambda mpu: (mpu / f"{HASH}.json").write_bytes(b"[" * 200_000),
    "an endless time": lambda mpu: (mpu / f"{HASH}.json").write_text(
        json.dumps({"name": "z.eml", "mtime_ns": 1, "size": 2, "file": "z.eml", "due_at": 10**400})
    ),
    "a name without letters": lambda mpu: (mpu / os.fsdecode(b"\xff" * 32 + b".json")).touch(),
    "a sparse log": _sparse_log,
    "a deep log": _deep_log,
    "what is no file": _unreadable,
    "badmail is a link": lambda mpu: (mpu.parent / "badmail").symlink_to("/nowhere"),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
async def test_mail_goes_on_here_and_elsewhere_and_the_service_starts(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    pickups = [Directory(name, str(tmp_path / "spool" / name), ("main",), watch=False) for name in ("pickup", "other")]
    mpu = tmp_path / "spool" / "pickup" / ".mpu"
    async with SmtpServer() as server:
        for life in range(2):
            async with running(
                tmp_path, [account(server)] if life == 0 else [], pickups=pickups[: 2 - 2 * life]
            ) as bench:
                if life == 0:
                    make(mpu)
                for number, pickup in enumerate(pickups):
                    (Path(pickup.path) / f"{life}.eml").write_bytes(mail(10 * life + number))
                answer = await bench.http.post("/drain")
                assert answer.is_success
                assert answer.json()["complete"] is True
                assert len(server.messages) == 2 * life + 2
                for path in ("/queue", "/queue/messages", "/queue/reasons", "/alerts", "/history", "/health/ready"):
                    assert (await bench.http.get(path)).is_success, path


async def test_nothing_in_one_directory_settles_mail_of_another(tmp_path: Path) -> None:
    pickups = [Directory(name, str(tmp_path / "spool" / name), ("main",), watch=False) for name in ("pickup", "other")]
    mpu = tmp_path / "spool" / "pickup" / ".mpu"
    async with SmtpServer() as server, running(tmp_path, [account(server)], pickups=pickups) as bench:
        await bench.drain()
        theirs = tmp_path / "spool" / "other" / "v.eml"
        theirs.write_bytes(mail(1))
        told = b'[["jo@example.org","sent","dot",null,250,null,"ok"]]'
        _forged(mpu, b"../other/v.eml", theirs.stat(), told)
        (mpu.parent / "left.eml.lck").write_bytes(mail(2))  # whose recovery reads the logs, once a scan has seen it
        for _ in range(2):
            assert (await bench.http.post("/drain", json={"directories": ["pickup"]})).is_success
        assert theirs.exists()
        await bench.drain()
        assert len(server.messages) == 2


async def test_nonsense_beside_a_mail_reaches_no_history(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        await bench.drain()
        bench.drop("a.eml", mail(1))
        found = (tmp_path / "spool" / "pickup" / "a.eml").stat()
        identity = MessageIdentity("pickup", b"a.eml", found.st_mtime_ns, found.st_size)
        forged = {"name": "a.eml", "mtime_ns": found.st_mtime_ns, "size": found.st_size, "file": "a.eml"}
        beside = tmp_path / "spool" / "pickup" / ".mpu" / f"{identity.file_hash}.json"
        beside.write_text(json.dumps(forged | {"attempts": 1e300, "first_attempt_at": 1e300}))
        await bench.drain()
        (row,) = (await bench.get("/history"))["items"]
        assert (row["status"], row["attempts"]) == ("sent", 1)


async def test_a_stop_does_not_wait_for_a_test_message_whose_reply_does_not_come(tmp_path: Path) -> None:
    async with (
        SmtpServer(Script(dot=Hang())) as server,
        running(tmp_path, [account(server)], grace_seconds=0.1) as bench,
    ):
        asked = asyncio.create_task(bench.http.post("/accounts/main/test-message", json={"to": "jo@example.org"}))
        await until(lambda: any(line.upper().startswith("DATA") for line in server.commands), "its content")
        async with asyncio.timeout(30):
            await bench.relay.stop()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
