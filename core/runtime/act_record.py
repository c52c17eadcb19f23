"""What is written of an act on a message: first of all, so that nothing is done of which nothing tells."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog
from sqlmodel import Session

from core.domain.clock import Clock
from core.domain.envelope import Envelope
from core.domain.message import State
from core.errors import RelayError
from core.runtime.audit import Audit
from core.runtime.views import Actor
from core.spool.directory import Entry
from core.store import entry as ledger
from core.store import history
from core.store.store import Store

log = structlog.get_logger()


class ActRecord:
    """Of one act: its line in the message's life, in the audit where it is `audited`, and in the history the message's
    `end`, where it is one. Made in the event loop.
    """

    def __init__(
        self,
        store: Store,
        audit: Audit,
        clock: Clock,
        entry: Entry,
        act: str,
        actor: Actor,
        *,
        audited: bool,
        end: ledger.Entry | None,
    ) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock
        self._entry = entry
        self._act = act
        self._actor = actor
        self._audited = audited
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._written: int | None = None  # id of the act's row

    def write(self) -> None:
        """All of it in one transaction; blocks, and belongs to another thread. What it raises: nothing was written."""
        asyncio.run_coroutine_threadsafe(self._write(), self._loop).result()

    async def _write(self) -> None:
        self._written = await self._store.write(self._put)

    def _put(self, session: Session) -> int:
        now, message_id = self._clock.now(), self._entry.identity.id
        if self._end is not None:
            history.tell(session, self._end, now=now)
        if self._audited:
            self._audit.within(session, self._actor, f"queue.{self._act}", message_id)
        return history.act(session, message_id, self._act, key=self._actor.key_name, now=now)

    async def take_back(self, error: RelayError) -> None:
        """The act failed: where it was written, say so, if that is possible."""
        if self._written is None:
            return
        act_id, message_id = self._written, self._entry.identity.id

        def write(session: Session) -> None:
            history.not_done(session, act_id, error.detail)
            if self._end is not None:
                history.tell(session, _stays(self._end, self._entry, error.detail), now=self._clock.now())
            if self._audited:
                action, changes = f"queue.{self._act}", {"not_done": error.detail}
                self._audit.within(session, self._actor, action, message_id, changes)

        try:
            await self._store.write(write)
        except RelayError as failed:
            log.warning("an act that failed is told as done", message=message_id, act=self._act, reason=failed.detail)


def deleted(directory: str, entry: Entry, envelope: Envelope | None, actor: Actor) -> ledger.Entry:
    """What the history is told of a message that an operator deleted; what was sent of it stays sent."""
    was = entry.sidecar
    recipients = envelope.recipients if envelope is not None else ()
    return ledger.Entry(
        message_id=entry.identity.id,
        directory=directory,
        sender=envelope.sender if envelope is not None else "",
        size_bytes=entry.size,
        arrived_at=entry.mtime,
        status=ledger.Status.DELETED,
        finished=True,
        rest=tuple(r.mailbox for r in recipients if was is None or r.mailbox not in was.accepted),
        reason=f"deleted by {actor.key_name}",
        attempts_counted=was.attempts if was else 0,
        first_attempt_at=was.first_attempt_at if was else None,
        possible_duplicate=bool(was and was.possible_duplicate),
    )


def _stays(end: ledger.Entry, entry: Entry, why: str) -> ledger.Entry:
    """In place of `end`: the message could not be deleted."""
    dead = entry.state is State.BADMAIL
    status = ledger.Status.FAILED if dead else ledger.Status.DEFERRED
    return replace(end, status=status, finished=dead, reason=f"not deleted: {why}")
