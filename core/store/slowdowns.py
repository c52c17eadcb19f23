"""What accounts' servers asked them to slow down to: kept across restarts, beside the account's settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlmodel import Session

from core.store.tables import AccountRow


@dataclass(frozen=True, slots=True)
class Slowed:
    """See core/domain/limits.py, Slowdown and FewerConnections. Times in seconds since the epoch; None: none."""

    rate: float | None = None  # messages a second, at `rate_since`
    rate_since: float | None = None
    top: float | None = None
    connections: int | None = None  # at most, at `connections_since`
    connections_since: float | None = None


def put(session: Session, account: str, slowed: Slowed | None) -> None:
    """None: it is slowed down no more. An account that is gone is no matter."""
    row = session.get(AccountRow, account)
    if row is not None:
        row.slowed = None if slowed is None else asdict(slowed)
        session.add(row)
        session.flush()


def of_stored(stored: dict[str, Any] | None) -> Slowed | None:
    """As the column has it."""
    return None if stored is None else Slowed(**stored)
