"""Why mail waits, counted: one row a reason, most messages first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from core.domain.message import State
from core.domain.outcome import Blame
from core.domain.routing import Refusal
from core.errors import DirectoryUnavailable
from core.runtime.inlets import Inlet
from core.runtime.queue import WAITS, Block, Queue
from core.runtime.views import ReasonRow, WaitingFor
from core.spool.directory import Entry

_DEFERRED = "Nothing to do: it is tried again when due; a retry makes it due now."
_HELD = "Look at the provider whether it was delivered, then release or delete it."
_Key = tuple[str | None, int | None, str | None, str]  # account, code, enhanced code, text


@dataclass(slots=True)
class _Reason:
    messages: int = 0
    oldest: float | None = None
    remedy: str = ""
    blame: Blame | None = None


@dataclass(frozen=True, slots=True)
class Reasons:
    """See the module's text."""

    queue: Queue

    async def list(self) -> Sequence[ReasonRow]:
        """Why mail waits, most first."""
        found: dict[_Key, _Reason] = {}
        for inlet in self.queue.inlets:
            await asyncio.to_thread(self._reasons_of, inlet, found, self.queue.block(inlet))
        now = self.queue.clock.now()
        rows = [
            ReasonRow(
                reason.blame,
                account,
                code,
                enhanced,
                text,
                reason.messages,
                None if reason.oldest is None else max(now - reason.oldest, 0.0),
                reason.remedy,
            )
            for (account, code, enhanced, text), reason in found.items()
        ]
        return sorted(rows, key=lambda row: (-row.messages, row.text))

    def _reasons_of(self, inlet: Inlet, found: dict[_Key, _Reason], block: Block) -> None:
        try:
            inlet.spool.open()
            entries = inlet.spool.entries(WAITS | {State.HELD})
            for entry in entries:
                key, blame, remedy = self._reason(inlet, entry, *self.queue.own_block(inlet, entry, block))
                if key is None:
                    continue
                reason = found.setdefault(key, _Reason(blame=blame, remedy=remedy))
                reason.messages += 1
                reason.oldest = entry.mtime if reason.oldest is None else min(reason.oldest, entry.mtime)
        except DirectoryUnavailable:
            return  # an alert names it

    def _reason(
        self, inlet: Inlet, entry: Entry, block: Refusal | None, waiting_for: WaitingFor | None
    ) -> tuple[_Key | None, Blame | None, str]:
        was = entry.sidecar
        problem = inlet.cycle.problems.get(entry.identity.name)
        if problem is not None:
            return (None, None, None, f"{problem.error.code}: {problem.error.detail}"), None, problem.error.remedy
        if entry.state in WAITS and waiting_for is WaitingFor.DIRECTORY_PAUSED:
            told = self.queue.told(inlet, block, waiting_for)
            return (None, None, None, told.text), None, told.remedy
        if entry.state in WAITS and block is not None:
            told = self.queue.told(inlet, block, waiting_for)
            return (block.account or None, None, None, told.text), Blame.ACCOUNT, told.remedy
        if was is None:
            return None, None, ""
        blame = Blame(was.blame) if was.blame else None
        remedy = _HELD if entry.state is State.HELD else _DEFERRED
        return (was.account, was.code, was.enhanced_code, was.text or was.reason), blame, remedy
