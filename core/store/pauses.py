"""Pauses of accounts, directories and the whole relay: kept across restarts.

An operator's pause is lifted by an operator or by its `until`; the service's by anybody. So the service's never
replaces an operator's that is in force. Nothing here changes the `version` of what is paused: a pause is an act, not a
setting.
"""

from __future__ import annotations

from enum import StrEnum

from sqlmodel import Session

from core.domain.circuit import Pause as Pause
from core.domain.circuit import PausedBy as PausedBy
from core.errors import NotFound
from core.store.epoch import from_database, optional_from_database, optional_to_database, to_database
from core.store.tables import AccountRow, DirectoryRow, PausedRow, RelayRow


class PauseOf(StrEnum):
    """What can be paused."""

    ACCOUNT = "account"
    DIRECTORY = "directory"
    RELAY = "relay"  # its name is ""


def get(session: Session, place: PauseOf, name: str = "") -> Pause | None:
    """The pause as it was set, over or not. Raises NotFound."""
    return of_row(_row(session, place, name))


def pause(session: Session, place: PauseOf, name: str, wanted: Pause) -> Pause:
    """Pause it; what is in force afterwards (an operator's pause stays where the service's is wanted).

    An operator's pause again keeps its `since`. Raises NotFound.
    """
    row = _row(session, place, name)
    now = wanted.since
    present = of_row(row)
    since = wanted.since
    if present is not None and present.in_force(now):
        if present.by is PausedBy.OPERATOR and wanted.by is PausedBy.SERVICE:
            return present
        if present.by is wanted.by and present.code == wanted.code:
            since = present.since
    row.pause_by = wanted.by.value
    row.pause_code = wanted.code
    row.pause_reason = wanted.reason
    row.pause_since = to_database(since)
    row.pause_until = optional_to_database(wanted.until)
    row.pause_remedy = wanted.remedy
    row.pause_trials = wanted.trials
    session.add(row)
    session.flush()
    return of_row(row) or wanted


def resume(session: Session, place: PauseOf, name: str, *, by: PausedBy, now: float) -> Pause | None:
    """Lift the pause; what stays in force: an operator's, where the service asks. Raises NotFound."""
    row = _row(session, place, name)
    present = of_row(row)
    if present is None:
        return None
    if present.by is PausedBy.OPERATOR and by is PausedBy.SERVICE and present.in_force(now):
        return present
    clear(row)
    session.add(row)
    session.flush()
    return None


def clear(row: PausedRow) -> None:
    """Take the pause off a row."""
    row.pause_by = row.pause_code = row.pause_reason = row.pause_remedy = None
    row.pause_since = row.pause_until = None
    row.pause_trials = 0


def of_row(row: PausedRow) -> Pause | None:
    """The pause that a row tells of."""
    if row.pause_by is None:
        return None
    return Pause(
        PausedBy(row.pause_by),
        row.pause_code or "",
        row.pause_reason or "",
        from_database(row.pause_since or 0),
        optional_from_database(row.pause_until),
        row.pause_remedy or "",
        row.pause_trials,
    )


def _row(session: Session, place: PauseOf, name: str) -> PausedRow:
    row: PausedRow | None
    if place is PauseOf.RELAY:
        row = session.get(RelayRow, 1) or RelayRow(id=1)
    elif place is PauseOf.ACCOUNT:
        row = session.get(AccountRow, name)
    else:
        row = session.get(DirectoryRow, name)
    if row is None:
        raise NotFound(place.value, name)
    return row
