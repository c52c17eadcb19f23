"""P4: power cuts. A run is recorded effect by effect; at a cut the model of disk.py forgets what was not synced, and a
relay starts on what is left, against the same server.

SQLite's own files are not in the model: the database is found as of the last commit before the cut, which SQLite
(synchronous=FULL) promises. What may be doubled: messages whose final dot was out and whose group wasn't committed.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from core.domain.message import parse_message_id
from core.runtime.relay import Relay
from core.spool import kernel
from tests.chaos.child import Place, directory_at, empty, faults_in, place_at, run_to_end, set_up
from tests.chaos.disk import MODES, Op, Recorder, after, materialise
from tests.chaos.effects import install
from tests.chaos.mails import Letter, letters, move_in
from tests.chaos.result import Plan, Row
from tests.chaos.server import Ledger, refused, server
from tests.chaos.workers import spread

VERDICTS = "ttttttttttddru"
CUTS_A_RECORDING = 20
MAILS = 40


@dataclass
class Found:
    """What one cut came to."""

    lost: int = 0
    allowed: int = 0
    seen: int = 0
    misses: list[str] = field(default_factory=list)


def power(plan: Plan) -> list[Row]:
    """200 cuts."""
    row = Row("P4", "power cuts: what was not synced is forgotten")
    cuts = plan.size(200, 12)
    recordings = [min(CUTS_A_RECORDING, cuts - done) for done in range(0, cuts, CUTS_A_RECORDING)]
    if not plan.full:
        recordings = [cuts // 2, cuts - cuts // 2]
    shares = [(number, count) for number, count in enumerate(recordings)]

    def work(folder: Path, share: Sequence[tuple[int, int]]) -> list[Found]:
        found: list[Found] = []
        for number, count in share:
            with _Recording(folder / f"recording{number}", plan, number) as recording:
                recording.kept = folder
                found += recording.cut(count)
        return found

    found = spread(plan.root, shares, work)
    row.runs, row.messages = len(found), len(found) * MAILS
    row.lost = sum(f.lost for f in found)
    row.doubles_allowed, row.doubles_seen = sum(f.allowed for f in found), sum(f.seen for f in found)
    row.misses = [miss for f in found for miss in f.misses]
    row.notes = f"{len(recordings)} recorded runs of {MAILS} messages; the database as of its last commit"
    row.expect(row.doubles_seen or not plan.full, "no cut fell between a dot and its commit: the run shows little")
    return [row]


class _Recording:
    """One recorded run and its cuts."""

    def __init__(self, root: Path, plan: Plan, number: int) -> None:
        self.name = f"recording {number}"
        self.kept = root
        self.log = ""
        self.chance = random.Random(f"{plan.seed}/{number}")
        self.place: Place = place_at(root)
        self.ledger = Ledger(root / "ledger")
        self.mails = letters(self.chance, f"p{number}x", MAILS, VERDICTS)
        self.snapshots = root / "snapshots"
        self.snapshots.mkdir()
        self.ops: list[Op] = []
        self.first: dict[bytes, int] = {}
        self.times: dict[int, int] = {}
        self.content: dict[int, bytes] = {}
        self._server = server(self.ledger.path)

    def __enter__(self) -> Self:
        port = self._server.__enter__()
        directory = directory_at(self.place, watch=False, interval_seconds=3600)
        set_up(self.place, port, directory=directory, max_connections=self.chance.choice((1, 3, 8)))
        shutil.copytree(self.place.data, self.snapshots / "0")
        for mail in self.mails:
            move_in(self.place.pickup, mail)
            self.times[len(self.first)] = os.stat(self.place.pickup / mail.name).st_mtime_ns
            self.content[len(self.first)] = mail.data
            self.first[mail.name.encode()] = len(self.first)
        run_to_end(self._record, self.place)
        self.ops = pickle.loads((self.place.root / "ops").read_bytes())
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.__exit__(None, None, None)
        shutil.rmtree(self.place.root)

    def _record(self) -> None:
        recorder = Recorder(str(self.place.pickup), self._snapshot)
        for name in self.first:
            recorder.know(name)
        install(recorder)

        async def relay() -> None:
            running = Relay(self.place.settings())
            await running.start()
            await empty(running, self.place)
            await running.stop()

        asyncio.run(relay())
        (self.place.root / "ops").write_bytes(pickle.dumps(recorder.ops))

    def _snapshot(self, number: int) -> None:
        """The database and its log, as they are synced by a commit; its shared memory is made anew at each start."""
        folder = self.snapshots / str(number)
        folder.mkdir()
        for file in self.place.data.iterdir():
            if file.is_file() and not file.name.endswith("-shm"):
                shutil.copy2(file, folder / file.name)

    def cut(self, count: int) -> Iterator[Found]:
        """That many cuts, anywhere after the first message set out."""
        begun = next(i for i, op in enumerate(self.ops) if op.kind == "begun")
        for _ in range(count):
            at = self.chance.randrange(begun, len(self.ops) + 1)
            yield self._cut(at, self.chance.choice(MODES))

    def _cut(self, at: int, mode: str) -> Found:
        ops = self.ops[:at]
        found = after(ops, self.first, self.content, self.chance, mode)
        commits = [op.offset for op in ops if op.kind == "commit"]
        for folder in (self.place.pickup, self.place.data):
            shutil.rmtree(folder)
        shutil.copytree(self.snapshots / str(max(commits, default=0)), self.place.data)
        self.place.pickup.mkdir()
        materialise(found, str(self.place.pickup), self.times)
        before = Counter(self.ledger.read().times)
        name = f"{self.name}, cut at {at} of {len(self.ops)} ({ops[-1].kind if ops else 'nothing'}), {mode}"
        result = Found()
        try:
            run_to_end(self._restarted, self.place)
        except (RuntimeError, TimeoutError) as error:
            result.misses.append(f"{name}: {error}")
        self._judge(ops, self.ledger.read().times - before, result, name)
        if result.misses:  # timing brings no recording back: what is needed to look at it
            evidence = {"ops": self.ops, "at": at, "mode": mode, "found": found, "times": self.times}
            (self.kept / f"{self.name.replace(' ', '')}-{at}.pickle").write_bytes(
                pickle.dumps({**evidence, "mails": self.mails, "database": max(commits, default=0), "log": self.log})
            )
        return result

    def _restarted(self) -> None:
        """The machine was started again."""
        now = time.time()
        kernel.boot_id = lambda: "another start"  # type: ignore[assignment]  # loses its cache
        kernel.boot_time = lambda: now

        async def relay() -> None:
            running = Relay(self.place.settings())
            await running.start()
            await empty(running, self.place)
            await running.stop()

        asyncio.run(relay())

    def _judge(self, ops: Sequence[Op], now: Counter[tuple[str, str]], result: Found, name: str) -> None:
        taken, open_ = _taken(ops)
        for mail in self.mails:
            for mailbox in mail.recipients:
                count = taken[mail.key, mailbox] + now[mail.key, mailbox]
                allowed = open_[mail.key, mailbox] + _unanswered(mail)
                result.allowed += allowed
                if refused(mailbox):
                    result.misses += [f"{name}: {mailbox} was refused and yet taken"] if count else []
                elif not count:
                    result.lost += 1
                    result.misses.append(f"{name}: {mailbox} was lost")
                result.seen += max(count - 1, 0)
                if count - 1 > allowed:
                    told = "its group was committed" if not open_[mail.key, mailbox] else "more than allowed"
                    result.misses.append(f"{name}: {mailbox} came {count} times; {told}")
        dead = {m.name for m in self.mails if any(map(refused, m.recipients))}
        if self.place.badmail() != dead:
            result.misses.append(f"{name}: badmail differs by {sorted(self.place.badmail() ^ dead)}")
        left = self.place.names() + self.place.logs_left()
        result.misses += [f"{name}: left over: {left}"] if left else []
        result.misses += [f"{name}: {line}" for line in faults_in(self.place.log)]
        self.log = self.place.log.read_text() if self.place.log.exists() else ""
        self.place.log.unlink(missing_ok=True)


def _taken(ops: Sequence[Op]) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """How often the server took each recipient before the cut; and of those, how often the group wasn't committed."""
    taken: Counter[tuple[str, str]] = Counter()
    uncommitted: Counter[tuple[str, str]] = Counter()
    begun: dict[str, list[str]] = {}
    for op in ops:
        if op.kind == "begun":
            begun[op.name.decode().removesuffix(".eml")] = op.about
        elif op.kind == "dot":
            for mailbox in begun[op.about]:
                taken[op.about, mailbox] += 1
                uncommitted[op.about, mailbox] += 1
        elif op.kind == "commit":
            keys = {parse_message_id(i).name.decode().removesuffix(".eml") for i in op.about}
            for pair in [p for p in uncommitted if p[0] in keys]:
                del uncommitted[pair]
    return taken, uncommitted


def _unanswered(mail: Letter) -> int:
    """Whether the server closed instead of a reply, once."""
    return int(any(mailbox.partition("@")[0].endswith("u") for mailbox in mail.recipients))
