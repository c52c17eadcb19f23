"""A Postfix of our own: own configuration, queue and ports; nothing of the system's is touched.

Needs Debian's postfix installed and root (its master refuses anybody else). `missing` says why it can't be had.

A queue flush: mail is handed over by smtp-source while nothing may be delivered (`defer_transports`), so that it lies
in the deferred queue, as it does behind a relay that was out of reach; then `postqueue -f`. Set so that nothing is in
its way: connections to the relay are cached and used again, as many deliveries at once as MPU has connections, from
the first on. Not in the time: the sync of each mail to the disk when Postfix takes it. It logs what it delivers.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.peers import Missing, free_port, greets, until
from benchmarks.peers.generator import generate

_PATIENCE_SECONDS = 300.0
_DAEMONS = Path("/usr/lib/postfix/sbin")
_MASTER = """\
127.0.0.1:{own} inet n - n - - smtpd
pickup unix n - n 1 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
proxymap unix - - n - - proxymap
scache unix - - n - 1 scache
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
"""
# No parameter twice: postlogd warns of it, to itself, and waits for ever.
_MAIN = """\
compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/data
command_directory = /usr/sbin
daemon_directory = {daemons}
mail_owner = postfix
setgid_group = postdrop
myhostname = bench.test
mydestination =
mynetworks = 127.0.0.0/8
smtpd_recipient_restrictions = permit_mynetworks, reject
local_recipient_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
relayhost = [127.0.0.1]:{relay}
maillog_file = {root}/log
maillog_file_prefixes = {root}
smtp_connection_cache_on_demand = yes
smtp_connection_cache_destinations = [127.0.0.1]:{relay}
smtp_connection_reuse_time_limit = 3600s
smtp_destination_concurrency_limit = {connections}
initial_destination_concurrency = {connections}
smtp_tls_security_level = none
in_flow_delay = 0
alternate_config_directories =
alias_maps =
"""


class Postfix:
    """Relays all it gets to a port of this machine. `hold`: only when `flush` says so."""

    def __init__(self, root: Path, port: int, *, connections: int = 10, hold: bool = False) -> None:
        self._root = root
        self._relay = port
        self._own = free_port()
        self._connections = connections
        self._hold = hold
        self._started = False
        self._flushed = 0
        self.missing = ""

    def __enter__(self) -> Self:
        self.missing = self._why_not()
        if not self.missing:
            self._configure()
            started = self._postfix("start")
            self._started = started.returncode == 0
            if self._started:
                try:
                    until(lambda: greets(self._own), "the start of Postfix")
                except RuntimeError:
                    self._stop()
                    raise
            else:
                self.missing = "it did not start: " + (started.stderr.strip().splitlines() or ["silently"])[-1][:200]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started:
            self._stop()

    def _stop(self) -> None:
        """The master ends its children, too; without it they end by themselves."""
        master = int((self._root / "queue" / "pid" / "master.pid").read_text())
        with suppress(ProcessLookupError):
            os.kill(master, signal.SIGTERM)
            try:
                until(lambda: not Path(f"/proc/{master}").exists(), "the stop of Postfix", seconds=10)
            except RuntimeError:
                os.kill(master, signal.SIGKILL)

    def needed(self) -> Self:
        """Raise Missing where it is."""
        if self.missing:
            raise Missing(self.missing)
        return self

    def fill(self, count: int, message: Path) -> None:
        """So many copies of a message (peers/generator.py) in the deferred queue."""
        assert self._hold
        generate(self._own, count, message)
        until(lambda: not self._any("incoming", "active"), "the hand-over to Postfix", seconds=_PATIENCE_SECONDS)
        os.sync()
        self._flushed += count

    def flush(self) -> float:
        """Seconds until all has gone. Raises if not."""
        began = time.perf_counter()
        subprocess.run(["postqueue", "-c", str(self._root / "etc"), "-f"], check=True)
        until(lambda: not self._any("deferred", "incoming", "active"), "the flush", seconds=_PATIENCE_SECONDS)
        seconds = time.perf_counter() - began
        until(lambda: self._sent() == self._flushed, "the last line of Postfix's log")
        return seconds

    def _sent(self) -> int:
        return (self._root / "log").read_bytes().count(b"status=sent (")

    def _any(self, *queues: str) -> bool:
        """Whether there is a file in one of these, named in the order in which mail moves on."""
        return any(_first_file(self._root / "queue" / queue) for queue in queues)

    def _why_not(self) -> str:
        if os.geteuid() != 0:
            return "needs root"
        if shutil.which("postfix") is None or not (_DAEMONS / "master").exists():
            return "not installed"
        if not all(folder.stat().st_mode & 0o001 for folder in self._root.parent.parents):
            return "its user can't reach the folder of the benchmark"
        return ""

    def _configure(self) -> None:
        config, queue, data = self._root / "etc", self._root / "queue", self._root / "data"
        for folder in (config, queue, data):
            folder.mkdir(parents=True)
        os.chmod(self._root, 0o755)
        os.chmod(self._root.parent, 0o755)
        shutil.chown(data, "postfix")
        (config / "master.cf").write_text(_MASTER.format(own=self._own))
        main = _MAIN.format(root=self._root, daemons=_DAEMONS, relay=self._relay, connections=self._connections)
        (config / "main.cf").write_text(main + ("defer_transports = smtp\n" if self._hold else ""))

    def _postfix(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["postfix", "-c", str(self._root / "etc"), *command], capture_output=True, text=True, check=False
        )

    def sendmail(self, sender: str, mail: bytes, recipient: str = "jo@example.org") -> None:
        """Hand one mail over with its command; it has ended when this returns."""
        command = ["sendmail", "-C", str(self._root / "etc"), "-f", sender, recipient]
        subprocess.run(command, input=mail, check=True)


def _first_file(folder: Path) -> bool:
    """Whether there is one; looks no further, so as to take no time from Postfix."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        return any(_first_file(Path(entry.path)) if entry.is_dir() else True for entry in entries)
    return False
