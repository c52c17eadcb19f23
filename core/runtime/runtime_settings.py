"""Settings of the service: what can be changed while it runs, and, to look at, what only the start can set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlmodel import Session

from core.runtime.audit import Audit, difference
from core.runtime.views import Actor, RuntimeSettingsView
from core.settings import Settings
from core.store import settings as rows
from core.store.accounts import check_version
from core.store.store import Store

VERSION_KEY = "store.settings_version"


class RuntimeSettings:
    """Over the store."""

    def __init__(self, store: Store, audit: Audit, settings: Settings) -> None:
        self._store = store
        self._audit = audit
        self._settings = settings

    async def get(self) -> RuntimeSettingsView:
        """As they are now."""
        return await self._store.read(self._view)

    async def update(
        self, changes: dict[str, Any], actor: Actor, *, if_match: Sequence[str] | None = None
    ) -> RuntimeSettingsView:
        """Change what is named; None puts the default back. Without a difference nothing happens.

        Raises PreconditionFailed.
        """

        def write(session: Session) -> RuntimeSettingsView:
            check_version(rows.get(session, VERSION_KEY) or 1, if_match)
            before = rows.load(session)
            wanted = {k: rows.DEFAULTS[k] if v is None else v for k, v in changes.items()}
            after = rows.change(session, wanted)
            if before != after:
                rows.put(session, VERSION_KEY, (rows.get(session, VERSION_KEY) or 1) + 1)
                self._audit.within(session, actor, "settings.change", "settings", difference(before, after))
            return self._view(session)

        return await self._store.write(write)

    def _view(self, session: Session) -> RuntimeSettingsView:
        present = rows.load(session)
        return RuntimeSettingsView(
            history_days=present["history_days"],
            version=str(rows.get(session, VERSION_KEY) or 1),
            read_only={name: _shown(getattr(self._settings, name)) for name in type(self._settings).model_fields},
        )


def _shown(value: object) -> object:
    """As it would be written in the TOML file; secrets only as set or not."""
    if isinstance(value, SecretStr):
        return "(set)"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_shown(item) for item in value]
    return value
