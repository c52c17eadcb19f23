"""Which account a message goes through."""

from __future__ import annotations

import pytest

from core.domain.account import Directory
from core.domain.circuit import Pause, PausedBy
from core.domain.routing import Refusal, Route, choose

T = 1_800_000_000.0
UNKNOWN, DISABLED, TRIED = "unknown", "disabled", "tried"
UNTIL_5 = Pause(PausedBy.SERVICE, "quota_exceeded", "full", T, T + 5)
UNTIL_3 = Pause(PausedBy.SERVICE, "connect_failed", "down", T, T + 3)
FOR_GOOD = Pause(PausedBy.OPERATOR, "operator", "maintenance", T)

Matter = str | Pause | None  # what is the matter with it; None: nothing


@pytest.mark.parametrize(
    ("accounts", "taken", "refused", "until"),
    [
        ({}, None, [], None),
        ({"a": None}, "a", [], None),
        ({"a": None, "b": None}, "a", [], None),
        ({"b": None, "a": None}, "b", [], None),  # the directory's order, not the alphabet's
        ({"a": UNKNOWN}, None, [("a", "unknown", None)], None),
        ({"a": UNKNOWN, "b": None}, "b", [("a", "unknown", None)], None),
        ({"a": DISABLED, "b": None}, "b", [("a", "disabled", None)], None),
        ({"a": TRIED, "b": None}, "b", [("a", "tried", None)], None),
        ({"a": UNTIL_5, "b": None}, "b", [("a", "account_paused", T + 5)], T + 5),
        ({"a": FOR_GOOD, "b": None}, "b", [("a", "account_paused", None)], None),
        ({"a": None, "b": UNTIL_5}, "a", [], None),
        (
            {"a": UNTIL_5, "b": FOR_GOOD, "c": UNTIL_3},
            None,
            [("a", "account_paused", T + 5), ("b", "account_paused", None), ("c", "account_paused", T + 3)],
            T + 3,
        ),
        (
            {"a": UNKNOWN, "b": DISABLED, "c": TRIED, "d": UNTIL_5, "e": None, "f": None},
            "e",
            [("a", "unknown", None), ("b", "disabled", None), ("c", "tried", None), ("d", "account_paused", T + 5)],
            T + 5,
        ),
        ({"a": TRIED, "b": TRIED}, None, [("a", "tried", None), ("b", "tried", None)], None),
    ],
)
def test_the_first_that_may_be_used_is_taken(
    accounts: dict[str, Matter],
    taken: str | None,
    refused: list[tuple[str, str, float | None]],
    until: float | None,
) -> None:
    route = choose(
        Directory("in", "/in", tuple(accounts)),
        known=[name for name, what in accounts.items() if what != UNKNOWN],
        disabled=[name for name, what in accounts.items() if what == DISABLED],
        tried=[name for name, what in accounts.items() if what == TRIED],
        pause_of=lambda name: what if isinstance(what := accounts[name], Pause) else None,
    )
    assert route == Route(taken, tuple(Refusal(*each) for each in refused))
    assert route.until == until


def test_an_account_is_not_asked_for_its_pause_before_it_is_known_and_enabled() -> None:
    asked: list[str] = []

    def pause_of(name: str) -> Pause | None:
        asked.append(name)
        return FOR_GOOD

    directory = Directory("in", "/in", ("unknown", "disabled", "tried", "paused"))
    choose(directory, known=["disabled", "tried", "paused"], disabled=["disabled"], tried=["tried"], pause_of=pause_of)
    assert asked == ["paused"]
