"""Whose fault a refusal is, and what follows: the one file that owns this question (providers.md).

A reply is looked up in RULES, from the top, first match wins: by phase, code, enhanced code and text, never by the
first digit alone. The last rows are the general rule, for what no other row knows. An account's own rows
(reply_rules.py) come before the table.

Before MAIL nobody is to blame but the account, and nothing but a login refused for good stands until somebody acts: one
bad banner at night must not stop the mail for good.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from core.domain.outcome import Blame
from core.domain.reply import Phase, Reply

MINUTE = 60.0
HOUR = 3600.0
DAY = 86_400.0
SEARCHED_CHARS = 500  # of a reply's text: what counts stands at its beginning, and a server may say a lot

SESSION = frozenset({Phase.DNS, Phase.CONNECT, Phase.TLS, Phase.BANNER, Phase.EHLO, Phase.STARTTLS})
_ENVELOPE = frozenset({Phase.MAIL, Phase.RCPT})
_CONTENT = frozenset({Phase.DATA, Phase.BODY, Phase.DOT})
_MAIL_ON = _ENVELOPE | _CONTENT
_RECIPIENTS_KNOWN = _CONTENT | {Phase.RCPT}
_LOGGED_IN = _MAIL_ON | {Phase.AUTH, Phase.RSET}  # a banner, whatever it says, is no verdict for good
_ANY = SESSION | _LOGGED_IN
BEFORE_MAIL = SESSION | {Phase.AUTH}


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
    origin: str = ""  # who says so, where it isn't the table


@dataclass(frozen=True, slots=True)
class Said:
    """What a row looks at. `texts`: as it is shown and, of several lines, without their enhanced codes in between."""

    code: str
    enhanced: str
    texts: tuple[str, ...]

    @classmethod
    def of(cls, reply: Reply) -> Said:
        text = reply.text[:SEARCHED_CHARS]
        if len(reply.lines) < 2:
            return cls(str(reply.code), reply.enhanced_code or "", (text,))
        words = " ".join(_LEADING_ENHANCED.sub("", line) for line in reply.lines if line)[:SEARCHED_CHARS]
        return cls(str(reply.code), reply.enhanced_code or "", (text, words))


_LEADING_ENHANCED = re.compile(r"^[245]\.\d{1,3}\.\d{1,3}\s+")


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: in which phases, which codes, which enhanced codes, words of the text (None: any)."""

    phases: frozenset[Phase]
    codes: re.Pattern[str]
    enhanced: re.Pattern[str] | None
    text: re.Pattern[str] | None
    ruling: Ruling
    of_sender: bool = False  # not if the addresses that the text names are all recipients'

    def matches(self, said: Said) -> bool:
        """Whether this row is about that reply, in one of its phases."""
        return (
            self.codes.fullmatch(said.code) is not None
            and (self.enhanced is None or self.enhanced.fullmatch(said.enhanced) is not None)
            and (self.text is None or any(self.text.search(text) is not None for text in said.texts))
        )


def row(
    phases: frozenset[Phase],
    codes: str,
    enhanced: str | None,
    text: str | None,
    ruling: Ruling,
    *,
    of_sender: bool = False,
) -> Rule:
    """A row from its regular expressions: whole codes, a part of the text without regard to case. Raises re.error."""
    return Rule(
        phases,
        re.compile(codes),
        None if enhanced is None else re.compile(enhanced),
        None if text is None else re.compile(text, re.IGNORECASE),
        ruling,
        of_sender,
    )


def _account(code: str, remedy: str, pause_seconds: float | None, *, passing: bool = False) -> Ruling:
    return Ruling(Blame.ACCOUNT, final=False, code=code, remedy=remedy, pause_seconds=pause_seconds, passing=passing)


_FEWER = _account(
    "too_many_connections",
    "Lower the account's max_connections: another program may use the same mailbox.",
    90.0,
)
QUOTA_EXCEEDED = "quota_exceeded"
_QUOTA = _account(QUOTA_EXCEEDED, "Wait for the provider's quota, or add another account to the directory.", HOUR)
TENANT_BLOCKED = "tenant_blocked"  # the fault of every account of that domain
QUOTA_CODES = frozenset({QUOTA_EXCEEDED, TENANT_BLOCKED})  # end by themselves, within a day
_TENANT = _account(
    TENANT_BLOCKED,
    "The provider's daily limit for the whole tenant is reached: wait, or ask the tenant's administrator to raise it.",
    HOUR,
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
_LOGIN_LOST = _account("login_required", "Nothing to do: MPU logs in again by itself.", MINUTE, passing=True)
_BLOCKED = _account(
    "account_blocked",
    "The provider refuses all that comes from this account (blocked sender, tenant or address): ask it why.",
    HOUR,
)
_LOGIN_NEEDED = _account("login_required", "The server wants a login: set username and password of the account.", None)
TOO_FAST = "sending_too_fast"
_SLOWER = _account(TOO_FAST, "Nothing to do: MPU slows down by itself.", 10.0, passing=True)
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
_AUTH_LATER = _account("login_deferred", "Nothing to do: MPU tries again by itself.", MINUTE, passing=True)
_SESSION_REFUSED = _account("server_refuses", "Ask the provider why it refuses the connection.", MINUTE, passing=True)

# what a server may say of one recipient, too: where it took others, it is
OF_ONE_TOO = frozenset({_LOGIN_NEEDED.code, _BLOCKED.code})
OF_ONE = Ruling(Blame.RECIPIENT, final=False, code="recipient_deferred")

_LOGIN = frozenset({Phase.AUTH})
_MAIL = frozenset({Phase.MAIL})
_RCPT = frozenset({Phase.RCPT})

# phases, code, enhanced code, text, whose fault
RULES: tuple[Rule, ...] = (
    # too many connections or logins at once
    row(_ANY, "4..", r"4\.3\.2", r"concurrent connections|sender thread limit", _FEWER),
    row(_ANY, "421", None, r"too many (concurrent )?(smtp )?connections", _FEWER),
    row(_ANY, "454", r"4\.7\.0", r"too many login", _account("login_throttled", "Wait; sessions are kept.", 900.0)),
    # quotas, some of them 5xx: kept for up to a day, one message tries each hour
    row(_ANY, "5..", None, r"SubmissionQuotaExceeded", _QUOTA),
    row(_ANY, "550", r"5\.1\.90", None, _QUOTA),
    row(_ANY, "550", r"5\.4\.5", r"daily .*(limit|quota)|sending (limit|quota)", _QUOTA),
    row(_ANY, "550", r"5\.7\.1", r"daily smtp relay limit", _QUOTA),
    row(_ANY, "454", None, r"daily message quota exceeded", _QUOTA),
    # rate
    row(_ANY, "454", None, r"maximum sending rate exceeded", _SLOWER),
    row(_ANY, "450", r"4\.2\.1", r"peak smtp relay limit", _SLOWER),
    # the tenant, the mailbox
    row(_LOGGED_IN, "550", r"5\.7\.23[23]", None, _TENANT),
    row(_LOGGED_IN, "550", r"5\.2\.25[1-5]", None, _PUNISHED),
    row(_CONTENT, "554", r"5\.2\.2", r"STOREDRV\.Submission", _PUNISHED),
    # the sender may not use this account
    row(_MAIL_ON, "5..", None, r"SendAsDenied", _SENDER),
    row(_MAIL_ON, "550", r"5\.7\.60", None, _SENDER),
    row(_CONTENT, "554", None, r"email address is not verified", _SENDER, of_sender=True),
    # logins
    row(_LOGGED_IN, "535", r"5\.7\.(139|3)", None, _BASIC_OFF),
    row(_LOGGED_IN, "53[45]", r"5\.7\.[89]", None, _BASIC_OFF),
    row(_LOGGED_IN, "5..", r"5\.7\.57", None, _BASIC_OFF),
    row(_LOGGED_IN, "550", r"5\.7\.30", None, _BASIC_OFF),
    row(_MAIL_ON, "530|535|538", None, None, _LOGIN_NEEDED),
    row(_MAIL_ON, "503", None, r"\bauth", _LOGIN_LOST),
    # Exchange Online: blocked sender, tenant or address; whoever else blocks the client, at whatever command it says so
    row(_MAIL_ON, "5..", r"5\.7\.(64|50[1238]|511|60[6-9]|6[1-4]\d|7\d\d)", None, _BLOCKED),
    row(_MAIL_ON, "5..", r"5\.1\.8", r"outbound", _BLOCKED),
    row(_ENVELOPE, "5..", None, r"client host (rejected|.*blocked)", _BLOCKED),
    # nothing about the message: the server has lost the session, or knows no such command
    row(_MAIL_ON, "50[023]|555", None, None, _LATER),
    # the receiving side's moods
    row(_MAIL_ON, "421", r"4\.(3\.0|4\.5|7\.0|7\.28)", None, _LATER),
    row(_MAIL_ON, "451", r"4\.7\.500", None, _LATER),
    row(_RECIPIENTS_KNOWN, "450", r"4\.2\.1", None, _RECIPIENT_LATER),
    row(_RECIPIENTS_KNOWN, "452", r"4\.2\.2", None, _RECIPIENT_LATER),
    # more recipients than one transaction may have (RFC 5321 section 4.5.3.1.10)
    row(_RCPT, "452", r"4\.5\.3", None, _REST_NOW),
    row(_RCPT, "452|552", None, r"too many recipients", _REST_NOW),
    # the recipient, for good
    row(_RECIPIENTS_KNOWN, "550", r"5\.(1\.1|1\.10|2\.1)", None, _RECIPIENT_FINAL),
    # the message, for good
    row(_MAIL_ON, "5..", r"5\.(3\.4|2\.3|6\.\d+)", None, _MESSAGE),
    row(_MAIL_ON, "552", None, r"message is too (long|large|big)|message size exceeds", _MESSAGE),
    row(_CONTENT | _MAIL, "501", r"5\.5\.2", None, _MESSAGE),
    # the general rule
    row(SESSION, "...", None, None, _SESSION_REFUSED),
    row(_LOGIN, "5..", None, None, _BASIC_OFF),
    row(_LOGIN, "...", None, None, _AUTH_LATER),
    row(_MAIL, "5..", None, None, _SENDER),  # this From may not use this account
    row(_RCPT, "5..", None, None, _RECIPIENT_FINAL),
    row(_RCPT, "...", None, None, _RECIPIENT_LATER),
    row(_CONTENT, "5..", None, None, _MESSAGE),
    row(frozenset(Phase) - BEFORE_MAIL - _RCPT, "...", None, None, _LATER),
)
_BY_PHASE = {phase: tuple(rule for rule in RULES if phase in rule.phases) for phase in Phase}


def judge(
    phase: Phase, reply: Reply, *, sender: str = "", recipients: Collection[str] = (), own: Sequence[Rule] = ()
) -> Ruling:
    """Whose fault a 4xx or 5xx reply in that phase is. An enhanced code that contradicts the code loses.

    `sender` and `recipients`: the mailboxes of the envelope, for replies that name who is meant. `own`: the account's
    rows, before the table.
    """
    said = Said.of(reply)
    for rule in own:
        if phase in rule.phases and rule.matches(said):
            return rule.ruling
    for rule in _BY_PHASE[phase]:
        if rule.matches(said) and not (rule.of_sender and _names_recipients(reply, sender, recipients)):
            return rule.ruling
    raise AssertionError(f"the table has no general rule for {phase}")


_ADDRESS = re.compile(r"[^\s<>,;:@]+@[^\s<>,;:@]+")


def _names_recipients(reply: Reply, sender: str, recipients: Collection[str]) -> bool:
    """Whether the text names recipients alone (SES's sandbox wants theirs verified too)."""
    named = {address.casefold() for address in _ADDRESS.findall(reply.text)}
    return bool(named) and sender.casefold() not in named and named <= {r.casefold() for r in recipients}
