"""Where figures come from: the machine and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sqlite3
import ssl
import subprocess
from pathlib import Path

from benchmarks.peers import Missing, program
from benchmarks.peers.clients import SITE

_LIBRARIES = ("mail-processing-unit", "uvloop", "fastapi", "sqlalchemy", "cryptography")


def machine(folder: Path) -> dict[str, str]:
    """The facts that figures hang on. `folder`: where the mails lie."""
    return {
        "processor": _first(Path("/proc/cpuinfo"), r"^model name\s*:\s*(.+)$") or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "kernel": f"{platform.system()} {platform.release()}",
        "distribution": _first(Path("/etc/os-release"), r'^PRETTY_NAME="?([^"\n]+)'),
        "file system": file_system(folder),
        "Python": platform.python_version(),
    }


def busy_with_others() -> str:
    """A warning where other programs had the processor in the last minute; empty if not.

    What has ten processes then gets more of it than what has one, so figures of different programs don't compare.
    """
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"others keep the machine busy (load {load:.1f} on {cores} cores)" if load > cores / 2 else ""


def versions() -> dict[str, str]:
    """Of what takes part, where it is there."""
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    for distribution in importlib.metadata.distributions(name="aiosmtplib", path=[str(SITE)]):
        found["aiosmtplib"] = distribution.version
    found["SQLite"] = sqlite3.sqlite_version
    found["OpenSSL"] = ssl.OPENSSL_VERSION.split()[1]
    if postfix := _said(["postconf", "-d", "-h", "mail_version"]):
        found["Postfix"] = postfix
    exim = SITE.parents[1] / "peers" / "exim"  # where tests/interop/packages.py puts it
    for package in exim.glob("exim4-daemon-light_*.deb"):
        found["Exim"] = package.name.split("_")[1]
    return found


def file_system(folder: Path) -> str:
    """Type of the file system that a folder lies on: the longest mount point above it (proc(5), mountinfo)."""
    path = str(folder.resolve())
    best, kind = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if len(point) >= len(best) and (path == point or path.startswith(point.rstrip("/") + "/")):
            best, kind = point, after.split()[0]
    return kind


def _memory() -> str:
    kibibytes = _first(Path("/proc/meminfo"), r"^MemTotal:\s*(\d+)")
    return f"{int(kibibytes or 0) / 2**20:.1f} GiB"


def _first(path: Path, pattern: str) -> str:
    try:
        found = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(
            [program(command[0]), *command[1:]], capture_output=True, text=True, check=False
        ).stdout.strip()
    except Missing:
        return ""
