"""Settings that can be changed while the relay runs, and facts that the store keeps for itself (keys with `store.`)."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, select

from core.store.tables import SettingRow

DEFAULTS: dict[str, Any] = {
    "history_days": 90,  # what is older is deleted; 0 keeps nothing that is done, None keeps all
    "sender_routes": [],  # core.domain.account.SenderRoute, as objects (sender_routes.py)
}
_OWN = "store."


def load(session: Session) -> dict[str, Any]:
    """All settings, defaults included; not the store's own facts."""
    rows = session.exec(select(SettingRow))
    return DEFAULTS | {row.key: row.value for row in rows if not row.key.startswith(_OWN)}


def change(session: Session, changes: dict[str, Any]) -> dict[str, Any]:
    """Set these; a key without a default is the caller's to refuse. All settings afterwards."""
    for key, value in changes.items():
        put(session, key, value)
    return load(session)


def put(session: Session, key: str, value: Any) -> None:
    """Set one, of the store's own too. The value must be JSON."""
    row = session.get(SettingRow, key)
    if row is None:
        row = SettingRow(key=key)
    row.value = value
    session.add(row)
    session.flush()


def get(session: Session, key: str) -> Any:
    """One, of the store's own too; its default where it was never set."""
    row = session.get(SettingRow, key)
    return DEFAULTS.get(key) if row is None else row.value
