"""The `oauth` of an account in a save: what a patch or a replacement makes of it, and which of its secrets change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from core.domain.account import Account, OAuth
from core.domain.oauth import REFERENCES, SECRETS, outside_of
from core.errors import FieldError, InvalidSettings
from core.runtime.audit import MASK
from core.runtime.saving import with_defaults
from core.store.accounts import AccountRecord

Secrets = Mapping[str, str | None]  # those that change; None removes one
_GOES_TO = ("host", "port")  # of the account: who gets the access token
_ASKED_AT = ("provider", "tenant", "client_id", "token_url")  # of its oauth: who gets the secrets


def patched(record: AccountRecord, account: Account, patch: Mapping[str, Any] | None) -> tuple[OAuth | None, Secrets]:
    """RFC 7396: None removes the whole; a member that is None takes its default. Raises InvalidSettings.

    `account`: what becomes of the rest.
    """
    if patch is None:
        return None, {}
    present = record.account.oauth
    fields = with_defaults(OAuth, patch, "/oauth")
    secrets = {name: fields[name] for name in SECRETS if name in fields}
    if present is not None:
        return _newest(record, replace(account, oauth=replace(present, **fields)), secrets)
    if not fields:
        return None, {}
    absent = [name for name in ("provider", "grant") if name not in fields]
    if absent:
        raise InvalidSettings([FieldError(f"/oauth/{name}", "required", "is needed") for name in absent])
    return OAuth(**fields), secrets


def replaced(record: AccountRecord, account: Account, keep: Collection[str]) -> tuple[OAuth | None, Secrets]:
    """The wanted settings; of the present ones only the secrets that are named in `keep`."""
    wanted = account.oauth
    if wanted is None:
        return None, {}
    present = record.account.oauth
    secrets = {name: getattr(wanted, name) for name in SECRETS if name not in keep}
    if present is not None:
        wanted = replace(wanted, **{name: getattr(present, name) for name in SECRETS if name in keep})
    return _newest(record, replace(account, oauth=wanted), secrets)


def _newest(record: AccountRecord, account: Account, secrets: dict[str, str | None]) -> tuple[OAuth | None, Secrets]:
    """Who gives the same refresh token as before, as a playbook does, means the one that the provider made of it.

    That one stays as it is in the database by the time of the write: it may be newer than the record. Not where it
    would go elsewhere than before: who knows the old one need not know the newest.
    """
    present, wanted = record.account.oauth, account.oauth
    if present is None or wanted is None or _moved(record.account, account):
        return wanted, secrets
    given = secrets.get("refresh_token")
    if given is None or given not in (present.refresh_token, record.oauth_first):
        return wanted, secrets
    others = {name: value for name, value in secrets.items() if name != "refresh_token"}
    return replace(wanted, refresh_token=present.refresh_token), others


def _moved(before: Account, after: Account) -> list[str]:
    """Fields of who gets the secrets, and what they give access to, that are others now; of two with OAuth."""
    was, now = before.oauth, after.oauth
    if was is None or now is None:
        return []
    moved = [name for name in _GOES_TO if getattr(before, name) != getattr(after, name)]
    return moved + [f"oauth.{name}" for name in _ASKED_AT if getattr(was, name) != getattr(now, name)]


def kept(before: AccountRecord, secrets: Secrets) -> set[str]:
    """Secrets that are there and stay, whether they can be read or not."""
    if before.oauth_lost and secrets:  # sealed as one: what is not given again is gone
        return set()
    return set(before.oauth_set) - set(secrets)


def require_secrets_again(before: AccountRecord, after: Account, secrets: Secrets) -> None:
    """Secrets go to where they were given for, and so does what they give access to. Raises InvalidSettings."""
    moved = _moved(before.account, after)
    names = sorted(kept(before, secrets))
    if moved and names:
        detail = f"a new {' and '.join(moved)} needs it again (null removes it)"
        raise InvalidSettings([FieldError(f"/oauth/{name}", "secret_needed", detail) for name in names])


def require_references_again(before: AccountRecord, after: Account, patch: Mapping[str, Any] | None) -> None:
    """The same of where secrets lie outside, for what `patch` doesn't name. Raises InvalidSettings."""
    moved = _moved(before.account, after)
    present = outside_of(before.account.oauth)
    names = [REFERENCES[name] for name in outside_of(after.oauth) if name in present]
    unnamed = [name for name in names if patch is None or name not in patch]
    if moved and unnamed:
        detail = f"a new {' and '.join(moved)} needs it again (null removes it)"
        raise InvalidSettings([FieldError(f"/oauth/{name}", "secret_needed", detail) for name in unnamed])


def flat(settings: dict[str, Any], record: AccountRecord) -> dict[str, Any]:
    """For the audit: `oauth` as fields of its own, its secrets masked."""
    oauth = settings.pop("oauth") or {}
    fields = {f"oauth.{name}": value for name, value in oauth.items() if name not in SECRETS}
    masks = {f"oauth.{name}": MASK for name in record.oauth_set}
    return {**settings, **fields, **masks}


def other_secrets(before: AccountRecord, after: AccountRecord, secrets: Secrets) -> dict[str, list[Any]]:
    """For the audit: secrets that were there and have another value now, which the masks don't show."""
    names = [name for name in secrets if name in before.oauth_set and name in after.oauth_set]
    was, now = before.account.oauth, after.account.oauth
    return {
        f"oauth.{name}": [MASK, MASK] for name in names if before.oauth_lost or getattr(was, name) != getattr(now, name)
    }
