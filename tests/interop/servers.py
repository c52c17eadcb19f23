"""What every server here has in common: two ports, one certificate, one login, and a list of what it was given."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trustme import KeyType

from tests.support.smtp_server import SmtpServer, certificate

USER, PASSWORD = "relay", "Correct-Horse-7"
START_SECONDS = 30.0


@dataclass(frozen=True)
class Arrived:
    """What came out at the far side of a server."""

    sender: str
    recipients: tuple[str, ...]
    octets: bytes
    parameters: str = ""  # of MAIL and RCPT, where the server passed the mail on


class Server(Protocol):
    """One server product, started. `port` speaks plain and STARTTLS, `tls_port` TLS from the first octet."""

    name: str
    port: int
    tls_port: int

    async def start(self) -> str:
        """The version; raises Missing where it can't be had."""

    async def stop(self) -> None:
        """Gone, with all that it started."""

    def arrived(self) -> Sequence[Arrived]:
        """All that arrived so far."""

    def log(self) -> str:
        """The end of what it said, for when it fails."""


def free_port() -> int:
    """A port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def listening(port: int) -> bool:
    """Whether it greets within the time that a start may take."""
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            greeting = await asyncio.wait_for(reader.read(3), 5)
            writer.close()
        except (OSError, TimeoutError):
            greeting = b""
        if greeting == b"220":
            return True
        await asyncio.sleep(0.1)
    return False


def why_not(log: str) -> str:
    """The last line of a log that says something, for a server that did not start."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return f"it did not start: {lines[-1][:160]}" if lines else "it did not start, and said nothing"


class Certificate:
    """One authority for all; files for servers that read files."""

    def __init__(self, folder: Path) -> None:
        authority, self.context = certificate("localhost")
        self.ca = folder / "ca.pem"
        self.chain = folder / "chain.pem"
        self.key = folder / "key.pem"
        issued = authority.issue_cert("localhost", key_type=KeyType.RSA)  # OpenSMTPD takes no other
        authority.cert_pem.write_to_path(str(self.ca))
        for pem in issued.cert_chain_pems:
            pem.write_to_path(str(self.chain), append=True)
        issued.private_key_pem.write_to_path(str(self.key))
        self.key.chmod(0o600)


class Passing:
    """A server that passes on all it gets to our scripted server."""

    def __init__(self, sink: SmtpServer) -> None:
        self.sink = sink
        self.port = free_port()
        self.tls_port = free_port()

    def arrived(self) -> list[Arrived]:
        return [
            Arrived(
                one.sender,
                tuple(one.to),
                one.body,
                " ".join([one.params, *(parameters for _, parameters in one.recipients)]),
            )
            for one in self.sink.messages
        ]


class Keeping:
    """A server that writes a mail as <n>.eml, and its envelope as <n>.json when the mail is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.tls_port = free_port()

    def arrived(self) -> list[Arrived]:
        found = []
        for path in sorted(self.folder.glob("*.json")):
            envelope = json.loads(path.read_text())
            found.append(Arrived(envelope["from"], tuple(envelope["to"]), path.with_suffix(".eml").read_bytes()))
        return found
