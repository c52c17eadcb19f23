"""The lines of an envelope, and the second wall against injected commands (the first is core.domain.address).

Whatever reaches this file with CR, LF, NUL, other controls, a space outside quotes, or angle brackets outside quotes
raises ValueError; nothing of the transaction is sent then.
"""

from __future__ import annotations

import re

from core.smtp.dialogue import Capabilities, RecipientLike, Transaction

_MAILBOX = re.compile(
    r'(?:[^\x00-\x20\x7f-\xa0"<>\\@(),;:\[\]]+|"(?:[^\x00-\x1f\x7f-\x9f"\\]|\\[\x20-\x7e])*")'
    r"@[^\x00-\x20\x7f-\xa0\"<>\\@()\u2028\u2029]+"
)
_PARAMETER = re.compile(r"[!-;?-~]+")  # printable ASCII but "<", "=", ">"
_RET = re.compile(r"FULL|HDRS", re.IGNORECASE)


def check_mailbox(mailbox: str) -> None:
    """Raise ValueError unless it can be written between < and > on a command line without changing its meaning."""
    if len(mailbox) > 1000 or _MAILBOX.fullmatch(mailbox) is None:
        raise ValueError(f"not a mailbox: {mailbox!r}")


def _parameter(name: str, value: str) -> str:
    if _PARAMETER.fullmatch(value) is None or len(value) > 1000:
        raise ValueError(f"not a value for {name}: {value!r}")
    return f" {name}={value}"


def mail_line(tx: Transaction, capabilities: Capabilities) -> bytes:
    """MAIL FROM with the parameters that the server offers. Raises ValueError."""
    if tx.sender:
        check_mailbox(tx.sender)
    line = f"MAIL FROM:<{tx.sender}>"
    if "SIZE" in capabilities.extensions:
        line += f" SIZE={tx.body.size}"
    if tx.eight_bit:
        if not capabilities.eight_bit_mime:
            raise ValueError("the content has octets over 127 and the server does not offer 8BITMIME")
        line += " BODY=8BITMIME"
    if tx.smtputf8:
        if not capabilities.smtputf8:
            raise ValueError("the mail needs SMTPUTF8 and the server does not offer it")
        line += " SMTPUTF8"
    if capabilities.dsn:
        if tx.ret is not None:
            if _RET.fullmatch(tx.ret) is None:
                raise ValueError(f"not a value for RET: {tx.ret!r}")
            line += f" RET={tx.ret.upper()}"
        if tx.envid is not None:
            line += _parameter("ENVID", tx.envid)
    return _encoded(line, tx)


def rcpt_line(recipient: RecipientLike, tx: Transaction, capabilities: Capabilities) -> bytes:
    """RCPT TO with the parameters that the server offers. Raises ValueError."""
    mailbox = recipient.mailbox
    check_mailbox(mailbox)
    line = f"RCPT TO:<{mailbox}>"
    if capabilities.dsn:
        if recipient.notify is not None:
            line += _parameter("NOTIFY", recipient.notify)
        if recipient.orcpt is not None:
            line += _parameter("ORCPT", recipient.orcpt)
    return _encoded(line, tx)


def _encoded(line: str, tx: Transaction) -> bytes:
    if not line.isascii() and not tx.smtputf8:
        raise ValueError("the mailbox is not ASCII and SMTPUTF8 is not asked for")
    return line.encode() + b"\r\n"
