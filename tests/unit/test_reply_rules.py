"""An account's own rows: whom they blame, what is refused, and that no pattern can take long."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.domain.account import ReplyRule
from core.domain.blame import SEARCHED_CHARS, judge
from core.domain.outcome import Blame
from core.domain.reply import Phase, Reply
from core.domain.reply_rules import MAX_PATTERN_CHARS, compiled, errors_of

ACCOUNT, SENDER, RECIPIENT, MESSAGE, TRANSIENT = (
    Blame.ACCOUNT,
    Blame.SENDER,
    Blame.RECIPIENT,
    Blame.MESSAGE,
    Blame.TRANSIENT,
)
RULES = (
    ReplyRule(ACCOUNT, code="550", enhanced_code=r"5\.7\.1", text="out of credit", pause_seconds=600),
    ReplyRule(MESSAGE, phase=Phase.DOT, code="4..", text="virus", final=True),
    ReplyRule(RECIPIENT, code="450", text="unknown user|no such user", final=True),
    ReplyRule(SENDER, phase=Phase.MAIL, enhanced_code=r"5\.1\..*"),
    ReplyRule(TRANSIENT, code="535", text="directory service"),
    ReplyRule(ACCOUNT, phase=Phase.BANNER, text="maintenance"),
    ReplyRule(ACCOUNT, text="out of credit"),  # behind the first
)


def reply(*wire: str) -> Reply:
    return Reply(int(wire[0][:3]), tuple(line[4:] for line in wire))


@pytest.mark.parametrize(
    ("phase", "said", "blame", "final", "pause_seconds", "number"),
    [
        (Phase.DOT, reply("550 5.7.1 You are Out of Credit"), ACCOUNT, False, 600, 1),
        (Phase.RCPT, reply("550-5.7.1 You are out", "550 5.7.1 of credit."), ACCOUNT, False, 600, 1),
        (Phase.AUTH, reply("550 5.7.1 out of credit"), ACCOUNT, False, 600, 1),
        (Phase.DOT, reply("550 5.7.10 out of credit"), ACCOUNT, False, None, 7),
        (Phase.DOT, reply("451 4.3.0 VIRUS scanner says no"), MESSAGE, True, None, 2),
        (Phase.RCPT, reply("450 4.1.1 no such user here"), RECIPIENT, True, None, 3),
        (Phase.MAIL, reply("550 5.1.8 no"), SENDER, False, None, 4),
        (Phase.AUTH, reply("535 5.7.8 our directory service is away"), TRANSIENT, False, None, 5),
        (Phase.BANNER, reply("554 maintenance"), ACCOUNT, False, None, 6),
    ],
)
def test_the_first_row_that_matches_judges(
    phase: Phase, said: Reply, blame: Blame, final: bool, pause_seconds: float | None, number: int
) -> None:
    ruling = judge(phase, said, own=compiled(RULES))
    assert (ruling.blame, ruling.final, ruling.code) == (blame, final, "reply_rule")
    assert ruling.origin == f"rule {number} of the account"
    assert f"reply_rules/{number - 1}" in ruling.remedy
    if blame is ACCOUNT:
        assert (ruling.pause_seconds, ruling.passing) == (pause_seconds, False)


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        (Phase.DOT, reply("550 5.7.1 out of cred")),
        (Phase.DATA, reply("451 4.3.0 virus scanner")),  # another phase
        (Phase.DOT, reply("551 virus")),  # another code
        (Phase.RCPT, reply("450 4.2.1 greylisted")),
        (Phase.RCPT, reply("550 5.1.8 no")),
        (Phase.AUTH, reply("450 no such user")),  # before MAIL there is no recipient
        (Phase.EHLO, reply("554 maintenance")),
        (Phase.DOT, Reply(451, ("x" * SEARCHED_CHARS + " virus",))),  # too far behind
    ],
)
def test_what_no_row_matches_goes_by_the_table(phase: Phase, said: Reply) -> None:
    assert judge(phase, said, own=compiled(RULES)) == judge(phase, said)


def test_a_row_goes_before_the_table() -> None:
    said = reply("554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed")
    assert judge(Phase.DOT, said).blame is SENDER
    own = compiled([ReplyRule(ACCOUNT, text="SendAsDenied", pause_seconds=60)])
    assert judge(Phase.DOT, said, own=own).blame is ACCOUNT


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "pointers"),
    [
        (ReplyRule(ACCOUNT), [""]),  # any reply at all
        (ReplyRule(ACCOUNT, phase=Phase.DOT), []),
        (ReplyRule(MESSAGE, phase=Phase.AUTH, code="535"), ["/blame"]),
        (ReplyRule(RECIPIENT, phase=Phase.BANNER), ["/blame"]),
        (ReplyRule(SENDER, phase=Phase.EHLO), ["/blame"]),
        (ReplyRule(TRANSIENT, phase=Phase.AUTH), []),
        (ReplyRule(ACCOUNT, code="550", final=True), ["/final"]),
        (ReplyRule(TRANSIENT, code="550", final=True), ["/final"]),
        (ReplyRule(MESSAGE, code="550", final=True), []),
        (ReplyRule(MESSAGE, code="550", pause_seconds=60), ["/pause_seconds"]),
        (ReplyRule(ACCOUNT, code="4..|550"), []),
        (ReplyRule(ACCOUNT, code="55"), ["/code"]),
        (ReplyRule(ACCOUNT, code="250"), ["/code"]),
        (ReplyRule(ACCOUNT, code="(", enhanced_code="[", text="*"), ["/code", "/enhanced_code", "/text"]),
    ],
)
def test_a_rule_must_make_sense(rule: ReplyRule, pointers: list[str]) -> None:
    assert [error.pointer for error in errors_of([rule])] == [f"/reply_rules/0{pointer}" for pointer in pointers]


def test_errors_name_the_rule() -> None:
    rules = [ReplyRule(ACCOUNT, text="fine"), ReplyRule(ACCOUNT, text="a)")]
    (error,) = errors_of(rules)
    assert (error.pointer, error.code) == ("/reply_rules/1/text", "wrong_form")


def refused(pattern: str) -> str | None:
    return next((error.detail for error in errors_of([ReplyRule(ACCOUNT, text=pattern)])), None)


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "a)", "(a", "[", "*", "a**", "a{2}{3}", "\\", "x{99999999999}", "[[a]", "(?P<a", r"\8", "[z-a]"],
)
def test_what_is_no_regular_expression(pattern: str) -> None:
    assert refused(pattern) is not None


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|a)*b",
        "(a|ab)+c",
        "(?:a*){9}",
        "((a){2}){2}",
        "(a?){20}",
        r"(a)\1",
        "(?=a)a",
        "(?<=a)b",
        "(?i)a",
        "(?P<n>a)",
        ".*.*.*b",
        r"\w+\s*\w+!",
        "[^x]*[a-z]*(?:x|y)!",
        r"\x41\x41.*\x41\x41.*!",  # no words of two characters
        r"a.*\101.*!",
        "a?" * 15,
        "(a|b)" * 15,
        "a{0,30}" * 3,
        "(" * 21 + ")" * 21,
        "(" * 250 + ")" * 250,
        "a" * (MAX_PATTERN_CHARS + 1),
    ],
)
def test_what_could_take_too_long(pattern: str) -> None:
    assert refused(pattern) is not None


@pytest.mark.parametrize(
    "pattern",
    [
        "daily.*limit.*exceeded",
        r"daily.{0,20}limit.{0,20}user.{0,20}exceeded",
        "(hourly|daily) (message )?(quota|limit)",
        r"5\.7\.\d+ blocked",
        "[]a-z]+[^]]x",
        r"[\]\\]*\(\[",
        "a{,1}b{2,}c{4}d??",
        "a{}b{}",
        r"limit of \d+ (messages|recipients) per (day|hour)",
        "a++b",
        "x{",
        "a" * MAX_PATTERN_CHARS,
        "((a|b)?c)?",
        "|".join(f"reason {number}" for number in range(40)),
    ],
)
def test_what_people_write_is_taken(pattern: str) -> None:
    assert refused(pattern) is None


@pytest.mark.timed
@pytest.mark.parametrize(
    "pattern", ["daily.*limit.*exceeded", r"daily.{0,20}limit.{0,20}exceeded", "(daily|hourly) (sending )?limit$"]
)
def test_a_hostile_text_takes_no_time(pattern: str) -> None:
    own = compiled([ReplyRule(ACCOUNT, text=pattern)])
    texts = ["daily limit " * 10_000, "daily " * 10_000, "daily" + " limit" * 10_000, "d" * 100_000]
    began = time.process_time()
    for text in texts:
        assert judge(Phase.DOT, Reply(550, (text,)), own=own).code == "message_refused"
    assert time.process_time() - began < 5  # under coverage, on a busy machine


def as_many_as_are_taken(pattern: str) -> list[ReplyRule]:
    rules: list[ReplyRule] = []
    while len(rules) < 100 and not list(errors_of([*rules, ReplyRule(ACCOUNT, text=pattern)])):
        rules.append(ReplyRule(ACCOUNT, text=pattern))
    return rules


@pytest.mark.timed
@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("[^x]*[a-z]*(?:x|y)!", "a"),  # refused
        ("[^x]*(?:x|y)!", "a"),
        (".*(?:x|y)!", "x"),
        (r"[\w.\s]*!", "a."),
        (r"\w+:", "a"),
        ("a?" * 9 + "!", "a"),
        ("(a|[ab])" * 9 + "!", "a"),
        ("(?:|a|a?)" * 6 + "!", "a"),
        (".{0,20}.{0,20}!", "a"),
        ("aaa.*aaa!", "a"),
        ("[ab]{200}[^x]!", "a"),
        ("daily.*limit", "daily limi"),
        ("daily.*limit.*exceeded", "daily limit "),
    ],
)
def test_all_rules_together_take_no_time_whatever_the_server_says(pattern: str, text: str) -> None:
    """50 ms of `re` without coverage and neighbours. Two lines: both texts are searched."""
    own = compiled(as_many_as_are_taken(pattern))
    text *= SEARCHED_CHARS // len(text)
    began = time.process_time()
    for said in (Reply(550, (text, "")), Reply(550, (text, text))):
        assert judge(Phase.DOT, said, own=own).code == "message_refused"
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("pattern", "least"), [("daily limit", 100), ("daily.*limit", 40), (".*limit", 5), ("daily.*limit.*exceeded", 1)]
)
def test_enough_rules_can_be_had(pattern: str, least: int) -> None:
    assert len(as_many_as_are_taken(pattern)) >= least


def test_the_rule_that_is_too_much_is_named_and_not_all_behind_it() -> None:
    rules = [ReplyRule(ACCOUNT, text=text) for text in ("quota", "daily.*limit.*exceeded")]
    more = [ReplyRule(ACCOUNT, code=code, text="hourly.*limit.*exceeded") for code in ("550", "450")]
    assert [(error.pointer, error.code) for error in errors_of([*rules, *more])] == [
        ("/reply_rules/2/text", "too_slow")
    ]
    assert not list(errors_of([*rules, ReplyRule(ACCOUNT, code="4(2|5).", enhanced_code=r".*\.7\..*")]))


@settings(deadline=None)
@given(st.text(st.sampled_from("ab.*+?|()[]{}^$\\,-019:=!<P#\n\u0663\U0001f600"), max_size=30))
def test_no_pattern_makes_the_check_fail(pattern: str) -> None:
    if refused(pattern) is None:
        compiled([ReplyRule(ACCOUNT, text=pattern)])


@pytest.mark.parametrize("blame", list(Blame))
@pytest.mark.parametrize("phase", [None, *Phase])
def test_whatever_is_not_refused_compiles_and_blames_only_whom_it_can(blame: Blame, phase: Phase | None) -> None:
    rule = ReplyRule(blame, phase=phase, text="x")
    if list(errors_of([rule])):
        return
    fields: Any = compiled([rule])[0]
    before_mail = {Phase.DNS, Phase.CONNECT, Phase.TLS, Phase.BANNER, Phase.EHLO, Phase.STARTTLS, Phase.AUTH}
    assert blame in (ACCOUNT, TRANSIENT) or not fields.phases & before_mail
