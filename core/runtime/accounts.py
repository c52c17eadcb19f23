"""Accounts as settings: the rules of a save, in the order in which a person would want to hear of them.

A save reads, checks (the network too, where asked), and then writes in one transaction, provided that nobody saved in
between; no transaction is open while the network is used. Without a difference nothing happens at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlmodel import Session

from core.domain.account import Account
from core.domain.clock import Clock
from core.domain.oauth import MANY_LINES, outside_of, without_secrets
from core.domain.presets import defaults_of
from core.domain.senders import send_as
from core.errors import (
    AlreadyExists,
    CheckFailed,
    FieldError,
    InvalidSettings,
    NotFound,
    PreconditionFailed,
    SecretKeyLost,
)
from core.runtime import oauth_settings
from core.runtime.account_rules import ca_file_rules, outside_rules, rules, target_rules
from core.runtime.audit import MASK, Audit, difference
from core.runtime.facade import Checks, Pauses, Saved
from core.runtime.oauth_rules import oauth_rules
from core.runtime.paging import page_of
from core.runtime.quotas import Quotas
from core.runtime.saving import TRIES, there_already, too_busy, with_defaults
from core.runtime.secret_sources import SecretSources
from core.runtime.sender_rules import stranded
from core.runtime.views import AccountView, Actor, CheckView, Page, PauseView, UsageView
from core.settings import Settings
from core.store import accounts, sender_routes, usage
from core.store.accounts import AccountRecord, Password
from core.store.store import Store

_SHOWN_SENDERS = 3  # in a sentence
_SEND_AS = ("senders", "from_policy", "from_address")  # what decides whom an account may send as


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a save wants: `account` with all its secrets, and which of these change."""

    account: Account
    password: str | Password | None
    oauth_secrets: Mapping[str, str | None]


class Accounts:
    """Over the store. `apply` is told the name after each change; `checks` try an account over the network."""

    def __init__(
        self,
        store: Store,
        audit: Audit,
        *,
        clock: Clock,
        settings: Settings,
        pauses: Pauses,
        checks: Checks,
        quotas: Quotas,
        outside: SecretSources,
        apply: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock
        self._settings = settings
        self._pauses = pauses
        self._checks = checks
        self._quotas = quotas
        self._apply = apply
        self._outside = outside

    # --- reading -----------------------------------------------------------------------------------------------------

    async def list(self, limit: int, cursor: str | None) -> Page[AccountView]:
        """By name."""

        def read(session: Session) -> Page[AccountView]:
            records = accounts.load(session, self._store.secrets)
            page = page_of(records, lambda record: record.account.name, limit, cursor)
            return Page(tuple(self._view(session, record) for record in page.items), page.next)

        page = await self._store.read(read)
        return Page(tuple([await self._looked_up(view) for view in page.items]), page.next)

    async def get(self, name: str) -> AccountView:
        """Raises NotFound."""
        return await self._looked_up(
            await self._store.read(
                lambda session: self._view(session, accounts.get(session, self._store.secrets, name))
            )
        )

    async def value(self, name: str) -> Account:
        """With its secrets. Raises NotFound, SecretKeyLost where they don't open."""
        record = await self._store.read(lambda session: accounts.get(session, self._store.secrets, name))
        if record.password_lost or record.oauth_lost:
            what = "password" if record.password_lost else "OAuth secrets"
            raise SecretKeyLost(
                f"the {what} of account {name!r} can't be read with this encryption key",
                remedy=f"restore the key, or enter the {what} again",
            )
        return record.account

    def _view(self, session: Session, record: AccountRecord) -> AccountView:
        name = record.account.name
        return AccountView(
            shown_account(record.account),
            str(record.version),
            record.password_set,
            record.password_changed_at,
            record.created_at,
            record.updated_at,
            tuple(accounts.used_by(session, name)),
            self._pause(name),
            record.password_lost,
            record.oauth_set,
            record.oauth_lost,
            self._usage(session, name),
        )

    def _usage(self, session: Session, name: str) -> UsageView:
        used = usage.of(session, name, now=self._clock.now())
        quota = self._quotas.get(name)
        return UsageView(
            used.messages_last_hour,
            used.messages_last_day,
            used.recipients_last_day,
            quota.next_at() if quota is not None else None,
            quota.slowed_to() if quota is not None else None,
        )

    async def _looked_up(self, view: AccountView) -> AccountView:
        """What is set of the secrets that lie outside: those that can be had now. No transaction is open."""
        reference, of_oauth = view.account.password_from, outside_of(view.account.oauth)
        if reference is None and not of_oauth:
            return view

        def look() -> AccountView:
            there = [n for n, place in of_oauth.items() if self._outside.readable(place, lines=n in MANY_LINES)]
            password = view.password_set if reference is None else self._outside.readable(reference)
            return replace(view, password_set=password, oauth_set=(*view.oauth_set, *there))

        return await asyncio.to_thread(look)

    def _pause(self, name: str) -> PauseView | None:
        try:
            return self._pauses.account(name)
        except NotFound:  # saved, not applied yet
            return None

    # --- saving ------------------------------------------------------------------------------------------------------

    async def examine(self, account: Account) -> None:
        """Whether these settings may be used at all. Raises InvalidSettings."""
        await self._examine(account, None)

    async def create(self, account: Account, actor: Actor, *, check: bool = False) -> Saved[AccountView]:
        """Raises AlreadyExists, InvalidSettings, CheckFailed."""
        if await self._find(account.name) is not None:
            raise AlreadyExists(f"there is an account {account.name!r} already", remedy="PUT replaces it")
        return await self._create(account, actor, check)

    async def replace(
        self,
        account: Account,
        actor: Actor,
        *,
        keep_password: bool,
        keep_oauth: Collection[str] = (),
        if_match: Sequence[str] | None = None,
        if_absent: bool = False,
        check: bool = False,
    ) -> Saved[AccountView]:
        """Create or replace; `if_absent`: only create. Raises PreconditionFailed, InvalidSettings, CheckFailed."""

        def build(record: AccountRecord) -> Wanted:
            oauth, secrets = oauth_settings.replaced(record, account, keep_oauth)
            if keep_password:
                kept = replace(account, password=record.account.password, oauth=oauth)
                return Wanted(kept, Password.KEEP, secrets)
            return Wanted(replace(account, oauth=oauth), account.password, secrets)

        for _ in range(TRIES):
            record = await self._find(account.name)
            if record is not None:
                if if_absent:
                    raise there_already("account", account.name)
                saved = await self._change(record, build, actor, if_match, check)
            else:
                if if_match is not None:
                    raise PreconditionFailed(f"there is no account {account.name!r}")
                try:
                    saved = await self._create(account, actor, check)
                except AlreadyExists:
                    continue
            if saved is not None:
                return saved
        raise too_busy()

    async def change(
        self,
        name: str,
        changes: Mapping[str, Any],
        actor: Actor,
        *,
        if_match: Sequence[str] | None = None,
        check: bool = False,
    ) -> Saved[AccountView]:
        """Merge patch: None is the default, the preset's first.

        Raises NotFound, PreconditionFailed, InvalidSettings, CheckFailed.
        """

        def build(record: AccountRecord) -> Wanted:
            settings = with_defaults(Account, changes, first=_preset_defaults(record.account, changes))
            patch = settings.pop("oauth", {})
            account = replace(record.account, **settings)
            oauth, secrets = oauth_settings.patched(record, account, patch)
            account = replace(account, oauth=oauth)
            if account.password_from is not None and "password_from" not in settings:
                _require_password_again(record.account, account, "password_from")
            oauth_settings.require_references_again(record, account, patch)
            return Wanted(account, account.password if "password" in settings else Password.KEEP, secrets)

        for _ in range(TRIES):
            record = await self._find(name)
            if record is None:
                raise NotFound("account", name)
            saved = await self._change(record, build, actor, if_match, check)
            if saved is not None:
                return saved
        raise too_busy()

    async def delete(self, name: str, actor: Actor, *, if_match: Sequence[str] | None = None) -> None:
        """Raises NotFound, PreconditionFailed, InUse."""

        def write(session: Session) -> None:
            record = accounts.get(session, self._store.secrets, name)
            accounts.delete(session, name, if_match=if_match)
            self._audit.within(session, actor, "account.delete", name, difference(_shown(record), {}))

        await self._store.write(write)
        await self._apply(name)

    async def _find(self, name: str) -> AccountRecord | None:
        def read(session: Session) -> AccountRecord | None:
            try:
                return accounts.get(session, self._store.secrets, name)
            except NotFound:
                return None

        return await self._store.read(read)

    async def _create(self, account: Account, actor: Actor, check: bool) -> Saved[AccountView]:
        await self._examine(account, None)
        found = await self._checked(account) if check else None

        def write(session: Session) -> AccountView:
            record = accounts.create(session, self._store.secrets, account, now=self._clock.now())
            self._audit.within(session, actor, "account.create", account.name, difference({}, _shown(record)))
            return self._view(session, record)

        view = await self._store.write(write)
        await self._apply(account.name)
        return Saved(await self._looked_up(view), created=True, check=found)

    async def _change(
        self,
        before: AccountRecord,
        build: Callable[[AccountRecord], Wanted],
        actor: Actor,
        if_match: Sequence[str] | None,
        check: bool,
    ) -> Saved[AccountView] | None:
        """None: somebody saved in between."""
        accounts.check_version(before.version, if_match)
        wanted = build(before)
        account, password = wanted.account, wanted.password
        kept = oauth_settings.kept(before, wanted.oauth_secrets)
        await self._examine(account, before.account, kept)
        if password is Password.KEEP and before.password_set:
            _require_password_again(before.account, account)
            if before.password_lost and account.password_from is not None:
                detail = 'a password is saved that no key opens: "password": null removes it'
                raise InvalidSettings([FieldError("/password_from", "excludes_password", detail)])
        oauth_settings.require_secrets_again(before, account, wanted.oauth_secrets)
        found = await self._checked(account) if check else None
        changed = False

        def write(session: Session) -> AccountView | None:
            nonlocal changed
            present = accounts.get(session, self._store.secrets, account.name)
            if present.version != before.version:
                return None
            self._check_routes(session, account, present.account)
            record = accounts.change(
                session,
                self._store.secrets,
                account,
                now=self._clock.now(),
                password=password,
                oauth_secrets=wanted.oauth_secrets,
            )
            changed = record.version != before.version
            if changed:
                what = difference(_shown(before), _shown(record))
                if _other_password(before, password):
                    what["password"] = [MASK if before.password_set else None, None if password is None else MASK]
                what |= oauth_settings.other_secrets(before, record, wanted.oauth_secrets)
                self._audit.within(session, actor, "account.update", account.name, what)
            return self._view(session, record)

        view = await self._store.write(write)
        if view is None:
            return None
        if changed:
            await self._apply(account.name)
            view = replace(view, pause=self._pause(account.name))
        return Saved(await self._looked_up(view), check=found)

    @staticmethod
    def _check_routes(session: Session, account: Account, present: Account) -> None:
        """No sender route is left without an account that may send as its senders, unless one was before."""
        routes = sender_routes.load(session)
        if not routes:
            return
        before = accounts.senders(session)
        after = before | {account.name: send_as(account)}
        left = set(stranded(routes, after)) - set(stranded(routes, before))
        if left:
            changed = (name for name in _SEND_AS if getattr(account, name) != getattr(present, name))
            texts = ", ".join(repr(text) for _, _, text in sorted(left)[:_SHOWN_SENDERS])
            detail = f"no account of a sender route may send as {texts} any more"
            raise InvalidSettings(
                [FieldError(f"/{next(changed, 'senders')}", "conflict", detail)],
                remedy="change `sender_routes` (PATCH /settings) first, or another account of the route",
            )

    async def _checked(self, account: Account) -> CheckView:
        found = await self._checks.account(account)
        if not found.ok:
            failed = next((step for step in found.steps if step.required and not step.ok), None)
            raise CheckFailed(
                "the check failed" if failed is None else f"{failed.step}: {failed.cause or failed.detail}",
                check=found,
                remedy=failed.remedy if failed else "",
            )
        return found

    async def _examine(self, account: Account, before: Account | None, kept: Collection[str] = ()) -> None:
        errors = [*rules(account), *target_rules(account, self._settings, before)]
        errors += oauth_rules(account, self._settings, before, kept)
        if account.tls_ca_file is not None and (before is None or account.tls_ca_file != before.tls_ca_file):
            errors += await asyncio.to_thread(ca_file_rules, account.tls_ca_file)
        errors += await asyncio.to_thread(outside_rules, account, self._outside, before, kept)
        if errors:
            raise InvalidSettings(errors)


def shown_account(account: Account) -> Account:
    """Without its secrets."""
    oauth = None if account.oauth is None else without_secrets(account.oauth)
    return replace(account, password=None, oauth=oauth)


def _preset_defaults(before: Account, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What None goes back to: of the preset that the account has after the change, if it has one."""
    named = {key: changes[key] if key in changes else getattr(before, key) for key in ("preset", "port", "security")}
    return defaults_of(named["preset"], named)


def _require_password_again(before: Account, after: Account, field: str = "password") -> None:
    """A password goes to where it was given for: who may only change settings must not learn it (design.md 8)."""
    moved = [name for name in ("host", "port") if getattr(before, name) != getattr(after, name)]
    if moved:
        detail = f"a new {' and '.join(moved)} needs the {field} again (null removes it)"
        raise InvalidSettings([FieldError(f"/{field}", "password_needed", detail)])


def _other_password(before: AccountRecord, wanted: str | Password | None) -> bool:
    return not isinstance(wanted, Password) and (before.password_lost or wanted != before.account.password)


def _shown(record: AccountRecord) -> dict[str, Any]:
    """For the audit."""
    settings = asdict(record.account)
    del settings["name"]
    settings["password"] = MASK if record.password_set else None
    return oauth_settings.flat(settings, record)
