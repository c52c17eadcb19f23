"""What an account's `oauth` must be to be saved: a grant that the provider has, what it needs, and where it may ask."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from core.domain import target
from core.domain.account import Account, AuthMethod, OAuth, OAuthGrant, OAuthProvider
from core.domain.oauth import ENDPOINTS, REFERENCES, outside_of
from core.errors import FieldError
from core.settings import Settings
from core.transport.oauth import KeyUnusable, read_service_account_key

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")
_ANY_TENANT = ("common", "organizations", "consumers")


def oauth_rules(
    account: Account, settings: Settings, before: Account | None = None, kept: Collection[str] = ()
) -> list[FieldError]:
    """All of them. `kept`: secrets that are saved already, and may be unreadable. Blocks a moment: reads a key."""
    oauth = account.oauth
    if oauth is None:
        return []
    errors = []
    if account.auth not in (AuthMethod.AUTO, AuthMethod.XOAUTH2):
        errors.append(FieldError("/auth", "conflict", f"with oauth it is auto or xoauth2, not {account.auth}"))
    if account.username is None and account.auth is AuthMethod.AUTO:  # of xoauth2 the general rules tell it
        errors.append(FieldError("/username", "required", "the mailbox that the access token is for"))
    outside = outside_of(oauth)
    row = ENDPOINTS.get((oauth.provider, oauth.grant))
    if row is None:
        there = ", ".join(grant for provider, grant in ENDPOINTS if provider is oauth.provider)
        errors.append(FieldError("/oauth/grant", "not_offered", f"{oauth.provider} has {there}"))
    else:
        errors += [
            FieldError(f"/oauth/{name}", "required", f"{oauth.provider} with {oauth.grant} needs it")
            for name in row.needs
            if getattr(oauth, name) is None and name not in kept and name not in outside
        ]
        errors += [
            FieldError(f"/oauth/{REFERENCES[name]}", "conflict", f"{oauth.grant} has no use for it")
            for name in outside
            if name not in (*row.needs, *row.sends)
        ]
        if oauth.service_account_key is not None and "service_account_key" not in row.needs:
            detail = f"{oauth.grant} has no use for it"
            errors.append(FieldError("/oauth/service_account_key", "conflict", detail))
    was = None if before is None else before.oauth
    return [*errors, *_tenant_rules(oauth), *_key_rules(oauth, was), *_url_rules(oauth, settings, was)]


def _tenant_rules(oauth: OAuth) -> list[FieldError]:
    if oauth.tenant is None:
        return []
    if oauth.provider is not OAuthProvider.MICROSOFT:
        return [FieldError("/oauth/tenant", "conflict", "only microsoft has tenants")]
    if not _TENANT.fullmatch(oauth.tenant):
        return [FieldError("/oauth/tenant", "wrong_form", "is the tenant's id or one of its domains")]
    if oauth.grant is OAuthGrant.CLIENT_CREDENTIALS and oauth.tenant.lower() in _ANY_TENANT:
        return [FieldError("/oauth/tenant", "wrong_form", "client_credentials needs one tenant: its id or a domain")]
    return []


def _key_rules(oauth: OAuth, before: OAuth | None) -> list[FieldError]:
    key = oauth.service_account_key
    if key is None or (before is not None and before.service_account_key == key):
        return []
    try:
        read_service_account_key(key)
    except KeyUnusable as error:
        return [FieldError("/oauth/service_account_key", "wrong_form", str(error))]
    return []


def _url_rules(oauth: OAuth, settings: Settings, before: OAuth | None) -> list[FieldError]:
    """Secrets are sent there: TLS unless it is this machine, and only where an account's host may lie, too."""
    url = oauth.token_url
    if url is None or (before is not None and before.token_url == url):
        return []
    reason = url_reason(url, allow_private=settings.allow_private_targets)
    return [] if reason is None else [FieldError("/oauth/token_url", "not_allowed", reason)]


def url_reason(url: str, *, allow_private: bool = True) -> str | None:
    """Why secrets may not be sent to this URL; None: they may."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no URL"
    if not host or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return "is no URL"
    if parts.scheme not in ("https", "http") or (parts.scheme == "http" and not target.is_loopback(host)):
        return "must begin with https:// (http:// to this machine only)"
    if parts.username is not None or parts.password is not None or parts.fragment:
        return "must not hold a user, a password or a fragment"
    return target.forbidden(host, allow_private=allow_private)
