"""Draw docs/performance.svg and docs/performance.png from benchmarks/results/*.json (`make bench-plot`)."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_RESULTS = Path(__file__).parent / "results"
_PAPER, _INK, _FAINT = "#fbfbf9", "#22262b", "#6b7280"
_COLOURS = {"MPU": "#1f6feb", "smtp-source": "#d4d7dc"}  # a generator is no relay: it stands back
_OTHERS = "#8d96a3"


@dataclass(frozen=True)
class Panel:
    """Bars of one scenario: the series of a unit."""

    scenario: str
    title: str
    unit: str
    names: dict[str, str]  # who, or who and what, to what stands beside the bar


PANELS = (
    Panel(
        "queue_flush",
        "5,000 messages of 4 KB waiting",
        "msg/s",
        {"aiosmtplib, octets": "aiosmtplib, sendmail", "aiosmtplib": "aiosmtplib, send_message"},
    ),
    Panel("large", "200 messages of 1 MB waiting", "MB/s", {}),
    Panel(
        "delay",
        "4 KB, one connection, a round trip takes 50 ms",
        "msg/s",
        {"MPU CHUNKING": "MPU, CHUNKING", "MPU PIPELINING": "MPU, PIPELINING"},
    ),
)


def bars(panel: Panel, results: Path = _RESULTS) -> tuple[list[tuple[str, str, dict[str, Any]]], dict[str, Any]]:
    """(label, who, series) from fast to slow, and the whole document."""
    document: dict[str, Any] = json.loads((results / f"{panel.scenario}.json").read_text())
    found = []
    for series in document["series"]:
        if series["unit"] == panel.unit:
            who = series["who"]
            found.append((panel.names.get(f"{who} {series['what']}", panel.names.get(who, who)), who, series))
    return sorted(found, key=lambda one: -one[2]["median"]), document


def draw(folder: Path) -> None:
    """Both files."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "mpu", "font.family": "DejaVu Sans", "text.color": _INK})
    plt = importlib.import_module("matplotlib.pyplot")
    contents = [bars(panel) for panel in PANELS]
    heights = [len(rows) + 1.2 for rows, _ in contents]
    picture, axes = plt.subplots(
        len(PANELS), 1, figsize=(9, 0.34 * sum(heights) + 0.9), height_ratios=heights, layout="constrained"
    )
    picture.set_facecolor(_PAPER)
    picture.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    for panel, axis, (rows, _) in zip(PANELS, axes, contents, strict=True):
        _panel(axis, panel, rows)
    picture.supxlabel(_caption([document for _, document in contents]), fontsize=7.5, color=_FAINT)
    for kind, more in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 150, "metadata": {"Software": None}})):
        picture.savefig(folder / f"performance.{kind}", facecolor=_PAPER, **more)


def _panel(axis: Any, panel: Panel, rows: list[tuple[str, str, dict[str, Any]]]) -> None:
    medians = [series["median"] for _, _, series in rows]
    axis.set_facecolor(_PAPER)
    axis.barh(range(len(rows)), medians, color=[_COLOURS.get(who, _OTHERS) for _, who, _ in rows], height=0.72)
    axis.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=9, color=_INK)
    for place, (_, who, series) in enumerate(rows):
        low, high = min(series["values"]), max(series["values"])
        axis.plot([low, high], [place, place], color=_INK, linewidth=1, solid_capstyle="butt")
        text = f"{series['median']:,.{0 if series['median'] >= 100 else 1}f}"
        weight = "bold" if who == "MPU" else "normal"
        place_of_text = max(high, series["median"])
        axis.annotate(
            text, (place_of_text, place), (4, 0), textcoords="offset points", va="center", fontsize=9, weight=weight
        )
    axis.invert_yaxis()
    axis.set_xlim(0, max(max(series["values"]) for _, _, series in rows) * 1.1)
    axis.set_xticks([])
    axis.tick_params(axis="y", length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.set_title(f"{panel.title}: {panel.unit}", loc="left", fontsize=10.5, weight="bold", color=_INK)


def _caption(documents: list[dict[str, Any]]) -> str:
    """Machine and versions; the scenarios may have been measured at different times."""
    machine, versions = documents[0]["machine"], documents[0]["versions"]
    days = sorted({document["date"][:10] for document in documents})
    rounds = sorted({str(document["rounds"]) for document in documents})
    programs = [
        f"{name} {versions[name].split('-')[0]}" for name in ("Postfix", "Exim", "aiosmtplib") if name in versions
    ]
    warning = "".join(f"Don't compare: {text}.\n" for text in sorted({d["warning"] for d in documents if d["warning"]}))
    return (
        f"Medians of {' or '.join(rounds)} interleaved rounds, and their spread; one smtp-sink takes it all "
        f"(with CHUNKING the server of the tests). smtp-source has no files and no history.\n{warning}"
        f"{machine['cores']} cores {machine['processor']}, {machine['file system']}, {machine['kernel']}, "
        f"Python {machine['Python']}, {', '.join(programs)}; {' and '.join(days)}"
    )


if __name__ == "__main__":
    draw(_ROOT / "docs")
