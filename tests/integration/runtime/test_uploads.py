"""Mails handed over by HTTP by clients that take their time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from tests.support.relay import SIMPLE, account, running, until
from tests.support.smtp_server import SmtpServer


async def test_slow_clients_hold_up_one_another_and_nothing_else(tmp_path: Path) -> None:
    go_on, begun = asyncio.Event(), 0
    at_once = min(32, (os.cpu_count() or 1) + 4)  # as many threads as asyncio has for everything else

    async def slowly() -> AsyncIterator[bytes]:
        nonlocal begun
        begun += 1
        yield SIMPLE[:20]
        await go_on.wait()
        yield SIMPLE[20:]

    async with SmtpServer() as server, running(tmp_path, [account(server)], uploads_max=at_once) as bench:
        count = at_once + 4
        uploads = [
            asyncio.create_task(bench.http.post("/messages", params={"directory": "pickup"}, content=slowly()))
            for _ in range(count)
        ]
        await until(lambda: begun == at_once, "all the room for uploads")
        bench.drop("a.eml", SIMPLE)
        await bench.sends(1)
        go_on.set()
        assert {answer.status_code for answer in await asyncio.gather(*uploads)} == {202}
        assert begun == count
