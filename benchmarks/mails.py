"""The mails that are sent: all of one size, each with a Message-ID of its own."""

from __future__ import annotations

import os
from pathlib import Path

_LINE = b"The quick brown fox jumps over the lazy dog, and says so in a line of mail.\r\n"


def mail(number: int, size: int) -> bytes:
    """About `size` octets, as an application writes them; CRLF, no dots to stuff."""
    head = (
        f"X-Sender: shop@example.com\r\nX-Receiver: jo{number % 97}@example.org\r\n"
        f"From: Shop <shop@example.com>\r\nTo: Jo <jo{number % 97}@example.org>\r\n"
        f"Subject: Your order {number}\r\nDate: Tue, 24 Nov 2026 10:00:00 +0000\r\n"
        f"Message-ID: <{number}.bench@example.com>\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=us-ascii\r\n\r\n"
    ).encode()
    return head + _LINE * max(1, (size - len(head)) // len(_LINE))


def fill(folder: Path, count: int, size: int, *, first: int = 0) -> None:
    """`count` mails in the folder, synced, so that the kernel has nothing of it left to write during a run."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        fd = os.open(folder / f"{number:07}.eml", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o660)
        try:
            os.write(fd, mail(number, size))
        finally:
            os.close(fd)
    os.sync()
