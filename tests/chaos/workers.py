"""The cases of a run spread over a few worker processes, forked from the runner."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tests.chaos.child import Child, fork

Case = TypeVar("Case")
Found = TypeVar("Found")
HOURS = 4 * 3600.0


def spread(
    root: Path, cases: Sequence[Case], work: Callable[[Path, Sequence[Case]], list[Found]], *, most: int = 3
) -> list[Found]:
    """Let workers do shares of the cases, each in a folder of its own; all that they found. Raises RuntimeError."""
    count = max(1, min(len(cases), most, (os.cpu_count() or 1) + 1))
    started: list[tuple[Child, Path]] = []
    for number in range(count):
        folder = root / f"worker{number}"
        folder.mkdir(mode=0o711)

        def share(folder: Path = folder, number: int = number) -> None:
            found = work(folder, cases[number::count])
            (folder / "found").write_bytes(pickle.dumps(found))

        started.append((fork(share, folder / "log"), folder))
    result: list[Found] = []
    for child, folder in started:
        code = child.wait(HOURS)
        if code:
            raise RuntimeError(f"a worker ended with {code}:\n{(folder / 'log').read_text()[-3000:]}")
        result += pickle.loads((folder / "found").read_bytes())
    return result
