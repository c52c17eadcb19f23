"""Other people's servers: what .NET wrote arrives there as meant, Bcc hidden, over plain, STARTTLS and TLS."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from core.domain.account import Account, AuthMethod, Security
from tests.acceptance.test_delivery import DOTNET, DOTNET_SENT
from tests.support.relay import running, until
from tests.support.smtp_server import certificate


class _Kept:
    def __init__(self) -> None:
        self.mails: list[Envelope] = []
        self.encrypted: list[bool] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        self.mails.append(envelope)
        self.encrypted.append(
            server.transport is not None and server.transport.get_extra_info("sslcontext") is not None
        )
        return "250 2.0.0 kept"


@asynccontextmanager
async def _aiosmtpd(kept: _Kept, security: Security, context: ssl.SSLContext) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()

    def make() -> SMTP:
        starttls: Any = context if security is Security.STARTTLS else None
        return SMTP(kept, loop=loop, tls_context=starttls, require_starttls=starttls is not None, hostname="localhost")

    server = await loop.create_server(make, "127.0.0.1", 0, ssl=context if security is Security.TLS else None)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize("security", list(Security))
async def test_aiosmtpd(tmp_path: Path, security: Security) -> None:
    kept = _Kept()
    authority, context = certificate("localhost")
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    async with _aiosmtpd(kept, security, context) as port:
        account = Account("main", "localhost", port, security=security, auth=AuthMethod.NONE, tls_ca_file=str(ca_file))
        async with running(tmp_path, [account], watch=True) as bench:
            bench.drop("a.eml", DOTNET)
            await until(lambda: kept.mails and not bench.names(), "delivery")
        (mail,) = kept.mails
        assert mail.mail_from == "shop@example.com"
        assert mail.rcpt_tos == ["jo@example.org", "audit@example.com"]
        assert mail.content == DOTNET_SENT
        assert kept.encrypted == [security is not Security.NONE]


@pytest.mark.peer
@pytest.mark.skipif(shutil.which("smtp-sink") is None, reason="Debian's smtp-sink is not installed")
@pytest.mark.parametrize("options", [[], ["-p"], ["-8"], ["-e"]], ids=["esmtp", "no-pipelining", "no-8bit", "helo"])
async def test_smtp_sink_of_postfix(tmp_path: Path, options: list[str], unused_tcp_port: int) -> None:
    dump = Path(tempfile.mkdtemp())  # where nobody may write too
    dump.chmod(0o777)
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    process = await asyncio.create_subprocess_exec(
        "smtp-sink", *user, *options, "-d", f"{dump}/mail.", f"127.0.0.1:{unused_tcp_port}", "10"
    )
    account = Account("main", "127.0.0.1", unused_tcp_port, security=Security.NONE, auth=AuthMethod.NONE)
    try:
        await until(lambda: _listens(unused_tcp_port), "smtp-sink's start")
        async with running(tmp_path, [account], watch=True) as bench:
            bench.drop("a.eml", DOTNET)
            await until(lambda: _whole(dump) and not bench.names(), "delivery")
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 10)
        text = _whole(dump)
        shutil.rmtree(dump)
    assert "X-Mail-Args: <shop@example.com>" in text
    assert "X-Rcpt-Args: <jo@example.org>\nX-Rcpt-Args: <audit@example.com>" in text
    assert text.rstrip("\n").endswith(DOTNET_SENT.decode().replace("\r\n", "\n").rstrip("\n"))


def _listens(port: int) -> bool:
    return f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()


def _whole(dump: Path) -> str:
    return "".join(path.read_text() for path in dump.iterdir())
