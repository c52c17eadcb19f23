"""What must arrive of a mail, worked out slowly and simply, with nothing of the product: the judge of the corpora.

Line by line: all line ends become CRLF, the last too; a byte order mark and an mbox line go; the fields X-Sender,
X-Receiver, Bcc and Resent-Bcc go. What is added (Date, Message-ID, To) is taken out of what arrived, if the file has it
not. No file of the corpora has stuffed dots.
"""

from __future__ import annotations

LEAVES = (b"x-sender", b"x-receiver", b"bcc", b"resent-bcc")
ADDED = (b"date", b"message-id", b"to")


def lines_of(data: bytes) -> list[bytes]:
    """The lines without their ends: CRLF, LF or CR."""
    lines: list[bytes] = []
    line = b""
    at = 0
    while at < len(data):
        octet = data[at : at + 1]
        if octet == b"\r" or octet == b"\n":
            at += 2 if data[at : at + 2] == b"\r\n" else 1
            lines.append(line)
            line = b""
        else:
            line += octet
            at += 1
    if line:
        lines.append(line)
    return lines


def expected(file: bytes) -> tuple[list[bytes], list[bytes]]:
    """The fields (folded lines joined by CRLF) and the body's lines that must arrive."""
    if file.startswith(b"\xef\xbb\xbf"):
        file = file[3:]
    lines = lines_of(file)
    if lines and lines[0].startswith(b"From ") and not lines[0][5:].lstrip().startswith(b":"):
        lines = lines[1:]
    fields, body = _split(lines)
    return [field for field in fields if _name(field) not in LEAVES], body


def arrived_as(file: bytes, arrived: bytes) -> tuple[list[bytes], list[bytes]]:
    """The fields and the body's lines of what arrived, without the fields that were added."""
    given = [_name(field) for field in expected(file)[0]]
    if not arrived.endswith(b"\r\n") or arrived.replace(b"\r\n", b"").count(b"\n"):
        raise AssertionError("not all line ends are CRLF")
    fields, body = _split(arrived.split(b"\r\n")[:-1])
    kept = [field for field in fields if _name(field) in given or _name(field) not in ADDED]
    return kept, body


def _split(lines: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    end = lines.index(b"") if b"" in lines else len(lines)
    fields: list[bytes] = []
    for line in lines[:end]:
        if line[:1] in (b" ", b"\t") and fields:
            fields[-1] += b"\r\n" + line
        else:
            fields.append(line)
    return fields, lines[end + 1 :]


def _name(field: bytes) -> bytes:
    return field.partition(b":")[0].strip().lower()
