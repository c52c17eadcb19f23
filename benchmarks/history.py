"""A history of five million recipients: how long filtered pages take, and what retention does to a drain.

The database is made once, with SQL (history_rows.py), and kept in var/bench by the revision of its schema; each run
takes a copy. "Cold" pages come from a service just started; before each the kernel is told to forget the file, and none
asks for values that were asked for before.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from benchmarks.arrivals import Sink
from benchmarks.history_rows import (
    DIRECTORIES,
    SENDERS,
    SPAN_DAYS,
    History,
    account_of,
    address_of,
    customer,
    directory_of,
    domain_of,
    sender_of,
    write,
)
from benchmarks.mails import fill
from benchmarks.relay import Mpu, mpu
from benchmarks.result import Context, Result, Series, Target, quantile
from core.store import cursor as cursors
from core.store.store import DATABASE_FILE
from core.store.tables import REVISION
from tests.support.service import KEY

NAME = "history"
ABOUT = "5,000,000 rows of history: filtered pages, and retention beside a drain"

PAGE_MS = 50.0
GAP_SECONDS = 1.0
KEPT = Path(__file__).parents[1] / "var" / "bench"
_ALL_DAYS = 3650
_Query = dict[str, object]


def run(context: Context) -> Result:
    """Pages first, then drains with and without retention in turns."""
    history, kept = _kept(100_000 if context.small else 5_000_000)
    result = Result()
    data = context.folder / "data"
    data.mkdir(mode=0o700)
    shutil.copyfile(kept, data / DATABASE_FILE)
    os.chmod(data / DATABASE_FILE, 0o600)
    _settled(data / DATABASE_FILE)
    with Sink() as sink:
        with mpu(context.folder) as one:
            one.service.http.patch("/settings", json={"history_days": _ALL_DAYS}).raise_for_status()
            one.account("main", sink.port)
            one.directory("shop", ["main"])
        _pages(context, history, result)
        _retention(context, sink, history, result)
    return result


def _kept(rows: int) -> tuple[History, Path]:
    """The database, made if it isn't there."""
    path = KEPT / f"history-{REVISION}-{rows}.sqlite3"
    facts = path.with_suffix(".json")
    if not (path.exists() and facts.exists()):
        facts.unlink(missing_ok=True)
        facts.write_text(json.dumps(asdict(write(path, rows))))
    return History(**json.loads(facts.read_text())), path


def _settled(path: Path) -> None:
    """Written to the disk, so that the kernel can forget it."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


# --- pages ------------------------------------------------------------------------------------------------------------


def filters(history: History) -> dict[str, Callable[[random.Random], _Query]]:
    """What people ask for, each with values by chance; and what is hard to answer."""

    def window(chance: random.Random, seconds: float) -> _Query:
        since = history.at(chance.uniform(0.05, 0.95))
        return {"since": _time(since), "until": _time(since + seconds)}

    def cursor(chance: random.Random) -> _Query:
        return {"cursor": cursors.encode(history.newest, int(history.at(chance.uniform(0.01, 0.5)) * 1e6))}

    def place(chance: random.Random) -> int:
        return chance.randrange(DIRECTORIES)

    def met(chance: random.Random, offset: int) -> _Query:
        number = place(chance)
        return {"directory": directory_of(number), "account": account_of(number + offset)}

    return {
        "newest": lambda _: {},
        "status=failed": lambda _: {"status": "failed"},
        "status=sent": lambda _: {"status": "sent"},
        "status=deleted (none)": lambda _: {"status": "deleted"},
        "directory": lambda c: {"directory": directory_of(place(c))},
        "account": lambda c: {"account": account_of(place(c))},
        "sender": lambda c: {"sender": sender_of(c.randrange(SENDERS))},
        "recipient": lambda c: {"recipient": address_of(customer(c))},
        "recipient (none)": lambda c: {"recipient": f"nobody{c.random()}@example.org"},
        "@domain of a third": lambda _: {"recipient": f"@{domain_of(0)}"},
        "@domain": lambda c: {"recipient": f"@{domain_of(customer(c))}"},
        "since, until: an hour": lambda c: window(c, 3600),
        "since, until: an hour, failed": lambda c: window(c, 3600) | {"status": "failed"},
        "since, until: a day, sender": lambda c: window(c, 86_400) | {"sender": sender_of(c.randrange(SENDERS))},
        "since, until: a day, @domain of a third": lambda c: window(c, 86_400) | {"recipient": f"@{domain_of(0)}"},
        "directory, account": lambda c: met(c, 0),
        "directory, account: each hundredth": lambda c: met(c, 1),
        "directory, account (none)": lambda c: met(c, 5),
        "directory, status=failed": lambda c: {"directory": directory_of(place(c)), "status": "failed"},
        "directory, recipient": lambda c: {"directory": directory_of(0), "recipient": address_of(customer(c))},
        "@domain, status=failed": lambda c: {"recipient": f"@{domain_of(customer(c))}", "status": "failed"},
        "@domain of a third, sender": lambda c: {
            "recipient": f"@{domain_of(0)}",
            "sender": sender_of(c.randrange(SENDERS)),
        },
        "internet_message_id": lambda c: {
            "internet_message_id": history.internet_message_id(c.randrange(1, int(history.messages * 0.9)))
        },
        "cursor far in": cursor,
        "cursor far in, directory": lambda c: cursor(c) | {"directory": directory_of(place(c))},
        "cursor far in, status=failed": lambda c: cursor(c) | {"status": "failed"},
        "cursor far in, @domain": lambda c: cursor(c) | {"recipient": f"@{domain_of(customer(c))}"},
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _pages(context: Context, history: History, result: Result) -> None:
    """Cold ones of all filters in a service just started, then warm ones."""
    chance = random.Random(2)
    asked = filters(history)
    cold: dict[str, list[float]] = {name: [] for name in asked}
    warm: dict[str, list[float]] = {name: [] for name in asked}
    database = context.folder / "data" / DATABASE_FILE
    for _ in range(context.rounds):
        with mpu(context.folder) as one, closing(_client(one)) as client:
            _page(client, {"limit": 1})
            for name, query in asked.items():
                _forget(database)
                cold[name].append(_page(client, query(chance)))
    with mpu(context.folder) as one, closing(_client(one)) as client:
        _page(client, {"limit": 1})  # the first of a process takes longer
        for _ in range(10 if context.small else 100):
            for name, query in asked.items():
                warm[name].append(_page(client, query(chance)))
    for name in asked:
        series = Series("MPU", f"page: {name}, warm, p99", "ms", (quantile(warm[name], 0.99),))
        result.series += [series, Series("MPU", f"page: {name}, cold", "ms", tuple(cold[name]))]
    for what, times in (("warm", warm), ("cold", cold)):
        worst = max(times, key=lambda name: quantile(times[name], 0.99))
        result.targets.append(
            Target(
                f"{history.rows:,} rows: filtered page, {what}, p99 of the slowest ({worst})",
                PAGE_MS,
                quantile(times[worst], 0.99),
                "ms",
                at_least=False,
            )
        )


def _client(one: Mpu) -> http.client.HTTPConnection:
    url = urlsplit(str(one.service.http.base_url))
    return http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)


def _page(client: http.client.HTTPConnection, query: _Query) -> float:
    return _get(client, "/history?" + urlencode({key: str(value) for key, value in query.items()}))


def _get(client: http.client.HTTPConnection, path: str) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    client.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
    answer = client.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} answered {answer.status}: {body[:300]!r}")
    return (time.perf_counter() - began) * 1000


def _forget(path: Path) -> None:
    """The kernel drops what it has of the file."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


# --- retention --------------------------------------------------------------------------------------------------------


def _retention(context: Context, sink: Sink, history: History, result: Result) -> None:
    """A fifth of the rows is too old. It is deleted from the start of a service on, while a drain goes."""
    count = 2_000 if context.small else 20_000
    days = int((time.time() - history.at(0.2)) / 86_400)
    rates: dict[bool, list[float]] = {True: [], False: []}
    gaps: dict[bool, list[float]] = {True: [], False: []}
    deleted: list[float] = []
    number = 0
    for _ in range(context.rounds):
        for retention in (False, True):
            _set_days(context.folder, days if retention else _ALL_DAYS)
            fill(context.folder / "spool" / "shop", count, 4096, first=number)
            number += count
            with mpu(context.folder) as one:
                before, began = _oldest(context.folder), time.perf_counter()
                sink.reset()
                one.drain()
                seen = sink.seen()
                took = time.perf_counter() - began
                gone = (_oldest(context.folder) - before) / history.step
            rates[retention].append(seen.rate)
            gaps[retention].append(seen.longest_gap)
            if retention:
                deleted.append(gone / took)
    ratios = tuple(r / n for r, n in zip(rates[True], rates[False], strict=True))
    name = f"{history.rows:,} rows"
    result.series += [
        Series("MPU", f"{name}: drain of {count:,}", "msg/s", tuple(rates[False])),
        Series("MPU", f"{name}: drain of {count:,} beside retention", "msg/s", tuple(rates[True])),
        Series("MPU", f"{name}: drain beside retention, of that without", "ratio", ratios),
        Series("MPU", f"{name}: longest gap between messages", "s", tuple(gaps[False])),
        Series("MPU", f"{name}: longest gap beside retention", "s", tuple(gaps[True])),
        Series("MPU", f"{name}: recipients deleted a second meanwhile", "1", tuple(deleted)),
    ]
    result.targets.append(
        Target(f"{name}: longest gap beside retention", GAP_SECONDS, max(gaps[True]), "s", at_least=False)
    )
    if not context.small and min(deleted) <= 0:
        raise RuntimeError(f"retention did not run beside each drain: {deleted}; history of {SPAN_DAYS} days")


def _set_days(root: Path, days: int) -> None:
    """Takes effect at the next start."""
    with closing(sqlite3.connect(root / "data" / DATABASE_FILE)) as database, database:
        database.execute("UPDATE setting SET value = ? WHERE key = 'history_days'", (json.dumps(days),))


def _oldest(root: Path) -> int:
    with closing(sqlite3.connect(f"file:{root / 'data' / DATABASE_FILE}?mode=ro", uri=True)) as database:
        found: int = database.execute("SELECT min(id) FROM recipient").fetchone()[0]
        return found
