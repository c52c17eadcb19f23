"""What a run found, the table that shows it, and the reckoning of lost and doubled mail that most runs share."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.chaos.mails import Letter
from tests.chaos.server import Ledger, refused

MISSES_SHOWN = 20


@dataclass
class Row:
    """One line of the table. Counts are of (message, recipient), but for `messages`."""

    promise: str
    what: str
    runs: int = 0
    messages: int = 0
    lost: int = 0
    doubles_allowed: int | None = None  # None: the promise isn't about duplicates
    doubles_seen: int = 0
    misses: list[str] = field(default_factory=list)
    skipped: str = ""
    notes: str = ""
    seconds: float = 0.0
    seed: int = 0

    @property
    def verdict(self) -> str:
        if self.misses:
            return f"MISSED ({len(self.misses)})"
        return "skipped" if self.skipped else "kept"

    def miss(self, text: str) -> None:
        """Something that was promised did not hold."""
        self.misses.append(text)

    def expect(self, holds: object, text: str) -> None:
        """A miss unless it holds."""
        if not holds:
            self.miss(text)


@dataclass(frozen=True)
class Plan:
    """How a run is to be done."""

    seed: int
    full: bool
    root: Path  # an empty folder of its own

    def size(self, full: int, small: int) -> int:
        """By scale."""
        return full if self.full else small


Experiment = Callable[[Plan], list[Row]]


def timed(experiment: Experiment, plan: Plan) -> list[Row]:
    """Run it; its rows know how long it took, and its seed."""
    began = time.monotonic()
    rows = experiment(plan)
    for row in rows:
        row.seconds, row.seed = round(time.monotonic() - began, 1), plan.seed
    return rows


# --- the reckoning ----------------------------------------------------------------------------------------------------


@dataclass
class Reckoning:
    """The ledger against what was handed over."""

    lost: list[str]
    doubled: Counter[tuple[str, str]]  # beyond once
    refused_yet_taken: list[str]
    damaged: list[str]  # arrived, but not as it should


def reckon(mails: Iterable[Letter], ledger: Ledger) -> Reckoning:
    """Each recipient that the server takes must have been taken; refused ones never; every body as it should be."""
    lost, turned_down, damaged = [], [], []
    known = {mail.key: mail for mail in mails}
    for mail in known.values():
        for mailbox in mail.recipients:
            times = ledger.times[mail.key, mailbox]
            if refused(mailbox):
                turned_down += [mailbox] if times else []
            elif not times:
                lost.append(mailbox)
    for key, hashes in ledger.hashes.items():
        if key not in known or hashes != {known[key].sha256}:
            damaged.append(key)
    doubled = Counter({pair: times - 1 for pair, times in ledger.times.items() if times > 1})
    return Reckoning(lost, doubled, turned_down, damaged)


def marked(database: Path) -> set[str]:
    """Keys of mails that the history marks as possible duplicates."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT internet_message_id FROM message WHERE possible_duplicate")
        return {str(row[0]).strip("<>").partition("@")[0] for row in rows}


# --- the table --------------------------------------------------------------------------------------------------------


def table(rows: Iterable[Row]) -> str:
    """For people."""
    head = ("promise", "what", "runs", "messages", "lost", "doubled: allowed", "seen", "verdict", "seconds", "seed")
    cells = [head]
    for row in rows:
        about = row.doubles_allowed is not None
        allowed, seen = (str(row.doubles_allowed), str(row.doubles_seen)) if about else ("-", "-")
        counts = (str(row.runs), str(row.messages), str(row.lost), allowed, seen)
        cells.append((row.promise, row.what, *counts, row.verdict, f"{row.seconds:.1f}", str(row.seed)))
    widths = [max(len(cell[column]) for cell in cells) for column in range(len(head))]
    left = {0, 1, 7}
    lines = [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cell, widths, strict=True)))
        for cell in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for row in rows:
        if row.skipped:
            lines.append(f"{row.promise}: skipped: {row.skipped}")
        if row.notes:
            lines.append(f"{row.promise}: {row.notes}")
        lines += [f"{row.promise}: {miss}" for miss in row.misses[:MISSES_SHOWN]]
        if len(row.misses) > MISSES_SHOWN:
            lines.append(f"{row.promise}: and {len(row.misses) - MISSES_SHOWN} more")
    return "\n".join(line.rstrip() for line in lines)


def as_json(rows: Iterable[Row], about: Mapping[str, object]) -> str:
    """For machines."""
    values = [{**asdict(row), "verdict": row.verdict} for row in rows]
    return json.dumps({**about, "rows": values}, indent=1)
