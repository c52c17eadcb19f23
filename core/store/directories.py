"""Pickup directories and their settings. Values in, values out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, select

from core.domain.account import Directory, DotStuffing, MessageFormat, OnUnknown, Strategy
from core.errors import AlreadyExists, FieldError, InvalidSettings, NotFound
from core.store.accounts import check_version
from core.store.epoch import from_database, to_database
from core.store.pauses import Pause, of_row
from core.store.tables import AccountRow, DirectoryAccountRow, DirectoryRow

_PLAIN = (
    "path",
    "enabled",
    "interval_seconds",
    "schedule",
    "schedule_timezone",
    "watch",
    "quiet_seconds",
    "retry_initial_seconds",
    "retry_max_seconds",
    "expire_after_seconds",
    "unknown_max",
    "max_message_bytes",
    "max_recipients",
    "oldest_alert_seconds",
)


@dataclass(frozen=True, slots=True)
class DirectoryRecord:
    """A directory as it is stored. Times in seconds since the epoch."""

    directory: Directory
    version: int  # for ETag; changes with the settings
    created_at: float
    updated_at: float
    pause: Pause | None  # over or not: ask in_force


def load(session: Session) -> list[DirectoryRecord]:
    """All of them, by name."""
    accounts: dict[str, list[str]] = {}
    links = select(DirectoryAccountRow).order_by(col(DirectoryAccountRow.directory), col(DirectoryAccountRow.position))
    for link in session.exec(links):
        accounts.setdefault(link.directory, []).append(link.account)
    rows = session.exec(select(DirectoryRow).order_by(DirectoryRow.name))
    return [_record(row, tuple(accounts.get(row.name, ()))) for row in rows]


def get(session: Session, name: str) -> DirectoryRecord:
    """Raises NotFound."""
    return _record(_row(session, name), _accounts(session, name))


def create(session: Session, directory: Directory, *, now: float) -> DirectoryRecord:
    """Raises AlreadyExists for the name or path, InvalidSettings for an unknown account or a nested path."""
    if session.get(DirectoryRow, directory.name) is not None:
        raise AlreadyExists(f"there is a directory {directory.name!r} already")
    _check(session, directory)
    at = to_database(now)
    row = DirectoryRow(name=directory.name, **_settings(directory), version=at, created_at=at, updated_at=at)
    session.add(row)
    session.flush()
    _link(session, directory)
    return _record(row, directory.accounts)


def change(
    session: Session, directory: Directory, *, now: float, if_match: Collection[str] | None = None
) -> DirectoryRecord:
    """Replace the settings; without a difference nothing changes, the version neither.

    Raises NotFound, PreconditionFailed, and what `create` raises.
    """
    row = _row(session, directory.name)
    check_version(row.version, if_match)
    settings = _settings(directory)
    linked = _accounts(session, directory.name) != directory.accounts
    if linked or any(getattr(row, key) != value for key, value in settings.items()):
        if row.path != directory.path and _nested(row.path, directory.path):  # which is at work there still
            raise InvalidSettings(
                [FieldError("/path", "overlapping", f"lies above or below {row.path!r}, where the directory is now")],
                remedy="take a path beside it",
            )
        _check(session, directory)
        for key, value in settings.items():
            setattr(row, key, value)
        row.version += 1
        row.updated_at = to_database(now)
        session.add(row)
        session.flush()
        if linked:
            _link(session, directory)
    return _record(row, directory.accounts)


def delete(session: Session, name: str, *, if_match: Collection[str] | None = None) -> None:
    """The settings only, never a file. Raises NotFound, PreconditionFailed."""
    row = _row(session, name)
    check_version(row.version, if_match)
    session.delete(row)
    session.flush()


def _nested(path: str, other: str) -> bool:
    """Whether one is at, above or below the other."""
    slashed, other_slashed = path.rstrip("/") + "/", other.rstrip("/") + "/"
    return slashed.startswith(other_slashed) or other_slashed.startswith(slashed)


def overlapping(session: Session, path: str, *, besides: str | None = None) -> list[tuple[str, str]]:
    """Name and path of the directories that are at, above or below this (resolved) path."""
    rows = session.exec(select(DirectoryRow.name, DirectoryRow.path))
    return sorted((name, other) for name, other in rows if name != besides and _nested(path, other))


def _check(session: Session, directory: Directory) -> None:
    for name, path in overlapping(session, directory.path, besides=directory.name):
        if path.rstrip("/") == directory.path.rstrip("/"):
            raise AlreadyExists(f"directory {name!r} has the path {path!r} already")
        raise InvalidSettings(
            [FieldError("/path", "overlapping", f"lies above or below {path!r} of directory {name!r}")],
            remedy="take a path of its own",
        )
    wrong = [
        FieldError(f"/accounts/{position}", "unknown_account", f"there is no account {account!r}")
        for position, account in enumerate(directory.accounts)
        if session.get(AccountRow, account) is None
    ]
    if wrong:
        raise InvalidSettings(wrong, remedy="create the account first")


def _row(session: Session, name: str) -> DirectoryRow:
    row = session.get(DirectoryRow, name)
    if row is None:
        raise NotFound("directory", name)
    return row


def _accounts(session: Session, name: str) -> tuple[str, ...]:
    query = (
        select(DirectoryAccountRow.account)
        .where(col(DirectoryAccountRow.directory) == name)
        .order_by(col(DirectoryAccountRow.position))
    )
    return tuple(session.exec(query))


def _link(session: Session, directory: Directory) -> None:
    for link in session.exec(select(DirectoryAccountRow).where(col(DirectoryAccountRow.directory) == directory.name)):
        session.delete(link)
    session.flush()
    session.expunge_all()  # the deleted links, so that new ones of the same keys may come
    for position, account in enumerate(directory.accounts):
        session.add(DirectoryAccountRow(directory=directory.name, position=position, account=account))
    session.flush()


def _settings(directory: Directory) -> dict[str, Any]:
    return {key: getattr(directory, key) for key in _PLAIN} | {
        "patterns": list(directory.patterns),
        "strategy": directory.strategy.value,
        "weights": list(directory.weights),
        "format": directory.format.value,
        "dot_stuffing": directory.dot_stuffing.value,
        "on_unknown": directory.on_unknown.value,
    }


def _record(row: DirectoryRow, accounts: tuple[str, ...]) -> DirectoryRecord:
    directory = Directory(
        name=row.name,
        accounts=accounts,
        patterns=tuple(row.patterns),
        strategy=Strategy(row.strategy),
        weights=tuple(row.weights),
        format=MessageFormat(row.format),
        dot_stuffing=DotStuffing(row.dot_stuffing),
        on_unknown=OnUnknown(row.on_unknown),
        **{key: getattr(row, key) for key in _PLAIN},
    )
    return DirectoryRecord(
        directory, row.version, from_database(row.created_at), from_database(row.updated_at), of_row(row)
    )
