"""smtp-source, the load generator of Postfix in C: no disk, no queue, no history; what the sink can take at all."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from benchmarks.mails import mail
from benchmarks.peers import program
from benchmarks.peers.clients import envelope


def wire(folder: Path, size: int) -> Path:
    """A file with one of the mails of benchmarks/mails.py, as smtp-source wants it: line ends of LF."""
    path = folder / f"{size}.wire"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(envelope(mail(0, size))[2].replace(b"\r\n", b"\n"))
    return path


def generate(port: int, count: int, message: Path, *, sessions: int = 20) -> float:
    """Send it `count` times over kept connections; seconds."""
    sender, recipient, _ = envelope(mail(0, 0))
    began = time.perf_counter()
    subprocess.run(
        [program("smtp-source"), "-d", "-s", str(sessions), "-m", str(count), "-f", sender, "-t", recipient,
         "-F", str(message), f"127.0.0.1:{port}"],
        check=True,
    )  # fmt: skip
    return time.perf_counter() - began
