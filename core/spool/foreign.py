"""Files of frameworks that append several mails to one: they can't be taken apart safely, and are left (writers.md)."""

from __future__ import annotations

import re

from core.domain.header import Header
from core.errors import MessageRefused
from core.spool.message_file import BodySource, MessageFile

_DASHES = b"\n" + b"-" * 79 + b"\n"
_RAILS_NEXT = re.compile(
    rb"^Date: [^\r\n]*+\r?\nFrom: [^\r\n]*+\r?\n(?:[^\r\n]++\r?\n){0,12}?Message-ID: <[^>\r\n]++(?<=\.mail)>",
    re.MULTILINE,
)


def refuse_django_file(file: MessageFile, body: bytes | None, header: Header) -> None:
    """A file that several mails are appended to can't be taken apart safely: left, with the reason.

    `body`: all behind the header, where that is in memory.
    """
    at = max(0, file.size - len(_DASHES))
    tail = file.read(at, file.size - at) if body is None or len(body) < len(_DASHES) else body[-len(_DASHES) :]
    if tail == _DASHES and b"mime-version" in header.by_name:
        raise MessageRefused(
            "this is a log of Django's file backend (mails with lines of 79 dashes between them, no Bcc), not a mail",
            remedy="let the application write one file a mail, with X-Receiver or Bcc fields",
        )


def refuse_rails_file(source: BodySource, header: Header, name: bytes) -> None:
    """Another framework's file of several mails: left, with the reason."""
    message_id = header.first(b"message-id")
    if message_id is None or not message_id.endswith(b".mail>"):
        return
    tail = b""
    appended = (
        b"@" in name and name.removesuffix(b".eml") in b" ".join(header.values(b"to")).replace(b"<", b" ").split()
    )
    for piece in source.raw():
        joined = tail + piece
        if appended or (b"Date: " in joined and _RAILS_NEXT.search(joined)):
            raise MessageRefused(
                "this is a file of Rails' :file delivery (mails of one recipient, appended to one another), not a mail",
                remedy="let the application write one file a mail",
            )
        tail = piece[-8192:]
