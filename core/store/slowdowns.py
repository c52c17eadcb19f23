"""What accounts' servers asked them to slow down to: kept across restarts, beside the account's settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sqlmodel import Session, col, select

from core.domain.limits import FewerConnections, Slowdown
from core.store.tables import AccountRow


@dataclass(frozen=True, slots=True)
class Slowed:
    """With times in seconds since the epoch; None: not in that way."""

    rate: Slowdown | None = None
    connections: FewerConnections | None = None


def put(session: Session, account: str, slowed: Slowed | None) -> None:
    """None: it is slowed down no more. An account that is gone is no matter."""
    row = session.get(AccountRow, account)
    if row is not None:
        row.slowed = None if slowed is None else asdict(slowed)
        session.add(row)
        session.flush()


def of_accounts(session: Session, names: Iterable[str]) -> dict[str, Slowed]:
    """Those of the accounts that are slowed down, over or not."""
    rows = session.exec(select(AccountRow).where(col(AccountRow.name).in_(names)))
    found = ((row.name, of_stored(row.slowed)) for row in rows)
    return {name: slowed for name, slowed in found if slowed is not None}


def of_stored(stored: dict[str, Any] | None) -> Slowed | None:
    """As the column has it."""
    if stored is None:
        return None
    rate, connections = stored["rate"], stored["connections"]
    return Slowed(
        None if rate is None else Slowdown(**rate), None if connections is None else FewerConnections(**connections)
    )
