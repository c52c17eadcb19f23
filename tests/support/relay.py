"""A whole relay in a test: real directories, real SQLite, real SMTP, the HTTP interface in process."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from api.app import create_app
from core.delivery import Delivered
from core.domain.account import Account, AuthMethod, Directory, Security
from core.domain.clock import Clock
from core.domain.outcome import Outcome
from core.runtime.relay import Relay
from core.settings import Settings
from core.store import accounts, directories
from tests.support.database import database
from tests.support.smtp_server import SmtpServer

PATIENCE_SECONDS = 10.0  # for the kernel, threads and sockets; a test that needs it all has failed

SIMPLE = b"From: shop@example.com\r\nTo: jo@example.org\r\nSubject: Invoice\r\n\r\nHello\r\n"


def mail(number: int, *, to: str = "jo@example.org", body: bytes = b"Hello\r\n") -> bytes:
    """A mail that can be told from others by its Message-ID."""
    return (
        f"From: shop@example.com\r\nTo: {to}\r\nSubject: {number}\r\nMessage-ID: <{number}@test>\r\n\r\n".encode()
        + body
    )


def account(server: SmtpServer, name: str = "main", **changes: Any) -> Account:
    """An account at a test server."""
    base = Account(name, "127.0.0.1", server.port, security=Security.NONE, auth=AuthMethod.NONE)
    return replace(base, **changes)


class CountingRelay(Relay):
    """Counts the mails that went out, whichever run took them."""

    sent_mails = 0

    def _on_delivered(self, directory: Directory, delivered: Delivered) -> None:
        super()._on_delivered(directory, delivered)
        self.sent_mails += delivered.outcome is Outcome.SENT


@dataclass
class Bench:
    """A running relay and the ways in."""

    relay: CountingRelay
    http: httpx.AsyncClient
    root: Path
    settings: Settings
    paths: dict[str, Path] = field(default_factory=dict)
    _sent_before: int = 0  # by the end of the last drain

    def drop(self, name: str, data: bytes, directory: str = "pickup") -> Path:
        """Write as .NET does: under the final name, closed at the end."""
        path = self.paths[directory] / name
        path.write_bytes(data)
        return path

    def names(self, directory: str = "pickup") -> list[str]:
        """What lies in the directory; not our own folder."""
        return sorted(n for n in os.listdir(self.paths[directory]) if n != ".mpu")

    async def drain(self, **body: Any) -> dict[str, Any]:
        """POST /drain, and its answer."""
        answer = await self.http.post("/drain", json={"timeout_seconds": 60, **body})
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        self._sent_before = self.relay.sent_mails
        return result

    async def sends(self, count: int, **body: Any) -> None:
        """Drain: so many mails have gone out since the drain before.

        Through this one or the run that an edit or the clock woke beside it, which its own count leaves out.
        """
        before = self._sent_before
        await self.drain(**body)
        await until(lambda: self.relay.sent_mails - before >= count, f"{count} sent")
        assert self.relay.sent_mails - before == count

    async def get(self, path: str, **query: Any) -> Any:
        """A GET that must succeed."""
        answer = await self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def history(self, **query: Any) -> dict[str, str]:
        """Recipient -> status."""
        return {row["recipient"]: row["status"] for row in (await self.get("/history", **query))["items"]}


async def until(condition: Callable[[], Any], what: str = "the condition") -> None:
    """Wait for the kernel, a thread or a socket to make it true."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"{what} did not come true"
        await asyncio.sleep(0.002)


def settings_for(root: Path, **changes: Any) -> Settings:
    """Of a relay whose data and pickup directories lie under `root`."""
    values: dict[str, Any] = {
        "data_dir": root / "data",
        "pickup_roots": (root / "spool",),
        "api_key": "test-key-" + "0" * 40,
        "allowed_smtp_ports": (0,),
        "grace_seconds": 5,
    }
    return Settings(**{**values, **changes})


_unused: defaultdict[tuple[int, int], list[FastAPI]] = defaultdict(list)


@contextmanager
def application(settings: Settings, relay: Relay) -> Iterator[FastAPI]:
    """One that no relay uses now, of those that were made for the same limits: its routes are built as they are asked
    for, which takes longer than most tests.
    """
    unused = _unused[settings.max_request_bytes, settings.max_submit_bytes]
    app = unused.pop() if unused else create_app(settings)
    app.state.settings, app.state.relay = settings, relay
    yield app
    unused.append(app)


@asynccontextmanager
async def running(
    root: Path,
    account_values: Sequence[Account] = (),
    *,
    pickups: Sequence[Directory] | None = None,
    clock: Clock | None = None,
    watch: bool = False,
    **changes: Any,
) -> AsyncIterator[Bench]:
    """A relay with these accounts and, unless given, one directory `pickup` that sends through all of them.

    Without `watch` mail goes when the test drains.
    """
    settings = settings_for(root, **changes)
    (root / "spool").mkdir(exist_ok=True)
    if pickups is None:
        names = tuple(a.name for a in account_values)
        pickups = [Directory("pickup", str(root / "spool" / "pickup"), names, watch=watch)]
    if not settings.data_dir.exists() and not settings.new_database:
        settings.data_dir.mkdir(mode=0o700)
        database(settings.data_dir)  # migrated already
    relay = CountingRelay(settings, clock=clock)
    headers = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"} if settings.api_key else {}
    with application(settings, relay) as app:
        transport = httpx.ASGITransport(app=app)
        http = httpx.AsyncClient(transport=transport, base_url="http://relay", headers=headers)
        await relay.start()
        try:
            bench = Bench(relay, http, root, settings)
            for value in account_values:
                await add_account(relay, value)
            for pickup in pickups:
                await add_directory(relay, pickup)
                bench.paths[pickup.name] = Path(pickup.path)
            yield bench
        finally:
            await relay.stop()
            await http.aclose()


async def add_account(relay: Relay, value: Account) -> None:
    """Save it, without the rules of the API (ports of tests)."""
    now = relay.clock.now()
    known = {record.account.name for record in await relay.store.read(lambda s: accounts.load(s, relay.store.secrets))}
    if value.name in known:
        await relay.store.write(
            lambda s: accounts.change(s, relay.store.secrets, value, now=now, password=value.password)
        )
    else:
        await relay.store.write(lambda s: accounts.create(s, relay.store.secrets, value, now=now))
    await relay.apply_account(value.name)


async def add_directory(relay: Relay, value: Directory) -> None:
    """Save it, and make its folder."""
    Path(value.path).mkdir(parents=True, exist_ok=True)
    now = relay.clock.now()
    known = {record.directory.name for record in await relay.store.read(directories.load)}
    write = directories.change if value.name in known else directories.create
    await relay.store.write(lambda s: write(s, value, now=now))
    await relay.apply_directory(value.name)
    inlet = relay.inlets.get(value.name)
    if value.enabled and value.schedule is None:
        await until(lambda: relay.scheduler.runs(value.name) > 0, "the first run")
        await inlet.cycle.ready()
