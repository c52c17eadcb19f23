"""The directories at work: each with its spool, its cycle, its job and its watch, and its pause.

What wakes a cycle comes together here: events of the watcher, accounts that work again, resumes, changed settings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from core.cycle import LINGER_SECONDS, Cycle, Deliverer
from core.delivery import Delivered
from core.domain.account import Directory
from core.domain.circuit import Pause
from core.domain.clock import Clock
from core.errors import NotFound, RelayError
from core.runtime.outlets import Outlets
from core.scheduler import Scheduler
from core.slots import OpenMessages
from core.spool.directory import DirectorySpool
from core.spool.watch import Watcher

log = structlog.get_logger()

_WHERE = ("path", "format")  # a change of these makes it another spool


@dataclass(slots=True)
class Inlet:
    """One directory at work."""

    directory: Directory
    cycle: Cycle
    pause: Pause | None = None
    timer: asyncio.TimerHandle | None = None
    unwatched: str = ""  # why not, where it should be

    @property
    def spool(self) -> DirectorySpool:
        return self.cycle.spool


class Inlets:
    """See the module's text. All methods belong to the event loop."""

    def __init__(
        self,
        *,
        outlets: Outlets,
        deliverer: Deliverer,
        scheduler: Scheduler,
        watcher: Watcher,
        clock: Clock,
        remember: Callable[[str | None, Pause | None], None],
        on_delivered: Callable[[Directory, Delivered], None],
        on_run: Callable[[Directory], None],
        look_ahead: int,
        scan_batch: int,
        max_open_messages: int,
    ) -> None:
        self._outlets = outlets
        self._deliverer = deliverer
        self._scheduler = scheduler
        self._watcher = watcher
        self._clock = clock
        self._remember = remember
        self._on_delivered = on_delivered
        self._on_run = on_run
        self._look_ahead = look_ahead
        self._scan_batch = scan_batch
        self._open_messages = OpenMessages(max_open_messages)
        self._inlets: dict[str, Inlet] = {}
        self._retired: dict[asyncio.Task[None], Cycle] = {}  # replaced or removed, with mail in flight perhaps
        self._relay_pause: Pause | None = None
        self._relay_timer: asyncio.TimerHandle | None = None

    # --- which there are ---

    def __iter__(self) -> Iterator[Inlet]:
        return iter([self._inlets[name] for name in sorted(self._inlets)])

    def get(self, name: str) -> Inlet:
        """Raises NotFound."""
        inlet = self._inlets.get(name)
        if inlet is None:
            raise NotFound("directory", name)
        return inlet

    def set(self, directory: Directory, pause: Pause | None = None) -> None:
        """Add or replace a directory; the change takes effect at once. What is in flight keeps its own settings."""
        present = self._inlets.get(directory.name)
        if present is not None and all(getattr(present.directory, f) == getattr(directory, f) for f in _WHERE):
            present.directory = present.cycle.directory = directory
            present.spool.settings = directory
        else:
            if present is not None:
                self._retire(present)
                pause = pause or present.pause
            present = Inlet(directory, self._cycle(directory), pause)
            self._inlets[directory.name] = present
            self._arm(present)
        self._attach(present)

    def remove(self, name: str) -> None:
        """Its job and watch end; what is in flight finishes. No file is touched."""
        inlet = self._inlets.pop(name, None)
        if inlet is not None:
            self._scheduler.remove(name)
            self._watcher.remove(name)
            self._retire(inlet)

    def _cycle(self, directory: Directory) -> Cycle:
        cycle = Cycle(
            directory,
            DirectorySpool(directory, clock=self._clock),
            self._deliverer,
            self._outlets,
            clock=self._clock,
            open_messages=self._open_messages,
            look_ahead=self._look_ahead,
            scan_batch=self._scan_batch,
            on_delivered=self._on_delivered,
        )
        name = directory.name
        cycle.paused = lambda: self.paused(name) is not None
        cycle.by_itself = lambda: _by_itself(cycle.directory)
        cycle.wake = lambda: self._scheduler.wake(name) if _by_itself(cycle.directory) else None
        cycle.opened = lambda: self._opened(cycle)
        return cycle

    def _opened(self, cycle: Cycle) -> None:
        """It was not there before, or another lies there now: watches are of what lay there when they were made."""
        inlet = self._inlets.get(cycle.directory.name)
        if inlet is not None and inlet.cycle is cycle and cycle.directory.enabled and cycle.directory.watch:
            self._watch(inlet)

    def _attach(self, inlet: Inlet) -> None:
        directory = inlet.directory
        if not directory.enabled:
            self._scheduler.remove(directory.name)
            self._watcher.remove(directory.name)
            return

        async def run() -> None:
            if self.paused(directory.name) is None:
                await inlet.cycle.run(linger_seconds=LINGER_SECONDS)
                self._on_run(inlet.directory)

        self._scheduler.set(directory, run)
        if directory.schedule is not None and directory.watch:  # what lies there already has no event any more
            self._scheduler.wake(directory.name)
        if not directory.watch:
            self._watcher.remove(directory.name)
        elif inlet.spool.recovered:  # else `_opened` does it: where a file system hangs, so would the event loop
            self._watch(inlet)

    def _watch(self, inlet: Inlet) -> None:
        try:
            reason = self._watcher.add(inlet.directory)
        except (RelayError, OSError) as error:
            reason = str(error)
        inlet.unwatched = reason
        if reason:
            log.warning(
                "directory is not watched",
                directory=inlet.directory.name,
                reason=reason,
                remedy="the interval finds new files all the same",
            )

    def watch_all(self) -> None:
        """All watches were lost: make them anew, and look for what came meanwhile."""
        for inlet in self:
            if inlet.directory.enabled and inlet.directory.watch:
                self.on_overflow(inlet.directory.name)

    def _retire(self, inlet: Inlet) -> None:
        if inlet.timer is not None:
            inlet.timer.cancel()
        inlet.cycle.begin_stop()
        task = asyncio.get_running_loop().create_task(_close_when_drained(inlet.cycle))
        self._retired[task] = inlet.cycle
        task.add_done_callback(self._retired.pop)

    # --- what wakes them ---

    def on_name(self, directory: str, name: bytes) -> None:
        """An event: a file was closed after writing, or moved here."""
        inlet = self._inlets.get(directory)
        if inlet is not None and inlet.directory.enabled:
            inlet.cycle.offer(name)

    def on_overflow(self, directory: str) -> None:
        """Events were lost, or the directory itself went or came: look at all of it."""
        inlet = self._inlets.get(directory)
        if inlet is not None and inlet.directory.watch:
            self._watch(inlet)
        self._scheduler.wake(directory)

    def on_account(self, account: str) -> None:
        """An account may be used again."""
        for inlet in self:
            if not self._outlets.serves(account, inlet.directory):
                continue
            inlet.cycle.nudge()
            if _by_itself(inlet.directory):
                self._scheduler.wake(inlet.directory.name)

    def wake_all(self) -> None:
        """After the relay's resume, or when the database or disk works again."""
        for inlet in self:
            if _by_itself(inlet.directory):
                self._scheduler.wake(inlet.directory.name)

    # --- pauses ---

    @property
    def relay_pause(self) -> Pause | None:
        """The pause of the whole relay, as it stands now."""
        pause = self._relay_pause
        return pause if pause is not None and pause.in_force(self._clock.now()) else None

    def directory_pause(self, name: str) -> Pause | None:
        """The directory's own. Raises NotFound."""
        pause = self.get(name).pause
        return pause if pause is not None and pause.in_force(self._clock.now()) else None

    def paused(self, name: str) -> Pause | None:
        """What keeps the directory from being worked on: the relay's pause, or its own."""
        inlet = self._inlets.get(name)
        own = inlet.pause if inlet is not None else None
        if own is not None and not own.in_force(self._clock.now()):
            own = None
        return self.relay_pause or own

    def restore_relay_pause(self, pause: Pause | None) -> None:
        """As it was before the restart."""
        self._relay_pause = pause
        self._arm_relay()

    def pause(self, name: str | None, pause: Pause) -> None:
        """A directory, or the whole relay (None): as it was written down."""
        self._set_pause(name, pause)

    def resume(self, name: str | None) -> None:
        """Lift it, as was written down, and look at once."""
        self._set_pause(name, None)
        if name is None:
            self.wake_all()
        elif _by_itself(self.get(name).directory):
            self._scheduler.wake(name)

    def _set_pause(self, name: str | None, pause: Pause | None) -> None:
        if name is None:
            self._relay_pause = pause
            self._arm_relay()
        else:
            inlet = self.get(name)
            inlet.pause = pause
            self._arm(inlet)

    def _arm(self, inlet: Inlet) -> None:
        if inlet.timer is not None:
            inlet.timer.cancel()
        inlet.timer = self._at_end_of(inlet.pause, inlet.directory.name)

    def _arm_relay(self) -> None:
        if self._relay_timer is not None:
            self._relay_timer.cancel()
        self._relay_timer = self._at_end_of(self._relay_pause, None)

    def _at_end_of(self, pause: Pause | None, name: str | None) -> asyncio.TimerHandle | None:
        if pause is None or pause.until is None:
            return None
        delay = max(pause.until - self._clock.now(), 0.0) + 0.001
        return asyncio.get_running_loop().call_later(delay, self._pause_over, name)

    def _pause_over(self, name: str | None) -> None:
        if name is None or name in self._inlets:
            self._remember(name, None)
            self.resume(name)

    # --- the end ---

    def begin_stop(self) -> None:
        """No more claims anywhere."""
        for inlet in self:
            inlet.cycle.begin_stop()

    async def drained(self, timeout_seconds: float) -> bool:
        """Wait for what is in flight. False: time was up."""
        return all(await asyncio.gather(*(cycle.drained(timeout_seconds) for cycle in self._cycles())))

    async def answered(self, timeout_seconds: float) -> bool:
        """Wait until what is in flight waits for nothing but its commit. False: time was up."""
        return all(await asyncio.gather(*(cycle.answered(timeout_seconds) for cycle in self._cycles())))

    @property
    def unrecorded(self) -> int:
        """Messages whose outcomes only the directories' logs have, since the stop."""
        return sum(cycle.unrecorded for cycle in self._cycles())

    def _cycles(self) -> list[Cycle]:
        return [*(inlet.cycle for inlet in self), *self._retired.values()]

    async def close(self) -> None:
        """Let go of all directories, once drained."""
        if self._relay_timer is not None:
            self._relay_timer.cancel()
        for inlet in self:
            if inlet.timer is not None:
                inlet.timer.cancel()
        for task in self._retired:
            task.cancel()
        await asyncio.gather(*(cycle.close() for cycle in self._cycles()), *self._retired, return_exceptions=True)


def _by_itself(directory: Directory) -> bool:
    """With a schedule and no watch, mail goes only at scheduled runs and drains (http.md)."""
    return directory.schedule is None or directory.watch


async def _close_when_drained(cycle: Cycle) -> None:
    await cycle.drained(timeout_seconds=3600)
    await cycle.close()
