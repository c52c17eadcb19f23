"""Accounts and their settings. Values in, values out; passwords are sealed in the database (secrets.py)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

from sqlmodel import Session, col, select

from core.domain.account import Account, AuthMethod, FromPolicy, ReplyRule, Security
from core.domain.outcome import Blame
from core.domain.reply import Phase
from core.errors import AlreadyExists, InUse, NotFound, PreconditionFailed
from core.store.epoch import from_database, optional_from_database, to_database
from core.store.pauses import Pause, of_row
from core.store.secrets import Secrets, SecretUnreadable, purpose_of
from core.store.tables import AccountRow, DirectoryAccountRow

_PLAIN = (
    "host",
    "port",
    "username",
    "from_address",
    "max_connections",
    "messages_per_connection",
    "recipients_per_message",
    "connect_timeout_seconds",
    "idle_timeout_seconds",
    "helo_name",
    "tls_ca_file",
    "allow_plaintext_login",
    "enabled",
    "preset",
    "password_from",
    "messages_per_second",
    "messages_per_minute",
    "messages_per_hour",
    "messages_per_day",
    "recipients_per_day",
)


class Password(Enum):
    """What a change says of the password, where it doesn't give one."""

    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account as it is stored. Times in seconds since the epoch."""

    account: Account  # with its password, in the clear; None where `password_lost`
    version: int  # for ETag; changes with the settings
    created_at: float
    updated_at: float
    password_set: bool
    password_changed_at: float | None
    password_lost: bool  # there is one, but the encryption key doesn't open it: it must be set again
    pause: Pause | None  # over or not: ask in_force


def load(session: Session, secrets: Secrets) -> list[AccountRecord]:
    """All of them, by name."""
    return [_record(row, secrets) for row in session.exec(select(AccountRow).order_by(AccountRow.name))]


def get(session: Session, secrets: Secrets, name: str) -> AccountRecord:
    """Raises NotFound."""
    return _record(_row(session, name), secrets)


def create(session: Session, secrets: Secrets, account: Account, *, now: float) -> AccountRecord:
    """Raises AlreadyExists."""
    if session.get(AccountRow, account.name) is not None:
        raise AlreadyExists(f"there is an account {account.name!r} already")
    at = to_database(now)
    row = AccountRow(
        name=account.name,
        **_settings(account),
        password=_seal(secrets, account),
        password_changed_at=at if account.password is not None else None,
        version=at,
        created_at=at,
        updated_at=at,
    )
    session.add(row)
    session.flush()
    return _record(row, secrets)


def change(
    session: Session,
    secrets: Secrets,
    account: Account,
    *,
    now: float,
    password: str | Password | None = Password.KEEP,
    if_match: Collection[str] | None = None,
) -> AccountRecord:
    """Replace the settings. `account.password` is not looked at, `password` is; None removes it.

    Without a difference nothing changes, the version neither. Raises NotFound, PreconditionFailed.
    """
    row = _row(session, account.name)
    check_version(row.version, if_match)
    before = _record(row, secrets)
    settings = _settings(account)
    changed = any(getattr(row, key) != value for key, value in settings.items())
    if not isinstance(password, Password) and (before.password_lost or password != before.account.password):
        row.password = _seal(secrets, replace(account, password=password))
        row.password_changed_at = to_database(now) if password is not None else None
        changed = True
    if changed:
        for key, value in settings.items():
            setattr(row, key, value)
        row.version += 1
        row.updated_at = to_database(now)
        session.add(row)
        session.flush()
    return _record(row, secrets)


def delete(session: Session, name: str, *, if_match: Collection[str] | None = None) -> None:
    """Raises NotFound, PreconditionFailed, InUse with the directories that send through it."""
    row = _row(session, name)
    check_version(row.version, if_match)
    users = used_by(session, name)
    if users:
        raise InUse(
            f"account {name!r} is used by {len(users)} directories",
            used_by=users,
            remedy="take it out of their `accounts` first",
        )
    session.delete(row)
    session.flush()


def used_by(session: Session, name: str) -> list[str]:
    """Names of the directories that send through it."""
    query = select(DirectoryAccountRow.directory).where(col(DirectoryAccountRow.account) == name).distinct()
    return sorted(session.exec(query))


def check_version(present: int, if_match: Collection[str] | None) -> None:
    """`if_match`: versions (as text) of which one must be the present one, "*" for any; None: no matter.

    Raises PreconditionFailed.
    """
    if if_match is not None and "*" not in if_match and str(present) not in if_match:
        raise PreconditionFailed(
            f"it was changed meanwhile: the version is {present} now", remedy="get it again and repeat the change"
        )


def _row(session: Session, name: str) -> AccountRow:
    row = session.get(AccountRow, name)
    if row is None:
        raise NotFound("account", name)
    return row


def _seal(secrets: Secrets, account: Account) -> str | None:
    return None if account.password is None else secrets.seal(purpose_of(account.name), account.password)


def _settings(account: Account) -> dict[str, Any]:
    return {key: getattr(account, key) for key in _PLAIN} | {
        "security": account.security.value,
        "auth": account.auth.value,
        "from_policy": account.from_policy.value,
        "senders": list(account.senders),
        "reply_rules": [asdict(rule) for rule in account.reply_rules],
    }


def _reply_rule(stored: dict[str, Any]) -> ReplyRule:
    phase = stored["phase"]
    return ReplyRule(**{**stored, "blame": Blame(stored["blame"]), "phase": None if phase is None else Phase(phase)})


def _record(row: AccountRow, secrets: Secrets) -> AccountRecord:
    password, lost = None, False
    if row.password is not None:
        try:
            password = secrets.open(purpose_of(row.name), row.password)
        except SecretUnreadable:
            lost = True
    account = Account(
        name=row.name,
        security=Security(row.security),
        auth=AuthMethod(row.auth),
        password=password,
        from_policy=FromPolicy(row.from_policy),
        senders=tuple(row.senders),
        reply_rules=tuple(_reply_rule(rule) for rule in row.reply_rules),
        **{key: getattr(row, key) for key in _PLAIN},
    )
    return AccountRecord(
        account,
        row.version,
        from_database(row.created_at),
        from_database(row.updated_at),
        row.password is not None,
        optional_from_database(row.password_changed_at),
        lost,
        of_row(row),
    )
