"""Servers that take mail and throw it away, each in a process of its own.

    python -m benchmarks.peers.sink [--chunking] [--starttls CA_FILE]

is the server of the tests, which offers what smtp-sink can't; prints its port. The authority of its certificate for
`localhost` goes to CA_FILE.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from benchmarks.peers import free_port, greets, program, until
from tests.support.smtp_server import DEFAULT_EXTENSIONS, Script, SmtpServer, certificate

_BACKLOG = "200"
_IDLE_SECONDS = "3600"  # longer than the turns of the others take, so that a kept connection is kept


@contextmanager
def smtp_sink() -> Iterator[int]:
    """Postfix's smtp-sink, with PIPELINING and all else that it offers; its port. Raises Missing."""
    port = free_port()
    user = ["-u", "nobody"] if os.geteuid() == 0 else []  # root has to name one, nobody else may
    command = [program("smtp-sink"), *user, "-t", _IDLE_SECONDS, f"127.0.0.1:{port}", _BACKLOG]
    process = subprocess.Popen(command)
    try:
        until(lambda: process.poll() is not None or greets(port), "the start of smtp-sink")
        if process.poll() is not None:
            raise RuntimeError("smtp-sink did not start")
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def python_sink(*, chunking: bool = False, ca_file: Path | None = None) -> Iterator[int]:
    """The server of the tests; its port."""
    options = ["--chunking"] if chunking else []
    options += ["--starttls", str(ca_file)] if ca_file else []
    command = [sys.executable, "-m", "benchmarks.peers.sink", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def _serve(*, chunking: bool, ca_file: Path | None) -> None:
    authority, context = certificate("localhost")
    if ca_file is not None:
        authority.cert_pem.write_to_path(str(ca_file))
    script = Script(extensions=[*DEFAULT_EXTENSIONS, *(["CHUNKING"] if chunking else [])])
    server = SmtpServer(
        script, context=context if ca_file else None, keep_bodies=False, keep_messages=False, keep_commands=False
    )
    async with server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.sink")
    parser.add_argument("--chunking", action="store_true")
    parser.add_argument("--starttls", metavar="CA_FILE", type=Path, default=None)
    arguments = parser.parse_args()
    uvloop.run(_serve(chunking=arguments.chunking, ca_file=arguments.starttls))
