"""Debian's and npm's packages of mail servers in folders of their own under var/peers: nothing of the machine changes.

Debian's mail servers conflict with each other and use fixed users and paths. So each runs in a `Room`: a mount and
process name space in which its package, its users and its spool lie over the machine's own /usr, /etc and /var.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

PEERS = Path("var/peers").absolute()
_FETCH_SECONDS = 300


class Missing(Exception):
    """The server can't be had; the text says why."""


def run(command: list[str], folder: Path, seconds: float = _FETCH_SECONDS) -> str:
    """Its output; Missing where it fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise Missing(f"{' '.join(command[:3])}: {said[-1][:160]}")
    return done.stdout


def debian(name: str, *packages: str) -> Path:
    """The folder with these packages taken apart, downloaded once."""
    folder = PEERS / name
    if (folder / ".complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for package in packages:
        run(["apt-get", "--quiet", "download", package], folder)
    for archive in sorted(folder.glob("*.deb")):
        run(["dpkg-deb", "-x", archive.name, "root"], folder)
    (folder / ".complete").touch()
    return folder


def node(package: str) -> Path:
    """The folder with node_modules, installed once."""
    folder = PEERS / f"node-{package.lower()}"
    if (folder / ".complete").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}')
    run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev", package], folder)
    (folder / ".complete").touch()
    return folder


def needs_root() -> None:
    """Raise Missing where a Room can't be made."""
    if os.geteuid() != 0:
        raise Missing("needs root, for its users and a mount name space of its own")
    run(["unshare", "--mount", "true"], Path("/"))


class Room:
    """A server among its own files. `over`: folders of this room that lie over the machine's, by the machine's path."""

    def __init__(self, package: Path, root: Path, users: list[str], writable: list[str]) -> None:
        self.root = root
        self._package = package / "root"
        self._writable = writable
        self._process: asyncio.subprocess.Process | None = None
        etc = root / "etc"
        etc.mkdir(parents=True)
        for account_file, lines in _account_files(users).items():
            own = [
                line for line in Path("/etc", account_file).read_text().splitlines() if line.split(":")[0] not in users
            ]
            (etc / account_file).write_text("\n".join([*own, *lines]) + "\n")
        for path in writable:
            self.inside(path).mkdir(parents=True, exist_ok=True)

    def inside(self, path: str) -> Path:
        """Where a writable path of the room lies outside."""
        return self.root / "over" / path.strip("/")

    def script(self, command: str) -> list[str]:
        """The command line that runs `command`, a line of sh, in the room."""
        lines = [f"mount -t overlay overlay -o lowerdir={self._package}/usr:/usr /usr"]
        lower = f"{self.root}/etc:" + (f"{self._package}/etc:" if (self._package / "etc").exists() else "")
        lines.append(f"mount -t overlay overlay -o lowerdir={lower}/etc /etc")
        for path in self._writable:
            lines += [f"mkdir -p {path}", f"mount --bind {self.inside(path)} {path}"]
        lines.append(f"exec {command}")
        name_spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec"]
        return [*name_spaces, "\n".join(lines)]

    def once(self, command: str) -> str:
        """Run to its end."""
        return run(self.script(command), self.root, 60)

    async def start(self, command: str) -> None:
        """Run until `stop`; what it says goes to `log`."""
        with (self.root / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.script(command), stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL
            )

    async def stop(self) -> None:
        """End it and all that it started: a process name space ends with its first process.

        --kill-child alone does not do: the kernel forgets it of a process that changes its user, as these do.
        """
        if self._process is not None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            with contextlib.suppress(OSError):
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    @property
    def log(self) -> str:
        """The end of what it said."""
        path = self.root / "log"
        return path.read_text(errors="replace")[-1500:] if path.exists() else ""


def _account_files(users: list[str]) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {"passwd": [], "group": [], "shadow": []}
    for number, name in enumerate(users, start=61001):
        lines["passwd"].append(f"{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin")
        lines["group"].append(f"{name}:x:{number}:")
        lines["shadow"].append(f"{name}:*:20000:0:99999:7:::")
    return lines


def uid_of(users: list[str], name: str) -> int:
    """The number that a Room gives this user."""
    return 61001 + users.index(name)
