"""One APScheduler job a directory: an interval or a cron line; and what wakes a cycle between its runs.

Overlapping runs of one directory are impossible: max_instances=1, coalesced, and never skipped for being late
(misfire_grace_time=None). A change takes effect at once: the job is replaced, not restarted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from core.domain.account import Directory

DAY_SECONDS = 86_400

Run = Callable[[], Awaitable[object]]


def trigger_of(directory: Directory) -> BaseTrigger:
    """The directory's interval or schedule. Raises ValueError for a cron line or time zone that isn't one."""
    if directory.schedule is not None:
        return CronTrigger.from_crontab(directory.schedule, timezone=directory.schedule_timezone)
    return IntervalTrigger(seconds=max(directory.interval_seconds or 60, 1), timezone=UTC)


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
        self._woken: dict[str, asyncio.Task[None]] = {}
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

    def set(self, directory: Directory, run: Run, *, at_once: bool = True) -> None:
        """Add or replace the directory's job. `at_once`: run it now too, unless it goes by a schedule."""
        self._runs[directory.name] = run
        now = at_once and directory.schedule is None
        self._scheduler.add_job(
            self._run,
            trigger_of(directory),
            args=(directory.name,),
            id=directory.name,
            name=directory.name,
            replace_existing=True,
            **({"next_run_time": datetime.now(UTC)} if now else {}),
        )

    def daily(self, name: str, run: Run) -> None:
        """Housekeeping: once now and then each day."""
        self._scheduler.add_job(
            run,
            IntervalTrigger(seconds=DAY_SECONDS, timezone=UTC),
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
        job = self._scheduler.get_job(name)
        return job.next_run_time.timestamp() if job is not None and job.next_run_time is not None else None

    def wake(self, name: str) -> None:
        """Run the directory's cycle soon; calls that come while it runs lead to one more run."""
        if name in self._runs and self.running and name not in self._woken:
            self._woken[name] = asyncio.get_running_loop().create_task(self._wake(name))

    async def _wake(self, name: str) -> None:
        self._woken.pop(name, None)
        await self._run(name)

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
        """No more runs. Drain the cycles first: APScheduler cancels what still runs."""
        self._runs.clear()
        self._again.clear()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        tasks = list(self._woken.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # AsyncIOScheduler shuts down in the loop's next turn
