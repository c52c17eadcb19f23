"""Settings of the service: what can be changed while it runs, and, to look at, what only the start can set."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlmodel import Session

from core.domain.account import SenderRoute
from core.errors import InvalidSettings
from core.runtime.audit import Audit, difference
from core.runtime.sender_rules import sender_route_rules
from core.runtime.views import Actor, RuntimeSettingsView
from core.settings import Settings
from core.store import accounts, sender_routes
from core.store import settings as rows
from core.store.store import Store

VERSION_KEY = "store.settings_version"


class RuntimeSettings:
    """Over the store. `apply` is told of each change."""

    def __init__(self, store: Store, audit: Audit, settings: Settings, apply: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._apply = apply
        self._audit = audit
        self._settings = settings

    async def get(self) -> RuntimeSettingsView:
        """As they are now."""
        return await self._store.read(self._view)

    async def update(
        self, changes: dict[str, Any], actor: Actor, *, if_match: Sequence[str] | None = None
    ) -> RuntimeSettingsView:
        """Change what is named; None puts the default back. Without a difference nothing happens.

        Raises PreconditionFailed, InvalidSettings.
        """
        changed = False

        def write(session: Session) -> RuntimeSettingsView:
            nonlocal changed
            accounts.check_version(rows.get(session, VERSION_KEY) or 1, if_match)
            before = rows.load(session)
            wanted = {k: rows.DEFAULTS[k] if v is None else v for k, v in changes.items()}
            if wanted.get(sender_routes.KEY, before[sender_routes.KEY]) != before[sender_routes.KEY]:
                _check_routes(session, sender_routes.of_stored(wanted[sender_routes.KEY]))
            after = rows.change(session, wanted)
            changed = before != after
            if changed:
                rows.put(session, VERSION_KEY, (rows.get(session, VERSION_KEY) or 1) + 1)
                self._audit.within(session, actor, "settings.change", "settings", difference(before, after))
            return self._view(session)

        view = await self._store.write(write)
        if changed:
            await self._apply()
        return view

    def _view(self, session: Session) -> RuntimeSettingsView:
        present = rows.load(session)
        return RuntimeSettingsView(
            history_days=present["history_days"],
            version=str(rows.get(session, VERSION_KEY) or 1),
            sender_routes=sender_routes.of_stored(present[sender_routes.KEY]),
            read_only={name: _shown(getattr(self._settings, name)) for name in type(self._settings).model_fields},
        )


def _check_routes(session: Session, routes: Sequence[SenderRoute]) -> None:
    unknown = sender_routes.unknown_accounts(session, routes)
    errors = sender_route_rules(routes, unknown, accounts.senders(session))
    if errors:
        remedy = "GET /accounts lists accounts and their senders; a sender is an address or an @domain"
        raise InvalidSettings(errors, remedy=remedy)


def _shown(value: object) -> object:
    """As it would be written in the TOML file; secrets only as set or not."""
    if isinstance(value, SecretStr):
        return "(set)"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_shown(item) for item in value]
    return value
