"""What a benchmark says: figures, and how they stand to what is wanted of them.

A scenario is a module of this package with `NAME`, `ABOUT` (one line) and `run(context) -> Result`. Everything that is
compared runs in turns within the same run (A B C, A B C, ...), and medians are compared: the machine is noisy.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Unit = Literal["msg/s", "MB/s", "ms", "s", "MB", "us", "round trips", "ratio", "1"]


@dataclass(frozen=True, slots=True)
class Context:
    """How a scenario is to run. `folder` is its own, empty, and removed after it."""

    folder: Path
    rounds: int = 5
    small: bool = False  # a try of the benchmark itself: few messages, figures that mean nothing


@dataclass(frozen=True, slots=True)
class Series:
    """One thing measured, once a round."""

    who: str  # "MPU", "Postfix", "smtp-source", ...
    what: str
    unit: Unit
    values: tuple[float, ...]
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that is wanted, and what came of it."""

    what: str
    wanted: float
    reached: float
    unit: Unit
    at_least: bool = True  # False: at most

    @property
    def kept(self) -> bool:
        return self.reached >= self.wanted if self.at_least else self.reached <= self.wanted


@dataclass(slots=True)
class Result:
    """All of one scenario."""

    series: list[Series] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # who, and why


def in_turns(rounds: int, runs: Iterable[tuple[str, Callable[[int], float]]]) -> dict[str, tuple[float, ...]]:
    """Each run once a round, in turns; each is given the number of the round."""
    everybody = list(runs)
    values: dict[str, list[float]] = {who: [] for who, _ in everybody}
    for number in range(rounds):
        for who, run in everybody:
            values[who].append(run(number))
    return {who: tuple(series) for who, series in values.items()}


def quantile(values: Iterable[float], share: float) -> float:
    """The value that `share` of them don't exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
