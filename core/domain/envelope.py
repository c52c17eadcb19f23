"""The envelope: what SMTP is told, as opposed to what the header says (writers.md, "Envelope").

- X-Sender (one) and X-Receiver (one or more) are the envelope where both are there; the other fields then don't count.
  Behind the bracketed address RET, ENVID, NOTIFY and ORCPT are kept (RFC 3461), if they are valid; others are ignored.
- Else the newest block of Resent-* fields (RFC 5322 section 3.6.6) where there is one.
- Else Sender, or the one From; and To, Cc, Bcc.

A wrong sender makes the message unsendable (5.1.7). A wrong recipient fails alone, as `rejected`, while there are
others (5.1.3). Recipients keep their order; the second of two equal ones is dropped: domains are compared without case,
local parts to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from io import StringIO
from typing import Literal

from core.domain.account import FromPolicy
from core.domain.address import AddressError, Mailbox, parse_mailbox, plain_mailbox
from core.domain.address_list import Entry, address_entries, without_route
from core.domain.header import Field, Header
from core.domain.printable import printable
from core.errors import MessageRejected

Source = Literal["x-headers", "headers", "resent"]

_QUOTE = r'"[^"\\]*+(?:\\.[^"\\]*+)*+'  # without the closing one: where that lacks no bracket follows (address_list.py)
_BRACKETED = re.compile(
    rf'([^<>"\\]*+(?:{_QUOTE}"?+[^<>"\\]*+)*+)<([^<>"]*+(?:{_QUOTE}"?+[^<>"]*+)*+)>(.*)',
    re.DOTALL,
)
_QUOTED = re.compile(rf'{_QUOTE}"', re.DOTALL)
_ENCODED = re.compile(r"=\?[^?\s]++\?[BbQq]\?[^?\s]*+\?=")
_SECOND_ADDRESS = re.compile(r"\A[,;]|(?:\A|\s)[^\s=<>@,]*+[<>@,]")  # in a word that is no KEYWORD=value
_PARAMETER = re.compile(r"\S++")
_KEYWORDS = frozenset({"RET", "ENVID", "NOTIFY", "ORCPT"})
_XTEXT = r"(?>(?:[!-*,-<>-~]|\+[0-9A-F]{2})+)"  # RFC 3461 section 4
_ENVID = re.compile(_XTEXT)
_ORCPT = re.compile(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.\-]++;{_XTEXT}")
_NOTIFY = re.compile(r"NEVER|(?:SUCCESS|FAILURE|DELAY)(?>(?:,(?:SUCCESS|FAILURE|DELAY))*)")
_MAX_ENVID = 100  # RFC 3461 section 4.4
_MAX_ORCPT = 500  # RFC 3461 section 4.2
_MAX_NOTIFY = 500  # what a RCPT line grows by at most (RFC 3461 section 4); each word once takes 21
_SHOWN = 320


@dataclass(slots=True)  # one a message (core/domain)
class Recipient:
    """One recipient: the mailbox as it goes between `<` and `>`, and its RFC 3461 parameters."""

    mailbox: str
    notify: str | None = None  # NEVER, or a list of SUCCESS, FAILURE, DELAY
    orcpt: str | None = None  # addr-type;xtext


@dataclass(slots=True)  # one a message (core/domain)
class Envelope:
    """Sender, recipients and their parameters; `sender` "" is the null sender."""

    sender: str
    recipients: tuple[Recipient, ...]
    ret: str | None = None  # FULL or HDRS
    envid: str | None = None  # xtext
    source: Source = "headers"
    rejected: tuple[tuple[str, str], ...] = ()  # a recipient that is no mailbox, as written, and why: 5.1.3


def envelope_of(header: Header, *, max_recipients: int) -> Envelope:
    """The envelope that a message asks for.

    Raises MessageRejected: 5.1.7 sender missing, ambiguous or wrong; 5.1.3 no recipient or none that is a mailbox;
    5.5.3 more than `max_recipients`.
    """
    if b"x-sender" in header.by_name and b"x-receiver" in header.by_name:
        return _from_x_headers(header, max_recipients)
    block = _newest_resent(header)
    if block:
        return _from_resent(header, block, max_recipients)
    sender = _only_mailbox(header.values(b"sender")[:1], "Sender") or _from_sender(header)
    entries = (
        entry for name in (b"to", b"cc", b"bcc") for value in header.values(name) for entry in address_entries(value)
    )
    recipients, rejected = _collect(((entry.mailbox, entry, "") for entry in entries), max_recipients)
    return Envelope(sender, recipients, source="headers", rejected=rejected)


def rewrite_sender(envelope: Envelope, from_address: str | None, policy: FromPolicy) -> Envelope:
    """The envelope for an account that replaces From: its address is the sender, unless that is the null sender."""
    if not from_address or policy is FromPolicy.KEEP or not envelope.sender:
        return envelope
    return replace(envelope, sender=str(parse_mailbox(from_address)))


# --- X-Sender and X-Receiver ------------------------------------------------------------------------------------------


def _from_x_headers(header: Header, max_recipients: int) -> Envelope:
    senders = header.by_name[b"x-sender"]
    if len(senders) > 1:
        raise MessageRejected("5.1.7", f"there are {len(senders)} X-Sender fields; one is allowed")
    value = header.value(senders[0])
    receivers = header.by_name[b"x-receiver"]
    if len(receivers) == 1:  # nearly all mail: one plain address each
        plain_sender, plain_receiver = plain_mailbox(value), plain_mailbox(header.value(receivers[0]))
        if plain_sender is not None and plain_receiver is not None:
            return Envelope(plain_sender, (Recipient(plain_receiver),), source="x-headers")
    try:
        address, parameters = _x_value(value)
        sender = "" if not address and b"<" in value else str(parse_mailbox(address))
    except AddressError as error:
        raise MessageRejected("5.1.7", f"X-Sender {_show(value)!r} is not a mailbox: {error}") from None
    found = _parameters(parameters)
    ret = found.get("RET", "").upper()
    envid = found.get("ENVID", "")
    recipients, rejected = _collect((_x_receiver(header.value(field)) for field in receivers), max_recipients)
    return Envelope(
        sender,
        recipients,
        ret if ret in ("FULL", "HDRS") else None,
        envid if len(envid) <= _MAX_ENVID and _ENVID.fullmatch(envid) else None,
        "x-headers",
        rejected,
    )


def _x_receiver(value: bytes) -> tuple[Mailbox | None, Entry | None, str]:
    try:
        address, parameters = _x_value(value)
        return parse_mailbox(address), None, parameters
    except AddressError as error:
        return None, Entry(_show(value), "", None, str(error)), ""


def _x_value(value: bytes) -> tuple[str, str]:
    """The address and the parameters behind it. Raises AddressError."""
    text = value.decode("utf-8", "surrogateescape")
    if "<" not in text:
        return text, ""
    match = _BRACKETED.fullmatch(text)
    if match is None:
        raise AddressError("its brackets or quotes don't pair")
    display, angle, parameters = match.groups()
    if display and "@" in display and "," in _without(_ENCODED, _without(_QUOTED, display)):
        raise AddressError("there is more than one address in it")
    parameters = parameters.strip()
    if parameters and _SECOND_ADDRESS.search(parameters):
        raise AddressError("there is more than one address in it")
    return without_route(angle), parameters


def _without(pattern: re.Pattern[str], text: str) -> str:
    """What `pattern.sub` gives, which keeps a string for each piece until the end."""
    kept = StringIO()
    position = 0
    for match in pattern.finditer(text):
        kept.write(text[position : match.start()])
        position = match.end()
    kept.write(text[position:])
    return kept.getvalue()


def _parameters(text: str) -> dict[str, str]:
    """KEYWORD=value pairs of those that are kept, keywords in upper case; the first of two counts."""
    found: dict[str, str] = {}
    for word in _PARAMETER.finditer(text):
        keyword, equals, value = word[0].partition("=")
        if equals and (keyword := keyword.upper()) in _KEYWORDS:
            found.setdefault(keyword, value)
    return found


def _recipient(mailbox: str, parameters: str) -> Recipient:
    if not parameters:
        return Recipient(mailbox)
    found = _parameters(parameters)
    notify = found.get("NOTIFY", "").upper()
    orcpt = found.get("ORCPT", "")
    return Recipient(
        mailbox,
        notify if len(notify) <= _MAX_NOTIFY and _NOTIFY.fullmatch(notify) else None,
        orcpt if len(orcpt) <= _MAX_ORCPT and _ORCPT.fullmatch(orcpt) else None,
    )


# --- header fields ----------------------------------------------------------------------------------------------------


def _from_sender(header: Header) -> str:
    """The sender where no Sender field names one."""
    values = header.values(b"from")
    if not values:
        raise MessageRejected("5.1.7", "there is no sender: no X-Sender with X-Receiver, no Sender, no From")
    return _only_mailbox(values, "From")


def _only_mailbox(values: list[bytes], name: str) -> str:
    """The one mailbox of these fields; "" where there are no fields. Raises MessageRejected 5.1.7."""
    if not values:
        return ""
    entries = (entry for value in values for entry in address_entries(value))
    first = next(entries, None)
    if first is None:
        raise MessageRejected("5.1.7", f"{name} names no mailbox")
    more = sum(1 for _ in entries)
    if more:
        raise MessageRejected("5.1.7", f"{name} names {more + 1} mailboxes and no Sender says which one sends")
    if first.mailbox is None:
        raise MessageRejected("5.1.7", f"{name} {first.text!r} is not a mailbox: {first.reason}")
    return str(first.mailbox)


def _newest_resent(header: Header) -> dict[bytes, list[Field]]:
    """The topmost block of Resent-* fields: to the first that comes again, or to a trace field."""
    block: dict[bytes, list[Field]] = {}
    if not any(name.startswith(b"resent-") for name in header.by_name):
        return block
    for field in header.fields:
        name = field[0]
        if name.startswith(b"resent-"):
            if name in block:
                break
            block[name] = [field]
        elif block and name in (b"received", b"return-path"):
            break
    return block


def _from_resent(header: Header, block: dict[bytes, list[Field]], max_recipients: int) -> Envelope:
    def values(name: bytes) -> list[bytes]:
        return [header.value(field) for field in block.get(name, ())]

    sender = _only_mailbox(values(b"resent-sender"), "Resent-Sender")
    sender = sender or _only_mailbox(values(b"resent-from"), "Resent-From")
    sender = sender or _only_mailbox(header.values(b"sender")[:1], "Sender") or _from_sender(header)
    entries = (
        entry
        for name in (b"resent-to", b"resent-cc", b"resent-bcc")
        for value in values(name)
        for entry in address_entries(value)
    )
    recipients, rejected = _collect(((entry.mailbox, entry, "") for entry in entries), max_recipients)
    return Envelope(sender, recipients, source="resent", rejected=rejected)


# --- both -------------------------------------------------------------------------------------------------------------


def _collect(
    found: Iterable[tuple[Mailbox | None, Entry | None, str]], max_recipients: int
) -> tuple[tuple[Recipient, ...], tuple[tuple[str, str], ...]]:
    """Recipients without duplicates, and what is no mailbox. Raises MessageRejected."""
    recipients: dict[str, Recipient] = {}
    rejected: dict[str, str] = {}
    for mailbox, entry, parameters in found:
        if mailbox is not None:
            key = mailbox.key
            if key not in recipients:
                recipients[key] = _recipient(str(mailbox), parameters)
        elif entry is not None:
            rejected.setdefault(printable(entry.text), entry.reason)
        if len(recipients) + len(rejected) > max_recipients:
            raise MessageRejected("5.5.3", f"there are more than {max_recipients} recipients")
    if not recipients:
        if not rejected:
            raise MessageRejected("5.1.3", "there is no recipient")
        text, reason = next(iter(rejected.items()))
        more = f", and {len(rejected) - 1} more like it" if len(rejected) > 1 else ""
        raise MessageRejected("5.1.3", f"no recipient is a mailbox: {text!r}: {reason}{more}")
    return tuple(recipients.values()), tuple(rejected.items())


def _show(value: bytes) -> str:
    return value[:_SHOWN].decode("utf-8", "replace")
