"""Directories as settings: the rules of a save (spool.md "Permissions", promises.md "Security").

A path is resolved before it is judged and saved so. A new path (or format) is tried: what can't be created, renamed or
unlinked there is refused. Other changes don't look at the path, so that a directory whose disk is gone can still be
disabled.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlmodel import Session

from core.domain.account import Directory
from core.domain.clock import Clock
from core.errors import AlreadyExists, FieldError, InvalidSettings, NotFound, PreconditionFailed
from core.runtime.audit import Audit, difference
from core.runtime.directory_rules import path_rules, remedy_of, rules
from core.runtime.facade import Checks, Pauses, Saved
from core.runtime.paging import page_of
from core.runtime.saving import TRIES, there_already, too_busy, with_defaults
from core.runtime.views import Actor, CheckView, DirectoryView, Page
from core.settings import Settings
from core.store import directories
from core.store.accounts import check_version
from core.store.directories import DirectoryRecord
from core.store.store import Store

DEFAULT_INTERVAL_SECONDS = 60


class Directories:
    """Over the store. `apply` is told the name after each change; `checks` try what a directory allows."""

    def __init__(
        self,
        store: Store,
        audit: Audit,
        *,
        clock: Clock,
        settings: Settings,
        pauses: Pauses,
        checks: Checks,
        apply: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock
        self._settings = settings
        self._pauses = pauses
        self._checks = checks
        self._apply = apply

    # --- reading -----------------------------------------------------------------------------------------------------

    async def list(self, limit: int, cursor: str | None) -> Page[DirectoryView]:
        """By name."""
        records = await self._store.read(directories.load)
        page = page_of(records, lambda record: record.directory.name, limit, cursor)
        return Page(tuple(map(self._view, page.items)), page.next)

    async def get(self, name: str) -> DirectoryView:
        """Raises NotFound."""
        return self._view(await self._store.read(lambda session: directories.get(session, name)))

    def _view(self, record: DirectoryRecord) -> DirectoryView:
        try:
            pause = self._pauses.directory(record.directory.name)
        except NotFound:  # saved, not applied yet
            pause = None
        return DirectoryView(record.directory, str(record.version), record.created_at, record.updated_at, pause)

    # --- saving ------------------------------------------------------------------------------------------------------

    async def create(self, directory: Directory, actor: Actor) -> Saved[DirectoryView]:
        """Raises AlreadyExists, InvalidSettings."""
        if await self._find(directory.name) is not None:
            raise AlreadyExists(f"there is a directory {directory.name!r} already", remedy="PUT replaces it")
        return await self._create(directory, actor)

    async def replace(
        self, directory: Directory, actor: Actor, *, if_match: Sequence[str] | None = None, if_absent: bool = False
    ) -> Saved[DirectoryView]:
        """Create or replace; `if_absent`: only create.

        Raises AlreadyExists (the path), PreconditionFailed, InvalidSettings.
        """
        for _ in range(TRIES):
            record = await self._find(directory.name)
            if record is not None:
                if if_absent:
                    raise there_already("directory", directory.name)
                saved = await self._change(record, lambda _record: directory, actor, if_match)
                if saved is not None:
                    return saved
            elif if_match is not None:
                raise PreconditionFailed(f"there is no directory {directory.name!r}")
            else:
                try:
                    return await self._create(directory, actor)
                except AlreadyExists:  # by somebody else just now, or the path is another's
                    if await self._find(directory.name) is None:
                        raise
        raise too_busy()

    async def change(
        self, name: str, changes: Mapping[str, Any], actor: Actor, *, if_match: Sequence[str] | None = None
    ) -> Saved[DirectoryView]:
        """Merge patch: None is the default. Raises NotFound, and what `replace` raises."""
        settings = with_defaults(Directory, changes)
        if settings.get("schedule") is not None and changes.get("interval_seconds") is None:
            settings["interval_seconds"] = None  # a schedule takes the place of the interval,
        elif changes.get("interval_seconds") is not None and "schedule" not in changes:
            settings["schedule"] = None  # and the other way round

        def build(record: DirectoryRecord) -> Directory:
            changed = replace(record.directory, **settings)
            if changed.schedule is None and changed.interval_seconds is None:
                return replace(changed, interval_seconds=DEFAULT_INTERVAL_SECONDS)
            return changed

        for _ in range(TRIES):
            record = await self._find(name)
            if record is None:
                raise NotFound("directory", name)
            saved = await self._change(record, build, actor, if_match)
            if saved is not None:
                return saved
        raise too_busy()

    async def delete(self, name: str, actor: Actor, *, if_match: Sequence[str] | None = None) -> None:
        """The settings, never a file. Raises NotFound, PreconditionFailed."""

        def write(session: Session) -> None:
            record = directories.get(session, name)
            directories.delete(session, name, if_match=if_match)
            self._audit.within(session, actor, "directory.delete", name, difference(_shown(record.directory), {}))

        await self._store.write(write)
        await self._apply(name)

    async def _find(self, name: str) -> DirectoryRecord | None:
        def read(session: Session) -> DirectoryRecord | None:
            try:
                return directories.get(session, name)
            except NotFound:
                return None

        return await self._store.read(read)

    async def _create(self, directory: Directory, actor: Actor) -> Saved[DirectoryView]:
        directory = await self._examine(directory, None)
        found = await self._tried(directory)

        def write(session: Session) -> DirectoryRecord:
            record = directories.create(session, directory, now=self._clock.now())
            changes = difference({}, _shown(directory))
            self._audit.within(session, actor, "directory.create", directory.name, changes)
            return record

        record = await self._store.write(write)
        await self._apply(directory.name)
        return Saved(self._view(record), created=True, check=found)

    async def _change(
        self,
        before: DirectoryRecord,
        build: Callable[[DirectoryRecord], Directory],
        actor: Actor,
        if_match: Sequence[str] | None,
    ) -> Saved[DirectoryView] | None:
        """None: somebody saved in between."""
        check_version(before.version, if_match)
        directory = await self._examine(build(before), before.directory)
        moved = (directory.path, directory.format) != (before.directory.path, before.directory.format)
        found = await self._tried(directory) if moved else None

        def write(session: Session) -> DirectoryRecord | None:
            if directories.get(session, directory.name).version != before.version:
                return None
            record = directories.change(session, directory, now=self._clock.now())
            if record.version != before.version:
                changes = difference(_shown(before.directory), _shown(record.directory))
                self._audit.within(session, actor, "directory.update", directory.name, changes)
            return record

        record = await self._store.write(write)
        if record is None:
            return None
        if record.version != before.version:
            await self._apply(directory.name)
        return Saved(self._view(record), check=found)

    async def _examine(self, directory: Directory, before: Directory | None) -> Directory:
        """The directory with its path resolved. Raises InvalidSettings with all that is wrong."""
        errors = rules(directory, self._clock.now())
        resolved = await asyncio.to_thread(os.path.realpath, directory.path)
        if before is None or resolved != before.path:
            errors = [*await asyncio.to_thread(path_rules, resolved, self._settings), *errors]
        if errors:
            raise InvalidSettings(errors, remedy=remedy_of(errors))
        return replace(directory, path=resolved)

    async def _tried(self, directory: Directory) -> CheckView:
        found = await self._checks.directory(directory)
        wrong = [
            FieldError("/path", step.step, f"{step.step}: {step.cause or step.detail}. {step.remedy}".strip())
            for step in found.steps
            if step.required and not step.ok
        ]
        if wrong:
            raise InvalidSettings(wrong, remedy="POST /directories/{name}/check tries it again")
        return found


def _shown(directory: Directory) -> dict[str, Any]:
    """For the audit."""
    settings = asdict(directory)
    del settings["name"]
    return settings
