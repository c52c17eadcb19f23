"""Accounts and their settings. Values in, values out; passwords are sealed in the database (secrets.py)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

from sqlmodel import Session, col, select

from core.domain.account import (
    Account,
    AuthMethod,
    FromPolicy,
    OAuth,
    OAuthGrant,
    OAuthProvider,
    ReplyRule,
    Security,
)
from core.domain.oauth import SECRETS, without_secrets
from core.domain.outcome import Blame
from core.domain.reply import Phase
from core.domain.senders import SendAs, send_as
from core.errors import AlreadyExists, InUse, NotFound, PreconditionFailed
from core.store import outside_tokens, sender_routes
from core.store.epoch import from_database, optional_from_database, to_database
from core.store.pauses import Pause, of_row
from core.store.secrets import Secrets, SecretUnreadable, oauth_purpose_of, purpose_of
from core.store.slowdowns import Slowed, of_stored
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


_FIRST = "first_refresh_token"  # beside the secrets


class Password(Enum):
    """What a change says of the password, where it doesn't give one."""

    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account as it is stored. Times in seconds since the epoch."""

    account: Account  # with its secrets, in the clear; None where they are lost
    version: int  # for ETag; changes with the settings
    created_at: float
    updated_at: float
    password_set: bool
    password_changed_at: float | None
    password_lost: bool  # there is one, but the encryption key doesn't open it: it must be set again
    oauth_set: tuple[str, ...]  # which secrets of `account.oauth` there are
    oauth_lost: bool  # as password_lost
    oauth_first: str | None = field(repr=False)  # the refresh token that somebody gave, where the provider changed it
    pause: Pause | None  # over or not: ask in_force
    slowed: Slowed | None = None  # by its server, over or not


def load(session: Session, secrets: Secrets) -> list[AccountRecord]:
    """All of them, by name."""
    return [_record(row, secrets) for row in session.exec(select(AccountRow).order_by(AccountRow.name))]


def senders(session: Session) -> dict[str, SendAs]:
    """What each account, by its name, may send as."""
    return {
        row.name: send_as(
            Account(
                row.name,
                row.host,
                senders=tuple(row.senders),
                from_address=row.from_address,
                from_policy=FromPolicy(row.from_policy),
            )
        )
        for row in session.exec(select(AccountRow))
    }


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
        oauth=_oauth_settings(account.oauth, _secrets_of(account.oauth)),
        oauth_secrets=_seal_oauth(secrets, account.name, _secrets_of(account.oauth)),
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
    oauth_secrets: Mapping[str, str | None] | None = None,
    if_match: Collection[str] | None = None,
) -> AccountRecord:
    """Replace the settings. `account.password` is not looked at, `password` is; None removes it.

    So are the secrets of `account.oauth`: `oauth_secrets` names those that change, the others stay as they are in the
    database now, which may be newer than what the caller has read (refresh_token_changed). Without OAuth settings
    none are left.

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
    changed |= _change_oauth(row, secrets, before, account.oauth, oauth_secrets or {})
    if changed:
        for key, value in settings.items():
            setattr(row, key, value)
        row.version += 1
        row.updated_at = to_database(now)
        session.add(row)
        session.flush()
    return _record(row, secrets)


def refresh_token_changed(
    session: Session, secrets: Secrets, oauth: OAuth, refresh_token: str, *, now: float
) -> list[str]:
    """The provider gave another refresh token for the one of `oauth`: it takes its place wherever that is held.

    It is kept as the one that follows the first, too, for who has that one outside or moves it there. No change of the
    settings: the version stays. Gives the names of the accounts.
    """
    names = []
    for row in session.exec(select(AccountRow).where(col(AccountRow.oauth_secrets).is_not(None))):
        record = _record(row, secrets)
        present = record.account.oauth
        if present is not None and _same_login(present, oauth):
            held = {**_secrets_of(present), "refresh_token": refresh_token}
            first = record.oauth_first or present.refresh_token
            row.oauth_secrets = _seal_oauth(secrets, row.name, held, first)
            session.add(row)
            given = outside_tokens.digest_of(replace(oauth, refresh_token=first), row.host, row.port)
            outside_tokens.keep(session, secrets, given, refresh_token, now=now)
            before = outside_tokens.digest_of(oauth, row.host, row.port)
            if before != given:
                outside_tokens.forget(session, before)
            names.append(row.name)
    session.flush()
    return names


def outside_token_changed(session: Session, secrets: Secrets, digest: str, refresh_token: str, *, now: float) -> None:
    """The provider gave another refresh token for the one outside that `digest` is of, or for what followed it.

    Accounts that have that one stored, or what followed it, are led to the newest from what they hold.
    """
    outside_tokens.keep(session, secrets, digest, refresh_token, now=now)
    for row in session.exec(select(AccountRow).where(col(AccountRow.oauth_secrets).is_not(None))):
        record = _record(row, secrets)
        present = record.account.oauth
        if present is None or present.refresh_token is None or record.oauth_first is None:
            continue
        if outside_tokens.digest_of(replace(present, refresh_token=record.oauth_first), row.host, row.port) == digest:
            held = outside_tokens.digest_of(present, row.host, row.port)
            outside_tokens.keep(session, secrets, held, refresh_token, now=now)


def _same_login(one: OAuth, other: OAuth) -> bool:
    """Whether they have the same refresh token of the same client at the same place, and use it."""
    names = ("refresh_token", "grant", "provider", "tenant", "client_id", "token_url")
    return one.refresh_token is not None and all(getattr(one, name) == getattr(other, name) for name in names)


def delete(session: Session, name: str, *, if_match: Collection[str] | None = None) -> None:
    """Raises NotFound, PreconditionFailed, InUse with the directories and sender routes that send through it."""
    row = _row(session, name)
    check_version(row.version, if_match)
    users = used_by(session, name)
    if users:
        raise InUse(
            f"account {name!r} is used by {', '.join(users)}",
            used_by=users,
            remedy="take it out of the directories' `accounts`, and of `sender_routes` (PATCH /settings), first",
        )
    session.delete(row)
    session.flush()


def used_by(session: Session, name: str) -> list[str]:
    """Names of the directories that send through it, then `sender_routes/N`."""
    query = select(DirectoryAccountRow.directory).where(col(DirectoryAccountRow.account) == name).distinct()
    return [*sorted(session.exec(query)), *sender_routes.using(session, name)]


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


def _secrets_of(oauth: OAuth | None) -> dict[str, str]:
    found = {name: getattr(oauth, name) for name in SECRETS} if oauth is not None else {}
    return {name: value for name, value in found.items() if value is not None}


def _oauth_settings(oauth: OAuth | None, held: Collection[str]) -> dict[str, Any] | None:
    """What is stored in the clear; also which secrets there are, so that lost ones can be named."""
    if oauth is None:
        return None
    return {**asdict(without_secrets(oauth)), "secrets": sorted(held)}


def _seal_oauth(secrets: Secrets, account: str, held: Mapping[str, str], first: str | None = None) -> str | None:
    """`first`: see AccountRecord.oauth_first."""
    if not held:
        return None
    return secrets.seal(oauth_purpose_of(account), json.dumps(held if first is None else {**held, _FIRST: first}))


def _change_oauth(
    row: AccountRow, secrets: Secrets, before: AccountRecord, oauth: OAuth | None, given: Mapping[str, str | None]
) -> bool:
    """Whether there was a difference."""
    present = _secrets_of(before.account.oauth)
    wanted = {name: value for name, value in {**present, **given}.items() if value is not None}
    if oauth is None:
        wanted = {}
    changed = wanted != present
    lost_stay = before.oauth_lost and oauth is not None and not given
    if not lost_stay and (changed or before.oauth_lost):
        same = "refresh_token" in wanted and wanted["refresh_token"] == present.get("refresh_token")
        row.oauth_secrets = _seal_oauth(secrets, row.name, wanted, before.oauth_first if same else None)
        changed = True
    settings = _oauth_settings(oauth, before.oauth_set if lost_stay else wanted)
    if settings != row.oauth:
        row.oauth = settings
        changed = True
    return changed


def _oauth(row: AccountRow, secrets: Secrets) -> tuple[OAuth | None, tuple[str, ...], bool, str | None]:
    """The settings with their secrets, which of these there are, whether they don't open, and `oauth_first`."""
    if row.oauth is None:
        return None, (), False, None
    plain = {name: value for name, value in row.oauth.items() if name != "secrets"}
    held: dict[str, str] = {}
    lost = False
    if row.oauth_secrets is not None:
        try:
            held = json.loads(secrets.open(oauth_purpose_of(row.name), row.oauth_secrets))
        except SecretUnreadable:
            lost = True
    words = {"provider": OAuthProvider(plain["provider"]), "grant": OAuthGrant(plain["grant"])}
    first = held.pop(_FIRST, None)
    return OAuth(**{**plain, **words, **held}), tuple(row.oauth["secrets"]), lost, first


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
    oauth, oauth_set, oauth_lost, oauth_first = _oauth(row, secrets)
    account = Account(
        name=row.name,
        oauth=oauth,
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
        oauth_set,
        oauth_lost,
        oauth_first,
        of_row(row),
        of_stored(row.slowed),
    )
