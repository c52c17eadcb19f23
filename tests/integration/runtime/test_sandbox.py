from __future__ import annotations

import asyncio
import contextlib
import smtplib
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from core.errors import NotFound
from core.runtime.sandbox import Sandbox, subject_of

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(kept_messages=3, kept_bytes=10_000, clock=lambda: 1.5)
    await sandbox.start()
    yield sandbox
    await sandbox.stop()


async def test_keeps_what_smtplib_sends(sandbox: Sandbox) -> None:
    data = b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\r\n.dot\r\n\xff 8-bit\r\n"

    def send() -> None:
        with smtplib.SMTP("127.0.0.1", sandbox.port, timeout=10) as client:
            client.login("anybody", "anything")
            client.sendmail("a@example.com", ["b@example.org", "c@example.org"], data, mail_options=["BODY=8BITMIME"])

    await asyncio.to_thread(send)
    (mail,) = sandbox.list()
    assert (mail.sender, mail.recipients) == ("a@example.com", ("b@example.org", "c@example.org"))
    assert (mail.subject, mail.size_bytes, mail.received_at) == ("Grüße", len(data), 1.5)
    assert sandbox.get(mail.id).data == data


async def test_pipelined_transactions_and_refusals(sandbox: Sandbox) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", sandbox.port)

    async def reply() -> str:
        lines = []
        while True:
            line = (await asyncio.wait_for(reader.readline(), 10)).decode()
            lines.append(line.rstrip())
            if line[3:4] == " ":
                return "\n".join(lines)

    assert (await reply()).startswith("220")
    writer.write(b"EHLO me\r\n")
    extensions = await reply()
    assert {"250-PIPELINING", "250-8BITMIME", "250-SMTPUTF8"} <= set(extensions.splitlines())
    writer.write(
        b"MAIL FROM:<a@x.org>\r\nRCPT TO:<reject@x.org>\r\nRCPT TO:<defer@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\n"
    )
    assert [(await reply())[:9] for _ in range(5)] == ["250 OK", "550 5.1.1", "451 4.3.0", "250 2.1.5", "354 End d"]
    # the next envelope goes behind the final dot (RFC 2920)
    writer.write(b"Subject: one\r\n\r\n1\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<c@x.org>\r\nDATA\r\n")
    assert [(await reply())[:3] for _ in range(4)] == ["250", "250", "250", "354"]
    writer.write(b"Subject: two\r\n\r\n2\r\n.\r\nQUIT\r\n")
    assert [(await reply())[:3] for _ in range(2)] == ["250", "221"]
    writer.close()
    assert [(m.subject, m.sender, m.recipients) for m in sandbox.list()] == [
        ("two", "", ("c@x.org",)),
        ("one", "a@x.org", ("b@x.org",)),
    ]


async def test_forgets_the_oldest(sandbox: Sandbox) -> None:
    for number in range(5):
        sandbox.keep("a", ["b"], b"Subject: %d\n\n" % number)
    assert [mail.subject for mail in sandbox.list()] == ["4", "3", "2"]
    sandbox.keep("a", ["b"], b"Subject: big\n\n" + b"x" * 9_990)
    assert [mail.subject for mail in sandbox.list()] == ["big"]
    with pytest.raises(NotFound):
        sandbox.get(1)


async def test_stop_closes_open_connections() -> None:
    sandbox = Sandbox()
    port = await sandbox.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    await asyncio.wait_for(sandbox.stop(), 5)
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)
    await sandbox.stop()


@pytest.mark.parametrize(
    ("data", "subject"),
    [
        (b"From: a\r\nSUBJECT:  two\r\n words\r\n\r\nSubject: body", "two words"),
        (b"From: a\n\nSubject: body", ""),
        (b"Subject: =?x-unknown?q?a?=\n\n", "=?x-unknown?q?a?="),
        (b"Subject: =?utf-8?b?AAA?=\n\n", None),
        (b"Subject: \xff\xfe <script>\n\n", "ÿþ <script>"),
        (b"", ""),
    ],
)
def test_subject_for_a_list(data: bytes, subject: str | None) -> None:
    found = subject_of(data)
    assert subject is None or found == subject
    assert "\n" not in found


def test_the_examples_are_mails_as_applications_write_them() -> None:
    files = sorted(EXAMPLES.glob("*.eml"))
    assert {file.name for file in files} >= {"plain.eml", "dotnet.eml", "attachment.eml", "utf8.eml"}
    for file in files:
        data = file.read_bytes()
        assert data.count(b"\n") == data.count(b"\r\n")
        assert data.endswith(b"\r\n")
        message = message_from_bytes(data, policy=policy.SMTP)
        assert message["From"]
        assert message["To"]
        assert not message.defects
    assert (EXAMPLES / "dotnet.eml").read_bytes().startswith(b"X-Sender: ")
