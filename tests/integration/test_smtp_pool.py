"""The pool: turns, round trips, when connections are opened, kept and left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from core.smtp.dialogue import ConnectFailed, TransactionResult
from core.smtp.pool import Pool, PoolTurn
from tests.support.smtp_mail import SHORT, Told, target
from tests.support.smtp_server import (
    DEFAULT_EXTENSIONS,
    Close,
    Hang,
    Late,
    Script,
    Session,
    SmtpServer,
    ThreadedSmtpServer,
)

CHUNKING = (*DEFAULT_EXTENSIONS, "CHUNKING")


@contextlib.asynccontextmanager
async def pool_to(
    server: SmtpServer, target_options: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Pool]:
    pool = Pool(target(server, **(target_options or {})), **options)
    try:
        yield pool
    finally:
        pool.abort()
        await asyncio.sleep(0)


async def send(pool: Pool, told: Told | None = None) -> TransactionResult:
    turn = await pool.turn()
    return await turn.send((told or Told()).transaction)


async def until(condition: Any) -> None:
    """Wait for the loop and the kernel to get there; the test's own limit is 5 s."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize(("extensions", "messages", "reads_max"), [(DEFAULT_EXTENSIONS, 50, 53), (CHUNKING, 50, 53)])
def test_one_round_trip_a_message_on_a_kept_connection(
    run: Any, extensions: tuple[str, ...], messages: int, reads_max: int
) -> None:
    """Each read of the server is the other half of a round trip: EHLO, the first envelope, then one a message."""

    async def scenario() -> None:
        async with SmtpServer(Script(extensions=extensions)) as server, pool_to(server, max_connections=1) as pool:
            left = messages

            async def work() -> None:
                nonlocal left
                while left:
                    left -= 1
                    result = await send(pool)
                    assert result.final_reply is not None

            await asyncio.gather(work(), work())
            assert len(server.messages) == messages
            assert server.reads <= reads_max
            assert server.accepted == 1

    run(scenario())


async def test_content_dot_and_next_envelope_leave_in_one_write() -> None:
    bursts: list[bytes] = []
    received = Session.data_received

    def listen(session: Session, data: bytes) -> None:
        bursts.append(bytes(data))
        received(session, data)

    async with SmtpServer() as server, pool_to(server, max_connections=1) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Session, "data_received", listen)
            await asyncio.gather(send(pool), send(pool, Told("next@x.org")))
    together = [burst for burst in bursts if burst.startswith(b"Subject:") and b"next@x.org" in burst]
    assert together
    assert together[0].endswith(b"DATA\r\n")


async def test_chunked_messages_are_in_flight_up_to_the_limit() -> None:
    script = Script(extensions=CHUNKING, dot=[Late(0.1, "250 2.0.0 taken")])
    async with SmtpServer(script) as server:
        async with pool_to(server, max_connections=1, in_flight_per_connection=3) as pool:
            turns = [await pool.turn()]
            sends = [asyncio.ensure_future(turns[0].send(Told().transaction))]
            for _ in range(2):
                await asyncio.sleep(0)
                turns.append(await asyncio.wait_for(pool.turn(), 1))
                sends.append(asyncio.ensure_future(turns[-1].send(Told().transaction)))
            await asyncio.sleep(0)
            fourth = asyncio.ensure_future(pool.turn())
            await asyncio.sleep(0.02)
            assert not fourth.done(), "three are in flight"
            (await fourth).release()
            assert all(result.final_reply for result in await asyncio.gather(*sends))
            assert len(server.messages) == 3


async def test_turns_are_given_first_come_first_served() -> None:
    async with SmtpServer() as server, pool_to(server, max_connections=1) as pool:
        first = await pool.turn()
        order: list[int] = []

        async def wait(number: int) -> None:
            turn = await pool.turn()
            order.append(number)
            turn.release()

        tasks = [asyncio.create_task(wait(number)) for number in range(5)]
        await asyncio.sleep(0)
        assert pool.waiting == 5
        first.release()
        first.release()
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]


async def test_a_turn_is_used_once() -> None:
    async with SmtpServer() as server, pool_to(server) as pool:
        turn = await pool.turn()
        await turn.send(Told().transaction)
        turn.release()
        with pytest.raises(RuntimeError):
            await turn.send(Told().transaction)


async def test_a_waiter_that_is_cancelled_takes_no_turn() -> None:
    async with SmtpServer() as server, pool_to(server, max_connections=1) as pool:
        first = await pool.turn()
        waiter = asyncio.create_task(pool.turn())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.sleep(0)
        late = asyncio.create_task(pool.turn())
        await asyncio.sleep(0)
        first.release()
        late.cancel()  # it has its turn by now, and must give it back
        await asyncio.gather(waiter, late, return_exceptions=True)
        assert isinstance(await asyncio.wait_for(pool.turn(), 1), PoolTurn)


async def test_as_many_connections_as_turns_are_wanted_at_once() -> None:
    async with SmtpServer() as server, pool_to(server, max_connections=4) as pool:
        for _ in range(5):
            await send(pool)
        assert server.accepted == 1, "one at a time needs one"
        turns = [await pool.turn() for _ in range(3)]
        assert server.accepted == 3
        more = [asyncio.create_task(pool.turn()) for _ in range(3)]
        await until(lambda: more[0].done())
        await asyncio.sleep(0.01)
        assert server.accepted == 4, "never more than allowed"
        for turn in turns:
            turn.release()
        for turn in await asyncio.gather(*more):
            turn.release()


async def test_an_idle_connection_comes_before_the_place_behind_a_dot() -> None:
    async with SmtpServer() as server, pool_to(server, max_connections=2) as pool:
        one, two = await pool.turn(), await pool.turn()
        two.release()
        server.script.dot = [Late(1.0, "250 2.0.0 taken")]
        told = Told()
        sending = asyncio.create_task(one.send(told.transaction))
        await until(lambda: told.begun)
        result = await send(pool)
        assert result.final_reply is not None
        assert not sending.done(), "it did not wait behind the late one"
        await sending


async def test_messages_per_connection() -> None:
    async with SmtpServer() as server, pool_to(server, max_connections=1, messages_per_connection=3) as pool:
        for _ in range(7):
            assert (await send(pool)).failure is None
        assert [message.connection for message in server.messages] == [0, 0, 0, 1, 1, 1, 2]
        assert [session.commands[-1] for session in server.sessions[:2]] == ["QUIT", "QUIT"]


async def test_fewer_connections_leave_the_idle_ones_at_once_and_the_busy_ones_when_they_are() -> None:
    async with SmtpServer() as server, pool_to(server, max_connections=4) as pool:
        turns = await asyncio.gather(*(pool.turn() for _ in range(4)))
        assert (pool.connections, pool.rate) == (4, 0)
        for turn in turns[2:]:
            turn.release()
        pool.limit(1)
        assert pool.connections == 2, "two were idle"
        for turn in turns[:2]:
            assert (await turn.send(Told().transaction)).failure is None
        await until(lambda: pool.connections == 1)
        assert pool.rate > 0
        await asyncio.gather(*(send(pool) for _ in range(3)))
        assert pool.connections == 1
        pool.limit(2)
        for turn in await asyncio.gather(*(pool.turn() for _ in range(2))):
            turn.release()
        assert pool.connections == 2


@pytest.mark.parametrize("quit_action", [None, Hang(), Close(), "500 what"])
async def test_an_idle_connection_is_left_with_quit(quit_action: Any) -> None:
    async with SmtpServer(Script(quit=quit_action)) as server:
        async with pool_to(server, {"timeouts": SHORT}, idle_timeout_seconds=0.05) as pool:
            await send(pool)
            assert pool.connections == 1
            await until(lambda: not server.live)
            assert pool.connections == 0
            assert server.sessions[0].commands[-1] == "QUIT"
            assert (await send(pool)).final_reply is not None


async def test_if_only_a_further_connection_fails_the_others_serve() -> None:
    async with SmtpServer() as server, pool_to(server, max_connections=5) as pool:
        server.scripts = {n: Script(banner=Close("421 4.3.2 too many connections")) for n in range(1, 50)}
        results = await asyncio.gather(*(send(pool) for _ in range(20)))
        assert all(result.final_reply and result.failure is None for result in results)
        await until(lambda: pool.last_failure is not None)
        assert server.accepted == 2, "tried once, and then not for a while"
        assert pool.last_failure is not None
        assert pool.last_failure.code == "banner_refused"
        pool._open_not_before = 0.0  # the minute is over
        await asyncio.gather(*(send(pool) for _ in range(5)))
        await until(lambda: server.accepted == 3)


async def test_a_further_login_that_is_refused_is_not_tried_in_a_loop_while_another_connection_serves() -> None:
    rests: list[int] = []

    def rest(failure: ConnectFailed, in_a_row: int) -> float:
        rests.append(in_a_row)
        return 0.0 if len(rests) < 3 else math.inf

    async with SmtpServer() as server, pool_to(server, max_connections=5, rest_after=rest) as pool:
        await send(pool)
        server.scripts = {n: Script(banner=Close("554 5.7.1 no")) for n in range(1, 50)}
        async with asyncio.timeout(20):
            while len(rests) < 3:
                await asyncio.gather(*(send(pool) for _ in range(5)))
        for _ in range(20):
            await asyncio.gather(*(send(pool) for _ in range(5)))
        assert rests == [1, 2, 3]
        assert server.accepted == 4


async def test_after_a_connection_was_had_more_are_opened_again() -> None:
    def rest(_failure: ConnectFailed, _in_a_row: int) -> float:
        return math.inf

    async with SmtpServer() as server, pool_to(server, max_connections=5, rest_after=rest) as pool:
        server.scripts[1] = Script(banner=Close("554 5.7.1 no"))
        async with asyncio.timeout(20):
            while server.accepted < 2:
                await asyncio.gather(*(send(pool) for _ in range(5)))
        server.drop()
        async with asyncio.timeout(20):
            while server.accepted < 5:
                await asyncio.gather(*(send(pool) for _ in range(5)))


async def test_after_a_failure_the_next_turn_tries_anew() -> None:
    async with SmtpServer() as server, pool_to(server) as pool:
        server.scripts[0] = Script(banner="554 5.3.2 not now")
        with pytest.raises(ConnectFailed):
            await pool.turn()
        assert (await send(pool)).final_reply is not None


async def test_a_connection_that_the_server_closes_while_idle_is_noticed() -> None:
    async with SmtpServer() as server, pool_to(server) as pool:
        await send(pool)
        server.drop(reset=False)
        await until(lambda: pool.connections == 0)
        assert (await send(pool)).reused_dead is False


async def test_one_found_dead_takes_those_with_it_that_were_silent_as_long() -> None:
    async with SmtpServer() as server, pool_to(server, max_connections=3) as pool:
        turns = [await pool.turn() for _ in range(3)]
        for turn in turns:
            turn.release()
        await send(pool)
        newest = max(range(3), key=lambda number: len(server.sessions[number].commands))
        server.sessions[newest].script = Script(mail={"*": Close()})
        assert (await send(pool)).reused_dead
        await until(lambda: not server.live)
        assert pool.connections == 0
        assert (await send(pool)).failure is None


async def test_close_waits_for_what_is_in_flight() -> None:
    async with SmtpServer(Script(dot=Late(0.1, "250 2.0.0 taken"))) as server, pool_to(server) as pool:
        told = Told()
        sending = asyncio.create_task(send(pool, told))
        await until(lambda: told.begun)
        waiting = [asyncio.create_task(pool.turn()) for _ in range(2)]
        await until(lambda: any(task.done() for task in waiting) or pool.waiting)
        closing = asyncio.create_task(pool.close())
        for turn in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(turn, PoolTurn):
                turn.release()
        await closing
        result = await sending
        assert result.final_reply is not None
        assert server.sessions[0].commands[-1] == "QUIT"
        assert pool.connections == 0
        with pytest.raises(ConnectFailed):
            await pool.turn()


async def test_close_cancelled_or_abort_tells_what_is_in_flight_as_unknown() -> None:
    async with SmtpServer(Script(dot=Hang(take=True))) as server, pool_to(server) as pool:
        told = Told()
        sending = asyncio.create_task(send(pool, told))
        await until(lambda: server.messages)
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0.01)
        assert not closing.done()
        closing.cancel()
        result = await sending
        assert result.dot_sent
        assert result.failure is not None
        assert told.results == [result]
        await asyncio.gather(closing, return_exceptions=True)


async def test_close_with_nothing_open() -> None:
    async with SmtpServer() as server, pool_to(server) as pool:
        await asyncio.wait_for(pool.close(), 1)


def test_the_server_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.smtp_server", "--ledger", str(ledger), "--chunking"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())

            async def scenario() -> None:
                stand_in = SmtpServer(port=port)
                async with pool_to(stand_in, max_connections=2) as pool:
                    await asyncio.gather(*(send(pool) for _ in range(20)))

            asyncio.run(scenario())
            lines = [json.loads(line) for line in ledger.read_text().splitlines()]
            assert len(lines) == 20
            assert lines[0]["sender"] == "a@example.org"
        finally:
            process.send_signal(signal.SIGTERM)
        assert json.loads(process.stdout.read())["taken"] == 20


def test_the_server_runs_in_a_thread() -> None:
    with ThreadedSmtpServer() as server:

        async def scenario() -> None:
            async with pool_to(server) as pool:
                assert (await send(pool)).final_reply is not None

        asyncio.run(scenario())
        assert len(server.messages) == 1
