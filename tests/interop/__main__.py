"""Run all servers, or those named: python -m tests.interop [--write] [name ...]. Exit code 1: a mail was not intact."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from core.logs import configure_logs
from tests.interop.debian import Exim, OpenSmtpd, Postfix
from tests.interop.report import markdown, terminal
from tests.interop.scripts import Aiosmtpd, Haraka, NpmSmtpServer
from tests.interop.servers import Certificate, Server
from tests.interop.trial import Row, row_of
from tests.support.smtp_server import DEFAULT_EXTENSIONS, Script, SmtpServer

_DOCS = Path(__file__).parents[2] / "docs"


async def _all(names: list[str], root: Path) -> list[Row]:
    tls = Certificate(root)
    makers: dict[str, Callable[[Path, SmtpServer], Server]] = {
        "postfix": lambda folder, sink: Postfix(folder, tls, sink),
        "exim": lambda folder, sink: Exim(folder, tls, sink),
        "opensmtpd": lambda folder, sink: OpenSmtpd(folder, tls, sink),
        "aiosmtpd": lambda folder, sink: Aiosmtpd(tls),
        "smtp-server": lambda folder, sink: NpmSmtpServer(folder, tls),
        "haraka": lambda folder, sink: Haraka(folder, tls),
    }
    rows = []
    for name in names or list(makers):
        folder = root / name
        folder.mkdir()
        async with SmtpServer(Script(extensions=[*DEFAULT_EXTENSIONS, "CHUNKING"]), keep_commands=False) as sink:
            server = makers[name](folder, sink)
            row = await row_of(server, tls)
        if row.left_out or not row.good:
            sys.stderr.write(f"--- {name}: {row.left_out}\n{server.log()}\n")
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interop")
    parser.add_argument("--write", action="store_true", help="write docs/interop.md and docs/interop.json")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Requiring AUTH while not requiring TLS")
    configure_logs(log_level="error", stream=io.StringIO())
    os.umask(0o022)
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        rows = asyncio.run(_all(options.names, Path(root)))
    sys.stdout.write(terminal(rows))
    if options.write:
        facts = {"python": platform.python_version(), "servers": [row.as_json() for row in rows]}
        (_DOCS / "interop.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        (_DOCS / "interop.md").write_text(markdown(rows))
    return 0 if all(row.good for row in rows) and any(not row.left_out for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
