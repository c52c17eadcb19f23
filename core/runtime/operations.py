"""Acts on many messages, in the background."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass

import structlog

from core.domain.clock import Clock
from core.errors import DirectoryUnavailable, FieldError, InvalidSettings, NotFound, RelayError, StateConflict
from core.runtime.audit import Audit
from core.runtime.finished import Register, new_id
from core.runtime.inlets import Inlet, Inlets
from core.runtime.queue import Queue
from core.runtime.views import Actor, BulkAct, OperationView, QueueFilter
from core.spool.directory import Entry

log = structlog.get_logger()

BATCH = 500  # messages looked up at once


@dataclass(slots=True, eq=False)
class _Operation:
    id: str
    act: BulkAct
    filter: QueueFilter
    dry_run: bool
    started_at: float
    matched: int = 0
    done: int = 0
    skipped: int = 0
    failed: int = 0
    state: str = "running"
    detail: str = ""
    finished_at: float | None = None
    task: asyncio.Task[None] | None = None
    ended_at: float | None = None


class Operations:
    """Starts them and tells how far they are."""

    def __init__(
        self, queue: Queue, inlets: Inlets, audit: Audit, register: Register[_Operation], *, clock: Clock
    ) -> None:
        self._queue = queue
        self._inlets = inlets
        self._audit = audit
        self._register = register
        self._clock = clock
        self._stopping = False

    async def start(
        self,
        act: BulkAct,
        filter: QueueFilter,  # noqa: A002 - the API's word
        *,
        all_messages: bool,
        dry_run: bool,
        actor: Actor,
    ) -> OperationView:
        """Begin, once it is in the audit.

        Raises InvalidSettings for an unknown directory, an empty filter without `all_messages`; TooMany, NotRunning,
        DatabaseUnavailable, StorageFull: nothing has begun.
        """
        if filter.empty and not all_messages:
            raise InvalidSettings(
                [FieldError("/filter", "empty", 'an empty filter means every message: say so with "all": true')]
            )
        if filter.directory is not None:
            try:
                self._inlets.get(filter.directory)
            except NotFound as error:
                raise InvalidSettings([FieldError("/filter/directory", "unknown_directory", error.detail)]) from None
        operation = _Operation(new_id(), act, filter, dry_run, self._clock.now())
        with self._register.place_for(operation):
            if not dry_run:
                await self._audit.record(actor, f"queue.{act.value}_all", operation.id, {"filter": str(filter)})
            self._register.start(operation, self._run(operation, actor))
        return _view(operation)

    async def get(self, operation_id: str) -> OperationView:
        return _view(self._register.get(operation_id))

    def begin_stop(self) -> None:
        """Open ones end after the message they are at."""
        self._stopping = True

    async def ended(self) -> None:
        """Wait for the open ones."""
        tasks = [operation.task for operation in self._register.open() if operation.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, operation: _Operation, actor: Actor) -> None:
        try:
            wanted = operation.filter.directory
            for inlet in self._inlets:
                if wanted in (None, inlet.directory.name):
                    await self._over(operation, inlet, actor)
            operation.state = "stopped" if self._stopping else "done"
        except DirectoryUnavailable as error:
            operation.state, operation.detail = "failed", error.detail
        except Exception as error:
            operation.state, operation.detail = "failed", str(error)
            log.exception("bulk act failed", operation=operation.id, remedy="report this as a fault")
        finally:
            operation.finished_at = self._clock.now()

    async def _over(self, operation: _Operation, inlet: Inlet, actor: Actor) -> None:
        rows = self._queue.matching(inlet, operation.filter, self._queue.block(inlet))
        seen: set[str] = set()  # a rename may show a message again to the same listing
        while batch := await asyncio.to_thread(lambda: list(itertools.islice(rows, BATCH))):
            for entry, _ in batch:
                if self._stopping:
                    return
                if entry.identity.id not in seen:
                    seen.add(entry.identity.id)
                    operation.matched += 1
                    if not operation.dry_run:
                        await self._one(operation, inlet, entry, actor)

    async def _one(self, operation: _Operation, inlet: Inlet, entry: Entry, actor: Actor) -> None:
        try:
            if await self._queue.carry_out(inlet, entry, operation.act.value, actor) is not None:
                operation.done += 1
            else:
                operation.skipped += 1
        except (StateConflict, NotFound):
            operation.skipped += 1  # it moved on meanwhile
        except RelayError as error:
            operation.failed += 1
            operation.detail = error.detail


def _view(operation: _Operation) -> OperationView:
    return OperationView(
        id=operation.id,
        act=operation.act,
        state=operation.state,  # type: ignore[arg-type] # one of the four words, set in _run
        dry_run=operation.dry_run,
        filter=operation.filter,
        matched=operation.matched,
        done=operation.done,
        skipped=operation.skipped,
        failed=operation.failed,
        started_at=operation.started_at,
        finished_at=operation.finished_at,
        detail=operation.detail,
    )
