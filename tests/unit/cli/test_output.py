from __future__ import annotations

import json

import pytest

from api.cli.output import cell, complain, duration, local_time, out, say, show_json, size, table


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, ""), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d"), (8_640_000, "100 d")],
)
def test_duration(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("octets", "shown"),
    [(None, ""), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3072.0 GiB")],
)
def test_size(octets: int | None, shown: str) -> None:
    assert size(octets) == shown


def test_what_is_shown_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x9b1m\u202e[bold]\udcff"
    out().print(table(("subject",), [(evil,)]))
    say(evil)
    complain(evil, evil)
    show_json({"subject": evil})
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "[bold]" in shown
    assert json.loads(captured.out[captured.out.index("{") :])["subject"] == evil


def test_a_row_stays_on_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    out().print(table(("id", "text"), [("x" * 90, "y " * 150)]))
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("value", "shown"), [(None, ""), (True, "yes"), (0, "0"), (["a", "b"], "a, b"), ((), ""), ("a\nb", "a\\nb")]
)
def test_cell(value: object, shown: str) -> None:
    assert cell(value) == shown


def test_local_time() -> None:
    assert local_time(None) == ""
    assert local_time("no\x1btime") == "no\\x1btime"
    assert len(local_time("2026-03-01T02:03:04.567Z")) == len("2026-03-01 02:03:04")
