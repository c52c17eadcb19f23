"""One APScheduler job a directory: an interval or a cron line; and what wakes a cycle between its runs.

A job only wakes the run, coalesced and never skipped for being late (misfire_grace_time=None). The runs are
tasks of our own: one at a time a directory, and what comes due meanwhile is served by one more. A change takes effect
at once: the job is replaced, not restarted.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, tzinfo

import structlog
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from core.domain.account import Directory

log = structlog.get_logger()

HOUR_SECONDS = 3600
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_WEEKDAY = re.compile(r"(\*|[0-7]|[a-z]{3})(?:-([0-7]|[a-z]{3}))?(?:/([1-9][0-9]*))?", re.ASCII)

Run = Callable[[], Awaitable[object]]


def trigger_of(directory: Directory) -> BaseTrigger:
    """The directory's interval or schedule. Raises ValueError for a cron line or time zone that isn't one."""
    if directory.schedule is not None:
        return cron_trigger(directory.schedule, directory.schedule_timezone)
    return IntervalTrigger(seconds=max(directory.interval_seconds or 60, 1), timezone=UTC)


def cron_trigger(schedule: str, timezone: str | tzinfo) -> BaseTrigger:
    """A line of five fields as crontab(5) has it. Raises ValueError for what isn't one.

    APScheduler alone counts weekdays from Monday, not Sunday, and asks for the day of the month AND of the week.
    """
    fields = schedule.lower().split()
    if len(fields) != 5:
        raise ValueError(f"{len(fields)} fields instead of five")
    minute, hour, day, month, weekday = fields
    weekday = ",".join(_weekdays(part) for part in weekday.split(","))
    if day.startswith("*") or weekday.startswith("*"):
        return CronTrigger.from_crontab(f"{minute} {hour} {day} {month} {weekday}", timezone=timezone)
    lines = (f"{minute} {hour} {day} {month} *", f"{minute} {hour} * {month} {weekday}")
    return OrTrigger([CronTrigger.from_crontab(line, timezone=timezone) for line in lines])


def _weekdays(part: str) -> str:
    """One element of cron's last field (0 and 7 are Sunday), by names."""
    match = _WEEKDAY.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} is no day of the week")
    first, last, step = match.groups()
    if first == "*":
        if last is not None:
            raise ValueError(f"{part!r} is no day of the week")
        start, end = 0, 6
    else:
        start = _weekday(first)
        end = _weekday(last) if last is not None else 6 if step is not None else start
        if end == 0 and start > 0 and last is not None:
            end = 7  # sat-sun
    if start > end:
        raise ValueError(f"{part!r} ends before it begins")
    if first == "*" and step is None:
        return "*"
    return ",".join(_WEEKDAYS[number % 7] for number in range(start, end + 1, int(step or 1)))


def _weekday(text: str) -> int:
    if text.isdigit():
        return int(text)
    if text not in _WEEKDAYS:
        raise ValueError(f"{text!r} is no day of the week")
    return _WEEKDAYS.index(text)


class Scheduler:
    """Runs each directory's cycle when its time has come, or when it is woken."""

    def __init__(self) -> None:
        self._scheduler = AsyncIOScheduler(
            jobstores={"default": MemoryJobStore()},  # never a pickled one; settings live in the database
            executors={"default": AsyncIOExecutor()},
            job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": None},
            timezone=UTC,
        )
        self._runs: dict[str, Run] = {}
        self._woken: set[str] = set()
        self._woken_early: set[str] = set()  # before the start
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[str] = set()
        self._again: set[str] = set()
        self._ran: Counter[str] = Counter()
        # a run that is still going when its next is due is no fault: the interval is only a safety net
        logging.getLogger("apscheduler.scheduler").setLevel(logging.ERROR)
        logging.getLogger("apscheduler.executors.default").setLevel(logging.ERROR)

    @property
    def running(self) -> bool:
        """Between start and stop."""
        return bool(self._scheduler.running)

    def start(self) -> None:
        """Begin to run jobs, on the running loop."""
        self._scheduler.start()
        for name in self._woken_early:
            self.wake(name)
        self._woken_early.clear()

    def set(self, directory: Directory, run: Run, *, at_once: bool = True) -> None:
        """Add or replace the directory's job. `at_once`: run it now too, unless it goes by a schedule."""
        self._runs[directory.name] = run
        now = at_once and directory.schedule is None
        self._scheduler.add_job(
            self._due,
            trigger_of(directory),
            args=(directory.name,),
            id=directory.name,
            name=directory.name,
            replace_existing=True,
            **({"next_run_time": datetime.now(UTC)} if now else {}),
        )

    def hourly(self, name: str, run: Run) -> None:
        """Housekeeping: once now and then each hour."""
        name = f"{name} (hourly)"  # no directory's name
        self._runs[name] = run
        self._scheduler.add_job(
            self._due,
            IntervalTrigger(seconds=HOUR_SECONDS, timezone=UTC),
            args=(name,),
            id=name,
            replace_existing=True,
            next_run_time=datetime.now(UTC),
        )

    def remove(self, name: str) -> None:
        """The directory's job ends; a run that is going finishes."""
        self._runs.pop(name, None)
        try:
            self._scheduler.remove_job(name)
        except JobLookupError:
            return  # it was disabled

    def runs(self, name: str) -> int:
        """How many runs of the directory have ended."""
        return self._ran[name]

    def next_run_at(self, name: str) -> float | None:
        """Seconds since the epoch; None where there is no job."""
        at = getattr(self._scheduler.get_job(name), "next_run_time", None)  # not set before the start
        return at.timestamp() if at is not None else None

    async def _due(self, name: str) -> None:
        """APScheduler's job: it only wakes, since a run of its own would be cancelled and dropped by its rules."""
        self.wake(name)

    def wake(self, name: str) -> None:
        """Run the directory's cycle soon; calls that come while it runs lead to one more run."""
        if not self.running:
            self._woken_early.add(name)
        elif name in self._runs and name not in self._woken:
            self._woken.add(name)
            task = asyncio.get_running_loop().create_task(self._wake(name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _wake(self, name: str) -> None:
        self._woken.discard(name)
        try:
            await self._run(name)
        except Exception:
            log.exception("run failed", directory=name, remedy="report this as a fault; the next run goes on")

    async def _run(self, name: str) -> None:
        """One run at a time; who comes meanwhile is served by one more."""
        if name in self._busy:
            self._again.add(name)
            return
        self._busy.add(name)
        try:
            run = self._runs.get(name)
            if run is not None:
                await run()
                self._ran[name] += 1
        finally:
            self._busy.discard(name)
            if name in self._again:
                self._again.discard(name)
                self.wake(name)

    async def stop(self) -> None:
        """No more runs. Drain the cycles first: what still runs is cancelled."""
        self._runs.clear()
        self._again.clear()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # AsyncIOScheduler shuts down in the loop's next turn
