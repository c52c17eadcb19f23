"""promises.md, "Replies": what a server may say and do, and what becomes of the mail (see tests/promises.toml)."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.domain.account import AuthMethod, Directory, Security
from tests.support.clock import ManualClock
from tests.support.relay import Bench, account, mail, running, until
from tests.support.smtp_faults import RandomFaults
from tests.support.smtp_server import (
    DEFAULT_EXTENSIONS,
    Action,
    Close,
    Hang,
    Raw,
    Script,
    Seq,
    SmtpServer,
    Trickle,
    certificate,
)

WAYS = {
    "plain": ("SIZE 52428800", "8BITMIME"),
    "pipelining": DEFAULT_EXTENSIONS,
    "chunking": (*DEFAULT_EXTENSIONS, "CHUNKING"),
}
BY_DATA = ("plain", "pipelining")
LATER = 7200.0  # behind every back-off and passing pause
BODY_OF_SOME_BLOCKS = (b"x" * 78 + b"\r\n") * 8000
MORE_THAN_THE_NETWORK_HOLDS = BODY_OF_SOME_BLOCKS * 25  # so that its dot can't be out when the server closes


def _script(way: str, **more: Any) -> Script:
    return Script(extensions=WAYS[way], **more)


def _at(where: str, action: Action) -> dict[str, Any]:
    return {where: {"*": action}} if where in ("mail", "rcpt") else {where: action}


async def _queued(bench: Bench) -> dict[str, Any]:
    (message,) = (await bench.get("/queue/messages"))["items"]
    assert isinstance(message, dict)
    return message


def _reason(bench: Bench, name: str = "a.eml") -> str:
    return (bench.paths["pickup"] / "badmail" / f"{name}.reason.txt").read_text()


async def _arrives_later(bench: Bench, clock: ManualClock, server: SmtpServer, count: int = 1) -> None:
    """The server is well again: all of it arrives, each once."""
    server.script = Script()
    server.scripts.clear()
    server.drop()  # a connection keeps the script that it began with
    clock.advance(LATER)
    await bench.http.post("/accounts/main/resume")
    for _ in range(2):  # the first may go on trial alone
        await bench.drain()
    assert len(server.messages) == count
    assert bench.names() == []


# --- recipients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_some_rcpt_250_and_some_550_sends_to_those_taken_and_fails_the_others(tmp_path: Path, way: str) -> None:
    script = _script(way, rcpt={"no@b.example": "550 5.7.1 not for you"})
    async with SmtpServer(script) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1, to="one@b.example, no@b.example, two@b.example"))
        result = await bench.drain()
        assert result["recipients"] == {"sent": 2, "deferred": 0, "failed": 1, "unknown": 0}
        assert [taken.to for taken in server.messages] == [["one@b.example", "two@b.example"]]
        assert bench.names() == ["badmail"]
        assert "not for you" in _reason(bench)


@pytest.mark.parametrize("way", WAYS)
async def test_some_rcpt_450_sends_and_defers_those_only(tmp_path: Path, way: str) -> None:
    clock = ManualClock()
    script = _script(way, rcpt={"late@b.example": ["450 4.2.0 later", None]})
    async with SmtpServer(script) as server, running(tmp_path, [account(server)], clock=clock) as bench:
        bench.drop("a.eml", mail(1, to="one@b.example, late@b.example"))
        result = await bench.drain()
        assert result["recipients"] == {"sent": 1, "deferred": 1, "failed": 0, "unknown": 0}
        clock.advance(LATER)
        await bench.drain()
        assert [taken.to for taken in server.messages] == [["one@b.example"], ["late@b.example"]]
        assert bench.names() == []


@pytest.mark.parametrize("way", WAYS)
async def test_all_rcpt_5xx_means_no_data_and_rset(tmp_path: Path, way: str) -> None:
    script = _script(way, rcpt={"no@b.example": "550 5.1.1 unknown"})
    async with SmtpServer(script) as server, running(tmp_path, [account(server, max_connections=1)]) as bench:
        bench.drop("a.eml", mail(1, to="no@b.example"))
        assert (await bench.drain())["failed"] == 1
        bench.drop("b.eml", mail(2))
        await bench.sends(1)
        assert [taken.to for taken in server.messages] == [["jo@example.org"]]
        verbs = [c.split()[0] for c in server.commands]
        refused = verbs[: len(verbs) - verbs[::-1].index("MAIL") - 1]  # before the second MAIL
        assert "RSET" in refused
        if way == "plain":
            assert "DATA" not in refused
        assert server.accepted == 1


async def test_all_rcpt_refused_but_data_answered_354_sends_a_lone_dot_and_ignores_its_reply(tmp_path: Path) -> None:
    script = Script(data_always=True, rcpt={"no@b.example": "550 5.1.1 unknown"}, dot=["554 5.5.1 no recipients", None])
    async with SmtpServer(script) as server, running(tmp_path, [account(server, max_connections=1)]) as bench:
        bench.drop("a.eml", mail(1, to="no@b.example"))
        result = await bench.drain()
        assert (result["failed"], result["unknown"]) == (1, 0)
        assert await bench.history() == {"no@b.example": "failed"}
        bench.drop("b.eml", mail(2))
        await bench.sends(1)
        assert [(t.to, b"Subject: 2" in t.body) for t in server.messages] == [(["jo@example.org"], True)]
        assert server.accepted == 1


# --- the connection ends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "where"),
    [
        *(("plain", where) for where in ("banner", "ehlo", "mail", "rcpt", "data", "body")),
        *(("pipelining", where) for where in ("rcpt", "data")),
        *(("chunking", where) for where in ("mail", "rcpt", "bdat")),
    ],
)
async def test_421_before_the_dot_closes_defers_and_backs_off_the_account(tmp_path: Path, way: str, where: str) -> None:
    clock = ManualClock()
    closing = Close("421 4.3.2 going down")
    script = _script(way, **({"body": {100: closing}} if where == "body" else _at(where, closing)))
    async with SmtpServer(script) as server, running(tmp_path, [account(server)], clock=clock) as bench:
        for name in ("a.eml", "b.eml"):
            bench.drop(name, mail(1, body=BODY_OF_SOME_BLOCKS))
        result = await bench.drain()
        assert (result["sent"], result["failed"], result["unknown"]) == (0, 0, 0)
        shown = await bench.get("/accounts/main")
        assert shown["pause"]["by"] == "service"
        assert shown["pause"]["until"] is not None
        assert bench.names() == ["a.eml", "b.eml"]
        before = server.accepted
        await bench.drain()
        assert server.accepted == before, "the account rests"
        await _arrives_later(bench, clock, server, 2)
        assert await bench.history() == {"jo@example.org": "sent"}


ENDS: dict[str, Close | Hang | Trickle] = {
    "421": Close("421 4.3.2 going down"),
    "close": Close(),
    "reset": Close(reset=True),
    "half a reply": Close(raw=b"250 2.0"),
    "time-out": Hang(),
    "trickle": Trickle("250 2.0.0 " + "x" * 400, 0.01),
}


@pytest.mark.parametrize(
    ("way", "end", "take"),
    [
        *(("pipelining", end, take) for end in ENDS for take in (True, False)),
        *(("chunking", end, True) for end in ("421", "close", "time-out")),
        ("plain", "close", True),
    ],
)
async def test_421_close_or_time_out_after_the_dot_is_unknown(tmp_path: Path, way: str, end: str, take: bool) -> None:
    clock = ManualClock()
    action = ENDS[end]
    if isinstance(action, Close | Hang):
        action = replace(action, take=take)
    script = _script(way, dot=action)
    settings: dict[str, Any] = {"smtp_dot_timeout_seconds": 0.3}
    async with SmtpServer(script) as server, running(tmp_path, [account(server)], clock=clock, **settings) as bench:
        bench.drop("a.eml", mail(1))
        result = await bench.drain()
        assert (result["sent"], result["unknown"]) == (0, 1)
        queued = await _queued(bench)
        assert (queued["state"], queued["possible_duplicate"], queued["attempts"]) == ("deferred", True, 1)
        assert await bench.history() == {"jo@example.org": "unknown"}
        before = len(server.messages)
        await _arrives_later(bench, clock, server, before + 1)  # a duplicate only where the server had taken it
        assert len({taken.sha256 for taken in server.messages}) == 1, "the same mail, Message-ID and Date too"


@pytest.mark.parametrize(("way", "reset"), [("plain", True), ("pipelining", False)])
@pytest.mark.parametrize("where", ["mail", "rcpt", "data", "body"])
async def test_a_close_before_the_dot_is_a_plain_retry_and_not_unknown(
    tmp_path: Path, way: str, where: str, reset: bool
) -> None:
    clock = ManualClock()
    end = Close(reset=reset)
    script = _script(way, **({"body": {100: end}} if where == "body" else _at(where, end)))
    async with SmtpServer(script) as server, running(tmp_path, [account(server)], clock=clock) as bench:
        bench.drop("a.eml", mail(1, body=MORE_THAN_THE_NETWORK_HOLDS if where == "body" else b"Hello\r\n"))
        result = await bench.drain()
        assert (result["sent"], result["unknown"]) == (0, 0)
        assert (await _queued(bench))["possible_duplicate"] is False
        await _arrives_later(bench, clock, server)
        assert await bench.history() == {"jo@example.org": "sent"}


@pytest.mark.parametrize("way", WAYS)
async def test_a_close_at_any_octet_loses_and_doubles_nothing(tmp_path: Path, way: str) -> None:
    clock = ManualClock()
    async with SmtpServer(_script(way)) as server:
        async with running(tmp_path, [account(server, max_connections=1, messages_per_connection=1)]) as bench:
            bench.drop("whole.eml", mail(0))
            await bench.drain()
            (session,) = server.sessions
            length = sum(len(c) + 2 for c in session.commands) + len(server.messages[0].body) + 5
        server.messages.clear()
        server.accepted = 0
        cuts = list(range(1, length, 17))
        server.scripts = {n: _script(way, close_after=octets) for n, octets in enumerate(cuts)}
        one_each = account(server, max_connections=1, messages_per_connection=1)
        pickup = Directory("pickup", str(tmp_path / "spool" / "pickup"), ("main",), unknown_max=99, watch=False)
        async with running(tmp_path, [one_each], pickups=[pickup], clock=clock) as bench:
            for number in range(len(cuts)):
                bench.drop(f"{number}.eml", mail(number))
            for _ in range(len(cuts) + 2):
                await bench.drain(include_deferred=True)
                await bench.http.post("/accounts/main/resume")
                clock.advance(LATER)
                if not bench.names():
                    break
            assert bench.names() == []
            subjects = Counter(t.body.partition(b"Subject: ")[2].partition(b"\r\n")[0] for t in server.messages)
            assert sorted(subjects) == sorted(b"%d" % n for n in range(len(cuts)))
            assert max(subjects.values()) == 1, "it closed before it took anything"


@pytest.mark.parametrize("way", BY_DATA)
async def test_a_5xx_in_the_middle_of_the_body_followed_by_close_is_read_and_counts(tmp_path: Path, way: str) -> None:
    script = _script(way, body={100_000: Close("554 5.7.1 this is spam")})
    async with SmtpServer(script) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1, body=BODY_OF_SOME_BLOCKS))
        result = await bench.drain()
        assert (result["failed"], result["unknown"], result["deferred"]) == (1, 0, 0)
        assert "this is spam" in _reason(bench)
        assert server.messages == []


# --- what the codes mean ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("reply", "status"), [("451 4.3.0 later", "deferred"), ("554 5.6.0 never", "failed")])
async def test_4xx_and_5xx_after_the_dot_are_for_the_accepted_recipients_only(
    tmp_path: Path, way: str, reply: str, status: str
) -> None:
    script = _script(way, rcpt={"no@b.example": "550 5.1.1 unknown"}, dot=reply)
    async with SmtpServer(script) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1, to="yes@b.example, no@b.example"))
        await bench.drain()
        rows = {row["recipient"]: row for row in (await bench.get("/history"))["items"]}
        assert (rows["yes@b.example"]["status"], rows["yes@b.example"]["code"]) == (status, int(reply[:3]))
        assert (rows["no@b.example"]["status"], rows["no@b.example"]["code"]) == ("failed", 550)
        assert server.messages == []


@pytest.mark.parametrize("where", ["rcpt", "dot"])
@pytest.mark.parametrize(("reply", "status"), [("550 4.2.2 says both", "failed"), ("450 5.1.1 says both", "deferred")])
async def test_code_550_with_enhanced_4xx_the_code_wins(tmp_path: Path, where: str, reply: str, status: str) -> None:
    async with SmtpServer(Script(**_at(where, reply))) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1))
        await bench.drain()
        assert await bench.history() == {"jo@example.org": status}


@pytest.mark.parametrize("where", ["rcpt", "dot"])
@pytest.mark.parametrize(
    ("reply", "status"),
    [("259 what", "sent"), ("251 2.1.5 forwards it", "sent"), ("459 what", "deferred"), ("559 what", "failed")],
)
async def test_an_unknown_code_goes_by_its_first_digit_and_any_2xx_after_the_dot_is_success(
    tmp_path: Path, where: str, reply: str, status: str
) -> None:
    async with SmtpServer(Script(**_at(where, reply))) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1))
        await bench.drain()
        assert await bench.history() == {"jo@example.org": status}
        assert len(server.messages) == (status == "sent")


NONSENSE = {
    "multi-line reply with mixed codes": Raw(b"250-2.0.0 yes\r\n550 5.0.0 no\r\n"),
    "a line over 32 KiB": Raw(b"250 " + b"x" * 40_000 + b"\r\n"),
    "no reply at all": Raw(b"\x00\xffHTTP/1.1 400 Bad Request\r\n"),
}


@pytest.mark.parametrize(
    ("where", "what"),
    [
        *((where, "multi-line reply with mixed codes") for where in ("banner", "ehlo", "mail", "rcpt", "data", "dot")),
        *((where, what) for where in ("mail", "dot") for what in ("a line over 32 KiB", "no reply at all")),
    ],
)
async def test_a_protocol_error_closes_and_the_phase_decides(tmp_path: Path, where: str, what: str) -> None:
    clock = ManualClock()
    script = Script(**_at(where, NONSENSE[what]))
    async with SmtpServer(script) as server, running(tmp_path, [account(server)], clock=clock) as bench:
        bench.drop("a.eml", mail(1))
        result = await bench.drain()
        assert (result["sent"], result["failed"]) == (0, 0)
        assert result["unknown"] == (where == "dot")
        assert (await _queued(bench))["possible_duplicate"] is (where == "dot")
        before = len(server.messages)
        accepted = server.accepted
        await _arrives_later(bench, clock, server, before + 1)
        assert server.accepted > accepted


@pytest.mark.parametrize("surplus", ["250 2.1.0 not asked", "550 5.1.1 not asked"])
@pytest.mark.parametrize("where", ["ehlo", "rset", "mail", "rcpt", "data", "dot"])
async def test_an_unasked_reply_is_never_paired_with_the_next_command(tmp_path: Path, where: str, surplus: str) -> None:
    """Each mail's end is what the server said of it, however many replies it adds.

    Where commands are pipelined no client can tell a surplus reply from an early one, so here they are not.
    """
    clock = ManualClock()
    proper = {"ehlo": "250 server.test\n8BITMIME", "data": "451 4.3.0 later"}.get(where, "250 2.0.0 ok")
    more: dict[str, Any] = {"data": "451 4.3.0 later"} if where == "rset" else {}
    script = _script("plain", **{**more, **_at(where, [Seq([proper, surplus]) for _ in range(3)])})
    async with SmtpServer(script) as server:
        async with running(tmp_path, [account(server, max_connections=1)], clock=clock) as bench:
            for number in range(3):
                bench.drop(f"{number}.eml", mail(number, to=f"u{number}@b.example"))
            for _ in range(8):
                await bench.drain(include_deferred=True)
                await bench.http.post("/accounts/main/resume")
                script.data = script.data if where == "data" else None
                clock.advance(LATER)
            assert await bench.history() == {f"u{n}@b.example": "sent" for n in range(3)}, "no refusal was meant"
            assert bench.names() == []
            assert sorted(r for taken in server.messages for r in taken.to) == [f"u{n}@b.example" for n in range(3)]


async def test_a_surplus_reply_on_a_kept_connection_is_not_the_next_mails(tmp_path: Path) -> None:
    script = Script(dot=[Seq(["250 2.0.0 taken", "550 5.1.1 not asked"]), None])
    async with SmtpServer(script) as server, running(tmp_path, [account(server, max_connections=1)]) as bench:
        for name in ("a.eml", "b.eml"):
            bench.drop(name, mail(1))
            await bench.sends(1)
        assert len(server.messages) == server.accepted == 2


# --- before the first mail --------------------------------------------------------------------------------------------


async def test_ehlo_refused_means_helo(tmp_path: Path) -> None:
    async with SmtpServer(Script(ehlo="502 5.5.1 what is that")) as server:
        async with running(tmp_path, [account(server)]) as bench:
            bench.drop("a.eml", mail(1))
            await bench.sends(1)
            assert [c.split()[0] for c in server.commands][:3] == ["EHLO", "HELO", "MAIL"]


NEEDS = {
    "TLS": {"security": Security.STARTTLS, "host": "localhost"},
    "login": {"auth": AuthMethod.AUTO, "username": "u", "password": "p"},
}


@pytest.mark.parametrize("needed", NEEDS)
async def test_ehlo_refused_where_tls_or_login_is_required_is_a_passing_account_fault(
    tmp_path: Path, needed: str
) -> None:
    async with SmtpServer(Script(ehlo="502 5.5.1 what is that"), context=certificate()[1]) as server:
        async with running(tmp_path, [account(server, **NEEDS[needed])]) as bench:
            bench.drop("a.eml", mail(1))
            await bench.drain()
            pause = (await bench.get("/accounts/main"))["pause"]
            assert pause["code"] == "ehlo_refused"
            assert pause["until"] is not None
            assert (await _queued(bench))["attempts"] == 0
            assert not any(c.startswith(("MAIL", "AUTH", "HELO")) for c in server.commands)


STARTTLS_FAULTS = {
    "missing": (Script(hide={"STARTTLS"}), "starttls_missing"),
    "refused": (Script(starttls="454 4.7.0 no TLS now"), "starttls_refused"),
    "refused for good": (Script(starttls="502 5.5.1 what"), "starttls_refused"),
    "injected": (Script(starttls_inject=b"250 2.0.0 for later\r\n"), "starttls_injection"),
    "injected a part": (Script(starttls_inject=b"2"), "starttls_injection"),
}


async def _never_plain(tmp_path: Path, script: Script, code: str) -> None:
    authority, context = certificate()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    server = SmtpServer(script, context=context, credentials={"u": "secret"}, mechanisms=["PLAIN"])
    async with server:
        value = account(
            server,
            host="localhost",
            security=Security.STARTTLS,
            auth=AuthMethod.AUTO,
            username="u",
            password="secret",
            tls_ca_file=str(ca_file),
        )
        async with running(tmp_path, [value]) as bench:
            bench.drop("a.eml", mail(1))
            result = await bench.drain()
            assert (result["sent"], result["failed"]) == (0, 0)
            assert (await bench.get("/accounts/main"))["pause"]["code"] == code
            assert [a["code"] for a in (await bench.get("/alerts"))["items"]] == [code]
            queued = await _queued(bench)
            assert (queued["state"], queued["attempts"]) == ("waiting", 0)
            assert not any(c.startswith(("MAIL", "AUTH")) for c in server.commands), "nothing goes in clear"
            assert server.logins == []


@pytest.mark.parametrize("what", ["missing", "refused", "refused for good"])
async def test_starttls_missing_or_refused_is_an_account_fault_and_never_plain(tmp_path: Path, what: str) -> None:
    await _never_plain(tmp_path, *STARTTLS_FAULTS[what])


@pytest.mark.parametrize("what", ["injected", "injected a part"])
async def test_bytes_buffered_behind_the_220_of_starttls_abort(tmp_path: Path, what: str) -> None:
    await _never_plain(tmp_path, *STARTTLS_FAULTS[what])


LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
CERTIFICATES: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "wrong": (("other.example",), {}, "certificate_wrong_host"),
    "expired": (
        ("localhost",),
        {"not_before": LONG_AGO, "not_after": LONG_AGO.replace(year=2021)},
        "certificate_expired",
    ),
}


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("what", CERTIFICATES)
async def test_a_certificate_wrong_or_expired_is_an_account_fault_with_an_alert(
    tmp_path: Path, what: str, implicit: bool
) -> None:
    names, options, code = CERTIFICATES[what]
    authority, context = certificate(*names, **options)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    async with SmtpServer(context=context, implicit_tls=implicit) as server:
        security = Security.TLS if implicit else Security.STARTTLS
        value = account(server, host="localhost", security=security, tls_ca_file=str(ca_file))
        async with running(tmp_path, [value]) as bench:
            bench.drop("a.eml", mail(1))
            await bench.drain()
            (alert,) = (await bench.get("/alerts"))["items"]
            assert (alert["code"], alert["account"], alert["blame"]) == (code, "main", "account")
            assert alert["remedy"]
            assert (await _queued(bench))["attempts"] == 0
            assert not any(c.startswith("MAIL") for c in server.commands)


# --- what the server can't take ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_larger_than_size_is_5_3_4_locally_before_mail(tmp_path: Path, way: str) -> None:
    extensions = ["SIZE 2000" if word.startswith("SIZE") else word for word in WAYS[way]]
    async with SmtpServer(Script(extensions=extensions)) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1, body=b"x\r\n" * 2000))
        bench.drop("b.eml", mail(2))
        result = await bench.drain()
        assert (result["sent"], result["failed"]) == (1, 1)
        assert "5.3.4" in _reason(bench)
        assert sum(c.startswith("MAIL") for c in server.commands) == 1


EIGHT_BIT = "Grüße aus Köln\r\n".encode()


async def test_no_8bitmime_and_an_8_bit_body_is_re_encoded(tmp_path: Path) -> None:
    head = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
    async with SmtpServer(Script(hide={"8BITMIME"})) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", mail(1).replace(b"\r\n\r\nHello\r\n", b"\r\n" + head + b"\r\n" + EIGHT_BIT))
        bench.drop("binary.eml", mail(2, body=bytes(range(128, 256)) * 4 + b"\r\n"))
        await bench.sends(2)
        text = next(t.body for t in server.messages if b"Subject: 1\r\n" in t.body)
        assert all(taken.body.isascii() for taken in server.messages)
        assert b"Content-Transfer-Encoding: quoted-printable" in text
        assert b"Gr=C3=BC=C3=9Fe aus K=C3=B6ln" in text
        assert "8BITMIME" not in " ".join(server.commands)


async def test_no_8bitmime_and_an_8_bit_body_that_cannot_be_re_encoded_fails_5_6_3(tmp_path: Path) -> None:
    signed = b"DKIM-Signature: v=1; d=example.com; h=from; b=abc\r\n" + mail(1, body=EIGHT_BIT)
    async with SmtpServer(Script(hide={"8BITMIME"})) as server, running(tmp_path, [account(server)]) as bench:
        bench.drop("a.eml", signed)
        assert (await bench.drain())["failed"] == 1
        assert "5.6.3" in _reason(bench)
        assert server.messages == []


async def test_no_smtputf8_and_a_non_ascii_local_part_fails_5_6_7(tmp_path: Path) -> None:
    async with SmtpServer(Script(hide={"SMTPUTF8"})) as server, running(tmp_path, [account(server)]) as bench:
        data = "X-Sender: a@b.example\r\nX-Receiver: jörg@b.example\r\nX-Receiver: jo@b.example\r\n".encode() + mail(1)
        bench.drop("a.eml", data)
        result = await bench.drain()
        assert result["recipients"] == {"sent": 1, "deferred": 0, "failed": 1, "unknown": 0}
        rows = {row["recipient"]: row for row in (await bench.get("/history"))["items"]}
        assert rows["jörg@b.example"]["enhanced_code"] == "5.6.7"
        assert [taken.to for taken in server.messages] == [["jo@b.example"]]


async def test_an_internationalised_domain_alone_becomes_its_a_label(tmp_path: Path) -> None:
    async with SmtpServer(Script(hide={"SMTPUTF8"})) as server, running(tmp_path, [account(server)]) as bench:
        data = "X-Sender: a@b.example\r\nX-Receiver: jo@köln.example\r\n".encode() + mail(1)
        bench.drop("a.eml", data)
        await bench.sends(1)
        assert [taken.to for taken in server.messages] == [["jo@xn--kln-sna.example"]]


async def test_bdat_refused_stops_the_chunks_and_resets(tmp_path: Path) -> None:
    script = _script("chunking", bdat=["552 5.3.4 too much", None])
    async with SmtpServer(script) as server, running(tmp_path, [account(server, max_connections=1)]) as bench:
        bench.drop("a.eml", mail(1, body=BODY_OF_SOME_BLOCKS * 6))
        result = await bench.drain()
        assert (result["failed"], result["unknown"]) == (1, 0)
        assert "too much" in _reason(bench)
        bench.drop("b.eml", mail(2))
        await bench.sends(1)
        verbs = [" ".join(c.split()[::2]) if c.startswith("BDAT") else c.split()[0] for c in server.commands]
        first = verbs[: verbs.index("RSET")]
        assert "BDAT LAST" not in first
        assert [t.to for t in server.messages] == [["jo@example.org"]]


async def test_a_kept_connection_dead_at_mail_reconnects_once_and_counts_no_attempt(tmp_path: Path) -> None:
    script = Script(mail={"*": [None, Close()]})
    async with SmtpServer(script) as server, running(tmp_path, [account(server, max_connections=1)]) as bench:
        bench.drop("a.eml", mail(1))
        await bench.sends(1)
        bench.drop("b.eml", mail(2))
        result = await bench.drain()
        assert (result["sent"], result["deferred"], result["unknown"]) == (1, 0, 0)
        assert server.accepted == 2
        assert len(server.messages) == 2
        row = (await bench.get("/history"))["items"][0]
        life = await bench.get(f"/messages/{row['message_id']}")
        assert [a["outcome"] for a in life["attempts"]] == ["sent"]


@pytest.mark.parametrize("silence", [Hang(), Close()], ids=["hangs", "closes"])
async def test_quit_unanswered_is_ignored(tmp_path: Path, silence: Action) -> None:
    async with SmtpServer(Script(quit=silence)) as server:
        every = account(server, max_connections=1, messages_per_connection=1)
        async with running(tmp_path, [every], smtp_quit_timeout_seconds=0.2) as bench:
            for number in range(3):
                bench.drop(f"{number}.eml", mail(number))
            await bench.sends(3)
            assert (await bench.get("/accounts/main"))["pause"] is None
            await until(lambda: server.commands.count("QUIT") == 3, "QUIT")


# --- everything at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "seed"), [("plain", 2), ("pipelining", 1), ("chunking", 1)])
async def test_faults_at_random_lose_nothing_and_double_only_what_was_unknown(
    tmp_path: Path, way: str, seed: int
) -> None:
    """The server's ledger against the history, recipient by recipient."""
    clock = ManualClock()
    everywhere = frozenset({"accept", "banner", "ehlo", "mail", "data", "rset", "dot"})
    faults = RandomFaults(seed, rate=0.15, places=everywhere, surplus=way == "plain")
    count, per_mail = 30, 3
    async with SmtpServer(_script(way), faults=faults) as server:
        pickup = Directory("pickup", str(tmp_path / "spool" / "pickup"), ("main",), unknown_max=99, watch=False)
        busy = account(server, max_connections=4)
        async with running(tmp_path, [busy], pickups=[pickup], clock=clock) as bench:
            for number in range(count):
                to = ", ".join(f"u{number}-{n}@b.example" for n in range(per_mail))
                bench.drop(f"{number}.eml", mail(number, to=to))
            for _ in range(60):
                await bench.drain(include_deferred=True)
                if not [n for n in bench.names() if n != "badmail"]:
                    break
                clock.advance(LATER)
                await bench.http.post("/accounts/main/resume")
            assert [n for n in bench.names() if n != "badmail"] == []
            arrived = Counter(r for taken in server.messages for r in taken.to)
            rows = (await bench.get("/history", limit=500))["items"]
            assert len(rows) == count * per_mail
            unknown = await _unknown(bench, {row["message_id"] for row in rows})
            for row in rows:
                mailbox = row["recipient"]
                refused = faults.verdict(mailbox) == "refused"
                assert row["status"] == ("failed" if refused else "sent"), (mailbox, faults.made)
                assert bool(arrived[mailbox]) is not refused, f"{mailbox} is lost"
                assert arrived[mailbox] <= 1 + unknown[mailbox], f"{mailbox} got it {arrived[mailbox]} times"
            assert sum(faults.made.values()) > 15, "a run without faults shows nothing"


async def _unknown(bench: Bench, messages: set[str]) -> Counter[str]:
    """How often each recipient's outcome was unknown."""
    found: Counter[str] = Counter()
    for message in messages:
        for attempt in (await bench.get(f"/messages/{message}"))["attempts"]:
            if attempt["outcome"] == "unknown":
                found.update(attempt["recipients"])
    return found
