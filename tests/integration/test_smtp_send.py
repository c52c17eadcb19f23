"""Messages through a pool to a scripted server on a real socket: what arrives, and what faults mean."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvloop

from core.domain.account import Security
from core.domain.reply import Phase, Reply
from core.smtp.dialogue import FailureKind, Target, Timeouts, TransactionResult
from core.smtp.pool import Pool
from tests.support.relay import until
from tests.support.smtp_mail import MAIL, SHORT, Octets, To, Told, target
from tests.support.smtp_server import (
    DEFAULT_EXTENSIONS,
    Action,
    Close,
    Hang,
    Late,
    Raw,
    Script,
    Session,
    Silent,
    SmtpServer,
    Trickle,
    Twice,
)

CHUNKING = (*DEFAULT_EXTENSIONS, "CHUNKING")
BASIC = ("SIZE 52428800", "8BITMIME", "DSN")
WAYS = {"data": DEFAULT_EXTENSIONS, "chunking": CHUNKING, "basic": BASIC}


@contextlib.asynccontextmanager
async def pool_to(server: SmtpServer, timeouts: Timeouts | None = None, **options: Any) -> AsyncIterator[Pool]:
    options.setdefault("max_connections", 1)
    pool = Pool(target(server, timeouts=timeouts or Timeouts()), **options)
    try:
        yield pool
    finally:
        pool.abort()
        await asyncio.sleep(0)


async def send(pool: Pool, told: Told) -> TransactionResult:
    turn = await pool.turn()
    return await turn.send(told.transaction)


def codes(result: TransactionResult) -> list[int | None]:
    return [code(reply) for reply in result.rcpt_replies]


def code(reply: Reply | None) -> int | None:
    return None if reply is None else reply.code


BODIES = {
    "small": MAIL,
    "empty": b"",
    "only a dot": b".\r\n",
    "dots at block edges": (b"x" * 62 + b"\r\n" + b".y" * 31 + b"\r\n.\r\n") * 5000,
    "over 256 KiB": b"".join(b".%d\r\n" % n for n in range(60_000)),
    "over 1 MiB": b"".join(b"%d\r\n.\r\n" % n for n in range(180_000)),
    "8-bit": "Grüße\r\n".encode(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("body", "block"),
    [(name, block) for name in BODIES for block in (64, 262_144) if len(BODIES[name]) // block < 5000],
)
async def test_the_body_arrives_octet_by_octet(way: str, body: str, block: int) -> None:
    octets = BODIES[body]
    async with SmtpServer(Script(extensions=WAYS[way])) as server, pool_to(server) as pool:
        for _ in range(2):  # fresh, then kept
            told = Told("b@example.org", body=octets)
            told.transaction.body = Octets(octets, block=block)
            result = await send(pool, told)
            assert result.failure is None
            assert code(result.final_reply) == 250
            assert told.begun == [["b@example.org"]]
            assert told.results == [result]
        assert [message.body for message in server.messages] == [octets, octets]


@pytest.mark.parametrize("way", WAYS)
async def test_refused_recipients_leave_the_others(way: str) -> None:
    async with SmtpServer(Script(extensions=WAYS[way])) as server, pool_to(server) as pool:
        server.script.rcpt = {"no@x.org": "550 5.1.1 no such user", "later@x.org": "450 4.2.1 later"}
        told = Told("a@x.org", "no@x.org", "b@x.org", "later@x.org")
        result = await send(pool, told)
        assert codes(result) == [250, 550, 250, 450]
        assert code(result.final_reply) == 250
        assert result.failure is None
        assert server.messages[0].to == ["a@x.org", "b@x.org"]
        if way != "chunking":
            assert told.begun == [["a@x.org", "b@x.org"]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("refused", ["mail", "rcpt", "354"])
async def test_a_refused_envelope_does_not_spoil_the_next_message(way: str, refused: str) -> None:
    async with SmtpServer(Script(extensions=WAYS[way])) as server, pool_to(server) as pool:
        server.script.data_always = refused == "354"
        server.script.rcpt["no@x.org"] = "550 5.1.1 no such user"
        server.script.mail["no@x.org"] = "550 5.7.60 not you"
        bad = Told("b@x.org", sender="no@x.org") if refused == "mail" else Told("no@x.org", sender="first@x.org")
        results = await asyncio.gather(send(pool, bad), send(pool, Told("ok@x.org", sender="second@x.org")))
        assert results[0].failure is None
        assert results[0].final_reply is None
        assert not results[0].dot_sent
        if refused == "mail":
            assert code(results[0].mail_reply) == 550
            assert codes(results[0]) == [None]
        else:
            assert codes(results[0]) == [550]
        assert code(results[1].final_reply) == 250
        assert [(message.sender, message.to) for message in server.messages] == [("second@x.org", ["ok@x.org"])]
        assert server.accepted == 1


async def test_data_refused() -> None:
    async with SmtpServer() as server, pool_to(server) as pool:
        server.script.data = ["451 4.3.0 not now"]
        result = await send(pool, Told())
        assert code(result.data_reply) == 451
        assert result.final_reply is None
        assert result.failure is None
        assert code((await send(pool, Told())).final_reply) == 250
        assert server.accepted == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reply", ["554 5.6.0 no", "451 4.3.0 later", "251 2.0.0 fine too", "299 odd", "560 odd"])
async def test_the_verdict_is_the_first_digits(way: str, reply: str) -> None:
    async with SmtpServer(Script(extensions=WAYS[way])) as server, pool_to(server) as pool:
        server.script.dot = [reply]
        result = await send(pool, Told())
        assert result.failure is None
        assert code(result.final_reply) == int(reply[:3])
        assert code((await send(pool, Told())).final_reply) == 250
        assert server.accepted == 1


def scripted(where: str, action: Action) -> dict[str, Any]:
    return {where: {"*": action}} if where in ("mail", "rcpt") else {where: action}


# where, action, the phase and kind of the failure, whether it is unknown (way "data", a connection just made)
FAULTS: list[tuple[str, Action, Phase, FailureKind, bool]] = [
    ("mail", Hang(), Phase.MAIL, FailureKind.TIMEOUT, False),
    ("rcpt", Hang(), Phase.RCPT, FailureKind.TIMEOUT, False),
    ("data", Hang(), Phase.DATA, FailureKind.TIMEOUT, False),
    ("dot", Hang(), Phase.DOT, FailureKind.TIMEOUT, True),
    ("mail", Close(), Phase.MAIL, FailureKind.CLOSED, False),
    ("rcpt", Close(), Phase.RCPT, FailureKind.CLOSED, False),
    ("data", Close(), Phase.DATA, FailureKind.CLOSED, False),
    ("dot", Close(), Phase.DOT, FailureKind.CLOSED, True),
    ("mail", Close(reset=True), Phase.MAIL, FailureKind.CLOSED, False),
    ("dot", Close(reset=True), Phase.DOT, FailureKind.CLOSED, True),
    ("rcpt", Close(raw=b"250 2.1"), Phase.RCPT, FailureKind.CLOSED, False),
    ("dot", Close(raw=b"250-2.0.0 ta\r\n"), Phase.DOT, FailureKind.CLOSED, True),
    ("mail", Close("421 4.3.2 closing"), Phase.MAIL, FailureKind.CLOSED, False),
    ("rcpt", Close("421 4.3.2 closing"), Phase.RCPT, FailureKind.CLOSED, False),
    ("data", Close("421 4.3.2 closing"), Phase.DATA, FailureKind.CLOSED, False),
    ("dot", Close("421 4.3.2 closing"), Phase.DOT, FailureKind.CLOSED, True),
    ("mail", Raw(b"what?\r\n"), Phase.MAIL, FailureKind.PROTOCOL, False),
    ("rcpt", Raw(b"250-a\r\n550 b\r\n"), Phase.RCPT, FailureKind.PROTOCOL, False),
    ("data", Raw(b"250 no 354\r\n"), Phase.DATA, FailureKind.PROTOCOL, False),
    ("dot", Raw(b"354 again\r\n"), Phase.DOT, FailureKind.PROTOCOL, True),
    ("dot", Raw(b"250 " + b"x" * 40_000), Phase.DOT, FailureKind.PROTOCOL, True),
    ("rcpt", Twice("250 2.1.5 ok"), Phase.DATA, FailureKind.PROTOCOL, False),
    ("mail", Trickle("250 " + "slow" * 30, 0.02), Phase.MAIL, FailureKind.TIMEOUT, False),
    ("dot", Trickle("250 " + "slow" * 30, 0.02), Phase.DOT, FailureKind.TIMEOUT, True),
]


@pytest.mark.parametrize(("where", "action", "phase", "kind", "unknown"), FAULTS)
async def test_a_fault_is_told_with_its_phase(
    where: str, action: Action, phase: Phase, kind: FailureKind, unknown: bool
) -> None:
    async with SmtpServer(Script(**scripted(where, action))) as server, pool_to(server, SHORT) as pool:
        told = Told()
        result = await send(pool, told)
        assert result.failure is not None
        assert (result.failure.phase, result.failure.kind) == (phase, kind)
        assert result.dot_sent is unknown
        assert not result.reused_dead
        assert told.results == [result]
        assert bool(told.begun) is unknown, "the journal knows of every dot, and of nothing else"
        server.script = Script()
        assert code((await send(pool, Told())).final_reply) == 250, "a new connection serves"
        assert server.accepted == 2


async def test_a_late_reply_is_waited_for() -> None:
    async with SmtpServer(Script(dot=Late(0.1, "250 2.0.0 taken"))) as server, pool_to(server) as pool:
        assert code((await send(pool, Told())).final_reply) == 250


async def test_a_reply_that_nobody_asked_for_ends_a_kept_connection() -> None:
    async with SmtpServer(Script(dot=Twice("250 2.0.0 taken"))) as server, pool_to(server) as pool:
        first, second = await send(pool, Told()), await send(pool, Told())
        assert code(first.final_reply) == code(second.final_reply) == 250
        assert server.accepted == 2, "nothing was paired with the surplus reply"


async def test_the_whole_has_a_deadline_though_each_reply_is_in_time() -> None:
    timeouts = dataclasses.replace(SHORT, rcpt_seconds=0.3, transaction_seconds=0.3)
    script = Script(extensions=BASIC, rcpt={"*": Late(0.08, "250 2.1.5 ok")})
    async with SmtpServer(script) as server, pool_to(server, timeouts) as pool:
        result = await send(pool, Told(*[f"u{n}@x.org" for n in range(20)]))
        assert result.failure is not None
        assert result.failure.kind is FailureKind.TIMEOUT
        assert result.failure.phase is Phase.RCPT
        assert not result.dot_sent


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("size", [400_000, 8_000_000])
async def test_a_refusal_in_the_middle_of_the_body_counts(size: int, close: bool) -> None:
    action: Action = Close("552 5.3.4 too big") if close else "552 5.3.4 too big"
    async with SmtpServer(Script(body={100_000: action})) as server, pool_to(server) as pool:
        told = Told(body=b"x" * 78 + b"\r\n")
        told.transaction.body = Octets((b"x" * 78 + b"\r\n") * (size // 80), block=65_536)
        result = await send(pool, told)
        assert result.failure is None
        assert code(result.final_reply) == 552
        assert not server.messages


async def test_a_server_that_stops_reading_is_left_after_the_time_for_a_block() -> None:
    def stop_reading(session: Session, _: str) -> Silent:
        assert session.transport is not None
        session.transport.pause_reading()
        return Silent()

    async with SmtpServer(Script(body={1: stop_reading})) as server, pool_to(server, SHORT) as pool:
        told = Told(body=b"")
        told.transaction.body = Octets(b"x" * 20_000_000)
        result = await send(pool, told)
        assert result.failure is not None
        assert (result.failure.phase, result.failure.kind) == (Phase.BODY, FailureKind.TIMEOUT)
        assert not told.begun


async def test_closed_in_the_middle_of_the_body_is_not_unknown() -> None:
    async with SmtpServer(Script(body={100_000: Close()})) as server, pool_to(server) as pool:
        told = Told()
        told.transaction.body = Octets(b"x" * 20_000_000)
        result = await send(pool, told)
        assert result.failure is not None
        assert (result.failure.phase, result.failure.kind) == (Phase.BODY, FailureKind.CLOSED)
        assert not result.dot_sent
        assert not told.begun


async def test_a_refused_chunk_stops_the_rest() -> None:
    script = Script(extensions=CHUNKING, bdat=["552 5.3.4 too big"])
    async with SmtpServer(script) as server, pool_to(server) as pool:
        told = Told()
        told.transaction.body = Octets(b"x" * 5_000_000)
        result = await send(pool, told)
        assert result.failure is None
        assert code(result.final_reply) == 552
        assert not result.dot_sent
        assert code((await send(pool, Told())).final_reply) == 250
        assert server.accepted == 1
        assert server.commands.count("RSET") == 1


@pytest.mark.parametrize("size", [100, 400_000, 3_000_000])
@pytest.mark.parametrize("way", ["data", "chunking"])
async def test_a_body_that_raises_never_gets_its_dot(way: str, size: int) -> None:
    async with SmtpServer(Script(extensions=WAYS[way])) as server, pool_to(server) as pool:
        told = Told()
        told.transaction.body = Octets(b"x" * size, block=size // 3, fail_after=3)
        with pytest.raises(OSError, match="changed"):
            await send(pool, told)
        assert not told.begun
        assert not told.results
        assert code((await send(pool, Told())).final_reply) == 250
        assert len(server.messages) == 1


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("size", [100, 400_000])
async def test_a_body_of_another_size_than_it_said_never_gets_its_dot(size: int, change: int) -> None:
    async with SmtpServer() as server, pool_to(server) as pool:
        told = Told(body=b"x" * size)
        told.transaction.body.size += change
        with pytest.raises(ValueError, match="octets"):
            await send(pool, told)
        assert not told.begun
        assert not server.messages


@pytest.mark.parametrize("size", [100, 400_000])
@pytest.mark.parametrize("way", WAYS)
async def test_if_on_begin_raises_the_dot_does_not_leave(way: str, size: int) -> None:
    def full(_: list[str]) -> None:
        raise OSError("no space left")

    async with SmtpServer(Script(extensions=WAYS[way])) as server, pool_to(server) as pool:
        told = Told(body=b"x" * (size - 2) + b"\r\n", on_begin=full)
        with pytest.raises(OSError, match="no space left"):
            await send(pool, told)
        assert not told.results
        assert code((await send(pool, Told())).final_reply) == 250
        assert len(server.messages) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_message_that_must_not_be_sent_harms_no_connection(way: str) -> None:
    async with SmtpServer(Script(extensions=WAYS[way])) as server, pool_to(server) as pool:
        for told in (
            Told(recipients=[To("d@e.f>\r\nRCPT TO:<x@y")]),
            Told(sender="a@b\r\nRSET"),
            Told(recipients=[To("d@e.f", notify="NEVER\r\nX")], envid="x\r\n"),
            Told(recipients=[]),
        ):
            with pytest.raises(ValueError):
                await send(pool, told)
        assert code((await send(pool, Told())).final_reply) == 250
        assert server.accepted == 1
        assert [line.split(":")[0] for line in server.commands if not line.startswith("EHLO")][:2] == [
            "MAIL FROM",
            "RCPT TO",
        ]


async def test_larger_than_size_is_refused_here() -> None:
    async with SmtpServer(Script(extensions=("PIPELINING", "SIZE 1000"))) as server, pool_to(server) as pool:
        told = Told(body=b"x" * 1001)
        result = await send(pool, told)
        assert result.failure is not None
        assert (result.failure.phase, result.failure.kind) == (Phase.LOCAL, FailureKind.TOO_LARGE)
        assert result.failure.detail.startswith("5.3.4")
        assert told.results == [result]
        assert code((await send(pool, Told(body=b"x" * 1000))).final_reply) == 250
        assert [line for line in server.commands if line.startswith("MAIL")] == ["MAIL FROM:<a@example.org> SIZE=1000"]


async def test_dsn_parameters_arrive() -> None:
    async with SmtpServer() as server, pool_to(server) as pool:
        await send(pool, Told(recipients=[To("b@x.org", "NEVER", "rfc822;b@x.org")], ret="HDRS", envid="abc"))
        assert server.messages[0].params.split()[1:] == ["RET=HDRS", "ENVID=abc"]
        assert server.messages[0].recipients == [("b@x.org", "NOTIFY=NEVER ORCPT=rfc822;b@x.org")]


@pytest.mark.parametrize("how", ["close", "reset", "421"])
@pytest.mark.parametrize("way", ["data", "basic"])
async def test_a_kept_connection_found_dead_is_told_as_such(way: str, how: str) -> None:
    action = {"close": Close(), "reset": Close(reset=True), "421": Close("421 idle for too long")}[how]
    async with SmtpServer(Script(extensions=WAYS[way])) as server, pool_to(server) as pool:
        await send(pool, Told())
        server.sessions[0].script = Script(extensions=WAYS[way], mail={"*": action})
        told = Told()
        result = await send(pool, told)
        assert result.failure is not None
        assert not result.dot_sent
        assert not told.begun
        assert result.reused_dead is (how != "421"), "a 421 to MAIL is an answer"
        assert code((await send(pool, Told())).final_reply) == 250
        assert server.accepted == 2


async def test_a_connection_that_closes_while_a_turn_is_out_was_not_tried() -> None:
    async with SmtpServer() as server, pool_to(server) as pool:
        turn = await pool.turn()
        server.drop()
        await until(lambda: not pool.connections, "the end of the connection")
        told = Told()
        result = await turn.send(told.transaction)
        assert result.reused_dead
        assert told.results == [result]


async def test_after_a_silence_a_chunked_message_waits_for_its_envelope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.smtp.connection.QUIET_SECONDS", -1.0)
    async with SmtpServer(Script(extensions=CHUNKING)) as server, pool_to(server) as pool:
        await send(pool, Told())
        server.sessions[0].script = Script(extensions=CHUNKING, mail={"*": Close()})
        told = Told()
        result = await send(pool, told)
        assert result.reused_dead
        assert not result.dot_sent, "else it would be unknown for nothing"
        assert not told.begun


async def test_cancelled_before_the_dot_it_closes_and_after_it_the_reply_is_told() -> None:
    async with SmtpServer(Script(mail={"*": Hang()})) as server, pool_to(server) as pool:
        told = Told()
        task = asyncio.create_task(send(pool, told))
        await until(lambda: server.commands[1:] or task.done(), "MAIL")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not told.begun

        server.script = Script(dot=Late(0.05, "250 2.0.0 taken"))
        told = Told()
        task = asyncio.create_task(send(pool, told))
        await until(lambda: told.begun or task.done(), "the final dot")
        task.cancel()
        await until(lambda: told.results, "its reply")
        assert code(told.results[0].final_reply) == 250


async def test_large_bodies_are_read_in_a_thread_and_small_ones_are_not() -> None:
    threads: set[int] = set()

    class Spy(Octets):
        def chunks(self) -> Any:
            for chunk in super().chunks():
                threads.add(threading.get_ident())
                yield chunk

    async with SmtpServer() as server, pool_to(server) as pool:
        for size, inside in ((1000, True), (600_000, True), (2_000_000, False)):
            threads.clear()
            told = Told()
            told.transaction.body = Spy(b"x\r\n" * (size // 3))
            assert code((await send(pool, told)).final_reply) == 250
            assert (threads == {threading.get_ident()}) is inside


@pytest.mark.parametrize("way", WAYS)
async def test_a_storm_of_refusals_loses_and_doubles_nothing(way: str) -> None:
    """Random replies for 300 messages of 8 workers: the server's ledger and what was told agree to the recipient."""
    chance = random.Random(way)
    replies = ["250 2.1.5 ok", "250 2.1.5 ok", "550 5.1.1 no", "450 4.2.1 later"]

    def rcpt(_: Any, mailbox: str) -> str:
        return chance.choice(replies)

    def dot(*_: Any) -> Any:
        return chance.choice(["250 2.0.0 taken"] * 6 + ["554 5.6.0 no", "451 4.3.0 later", Close("421 4.3.2 bye")])

    def mail(*_: Any) -> Any:
        return chance.choice(["250 2.1.0 ok"] * 8 + ["550 5.7.1 no", "421 4.3.2 bye", Close()])

    script = Script(extensions=WAYS[way], rcpt={"*": rcpt}, mail={"*": mail}, dot=dot)
    async with SmtpServer(script) as server, pool_to(server, max_connections=3) as pool:
        accepted: list[tuple[str, str]] = []
        unknown: set[str] = set()

        async def work(worker: int) -> None:
            for number in range(40):
                name = f"m{worker}.{number}@x.org"
                told = Told("a@x.org", "b@x.org", sender=name, body=b"%d\r\n" % number)
                result = await send(pool, told)
                assert told.results == [result]
                if result.failure is not None and result.dot_sent:
                    unknown.add(name)
                elif code(result.final_reply) == 250 and result.failure is None:
                    taken = zip(("a@x.org", "b@x.org"), result.rcpt_replies, strict=True)
                    accepted.extend((name, to) for to, reply in taken if reply is not None and reply.code == 250)

        await asyncio.gather(*(work(worker) for worker in range(8)))
        ledger = [(message.sender, to) for message in server.messages for to in message.to]
        assert len(ledger) == len(set(ledger))
        assert set(accepted) <= set(ledger)
        assert {name for name, _ in set(ledger) - set(accepted)} <= unknown
        assert len(accepted) > 50


def _serve_to_354(listener: socket.socket, served: list[socket.socket]) -> None:
    """A server of one connection that stops behind its 354."""
    peer, _ = listener.accept()
    peer.settimeout(10)
    served.append(peer)
    peer.sendall(b"220 mx\r\n")
    peer.recv(1000)
    peer.sendall(b"250-mx\r\n250 PIPELINING\r\n")
    peer.recv(1000)
    peer.sendall(b"250 ok\r\n250 ok\r\n354 go\r\n")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_refusal_that_lies_unread_when_a_write_fails_counts(run: Any) -> None:
    """The server refuses and resets between two reads of the loop: the next write fails before the reply is read."""
    served: list[socket.socket] = []

    class Refused(Octets):
        def chunks(self) -> Iterator[bytes]:
            for number, chunk in enumerate(super().chunks()):
                if number == 2:
                    served[0].sendall(b"552 5.3.4 too big\r\n")
                    served[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    served[0].close()
                yield chunk

    async def scenario(port: int) -> TransactionResult:
        pool = Pool(Target("127.0.0.1", port, security=Security.NONE, timeouts=SHORT), max_connections=1)
        told = Told()
        told.transaction.body = Refused(b"x" * 500_000, block=100_000)
        result = await send(pool, told)
        pool.abort()
        await asyncio.sleep(0)
        return result

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=_serve_to_354, args=(listener, served), daemon=True)
        thread.start()
        result = run(scenario(listener.getsockname()[1]))
        thread.join(10)
    assert result.failure is None
    assert code(result.final_reply) == 552
