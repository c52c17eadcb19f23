"""Threads that wait for file systems, any of which may hang for good; and an end that doesn't wait for them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

FILE_THREADS = 64  # made as they are needed
LEAVING_SECONDS = 1.0  # for threads that only need to be told of the end


class FileThreads(ThreadPoolExecutor):
    """The event loop's executor, whose shutdown waits for no thread: whoever needs a result has awaited it."""

    def __init__(self) -> None:
        super().__init__(FILE_THREADS, "mpu-files")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - asyncio's call
        """What waits for a thread is begun no more where that is asked for; what runs goes on."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


def hanging() -> list[str]:
    """Names of the threads that Python would wait for at the end of the process, and that don't come to theirs.

    Blocks, LEAVING_SECONDS at most; to be called when everything is closed.
    """
    last = time.monotonic() + LEAVING_SECONDS
    others = [t for t in threading.enumerate() if t is not threading.current_thread() and not t.daemon]
    for thread in others:
        thread.join(max(last - time.monotonic(), 0.0))
    return sorted(thread.name for thread in others if thread.is_alive())
