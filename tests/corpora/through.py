"""Put files through a real relay to the scripted server, and see what came of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.domain.message import parse_message_id
from tests.corpora.reference import arrived_as, expected
from tests.support.relay import account, running
from tests.support.smtp_server import SmtpServer

_NUMBER = re.compile(rb"^X-Corpus: (\d+)\r\n", re.MULTILINE)


@dataclass(frozen=True)
class Came:
    """What came of one file: its octets at the server, or the reason why it did not go."""

    octets: bytes | None
    reason: str = ""
    envelope: tuple[str, ...] = ()


def marked(file: bytes, number: int, *, envelope: bool) -> bytes:
    """With a field that names it, and an envelope of its own if asked for."""
    lead = b"X-Corpus: %d\n" % number
    if envelope:
        lead += b"X-Sender: <a@example.com>\nX-Receiver: <b@example.org>\n"
    if file.startswith(b"\xef\xbb\xbf"):
        return file[:3] + lead + file[3:]
    if file.startswith(b"From "):
        first, end, rest = file.partition(b"\n")
        return (b"" if envelope else first + end) + lead + rest
    return lead + file


async def through(root: Path, files: Mapping[str, bytes], *, envelope: bool = False) -> dict[str, Came]:
    """Name -> what came of it."""
    names = list(files)
    async with SmtpServer() as server:
        async with running(root, [account(server)]) as bench:
            for number, name in enumerate(names):
                bench.drop(f"{number}.eml", marked(files[name], number, envelope=envelope))
            await bench.drain(timeout_seconds=100)
            left = bench.names()
            failed: dict[int, str] = {}
            cursor = None
            while True:
                page = await bench.get("/history", limit=200, **({"cursor": cursor} if cursor else {}))
                for item in page["items"]:
                    if item["status"] != "sent":
                        number = int(parse_message_id(item["message_id"]).name.removesuffix(b".eml"))
                        failed[number] = f"{item['enhanced_code']} {item['text']}"
                cursor = page["next"]
                if cursor is None:
                    break
            reasons = {
                int(path.name.partition(".")[0]): path.read_text(errors="replace")
                for path in (bench.paths["pickup"] / "badmail").glob("*.txt")
            }
    came: dict[str, Came] = {}
    for message in server.messages:
        found = _NUMBER.search(message.body)
        assert found is not None
        name = names[int(found[1])]
        assert name not in came, f"{name} came twice"
        came[name] = Came(message.body, envelope=(message.sender, *message.to))
    for number, name in enumerate(names):
        if name not in came:
            waiting = "waits" if f"{number}.eml" in left else ""
            came[name] = Came(None, failed.get(number) or reasons.get(number) or waiting)
    return came


def intact(file: bytes, came: Came, number: int, *, envelope: bool) -> bool:
    """Whether what arrived is what the reference expects."""
    assert came.octets is not None
    given = marked(file, number, envelope=envelope)
    return arrived_as(given, came.octets) == expected(given)
