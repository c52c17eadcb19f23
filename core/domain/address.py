"""Mailboxes as they go between `<` and `>` on the wire: an allow-list grammar.

RFC 5321 section 4.1.2, with RFC 6531 section 3.3 for what is not ASCII.

Guarantee: `str(mailbox)` holds no control character, no line end, no angle bracket outside a quoted string and no
second mailbox, so it can be written into a command as it is. What does not fit is refused with a reason; nothing is
repaired. Source routes, address literals (unless allowed) and names without a domain are refused.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

import idna

MAX_LOCAL_OCTETS = 64  # RFC 5321 section 4.5.3.1.1
MAX_DOMAIN_OCTETS = 255  # RFC 5321 section 4.5.3.1.2
MAX_LABEL_OCTETS = 63  # RFC 1035 section 2.3.4

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
# Atomic groups keep what each repetition needs to go back, some 200 octets of memory: only for what is short already.
_PLAIN = re.compile(rf"([{_ATEXT}]++(?>(?:\.[{_ATEXT}]++)*))@({_LABEL}(?>(?:\.{_LABEL})*))")
_PLAIN_OCTETS = re.compile(_PLAIN.pattern.encode("ascii"))
_DOT_ATOM = re.compile(rf"(?!\.)[.{_ATEXT}\u0080-\U0010ffff]++(?<!\.)")  # but for two dots side by side
_QTEXT = r"[ !#-\[\]-~\u0080-\U0010ffff]*+"
_QUOTED = re.compile(rf'"{_QTEXT}(?:\\[ -~]{_QTEXT})*+"')
_DOMAIN = re.compile(rf"{_LABEL}(?>(?:\.{_LABEL})*)")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class AddressError(ValueError):
    """Not a mailbox that could be sent to; the message says why."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A mailbox that fits the grammar. `str()` is what stands between the angle brackets."""

    local: str  # quotes included where it is a quoted string
    domain: str  # as it was written; an address literal with its brackets

    def __str__(self) -> str:
        return f"{self.local}@{self.ascii_domain}"

    @property
    def ascii_domain(self) -> str:
        """The domain with A-labels (RFC 5890), which every server understands."""
        return self.domain if self.domain.isascii() else _a_labels(self.domain)

    @property
    def key(self) -> str:
        """What two spellings of one mailbox have in common: the domain in lower case, the local part to the letter."""
        return f"{self.local}@{self.ascii_domain.lower()}"


def plain_mailbox(octets: bytes) -> str | None:
    """The mailbox that these octets are, where it is of the plainest form: what parse_mailbox would give. Else None."""
    if len(octets) > MAX_LOCAL_OCTETS or _PLAIN_OCTETS.fullmatch(octets) is None:
        return None
    return octets.decode("ascii")


def parse_mailbox(text: str | bytes, *, allow_literal: bool = False) -> Mailbox:
    """The mailbox that `text` is, to the last character. Raises AddressError with the reason.

    Octets are taken as UTF-8. `allow_literal` admits `user@[192.0.2.1]` and `user@[IPv6:...]`.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            raise AddressError("it is not valid UTF-8") from None
    if len(text) <= MAX_LOCAL_OCTETS and (plain := _PLAIN.fullmatch(text)) is not None:
        return Mailbox(plain[1], plain[2])  # too short to break a limit
    if not text:
        raise AddressError("it is empty")
    if _CONTROL.search(text):
        raise AddressError("it contains a control character or a line end")
    if not text.isascii() and _LONE_SURROGATE.search(text):
        raise AddressError("it is not valid UTF-8")  # octets that were decoded with surrogateescape
    local, domain = _halves(text)
    _check_local(local)
    _check_domain(domain, allow_literal=allow_literal)
    return Mailbox(local, domain)


def quoted_end(text: str) -> int:
    """Where the quoted string ends that the text begins with; 0: it begins with none."""
    quoted = _QUOTED.match(text)
    return quoted.end() if quoted else 0


def _halves(text: str) -> tuple[str, str]:
    if text.startswith("@"):
        raise AddressError("it begins with '@': no local part, or a source route")
    at = quoted_end(text) or text.find("@")
    if at < 0:
        raise AddressError("it has no '@' and so no domain")
    if text[at : at + 1] != "@":
        raise AddressError("a quoted local part must be followed by '@'")
    return text[:at], text[at + 1 :]


def _check_local(local: str) -> None:
    dot_atom = _DOT_ATOM.fullmatch(local) is not None and ".." not in local
    if not (dot_atom or _QUOTED.fullmatch(local)):
        raise AddressError("its local part holds characters that must not stand there unquoted")
    if not local.isprintable():
        raise AddressError("its local part holds invisible characters")
    if len(local.encode(errors="surrogatepass")) > MAX_LOCAL_OCTETS:
        raise AddressError(f"its local part is longer than {MAX_LOCAL_OCTETS} octets")


def _check_domain(domain: str, *, allow_literal: bool) -> None:
    if not domain:
        raise AddressError("it has no domain")
    if len(domain) > MAX_DOMAIN_OCTETS:
        raise AddressError(f"its domain is longer than {MAX_DOMAIN_OCTETS} octets")
    if "@" in domain:
        raise AddressError("it has more than one '@'")
    if domain.startswith("["):
        _check_literal(domain, allow_literal=allow_literal)
        return
    ascii_domain = domain if domain.isascii() else _a_labels(domain)
    if any(len(label) > MAX_LABEL_OCTETS for label in ascii_domain.split(".")):
        raise AddressError(f"a label of its domain is longer than {MAX_LABEL_OCTETS} octets")
    if not _DOMAIN.fullmatch(ascii_domain):
        raise AddressError("its domain is not a name of letters, digits, hyphens and dots")


def _check_literal(domain: str, *, allow_literal: bool) -> None:
    if not allow_literal:
        raise AddressError("address literals are not allowed")
    inner = domain[1:-1]
    try:
        ip = ipaddress.IPv6Address(inner[5:]) if inner[:5].lower() == "ipv6:" else ipaddress.IPv4Address(inner)
    except ValueError:
        ip = None
    if ip is None or not domain.endswith("]") or "%" in inner:
        raise AddressError("its address literal is not an IP address")


def _a_labels(domain: str) -> str:
    if len(domain) > MAX_DOMAIN_OCTETS:
        raise AddressError(f"its domain is longer than {MAX_DOMAIN_OCTETS} octets")
    try:
        encoded = idna.encode(domain, uts46=True, transitional=False).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        raise AddressError("its internationalised domain is not valid (IDNA 2008)") from None
    if len(encoded) > MAX_DOMAIN_OCTETS:
        raise AddressError(f"its domain is longer than {MAX_DOMAIN_OCTETS} octets")
    return encoded
