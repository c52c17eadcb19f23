"""The receiving server of the long runs, in a process of its own: the oracle. It outlives whoever is killed.

The last letter of a mailbox's local part says what becomes of it, whoever asks: t taken, d put off once and then
taken, r refused for good, u taken, with the connection closed instead of the reply (the first time). What the server
takes is in its ledger, one JSON line a message, before its reply leaves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from tests.support.smtp_server import DEFAULT_EXTENSIONS, Action, Close, Script, SmtpServer

ROOT = Path(__file__).parents[2]


def script(*, chunking: bool = False, round_trip_seconds: float = 0.0) -> Script:
    """What the server of the long runs offers."""
    extensions = [*DEFAULT_EXTENSIONS, *(["CHUNKING"] if chunking else [])]
    return Script(extensions=extensions, round_trip_seconds=round_trip_seconds)


def refused(mailbox: str) -> bool:
    """Whether the server will never take it."""
    return mailbox.partition("@")[0].endswith("r")


@dataclass
class Verdicts:
    """What answers RCPT and the final dot, by the names of the mailboxes (SmtpServer's Faults)."""

    asked: set[str] = field(default_factory=set)
    closing: set[int] = field(default_factory=set)  # connections that end without the reply to the final dot

    def at(self, connection: int, place: str, mailbox: str) -> Action:
        if place == "dot" and connection in self.closing:
            return Close(take=True)
        if place != "rcpt":
            return None
        verdict = mailbox.partition("@")[0][-1:]
        if verdict == "r":
            return "550 5.1.1 no such user"
        first = mailbox not in self.asked
        if verdict in "du":
            self.asked.add(mailbox)
        if verdict == "u" and first:
            self.closing.add(connection)
        return "450 4.2.1 later" if verdict == "d" and first else None


@dataclass
class Ledger:
    """What the server took responsibility for."""

    path: Path
    offset: int = 0
    times: Counter[tuple[str, str]] = field(default_factory=Counter)  # (key of the mail, mailbox) -> how often
    hashes: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # key -> hashes of the bodies
    messages: int = 0

    def read(self) -> Ledger:
        """What was added since."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self.offset += len(whole)
            for line in whole.splitlines():
                self._add(json.loads(line))
        return self

    def wait_for(self, more: int, seconds: float = 2.0) -> None:
        """Until so many more messages were taken, or time is up."""
        wanted = self.read().messages + more
        deadline = time.monotonic() + seconds
        while self.read().messages < wanted and time.monotonic() < deadline:
            time.sleep(0.001)

    def _add(self, line: dict[str, object]) -> None:
        key = str(line["message_id"]).strip("<>").partition("@")[0]
        self.messages += 1
        self.hashes[key].add(str(line["sha256"]))
        for mailbox, _ in line["recipients"]:  # type: ignore[attr-defined]  # a list of pairs, by the server's own hand
            self.times[key, mailbox] += 1


@contextmanager
def server(ledger: Path, *, round_trip_seconds: float = 0.0, chunking: bool = False) -> Iterator[int]:
    """Run one; gives its port."""
    options = ["--ledger", str(ledger), "--round-trip-seconds", str(round_trip_seconds)]
    options += ["--chunking"] if chunking else []
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.server", *options], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


async def _serve(options: argparse.Namespace) -> None:
    receiving = SmtpServer(
        script(chunking=options.chunking, round_trip_seconds=options.round_trip_seconds),
        ledger=options.ledger,
        faults=Verdicts(),
        keep_bodies=False,
        keep_messages=False,
        keep_commands=False,
    )
    async with receiving:
        os.write(1, b"%d\n" % receiving.port)
        while os.getppid() != 1:  # the runner was killed: nobody needs it any more
            await asyncio.sleep(1)
            receiving.sessions.clear()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.server")
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--round-trip-seconds", type=float, default=0.0)
    parser.add_argument("--chunking", action="store_true")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
