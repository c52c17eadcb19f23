"""How long a message waits: whole schedules."""

from __future__ import annotations

import pytest

from core.domain.account import Directory
from core.domain.backoff import JITTER, delay_seconds

DEFAULTS = Directory("in", "/in")


def schedule(attempts: int, *, initial: float, top: float, chance: float = 0.5) -> list[float]:
    return [
        round(delay_seconds(n, initial_seconds=initial, max_seconds=top, chance=chance), 6)
        for n in range(1, attempts + 1)
    ]


@pytest.mark.parametrize(
    ("initial", "top", "chance", "delays"),
    [
        (60, 3600, 0.5, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]),
        (60, 3600, 0.0, [54, 108, 216, 432, 864, 1728, 3240, 3240, 3240]),
        (60, 3600, 1.0, [66, 132, 264, 528, 1056, 2112, 3600, 3600, 3600]),
        (60, 3600, 0.25, [57, 114, 228, 456, 912, 1824, 3420, 3420, 3420]),
        (1, 5, 0.5, [1, 2, 4, 5, 5, 5, 5, 5, 5]),
        (0.5, 10, 0.5, [0.5, 1, 2, 4, 8, 10, 10, 10, 10]),
        (90, 90, 0.5, [90] * 9),
        (100, 10, 0.5, [10] * 9),  # the cap wins over the start
    ],
)
def test_it_doubles_up_to_the_cap(initial: float, top: float, chance: float, delays: list[float]) -> None:
    assert schedule(9, initial=initial, top=top, chance=chance) == delays


def test_the_default_is_one_minute_doubling_to_one_hour() -> None:
    delays = schedule(8, initial=DEFAULTS.retry_initial_seconds, top=DEFAULTS.retry_max_seconds)
    assert delays == [60, 120, 240, 480, 960, 1920, 3600, 3600]


@pytest.mark.parametrize("attempt", [63, 64, 1_000, 10**9])
def test_no_number_of_attempts_overflows(attempt: int) -> None:
    assert delay_seconds(attempt, initial_seconds=60, max_seconds=3600, chance=0.5) == 3600


@pytest.mark.parametrize("attempt", [0, -1])
def test_before_the_first_failure_it_is_as_after_it(attempt: int) -> None:
    assert delay_seconds(attempt, initial_seconds=60, max_seconds=3600, chance=0.5) == 60


def test_what_failed_together_spreads_over_a_fifth_of_the_delay() -> None:
    delays = [delay_seconds(3, initial_seconds=60, max_seconds=3600, chance=n / 10) for n in range(11)]
    assert delays == sorted(set(delays))
    assert delays[-1] - delays[0] == pytest.approx(240 * 2 * JITTER)
