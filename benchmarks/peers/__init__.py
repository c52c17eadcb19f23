"""Programs beside which MPU is measured, each in own folders and on own ports; nothing of the machine's is touched."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable

_START_SECONDS = 30.0


class Missing(Exception):
    """It can't be had here; the text says why."""


def program(name: str) -> str:
    """Where it is installed; Debian has mail servers where a user's PATH does not look."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


def free_port() -> int:
    """A port of loopback that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], bool], what: str, *, seconds: float = _START_SECONDS, every: float = 0.01) -> None:
    """Wait for another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {seconds:.0f} s")
        time.sleep(every)


def greets(port: int) -> bool:
    """Whether a server answers there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return connection.recv(3) == b"220"
    except OSError:
        return False
