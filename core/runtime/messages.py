"""Single mails from whichever side: handed over by HTTP, their whole life, and what would happen to them."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from core.domain.account import DotStuffing
from core.domain.message import MessageIdentity, State, parse_message_id
from core.domain.outcome import Outcome
from core.domain.reply import Phase
from core.errors import DirectoryUnavailable, FieldError, InvalidSettings, NotFound, RelayError, StateConflict
from core.runtime.explain import Explainer
from core.runtime.inlets import Inlet
from core.runtime.queue import Queue, shown
from core.runtime.views import (
    Actor,
    ActView,
    AttemptView,
    Explanation,
    MessageLife,
    QueuedMessage,
    RecipientView,
    Submitted,
)
from core.spool.directory import DirectorySpool, Entry
from core.spool.submission import Submission
from core.store import history, idempotency
from core.store.entry import Status
from core.store.store import Store

_Key = tuple[int, str]  # id of the API key, Idempotency-Key


@dataclass(slots=True)
class Messages:
    """See the module's text."""

    queue: Queue
    store: Store
    explainer: Explainer
    uploads: ThreadPoolExecutor  # of their own: other work must not wait for a crowd of them
    _under_way: set[_Key] = field(default_factory=set)

    def close(self) -> None:
        """No more are taken; what is being handed over ends with its request."""
        self.uploads.shutdown(wait=False, cancel_futures=True)

    # --- handed over by HTTP ---

    async def submit(
        self, directory: str, stream: AsyncIterator[bytes], actor: Actor, idempotency_key: str | None = None
    ) -> Submitted:
        """Durably and atomically into the directory. See facade.Messages."""
        inlet = self.queue.inlets.get(directory)
        hashed = _Hashed(stream)
        if idempotency_key is None:
            return await self._write(inlet, hashed)
        key = (actor.key_id, idempotency_key)
        if key in self._under_way:
            raise StateConflict("a mail with this Idempotency-Key is just being taken", state="running")
        self._under_way.add(key)
        once = asyncio.get_running_loop().create_task(self._once(inlet, hashed, key))
        once.add_done_callback(lambda task: self._ended(key, task))
        return await asyncio.shield(once)  # who hangs up must not leave the key free while a thread still writes

    def _ended(self, key: _Key, once: asyncio.Task[Submitted]) -> None:
        self._under_way.discard(key)
        if not once.cancelled():
            once.exception()  # the caller may be gone

    async def _once(self, inlet: Inlet, hashed: _Hashed, key: _Key) -> Submitted:
        """The key is reserved when the mail is whole and before it is put in: then a repetition finds the one or the
        other, whatever happened in between.
        """
        api_key, name = key
        directory, now = inlet.directory.name, self.queue.clock.now
        used = await self.store.read(lambda s: idempotency.find(s, name, api_key=api_key, now=now()))
        if used is not None:
            if parse_message_id(used.message_id).directory != directory:
                raise _reused("came with another directory in the last 24 hours")
            if used.written or await self._came(inlet, used.message_id):
                return await _same(hashed, used, directory)

        async def reserve(identity: MessageIdentity) -> None:
            digest = hashed.digest()
            _check_body(used, digest)
            await self.store.write(
                lambda s: idempotency.reserve(
                    s, name, api_key=api_key, body_hash=digest, message_id=identity.id, now=now()
                )
            )

        again = None if used is None else parse_message_id(used.message_id).name
        submitted = await self._write(inlet, hashed, again, reserve)
        with suppress(RelayError):  # it spares repetitions a search, no more: nobody waits for it
            self.store.write(
                lambda s: idempotency.written(s, name, api_key=api_key, message_id=submitted.id)
            ).add_done_callback(lambda future: future.cancelled() or future.exception())
        return submitted

    async def _write(
        self,
        inlet: Inlet,
        hashed: _Hashed,
        name: bytes | None = None,
        reserve: Callable[[MessageIdentity], Awaitable[None]] | None = None,
    ) -> Submitted:
        """With `reserve`, which is asked between the last octet and the name, under exactly the name it was told."""
        loop = asyncio.get_running_loop()
        submission = inlet.spool.submission(name)
        try:
            chunk = await hashed.read()  # here, not in a thread: who sends nothing holds none
            while following := await hashed.read():
                await loop.run_in_executor(self.uploads, submission.write, chunk)
                chunk = following
            identity = await loop.run_in_executor(self.uploads, submission.stage, chunk)
            if reserve is not None:
                await reserve(identity)
            put_in = partial(_put_in, submission, exactly=reserve is not None)
            entry = await loop.run_in_executor(self.uploads, put_in)
        except BaseException as error:
            with suppress(RuntimeError):  # no more threads: what is left the next start removes
                closed = loop.run_in_executor(self.uploads, submission.close)
                if isinstance(error, Exception):  # else this task has to end now
                    await closed
            raise
        if inlet.directory.enabled:
            inlet.cycle.offer(entry.identity.name)
        return Submitted(entry.identity.id, inlet.directory.name, entry.size)

    async def _came(self, inlet: Inlet, message_id: str) -> bool:
        """Whether the mail of a reserved key came into the directory. It is there until the history has it."""

        def holds() -> bool:
            inlet.spool.open()
            return inlet.spool.holds(parse_message_id(message_id))

        return await asyncio.to_thread(holds) or await self.store.read(lambda s: history.knows(s, message_id))

    # --- its life ---

    async def life(self, message_id: str) -> MessageLife:
        """Queued or gone. Raises NotFound."""
        queued: tuple[QueuedMessage, Entry] | None = None
        try:
            inlet, entry = await self.queue.entry(message_id)
            queued = await self.queue.get(message_id), entry
        except NotFound:
            inlet = None
        try:
            known = await self.store.read(lambda s: history.life(s, message_id))
        except NotFound:
            known = None
        if known is None and queued is None:
            raise NotFound("message", message_id)
        acts = await self.store.read(lambda s: history.acts(s, message_id))
        recipients = _recipients(known)
        sender = known.sender if known is not None else None
        if queued is not None and inlet is not None:
            envelope = await asyncio.to_thread(self.queue.envelope, inlet, queued[1])
            if envelope is not None:
                sender = envelope.sender
                told = {r.recipient for r in recipients}
                recipients += tuple(RecipientView(r.mailbox) for r in envelope.recipients if r.mailbox not in told)
        return MessageLife(
            id=message_id,
            directory=queued[0].directory if queued else known.directory if known else "",
            file_name=queued[0].file_name if queued else _name_of(message_id),
            state=queued[0].state if queued else _left(known, configured=self._configured(message_id)),
            internet_message_id=known.internet_message_id if known else None,
            sender=sender,
            subject=known.subject if known else None,
            size_bytes=queued[0].size_bytes if queued else known.size_bytes if known else 0,
            arrived_at=queued[0].arrived_at if queued else known.arrived_at if known else None,
            settled_at=None if queued else known.finished_at if known else None,
            due_at=queued[0].due_at if queued else None,
            waiting_for=queued[0].waiting_for if queued else None,
            reason=queued[0].reason if queued else "",
            recipients=recipients,
            attempts=_attempts(known),
            acts=tuple(ActView(a.at, a.key, a.act, a.detail) for a in acts),
        )

    def _configured(self, message_id: str) -> bool:
        try:
            self.queue.inlets.get(parse_message_id(message_id).directory)
        except NotFound:
            return False
        return True

    # --- what would happen ---

    async def explain(self, directory: str, data: bytes) -> Explanation:
        """To these octets in this directory now. Raises NotFound."""
        inlet = self.queue.inlets.get(directory)
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            fd = file.fileno()
            return await asyncio.to_thread(
                lambda: self.explainer.explain(inlet.directory, fd, proven=_proven(inlet.spool))
            )


def _proven(spool: DirectorySpool) -> DotStuffing | None:
    try:
        return spool.proven()
    except DirectoryUnavailable:
        return None  # what would happen to the mail itself can be told all the same


class _Hashed:
    """A body as it comes in, hashed on the way."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def digest(self) -> str:
        """Of all that came."""
        return self._hash.hexdigest()

    async def read(self) -> bytes:
        """The next piece; empty at the end."""
        async for chunk in self._stream:
            if chunk:
                self._hash.update(chunk)
                return chunk
        return b""


def _put_in(submission: Submission, *, exactly: bool) -> Entry:
    with closing(submission):
        return submission.put_in(exactly=exactly)


async def _same(hashed: _Hashed, used: idempotency.Use, directory: str) -> Submitted:
    """The same key again: the same answer for the same mail, 422 for another."""
    size = 0
    while chunk := await hashed.read():
        size += len(chunk)
    _check_body(used, hashed.digest())
    return Submitted(used.message_id, directory, size, replayed=True)


def _check_body(used: idempotency.Use | None, digest: str) -> None:
    if used is not None and digest != used.body_hash:
        raise _reused("came with another mail in the last 24 hours")


def _reused(detail: str) -> InvalidSettings:
    return InvalidSettings([FieldError("header/Idempotency-Key", "reused", detail)])


def _name_of(message_id: str) -> str:
    return shown(parse_message_id(message_id).name)


def _left(known: history.Life | None, *, configured: bool) -> State | Literal["sent", "failed", "deleted"]:
    """How it left. A file that is neither there nor settled was taken away by somebody else; without its directory's
    settings nobody can look.
    """
    if known is None or known.status is Status.SENT:
        return "sent"
    if known.status is Status.FAILED:
        return "failed" if configured else State.BADMAIL
    if known.status is Status.DELETED or configured:
        return "deleted"
    return State.DEFERRED


def _recipients(known: history.Life | None) -> tuple[RecipientView, ...]:
    if known is None:
        return ()
    return tuple(
        RecipientView(r.recipient, _status(r.status.value), r.account, r.code, r.enhanced_code, r.text, r.at)
        for r in known.recipients
        if r.recipient
    )


def _status(word: str) -> Outcome | Literal["deleted"]:
    return "deleted" if word == "deleted" else Outcome(word)


def _attempts(known: history.Life | None) -> tuple[AttemptView, ...]:
    if known is None:
        return ()
    return tuple(
        AttemptView(
            number=a.number,
            account=a.account,
            server=a.server,
            tls=a.tls,
            started_at=a.started_at,
            ended_at=a.ended_at,
            phase=Phase(a.phase),
            outcome=Outcome(a.outcome),
            code=a.code,
            enhanced_code=a.enhanced_code,
            text=a.text,
            recipients=tuple(a.recipients),
            possible_duplicate=a.possible_duplicate,
        )
        for a in known.attempts
    )
