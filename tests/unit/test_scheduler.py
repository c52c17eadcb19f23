"""When a directory's cycle runs: intervals and cron lines, and one run at a time whatever wakes it."""

from __future__ import annotations

import asyncio
import time
import zoneinfo
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo

import pytest

from core.domain.account import Directory
from core.scheduler import Scheduler, cron_trigger, interval_of

IN = Directory("in", "/in", ("out",))
NIGHTLY = replace(IN, interval_seconds=None, schedule="0 3 * * *", watch=False)
WAIT_SECONDS = 5  # never reached when all is well


def fires(schedule: str, start: str, count: int) -> list[str]:
    """The first times from that one on, as people write them: weekday, day, hour and minute."""
    trigger, now = cron_trigger(schedule, "UTC"), datetime.fromisoformat(start).replace(tzinfo=UTC)
    times, previous = [], None
    for _ in range(count):
        at = trigger.get_next_fire_time(previous, now)
        times.append(f"{at:%a %d %H:%M}")
        previous, now = at, at + timedelta(seconds=1)
    return times


# --- triggers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "seconds"), [(60, 60), (1, 1), (2.5, 2.5), (86_400, 86_400), (0.2, 1), (None, 60)]
)
def test_an_interval_is_at_least_a_second(interval: float | None, seconds: float) -> None:
    assert interval_of(replace(IN, interval_seconds=interval)) == seconds


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        # 1 March 2026 is a Sunday
        ("0 3 * * *", ["Sun 01 03:00", "Mon 02 03:00", "Tue 03 03:00"]),
        ("*/20 1,2 * * *", ["Sun 01 01:00", "Sun 01 01:20", "Sun 01 01:40", "Sun 01 02:00"]),
        ("30 4 15 * *", ["Sun 15 04:30", "Wed 15 04:30"]),
        ("0 3 1 4 *", ["Wed 01 03:00"]),
        # cron's week begins on Sunday
        ("0 3 * * 0", ["Sun 01 03:00", "Sun 08 03:00"]),
        ("0 3 * * 7", ["Sun 01 03:00", "Sun 08 03:00"]),
        ("0 3 * * 1", ["Mon 02 03:00", "Mon 09 03:00"]),
        ("0 3 * * 6", ["Sat 07 03:00", "Sat 14 03:00"]),
        (
            "0 3 * * 1-5",
            ["Mon 02 03:00", "Tue 03 03:00", "Wed 04 03:00", "Thu 05 03:00", "Fri 06 03:00", "Mon 09 03:00"],
        ),
        ("0 3 * * mon-fri", ["Mon 02 03:00", "Tue 03 03:00", "Wed 04 03:00", "Thu 05 03:00", "Fri 06 03:00"]),
        ("0 3 * * MON,Wed", ["Mon 02 03:00", "Wed 04 03:00", "Mon 09 03:00"]),
        ("0 3 * * 6-7", ["Sun 01 03:00", "Sat 07 03:00", "Sun 08 03:00"]),
        ("0 3 * * sat-sun", ["Sun 01 03:00", "Sat 07 03:00", "Sun 08 03:00"]),
        ("0 3 * * 0-6", ["Sun 01 03:00", "Mon 02 03:00"]),
        ("0 3 * * */2", ["Sun 01 03:00", "Tue 03 03:00", "Thu 05 03:00", "Sat 07 03:00", "Sun 08 03:00"]),
        ("0 3 * * 1-5/2", ["Mon 02 03:00", "Wed 04 03:00", "Fri 06 03:00", "Mon 09 03:00"]),
        ("0 3 * * 4/2", ["Thu 05 03:00", "Sat 07 03:00", "Thu 12 03:00"]),
        # a day of the month OR of the week, if both are named
        ("0 3 5 * 1", ["Mon 02 03:00", "Thu 05 03:00", "Mon 09 03:00"]),
        ("0 3 2 * 1", ["Mon 02 03:00", "Mon 09 03:00"]),  # both: once
        ("0 3 */10 * 1", ["Mon 01 03:00"]),  # a star is no name: both must be so
    ],
)
def test_a_schedule_is_read_as_cron_reads_it(schedule: str, times: list[str]) -> None:
    start = "2026-05-12T00:00" if "*/10" in schedule else "2026-03-01T00:00"
    assert fires(schedule, start, len(times)) == times


@pytest.mark.parametrize(
    ("timezone", "day", "utc"),
    [
        ("UTC", "2026-01-10", "2026-01-10T02:30+00:00"),
        ("Europe/Berlin", "2026-01-10", "2026-01-10T01:30+00:00"),
        ("Europe/Berlin", "2026-07-10", "2026-07-10T00:30+00:00"),
        ("Europe/Berlin", "2026-03-29", "2026-03-29T01:00+00:00"),  # an hour is left out, the run isn't
        ("Europe/Berlin", "2026-10-25", "2026-10-25T00:30+00:00"),
        ("Asia/Kolkata", "2026-01-10", "2026-01-09T21:00+00:00"),
    ],
)
def test_a_schedule_goes_by_its_time_zone(timezone: str, day: str, utc: str) -> None:
    trigger = cron_trigger("30 2 * * *", timezone)
    midnight = datetime.fromisoformat(day).replace(tzinfo=zoneinfo.ZoneInfo(timezone))
    at = trigger.get_next_fire_time(None, midnight)
    assert at is not None
    assert at.astimezone(UTC) == datetime.fromisoformat(utc)


@pytest.mark.parametrize(
    ("schedule", "timezone", "start", "times"),
    [
        # what it leaves out: right behind the change; once
        ("0 0 * * *", "America/Santiago", "2026-09-04T12:00", ["05 00:00-0400", "06 01:00-0300", "07 00:00-0300"]),
        ("30 0 * * *", "America/Santiago", "2026-09-05T12:00", ["06 01:00-0300", "07 00:30-0300"]),
        ("0,20,40 2 * * *", "Europe/Berlin", "2026-03-28T02:30", ["28 02:40+0100", "29 03:00+0200", "30 02:00+0200"]),
        ("0 0 * * *", "Pacific/Apia", "2011-12-29T12:00", ["31 00:00+1400", "01 00:00+1400"]),  # a whole day
        ("15 3 * * *", "Europe/Berlin", "2026-03-28T12:00", ["29 03:15+0200", "30 03:15+0200"]),
        # what it repeats: once a day
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["25 02:30+0200", "26 02:30+0100"]),
        # every so often: neither more nor less for it
        ("*/30 * * * *", "Europe/Berlin", "2026-03-29T01:20", ["29 01:30+0100", "29 03:00+0200", "29 03:30+0200"]),
        ("*/30 * * * *", "America/Santiago", "2026-09-05T23:20", ["05 23:30-0400", "06 01:00-0300", "06 01:30-0300"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-25T02:20", ["25 02:30+0200", "25 02:00+0100", "25 02:30+0100"]),
    ],
)
def test_what_a_change_of_clocks_leaves_out_runs_behind_it(
    schedule: str, timezone: str, start: str, times: list[str]
) -> None:
    zone = zoneinfo.ZoneInfo(timezone)
    trigger, previous, found = cron_trigger(schedule, zone), None, []
    now = datetime.fromisoformat(start).replace(tzinfo=zone)
    for _ in times:
        previous = trigger.get_next_fire_time(previous, now)
        assert previous is not None
        found.append(f"{previous.astimezone(zone):%d %H:%M%z}")
    assert found == times


@pytest.mark.parametrize(
    "schedule",
    [
        "",
        "0 3 * *",
        "0 3 * * * *",
        "60 3 * * *",
        "0 24 * * *",
        "0 3 0 * *",
        "0 3 32 * *",
        "0 3 * 13 *",
        "0 3 * * 8",
        "0 3 * * 5-1",
        "0 3 * * fri-mon",
        "0 3 * * *-3",
        "0 3 * * day",
        "0 3 * * 1-",
        "0 3 * * ,",
        "0 3 * * */0",
        "0 3 * * last fri",
        "@hourly",
        "nonsense in five words here",
    ],
)
def test_what_is_no_cron_line_is_refused(schedule: str) -> None:
    with pytest.raises(ValueError):
        cron_trigger(schedule, "UTC")


# --- runs ------------------------------------------------------------------------------------------------------------


@dataclass
class Cycle:
    """A run that tests hold and let go; notices if two of its runs overlap."""

    begun: int = 0
    ended: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    overlapped: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        self.overlapped |= self.begun != self.ended
        self.begun += 1
        self._changed.set()
        try:
            await self.open.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.ended += 1
            self._changed.set()

    async def until(self, *, begun: int = 0, ended: int = 0) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while self.begun < begun or self.ended < ended:
                self._changed.clear()
                await self._changed.wait()


async def settled() -> None:
    """What is due now has had its turns."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    scheduler = Scheduler()
    scheduler.start()
    yield scheduler
    await scheduler.stop()


@pytest.fixture
async def cycle() -> Cycle:
    return Cycle()


async def test_a_directory_with_an_interval_runs_at_once(scheduler: Scheduler, cycle: Cycle) -> None:
    cycle.open.set()
    scheduler.set(IN, cycle.run)
    await cycle.until(ended=1)
    await settled()
    assert (cycle.begun, scheduler.runs("in")) == (1, 1)


async def test_a_directory_that_was_set_before_the_start_runs_at_the_start(cycle: Cycle) -> None:
    scheduler = Scheduler()
    cycle.open.set()
    scheduler.set(IN, cycle.run)
    await settled()
    assert cycle.begun == 0
    scheduler.start()
    await cycle.until(ended=1)
    await scheduler.stop()


@pytest.mark.parametrize(("directory", "at_once"), [(NIGHTLY, True), (NIGHTLY, False), (IN, False)])
async def test_a_schedule_waits_for_its_time(
    scheduler: Scheduler, cycle: Cycle, directory: Directory, at_once: bool
) -> None:
    scheduler.set(directory, cycle.run, at_once=at_once)
    await settled()
    assert cycle.begun == 0


async def test_the_next_run_is_told(scheduler: Scheduler, cycle: Cycle) -> None:
    before = datetime.now(UTC).timestamp()
    scheduler.set(replace(IN, interval_seconds=1000), cycle.run, at_once=False)
    at = scheduler.next_run_at("in")
    assert at is not None
    assert before + 1000 <= at <= before + 1000 + WAIT_SECONDS
    assert scheduler.next_run_at("other") is None


async def test_before_the_start_no_run_is_told(cycle: Cycle) -> None:
    scheduler = Scheduler()
    scheduler.set(NIGHTLY, cycle.run)
    assert scheduler.next_run_at("in") is None
    assert not scheduler.running


@pytest.mark.parametrize("wakes", [1, 2, 50])
async def test_wakes_during_a_run_lead_to_one_more(scheduler: Scheduler, cycle: Cycle, wakes: int) -> None:
    scheduler.set(IN, cycle.run)
    await cycle.until(begun=1)
    for _ in range(wakes):
        scheduler.wake("in")
        await settled()
    assert cycle.begun == 1
    cycle.open.set()
    await cycle.until(ended=2)
    await settled()
    assert (cycle.begun, cycle.overlapped) == (2, False)


async def test_many_wakes_in_one_go_lead_to_one_run(scheduler: Scheduler, cycle: Cycle) -> None:
    cycle.open.set()
    scheduler.set(NIGHTLY, cycle.run)
    for _ in range(50):
        scheduler.wake("in")
    await cycle.until(ended=1)
    await settled()
    assert cycle.begun == 1


async def test_the_job_coming_due_during_a_woken_run_does_not_overlap_it(scheduler: Scheduler, cycle: Cycle) -> None:
    scheduler.set(NIGHTLY, cycle.run)
    scheduler.wake("in")
    await cycle.until(begun=1)
    scheduler.set(IN, cycle.run)  # due now
    await settled()
    assert cycle.begun == 1
    cycle.open.set()
    await cycle.until(ended=2)
    assert not cycle.overlapped


async def test_a_job_that_comes_due_while_it_runs_is_made_good_by_one_more_run(
    scheduler: Scheduler, cycle: Cycle
) -> None:
    scheduler.set(NIGHTLY, cycle.run)
    scheduler.wake("in")
    await cycle.until(begun=1)
    for _ in range(3):
        scheduler._scheduler.modify_job("in", next_run_time=datetime.now(UTC))
        await settled()
    assert cycle.begun == 1
    cycle.open.set()
    await cycle.until(ended=2)
    await settled()
    assert (cycle.begun, cycle.overlapped) == (2, False)


async def test_directories_do_not_wait_for_one_another(scheduler: Scheduler, cycle: Cycle) -> None:
    other = Cycle()
    other.open.set()
    scheduler.set(IN, cycle.run)
    await cycle.until(begun=1)
    scheduler.set(replace(IN, name="other"), other.run)
    await other.until(ended=1)
    assert cycle.ended == 0
    cycle.open.set()


async def test_a_changed_directory_runs_with_its_new_settings_after_the_old_run(
    scheduler: Scheduler, cycle: Cycle
) -> None:
    changed = Cycle()
    changed.open.set()
    scheduler.set(IN, cycle.run)
    await cycle.until(begun=1)
    scheduler.set(replace(IN, interval_seconds=30), changed.run)
    await settled()
    assert changed.begun == 0
    cycle.open.set()
    await changed.until(ended=1)
    assert (cycle.begun, cycle.ended) == (1, 1)


async def test_a_removed_directory_finishes_its_run_and_has_no_more(scheduler: Scheduler, cycle: Cycle) -> None:
    scheduler.set(IN, cycle.run)
    await cycle.until(begun=1)
    scheduler.wake("in")
    await settled()
    scheduler.remove("in")
    cycle.open.set()
    await cycle.until(ended=1)
    await settled()
    scheduler.wake("in")
    await settled()
    assert cycle.begun == 1
    assert scheduler.next_run_at("in") is None


async def test_removing_twice_or_waking_what_is_not_there_is_no_error(scheduler: Scheduler) -> None:
    scheduler.remove("in")
    scheduler.wake("in")
    await settled()
    assert scheduler.runs("in") == 0


async def test_a_run_that_fails_does_not_keep_the_next_one_away(scheduler: Scheduler, cycle: Cycle) -> None:
    scheduler.set(NIGHTLY, cycle.run)
    cycle.open.set()
    cycle.error = RuntimeError("planted")
    scheduler.wake("in")
    await cycle.until(ended=1)
    cycle.error = None
    await settled()
    scheduler.wake("in")
    await cycle.until(ended=2)
    await settled()
    assert scheduler.runs("in") == 1


async def test_no_job_is_skipped_for_being_late_or_piles_up(scheduler: Scheduler, cycle: Cycle) -> None:
    scheduler.set(NIGHTLY, cycle.run)
    job = scheduler._scheduler.get_job("in")
    assert (job.max_instances, job.coalesce, job.misfire_grace_time) == (1, True, None)


async def test_housekeeping_runs_once_now(scheduler: Scheduler, cycle: Cycle) -> None:
    cycle.open.set()
    scheduler.hourly("retention", cycle.run)
    await cycle.until(ended=1)
    await settled()
    assert cycle.begun == 1


async def test_a_directory_may_be_named_like_the_housekeeping(scheduler: Scheduler, cycle: Cycle) -> None:
    retention = Cycle()
    cycle.open.set()
    retention.open.set()
    scheduler.set(replace(IN, name="retention"), cycle.run)
    scheduler.hourly("retention", retention.run)
    await cycle.until(ended=1)
    await retention.until(ended=1)
    scheduler.remove("retention")
    assert scheduler.next_run_at("in") is None
    assert scheduler.next_run_at("retention (hourly)") is not None


# --- clocks ----------------------------------------------------------------------------------------------------------


class Turned:
    """APScheduler's and the scheduler's wall clock, turned by so many seconds; the monotonic clock stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        turned = self
        self.by_seconds = 0.0

        class Datetime(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Datetime:
                return cls.fromtimestamp(turned.wall(), tz)

        monkeypatch.setattr("apscheduler.schedulers.base.datetime", Datetime)
        monkeypatch.setattr("core.scheduler.datetime", Datetime)

    def wall(self) -> float:
        return time.time() + self.by_seconds


DAY_SECONDS = 86_400.0


@pytest.mark.parametrize("days", [-1, 400])
async def test_an_interval_goes_on_whatever_the_wall_clock_does(
    cycle: Cycle, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.scheduler.interval_of", lambda _: 0.2)
    monkeypatch.setattr("core.scheduler.CLOCK_LOOK_SECONDS", 0.01)
    turned = Turned(monkeypatch)
    scheduler = Scheduler(wall=turned.wall)
    scheduler.start()
    cycle.open.set()
    scheduler.set(IN, cycle.run)
    await cycle.until(ended=1)
    turned.by_seconds = days * DAY_SECONDS
    began = asyncio.get_running_loop().time()
    await cycle.until(ended=3)
    await settled()
    took = asyncio.get_running_loop().time() - began
    assert (cycle.begun, took > 0.2) == (3, True)  # neither stood still nor made good for days
    await scheduler.stop()


async def test_an_interval_that_was_missed_runs_once(
    scheduler: Scheduler, cycle: Cycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.scheduler.interval_of", lambda _: 0.2)
    cycle.open.set()
    scheduler.set(IN, cycle.run)
    await cycle.until(ended=1)
    time.sleep(0.5)  # the loop stands still, as on a machine without power to spare
    await cycle.until(ended=2)
    await settled()
    assert cycle.begun == 2


@pytest.mark.parametrize(("days", "looks_at"), [(-2, "the same night"), (0, "the same night"), (-0.00001, "as before")])
async def test_a_schedule_is_set_anew_after_a_jump_of_the_clock(
    cycle: Cycle, days: float, looks_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.scheduler.CLOCK_LOOK_SECONDS", 0.01)
    turned = Turned(monkeypatch)
    scheduler = Scheduler(wall=turned.wall)
    scheduler.start()
    scheduler.set(NIGHTLY, cycle.run)
    before = scheduler.next_run_at("in")
    turned.by_seconds = days * DAY_SECONDS
    async with asyncio.timeout(WAIT_SECONDS):
        while looks_at == "the same night" and (scheduler.next_run_at("in") or 0) > turned.wall() + DAY_SECONDS:
            await asyncio.sleep(0.005)
    assert before is not None
    assert scheduler.next_run_at("in") == before + round(days) * DAY_SECONDS
    assert cycle.begun == 0
    await scheduler.stop()


async def test_a_schedule_that_a_jump_made_late_runs_once(cycle: Cycle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.scheduler.CLOCK_LOOK_SECONDS", 0.01)
    turned = Turned(monkeypatch)
    scheduler = Scheduler(wall=turned.wall)
    scheduler.start()
    cycle.open.set()
    scheduler.set(replace(NIGHTLY, schedule="*/20 * * * *"), cycle.run)
    turned.by_seconds = 20 * 365 * DAY_SECONDS  # a machine whose clock began in 1970; half a million runs
    async with asyncio.timeout(WAIT_SECONDS):
        await cycle.until(ended=1)
    await settled()
    assert cycle.begun == 1
    assert WAIT_SECONDS > (scheduler.next_run_at("in") or 0) - turned.wall() - 20 * 60 > -20 * 60 - WAIT_SECONDS
    await scheduler.stop()


@pytest.mark.parametrize("woken", [False, True])
async def test_after_the_stop_nothing_runs(cycle: Cycle, woken: bool) -> None:
    scheduler = Scheduler()
    scheduler.start()
    scheduler.set(NIGHTLY if woken else IN, cycle.run)
    if woken:
        scheduler.wake("in")
    await cycle.until(begun=1)
    scheduler.wake("in")
    await scheduler.stop()
    assert (cycle.begun, cycle.ended) == (1, 1)  # cut off, not left over
    scheduler.wake("in")
    await settled()
    assert cycle.begun == 1
    assert not scheduler.running


async def test_stopping_what_never_started_is_no_error() -> None:
    await Scheduler().stop()
