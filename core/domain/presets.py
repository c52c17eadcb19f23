"""What providers ask for (providers.md), under a name: the settings of an account that need not be named any more.

A setting that is named wins. One that is not takes the preset's value, or the general default where the preset has
none. What comes of it is saved with the account: a preset that changes in a later version changes no account.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from core.domain.account import Security

STARTTLS, TLS = Security.STARTTLS, Security.TLS
TLS_PORTS = (465, 2465)  # TLS from the first octet (RFC 8314 section 3.3, and what providers add)
DAY_RECIPIENTS = 10_000


@dataclass(frozen=True, slots=True)
class Preset:
    """A provider. `settings` are fields of Account; `ports` those that it answers on, the usual one first."""

    name: str
    title: str
    note: str  # what one needs at the provider, for people
    host: str | None = None
    host_hint: str | None = None  # how a host is to be made up that each customer has another of
    ports: tuple[tuple[int, Security], ...] = ((587, STARTTLS), (465, TLS))
    settings: Mapping[str, Any] = field(default_factory=dict)

    def defaults(self, port: int | None = None, security: Security | None = None) -> dict[str, Any]:
        """What a setting falls back to that isn't named. A port or security that is named takes the other along."""
        usual = self.ports[0]
        if port is not None:
            usual = port, dict(self.ports).get(port, usual[1])
        elif security is not None:
            usual = next((pair for pair in self.ports if pair[1] is security), usual)
        host = {} if self.host is None else {"host": self.host}
        return {**host, "port": usual[0], "security": usual[1], **self.settings}


_ALL = (
    Preset(
        "office365",
        "Microsoft 365 (Exchange Online)",
        "The account sends as one mailbox, which needs a licence. In the Microsoft 365 admin center open the user, "
        "then Mail, then Manage email apps, and tick Authenticated SMTP: without it every login is refused, and so it "
        "is where the tenant has security defaults on. Log in with XOAUTH2: register an application in Microsoft Entra "
        "and give the account its `oauth`, which `auth` auto then uses. Login with a password is off by default from "
        "the end of December 2026. To send as another address the mailbox needs the Send As permission for it. At "
        "most 3 connections, 30 messages a minute and 10,000 recipients a day.",
        host="smtp.office365.com",
        ports=((587, STARTTLS),),
        settings=MappingProxyType(
            {
                "max_connections": 3,
                "messages_per_minute": 30,
                "recipients_per_day": DAY_RECIPIENTS,
            }
        ),
    ),
    Preset(
        "gmail",
        "Gmail and Google Workspace",
        "The username is the whole address. With a password it must be an app password: turn on 2-Step Verification "
        "in the Google Account under Security, then make one under App passwords; the user's own password is refused. "
        "Or use XOAUTH2 with the account's `oauth`. Gmail rewrites a From that is not the user's or one of the "
        "addresses under Settings, Accounts, Send mail as. At most 2,000 messages a day with Workspace (500 without: "
        "set messages_per_day), 100 recipients a message and 10,000 recipients a day.",
        host="smtp.gmail.com",
        settings=MappingProxyType(
            {"recipients_per_message": 100, "messages_per_day": 2000, "recipients_per_day": DAY_RECIPIENTS}
        ),
    ),
    Preset(
        "google-relay",
        "Google Workspace SMTP relay",
        "An administrator turns it on in the Google Admin console: Apps, Google Workspace, Gmail, Routing, SMTP relay "
        "service. There either allow this machine's public address, then no username is needed, or require a login, "
        "then use a user's address and an app password; and require TLS. The sender must be of your domain. At most "
        "10,000 unique recipients a user a day.",
        host="smtp-relay.gmail.com",
        settings=MappingProxyType({"recipients_per_day": DAY_RECIPIENTS}),
    ),
    Preset(
        "ses",
        "Amazon SES",
        "The host has the region in it: email-smtp.eu-central-1.amazonaws.com for Frankfurt. In the SES console of "
        "that region open SMTP settings and create SMTP credentials: they are not the access key and its secret, and "
        "belong to that region alone. Verify the domain or address that is sent from. A new account is in the "
        "sandbox: 1 message a second, 200 a day, to verified addresses only; ask for production access. SES drops "
        "what exceeds the rate it granted: set messages_per_second and messages_per_day to what the console shows. At "
        "most 50 recipients a message.",
        host_hint="email-smtp.REGION.amazonaws.com",
        ports=((587, STARTTLS), (465, TLS), (2587, STARTTLS), (2465, TLS)),
        settings=MappingProxyType({"recipients_per_message": 50}),
    ),
    Preset(
        "azure",
        "Azure Communication Services Email",
        "In the Azure portal connect a verified domain to the Communication Services resource, register an "
        "application in Microsoft Entra with a client secret, give it a role of the resource that may send mail, and "
        "make an SMTP username under it. The password is the client secret. The sender must be a MailFrom address of "
        "the domain. How many messages a minute and an hour is granted by subscription: set the limits to it.",
        host="smtp.azurecomm.net",
        ports=((587, STARTTLS),),
    ),
    Preset(
        "smtp",
        "Any other server",
        "Ask its operator for host, port and login. Port 587 is starttls, 465 is tls. Port 25 is for mail between "
        "servers, and clouds block it.",
    ),
)
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})


def filled(named: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are named, and those of the preset among them, if it is."""
    return {**defaults_of(named.get("preset"), named), **named}


def defaults_of(preset: str | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's defaults, which go before the general ones, beside settings that are named (None: not)."""
    known = PRESETS.get(preset or "")
    return {} if known is None else known.defaults(named.get("port"), named.get("security"))


def host_needed(preset: str | None) -> str:
    """For people: that there must be a host, and which."""
    known = PRESETS.get(preset or "")
    if known is None or known.host_hint is None:
        return "is needed"
    return f"is needed with the preset {known.name}: {known.host_hint}"
