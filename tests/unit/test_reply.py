"""Replies as values: text, enhanced code, severity."""

from __future__ import annotations

import pytest

from core.domain.reply import Reply


@pytest.mark.parametrize(
    ("lines", "enhanced"),
    [
        ((), None),
        (("",), None),
        (("2.1.5 Ok",), "2.1.5"),
        (("5.7.139 Authentication unsuccessful",), "5.7.139"),
        (("4.7.500 Server busy",), "4.7.500"),
        (("5.1.10",), "5.1.10"),  # alone
        (("5.2.0\tfoo",), "5.2.0"),
        (("4.3.0 one", "5.1.1 two"), "4.3.0"),  # the first line's
        (("no code", "5.1.1 two"), None),
        (("Recipient 5.1.1 unknown",), None),
        ((" 5.1.1 unknown",), None),
        (("5.1.1: unknown",), None),
        (("5.1.1.1 what",), None),
        (("5.1 what",), None),
        (("3.1.1 what",), None),
        (("1.2.3 what",), None),
        (("5.1111.1 what",), None),
        (("15.1.1 what",), None),
    ],
)
def test_the_enhanced_code_is_the_first_lines(lines: tuple[str, ...], enhanced: str | None) -> None:
    assert Reply(550, lines).enhanced_code == enhanced


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ((), ""),
        (("Ok",), "Ok"),
        (("5.1.1 No such", "5.1.1 user"), "5.1.1 No such 5.1.1 user"),
        (("one", "", "two"), "one two"),
    ],
)
def test_the_text_is_all_lines_in_one(lines: tuple[str, ...], text: str) -> None:
    assert Reply(550, lines).text == text


@pytest.mark.parametrize(
    ("code", "severity"), [(200, 2), (250, 2), (251, 2), (299, 2), (354, 3), (421, 4), (498, 4), (550, 5), (599, 5)]
)
def test_an_unknown_code_goes_by_its_first_digit(code: int, severity: int) -> None:
    assert Reply(code).severity == severity


def test_an_enhanced_code_does_not_change_the_severity() -> None:
    assert Reply(550, ("4.2.1 later",)).severity == 5
