"""`python -m tests.chaos`: try each promise with the figures of its table, and print what came of it.

    --scale full|small   the figures of the table, or a small share of them (as in `make test`)
    --only P1,P4         some promises alone; experiments without a number: peers, database, names, clock
    --seed N             random by default; the seed of a failure brings it back as far as timing allows
    --json FILE          var/chaos/<time>-<seed>.json by default
    --keep               leave the folders of failed runs

Exit code 1 if a promise was not kept.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos import boundaries, claims, kills, odd, poison, power, space, stops, writers
from tests.chaos.result import Experiment, Plan, Row, as_json, table, timed

EXPERIMENTS: dict[str, tuple[tuple[str, ...], Experiment]] = {
    "kills": (("P1", "P2", "P7", "P8"), kills.kills),
    "boundaries": (("P3",), boundaries.boundaries),
    "power": (("P4",), power.power),
    "claims": (("P5",), claims.claims),
    "writers": (("P6",), writers.writers),
    "poison": (("P9",), poison.poison),
    "leaks": (("P10",), poison.leaks),
    "space": (("P11",), space.space),
    "stops": (("P12",), stops.stops),
    "peers": ((), odd.peers),
    "database": ((), odd.database),
    "names": ((), odd.names),
    "clock": ((), odd.clock),
}


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Try the promises of the relay.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1_000_000))
    parser.add_argument("--scale", choices=("full", "small"), default="full")
    parser.add_argument("--only", default="", help="promises or experiments, by comma")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the folders of failed runs")
    return parser.parse_args(arguments)


def _run(name: str, options: argparse.Namespace) -> list[Row]:
    promises, experiment = EXPERIMENTS[name]
    root = Path(tempfile.mkdtemp(prefix=f"mpu-chaos-{name}-"))
    root.chmod(0o711)  # some of it runs as another user
    try:
        rows = timed(experiment, Plan(options.seed, options.scale == "full", root))
    except Exception:
        rows = [
            Row(
                (*promises, name)[0],
                f"{name}: the run itself failed",
                misses=[traceback.format_exc()],
                seed=options.seed,
            )
        ]
    if options.keep and any(row.misses for row in rows):
        rows[0].notes = f"{rows[0].notes} kept in {root}".strip()
    else:
        shutil.rmtree(root, ignore_errors=True)
    return rows


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    options = _options(arguments)
    wanted = {word.strip() for word in options.only.split(",") if word.strip()}
    names = [n for n, (promises, _) in EXPERIMENTS.items() if not wanted or wanted & {n, *promises}]
    unknown = wanted - set(EXPERIMENTS) - {p for promises, _ in EXPERIMENTS.values() for p in promises}
    if unknown or not names:
        sys.stderr.write(f"unknown: {', '.join(sorted(unknown))}\n")
        return 2
    began = time.monotonic()
    rows: list[Row] = []
    for name in names:
        sys.stderr.write(f"{name} ...\n")
        rows += _run(name, options)
    rows.sort(key=_order)
    out = options.json or Path("var/chaos") / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{options.seed}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(as_json(rows, {"scale": options.scale, "seed": options.seed}), encoding="utf-8")
    sys.stdout.write(f"{table(rows)}\n{time.monotonic() - began:.0f} s, seed {options.seed}, {out}\n")
    return 1 if any(row.misses for row in rows) else 0


def _order(row: Row) -> tuple[int, str]:
    """P1 to P12, then what has no number."""
    number = row.promise[1:]
    return (int(number), "") if number.isdigit() else (99, row.promise)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
