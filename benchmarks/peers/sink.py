"""Servers that take mail and throw it away."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers import free_port, greets, program, until

_BACKLOG = "200"


@contextmanager
def smtp_sink() -> Iterator[int]:
    """Postfix's smtp-sink, with PIPELINING and all else that it offers; its port. Raises Missing."""
    port = free_port()
    command = [program("smtp-sink"), "-u", "nobody", f"127.0.0.1:{port}", _BACKLOG]  # -u: as root only
    process = subprocess.Popen(command)
    try:
        until(lambda: process.poll() is not None or greets(port), "the start of smtp-sink")
        if process.poll() is not None:
            raise RuntimeError("smtp-sink did not start")
        yield port
    finally:
        process.kill()
        process.wait()
