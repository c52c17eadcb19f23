"""From a target to a connection that may send: what each fault on the way is called, and that nothing goes in clear."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from core.domain.account import AuthMethod, Security
from core.domain.reply import Phase
from core.smtp.dial import dial
from core.smtp.dialogue import ConnectFailed, Target, Timeouts
from core.smtp.pool import Pool
from tests.support.smtp_mail import MAIL, SHORT, GivenTokens, Told, target
from tests.support.smtp_server import Close, Hang, Raw, Script, SmtpServer, Trickle, certificate

SECRET = "pässwort-7Q"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ssl.SSLContext, trustme.CA]:
    authority, context = certificate()
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return str(file), context, authority


@contextlib.asynccontextmanager
async def pool_to(goal: Target, **options: Any) -> AsyncIterator[Pool]:
    pool = Pool(goal, **options)
    try:
        yield pool
    finally:
        pool.abort()
        await asyncio.sleep(0)


async def failure(goal: Target) -> ConnectFailed:
    async with pool_to(goal) as pool:
        with pytest.raises(ConnectFailed) as caught:
            await pool.turn()
    return caught.value


async def sends(goal: Target) -> str | None:
    """Send one message; what protected it."""
    async with pool_to(goal) as pool:
        turn = await pool.turn()
        result = await turn.send(Told().transaction)
        assert result.final_reply is not None
        assert result.final_reply.code == 250
        return turn.tls


# --- before TLS and login ---------------------------------------------------------------------------------------------

REFUSALS: list[tuple[dict[str, Any], Phase, str, int | None]] = [
    ({"banner": "554 5.7.1 go away"}, Phase.BANNER, "banner_refused", 554),
    ({"banner": "421 4.3.2 too many connections"}, Phase.BANNER, "banner_refused", 421),
    ({"banner": Close("421 4.3.2 bye")}, Phase.BANNER, "banner_refused", 421),
    ({"banner": Hang()}, Phase.BANNER, "timeout", None),
    ({"banner": Trickle("220 " + "slow" * 50, 0.01)}, Phase.BANNER, "timeout", None),
    ({"banner": Raw(b"SSH-2.0-OpenSSH_9.2\r\n")}, Phase.BANNER, "protocol_error", None),
    ({"banner": Raw(b"220-a\r\n554 b\r\n")}, Phase.BANNER, "protocol_error", None),
    ({"at_accept": Close()}, Phase.BANNER, "closed", None),
    ({"at_accept": Close(reset=True)}, Phase.BANNER, "closed", None),
    ({"ehlo": "421 4.3.2 bye"}, Phase.EHLO, "ehlo_refused", 421),
    ({"ehlo": "451 4.3.0 later"}, Phase.EHLO, "ehlo_refused", 451),
    ({"ehlo": "502 what", "helo": "550 no"}, Phase.EHLO, "ehlo_refused", 550),
    ({"ehlo": Close()}, Phase.EHLO, "closed", None),
    ({"ehlo": Hang()}, Phase.EHLO, "timeout", None),
    ({"ehlo": "354 what"}, Phase.EHLO, "protocol_error", None),
]


@pytest.mark.parametrize(("script", "phase", "code", "reply"), REFUSALS)
async def test_refusals_on_the_way(script: dict[str, Any], phase: Phase, code: str, reply: int | None) -> None:
    async with SmtpServer(Script(**script)) as server:
        failed = await failure(target(server, timeouts=SHORT))
    assert (failed.phase, failed.code) == (phase, code)
    assert (failed.reply and failed.reply.code) == reply
    assert server.accepted == 1, "tried once"


async def test_a_closed_port_and_a_name_that_is_not() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    failed = await failure(Target("127.0.0.1", port, security=Security.NONE))
    assert (failed.phase, failed.code) == (Phase.CONNECT, "connect_failed")
    for name in ("no-such-host.invalid", "a" * 70 + ".invalid", "a..b"):
        failed = await failure(Target(name, 25, security=Security.NONE))
        assert (failed.phase, failed.code) == (Phase.DNS, "dns_failed")


async def test_a_name_that_resolves_to_a_private_address_is_not_connected_to_where_these_are_forbidden() -> None:
    async with SmtpServer() as server:
        failed = await failure(target(server, host="localhost", allow_private=False))
        assert (failed.phase, failed.code) == (Phase.CONNECT, "target_forbidden")
        assert server.accepted == 0


async def test_a_server_that_does_not_answer_the_syn() -> None:
    with socket.socket() as sock, socket.socket() as filler:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        filler.setblocking(False)
        filler.connect_ex(sock.getsockname())
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(sock.getsockname())
        failed = await failure(Target("127.0.0.1", sock.getsockname()[1], security=Security.NONE, timeouts=SHORT))
        for other in others:
            other.close()
    assert (failed.phase, failed.code) == (Phase.CONNECT, "connect_timeout")


async def test_helo_where_ehlo_is_refused() -> None:
    async with SmtpServer(Script(ehlo="502 5.5.1 what")) as server:
        assert await sends(target(server)) is None
        assert [line.split()[0] for line in server.commands[:5]] == ["EHLO", "HELO", "MAIL", "RCPT", "DATA"]


async def test_no_helo_where_a_login_or_tls_is_needed(tls: tuple[str, ssl.SSLContext, trustme.CA]) -> None:
    async with SmtpServer(Script(ehlo="502 5.5.1 what"), context=tls[1]) as server:
        for options in ({"username": "u", "password": "p"}, {"security": Security.STARTTLS}):
            failed = await failure(target(server, **options))
            assert (failed.phase, failed.code) == (Phase.EHLO, "ehlo_refused")
        assert {line.split()[0] for line in server.commands} == {"EHLO", "QUIT"}


@pytest.mark.parametrize(
    ("name", "said"),
    [("relay.example.org", "relay.example.org"), ("two words", "[127.0.0.1]"), ("x\r\nRSET", "[127.0.0.1]")],
)
async def test_the_name_in_the_greeting(name: str, said: str) -> None:
    async with SmtpServer() as server:
        await sends(target(server, helo_name=name))
        assert server.commands[0] == f"EHLO {said}"


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_mail_goes_under_tls_on_either_loop(
    tls: tuple[str, ssl.SSLContext, trustme.CA], security: Security, host: str
) -> None:
    async def scenario() -> None:
        async with SmtpServer(context=tls[1], implicit_tls=security is Security.TLS) as server:
            found = await sends(target(server, host=host, security=security, ca_file=tls[0]))
            assert found is not None
            assert found.startswith("TLSv1.3 TLS_")
            assert server.sessions[0].encrypted
            body = b".0123456789abcdef\r\n" * 150_000
            async with pool_to(target(server, host=host, security=security, ca_file=tls[0])) as pool:
                turn = await pool.turn()
                result = await turn.send(Told(body=body).transaction)
                assert result.failure is None
            assert [message.size for message in server.messages] == [len(MAIL), len(body)]
            assert server.messages[1].body == body

    asyncio.run(scenario())
    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("script", "code", "reply"),
    [
        ({"hide": {"STARTTLS"}}, "starttls_missing", None),
        ({"starttls": "454 4.7.0 not now"}, "starttls_refused", 454),
        ({"starttls": "502 5.5.1 what"}, "starttls_refused", 502),
        ({"starttls": Close()}, "closed", None),
        ({"starttls": Hang()}, "timeout", None),
        ({"starttls_inject": b"250 injected\r\n"}, "starttls_injection", None),
        ({"starttls_inject": b"2"}, "starttls_injection", None),
    ],
)
async def test_without_starttls_nothing_is_sent(
    tls: tuple[str, ssl.SSLContext, trustme.CA], script: dict[str, Any], code: str, reply: int | None
) -> None:
    credentials = {"u": SECRET}
    async with SmtpServer(Script(**script), context=tls[1], mechanisms=["PLAIN"], credentials=credentials) as server:
        goal = target(server, security=Security.STARTTLS, ca_file=tls[0], username="u", password=SECRET, timeouts=SHORT)
        failed = await failure(goal)
        assert (failed.phase, failed.code) == (Phase.STARTTLS, code)
        assert (failed.reply and failed.reply.code) == reply
        assert {line.split()[0] for line in server.commands} <= {"EHLO", "STARTTLS", "QUIT"}
        assert not server.logins


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
async def test_certificates_that_are_not_taken(
    tls: tuple[str, ssl.SSLContext, trustme.CA], security: Security, tmp_path: Path
) -> None:
    ca_file, good, authority = tls
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    _, expired = certificate(authority=authority, not_after=past)
    _, other_host = certificate("mx.example.org", authority=authority)
    _, other_authority = certificate()
    for context, code in (
        (expired, "certificate_expired"),
        (other_host, "certificate_wrong_host"),
        (other_authority, "certificate_untrusted"),
    ):
        async with SmtpServer(context=context, implicit_tls=security is Security.TLS) as server:
            failed = await failure(target(server, security=security, ca_file=ca_file))
            assert (failed.phase, failed.code) == (Phase.TLS, code)
            assert not server.messages
    async with SmtpServer(context=good, implicit_tls=security is Security.TLS) as server:
        failed = await failure(target(server, security=security))
        assert failed.code == "certificate_untrusted", "the system's authorities don't know this one"
        failed = await failure(target(server, security=security, ca_file=str(tmp_path / "missing.pem")))
        assert (failed.phase, failed.code) == (Phase.TLS, "tls_failed")


async def test_no_tls_where_it_is_expected(tls: tuple[str, ssl.SSLContext, trustme.CA]) -> None:
    async with SmtpServer() as server:
        failed = await failure(target(server, security=Security.TLS, ca_file=tls[0], timeouts=SHORT))
        assert (failed.phase, failed.code) == (Phase.TLS, "tls_failed")


# --- login ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [True, False])
@pytest.mark.parametrize("method", [AuthMethod.PLAIN, AuthMethod.LOGIN, AuthMethod.CRAM_MD5, AuthMethod.XOAUTH2])
async def test_logins(tls: tuple[str, ssl.SSLContext, trustme.CA], method: AuthMethod, secure: bool) -> None:
    mechanisms = ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"]
    server = SmtpServer(
        context=tls[1],
        mechanisms=mechanisms,
        credentials={"jörg": SECRET},
        tokens={"jörg": SECRET},
        auth_in_clear=not secure,
        require_auth=True,
    )
    security = Security.STARTTLS if secure else Security.NONE
    async with server:
        options: dict[str, Any] = {"security": security, "ca_file": tls[0], "auth": method, "username": "jörg"}
        await sends(target(server, password=SECRET, token=GivenTokens(SECRET), **options))
        assert [(t.mechanism, t.user, t.ok, t.encrypted) for t in server.logins] == [
            (method.value.upper(), "jörg", True, secure)
        ]
        failed = await failure(target(server, password="wrong", token=GivenTokens("wrong"), **options))
        assert (failed.phase, failed.code) == (Phase.AUTH, "login_refused")
        assert failed.reply is not None
        assert failed.reply.enhanced_code == "5.7.8"
        assert SECRET not in str(failed)
        assert SECRET not in repr(target(server, password=SECRET, **options))


@pytest.mark.parametrize(
    ("options", "script", "code"),
    [
        ({"auth": AuthMethod.XOAUTH2, "token": GivenTokens("t")}, {}, "login_not_offered"),
        ({}, {"ehlo": "250 server.test"}, "login_not_offered"),
        ({}, {"auth": "454 4.7.0 too many login attempts"}, "login_deferred"),
        ({}, {"auth": "535 5.7.139 basic authentication is disabled"}, "login_refused"),
        ({}, {"auth": Close()}, "closed"),
        ({}, {"auth": Hang()}, "timeout"),
        ({}, {"auth": "354 what"}, "protocol_error"),
        ({}, {"auth": "250 2.0.0 ok"}, "protocol_error"),
        ({}, {"auth": "200 welcome"}, "protocol_error"),
        ({"auth": AuthMethod.CRAM_MD5}, {"auth": "334 not base64!"}, "protocol_error"),
    ],
)
async def test_logins_that_fail(options: dict[str, Any], script: dict[str, Any], code: str) -> None:
    async with SmtpServer(Script(**script), mechanisms=["PLAIN", "CRAM-MD5"], credentials={"u": SECRET}) as server:
        failed = await failure(target(server, **{"username": "u", "password": SECRET, "timeouts": SHORT, **options}))
        assert (failed.phase, failed.code) == (Phase.AUTH, code)
        assert SECRET not in str(failed)


async def test_a_token_that_can_not_be_had() -> None:
    broken = GivenTokens(OSError("the token endpoint is down"))
    async with SmtpServer(mechanisms=["XOAUTH2"]) as server:
        failed = await failure(target(server, username="u", token=broken))
        assert (failed.phase, failed.code) == (Phase.AUTH, "token_failed")
        assert not server.logins


@pytest.mark.parametrize(
    ("tokens", "auth", "told", "ok"),
    [
        (GivenTokens("old", "new", again=True), None, ["refused old", "accepted new"], True),
        (GivenTokens("old", "older", "new", again=True), None, ["refused old", "refused older"], False),
        (GivenTokens("old", "new", again=False), None, ["refused old"], False),
        (GivenTokens("new", again=True), "454 4.7.0 later", [], False),
        (GivenTokens("new", again=True), "534 5.7.9 by browser", [], False),
        (GivenTokens("new", again=True), Close("535 5.7.3 no"), ["refused new", "refused new"], False),
    ],
)
async def test_a_refused_token_is_replaced_once(tokens: GivenTokens, auth: Any, told: list[str], ok: bool) -> None:
    phases: list[Phase] = []
    script = Script(auth=lambda _session, _argument: auth) if auth else Script()
    async with SmtpServer(script, mechanisms=["XOAUTH2"], tokens={"u": "new"}) as server:
        try:
            made = await dial(
                target(server, username="u", token=tokens), None, lambda _: None, lambda p, _: phases.append(p)
            )
        except ConnectFailed:
            assert not ok
        else:
            assert ok
            made.abort()
        assert tokens.told == told
        assert len(server.logins) == max(len(told), 1)
        assert len(set(phases)) == len(phases), "each is told once"


async def test_no_login_in_clear_but_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.smtp.dial._is_loopback", lambda _: False)
    async with SmtpServer(mechanisms=["PLAIN"], credentials={"u": SECRET}) as server:
        failed = await failure(target(server, username="u", password=SECRET))
        assert (failed.phase, failed.code) == (Phase.AUTH, "plaintext_login_refused")
        assert [line.split()[0] for line in server.commands] == ["EHLO", "QUIT"]
        await sends(target(server, username="u", password=SECRET, allow_plaintext_login=True))


# --- one try ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waiters", [1, 20])
async def test_a_refused_login_is_tried_once_for_all_who_wait(waiters: int) -> None:
    async with SmtpServer(mechanisms=["PLAIN"], credentials={"u": SECRET}) as server:
        async with pool_to(target(server, username="u", password="wrong"), max_connections=10) as pool:
            found = await asyncio.gather(*(pool.turn() for _ in range(waiters)), return_exceptions=True)
        assert len(server.logins) == server.accepted == 1
        assert all(isinstance(error, ConnectFailed) and error.code == "login_refused" for error in found)
        assert len({id(error) for error in found}) == waiters, "each has its own, with its own traceback"


async def test_a_login_without_a_password_bothers_no_server() -> None:
    async with SmtpServer(credentials={"u": "p"}) as server:
        failed = await failure(target(server, auth=AuthMethod.AUTO, username="u", password=None))
        assert (failed.phase, failed.code) == (Phase.AUTH, "password_missing")
        assert server.accepted == 0


@pytest.mark.parametrize(
    ("first", "served"),
    [
        (Script(at_accept=Close()), True),
        (Script(banner=Raw(b"what?\r\n")), True),
        (Script(ehlo=Close()), True),
        (Script(banner="554 5.7.1 no"), False),  # its word counts for all of them
    ],
)
async def test_the_next_address_is_tried_where_the_first_does_not_serve(
    monkeypatch: pytest.MonkeyPatch, first: Script, served: bool
) -> None:
    """RFC 5321 section 5.1."""
    async with SmtpServer(first) as bad, SmtpServer(host="127.0.0.2", port=bad.port) as good:

        async def both(*_: object, **__: object) -> list[tuple[Any, ...]]:
            found = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
            return [(*found, (host, bad.port)) for host in ("127.0.0.1", "127.0.0.2")]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
        goal = target(bad)
        if served:
            connection = await dial(goal, None, lambda _: None)
            connection.abort()
            assert (bad.accepted, good.accepted) == (1, 1)
        else:
            with pytest.raises(ConnectFailed, match="refused"):
                await dial(goal, None, lambda _: None)
            assert (bad.accepted, good.accepted) == (1, 0)


async def test_a_login_that_takes_too_long_names_how_far_it_came() -> None:
    async with SmtpServer(Script(ehlo=Hang())) as server:
        with pytest.raises(ConnectFailed, match="the last that went well: banner") as caught:
            await dial(target(server, timeouts=Timeouts(login_seconds=0.2)), None, lambda _: None)
        assert (caught.value.phase, caught.value.code) == (Phase.EHLO, "timeout")
