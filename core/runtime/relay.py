"""The composition root: builds the relay, starts it, stops it. Everything is passed in; nothing is global.

Start: database (migrated), accounts, directories with their recovery, scheduler, watch, ready. Stop, in this order:
claims end, open drains answer, what is in flight has `grace_seconds`, then its connections are cut (what still awaits a
reply is settled as unknown), outcomes are committed, everything closes in reverse. A stop ends a start too. A directory
whose file system hangs holds up neither: the others start without it, and it joins in once it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import platform
import random
import socket
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import structlog
from sqlmodel import Session

from core.delivery import Delivered, Delivery
from core.domain.account import Directory
from core.domain.circuit import Pause, PausedBy
from core.domain.clock import Clock
from core.domain.outcome import Attempt
from core.errors import DatabaseNewer, DatabaseUnavailable, NotRunning, RelayError, StorageFull
from core.runtime.accounts import Accounts
from core.runtime.alerts import Alerts
from core.runtime.audit import Audit
from core.runtime.checks import Checks
from core.runtime.clock import SystemClock
from core.runtime.demo import install_demo
from core.runtime.directories import Directories
from core.runtime.drains import Drains
from core.runtime.explain import Explainer
from core.runtime.finished import Keep, Register
from core.runtime.first_key import ensure_key
from core.runtime.history import History
from core.runtime.inlets import Inlet, Inlets
from core.runtime.keys import Keys
from core.runtime.messages import Messages
from core.runtime.metrics import Metrics
from core.runtime.oauth_secrets import StoredFollowers
from core.runtime.operations import Operations
from core.runtime.outlets import Outlets
from core.runtime.pause_records import PauseRecords
from core.runtime.pauses import Pauses
from core.runtime.queue import Queue
from core.runtime.quotas import Quotas, used_by
from core.runtime.reasons import Reasons
from core.runtime.runtime_settings import RuntimeSettings
from core.runtime.sandbox import Sandbox
from core.runtime.secret_sources import SecretSources
from core.runtime.slowdowns import Slowdowns
from core.runtime.threads import FileThreads
from core.runtime.tokens import Tokens, stored_in
from core.runtime.transports import transport_of
from core.runtime.views import HealthPart, HealthView, VersionView
from core.scheduler import Scheduler
from core.settings import Settings
from core.spool.watch import Watcher
from core.store import accounts as account_rows
from core.store import directories as directory_rows
from core.store import pauses, retention, sender_routes, usage
from core.store.ledger import Health
from core.store.store import Store
from core.store.tables import REVISION

log = structlog.get_logger()

RECOVERY_SECONDS = 10.0  # of all directories at the start; who needs longer is recovered while the others work
ABORTED_SECONDS = 2.0  # what was cut off has its outcome at once; only its commit is waited for
START_AGAIN_SECONDS = (1.0, 2.0, 5.0, 10.0)  # between tries of a start that failed; the last goes on
LAST_COMMIT_SECONDS = 1.0  # at least, however long the rest took
WATCH_AGAIN_SECONDS = 10.0  # after inotify failed
CLOSE_SECONDS = 5.0  # for a last commit; what can't be committed is told by the directory's log at the next start


class Relay:
    """One relay with everything that belongs to it. `start`, then use, then `stop`."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None, chance: Any = random.random) -> None:
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self.host_name = socket.getfqdn()
        self.metrics_registry = Metrics()
        self.scheduler = Scheduler()
        self.sandbox: Sandbox | None = None
        self.started_at = self.clock.now()
        self.failure: RelayError | None = None  # why it could not start
        self._chance = chance
        self._state = "new"
        self._applying = asyncio.Lock()  # of two changes at once, what was saved last must be set last
        self._watching: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[bool] | None = None
        self._retrying: asyncio.Task[None] | None = None
        self._recoveries: dict[asyncio.Task[None], Inlet] = {}  # of the start
        self._cut_off_at = 0.0  # of a stop, by the loop's clock: what is in flight then is cut off
        self._was_healthy = True
        self._health_changed = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        """What is not there yet, or could not be opened: says why instead of failing oddly."""
        if name.startswith("_"):
            raise AttributeError(name)
        failure = self.__dict__.get("failure")
        raise failure or NotRunning("the service is starting", remedy="ask again in a moment")

    # --- start ---

    async def start(self) -> None:
        """Until ready. A database that can't be used leaves the API up and everything else off; see `health`.

        What may pass (no space, a lock, a disk that is not there yet) is tried again until it works.
        `begin_stop` ends it.
        """
        self._state = "starting"
        loop = asyncio.get_running_loop()
        # asyncio's own has six on two cores: as many directories whose file system hangs would stop all others
        loop.set_default_executor(FileThreads())
        self._starting = loop.create_task(self._try_start())
        try:
            started = await self._starting
        except asyncio.CancelledError:
            if self._state != "stopping":
                raise
            return
        if not started and _may_pass(self.failure):
            self._retrying = loop.create_task(self._start_again())

    async def _start_again(self) -> None:
        for delay in itertools.chain(START_AGAIN_SECONDS, itertools.repeat(START_AGAIN_SECONDS[-1])):
            await asyncio.sleep(delay)
            try:
                if await self._try_start() or not _may_pass(self.failure):
                    return
            except Exception as error:
                log.exception("the start failed", remedy="restart the service")
                told = NotRunning(f"the start failed: {error!r}", remedy="report this as a fault")
                self.failure = error if isinstance(error, RelayError) else told
                self._state = "failed"
                return

    async def _try_start(self) -> bool:
        try:
            store = await self._open_with_key()
        except RelayError as error:
            if self.failure is None or self.failure.detail != error.detail:
                log.error("nothing is sent", reason=error.detail, remedy=error.remedy)  # noqa: TRY400 - cause is known
            self.failure, self._state = error, "failed"
            return False
        self.failure, self._state = None, "starting"
        await self._run(store)
        return True

    async def _open_with_key(self) -> Store:
        """The store, with a first key in a new one."""
        store = await asyncio.to_thread(self._open_store)
        try:
            await store.write(self._prepare)
        except (RelayError, asyncio.CancelledError):
            await asyncio.to_thread(store.close, CLOSE_SECONDS)
            raise
        return store

    def _prepare(self, session: Session) -> None:
        ensure_key(session, self.settings, self.clock)
        usage.bring_back(session, now=self.clock.now())

    async def _run(self, store: Store) -> None:
        self._compose(store)
        if self.settings.demo:
            await self._start_demo()
        await self._take_over()
        self.scheduler.start()
        self.scheduler.hourly("retention", self._forget_old)
        self._watching = asyncio.get_running_loop().create_task(self._watch())
        self._state = "ready"
        self._report_secret_key()
        log.info(
            "ready",
            directories=[inlet.directory.name for inlet in self.inlets],
            accounts=self.outlets.names,
            data_dir=str(self.settings.data_dir),
        )

    def _open_store(self) -> Store:
        secret = self.settings.secret_key
        return Store.open(
            str(self.settings.data_dir),
            clock=self.clock,
            create=self.settings.may_create_database,
            secret_key=secret.get_secret_value() if secret is not None else None,
        )

    def _compose(self, store: Store) -> None:
        settings, clock = self.settings, self.clock
        loop = asyncio.get_running_loop()
        self.store = store

        def on_health(_health: Health) -> None:
            loop.call_soon_threadsafe(self._on_health)

        def on_open(account: str) -> None:
            self.inlets.on_account(account)

        store.ledger.on_health = on_health
        self.audit = Audit(store, clock=clock)
        self.keys = Keys(store, self.audit, clock=clock)
        self.history = History(store)
        remember = stored_in(store.ledger, store.secrets, clock)
        self.outside = SecretSources(settings, store=store)
        self.tokens = Tokens(settings, clock, remember, StoredFollowers(store, clock), outside=self.outside)
        self.pause_records = PauseRecords(store, clock)
        self.slowdowns = Slowdowns(store, lambda name: self.outlets.quotas.slowed(name))
        self.outlets = Outlets(
            clock=clock,
            chance=self._chance,
            make_transport=lambda account: transport_of(account, settings, clock, self.tokens, self.outside),
            remember=self._remember_account,
            on_open=on_open,
            quotas=Quotas(clock=clock, on_open=on_open, on_slowed=self.slowdowns.changed, restored=False),
        )
        self.delivery = Delivery(
            self.outlets,
            _Gate(store),
            clock=clock,
            chance=self._chance,
            host_name=self.host_name,
            max_header_bytes=settings.max_header_bytes,
        )
        self.watcher = Watcher(
            lambda directory, name: self.inlets.on_name(directory, name),
            lambda directory: self.inlets.on_overflow(directory),
        )
        self.inlets = Inlets(
            outlets=self.outlets,
            deliverer=self.delivery,
            scheduler=self.scheduler,
            watcher=self.watcher,
            clock=clock,
            remember=self._remember_directory,
            on_delivered=self._on_delivered,
            on_run=self.metrics_registry.ran,
            look_ahead=settings.look_ahead,
            scan_batch=settings.scan_batch,
            max_open_messages=settings.max_open_messages,
        )
        self._compose_nouns(store)

    def _compose_nouns(self, store: Store) -> None:
        settings, clock, audit = self.settings, self.clock, self.audit
        keep = Keep(settings.open_drains_max, settings.finished_kept, settings.finished_kept_seconds)
        self.pauses = Pauses(self.outlets, self.inlets, audit, self.pause_records, clock=clock)
        self.checks = Checks(
            self.outlets,
            audit,
            clock,
            self.host_name,
            settings.allow_private_targets,
            self.tokens,
            self.outside,
            self._count,
        )
        self.queue = Queue(self.inlets, self.outlets, store, audit, clock, settings.max_header_bytes)
        self.reasons = Reasons(self.queue)
        self.messages = Messages(
            self.queue,
            store,
            Explainer(self.outlets.standings, self.outlets.account, settings.max_header_bytes),
            ThreadPoolExecutor(settings.uploads_max, "mpu-upload"),
        )
        self.drains = Drains(self.inlets, audit, Register("drain", keep, clock=clock), clock=clock)
        self.operations = Operations(
            self.queue, self.inlets, audit, Register("operation", keep, clock=clock), clock=clock
        )
        self.alerts = Alerts(self.inlets, self.outlets, self.queue, store, clock)
        self.runtime_settings = RuntimeSettings(store, audit, settings, self.apply_settings)
        configured: dict[str, Any] = {
            "clock": clock,
            "settings": settings,
            "pauses": self.pauses,
            "checks": self.checks,
        }
        self.accounts = Accounts(
            store, audit, apply=self.apply_account, quotas=self.outlets.quotas, outside=self.outside, **configured
        )
        self.directories = Directories(store, audit, apply=self.apply_directory, **configured)

    async def _take_over(self) -> None:
        """Accounts first, then directories with their recovery; one that can't be reached doesn't stop the others."""

        def load(session: Session) -> Any:
            return (
                account_rows.load(session, self.store.secrets),
                directory_rows.load(session),
                pauses.get(session, pauses.PauseOf.RELAY),
                sender_routes.load(session),
            )

        accounts, directories, relay_pause, routes = await self.store.read(load)
        for record in accounts:
            self.outlets.set(record.account, record.pause, record.slowed)
        self.outlets.set_sender_routes(routes)
        self.inlets.restore_relay_pause(relay_pause)
        for record in directories:
            self.inlets.set(record.directory, record.pause)
        await self._recover_all()
        settings = [record.account for record in accounts]  # with what the recovery found out, and before anything goes
        self.outlets.quotas.restore(await self.store.read(lambda s: used_by(s, settings, self.clock.now())))

    async def _recover_all(self) -> None:
        loop = asyncio.get_running_loop()
        for inlet in self.inlets:
            if inlet.directory.enabled:
                task = loop.create_task(self._recover(inlet))
                self._recoveries[task] = inlet
                task.add_done_callback(lambda done: self._recoveries.pop(done, None))
        if self._recoveries:
            _, late = await asyncio.wait(self._recoveries, timeout=RECOVERY_SECONDS)
            for task in late:
                self._recoveries[task].cycle.late(RECOVERY_SECONDS)

    async def _recover(self, inlet: Inlet) -> None:
        try:
            await inlet.cycle.ready()
        except RelayError as error:
            log.warning("directory not ready", directory=inlet.directory.name, reason=error.detail, remedy=error.remedy)
        except Exception:  # nothing that one directory has may stop the others
            log.exception("directory not ready", directory=inlet.directory.name, remedy="report this as a fault")

    async def _start_demo(self) -> None:
        self.sandbox = Sandbox(
            port=self.settings.sandbox_port,
            kept_messages=self.settings.sandbox_kept_messages,
            kept_bytes=self.settings.sandbox_kept_bytes,
        )
        await install_demo(self.store, self.settings, await self.sandbox.start(), clock=self.clock)

    # --- changes while it runs ---

    async def apply_account(self, name: str) -> None:
        """An account was saved or deleted."""

        def load(session: Session) -> Any:
            records = account_rows.load(session, self.store.secrets)
            record = next((r for r in records if r.account.name == name), None)
            return record, used_by(session, [record.account] if record is not None else [], self.clock.now())

        async with self._applying:
            record, used = await self.store.read(load)
            if record is None:
                self.outlets.remove(name)
                self.pause_records.forget(pauses.PauseOf.ACCOUNT, name)
            else:
                self.outlets.quotas.restore(used)
                self.outlets.set(record.account, record.pause)
        if self.store.secret_error is not None:  # only now: before, a login without the password would be tried
            await self.store.check_secrets()
            self._on_health()
        if record is not None:
            self.inlets.on_account(name)

    async def apply_directory(self, name: str) -> None:
        """A directory was saved or deleted."""
        async with self._applying:
            records = await self.store.read(directory_rows.load)
            record = next((r for r in records if r.directory.name == name), None)
            if record is None:
                self.inlets.remove(name)
                self.pause_records.forget(pauses.PauseOf.DIRECTORY, name)
            else:
                self.inlets.set(record.directory, record.pause)

    async def apply_settings(self) -> None:
        """Settings of the service were changed: mail that waits may have another way now."""
        async with self._applying:
            self.outlets.set_sender_routes(await self.store.read(sender_routes.load))
        self.inlets.wake_all()

    async def _count(self, attempt: Attempt) -> None:
        """A message that no directory knows of was sent."""
        self.outlets.count(attempt)

        def write(session: Session) -> None:
            usage.count(session, attempt.account, at=attempt.ended_at, messages=1, recipients=attempt.taken)

        try:
            await self.store.write(write)
        except RelayError as error:
            log.warning("test message not counted", account=attempt.account, reason=error.detail)

    def _remember_account(self, name: str, pause: Pause | None) -> None:
        self.pause_records.behind(pauses.PauseOf.ACCOUNT, name, pause)

    def _remember_directory(self, name: str | None, pause: Pause | None) -> None:
        place = pauses.PauseOf.RELAY if name is None else pauses.PauseOf.DIRECTORY
        self.pause_records.behind(place, name or "", pause)

    def _on_delivered(self, directory: Directory, delivered: Delivered) -> None:
        self.metrics_registry.delivered(directory, delivered)

    def _on_health(self) -> None:
        self._health_changed.set()
        healthy = self.store.healthy
        if healthy and not self._was_healthy:
            log.info("outcomes can be recorded again")
            self.inlets.wake_all()
        elif not healthy and self._was_healthy:
            problem = self.store.problem
            assert problem is not None
            log.error("nothing new is claimed", reason=problem.detail, remedy=problem.remedy)
        self._was_healthy = healthy

    def _report_secret_key(self) -> None:
        error = self.store.secret_error
        if error is not None:
            self._was_healthy = False
            log.error("nothing is sent", reason=error.detail, remedy=error.remedy)

    async def _watch(self) -> None:
        while True:
            try:
                await self.watcher.run()
            except OSError as error:
                log.exception(
                    "directories are not watched",
                    reason=str(error),
                    remedy="nothing to do: it is tried again, and the interval finds files meanwhile",
                )
            self.watcher.close()
            await asyncio.sleep(WATCH_AGAIN_SECONDS)
            self.inlets.watch_all()

    async def _forget_old(self) -> None:
        """Delete what is older than `history_days`."""
        try:
            deleted = await retention.run(self.store, self.clock)
        except RelayError as error:  # a full disk, a lock: in an hour again
            log.warning("old history not deleted", reason=error.detail, remedy=error.remedy)
            return
        if deleted:
            log.info("old history deleted", rows=deleted)

    # --- what it says of itself ---

    @property
    def state(self) -> str:
        """new, starting, ready, stopping, failed."""
        return self._state

    def health(self) -> HealthView:
        """From memory: answers at once."""
        if self._state != "ready":
            detail = self.failure.detail if self.failure is not None else f"the service is {self._state}"
            reason = self.failure.code if self.failure is not None else self._state
            return HealthView("unavailable", (HealthPart("service", ok=False, detail=detail),), reason)
        health, error = self.store.ledger.health, self.store.secret_error
        parts = [
            HealthPart("database", health.healthy, health.error.detail if health.error else ""),
            HealthPart("secret_key", error is None, error.detail if error else ""),
            HealthPart("scheduler", self.scheduler.running),
        ]
        if not all(part.ok for part in parts):
            problem = self.store.problem
            return HealthView("unavailable", tuple(parts), problem.code if problem is not None else "scheduler")
        lost = [
            HealthPart(f"directory {inlet.directory.name}", ok=False, detail=inlet.cycle.unavailable.detail)
            for inlet in self.inlets
            if inlet.cycle.unavailable is not None and inlet.directory.enabled
        ]
        for name in self.outlets.names:
            pause = self.outlets.pause_of(name)
            if pause is not None and pause.by is PausedBy.SERVICE:
                lost.append(HealthPart(f"account {name}", ok=False, detail=f"{pause.code}: {pause.reason}"))
        return HealthView("degraded" if lost else "ready", (*parts, *lost))

    async def metrics(self) -> bytes:
        """Prometheus text."""
        return self.metrics_registry.render(await self.queue.counts(), self.outlets)

    async def version(self) -> VersionView:
        """What runs here."""
        return VersionView(
            version=metadata.version("mail-processing-unit"),
            python=platform.python_version(),
            platform=platform.platform(),
            database_revision=REVISION,
            started_at=self.started_at,
        )

    # --- stop ---

    def begin_stop(self) -> None:
        """At SIGTERM, before open requests are waited for: claims end, open drains will answer."""
        if self._state not in ("ready", "starting", "failed"):
            return
        self._state = "stopping"
        self._cut_off_at = asyncio.get_running_loop().time() + self.settings.grace_seconds
        log.info("stopping", grace_seconds=self.settings.grace_seconds)
        for task in (self._starting, self._retrying, *self._recoveries):
            if task is not None:
                task.cancel()
        if "operations" in self.__dict__:  # composed, and perhaps at work, even where the start failed after it
            self.inlets.begin_stop()
            self.outlets.quotas.close()
            self.drains.begin_stop()
            self.operations.begin_stop()

    async def stop(self) -> None:
        """Finish what is in flight, then close everything. Harmless when called twice."""
        self.begin_stop()
        starting = [task for task in (self._starting, self._retrying, *self._recoveries) if task is not None]
        await asyncio.gather(*starting, return_exceptions=True)
        if self._state in ("stopped", "new") or "store" not in self.__dict__:
            self._state = "stopped"
            return
        loop = asyncio.get_running_loop()
        left = max(self._cut_off_at - loop.time(), 0.0)  # open requests had their part of the grace time
        if not await self._finished(left):
            log.warning("cut off after the grace time", grace_seconds=self.settings.grace_seconds)
            self.outlets.abort()
            await self.inlets.drained(ABORTED_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORTED_SECONDS):
                await self.drains.ended()
                await self.operations.ended()
        await self.scheduler.stop()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self.watcher.close()
        last = loop.time() + CLOSE_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(last):
                await self.pause_records.close()
                await self.store.ledger.flush()
                await self.slowdowns.close()
        self.messages.close()
        await _at_most(CLOSE_SECONDS, self.inlets.close())  # a file system may hang
        await asyncio.gather(self._close_outlets(), self.tokens.close())
        if self.sandbox is not None:
            await self.sandbox.stop()
        left = max(last - loop.time(), LAST_COMMIT_SECONDS)
        await _at_most(left + ABORTED_SECONDS, asyncio.to_thread(self.store.close, left))  # its disposers too
        await self.inlets.drained(ABORTED_SECONDS)  # who waited for a commit has been told that there is none
        if self.inlets.unrecorded:
            log.warning(
                "outcomes wait in the directories' logs",
                messages=self.inlets.unrecorded,
                remedy="none is needed: they are settled at the next start",
            )
        self._state = "stopped"
        log.info("stopped")

    async def _finished(self, seconds: float) -> bool:
        """Wait for what is in flight, but for no commit while the database fails. False: time was up."""
        loop = asyncio.get_running_loop()
        last = loop.time() + seconds
        if not await self.inlets.answered(seconds):
            return False
        drained = loop.create_task(self.inlets.drained(max(last - loop.time(), 0.0)))
        while self.store.ledger.healthy and not drained.done():
            self._health_changed.clear()
            changed = loop.create_task(self._health_changed.wait())
            await asyncio.wait((drained, changed), return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        if drained.done():
            return drained.result()
        drained.cancel()
        return True

    async def _close_outlets(self) -> None:
        if not await self.outlets.close(ABORTED_SECONDS):
            self.outlets.abort()  # a test message whose reply does not come
            await self.outlets.close(ABORTED_SECONDS)


async def _at_most(seconds: float, closing: Awaitable[object]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await closing


def _may_pass(failure: RelayError | None) -> bool:
    """A database of a newer MPU stays one; a full disk or a lock doesn't."""
    return isinstance(failure, DatabaseUnavailable | StorageFull) and not isinstance(failure, DatabaseNewer)


class _Gate:
    """The ledger as delivery sees it: also closed while passwords can't be opened."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def healthy(self) -> bool:
        """Whether anything may be claimed."""
        return self._store.healthy

    def settle(self, entry: Any) -> asyncio.Future[object]:
        """Commit, then dispose."""
        return self._store.ledger.settle(entry)
