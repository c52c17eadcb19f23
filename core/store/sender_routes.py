"""The sender routes of all directories: one of the settings that can be changed while the relay runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlmodel import Session

from core.domain.account import SenderRoute
from core.store import settings
from core.store.tables import AccountRow

KEY = "sender_routes"


def load(session: Session) -> tuple[SenderRoute, ...]:
    """In their order."""
    return of_stored(settings.get(session, KEY))


def of_stored(rows: Iterable[dict[str, Any]]) -> tuple[SenderRoute, ...]:
    """Of the setting's JSON."""
    return tuple(SenderRoute(tuple(row["senders"]), tuple(row["accounts"])) for row in rows)


def using(session: Session, account: str) -> list[str]:
    """`sender_routes/N` of each route that sends through the account."""
    return [f"{KEY}/{position}" for position, route in enumerate(load(session)) if account in route.accounts]


def unknown_accounts(session: Session, routes: Iterable[SenderRoute]) -> set[str]:
    """Those that the routes name and nobody saved."""
    named = {name for route in routes for name in route.accounts}
    return {name for name in named if session.get(AccountRow, name) is None}
