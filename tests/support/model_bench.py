"""A real relay under a model's eyes: servers that follow fates, restarts, crashes, and what lies where.

Everything runs in one event loop that stands still between two steps; time moves only when a step moves it.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from api.app import create_app
from core.domain.account import Account, Directory
from core.domain.message import MessageIdentity
from core.errors import StorageBroken
from core.runtime.relay import Relay
from core.settings import Settings
from core.store.entry import Entry
from core.store.store import DATABASE_FILE
from tests.support.clock import ManualClock
from tests.support.model import LOST, TAKEN, Fate, Mail, Seen
from tests.support.relay import account, add_account, add_directory, settings_for, until
from tests.support.smtp_server import Close, Hang, Script, Session, SmtpServer

NUMBER = re.compile(rb"^Subject: mail (\d+)\r$", re.MULTILINE)
MTIME = 1_790_000_000
OCTETS = 600
STEADY_LOOKS = 4
CALM_SECONDS = 60.0  # much longer than anything takes: a relay that never comes to rest has a fault
DOT_REPLIES = {
    Fate.DOT_LATER: "451 4.3.0 later",
    Fate.DOT_NEVER: "554 5.6.0 no",
    Fate.QUOTA: "550 5.4.5 daily sending limit exceeded",
}

AT_DOT, BEFORE_COMMIT, BEFORE_DISPOSAL = "at the dot", "before the commit", "before the disposal"
CRASHES = (AT_DOT, BEFORE_COMMIT, BEFORE_DISPOSAL)


class FatefulServer:
    """A server that treats each recipient as `fates` says, and writes down what it saw."""

    def __init__(self, name: str, fates: dict[str, Fate], seen: list[Seen]) -> None:
        self.name = name
        self.fates = fates
        self.seen = seen
        self.hang: bool | None = None  # at the dot of every mail; True: having taken it
        self._open: dict[int, Seen] = {}
        script = Script(mail={"*": self._mail}, rcpt={"*": self._rcpt}, data=self._data, dot=self._dot)
        self.server = SmtpServer(script, keep_bodies=False, keep_commands=False)

    def _mail(self, session: Session, sender: str) -> Any:
        number = int(sender.partition("@")[0].removeprefix("m"))
        self._open[session.number] = seen = Seen(self.name, number)
        self.seen.append(seen)
        return "250 2.1.0 ok"

    def _rcpt(self, session: Session, mailbox: str) -> Any:
        seen, fate = self._open[session.number], self.fates[mailbox]
        seen.asked.append(mailbox)
        if fate is Fate.RCPT_LATER:
            seen.refused[mailbox] = fate
            return "450 4.2.0 later"
        if fate is Fate.RCPT_NEVER:
            seen.refused[mailbox] = fate
            return "550 5.1.1 no such user"
        return "250 2.1.5 ok"

    def _data(self, session: Session, _argument: str) -> Any:
        seen = self._open[session.number]
        if not session.recipients:
            return "554 5.5.1 no valid recipients"
        if self._fate(session) is Fate.CUT:
            seen.end = Fate.CUT
            return Close()
        seen.at_data = True
        return "354 go ahead"

    def _dot(self, session: Session, _argument: str) -> Any:
        seen = self._open[session.number]
        if self.hang is not None:
            seen.end = Fate.TAKE_AND_LOSE if self.hang else Fate.LOSE
            return Hang(take=self.hang)
        seen.end = fate = self._fate(session)
        if fate in LOST:
            return Close(take=fate in TAKEN)
        return DOT_REPLIES.get(fate, "250 2.0.0 taken")

    def _fate(self, session: Session) -> Fate:
        """The worst that is to happen to the content: of the first recipient with such a fate."""
        fates = [self.fates[mailbox] for mailbox, _ in session.recipients]
        return next((fate for fate in fates if fate is not Fate.TAKE), Fate.TAKE)

    @property
    def in_content(self) -> bool:
        """Whether a mail is between DATA and its dot."""
        return any(seen.at_data and seen.end is None for seen in self._open.values())


class _Dying:
    """The ledger of a relay that is about to be killed: goes no further than `when`."""

    healthy = True

    def __init__(self, relay: Relay, when: str) -> None:
        self._relay = relay
        self._when = when
        self.under_way = 0
        self.reached = 0  # messages that got as far as they will get

    async def settle(self, entry: Entry) -> object:
        settle = self._relay.store.ledger.settle
        self.under_way += 1
        if self._when == AT_DOT:
            answer = await settle(entry)
            self.under_way -= 1
            return answer
        if self._when == BEFORE_DISPOSAL:
            await settle(replace(entry, disposal=None, disposer=None))
        self.under_way -= 1
        self.reached += 1
        return await asyncio.get_running_loop().create_future()


_apps: list[FastAPI] = []


def _app(settings: Settings) -> FastAPI:
    """One for all: what it builds for its routes takes longer than an example should."""
    if not _apps:
        _apps.append(create_app(settings))
    return _apps[0]


class ModelBench:
    """See the module's text. `pickup` and `accounts` are the settings as they should be saved."""

    def __init__(self, root: Path, fates: dict[str, Fate]) -> None:
        self.root = root
        self.clock = ManualClock()
        self.seen: list[Seen] = []
        self.servers = {name: FatefulServer(name, fates, self.seen) for name in ("main", "other")}
        self.accounts: dict[str, Account] = {}
        self.path = root / "spool" / "pickup"
        self.pickup = Directory(
            "pickup", str(self.path), ("main",), watch=False, interval_seconds=86_400, unknown_max=3
        )

    # --- its life ---

    async def open(self) -> None:
        """Servers, and a relay with one account and the directory."""
        self.path.mkdir(parents=True)
        for each in self.servers.values():
            await each.server.start()
        await self.start()
        await self.add_account("main")
        await add_directory(self.relay, self.pickup)

    async def close(self) -> None:
        await self.stop()
        for each in self.servers.values():
            await each.server.stop()

    async def start(self, *, new_database: bool = False) -> None:
        settings = settings_for(self.root, new_database=new_database)
        self.relay = Relay(settings, clock=self.clock, chance=lambda: 0.5)
        app = _app(settings)
        app.state.relay = self.relay
        key = settings.api_key.get_secret_value() if settings.api_key else ""
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://relay", headers={"Authorization": f"Bearer {key}"}
        )
        await self.relay.start()
        assert self.relay.state == "ready"

    async def stop(self) -> None:
        await self.settled()
        await self.http.aclose()
        await self.relay.stop()

    async def lose_database(self) -> None:
        """Stop, lose it, start with a new one and save the same settings again."""
        await self.stop()
        for left in (self.root / "data").glob(f"{DATABASE_FILE}*"):
            left.unlink()
        await self.start(new_database=True)
        for value in self.accounts.values():
            await add_account(self.relay, value)
        await add_directory(self.relay, self.pickup)

    async def add_account(self, name: str) -> None:
        self.accounts[name] = account(self.servers[name].server, name)
        await add_account(self.relay, self.accounts[name])

    # --- killed in the middle ---

    async def crash(self, when: str, *, taken: bool) -> None:
        """Let it work off what is due as far as `when`, then kill it: nothing more is written, all locks go.

        `taken`: at the dot, whether the server has taken the mail.
        """
        if when == AT_DOT:
            for each in self.servers.values():
                each.hang = taken
        self.relay.delivery._ledger = dying = _Dying(self.relay, when)
        await self.http.post("/drain?wait=false", json={})
        await self._steady(lambda: self._stuck(dying, when))
        await self._kill()
        for each in self.servers.values():
            each.hang = None
            each.server.drop()

    def _stuck(self, dying: _Dying, when: str) -> tuple[bool, object]:
        """Whether nothing can move any more, and a mark that changes with each move."""
        working = sum(inlet.cycle.in_flight for inlet in self.relay.inlets)
        between = any(each.in_content for each in self.servers.values())
        asked = sum(len(seen.asked) for seen in self.seen)
        stuck = not between and not dying.under_way and (when == AT_DOT or dying.reached == working)
        return stuck, (working, dying.reached, len(self.seen), asked)

    async def _steady(self, look: Callable[[], tuple[bool, object]]) -> None:
        """Until it has been so a few times in a row."""
        marks: list[object] = []

        def steady() -> bool:
            stuck, mark = look()
            marks.append(mark)
            return stuck and len(marks) > STEADY_LOOKS and len(set(marks[-STEADY_LOOKS:])) == 1

        await until(steady, "standstill")

    async def _kill(self) -> None:
        """As SIGKILL does it: from here on nothing of this relay changes a file or the database."""
        relay = self.relay
        for inlet in relay.inlets:
            for place in inlet.spool._places():
                place.closed = True  # disposals and put-backs do nothing
                place.log.stop(StorageBroken("killed"))
        await self.http.aclose()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for inlet in relay.inlets:
            for place in inlet.spool._places():
                segments = place.log._segments
                while segments:
                    os.close(segments.popleft()[1])
                place.closed = False  # so that `close` lets go of the descriptors
            inlet.cycle.begin_stop()
            inlet.spool.close()
        relay.outlets.abort()
        await relay.scheduler.stop()
        relay.watcher.close()
        await relay.outlets.close()
        await asyncio.to_thread(relay.store.close)

    # --- between two steps ---

    async def settled(self) -> None:
        """Until the relay has nothing to do without anything new."""
        calm = 0
        async with asyncio.timeout(CALM_SECONDS):
            while calm < 2:
                busy = self._busy()
                calm = 0 if busy else calm + 1
                await asyncio.sleep(0.001 if busy else 0)
                if not busy:
                    await self.relay.store.ledger.flush()
                    writing = self.relay.pause_records._writing
                    await asyncio.gather(*([writing] if writing is not None else []), *self.relay.outlets._closing)

    def _busy(self) -> bool:
        relay, scheduler = self.relay, self.relay.scheduler
        if scheduler._busy or scheduler._woken or scheduler._again or scheduler._tasks:
            return True
        if scheduler._scheduler._executors["default"]._pending_futures:
            return True
        if relay.drains._register.open() or relay.operations._register.open():
            return True
        if any(_soon(outlet.timer) for outlet in relay.outlets._outlets.values()):
            return True
        for inlet in relay.inlets:
            next_run = scheduler.next_run_at(inlet.directory.name)
            if next_run is not None and next_run < time.time() + 1:
                return True
            cycle = inlet.cycle
            if cycle._working or cycle._offered or _soon(cycle._timer):
                return True
        return False

    def advance(self, seconds: float) -> None:
        """Time passes, for the timers of the loop too."""
        self.clock.advance(seconds)
        for inlet in self.relay.inlets:
            inlet.cycle._set_timer()
        for name, outlet in self.relay.outlets._outlets.items():
            self.relay.outlets._arm(name, outlet)

    # --- files ---

    def drop(self, mail: Mail, name: str, *, by_rename: bool, twin: bool) -> None:
        """Write the mail under this name. `twin`: with the time that all twins have; others have one size."""
        head = (
            f"From: m{mail.number}@shop.example\r\nTo: {', '.join(mail.recipients)}\r\n"
            f"Subject: mail {mail.number}\r\nMessage-ID: <{mail.number}@shop.example>\r\n\r\n"
        ).encode()
        data = head.ljust(OCTETS + (mail.number + 1 if twin else 0), b".")
        mtime_ns = (MTIME + (0 if twin else mail.number + 1)) * 10**9
        target = self.path / name
        written = self.root / "spool" / "written" if by_rename else target
        written.write_bytes(data)
        os.utime(written, ns=(mtime_ns, mtime_ns))
        if by_rename:
            written.rename(target)
        mail.id = MessageIdentity("pickup", name.encode(), mtime_ns, len(data)).id

    def files(self) -> dict[str, int]:
        """Name relative to the directory -> number of the mail in it. Fails for what is left over."""
        found = {}
        for folder, prefix in ((self.path, ""), (self.path / "badmail", "badmail/")):
            for path in folder.iterdir() if folder.is_dir() else ():
                if path.is_dir() or path.name.endswith(".reason.txt"):
                    continue
                match = NUMBER.search(path.read_bytes())
                assert match is not None, f"{path} is no mail of ours"
                found[prefix + path.name] = int(match[1])
        for path in (self.path / ".mpu").iterdir():
            assert not path.name.startswith("tmp-"), f"{path} is left over"
        return found

    # --- the interface ---

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, *, status: int = 200, **body: Any) -> Any:
        answer = await self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def patch(self, path: str, **body: Any) -> None:
        answer = await self.http.patch(path, json=body)
        assert answer.status_code == 200, answer.text


def _soon(timer: asyncio.TimerHandle | None) -> bool:
    """Whether it goes off without time being moved."""
    return timer is not None and timer.when() < asyncio.get_running_loop().time() + 0.01
