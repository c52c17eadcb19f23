"""Run the benchmarks and print what came of them.

    python -m benchmarks [--only NAME ...] [--rounds 5] [--small] [--results FOLDER]

Each scenario's figures go to benchmarks/results/NAME.json. The exit code is 1 if a benchmark broke; a figure that was
not reached is said in the table and is none of that.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, cast

from benchmarks.machine import busy_with_others, machine, versions
from benchmarks.result import Context, Result, Series

SCENARIOS = (
    "queue_flush",
    "large",
    "tls",
    "delay",
    "latency",
    "backlog",
    "memory",
    "reads",
    "history",
    "start",
    "fairness",
)
_PACKAGE = Path(__file__).parent
_WORK = _PACKAGE.parent / "var" / "bench" / "work"  # on the disk that the project is on, not in memory


class Scenario(Protocol):
    """A module of this package (result.py)."""

    NAME: str
    ABOUT: str

    def run(self, context: Context) -> Result:
        """Measure."""
        ...


def main(arguments: list[str]) -> int:
    """The exit code."""
    options = _options(arguments)
    _WORK.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"machine": machine(_WORK), "versions": versions()}
    for title, values in facts.items():
        print(f"{title}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
    facts["warning"] = busy_with_others()
    if facts["warning"]:
        print(f"WARNING: {facts['warning']}: the figures don't compare")
    results: dict[str, Result] = {}
    broken: list[str] = []
    for name in options.only or SCENARIOS:
        try:
            results[name] = _run(name, options, facts)
        except Exception:
            traceback.print_exc()
            broken.append(name)
    _print_series(results)
    _print_targets(results)
    _print_left_out(results)
    if broken:
        print(f"\nbroken: {', '.join(broken)}")
    return 1 if broken else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many; 5 unless given")
    parser.add_argument("--small", action="store_true", help="try the benchmarks themselves; writes no results")
    parser.add_argument("--results", type=Path, default=_PACKAGE / "results", help="where the JSON goes")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    return options


def _run(name: str, options: argparse.Namespace, facts: dict[str, Any]) -> Result:
    """One scenario in a folder of its own, and its JSON."""
    scenario = cast("Scenario", importlib.import_module(f"benchmarks.{name}"))
    print(f"{name}: {scenario.ABOUT} ...", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=_WORK, prefix=f"{name}-", ignore_cleanup_errors=True) as folder:
        result = scenario.run(Context(Path(folder), options.rounds, options.small))
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    if not options.small:
        options.results.mkdir(parents=True, exist_ok=True)
        document = {
            "scenario": name,
            "about": scenario.ABOUT,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "rounds": options.rounds,
            **facts,
            "series": [{**asdict(one), "median": one.median} for one in result.series],
            "targets": [{**asdict(one), "kept": one.kept} for one in result.targets],
            "left_out": result.left_out,
        }
        (options.results / f"{name}.json").write_text(json.dumps(_short(document), indent=1) + "\n")
    return result


def _short(value: Any) -> Any:
    """Five digits say all there is to say."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_short(one) for one in value]
    return value


def _print_series(results: dict[str, Result]) -> None:
    rows = [
        [name, one.who, one.what, figure(one.median), one.unit, _spread(one), one.note]
        for name, result in results.items()
        for one in result.series
    ]  # fmt: skip
    _print_table(["scenario", "who", "what", "median", "unit", "spread", ""], rows, right=(3,))


def _spread(series: Series) -> str:
    return f"{figure(min(series.values))} .. {figure(max(series.values))}"


def _print_targets(results: dict[str, Result]) -> None:
    rows = [
        [name, one.what, ("at least " if one.at_least else "at most ") + figure(one.wanted), figure(one.reached),
         one.unit, "kept" if one.kept else "MISSED"]
        for name, result in results.items()
        for one in result.targets
    ]  # fmt: skip
    _print_table(["scenario", "figure", "wanted", "reached", "unit", ""], rows, right=(2, 3))


def _print_left_out(results: dict[str, Result]) -> None:
    lines = [f"  {name}: {why}" for name, result in results.items() for why in result.left_out]
    if lines:
        print("\nleft out:", *lines, sep="\n")


def _print_table(head: list[str], rows: list[list[str]], *, right: tuple[int, ...]) -> None:
    if not rows:
        return
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    print()
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def figure(value: float) -> str:
    """As many digits as are of use."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
