"""Mails of the long runs: each can be told by its key, and it is known beforehand how it must arrive."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_WORDS = b"invoice total amount due order net gross for of the and with customer number date please pay until".split()
_SIZES = (1, 4, 20, 60)  # lines
_RECIPIENTS = (1, 1, 1, 2, 3)
MIXED = "ttttttttttttttttdddr"  # verdicts (server.py), as likely as they are here


@dataclass(frozen=True, slots=True)
class Letter:
    """One mail: its file and what the server must see of it."""

    key: str
    data: bytes
    recipients: tuple[str, ...]
    sha256: str  # of the message as it must arrive

    @property
    def name(self) -> str:
        return f"{self.key}.eml"


def letter(chance: random.Random, key: str, verdicts: str) -> Letter:
    """Random: size, line ends, dots, characters, recipients in the headers or in X-Receiver lines. One a verdict."""
    mailboxes = tuple(f"{key}-{number}{verdict}@chaos.example" for number, verdict in enumerate(verdicts))
    end = chance.choice((b"\r\n", b"\n"))
    lines = [b"From: shop@example.com", b"Subject: " + _line(chance), b"Date: Tue, 24 Nov 2026 10:00:00 +0000"]
    lines += [f"Message-ID: <{key}@chaos>".encode(), b"MIME-Version: 1.0"]
    lines += [b"Content-Type: text/plain; charset=utf-8", b"Content-Transfer-Encoding: 8bit"]
    removed: list[bytes] = []
    if chance.random() < 0.5:
        removed = [b"X-Sender: shop@example.com", *(b"X-Receiver: " + m.encode() for m in mailboxes)]
        lines.append(b"To: everybody@example.org")
    else:
        lines.append(b"To: " + ", ".join(mailboxes).encode())
    body = [_line(chance) for _ in range(chance.choice(_SIZES))]
    if chance.random() < 0.2:
        body.append(b".hidden file: no dot of it may be lost")
    arrives = b"".join(line + b"\r\n" for line in [*lines, b"", *body])
    data = b"".join(line + end for line in [*removed, *lines, b"", *body])
    return Letter(key, data, mailboxes, hashlib.sha256(arrives).hexdigest())


def _line(chance: random.Random) -> bytes:
    words = chance.choices(_WORDS, k=chance.randrange(1, 12))
    if chance.random() < 0.1:
        words.append("Grüße €".encode())
    return b" ".join(words)


def letters(chance: random.Random, prefix: str, count: int, verdicts: str = "t") -> list[Letter]:
    """Several, with keys `<prefix>0`, `<prefix>1` and so on; verdicts are drawn from those."""
    return [
        letter(chance, f"{prefix}{number}", "".join(chance.choices(verdicts, k=chance.choice(_RECIPIENTS))))
        for number in range(count)
    ]


def write_in_place(path: Path, mail: Letter, name: str = "") -> None:
    """As .NET does: under the final name, closed at the end."""
    fd = os.open(path / (name or mail.name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o660)
    try:
        half = len(mail.data) // 2
        os.write(fd, mail.data[:half])
        os.write(fd, mail.data[half:])
    finally:
        os.close(fd)


def move_in(path: Path, mail: Letter) -> None:
    """As a careful writer does: elsewhere first, then moved in."""
    hidden = path / f".{mail.key}.tmp"
    hidden.write_bytes(mail.data)
    hidden.rename(path / mail.name)


def hand_over(path: Path, mails: Iterable[Letter], chance: random.Random) -> None:
    """In either way."""
    writers: tuple[Callable[[Path, Letter], None], ...] = (write_in_place, move_in)
    for mail in mails:
        chance.choice(writers)(path, mail)
