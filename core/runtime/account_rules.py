"""What an account's settings must be to be saved: sense among the fields, and where it may connect to (design.md 8)."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Collection

from core.domain import target
from core.domain.account import Account, AuthMethod, FromPolicy, Security
from core.domain.address import AddressError, parse_mailbox
from core.domain.oauth import outside_of
from core.domain.reply_rules import errors_of
from core.domain.senders import send_as
from core.errors import FieldError
from core.runtime.secret_sources import SecretSources
from core.runtime.sender_rules import sender_rules
from core.settings import Settings


def rules(account: Account) -> list[FieldError]:
    """What an account's fields ask of one another. Pure."""
    errors = []
    if account.auth not in (AuthMethod.AUTO, AuthMethod.NONE) and account.username is None:
        errors.append(FieldError("/username", "required", f"a login with {account.auth} needs one"))
    logs_in = account.username is not None and account.auth is not AuthMethod.NONE
    plain = account.security is Security.NONE and not target.is_loopback(account.host)
    if logs_in and plain and not account.allow_plaintext_login:
        detail = "a login without TLS goes to loopback only; use starttls or tls, or set allow_plaintext_login"
        errors.append(FieldError("/security", "plaintext_login", detail))
    if account.from_policy is not FromPolicy.KEEP and account.from_address is None:
        errors.append(FieldError("/from_address", "required", f"from_policy {account.from_policy} needs it"))
    if account.from_address is not None:
        try:
            parse_mailbox(account.from_address)
        except AddressError as error:
            errors.append(FieldError("/from_address", "wrong_form", str(error)))
    errors += errors_of(account.reply_rules)
    errors += sender_rules(account.senders, "/senders")
    if not errors and not send_as(account).anyone and account.from_policy is not FromPolicy.KEEP:
        detail = f"from_policy {account.from_policy} sends as it, and it is not among `senders`"
        errors.append(FieldError("/from_address", "not_among_senders", detail))
    return errors


def outside_rules(
    account: Account, sources: SecretSources, before: Account | None, kept: Collection[str] = ()
) -> list[FieldError]:
    """Secrets from outside: instead of those in the database, and only what the start allows. Blocks: reads files.

    What was saved once stays good for a save; whether it can be read, and is no key of the service, is seen at each
    login. `kept`: secrets of `oauth` that are saved already.
    """
    errors = []
    for name, (reference, given) in _outside(account, kept).items():
        pointer = f"/{name.replace('.', '/')}_from"
        word = name.rpartition(".")[2]
        if given:
            detail = f'a {word} is given or saved too; one of them must be null ("{word}": null removes the saved one)'
            errors.append(FieldError(pointer, f"excludes_{word}", detail))
        if before is None or _outside(before).get(name, ("", False))[0] != reference:
            refusal = sources.refusal(reference) or sources.own_key(reference)
            if refusal is not None:
                errors.append(FieldError(pointer, "not_allowed", refusal))
    return errors


def _outside(account: Account, kept: Collection[str] = ()) -> dict[str, tuple[str, bool]]:
    """Secret -> where it lies outside, and whether there is another one."""
    found = {}
    if account.password_from is not None:
        found["password"] = account.password_from, account.password is not None
    for name, reference in outside_of(account.oauth).items():
        found[f"oauth.{name}"] = reference, name in kept or getattr(account.oauth, name) is not None
    return found


def target_rules(account: Account, settings: Settings, before: Account | None) -> list[FieldError]:
    """Where it may connect to. What was saved once stays good, so that another field can be changed."""
    if before is not None and (before.host, before.port) == (account.host, account.port):
        return []
    errors = []
    reason = _host_reason(account.host) or target.forbidden(account.host, allow_private=settings.allow_private_targets)
    if reason is not None:
        errors.append(FieldError("/host", "not_allowed", reason))
    ports = settings.allowed_smtp_ports
    if 0 not in ports and account.port not in ports and not target.is_loopback(account.host):
        allowed = ", ".join(map(str, sorted(ports)))
        errors.append(FieldError("/port", "not_allowed", f"must be one of {allowed} (MPU_ALLOWED_SMTP_PORTS)"))
    return errors


def _host_reason(host: str) -> str | None:
    """Why this is no host; None: it is one. Short forms of IPv4 (127.1, 2130706433) are refused, not guessed."""
    if target.address_of(host) is not None:
        return None
    try:
        socket.inet_aton(host)
    except OSError:
        pass
    else:
        return "is no full IP address"
    try:
        labels = host.rstrip(".").encode("idna").decode("ascii").split(".")
    except UnicodeError:
        return "is no host name"
    fine = all(
        label and len(label) <= 63 and label.replace("-", "").replace("_", "").isalnum() and label[0] != "-"
        for label in labels
    )
    return None if fine else "is no host name"


def ca_file_rules(path: str) -> list[FieldError]:
    """Whether the file holds authorities. Blocks: reads it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would hold the thread
            return [FieldError("/tls_ca_file", "wrong_form", "is no regular file")]
        ssl.create_default_context(cafile=path)
    except FileNotFoundError:
        return [FieldError("/tls_ca_file", "not_found", "there is no such file")]
    except (ssl.SSLError, ValueError):
        return [FieldError("/tls_ca_file", "wrong_form", "holds no PEM certificates")]
    except OSError as error:
        return [FieldError("/tls_ca_file", "unreadable", f"can't be read: {error.strerror}")]
    return []
