"""Whose fault a refusal is, and what follows: the one file that owns this question (providers.md).

A reply is looked up in RULES, first match wins: by phase, code, enhanced code and text, never by the first digit alone.
What no row knows goes by the general rule of its phase:

    connect, banner, EHLO, STARTTLS   the account's, passing: one bad banner at night must not stop the mail for good
    AUTH 5xx                          the account's, until somebody resumes or edits it; never loop on a login
    AUTH 4xx                          the account's, passing
    MAIL 5xx                          the sender's: this From may not use this account
    RCPT 5xx / 4xx                    the recipient's, final / passing
    DATA, body, final dot 5xx         the message's, final
    anything else                     transient

Before MAIL nobody is to blame but the account, and nothing but a login refused for good stands until somebody acts.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from core.domain.outcome import Blame
from core.domain.reply import Phase, Reply

MINUTE = 60.0
HOUR = 3600.0
DAY = 86_400.0

_SESSION = frozenset({Phase.DNS, Phase.CONNECT, Phase.TLS, Phase.BANNER, Phase.EHLO, Phase.STARTTLS})
_ENVELOPE = frozenset({Phase.MAIL, Phase.RCPT})
_CONTENT = frozenset({Phase.DATA, Phase.BODY, Phase.DOT})
_MAIL_ON = _ENVELOPE | _CONTENT
_RECIPIENTS_KNOWN = _CONTENT | {Phase.RCPT}
_LOGGED_IN = _MAIL_ON | {Phase.AUTH, Phase.RSET}  # a banner, whatever it says, is no verdict for good
_ANY = _SESSION | _LOGGED_IN


@dataclass(frozen=True, slots=True)
class Ruling:
    """Whose fault, whether for good, and, where it is the account's, how long it rests.

    `pause_seconds` None: until an operator resumes or edits the account. `passing`: doubles from one to the next.
    """

    blame: Blame
    final: bool
    code: str
    remedy: str = ""
    pause_seconds: float | None = None
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: in which phases, which codes, which enhanced codes and texts (regular expressions; None: any)."""

    phases: frozenset[Phase]
    codes: str
    enhanced: str | None
    text: str | None
    ruling: Ruling
    of_sender: bool = False  # not if the addresses that the text names are all recipients'

    def matches(self, phase: Phase, reply: Reply) -> bool:
        """Whether this row is about that reply."""
        return (
            phase in self.phases
            and re.fullmatch(self.codes, str(reply.code)) is not None
            and (self.enhanced is None or re.fullmatch(self.enhanced, reply.enhanced_code or "") is not None)
            and (self.text is None or re.search(self.text, reply.text, re.IGNORECASE) is not None)
        )


def _account(code: str, remedy: str, pause_seconds: float | None, *, passing: bool = False) -> Ruling:
    return Ruling(Blame.ACCOUNT, final=False, code=code, remedy=remedy, pause_seconds=pause_seconds, passing=passing)


_FEWER = _account(
    "too_many_connections",
    "Lower the account's max_connections: another program may use the same mailbox.",
    90.0,
)
_QUOTA = _account("quota_exceeded", "Wait for the provider's quota, or add another account to the directory.", HOUR)
TENANT_BLOCKED = "tenant_blocked"  # the fault of every account of that domain
_TENANT = _account(
    TENANT_BLOCKED, "The provider limits the whole tenant: ask its administrator to lift the block.", None
)
_PUNISHED = _account(
    "mailbox_refuses", "Look into the sending mailbox at the provider (full, blocked), then resume the account.", None
)
_BASIC_OFF = _account(
    "login_refused",
    "The provider refuses this login. Check user name and password; where basic authentication is off, "
    "use XOAUTH2 or have SMTP AUTH enabled for the mailbox, then save or resume the account.",
    None,
)
_LOGIN_NEEDED = _account("login_required", "The server wants a login: set username and password of the account.", None)
_SLOWER = _account("sending_too_fast", "Nothing to do: MPU slows down by itself.", 10.0, passing=True)
_SENDER = Ruling(
    Blame.SENDER, final=True, code="sender_refused", remedy="Let the account send as this address, or set from_address."
)
_RECIPIENT_FINAL = Ruling(
    Blame.RECIPIENT, final=True, code="recipient_refused", remedy="Correct the address and retry from badmail."
)
_RECIPIENT_LATER = Ruling(Blame.RECIPIENT, final=False, code="recipient_deferred")
_MESSAGE = Ruling(
    Blame.MESSAGE, final=True, code="message_refused", remedy="Correct the mail, or ask the provider why it is refused."
)
# delivery.py: where others were taken, these go in a new transaction at once
_REST_NOW = Ruling(Blame.MESSAGE, final=False, code="too_many_recipients")
_LATER = Ruling(Blame.TRANSIENT, final=False, code="try_later")

RULES: tuple[Rule, ...] = (
    # too many connections or logins at once
    Rule(_ANY, "4..", r"4\.3\.2", r"concurrent connections|sender thread limit", _FEWER),
    Rule(_ANY, "421", None, r"too many (concurrent )?(smtp )?connections", _FEWER),
    Rule(_ANY, "454", r"4\.7\.0", r"too many login", _account("login_throttled", "Wait; sessions are kept.", 900.0)),
    # quotas, some of them 5xx
    Rule(_ANY, "5..", None, r"SubmissionQuotaExceeded", _QUOTA),
    Rule(_ANY, "550", r"5\.1\.90", None, _QUOTA),
    Rule(_ANY, "550", r"5\.4\.5", r"(daily|sending) .*limit|limit exceeded|quota", _QUOTA),
    Rule(_ANY, "550", r"5\.7\.1", r"daily smtp relay limit", _QUOTA),
    Rule(_ANY, "454", None, r"daily message quota exceeded", _QUOTA),
    # rate
    Rule(_ANY, "454", None, r"maximum sending rate exceeded", _SLOWER),
    Rule(_ANY, "450", r"4\.2\.1", r"peak smtp relay limit", _SLOWER),
    # the tenant, the mailbox
    Rule(_LOGGED_IN, "550", r"5\.7\.23[23]", None, _TENANT),
    Rule(_LOGGED_IN, "550", r"5\.2\.25[1-5]", None, _PUNISHED),
    Rule(_CONTENT, "554", r"5\.2\.2", r"STOREDRV\.Submission", _PUNISHED),
    # the sender may not use this account
    Rule(_MAIL_ON, "5..", None, r"SendAsDenied", _SENDER),
    Rule(_MAIL_ON, "550", r"5\.7\.60", None, _SENDER),
    Rule(_CONTENT, "554", None, r"email address is not verified", _SENDER, of_sender=True),
    # logins
    Rule(_LOGGED_IN, "535", r"5\.7\.(139|3)", None, _BASIC_OFF),
    Rule(_LOGGED_IN, "53[45]", r"5\.7\.[89]", None, _BASIC_OFF),
    Rule(_LOGGED_IN, "5..", r"5\.7\.57", None, _BASIC_OFF),
    Rule(_LOGGED_IN, "550", r"5\.7\.30", None, _BASIC_OFF),
    Rule(_MAIL_ON, "530", None, None, _LOGIN_NEEDED),
    Rule(_MAIL_ON, "538", None, None, _LOGIN_NEEDED),
    # the receiving side's moods
    Rule(_MAIL_ON, "421", r"4\.(3\.0|4\.5|7\.0|7\.28)", None, _LATER),
    Rule(_MAIL_ON, "451", r"4\.7\.500", None, _LATER),
    Rule(_RECIPIENTS_KNOWN, "450", r"4\.2\.1", None, _RECIPIENT_LATER),
    Rule(_RECIPIENTS_KNOWN, "452", r"4\.2\.2", None, _RECIPIENT_LATER),
    # more recipients than one transaction may have (RFC 5321 section 4.5.3.1.10)
    Rule(frozenset({Phase.RCPT}), "452", r"4\.5\.3", None, _REST_NOW),
    Rule(frozenset({Phase.RCPT}), "452|552", None, r"too many recipients", _REST_NOW),
    # the recipient, for good
    Rule(_RECIPIENTS_KNOWN, "550", r"5\.(1\.1|1\.10|2\.1)", None, _RECIPIENT_FINAL),
    # the message, for good
    Rule(_MAIL_ON, "5..", r"5\.(3\.4|2\.3|6\.\d+)", None, _MESSAGE),
    Rule(_MAIL_ON, "552", None, r"message is too (long|large|big)|message size exceeds", _MESSAGE),
    Rule(_CONTENT | {Phase.MAIL}, "501", r"5\.5\.2", None, _MESSAGE),
)

_AUTH_REFUSED = _BASIC_OFF
_AUTH_LATER = _account("login_deferred", "Nothing to do: MPU tries again by itself.", MINUTE, passing=True)
_SESSION_REFUSED = _account("server_refuses", "Ask the provider why it refuses the connection.", MINUTE, passing=True)


def judge(phase: Phase, reply: Reply, *, sender: str = "", recipients: Collection[str] = ()) -> Ruling:
    """Whose fault a 4xx or 5xx reply in that phase is. An enhanced code that contradicts the code loses.

    `sender` and `recipients`: the mailboxes of the envelope, for replies that name who is meant.
    """
    for rule in RULES:
        if rule.matches(phase, reply) and not (rule.of_sender and _names_recipients(reply, sender, recipients)):
            return rule.ruling
    return _general(phase, permanent=reply.severity == 5)


_ADDRESS = re.compile(r"[^\s<>,;:]+@[^\s<>,;:]+")


def _names_recipients(reply: Reply, sender: str, recipients: Collection[str]) -> bool:
    """Whether the text names recipients alone (SES's sandbox wants theirs verified too)."""
    named = {address.casefold() for address in _ADDRESS.findall(reply.text)}
    return bool(named) and sender.casefold() not in named and named <= {r.casefold() for r in recipients}


def _general(phase: Phase, *, permanent: bool) -> Ruling:
    if phase in _SESSION:
        return _SESSION_REFUSED
    if phase is Phase.AUTH:
        return _AUTH_REFUSED if permanent else _AUTH_LATER
    if phase is Phase.RCPT:
        return _RECIPIENT_FINAL if permanent else _RECIPIENT_LATER
    if permanent and phase is Phase.MAIL:
        return _SENDER
    return _MESSAGE if permanent and phase in _CONTENT else _LATER
