"""Who may send as whom: lists of addresses and `@domains`, and what they say of a sender.

`shop@example.com` is that address, compared without the case of ASCII letters: RFC 5321 section 2.4 lets only the
domain's own server tell `Shop` from `shop`, and people write both. `@example.com` is every address of that domain, not
of its subdomains. Domains count with A-labels, however they were written. What is sent stays as it was written.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import Final

from core.domain.account import Account, FromPolicy
from core.domain.address import AddressError, parse_mailbox

_LOWER: Final = dict(zip(map(ord, ascii_uppercase), ascii_lowercase, strict=True))


def sender_entry(text: str) -> str:
    """An entry in the form that is compared. Raises AddressError where it is neither an address nor an @domain."""
    if text.startswith("@"):
        if "@" in text[1:]:
            raise AddressError("it has more than one '@'")
        return _folded(parse_mailbox(f"x{text}").key[1:])
    try:
        return _folded(parse_mailbox(text).key)
    except AddressError as error:
        if "@" in text:
            raise
        raise AddressError(f"{error}; a whole domain is written with a leading '@'") from None


def sender_key(mailbox: str) -> str:
    """What is compared of an envelope's sender, which has A-labels already (core/domain/envelope.py)."""
    return _folded(mailbox)


def _folded(text: str) -> str:
    """ASCII letters in lower case, all else to the letter: no more is known of other servers' local parts."""
    return text.lower() if text.isascii() else text.translate(_LOWER)


def domain_of(key: str) -> str:
    """The `@domain` of a key."""
    return key[key.rfind("@") :]


@dataclass(frozen=True, slots=True)
class SendAs:
    """What an account's settings say of senders, made for look-ups.

    `own`: the address that takes the sender's place (`from_policy` replace or reply_to); then the account's `senders`
    are about that address.
    """

    senders: frozenset[str] = frozenset()
    own: str | None = None

    @property
    def anyone(self) -> bool:
        """Every sender may go through it."""
        return not self.senders or (self.own is not None and self._name(self.own))

    def allows(self, key: str) -> bool:
        """Whether mail of this sender may go through it; that of the null sender ("") goes everywhere."""
        return not key or not self.senders or self._name(self.own or key)

    def allows_some(self, entry: str, but: Container[str] = ()) -> bool:
        """Whether a sender that the entry (an address or an @domain, `sender_entry`) names may go through it.

        `but`: addresses that don't count for their domain.
        """
        if not entry.startswith("@") or not self.senders or self.own is not None:
            return self.allows(entry)
        return any(own == entry or (domain_of(own) == entry and own not in but) for own in self.senders)

    def _name(self, key: str) -> bool:
        return key in self.senders or domain_of(key) in self.senders


ANYONE: Final = SendAs()


def send_as(account: Account) -> SendAs:
    """Of an account as it is saved; an entry that is no sender names nobody."""
    if not account.senders:
        return ANYONE
    own = None
    if account.from_address and account.from_policy is not FromPolicy.KEEP:
        own = sender_entry(account.from_address)
    return SendAs(frozenset(_entries(account.senders)), own)


def _entries(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        try:
            yield sender_entry(text)
        except AddressError:  # not saved by the rules of a save
            yield text
