"""promises.md, "Bad inputs": hostile and broken mail through a whole relay (see tests/promises.toml).

Each goes to badmail with its reason or arrives as meant; none crashes, none waits for ever, none keeps others waiting.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from contextlib import suppress
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

from api.cli.output import cell
from core import cycle as cycle_module
from core.domain.account import Directory, DotStuffing
from tests.support.clock import ManualClock
from tests.support.relay import SIMPLE, Bench, account, mail, running
from tests.support.smtp_server import DEFAULT_EXTENSIONS, Script, SmtpServer

WAYS = {
    "plain": ("SIZE 52428800", "8BITMIME"),
    "pipelining": DEFAULT_EXTENSIONS,
    "chunking": (*DEFAULT_EXTENSIONS, "CHUNKING"),
}
BOUNDARIES = (65_536, 262_144)  # of reads of the header, and of chunks that are read and sent


def _reason(bench: Bench, name: str) -> str:
    return (bench.paths["pickup"] / "badmail" / f"{name}.reason.txt").read_text()


def _text(data: bytes) -> bytes:
    """As it must arrive: every line end is CRLF, the last line has one."""
    lines = re.sub(rb"\r\n|\r|\n", b"\r\n", data)
    return lines if lines.endswith(b"\r\n") else lines + b"\r\n"


def _body(data: bytes) -> bytes:
    return data.partition(b"\r\n\r\n")[2]


# --- smuggling --------------------------------------------------------------------------------------------------------

SMUGGLING = {
    r"\n.\n": b"\n.\n",
    r"\n.\r\n": b"\n.\r\n",
    r"\r.\r": b"\r.\r",
    r"\r\n.\r": b"\r\n.\r",
    r"\r\n.\n": b"\r\n.\n",
    r"\r\n.\r\n": b"\r\n.\r\n",
    r"\r\n\x00.\r\n": b"\r\n\x00.\r\n",
}
SMUGGLED = b"MAIL FROM:<evil@x>\r\nRCPT TO:<victim@x>\r\nDATA\r\nSubject: smuggled\r\n\r\nhi\r\n.\r\n"


@pytest.mark.parametrize("way", WAYS)
async def test_one_message_arrives_always(tmp_path: Path, way: str) -> None:
    files = {n: mail(n, body=b"before" + sequence + SMUGGLED) for n, sequence in enumerate(SMUGGLING.values())}
    async with SmtpServer(Script(extensions=WAYS[way])) as server, running(tmp_path, [account(server)]) as bench:
        for number, data in files.items():
            bench.drop(f"{number}.eml", data)
        await bench.drain()
        arrived = {int(t.body.partition(b"Subject: ")[2].partition(b"\r\n")[0]): t for t in server.messages}
        assert len(server.messages) == len(arrived) == len(files)
        for number, what in enumerate(SMUGGLING):
            assert arrived[number].to == ["jo@example.org"]
            body = _body(arrived[number].body)
            assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\x00", body), what
            if b"\x00" not in SMUGGLING[what]:
                assert body == _text(_body(files[number])), what


@pytest.mark.parametrize("way", WAYS)
async def test_dots_split_across_read_and_chunk_boundaries_are_one_message(tmp_path: Path, way: str) -> None:
    expected = {}
    async with SmtpServer(Script(extensions=WAYS[way])) as server, running(tmp_path, [account(server)]) as bench:
        number = 0
        for boundary in BOUNDARIES:
            for sequence in (b"\r\n.\r\n", b"\n.\n", b"\r\n..\r\n"):
                for shift in range(len(sequence) + 1):
                    number += 1
                    head = mail(number, body=b"")
                    pad = b"x" * 70 + b"\r\n"
                    fill = boundary - shift - len(head)
                    body = (pad * (fill // len(pad) + 1))[:fill] + sequence + SMUGGLED + b"end\r\n"
                    bench.drop(f"{number}.eml", head + body)
                    expected[b"Subject: %d\r\n" % number] = _text(body)
        await bench.sends(number)
        assert len(server.messages) == number
        for taken in server.messages:
            subject = b"Subject: " + taken.body.partition(b"Subject: ")[2].partition(b"\r\n")[0] + b"\r\n"
            assert _body(taken.body) == expected.pop(subject)
        assert expected == {}


@pytest.mark.parametrize("signed", [False, True])
async def test_nul_is_rejected_or_encoded(tmp_path: Path, signed: bool) -> None:
    data = mail(1, body=b"a\x00b\r\n")
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", (b"DKIM-Signature: v=1; b=x\r\n" if signed else b"") + data)
        bench.drop("header.eml", data.replace(b"Subject: 1", b"Subject: a\x00b"))
        await bench.drain()
        assert "NUL" in _reason(bench, "header.eml")
        if signed:
            assert "NUL" in _reason(bench, "a.eml")
            assert server.messages == []
        else:
            (taken,) = server.messages
            assert b"\x00" not in taken.body
            assert message_from_bytes(taken.body).get_payload(decode=True) == b"a\x00b\r\n"


# --- addresses --------------------------------------------------------------------------------------------------------

# as an application might write it into X-Receiver: who is asked for then. None: the whole mail is rejected
ADDRESSES: dict[str, tuple[bytes, list[str] | None]] = {
    r"d@e.f>\r\nRCPT TO:<x@y>": (b"d@e.f>\r\nRCPT TO:<x@y>", None),
    r"a@b\r\n X: y": (b"a@b\r\n X: y", []),
    "d@e.f> SIZE=1": (b"d@e.f> SIZE=1", []),
    r"d@e.f\x00": (b"d@e.f\x00", None),
    "@h1:d@e.f": (b"@h1:d@e.f", []),
    '"a b"@e.f': (b'"a b"@e.f', ['"a b"@e.f']),
    r'"a\r\nb"@e.f': (b'"a\r\nb"@e.f', None),
    "folded": (b'"a\r\n b"@e.f', ['"a b"@e.f']),
    "d%x@e.f": (b"d%x@e.f", ["d%x@e.f"]),
    "a!b@c": (b"a!b@c", ["a!b@c"]),
    "a@b@c": (b"a@b@c", []),
    "a@": (b"a@", []),
    "@b": (b"@b", []),
    "postmaster": (b"postmaster", []),
    "d@[127.0.0.1]": (b"d@[127.0.0.1]", []),
    "local part of 65 octets": (b"x" * 65 + b"@e.f", []),
    "domain of 256": (b"a@" + b"b." * 127 + b"bb", []),
    "alice@x)bob@y": (b"alice@x)bob@y", []),
}
GOOD = "ok@b.example"


# in brackets: parameters behind an address (Exchange), and a source route, which is left out (RFC 5321 appendix F.2)
BRACKETED = {"d@e.f> SIZE=1": ["d@e.f"], "@h1:d@e.f": ["d@e.f"]}


@pytest.mark.parametrize("what", ADDRESSES)
async def test_no_address_breaks_out_of_its_brackets(tmp_path: Path, what: str) -> None:
    value, asked = ADDRESSES[what]
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        for sender, receiver in (("bare", value), ("bracketed", b"<" + value + b">")):
            head = f"X-Sender: {sender}@b.example\r\nX-Receiver: ".encode() + receiver
            bench.drop(f"{sender}.eml", head + b"\r\nX-Receiver: ok@b.example\r\n" + mail(1))
        bench.drop("other.eml", mail(2))
        await bench.drain()
        said = [c for c in server.commands if not c.startswith(("EHLO", "QUIT", "DATA"))]
        proper = re.compile(r'(MAIL FROM:<\S+> SIZE=\d+|RCPT TO:<("a b"|[^\s<>@]+)@[a-z.]+>)')
        assert all(proper.fullmatch(line) for line in said), said
        expected = {"shop@example.com": ["jo@example.org"]}  # the others go on
        if asked is not None:
            expected |= {"bare@b.example": [*asked, GOOD], "bracketed@b.example": [*BRACKETED.get(what, asked), GOOD]}
        assert {taken.sender: taken.to for taken in server.messages} == expected
        dead = bench.paths["pickup"] / "badmail"
        for sender in ("bare", "bracketed"):  # the good recipient has it, the file tells of the other one
            if expected.get(f"{sender}@b.example") in (None, [GOOD]):
                assert _reason(bench, f"{sender}.eml").strip()
            else:
                assert not (dead / f"{sender}.eml").exists()


async def test_several_x_sender_are_rejected(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", b"X-Sender: a@b.c\r\nX-Sender: x@y.z\r\nX-Receiver: d@e.f\r\n" + mail(1))
        await bench.drain()
        assert "X-Sender" in _reason(bench, "a.eml")
        assert server.messages == []


async def test_100000_x_receiver_are_capped(tmp_path: Path) -> None:
    receivers = b"".join(b"X-Receiver: u%d@e.f\r\n" % n for n in range(100_000))
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", b"X-Sender: a@b.c\r\n" + receivers + mail(1))
        bench.drop("b.eml", mail(2))
        result = await bench.drain()
        assert (result["sent"], result["failed"]) == (1, 1)
        assert "10000" in _reason(bench, "a.eml")
        assert len(server.messages) == 1


async def test_many_x_receiver_are_split_into_transactions(tmp_path: Path) -> None:
    names = [f"u{n}@e.f" for n in range(2_050)]
    receivers = "".join(f"X-Receiver: {name}\r\n" for name in names).encode()
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", b"X-Sender: a@b.c\r\n" + receivers + mail(1))
        assert (await bench.drain())["recipients"]["sent"] == 2_050
        assert [len(taken.to) for taken in server.messages] == [100] * 20 + [50]
        assert [r for taken in server.messages for r in taken.to] == names


async def test_no_recipient_at_all_is_rejected(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", b"From: a@b.c\r\nSubject: x\r\n\r\nHello\r\n")
        bench.drop("b.eml", b"From: a@b.c\r\nTo: undisclosed-recipients:;\r\n\r\nHello\r\n")
        assert (await bench.drain())["failed"] == 2
        for name in ("a.eml", "b.eml"):
            assert "recipient" in _reason(bench, name)
        assert server.messages == []


# --- shape ------------------------------------------------------------------------------------------------------------

HEAD = b"From: shop@example.com\r\nTo: jo@example.org\r\nSubject: 1\r\nMessage-ID: <1@test>\r\n"
MULTIPART = b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n'


def _deep(depth: int) -> bytes:
    head = b"".join(b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (n, n) for n in range(depth))
    return HEAD + b"MIME-Version: 1.0\r\n" + head + b"Content-Type: text/plain\r\n\r\nHello\r\n"


# file -> what is in its reason; None: it arrives, with exactly this body
SHAPES: dict[str, tuple[bytes, str | None, bytes | None]] = {
    "zero bytes": (b"", "empty", None),
    "only CRLF": (b"\r\n\r\n\r\n", "line ends", None),
    "no blank line": (HEAD, None, b""),
    "body only": (b"Hello, this is no header\r\nat all\r\n", "", None),
    "BOM": (b"\xef\xbb\xbf" + HEAD + b"\r\nHello\r\n", None, b"Hello\r\n"),
    "UTF-16": (b"\xff\xfe" + (HEAD + b"\r\nHello\r\n").decode().encode("utf-16-le"), "", None),
    "mbox line": (b"From shop Tue Nov 24 10:00:00 2026\r\n" + HEAD + b"\r\nHello\r\n", None, b"Hello\r\n"),
    "two From": (b"From: other@example.com\r\n" + HEAD + b"\r\nHello\r\n", "From", None),
    "two Subject": (b"Subject: first\r\n" + HEAD + b"\r\nHello\r\n", None, b"Hello\r\n"),
    "header of 10 MB": (
        HEAD + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 900) for n in range(11_000)) + b"\r\nHi\r\n",
        None,
        b"Hi\r\n",
    ),
    "100,000 headers": (HEAD + b"X-A: b\r\n" * 100_000 + b"\r\nHi\r\n", None, b"Hi\r\n"),
    "To: with 3,000 (": (HEAD.replace(b"jo@", b"(" * 3000 + b"jo@") + b"\r\nHi\r\n", "", None),
    "MIME depth 3,000": (_deep(3000), None, _body(_deep(3000))),
}


@pytest.mark.parametrize("what", SHAPES)
async def test_a_bad_shape_is_rejected_with_a_reason_or_arrives_as_it_is(tmp_path: Path, what: str) -> None:
    data, reason, body = SHAPES[what]
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        path = bench.drop("a.eml", data)
        if not data:
            os.utime(path, (time.time() - 300,) * 2)  # it has rested
        bench.drop("b.eml", mail(2))
        began = time.process_time()
        result = await bench.drain()
        assert time.process_time() - began < 10, "linear"
        assert (result["sent"], result["failed"]) == ((2, 0) if reason is None else (1, 1))
        if reason is None:
            (arrived,) = (t.body for t in server.messages if b"Subject: 2" not in t.body)
            assert _body(arrived) == body
            assert arrived.isascii()
            assert max(map(len, arrived.split(b"\r\n"))) <= 998
            assert not arrived.startswith((b"From ", b"\xef\xbb\xbf"))
            assert bench.names() == []
        else:
            text = _reason(bench, "a.eml")
            assert reason in text
            assert re.match(r"5\.\d\.\d \w", text)
            assert (bench.paths["pickup"] / "badmail" / "a.eml").read_bytes() == data


async def test_a_line_of_1_mb_is_re_encoded_and_never_over_998_octets_raw(tmp_path: Path) -> None:
    line = b"0123456789" * 100_000
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1, body=line + b"\r\n"))
        bench.drop("signed.eml", b"DKIM-Signature: v=1; b=x\r\n" + mail(2, body=line + b"\r\n"))
        await bench.drain()
        (taken,) = server.messages
        assert max(map(len, taken.body.split(b"\r\n"))) <= 998
        assert message_from_bytes(taken.body).get_payload(decode=True) == line + b"\r\n"
        assert "5.6.3" in _reason(bench, "signed.eml")


async def test_a_header_over_the_cap_is_rejected(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)], max_header_bytes=1 << 20) as bench:
        bench.drop("a.eml", HEAD + b"X-A: b\r\n" * 200_000 + b"\r\nHi\r\n")
        assert (await bench.drain())["failed"] == 1
        assert "header" in _reason(bench, "a.eml")
        assert server.messages == []


async def test_8000_addresses_are_all_sent_to_in_linear_time(tmp_path: Path) -> None:
    names = [f"u{n}@b.example" for n in range(8000)]
    async with SmtpServer() as server, running(tmp_path, [account(server, recipients_per_message=1000)]) as bench:
        bench.drop("a.eml", mail(1, to=",\r\n ".join(names)))
        began = time.process_time()
        assert (await bench.drain())["recipients"]["sent"] == 8000
        assert time.process_time() - began < 10
        assert [r for taken in server.messages for r in taken.to] == names


async def test_depth_is_walked_to_20_and_only_for_re_encoding(tmp_path: Path) -> None:
    eight_bit = _deep(3000).replace(b"Hello", "Grüße".encode())
    async with SmtpServer(Script(hide={"8BITMIME"})) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("deep.eml", eight_bit)
        bench.drop("shallow.eml", _deep(15).replace(b"Hello", "Grüße".encode()))
        await bench.drain()
        assert "5.6.3" in _reason(bench, "deep.eml")
        (taken,) = server.messages
        assert taken.body.isascii()


async def test_2_gb_are_rejected_by_size_alone(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        path = bench.drop("a.eml", SIMPLE)
        os.truncate(path, 2 << 30)  # sparse
        began = time.process_time()
        assert (await bench.drain())["failed"] == 1
        assert time.process_time() - began < 2, "it was not read"
        assert "5.3.4" in _reason(bench, "a.eml")
        assert server.messages == []


# --- files ------------------------------------------------------------------------------------------------------------


async def test_what_is_no_mail_file_is_not_opened_reported_and_left_without_a_hang(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"From: a@b.c\r\nTo: d@e.f\r\n\r\nthe secret\r\n")
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        pickup = bench.paths["pickup"]
        (pickup / "symlink.eml").symlink_to(secret)
        (pickup / "dangling.eml").symlink_to(tmp_path / "nowhere")
        os.mkfifo(pickup / "fifo.eml")
        (pickup / "directory.eml").mkdir()
        (pickup / "directory.eml" / "inner.eml").write_bytes(SIMPLE)
        names = {"symlink.eml", "dangling.eml", "fifo.eml", "directory.eml", "socket.eml"}
        with suppress(PermissionError):  # needs root
            os.mknod(pickup / "device.eml", stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: never ends
            names.add("device.eml")
        with socket.socket(socket.AF_UNIX) as listener:
            where = os.open(pickup, os.O_RDONLY)
            try:
                listener.bind(f"/proc/self/fd/{where}/socket.eml")  # a path of the test may be too long
            finally:
                os.close(where)
            bench.drop("good.eml", SIMPLE)
            result = await bench.drain()
        assert (result["sent"], result["failed"]) == (1, 0)
        assert b"the secret" not in server.messages[0].body
        (alert,) = (await bench.get("/alerts"))["items"]
        assert (alert["code"], alert["messages_affected"]) == ("left_alone", len(names))
        assert alert["remedy"]
        assert set(bench.names()) == names


async def test_a_problem_is_told_as_it_is_now_and_no_more_of_them_than_anybody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cycle_module, "PROBLEMS_KEPT", 3)
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        pickup = bench.paths["pickup"]
        for number in range(8):
            (pickup / f"{number}.eml").mkdir()
        for _ in range(2):
            capsys.readouterr()
            await bench.drain()
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if "left alone" in line and "more" not in line] == [], "told before"
        assert len([line for line in lines if "more left alone" in line and "files=5" in line]) == 1
        for number in range(8):
            (pickup / f"{number}.eml").rmdir()
            (pickup / f"{number}.eml").symlink_to("/nowhere")
        await bench.drain()
        (alert,) = (await bench.get("/alerts"))["items"]
        assert "symbolic link" in alert["detail"]


async def test_a_hard_link_is_reported_and_left(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SmtpServer() as server, running(tmp_path, [account(server)], clock=clock) as bench:
        outside = tmp_path / "outside"
        outside.write_bytes(SIMPLE)
        (bench.paths["pickup"] / "a.eml").hardlink_to(outside)
        for _ in range(3):
            await bench.drain()
            clock.advance(61)
        assert server.messages == []
        alerts = {alert["code"]: alert["detail"] for alert in (await bench.get("/alerts"))["items"]}
        assert "hard link" in alerts["left_alone"]
        outside.unlink()
        await bench.sends(1)


NAMES = {
    r"\xff\xfe.eml": b"\xff\xfe.eml",
    "newline": b"a\nb.eml",
    "<script>": b"<script>alert(1)<x>.eml",
    "X.EML": b"X.EML",
    ".eml": b".eml",
    "240 bytes": b"x" * 236 + b".eml",
}


@pytest.mark.parametrize("what", NAMES)
async def test_an_odd_name_is_sent_and_shown_without_harm(tmp_path: Path, what: str) -> None:
    name = NAMES[what]
    async with (
        SmtpServer(Script(dot=["451 4.3.0 later", None])) as server,
        running(tmp_path, [account(server)]) as bench,
    ):
        path = os.path.join(os.fsencode(bench.paths["pickup"]), name)
        with open(path, "wb") as file:
            file.write(SIMPLE)
        assert (await bench.drain())["deferred"] == 1
        answer = await bench.http.get("/queue/messages")
        assert "\n" not in answer.text
        (queued,) = answer.json()["items"]
        assert (await bench.get(f"/queue/messages/{queued['id']}"))["id"] == queued["id"]
        await bench.sends(1, include_deferred=True)
        assert os.listdir(os.fsencode(bench.paths["pickup"])) == [b".mpu"]


async def test_a_name_of_254_bytes_is_left_and_reported(tmp_path: Path) -> None:
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("x" * 250 + ".eml", SIMPLE)
        bench.drop("good.eml", SIMPLE)
        await bench.sends(1)
        (alert,) = (await bench.get("/alerts"))["items"]
        assert (alert["code"], alert["remedy"]) == ("left_alone", "rename it")
        assert bench.names() == ["x" * 250 + ".eml"]
        assert len(server.messages) == 1


# --- shown to people --------------------------------------------------------------------------------------------------

SUBJECTS = {"<img onerror>": "<img src=x onerror=alert(1)>", r"\x1b[2J": "\x1b[2J\x1b]0;owned\x07", "=cmd()": "=cmd()"}


@pytest.mark.parametrize("what", SUBJECTS)
async def test_a_subject_is_text_wherever_it_is_shown(tmp_path: Path, what: str, capsys: Any) -> None:
    """In JSON that no browser takes for a page, in the log, in the command's output."""
    subject = SUBJECTS[what]
    async with SmtpServer(Script(dot=f"554 5.6.0 {subject}".replace("\x1b", "?"))) as server:
        async with running(tmp_path, [account(server)]) as bench:
            bench.drop("a.eml", mail(1).replace(b"Subject: 1", b"Subject: " + subject.encode()))
            await bench.drain()
            row = (await bench.get("/history"))["items"][0]
            for path in (f"/messages/{row['message_id']}", "/history", "/queue/messages", "/alerts"):
                answer = await bench.http.get(path)
                assert answer.headers["content-type"].startswith("application/json")
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert "\x1b" not in answer.text
            assert (await bench.get(f"/messages/{row['message_id']}"))["subject"].replace("\x1b", "?") in (
                subject.replace("\x1b", "?"),
                subject.replace("\x1b", "\N{REPLACEMENT CHARACTER}"),
            )
            raw = await bench.http.get(f"/queue/messages/{row['message_id']}/raw")
            assert raw.headers["content-type"].startswith("message/rfc822")
            assert raw.headers["x-content-type-options"] == "nosniff"
    logged = capsys.readouterr()
    assert "\x1b[2J" not in logged.out + logged.err
    assert "\x1b]0;" not in logged.out + logged.err
    assert "\x1b" not in str(cell(subject))


async def test_nothing_is_given_out_as_csv_or_as_a_page_with_mail_in_it(tmp_path: Path) -> None:
    """There is no spreadsheet to escape for: JSON, the raw mail, and metrics without addresses are all there is."""
    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        document = await bench.get("/openapi.json")
        kinds = {
            kind
            for path in document["paths"].values()
            for operation in path.values()
            if isinstance(operation, dict)
            for response in operation.get("responses", {}).values()
            for kind in response.get("content", {})
        }
        assert kinds <= {"application/json", "application/problem+json", "message/rfc822", "text/plain"}, kinds


# --- signed -----------------------------------------------------------------------------------------------------------

DKIM = (
    b"DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=example.com; s=s;\r\n"
    b"\th=From : To : Subject; bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n\tb=abc  def==\r\n"
)
SMIME = (
    b'MIME-Version: 1.0\r\nContent-Type: multipart/signed; protocol="application/pkcs7-signature";\r\n'
    b'\tmicalg=sha-256; boundary="b"\r\n\r\npreamble\r\n--b\r\nContent-Type: text/plain\r\n\r\n'
    b".dots  \r\n..two \t\r\n\r\n--b\r\nContent-Type: application/pkcs7-signature\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nMIIB\r\n--b--\r\n"
)
SIGNED = {"DKIM": DKIM + HEAD + b"Date: x\r\n\r\n.body  \r\n\r\n\r\n", "S/MIME": HEAD + b"Date: x\r\n" + SMIME}
HIDDEN = b"X-Sender: shop@example.com\r\nX-Receiver: jo@example.org\r\nBcc: a@b.c,\r\n d@e.f\r\n"


ENDS = {"CRLF": b"\r\n", "LF": b"\n", "CR": b"\r"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", SIGNED)
async def test_signed_mail_is_identical_but_for_line_ends_and_the_removed_headers(
    tmp_path: Path, kind: str, way: str
) -> None:
    path = str(tmp_path / "spool" / "pickup")
    pickup = Directory("pickup", path, ("main",), dot_stuffing=DotStuffing.PLAIN, watch=False)
    async with SmtpServer(Script(extensions=WAYS[way])) as server:
        async with running(tmp_path, [account(server)], pickups=[pickup]) as bench:
            for name, end in ENDS.items():
                bench.drop(f"{name}.eml", (HIDDEN + SIGNED[kind]).replace(b"\r\n", end))
            assert (await bench.drain())["sent"] == len(ENDS)
            assert [taken.body for taken in server.messages] == [SIGNED[kind]] * len(ENDS)
