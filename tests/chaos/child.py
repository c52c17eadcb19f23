"""A relay in a lean process: forked from the runner, which has imported everything once. No HTTP.

The runner itself must stay without threads and event loops, so that forking it is sound.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import uvloop

from core.domain.account import Account, AuthMethod, Directory, Security
from core.domain.clock import Clock
from core.logs import configure_logs
from core.runtime.relay import Relay
from core.settings import Settings
from core.store import accounts, directories

PATIENCE_SECONDS = 120.0
FAULT_SIGNS = ("report this as a fault", "Traceback (most recent call last)", "can't be recorded")
KEY = "chaos-key-" + "0" * 40


@dataclass
class Child:
    """A forked process."""

    pid: int

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Its exit code (negative: the signal). Killed, with an error, when time is up."""
        deadline = time.monotonic() + seconds
        pause = 0.0005
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"the child did not end in {seconds:g} s")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.01)


def fork(work: Callable[[], int | None], log: Path) -> Child:
    """Run `work` in a child whose output goes to `log`; its result is the exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _run(work, log)
    return Child(pid)


def _run(work: Callable[[], int | None], log: Path) -> NoReturn:
    code = 70
    try:
        gc.freeze()
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        configure_logs(log_format="json", log_level="error")
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def faults_in(log: Path) -> list[str]:
    """Lines of a child's log that no run may bring forth."""
    if not log.exists():
        return []
    lines = log.read_text(errors="replace").splitlines()
    found = [line for line in lines if any(sign in line for sign in FAULT_SIGNS)]
    return [line[:300] for line in found if "asyncio.exceptions.CancelledError" not in line]  # a job cut off by a stop


# --- the relay --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where one relay's things lie."""

    root: Path
    pickup: Path
    data: Path

    @property
    def log(self) -> Path:
        return self.root / "child.log"

    @property
    def database(self) -> Path:
        return self.data / "mpu.sqlite3"

    def settings(self, **changes: Any) -> Settings:
        values: dict[str, Any] = {
            "data_dir": self.data,
            "pickup_roots": (self.pickup.parent,),
            "api_key": KEY,
            "allowed_smtp_ports": (0,),
            "grace_seconds": 10,
        }
        return Settings(**{**values, **changes})

    def names(self) -> list[str]:
        """What waits, is claimed or is held; not badmail, not what hides."""
        return [n for n in os.listdir(self.pickup) if n.endswith((".eml", ".lck", ".hold"))]

    def badmail(self) -> set[str]:
        """Names of the dead letters."""
        folder = self.pickup / "badmail"
        return {n for n in os.listdir(folder) if n.endswith(".eml")} if folder.exists() else set()

    def logs_left(self) -> list[str]:
        """Outcome logs in `.mpu/`."""
        folder = self.pickup / ".mpu"
        return [n for n in os.listdir(folder) if ".log." in n] if folder.exists() else []


def place_at(root: Path) -> Place:
    """Make the folders."""
    place = Place(root, root / "spool" / "pickup", root / "data")
    place.pickup.mkdir(parents=True, exist_ok=True)
    place.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    return place


def directory_at(place: Place, **changes: Any) -> Directory:
    """Its settings: back-off in fractions of a second, so that a long run doesn't wait."""
    values: dict[str, Any] = {"retry_initial_seconds": 0.05, "retry_max_seconds": 0.2, "quiet_seconds": 0.5}
    return Directory("pickup", str(place.pickup), ("main",), **{**values, **changes})


def set_up(place: Place, port: int, *, directory: Directory | None = None, **account: Any) -> None:
    """Write account and directory into a new database, in a child."""

    async def work() -> None:
        relay = Relay(place.settings(new_database=True))
        await relay.start()
        assert relay.failure is None, relay.failure
        now = relay.clock.now()
        value = Account("main", "127.0.0.1", port, security=Security.NONE, auth=AuthMethod.NONE, **account)
        await relay.store.write(lambda s: accounts.create(s, relay.store.secrets, value, now=now))
        await relay.store.write(lambda s: directories.create(s, directory or directory_at(place), now=now))
        await relay.stop()

    run_to_end(lambda: asyncio.run(work()), place)


def run_to_end(work: Callable[[], int | None], place: Place) -> None:
    """A child that must end well."""
    code = fork(work, place.log).wait()
    if code:
        raise RuntimeError(f"the child ended with {code}:\n{place.log.read_text()[-3000:]}")


def run_loop(work: Coroutine[Any, Any, int | None]) -> int | None:
    """On the loop that the service uses."""
    return uvloop.run(work)


async def serve(
    place: Place, settings: Settings | None = None, clock: Clock | None = None, *, patient: bool = False
) -> int:
    """Work until SIGTERM, and stop as the service does. `patient`: a failed start doesn't end it."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    relay = Relay(settings or place.settings(), clock=clock)
    await relay.start()
    if relay.failure is not None and not patient:
        raise relay.failure
    await stop.wait()
    relay.begin_stop()
    await relay.stop()
    return 0


def serving(
    place: Place, *, settings: Settings | None = None, clock: Clock | None = None, patient: bool = False
) -> Child:
    """A relay that works until SIGTERM; one that comes before it can be heeded waits."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return fork(lambda: run_loop(serve(place, settings, clock, patient=patient)), place.log)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def empty(relay: Relay, place: Place, seconds: float = PATIENCE_SECONDS) -> None:
    """Run cycles, due or not, until nothing waits; what is held is released."""
    deadline = time.monotonic() + seconds
    cycle = relay.inlets.get("pickup").cycle
    await cycle.run(include_deferred=True)
    while names := place.names():
        for entry in list(cycle.spool.entries()) if any(n.endswith(".hold") for n in names) else ():
            if entry.file_name.endswith(b".hold"):
                cycle.spool.release_hold(entry)
        await cycle.run(include_deferred=True)
        if time.monotonic() > deadline:
            raise TimeoutError(f"still there after {seconds:g} s: {names[:10]}")
        await asyncio.sleep(0.005)


def work_off(place: Place, *, settings: Settings | None = None, clock: Clock | None = None) -> None:
    """A relay that runs until the directory is empty, and stops. Raises RuntimeError with its log if it doesn't."""

    async def work() -> int:
        relay = Relay(settings or place.settings(), clock=clock)
        await relay.start()
        if relay.failure is not None:
            raise relay.failure
        await empty(relay, place)
        await relay.stop()
        return 0

    run_to_end(lambda: run_loop(work()), place)
