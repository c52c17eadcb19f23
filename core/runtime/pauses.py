"""Standing still on purpose, and going on: the acts of operators, written down with their audit before they hold."""

from __future__ import annotations

from collections.abc import Callable

from sqlmodel import Session

from core.domain.circuit import Pause, PausedBy, operators_pause
from core.domain.clock import Clock
from core.runtime.audit import Audit
from core.runtime.inlets import Inlets
from core.runtime.outlets import Outlets
from core.runtime.pause_records import PauseRecords
from core.runtime.views import Actor, PauseView
from core.store import pauses
from core.store.pauses import PauseOf


class Pauses:
    """Accounts, directories, the whole relay. All idempotent and durable."""

    def __init__(self, outlets: Outlets, inlets: Inlets, audit: Audit, records: PauseRecords, *, clock: Clock) -> None:
        self._outlets = outlets
        self._inlets = inlets
        self._audit = audit
        self._records = records
        self._clock = clock

    def account(self, name: str) -> PauseView | None:
        return view_of(self._outlets.pause_of(name))

    def directory(self, name: str) -> PauseView | None:
        return view_of(self._inlets.directory_pause(name))

    def relay(self) -> PauseView | None:
        return view_of(self._inlets.relay_pause)

    async def pause_account(self, name: str, reason: str, until: float | None, actor: Actor) -> PauseView:
        self._outlets.account(name)
        return await self._pause(
            PauseOf.ACCOUNT, name, reason, until, actor, lambda pause: self._outlets.pause(name, pause)
        )

    async def resume_account(self, name: str, actor: Actor) -> None:
        self._outlets.account(name)
        await self._resume(PauseOf.ACCOUNT, name, actor, lambda: self._outlets.resume(name))

    async def pause_directory(self, name: str, reason: str, until: float | None, actor: Actor) -> PauseView:
        self._inlets.get(name)
        return await self._pause(
            PauseOf.DIRECTORY, name, reason, until, actor, lambda pause: self._inlets.pause(name, pause)
        )

    async def resume_directory(self, name: str, actor: Actor) -> None:
        self._inlets.get(name)
        await self._resume(PauseOf.DIRECTORY, name, actor, lambda: self._inlets.resume(name))

    async def pause_relay(self, reason: str, until: float | None, actor: Actor) -> PauseView:
        return await self._pause(PauseOf.RELAY, "", reason, until, actor, lambda pause: self._inlets.pause(None, pause))

    async def resume_relay(self, actor: Actor) -> None:
        await self._resume(PauseOf.RELAY, "", actor, lambda: self._inlets.resume(None))

    async def _pause(
        self,
        place: PauseOf,
        name: str,
        reason: str,
        until: float | None,
        actor: Actor,
        hold: Callable[[Pause], None],
    ) -> PauseView:
        wanted = operators_pause(reason, since=self._clock.now(), until=until)

        def write(session: Session) -> Pause:
            self._audit.within(session, actor, f"{place.value}.pause", name, {"reason": reason, "until": until})
            return pauses.pause(session, place, name, wanted)

        return _known(await self._records.first(place, name, write, hold))

    async def _resume(self, place: PauseOf, name: str, actor: Actor, lift: Callable[[], None]) -> None:
        def write(session: Session) -> None:
            self._audit.within(session, actor, f"{place.value}.resume", name)
            pauses.resume(session, place, name, by=PausedBy.OPERATOR, now=self._clock.now())

        await self._records.first(place, name, write, lambda _: lift())


def view_of(pause: Pause | None) -> PauseView | None:
    """As people are shown it."""
    return None if pause is None else _known(pause)


def _known(pause: Pause) -> PauseView:
    return PauseView(pause.by.value, pause.code, pause.reason, pause.since, pause.until, pause.remedy)
