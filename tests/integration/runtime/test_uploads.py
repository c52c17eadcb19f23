"""Mails handed over by HTTP by clients that take their time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from tests.support.relay import SIMPLE, account, running, until
from tests.support.smtp_server import SmtpServer


async def test_slow_clients_hold_up_nobody(tmp_path: Path) -> None:
    go_on, begun = asyncio.Event(), 0

    async def slowly() -> AsyncIterator[bytes]:
        nonlocal begun
        yield SIMPLE[:20]
        yield SIMPLE[20:30]  # the first piece is written by now
        begun += 1
        await go_on.wait()
        yield SIMPLE[30:]

    async with SmtpServer() as server, running(tmp_path, [account(server)], uploads_max=1) as bench:

        async def submit(content: AsyncIterator[bytes] | bytes) -> int:
            answer = await bench.http.post("/messages", params={"directory": "pickup"}, content=content)
            return answer.status_code

        uploads = [asyncio.create_task(submit(slowly())) for _ in range(20)]
        await until(lambda: begun == 20, "all uploads")
        assert await submit(SIMPLE) == 202
        await bench.sends(1)
        go_on.set()
        assert set(await asyncio.gather(*uploads)) == {202}


async def test_of_an_upload_that_is_cut_off_nothing_is_left(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield SIMPLE[:20]
        yield SIMPLE[20:30]
        begun.set()
        await asyncio.Event().wait()

    async with SmtpServer() as server, running(tmp_path, [account(server)]) as bench:
        own = bench.paths["pickup"] / ".mpu"
        before = set(own.iterdir())
        upload = asyncio.create_task(bench.http.post("/messages", params={"directory": "pickup"}, content=half()))
        await begun.wait()
        assert len(set(own.iterdir()) - before) == 1
        upload.cancel()
        await until(lambda: set(own.iterdir()) == before, "its end")
        assert bench.names() == []
