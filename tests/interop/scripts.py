"""aiosmtpd of Python, smtp-server and Haraka of npm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.interop.mails import SIZE_LIMIT
from tests.interop.packages import Missing, node
from tests.interop.servers import PASSWORD, USER, Arrived, Certificate, Keeping, free_port, listening, why_not

_HERE = Path(__file__).parent
_PLUGINS = ["tls", "auth/flat_file", "keep"]


class Aiosmtpd:
    """In this process."""

    name = "aiosmtpd"

    def __init__(self, tls: Certificate) -> None:
        self.port, self.tls_port = free_port(), free_port()
        self._tls = tls
        self._kept: list[Arrived] = []
        self._servers: list[asyncio.Server] = []

    async def start(self) -> str:
        loop = asyncio.get_running_loop()

        def make(*, starttls: bool) -> SMTP:
            return SMTP(
                self, loop=loop, hostname="localhost", data_size_limit=SIZE_LIMIT, enable_SMTPUTF8=True,
                tls_context=self._tls.context if starttls else None, authenticator=_authenticate,
                auth_require_tls=starttls,
            )  # fmt: skip

        self._servers.append(await loop.create_server(lambda: make(starttls=True), "127.0.0.1", self.port))
        self._servers.append(
            await loop.create_server(lambda: make(starttls=False), "127.0.0.1", self.tls_port, ssl=self._tls.context)
        )
        return version("aiosmtpd")

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - its name
        content = envelope.content
        assert isinstance(content, bytes)
        self._kept.append(Arrived((envelope.mail_from or "").strip("<>"), tuple(envelope.rcpt_tos), content))
        return "250 2.0.0 kept"

    async def stop(self) -> None:
        for server in self._servers:
            server.close()

    def arrived(self) -> list[Arrived]:
        return self._kept

    def log(self) -> str:
        return ""


def _authenticate(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    right = isinstance(data, LoginPassword) and (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=right, handled=False)  # it says 535 itself


class _Node(Keeping):
    """A program that Node runs until it is ended."""

    def __init__(self, root: Path, tls: Certificate) -> None:
        super().__init__(root / "kept")
        self.root, self.tls = root, tls
        self.folder.mkdir(parents=True)
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, package: Path, *command: str) -> None:
        if shutil.which("node") is None:
            raise Missing("node is not installed")
        environment = {**os.environ, "NODE_PATH": str(package / "node_modules"), "KEPT": str(self.folder)}
        with (self.root / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                "node", *command, cwd=self.root, env=environment, stdout=log, stderr=log
            )
        if not await listening(self.port):
            raise Missing(why_not(self.log()))

    async def stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def log(self) -> str:
        path = self.root / "log"
        return path.read_text(errors="replace")[-1500:] if path.exists() else ""


def _version(package: Path, name: str) -> str:
    found: str = json.loads((package / "node_modules" / name / "package.json").read_text())["version"]
    return found


class NpmSmtpServer(_Node):
    """smtp-server, of the authors of Nodemailer."""

    name = "smtp-server"

    async def start(self) -> str:
        package = node("smtp-server")
        settings = {
            "port": self.port, "tlsPort": self.tls_port, "size": SIZE_LIMIT, "user": USER, "password": PASSWORD,
            "cert": str(self.tls.chain), "key": str(self.tls.key), "kept": str(self.folder),
        }  # fmt: skip
        await self.run(package, str(_HERE / "smtp_server.js"), json.dumps(settings))
        return _version(package, "smtp-server")


class Haraka(_Node):
    """Haraka, with a plugin that keeps what it gets."""

    name = "Haraka"

    async def start(self) -> str:
        package = node("Haraka")
        config = self.root / "config"
        for folder in (config, self.root / "plugins", self.root / "queue"):
            folder.mkdir()
        shutil.copy(_HERE / "haraka_keep.js", self.root / "plugins" / "keep.js")
        given = (package / "node_modules/Haraka/config/connection.ini").read_text()
        files = {
            "smtp.ini": f"listen=127.0.0.1:{self.port},127.0.0.1:{self.tls_port}\nsmtps_port={self.tls_port}\n",
            "plugins": "\n".join(_PLUGINS) + "\n",
            "databytes": f"{SIZE_LIMIT}\n",
            "connection.ini": f"{given}\n[max]\nbytes={SIZE_LIMIT}\ndata_line_length=1000\n",
            "tls.ini": f"key={self.tls.key}\ncert={self.tls.chain}\n",
            "auth_flat_file.ini": f"[core]\nmethods=PLAIN,LOGIN\nconstrain_sender=false\n[users]\n{USER}={PASSWORD}\n",
            "me": "haraka.interop.example\n",
            "loglevel": "NOTICE\n",
        }
        for name, text in files.items():
            (config / name).write_text(text)
        await self.run(package, str(package / "node_modules/Haraka/bin/haraka"), "-c", str(self.root))
        return _version(package, "Haraka")
