"""The sandbox's SMTP server in a thread with a loop of its own, for tests of commands that run their own loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from core.runtime.sandbox import Sandbox


@contextmanager
def sandbox_in_thread() -> Iterator[Sandbox]:
    sandbox = Sandbox()
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        await sandbox.start()
        started.set()
        await asyncio.to_thread(ended.wait)
        await sandbox.stop()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield sandbox
    finally:
        ended.set()
        thread.join(10)
        assert not thread.is_alive(), "the sandbox does not stop"
