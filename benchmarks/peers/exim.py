"""An Exim of our own, from Debian's packages under var/peers, in a name space where only its own files change.

Mail is handed over by smtp-source while it may only be queued (`queue_only`); then four queue runners at once, as
`queue_run_max` and the documentation advise for a long queue. Connections are used again for what waits for the host.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers import Missing, free_port, greets, until
from benchmarks.peers.generator import generate
from tests.interop import packages

_RUNNERS = 4
_USER = "Debian-exim"
_SPOOL = "/var/spool/exim4"
_EXIM = "exim4 -C /etc/exim4/exim4.conf"
_CONFIGURATION = """\
primary_hostname = bench.test
exim_user = Debian-exim
exim_group = Debian-exim
spool_directory = /var/spool/exim4
log_file_path = /var/spool/exim4/%slog
daemon_smtp_ports = {own}
local_interfaces = 127.0.0.1
tls_advertise_hosts =
acl_smtp_rcpt = accept
acl_smtp_data = accept
keep_environment =
add_environment =
queue_only = true
queue_run_max = 10
smtp_accept_max = 40
smtp_accept_max_per_connection = 100000
begin routers
out:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = out
begin transports
out:
  driver = smtp
  port = {relay}
  hosts_avoid_tls = *
  connection_max_messages = 0
  allow_localhost
begin retry
* * F,1h,1s
"""


class Exim:
    """Relays all it gets to a port of this machine, when `flush` says so."""

    def __init__(self, room: packages.Room, port: int) -> None:
        self._room = room
        self._port = port

    def fill(self, count: int, message: Path) -> None:
        """So many copies of a message (peers/generator.py) in its queue."""
        generate(self._port, count, message, sessions=10)
        os.sync()

    def flush(self) -> float:
        """Seconds until four queue runners are through. Raises if one is left."""
        runners = " & ".join([f"{_EXIM} -q"] * _RUNNERS)
        began = time.perf_counter()
        subprocess.run(self._room.script(f"sh -c '{runners} & wait'"), check=True)
        seconds = time.perf_counter() - began
        if left := [name for name in os.listdir(self._room.inside(f"{_SPOOL}/input")) if name.endswith("-H")]:
            raise RuntimeError(f"Exim left {len(left)} mails")
        return seconds


@contextmanager
def exim(root: Path, port: int) -> Iterator[Exim]:
    """Started. Raises Missing."""
    try:
        packages.needs_root()
        package = packages.debian("exim", "exim4-daemon-light", "exim4-base", "libidn12")
        room = packages.Room(package, root, [_USER], [_SPOOL])
    except packages.Missing as missing:
        raise Missing(str(missing)) from missing
    number = packages.uid_of([_USER], _USER)
    os.chown(room.inside(_SPOOL), number, number)
    own = free_port()
    (root / "etc" / "exim4").mkdir()
    (root / "etc" / "exim4" / "exim4.conf").write_text(_CONFIGURATION.format(own=own, relay=port))
    with (root / "log").open("wb") as log:
        daemon = subprocess.Popen(room.script(f"{_EXIM} -bdf"), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        until(lambda: daemon.poll() is not None or greets(own), "the start of Exim")
        if daemon.poll() is not None:
            raise Missing("it did not start: " + (root / "log").read_text(errors="replace").strip()[-160:])
        yield Exim(room, own)
    finally:
        # A process name space ends with its first process; --kill-child alone is forgotten when that changes its user.
        for child in Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        daemon.kill()
        daemon.wait()
