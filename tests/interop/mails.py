"""The mails that every server gets: the file, the envelope, and the octets that must arrive."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

_GOLDEN = Path(__file__).parent.parent / "golden"
SIZE_LIMIT = 3_000_000  # octets that the servers are told to take


@dataclass(frozen=True)
class Mail:
    """`expected`: the octets that must arrive, behind what the server puts on top."""

    name: str
    sender: str
    recipients: tuple[str, ...]
    file: bytes
    expected: bytes
    international: bool = False  # needs SMTPUTF8: refused with 5.6.7 where it isn't offered


def _mail(name: str, body: bytes, *, recipients: tuple[str, ...] = ("jo@example.org",), **more: str) -> Mail:
    sender = more.get("sender", "shop@example.com")
    mime = more.get("mime", "text/plain; charset=utf-8")
    content = (
        f"From: Shop <shop@example.com>\r\nTo: Jo <jo@example.org>\r\nSubject: {more.get('subject', name)}\r\n"
        f"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\nMessage-ID: <{name}@interop.example>\r\nMIME-Version: 1.0\r\n"
        f"Content-Type: {mime}\r\nContent-Transfer-Encoding: {more.get('encoding', '7bit')}\r\n\r\n"
    ).encode() + body
    lines = [f"X-Sender: <{sender}>{more.get('mail_parameters', '')}"]
    lines += [f"X-Receiver: <{one}>{more.get('rcpt_parameters', '')}" for one in recipients]
    envelope = "".join(f"{line}\r\n" for line in lines).encode()
    international = not (sender + "".join(recipients)).isascii()
    return Mail(name, sender, recipients, envelope + content, content, international)


def _noise(octets: int) -> bytes:
    """Base64 of octets that are the same each time."""
    blocks = (hashlib.sha256(b"%d" % number).digest() for number in range(octets // 32 + 1))
    return base64.encodebytes(b"".join(blocks)[:octets]).replace(b"\n", b"\r\n")


def mails() -> list[Mail]:
    """All, each of another kind."""
    many = tuple(f"reader{number}@example.org" for number in range(40))
    golden = _GOLDEN / "dkim-signed"
    return [
        _mail("plain", b"Hello\r\n"),
        _mail("dots", b".a dot\r\n..two\r\n.\r\n...\r\nend\r\n.\r\n\r\nnot the end\r\n"),
        _mail("spaces", b" lead\r\ntrail \t\r\n\t\r\n" + b"x" * 998 + b"\r\nFrom the start of a line\r\n\r\n\r\n\r\n"),
        _mail("eight-bit", "Grüße aus Köln, 10 € für 寿司\r\n".encode(), encoding="8bit"),
        _mail("latin-1", b"Gr\xfc\xdfe\r\n", encoding="8bit", mime="text/plain; charset=iso-8859-1"),
        _mail("attachment", _noise(400_000), encoding="base64", mime="application/octet-stream"),
        _mail("large", _noise(1_500_000), encoding="base64", mime="application/octet-stream"),
        _mail("recipients", b"To forty\r\n", recipients=many),
        _mail("null-sender", b"A bounce\r\n", sender=""),
        _mail(
            "notification",
            b"Tell me\r\n",
            mail_parameters=" RET=HDRS ENVID=order-42",
            rcpt_parameters=" NOTIFY=SUCCESS,FAILURE ORcpt=rfc822;jo@example.org",
        ),
        _mail(
            "international",
            "Grüße\r\n".encode(),
            recipients=("jörg@example.org",),
            subject="Größe",
            encoding="8bit",
        ),
        Mail(
            "signed",
            "a@example.com",
            ("b@example.org",),
            (golden / "message.eml").read_bytes(),
            (golden / "sent.eml").read_bytes(),
        ),
    ]


def too_large() -> Mail:
    """More than any server here takes."""
    return _mail("too-large", _noise(SIZE_LIMIT), encoding="base64", mime="application/octet-stream")
