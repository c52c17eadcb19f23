"""An account's own rows before the table of replies: what they must be, and how they are compiled.

A server's text meets a user's patterns on the event loop, all of an account's where none matches, so all of them
together must not be able to take long. Groups are not repeated, there are no back-references and look-arounds, and the
steps that the rest could take on the worst texts (pattern_cost.py) are at most MAX_STEPS for an account: 40 rules of
the kind of `daily.*limit`, ten that begin with `.*`, one of the kind of `daily.*limit.*exceeded`. That is about 50 ms.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence

from core.domain.account import ReplyRule
from core.domain.blame import BEFORE_MAIL, MINUTE, SEARCHED_CHARS, SESSION, Rule, Ruling, row
from core.domain.outcome import Blame
from core.domain.pattern_cost import TooMuch, steps_of
from core.domain.reply import Phase
from core.errors import FieldError

MAX_PATTERN_CHARS = 500
MAX_STEPS = 8_000_000.0  # about 2 ns each, and a reply of several lines is searched twice
CODE = "reply_rule"  # the code of what an own row judged

_OFFERED = SESSION - {Phase.DNS, Phase.CONNECT, Phase.TLS} | {Phase.AUTH}  # where a server speaks before MAIL
_MAIL_ON = frozenset({Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY, Phase.DOT})
_FIELDS = {"code": 3, "enhanced_code": 9, "text": SEARCHED_CHARS}  # and how long what they are matched with can be


def compiled(rules: Sequence[ReplyRule]) -> tuple[Rule, ...]:
    """The rows for `judge`, in order. They passed `errors_of` when they were saved."""
    return tuple(_row(number, rule) for number, rule in enumerate(rules))


def _row(number: int, rule: ReplyRule) -> Rule:
    # before MAIL there is no message, recipient or sender to blame
    anywhere = _OFFERED | _MAIL_ON if rule.blame in (Blame.ACCOUNT, Blame.TRANSIENT) else _MAIL_ON
    phases = anywhere if rule.phase is None else anywhere & {rule.phase}
    return row(phases, rule.code or "...", rule.enhanced_code, rule.text, _ruling(number, rule))


def _ruling(number: int, rule: ReplyRule) -> Ruling:
    origin = f"rule {number + 1} of the account"
    remedy = f"This is what reply_rules/{number} of the account says: see that it is still right."
    if rule.blame is Blame.ACCOUNT:
        end = " It rests until somebody resumes it." if rule.pause_seconds is None else ""
        return Ruling(rule.blame, False, CODE, remedy + end, rule.pause_seconds, False, origin)
    # where no mail is under way, somebody must wait: the account, for a while
    return Ruling(rule.blame, rule.final, CODE, remedy, MINUTE, True, origin)


# --- what a rule must be ---------------------------------------------------------------------------------------------


def errors_of(rules: Sequence[ReplyRule]) -> Iterator[FieldError]:
    """What is wrong with them, by field."""
    steps = 0.0
    for number, rule in enumerate(rules):
        where = f"/reply_rules/{number}"
        if rule.phase is None and all(getattr(rule, name) is None for name in _FIELDS):
            yield FieldError(
                where, "required", "names none of phase, code, enhanced_code and text: it would be any reply"
            )
        yield from _sense(where, rule)
        for name in _FIELDS:
            pattern = getattr(rule, name)
            if pattern is None:
                continue
            try:
                own = _steps(name, pattern)
            except _Unfit as error:
                yield FieldError(f"{where}/{name}", "wrong_form", str(error))
                continue
            if name == "code" and not any(re.fullmatch(pattern, str(code)) for code in range(400, 600)):
                yield FieldError(f"{where}/{name}", "wrong_form", "fits no code from 400 to 599, as 550 or 4.. would")
            if steps <= MAX_STEPS < steps + own:  # the first that is too much, and not all behind it
                yield FieldError(f"{where}/{name}", "too_slow", _TOGETHER)
            steps += own


def _sense(where: str, rule: ReplyRule) -> Iterator[FieldError]:
    mails = rule.blame not in (Blame.ACCOUNT, Blame.TRANSIENT)
    if mails and rule.phase in BEFORE_MAIL:
        detail = f"before MAIL there is no {rule.blame} to blame: account or transient"
        yield FieldError(f"{where}/blame", "not_allowed", detail)
    if rule.final and not mails:
        yield FieldError(f"{where}/final", "not_allowed", "is for message, recipient and sender")
    if rule.pause_seconds is not None and rule.blame is not Blame.ACCOUNT:
        yield FieldError(f"{where}/pause_seconds", "not_allowed", "is for the blame account")


class _Unfit(Exception):
    """The pattern can't be taken, whatever the others are."""


def _steps(name: str, pattern: str) -> float:
    """How many it may take at most. Raises _Unfit."""
    if len(pattern) > MAX_PATTERN_CHARS:
        raise _Unfit(f"must have at most {MAX_PATTERN_CHARS} characters")
    try:
        steps = steps_of(pattern, _FIELDS[name], searched=name == "text")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what may mean something else in a later Python
            re.compile(pattern)
    except (re.error, OverflowError, Warning) as error:
        raise _Unfit(f"is no regular expression: {error}") from None
    except TooMuch as error:
        raise _Unfit(f"could take too long: {error}") from None
    if steps > MAX_STEPS:
        raise _Unfit(f"could take too long: {_SPARE}")
    return steps


_SPARE = "begin with a word, use one * or + where you can, say .{0,20} rather than .*"
_TOGETHER = f"with it the rules of this account together could take too long: {_SPARE}"
