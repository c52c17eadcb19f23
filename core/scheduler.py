"""When a directory runs: by an interval or a cron line; and what wakes a cycle between its runs.

One job of APScheduler's a directory, coalesced and never skipped for being late (misfire_grace_time=None). APScheduler
goes by the wall clock; where that jumps against the monotonic one, the next times are found anew within
CLOCK_LOOK_SECONDS, and what was jumped over is one run. A job only wakes the run. The runs are tasks of our own: one at
a time a directory, and what comes due meanwhile is served by one more. A change takes effect at once: the job is
replaced, not restarted.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo

import structlog
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger

from core.domain.account import Directory

log = structlog.get_logger()

HOUR_SECONDS = 3600.0
CLOCK_LOOK_SECONDS = 5.0  # between looks whether the wall clock jumped
CLOCK_JUMP_SECONDS = 1.0  # of the wall against the monotonic clock between two looks; NTP slews 10 ms in that time
_MOMENT = timedelta(microseconds=1)
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_WEEKDAY = re.compile(r"(\*|[0-7]|[a-z]{3})(?:-([0-7]|[a-z]{3}))?(?:/([1-9][0-9]*))?", re.ASCII)

Run = Callable[[], Awaitable[object]]


def interval_of(directory: Directory) -> float:
    """Seconds between runs of a directory without a schedule."""
    return max(directory.interval_seconds or 60.0, 1.0)


class Every(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Each so many seconds, counted from the last time or, where some were missed, from now.

    APScheduler's own lists each of the missed ones before it drops all but one.
    """

    def __init__(self, seconds: float) -> None:
        self._interval = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """The next time behind `now`."""
        due = (previous_fire_time or now) + self._interval
        return due if due > now else now + self._interval


def cron_trigger(schedule: str, timezone: str | tzinfo) -> BaseTrigger:
    """A line of five fields as crontab(5) has it. Raises ValueError for what isn't one.

    APScheduler alone counts weekdays from Monday, not Sunday, and asks for the day of the month AND of the week.
    """
    fields = schedule.lower().split()
    if len(fields) != 5:
        raise ValueError(f"{len(fields)} fields instead of five")
    minute, hour, day, month, weekday = fields
    weekday = ",".join(_weekdays(part) for part in weekday.split(","))
    lines = [f"{minute} {hour} {day} {month} *", f"{minute} {hour} * {month} {weekday}"]
    if day.startswith("*") or weekday.startswith("*"):
        lines = [f"{minute} {hour} {day} {month} {weekday}"]
    zone = CronTrigger(timezone=timezone).timezone
    if minute.startswith("*") or hour.startswith("*"):
        return Cron([CronTrigger.from_crontab(line, timezone=zone) for line in lines])
    return Cron([CronTrigger.from_crontab(line, timezone=UTC) for line in lines], by_the_clock_of=zone)


class Cron(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """The earliest time of some cron lines; what was missed is no more than one run, however long the clock was wrong.

    APScheduler alone lists each of the missed ones before it drops all but one: half a million for a clock that was
    set from 1970 to now.
    """

    def __init__(self, lines: Sequence[CronTrigger], *, by_the_clock_of: tzinfo | None = None) -> None:
        """`by_the_clock_of`: hour and minute are named, so that each of them comes once a day (crontab(5)), also where
        a change of clocks repeats or leaves it out. The lines' zone is UTC then, their times are what clocks show.
        """
        self._lines = lines
        self._zone = by_the_clock_of

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """The next time from `now` on that comes behind the previous one."""
        after = now.astimezone(UTC)
        if previous_fire_time is not None:
            after = max(after, previous_fire_time.astimezone(UTC) + _MOMENT)
        if self._zone is None:
            return self._earliest(after)
        shown = self._earliest(after.astimezone(self._zone).replace(tzinfo=UTC))
        while shown is not None and _moment_of(shown, self._zone) < after:
            shown = self._earliest(shown + _MOMENT)  # it is shown for the second time
        return None if shown is None else _moment_of(shown, self._zone)

    def _earliest(self, after: datetime) -> datetime | None:
        times = [line.get_next_fire_time(None, after) for line in self._lines]
        return min((at.astimezone(UTC) for at in times if at is not None), default=None)


def _moment_of(shown: datetime, zone: tzinfo) -> datetime:
    """When clocks show that time first; right behind the change of clocks that leaves it out."""
    shown = shown.replace(tzinfo=None)
    moment = shown.replace(tzinfo=zone).astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == shown:
        return moment
    before = shown.replace(tzinfo=zone, fold=1).astimezone(UTC)  # in a gap: by the offset behind it (PEP 495)
    offset = before.astimezone(zone).utcoffset()
    while moment - before > timedelta(seconds=1):
        middle = before + (moment - before) // 2
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            moment = middle
    return moment.replace(microsecond=0)


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

    def __init__(
        self, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._clock_offset = 0.0  # of the wall from the monotonic clock, at the last look
        self._look: asyncio.TimerHandle | None = None
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
        self._clock_offset = self._wall() - self._monotonic()
        self._look_at_clock()

    def set(self, directory: Directory, run: Run, *, at_once: bool = True) -> None:
        """Add or replace the directory's job. `at_once`: run it now too, unless it goes by a schedule."""
        if directory.schedule is not None:
            self._add(directory.name, cron_trigger(directory.schedule, directory.schedule_timezone), run)
            return
        self._add(directory.name, Every(interval_of(directory)), run)
        if at_once:
            self.wake(directory.name)

    def hourly(self, name: str, run: Run) -> None:
        """Housekeeping: once now and then each hour."""
        name = f"{name} (hourly)"  # no directory's name
        self._add(name, Every(HOUR_SECONDS), run)
        self.wake(name)

    def _add(self, name: str, trigger: BaseTrigger, run: Run) -> None:
        self._unset(name)
        self._runs[name] = run
        self._scheduler.add_job(self._due, trigger, args=(name,), id=name, name=name)

    def remove(self, name: str) -> None:
        """The directory's job ends; a run that is going finishes."""
        self._runs.pop(name, None)
        self._unset(name)

    def _unset(self, name: str) -> None:
        with suppress(JobLookupError):  # it was disabled
            self._scheduler.remove_job(name)

    def _look_at_clock(self) -> None:
        """After a jump of the wall clock the jobs' next times are no longer what they would be from now on."""
        self._look = asyncio.get_running_loop().call_later(CLOCK_LOOK_SECONDS, self._look_at_clock)
        offset = self._wall() - self._monotonic()
        jump, self._clock_offset = offset - self._clock_offset, offset
        if abs(jump) < CLOCK_JUMP_SECONDS:
            return
        log.warning("the clock jumped", seconds=round(jump, 3), remedy="none is needed: schedules are set anew")
        now = datetime.fromtimestamp(self._wall(), UTC)
        for job in self._scheduler.get_jobs():
            if job.next_run_time is not None and job.next_run_time > now:  # else it is due, and runs once
                self._scheduler.modify_job(job.id, next_run_time=job.trigger.get_next_fire_time(None, now))
        self._scheduler.wakeup()

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
        if self._look is not None:
            self._look.cancel()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # AsyncIOScheduler shuts down in the loop's next turn
