"""Files that this process may only use as their mode says, root or not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65_534


@contextmanager
def open_folder() -> Iterator[Path]:
    """An empty folder that every user reaches; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="mpu-rights-") as folder:
        yield Path(folder)


@contextmanager
def owner_of(folder: Path) -> Iterator[None]:
    """All threads of this process go without root's rights, and own what lies in the folder.

    All that is needed must have been imported: the interpreter may lie in root's home.
    """
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
