"""One server's row of the table: every way in, every mail, and what the wire and the far side show."""

from __future__ import annotations

import asyncio
import hashlib
import re
import smtplib
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.domain.account import Account, AuthMethod, Security
from core.domain.message import parse_message_id
from core.transport.check import check
from tests.interop.mails import Mail, mails, too_large
from tests.interop.packages import Missing
from tests.interop.servers import PASSWORD, USER, Arrived, Certificate, Passing, Server
from tests.interop.wire import Wire
from tests.support.relay import running

_ARRIVE_SECONDS = 20.0
_TRACE = re.compile(
    rb"(?i)(?:received|return-path|authentication-results|delivered-to|x-peer|x-mailfrom|x-rcptto):[^\r]*\r\n"
    rb"(?:[ \t][^\r]*\r\n)*"
)
WAYS = ("plain", "STARTTLS", "TLS", "AUTH")
EXTENSIONS = ("PIPELINING", "CHUNKING", "SMTPUTF8", "SIZE", "DSN", "8BITMIME")


@dataclass
class Way:
    """What came of all mails over one way in."""

    mails: int = 0
    intact: int = 0
    refused: dict[str, str] = field(default_factory=dict)  # mail -> the reason, where refusing it is right
    faults: list[str] = field(default_factory=list)
    negotiated: str = ""


@dataclass
class Row:
    """One server."""

    server: str
    version: str = ""
    left_out: str = ""  # the reason
    ways: dict[str, Way] = field(default_factory=dict)
    extensions: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.faults and not any(way.faults for way in self.ways.values())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def row_of(server: Server, tls: Certificate) -> Row:
    """Try the server in all ways."""
    row = Row(server.name)
    try:
        row.version = await server.start()
        for name in WAYS:
            await _way(server, tls, name, row)
        await _wrong_password(server, tls, row)
    except Missing as error:
        row.left_out = str(error)
    finally:
        await server.stop()
    return row


def _account(name: str, port: int, tls: Certificate) -> Account:
    return Account(
        "main",
        "127.0.0.1" if name == "plain" else "localhost",
        port,
        security={"plain": Security.NONE, "TLS": Security.TLS}.get(name, Security.STARTTLS),
        auth=AuthMethod.PLAIN if name == "AUTH" else AuthMethod.NONE,
        username=USER if name == "AUTH" else None,
        password=PASSWORD if name == "AUTH" else None,
        tls_ca_file=str(tls.ca),
    )


async def _way(server: Server, tls: Certificate, name: str, row: Row) -> None:
    way = row.ways[name] = Way()
    before = len(server.arrived())
    async with Wire(server.tls_port if name == "TLS" else server.port) as wire:
        account = _account(name, wire.port, tls)
        steps = {step.name: step for step in await check(account)}
        broken = "" if all(step.ok for step in steps.values()) else await asyncio.to_thread(_broken_tls, name, server)
        if broken:
            way.negotiated = f"not possible: the server's TLS fails with smtplib too: {broken}"
            return
        way.faults += [f"{step.name}: {step.detail}" for step in steps.values() if not step.ok]
        offered = dict.fromkeys(steps["ehlo"].detail.split()) if "ehlo" in steps else {}
        way.negotiated = next((steps[key].detail for key in ("starttls", "tls") if key in steps), "")
        with tempfile.TemporaryDirectory() as root:
            sent = mails()
            way.mails = len(sent)
            async with running(Path(root), [account]) as bench:
                for mail in sent:
                    bench.drop(f"{mail.name}.eml", mail.file)
                await bench.drain(timeout_seconds=100)
                waiting = bench.names()
                refused = await _reasons(bench)
            due = [mail for mail in sent if mail.name not in refused]
            if waiting and waiting != ["badmail"]:
                way.faults.append(f"still waiting: {', '.join(waiting)}")
            arrived = await _arrived(server, before, due)
            _judge(way, sent, arrived, refused, "SMTPUTF8" in offered)
        if name == "plain":
            _extensions(row, wire, arrived, passes=isinstance(server, Passing))
            await _too_large(server, tls, row)
        elif not wire.handshakes or wire.client_said(rb"MAIL FROM"):
            way.faults.append("mail went without TLS")


def _broken_tls(name: str, server: Server) -> str:
    """What another client, the standard library's, says of the server's TLS; "" where it works."""
    context = ssl._create_unverified_context()  # whether it works at all
    try:
        if name == "TLS":
            smtplib.SMTP_SSL("127.0.0.1", server.tls_port, timeout=10, context=context).quit()
        elif name != "plain":
            with smtplib.SMTP("127.0.0.1", server.port, timeout=10) as client:
                client.starttls(context=context)
                client.ehlo()
    except (OSError, smtplib.SMTPException) as error:
        return str(error)
    return ""


async def _reasons(bench: Any) -> dict[str, str]:
    """Mail -> why its recipients were not sent to."""
    items = (await bench.get("/history", limit=500))["items"]
    found: dict[str, str] = {}
    for item in items:
        if item["status"] != "sent":
            name = parse_message_id(item["message_id"]).name.decode().removesuffix(".eml")
            found[name] = f"{item['status']}: {item['code']} {item['enhanced_code']} {item['text']}"
    return found


async def _arrived(server: Server, before: int, due: Sequence[Mail]) -> list[Arrived]:
    """What arrived of the mails, once every recipient has his or time is over."""
    wanted = sum(len(mail.recipients) for mail in due)
    deadline = asyncio.get_running_loop().time() + _ARRIVE_SECONDS
    while True:
        arrived = list(server.arrived()[before:])
        if sum(len(one.recipients) for one in arrived) >= wanted:
            return arrived
        if asyncio.get_running_loop().time() > deadline:
            return arrived
        await asyncio.sleep(0.1)


def _judge(way: Way, sent: Sequence[Mail], arrived: Sequence[Arrived], refused: dict[str, str], smtputf8: bool) -> None:
    by_hash: dict[str, list[Arrived]] = {}
    for one in arrived:
        by_hash.setdefault(_hash(one.octets), []).append(one)
    for mail in sent:
        if mail.name in refused:
            if mail.international and not smtputf8 and "5.6.7" in refused[mail.name]:
                way.refused[mail.name] = refused[mail.name]
            else:
                way.faults.append(f"{mail.name} was refused: {refused[mail.name]}")
            continue
        copies = by_hash.pop(_hash(mail.expected), [])
        got = sorted(to for one in copies for to in one.recipients)
        if got == sorted(mail.recipients) and all(one.sender == mail.sender for one in copies):
            way.intact += 1
        else:
            way.faults.append(f"{mail.name}: {len(copies)} intact copies for {len(got)} recipients")
    way.faults += [f"not intact: {copies[0].octets[:200]!r}" for copies in by_hash.values()]


def _hash(octets: bytes) -> str:
    """Of the mail without the trace fields that a server puts on top, line ends as CRLF."""
    at = 0
    while (field_there := _TRACE.match(octets, at)) is not None:
        at = field_there.end()
    return hashlib.sha256(octets[at:]).hexdigest()


def _extensions(row: Row, wire: Wire, arrived: Sequence[Arrived], *, passes: bool) -> None:
    used = {
        "PIPELINING": wire.pipelined,
        "CHUNKING": wire.client_said(rb"(?:\A|\r\n)BDAT \d+"),
        "SMTPUTF8": wire.client_said(rb"MAIL FROM:[^\r\n]* SMTPUTF8"),
        "SIZE": wire.client_said(rb"MAIL FROM:[^\r\n]* SIZE=\d+"),
        "DSN": wire.client_said(rb"MAIL FROM:[^\r\n]* RET=HDRS ENVID=order-42")
        and wire.client_said(rb"RCPT TO:[^\r\n]* NOTIFY=SUCCESS,FAILURE ORCPT="),
        "8BITMIME": wire.client_said(rb"MAIL FROM:[^\r\n]* BODY=8BITMIME"),
    }
    for name in EXTENSIONS:
        if name not in wire.offered:
            row.extensions[name] = "not offered"
            if used[name]:
                row.faults.append(f"{name} was used without being offered")
        elif used[name]:
            row.extensions[name] = "used"
        else:
            row.extensions[name] = "offered, not used"
            row.faults.append(f"{name} was offered and not used")
    if passes and row.extensions["DSN"] == "used":
        kept = any("ENVID=order-42" in one.parameters and "NOTIFY=" in one.parameters for one in arrived)
        row.extensions["DSN"] += ", passed on" if kept else ", kept to itself"


async def _too_large(server: Server, tls: Certificate, row: Row) -> None:
    """A mail over the size that the server states is refused here, before MAIL."""
    async with Wire(server.port) as wire:
        with tempfile.TemporaryDirectory() as root:
            async with running(Path(root), [_account("plain", wire.port, tls)]) as bench:
                bench.drop("too-large.eml", too_large().file)
                await bench.drain(timeout_seconds=100)
                reasons = await _reasons(bench)
        limit = wire.offered.get("SIZE", "")
        if not limit.isdigit() or int(limit) == 0:
            return
        if "5.3.4" in reasons.get("too-large", "") and not wire.client_said(rb"MAIL FROM"):
            row.extensions["SIZE"] += f", limit {limit}: a larger mail is refused before MAIL"
        else:
            row.faults.append(f"over the size limit: {reasons.get('too-large', 'nothing came of it')}")


async def _wrong_password(server: Server, tls: Certificate, row: Row) -> None:
    """A wrong password is the account's fault: the mail waits, nothing arrives."""
    if not row.ways["AUTH"].mails:
        return
    before = len(server.arrived())
    good = _account("AUTH", server.port, tls)
    with tempfile.TemporaryDirectory() as root:
        account = Account(
            "main", good.host, good.port, security=good.security, auth=good.auth, username=USER,
            password="not it", tls_ca_file=good.tls_ca_file,
        )  # fmt: skip
        async with running(Path(root), [account]) as bench:
            bench.drop("plain.eml", mails()[0].file)
            await bench.drain(timeout_seconds=100)
            if bench.names() != ["plain.eml"] or len(server.arrived()) != before:
                row.faults.append(f"with a wrong password: {bench.names()}")
    row.ways["AUTH"].negotiated += ", wrong password refused"
