"""A Postfix of our own: own configuration, queue and ports; nothing of the system's is touched.

Needs Debian's postfix installed and root (its master refuses anybody else). `missing` says why it can't be had.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.relay import mail

_MASTER = """\
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
postlog unix-dgram n - n - 1 postlogd
"""


class Postfix:
    """Relays all it gets to a port of this machine."""

    def __init__(self, root: Path, port: int) -> None:
        self._root = root
        self._port = port
        self._started = False
        self.missing = ""

    def __enter__(self) -> Self:
        self.missing = self._why_not()
        if not self.missing:
            self._configure()
            started = self._postfix("start")
            self._started = started.returncode == 0
            if not self._started:
                self.missing = "it did not start: " + started.stderr.strip().splitlines()[-1][:200]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started:
            self._postfix("stop")

    def _why_not(self) -> str:
        if os.geteuid() != 0:
            return "needs root"
        if shutil.which("postfix") is None or not Path("/usr/lib/postfix/sbin/master").exists():
            return "not installed"
        return ""

    def _configure(self) -> None:
        config, queue, data = self._root / "etc", self._root / "queue", self._root / "data"
        for folder in (config, queue, data):
            folder.mkdir(parents=True)
        os.chmod(self._root, 0o755)
        os.chmod(self._root.parent, 0o755)
        shutil.chown(data, "postfix")
        (config / "master.cf").write_text(_MASTER)
        (config / "main.cf").write_text(
            f"compatibility_level = 3.6\nqueue_directory = {queue}\ndata_directory = {data}\n"
            f"command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\nmail_owner = postfix\n"
            f"setgid_group = postdrop\nmyhostname = bench.test\nmydestination =\ninet_interfaces = 127.0.0.1\n"
            f"inet_protocols = ipv4\nrelayhost = [127.0.0.1]:{self._port}\nmaillog_file = {self._root}/log\n"
            f"maillog_file_prefixes = {self._root}\nsmtp_connection_cache_on_demand = yes\n"
            f"smtp_connection_cache_destinations = [127.0.0.1]:{self._port}\nsmtp_tls_security_level = none\n"
            "alternate_config_directories =\nalias_maps =\n"
        )

    def _postfix(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["postfix", "-c", str(self._root / "etc"), *command], capture_output=True, text=True, check=False
        )

    async def sendmail(self, number: int) -> float:
        """Hand one mail over; the time at which sendmail's command ended."""
        process = await asyncio.create_subprocess_exec(
            "sendmail", "-C", str(self._root / "etc"), "-f", "shop@example.com", "jo@example.org",
            stdin=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await process.communicate(mail(number, body=b"x" * 76 + b"\r\n"))
        return time.perf_counter()
