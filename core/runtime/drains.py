"""Drains: run the cycles of directories now, until nothing that is due is left."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Literal

import structlog

from core.cycle import Report
from core.domain.clock import Clock
from core.domain.outcome import Outcome
from core.errors import DirectoryUnavailable, FieldError, InvalidSettings, NotRunning
from core.runtime.audit import Audit
from core.runtime.finished import Register, new_id
from core.runtime.inlets import Inlet, Inlets
from core.runtime.views import Actor, Blocked, DrainRequest, DrainRow, DrainView, Outcomes

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Drain:
    """One drain. Times: seconds since the epoch, and monotonic."""

    id: str
    request: DrainRequest
    started_at: float
    began: float
    reports: dict[str, Report | None] = field(default_factory=dict)
    rows: dict[str, DrainRow] = field(default_factory=dict)
    stopping: bool = False
    failed: bool = False  # of a directory; the log says why
    task: asyncio.Task[None] | None = None
    ended_at: float | None = None


class Drains:
    """Starts, watches and stops them. They may overlap: each message is tried at most once in each."""

    def __init__(self, inlets: Inlets, audit: Audit, register: Register[_Drain], *, clock: Clock) -> None:
        self._inlets = inlets
        self._audit = audit
        self._register = register
        self._clock = clock
        self._stopped = False

    async def start(self, request: DrainRequest, actor: Actor) -> DrainView:
        """Begin, once it is in the audit.

        Raises InvalidSettings for an unknown name; TooMany, NotRunning, DatabaseUnavailable, StorageFull: nothing has
        begun.
        """
        if self._stopped:
            raise NotRunning("the service is stopping", remedy="ask again when it runs")
        inlets = self._chosen(request)
        drain = _Drain(new_id(), request, self._clock.now(), self._clock.monotonic())
        with self._register.place_for(drain):
            await self._audit.record(
                actor,
                "drain.start",
                ",".join(inlet.directory.name for inlet in inlets),
                {"id": drain.id, "include_deferred": request.include_deferred},
            )
            self._register.start(drain, self._run(drain, inlets))
        return self._view(drain)

    async def wait(self, drain_id: str, timeout_seconds: float) -> DrainView:
        """Its state when it has ended or the time is up."""
        drain = self._register.get(drain_id)
        assert drain.task is not None
        await asyncio.wait([drain.task], timeout=timeout_seconds)
        return self._view(drain)

    async def get(self, drain_id: str) -> DrainView:
        return self._view(self._register.get(drain_id))

    async def cancel(self, drain_id: str, actor: Actor) -> DrainView:
        """Claim nothing more; what is in flight finishes."""
        drain = self._register.get(drain_id)
        if drain.ended_at is None:
            await self._audit.record(actor, "drain.cancel", drain_id)
            self._stop(drain)
        return self._view(drain)

    def begin_stop(self) -> None:
        """Open drains end as soon as what is in flight is done, and answer that they were stopped."""
        self._stopped = True
        for drain in self._register.open():
            self._stop(drain)

    def _stop(self, drain: _Drain) -> None:
        drain.stopping = True
        for inlet in self._inlets:
            if inlet.directory.name in drain.reports:
                inlet.cycle.nudge()  # it may wait for an account

    async def ended(self) -> None:
        """Wait for the open ones."""
        tasks = [drain.task for drain in self._register.open() if drain.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def _chosen(self, request: DrainRequest) -> list[Inlet]:
        if request.directories is None:
            return list(self._inlets)
        known = {inlet.directory.name: inlet for inlet in self._inlets}
        wrong = [
            FieldError(f"/directories/{number}", "unknown_directory", f"there is no directory {name!r}")
            for number, name in enumerate(request.directories)
            if name not in known
        ]
        if wrong:
            raise InvalidSettings(wrong)
        return [known[name] for name in dict.fromkeys(request.directories)]

    async def _run(self, drain: _Drain, inlets: list[Inlet]) -> None:
        results = await asyncio.gather(*(self._one(drain, inlet) for inlet in inlets), return_exceptions=True)
        for inlet, result in zip(inlets, results, strict=True):
            if isinstance(result, BaseException):
                drain.failed = True
                log.error(
                    "drain failed", directory=inlet.directory.name, exc_info=result, remedy="report this as a fault"
                )

    async def _one(self, drain: _Drain, inlet: Inlet) -> None:
        name = inlet.directory.name
        skipped = self._skipped(inlet)
        if skipped is not None:
            remaining = await _remaining(inlet) if skipped == "paused" else 0
            drain.rows[name] = DrainRow(directory=name, skipped=skipped, remaining=remaining)
            return
        drain.reports[name] = None
        report = await inlet.cycle.run(include_deferred=drain.request.include_deferred, stop=lambda: drain.stopping)
        drain.reports[name] = report
        remaining = 0 if report.unavailable is not None else await _remaining(inlet)
        drain.rows[name] = DrainRow(
            **_counted(report.messages),
            directory=name,
            skipped="unavailable" if report.unavailable is not None else None,
            remaining=remaining,
            blocked=_blocked(inlet, report),
        )

    def _skipped(self, inlet: Inlet) -> Literal["paused", "disabled"] | None:
        if not inlet.directory.enabled:
            return "disabled"
        return "paused" if self._inlets.paused(inlet.directory.name) is not None else None

    def _view(self, drain: _Drain) -> DrainView:
        rows = tuple(drain.rows[name] for name in sorted(drain.rows))
        reports = [report for report in drain.reports.values() if report is not None]
        running = drain.ended_at is None and not (drain.task is not None and drain.task.done())
        stopped = drain.stopping and any(r.stopped for r in reports)
        end = drain.ended_at if drain.ended_at is not None else self._clock.monotonic()
        messages, recipients = Report(), Report()
        for report in reports:
            messages.messages.update(report.messages)
            recipients.recipients.update(report.recipients)
        return DrainView(
            **_counted(messages.messages),
            id=drain.id,
            state="running" if running else "stopped" if stopped else "done",
            complete=not (running or stopped or drain.failed or any(r.unavailable for r in reports)),
            stopped=stopped or (running and drain.stopping),
            started_at=drain.started_at,
            duration_seconds=round(end - drain.began, 3),
            recipients=Outcomes(**_counted(recipients.recipients)),
            directories=rows,
        )


def _counted(counter: dict[Outcome, int]) -> dict[str, int]:
    return {outcome.value: counter.get(outcome, 0) for outcome in Outcome}


async def _remaining(inlet: Inlet) -> int:
    def waiting() -> int:
        with contextlib.suppress(DirectoryUnavailable):  # which its row says
            inlet.spool.open()
            return inlet.spool.counts(stat_limit=0).waiting
        return 0

    return await asyncio.to_thread(waiting)


def _blocked(inlet: Inlet, report: Report) -> tuple[Blocked, ...]:
    rows = [Blocked(r.reason, r.account or None, r.until, count) for r, count in report.blocked.items()]
    by_code: dict[str, int] = {}
    for problem in inlet.cycle.problems.values():
        by_code[problem.error.code] = by_code.get(problem.error.code, 0) + 1
    rows += [Blocked(code, None, None, count) for code, count in by_code.items()]
    if inlet.cycle.writing:
        rows.append(Blocked("being_written", None, None, len(inlet.cycle.writing)))
    return tuple(sorted(rows, key=lambda row: -row.count))
