"""An MPU of our own: `mpu serve` as a process with nothing but its defaults, in a folder of the benchmark's."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.service import Service, service

_TICKS = os.sysconf("SC_CLK_TCK")
_DRAIN_SECONDS = 3600.0


@dataclass
class Mpu:
    """A running one."""

    service: Service
    root: Path

    def account(self, name: str, port: int, *, connections: int = 10, **settings: Any) -> None:
        """An account at a port of this machine; plain unless `settings` say otherwise."""
        body = {"name": name, "host": "127.0.0.1", "port": port, "security": "none", "auth": "none"}
        self.service.post("/accounts", **{**body, "max_connections": connections, **settings})

    def directory(self, name: str, accounts: Sequence[str], **settings: Any) -> Path:
        """A pickup directory that waits for a drain, unless `settings` say otherwise."""
        path = self.root / "spool" / name
        path.mkdir()
        body = {"name": name, "path": str(path), "accounts": list(accounts), "watch": False}
        self.service.post("/directories", **{**body, "schedule": "0 0 1 1 *", **settings})
        return path

    def drain(self, **body: Any) -> float:
        """POST /drain and wait for its end; seconds. Raises if a mail did not go."""
        began = time.perf_counter()
        reply = self.service.http.post(
            "/drain", json={"timeout_seconds": _DRAIN_SECONDS, **body}, timeout=_DRAIN_SECONDS
        )
        answer = reply.raise_for_status().json()
        seconds = time.perf_counter() - began
        if not answer["complete"] or any(row["remaining"] for row in answer["directories"]):
            raise RuntimeError(f"the drain left something: {answer}")
        return seconds

    def begin_drain(self, **body: Any) -> str:
        """POST /drain without waiting for it; its id."""
        answer = self.service.http.post("/drain", params={"wait": "false"}, json=body)
        answer.raise_for_status()
        return str(answer.json()["id"])

    def stop_drain(self, drain_id: str) -> None:
        """It claims nothing more."""
        self.service.http.delete(f"/drains/{drain_id}").raise_for_status()

    def drain_ended(self, drain_id: str) -> dict[str, Any]:
        """Wait for its end; what it said."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() < deadline:
            answer: dict[str, Any] = self.service.http.get(f"/drains/{drain_id}").raise_for_status().json()
            if answer["state"] != "running":
                return answer
            time.sleep(0.05)
        raise TimeoutError(f"drain {drain_id} did not end")

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        stat = Path(f"/proc/{self.service.process.pid}/stat").read_text()
        fields = stat[stat.rindex(")") + 2 :].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory_bytes(self, *, peak: bool = False) -> int:
        """Resident memory now, or its high-water mark."""
        wanted = "VmHWM:" if peak else "VmRSS:"
        for line in Path(f"/proc/{self.service.process.pid}/status").read_text().splitlines():
            if line.startswith(wanted):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the process is gone")

    def reset_peak(self) -> None:
        """Start the high-water mark anew (proc(5), clear_refs)."""
        Path(f"/proc/{self.service.process.pid}/clear_refs").write_text("5")


@contextmanager
def mpu(root: Path, wrapper: Sequence[str] = (), **settings: str) -> Iterator[Mpu]:
    """Started, ready, and stopped at the end. `wrapper`: a command that runs it. `settings`: further MPU_ variables."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "spool").mkdir(exist_ok=True)
    allowed = {"MPU_ALLOWED_SMTP_PORTS": "0", **settings}
    with service(root / "data", root / "spool", wrapper, **allowed) as running:
        yield Mpu(running, root)
        running.stop()
