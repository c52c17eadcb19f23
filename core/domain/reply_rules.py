"""An account's own rows before the table of replies: what they must be, and how they are compiled.

A server's text meets a pattern of the user's on the event loop, so a pattern must not be able to take long. Groups are
not repeated, there are no back-references and look-arounds, and the ways in which the rest could be tried multiply to
at most MAX_WAYS: two of `*` and `+`, or some more of the kind of `.{0,20}`, `a?` and `(a|b)`. So the worst pattern on
the worst text of SEARCHED_CHARS takes about a second, and one that begins with a word microseconds.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.domain.account import ReplyRule
from core.domain.blame import BEFORE_MAIL, MINUTE, SEARCHED_CHARS, SESSION, Rule, Ruling, row
from core.domain.outcome import Blame
from core.domain.reply import Phase
from core.errors import FieldError

MAX_PATTERN_CHARS = 500
MAX_WAYS = 20_000
WAYS_OF_STAR = 100  # fewer than it has: long runs are walked fast, and two share the text between them
MAX_DEPTH = 20  # groups in groups
CODE = "reply_rule"  # the code of what an own row judged

_OFFERED = SESSION - {Phase.DNS, Phase.CONNECT, Phase.TLS} | {Phase.AUTH}  # where a server speaks before MAIL
_MAIL_ON = frozenset({Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY, Phase.DOT})
_FIELDS = ("code", "enhanced_code", "text")


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
    for number, rule in enumerate(rules):
        where = f"/reply_rules/{number}"
        if rule.phase is None and all(getattr(rule, name) is None for name in _FIELDS):
            yield FieldError(
                where, "required", "names none of phase, code, enhanced_code and text: it would be any reply"
            )
        yield from _sense(where, rule)
        for name in _FIELDS:
            pattern = getattr(rule, name)
            reason = None if pattern is None else _refused(pattern)
            if reason is not None:
                yield FieldError(f"{where}/{name}", "wrong_form", reason)


def _sense(where: str, rule: ReplyRule) -> Iterator[FieldError]:
    mails = rule.blame not in (Blame.ACCOUNT, Blame.TRANSIENT)
    if mails and rule.phase in BEFORE_MAIL:
        detail = f"before MAIL there is no {rule.blame} to blame: account or transient"
        yield FieldError(f"{where}/blame", "not_allowed", detail)
    if rule.final and not mails:
        yield FieldError(f"{where}/final", "not_allowed", "is for message, recipient and sender")
    if rule.pause_seconds is not None and rule.blame is not Blame.ACCOUNT:
        yield FieldError(f"{where}/pause_seconds", "not_allowed", "is for the blame account")


def _refused(pattern: str) -> str | None:
    """Why it can't be taken; None: it can."""
    if len(pattern) > MAX_PATTERN_CHARS:
        return f"must have at most {MAX_PATTERN_CHARS} characters"
    try:
        ways = _Ways(pattern).of_all()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what may mean something else in a later Python
            re.compile(pattern)
    except (re.error, OverflowError, Warning) as error:
        return f"is no regular expression: {error}"
    except _TooMuch as error:
        return f"could take too long: {error}"
    if ways > MAX_WAYS:
        return "could take too long: use at most two of * and +, and say .{0,20} rather than .*"
    return None


class _TooMuch(Exception):
    """A construct whose cost isn't bounded here."""


@dataclass(slots=True)
class _Ways:
    """Counts in how many ways a pattern can be tried from one place of a text. The syntax is for re.compile."""

    pattern: str
    at: int = 0
    depth: int = 0

    def of_all(self) -> int:
        ways = self._alternatives()
        while self.at < len(self.pattern):  # a bracket too many, which does not compile
            self.at += 1
            ways *= self._alternatives()
        return ways

    def _alternatives(self) -> int:
        ways = self._sequence()
        while self._peek() == "|":
            self.at += 1
            ways += self._sequence()
        return ways

    def _sequence(self) -> int:
        ways = 1
        while (char := self._peek()) and char not in "|)":
            ways *= self._group() if char == "(" else self._atom() * self._repetition()
        return ways

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _group(self) -> int:
        self.at += 1
        if self._peek() == "?":
            if not self.pattern.startswith("?:", self.at):
                raise _TooMuch("of the groups only (...) and (?:...) can be used")
            self.at += 2
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _TooMuch("too many groups in groups")
        ways = self._alternatives()
        self.depth -= 1
        self.at += 1  # the closing bracket
        match = _REPETITION.match(self.pattern, self.at)
        if match is None:
            return ways
        if match["mark"] != "?":
            raise _TooMuch("a group can't be repeated, only be optional")
        self.at = match.end()
        return ways + 1

    def _atom(self) -> int:
        char = self._peek()
        self.at += 1
        if char == "\\":
            if self._peek() in tuple("123456789"):
                raise _TooMuch("there can be no back-references")
            self.at += 1
        elif char == "[":
            self._class()
        return 1

    def _class(self) -> None:
        if self._peek() == "^":
            self.at += 1
        first = True
        while (char := self._peek()) and (char != "]" or first):
            self.at += 2 if char == "\\" else 1
            first = False
        self.at += 1

    def _repetition(self) -> int:
        """How many lengths what went before may have, with all that is piled upon it."""
        ways = 1
        while match := _REPETITION.match(self.pattern, self.at):
            self.at = match.end()
            if match["mark"] == "?":
                ways *= 2
            elif match["mark"]:
                ways *= WAYS_OF_STAR
            elif match["comma"]:
                least, most = int(match["least"] or 0), int(match["most"] or SEARCHED_CHARS)
                ways *= min(max(most - least, 0) + 1, WAYS_OF_STAR)
        return ways


_REPETITION = re.compile(r"(?:(?P<mark>[*+?])|\{(?P<least>[0-9]*)(?P<comma>,)?(?P<most>[0-9]*)\})[?+]?")
