"""Sends a folder of mails with a library and deletes each after its 250: what an application would write itself.

    python -m benchmarks.peers.clients smtplib|aiosmtplib FOLDER PORT [--octets] [--connections 10] [--starttls CA_FILE]

smtplib (of Python) has one kept connection; aiosmtplib a pool of kept connections. Each file becomes a message of
Python's `email` package for `send_message`, as the documentation of both does it. With `--octets` what lies in the
file is passed on as it is with `sendmail`. Prints the seconds from the first look into the folder to the last mail's
removal; the start of Python and the imports are not in it. Neither keeps a history, claims a file or syncs to the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import email
import email.policy
import importlib
import os
import re
import smtplib
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.peers import Missing

if TYPE_CHECKING:
    from email.message import EmailMessage

_ROOT = Path(__file__).parents[2]
SITE = _ROOT / "var" / "bench" / "site"  # where `make bench` installs requirements-bench.lock
_ENVELOPE = re.compile(rb"X-Sender: ([^\r]*)\r\nX-Receiver: ([^\r]*)\r\n")


def envelope(data: bytes) -> tuple[str, str, bytes]:
    """Sender, recipient, and the mail without the two lines that name them (benchmarks/mails.py writes them so)."""
    found = _ENVELOPE.match(data)
    if found is None:
        raise ValueError("not a mail of benchmarks/mails.py")
    return found[1].decode(), found[2].decode(), data[found.end() :]


def _message(data: bytes) -> EmailMessage:
    return email.message_from_bytes(envelope(data)[2], policy=email.policy.SMTP)


def with_smtplib(folder: Path, port: int, octets: bool, context: ssl.SSLContext | None) -> None:
    """One after the other on one connection."""
    with smtplib.SMTP("localhost", port) as connection:
        if context is not None:
            connection.starttls(context=context)
        for name in sorted(os.listdir(folder)):
            path = folder / name
            if octets:
                sender, recipient, data = envelope(path.read_bytes())
                connection.sendmail(sender, [recipient], data)
            else:
                connection.send_message(_message(path.read_bytes()))
            path.unlink()


async def with_aiosmtplib(
    folder: Path, port: int, octets: bool, connections: int, context: ssl.SSLContext | None
) -> None:
    """`connections` of them at once, each with the next file of the list when it is done with the last."""
    aiosmtplib = importlib.import_module("aiosmtplib")
    waiting = iter(sorted(os.listdir(folder)))

    async def one() -> None:
        tls = context is not None
        async with aiosmtplib.SMTP(hostname="localhost", port=port, start_tls=tls, tls_context=context) as smtp:
            for name in waiting:
                path = folder / name
                if octets:
                    sender, recipient, data = envelope(path.read_bytes())
                    await smtp.sendmail(sender, [recipient], data)
                else:
                    await smtp.send_message(_message(path.read_bytes()))
                path.unlink()

    await asyncio.gather(*(one() for _ in range(connections)))


def needs(library: str) -> None:
    """Raise Missing where it is not installed."""
    if library == "aiosmtplib" and not (SITE / library).exists():
        raise Missing("not installed; `make bench` installs it")


def send(
    library: Literal["smtplib", "aiosmtplib"],
    folder: Path,
    port: int,
    *,
    octets: bool = False,
    connections: int = 10,
    ca_file: Path | None = None,
) -> float:
    """In a process of its own; seconds."""
    command = [sys.executable, "-m", "benchmarks.peers.clients", library, str(folder), str(port)]
    command += ["--connections", str(connections), *(["--octets"] if octets else [])]
    command += ["--starttls", str(ca_file)] if ca_file else []
    environment = {**os.environ, "PYTHONPATH": f"{SITE}{os.pathsep}."}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment, cwd=_ROOT)
    if left := os.listdir(folder):
        raise RuntimeError(f"{library} left {len(left)} mails")
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.clients")
    parser.add_argument("library", choices=["smtplib", "aiosmtplib"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--octets", action="store_true")
    parser.add_argument("--connections", type=int, default=10)
    parser.add_argument("--starttls", metavar="CA_FILE", default=None)
    options = parser.parse_args()
    context = ssl.create_default_context(cafile=options.starttls) if options.starttls else None
    importlib.import_module(options.library)  # before the clock starts
    began = time.perf_counter()
    if options.library == "smtplib":
        with_smtplib(options.folder, options.port, options.octets, context)
    else:
        asyncio.run(with_aiosmtplib(options.folder, options.port, options.octets, options.connections, context))
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main()
