"""Standing still on purpose, and going on: the acts of operators, written into the audit."""

from __future__ import annotations

from core.domain.circuit import Pause
from core.runtime.audit import Audit
from core.runtime.inlets import Inlets
from core.runtime.outlets import Outlets
from core.runtime.views import Actor, PauseView


class Pauses:
    """Accounts, directories, the whole relay. All idempotent and durable."""

    def __init__(self, outlets: Outlets, inlets: Inlets, audit: Audit) -> None:
        self._outlets = outlets
        self._inlets = inlets
        self._audit = audit

    def account(self, name: str) -> PauseView | None:
        return view_of(self._outlets.pause_of(name))

    def directory(self, name: str) -> PauseView | None:
        return view_of(self._inlets.directory_pause(name))

    def relay(self) -> PauseView | None:
        return view_of(self._inlets.relay_pause)

    async def pause_account(self, name: str, reason: str, until: float | None, actor: Actor) -> PauseView:
        pause = self._outlets.pause(name, reason, until)
        await self._audit.record(actor, "account.pause", name, {"reason": reason, "until": until})
        return _known(pause)

    async def resume_account(self, name: str, actor: Actor) -> None:
        self._outlets.resume(name)
        await self._audit.record(actor, "account.resume", name)

    async def pause_directory(self, name: str, reason: str, until: float | None, actor: Actor) -> PauseView:
        pause = self._inlets.pause(name, reason, until)
        await self._audit.record(actor, "directory.pause", name, {"reason": reason, "until": until})
        return _known(pause)

    async def resume_directory(self, name: str, actor: Actor) -> None:
        self._inlets.get(name)
        self._inlets.resume(name)
        await self._audit.record(actor, "directory.resume", name)

    async def pause_relay(self, reason: str, until: float | None, actor: Actor) -> PauseView:
        pause = self._inlets.pause(None, reason, until)
        await self._audit.record(actor, "relay.pause", "", {"reason": reason, "until": until})
        return _known(pause)

    async def resume_relay(self, actor: Actor) -> None:
        self._inlets.resume(None)
        await self._audit.record(actor, "relay.resume", "")


def view_of(pause: Pause | None) -> PauseView | None:
    """As people are shown it."""
    return None if pause is None else _known(pause)


def _known(pause: Pause) -> PauseView:
    return PauseView(pause.by.value, pause.code, pause.reason, pause.since, pause.until, pause.remedy)
