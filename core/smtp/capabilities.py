"""What an EHLO reply says (RFC 5321 section 4.1.1.1), and which login to choose from it."""

from __future__ import annotations

from core.domain.account import AuthMethod
from core.domain.reply import Reply
from core.smtp.dialogue import Capabilities, Target


def parse_ehlo(reply: Reply) -> Capabilities:
    """The first line is the greeting; each further one a keyword and its parameters."""
    extensions: dict[str, str] = {}
    mechanisms: set[str] = set()
    for line in reply.lines[1:]:
        keyword, _, parameters = line.strip().partition(" ")
        keyword = keyword.upper()
        if keyword.startswith("AUTH="):  # the form before RFC 2554, still found beside the proper one
            mechanisms.add(keyword[5:])
            mechanisms.update(parameters.upper().split())
        elif keyword == "AUTH":
            mechanisms.update(parameters.upper().split())
        extensions.setdefault(keyword, parameters.strip())
    size = extensions.get("SIZE", "")
    size_limit = int(size) if size.isascii() and size.isdigit() and len(size) <= 20 else 0
    return Capabilities(
        extensions=extensions,
        size_limit=size_limit or None,  # RFC 1870 section 4: 0 means no fixed limit
        pipelining="PIPELINING" in extensions,
        chunking="CHUNKING" in extensions,
        eight_bit_mime="8BITMIME" in extensions,
        smtputf8="SMTPUTF8" in extensions,
        dsn="DSN" in extensions,
        starttls="STARTTLS" in extensions,
        auth=frozenset(mechanisms - {""}),
    )


def login_wanted(target: Target) -> bool:
    """Whether the target is to be logged in to."""
    if target.auth is AuthMethod.NONE:
        return False
    return target.auth is not AuthMethod.AUTO or bool(target.username)


def choose_mechanism(target: Target, offered: frozenset[str], *, encrypted: bool) -> AuthMethod | None:
    """The mechanism to log in with; None where the server offers none that fits.

    Only one is ever tried: a second try with the same password would count as a second failure at the provider.
    """
    if target.auth is not AuthMethod.AUTO:
        return target.auth if target.auth.value.upper() in offered else None
    if target.token is not None:
        order = [AuthMethod.XOAUTH2]
    elif encrypted:  # under TLS, PLAIN is the one that servers get right
        order = [AuthMethod.PLAIN, AuthMethod.LOGIN, AuthMethod.CRAM_MD5]
    else:
        order = [AuthMethod.CRAM_MD5, AuthMethod.PLAIN, AuthMethod.LOGIN]
    return next((method for method in order if method.value.upper() in offered), None)
