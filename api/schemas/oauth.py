"""The `oauth` of an account over the wire. Public knows no secret."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from api.schemas.base import In, Out, Printable, Word
from core.domain.account import OAuthGrant, OAuthProvider
from core.runtime.views import AccountView

Provider = Annotated[
    Literal["microsoft", "google", "other"],
    Field(description="Who gives the access tokens; it brings the token endpoint and the scope. other: `token_url`."),
]
Grant = Annotated[
    Literal["client_credentials", "refresh_token", "service_account"],
    Field(
        description="How a token is had. microsoft: client_credentials, or refresh_token (`mpu account login`); "
        "google: refresh_token or service_account; other: client_credentials or refresh_token."
    ),
]
Tenant = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.\-]*$",
        description="Microsoft: the tenant's id or one of its domains. Default null: any, which client_credentials "
        "can't use.",
    ),
]
ClientId = Annotated[
    str, Printable, Field(min_length=1, max_length=512, description="The application's id. Default null.")
]
TokenUrl = Annotated[
    str,
    Word,
    Field(
        min_length=8,
        max_length=2048,
        description="The token endpoint, https:// (http:// to this machine only). Default null: the provider's.",
    ),
]
Scope = Annotated[
    str,
    Printable,
    Field(min_length=1, max_length=2048, description="What the token is asked for. Default null: the provider's."),
]
REFERENCE = r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+|credential:[A-Za-z0-9_.-]+)$"  # a secret that lies outside
_SECRET: dict[str, Any] = {"writeOnly": True, "format": "password"}
_KEPT = "Kept encrypted, never shown. Omitted: stays as it is; null: removed."
ClientSecret = Annotated[
    str,
    Printable,
    Field(
        min_length=1,
        max_length=4096,
        description=f"The application's secret. {_KEPT}",
        json_schema_extra=_SECRET,
    ),
]
RefreshToken = Annotated[
    str,
    Printable,
    Field(
        min_length=1,
        max_length=16_384,
        description=f"Of grant refresh_token; `mpu account login` sets it. {_KEPT}",
        json_schema_extra=_SECRET,
    ),
]


def _key_text(value: object) -> object:
    """An object as the text that it was read from."""
    return json.dumps(value) if isinstance(value, dict) else value


def _encodable(text: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("must not hold halves of surrogate pairs")
    return text


ServiceAccountKey = Annotated[
    str,
    BeforeValidator(_key_text),
    AfterValidator(_encodable),
    Field(
        min_length=1,
        max_length=16_384,
        description="Of grant service_account: the JSON file that Google gave, as an object or as text. The account's "
        f"`username` is the mailbox that it acts for. {_KEPT}",
    ),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "minLength": 1, "maxLength": 16_384}, {"type": "object"}],
            "writeOnly": True,
        }
    ),
]


def _secret_from(what: str, more: str = "") -> Any:
    return Field(
        min_length=5,
        max_length=4096,
        pattern=REFERENCE,
        description=f"Where the {what} is read from, for each token that is fetched, instead of the database: as "
        f"`password_from`.{more} Default null.",
    )


ClientSecretFrom = Annotated[str, Printable, _secret_from("application's secret", " Excludes `client_secret`.")]
RefreshTokenFrom = Annotated[
    str,
    Printable,
    _secret_from(
        "refresh token",
        " Excludes `refresh_token`. Where the provider replaces it, what took its place is kept encrypted in the "
        "database, until another one lies there.",
    ),
]
ServiceAccountKeyFrom = Annotated[
    str,
    Printable,
    _secret_from("service account's JSON file", " It may have many lines. Excludes `service_account_key`."),
]


class OAuthUpdate(In):
    """A merge patch of `oauth`: what is named changes, null puts the default back. Another provider, tenant, client_id
    or token_url, and another host or port of the account, need its secrets, and where they lie, again.
    """

    provider: Provider | None = None
    grant: Grant | None = None
    tenant: Tenant | None = None
    client_id: ClientId | None = None
    token_url: TokenUrl | None = None
    scope: Scope | None = None
    client_secret: ClientSecret | None = None
    refresh_token: RefreshToken | None = None
    service_account_key: ServiceAccountKey | None = None
    client_secret_from: ClientSecretFrom | None = None
    refresh_token_from: RefreshTokenFrom | None = None
    service_account_key_from: ServiceAccountKeyFrom | None = None


class OAuthShape(OAuthUpdate):
    """Where the access tokens of XOAUTH2 come from. They are fetched ahead of their end and kept in memory."""

    provider: Provider
    grant: Grant


class OAuthPublic(Out):
    """Where the access tokens come from; its secrets are never shown."""

    provider: str
    grant: str
    tenant: str | None
    client_id: str | None
    token_url: str | None
    scope: str | None
    client_secret_from: str | None
    refresh_token_from: str | None
    service_account_key_from: str | None
    client_secret_set: bool = Field(
        description="Whether it is saved, or can be read now where `client_secret_from` says. Likewise the next two."
    )
    refresh_token_set: bool
    service_account_key_set: bool
    secrets_lost: bool = Field(
        description="The encryption key does not open them: nothing is sent until they are set again."
    )

    @classmethod
    def of(cls, view: AccountView) -> OAuthPublic | None:
        oauth = view.account.oauth
        if oauth is None:
            return None
        settings = {name: getattr(oauth, name) for name in cls.model_fields if hasattr(oauth, name)}
        return cls(
            **settings,
            client_secret_set="client_secret" in view.oauth_set,
            refresh_token_set="refresh_token" in view.oauth_set,
            service_account_key_set="service_account_key" in view.oauth_set,
            secrets_lost=view.oauth_lost,
        )


OAuthUpdate.shown_as = (OAuthPublic,)


def oauth_typed(settings: dict[str, Any]) -> dict[str, Any]:
    """In the relay's types."""
    typed = dict(settings)
    for name, kind in (("provider", OAuthProvider), ("grant", OAuthGrant)):
        if typed.get(name) is not None:
            typed[name] = kind(typed[name])
    return typed
