"""Tells systemd how the service is (sd_notify): ready, stopping, alive. Does nothing where systemd didn't start us.

One datagram to the socket that NOTIFY_SOCKET names (sd_notify(3)); a leading @ is the abstract name space. An error is
never raised: a service manager that doesn't listen must not stop the mail.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping


def notify(state: str, *, environ: Mapping[str, str] | None = None) -> bool:
    """Send `state` (READY=1, STOPPING=1, WATCHDOG=1, STATUS=...; several by newline). False: nobody was told."""
    address = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
            sock.connect(address)
            sock.sendall(state.encode())
    except OSError:
        return False
    return True


def watchdog_seconds(*, environ: Mapping[str, str] | None = None, pid: int | None = None) -> float | None:
    """How often to send WATCHDOG=1: a third of what the unit's WatchdogSec allows. None: no watchdog, or not for us."""
    environ = os.environ if environ is None else environ
    try:
        limit_usec = int(environ.get("WATCHDOG_USEC", ""))
        meant_for = int(environ.get("WATCHDOG_PID", "") or (os.getpid() if pid is None else pid))
    except ValueError:
        return None
    if limit_usec <= 0 or meant_for != (os.getpid() if pid is None else pid):
        return None
    return limit_usec / 3e6


async def watchdog(alive: Callable[[], bool] = lambda: True, *, environ: Mapping[str, str] | None = None) -> None:
    """Send WATCHDOG=1 while the loop turns and `alive` says so. Returns at once without a watchdog; else runs on."""
    every = watchdog_seconds(environ=environ)
    if every is None:
        return
    while True:
        if alive():
            notify("WATCHDOG=1", environ=environ)
        await asyncio.sleep(every)
