"""What a command has done so far, to be taken back where the rest fails; and what can't be is said."""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx

from api.cli.output import complain
from core.errors import RelayError
from core.spool.names import BADMAIL, STATE_DIRECTORY


class Undo:
    """Steps in the order in which they were taken."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], Awaitable[None]] | None]] = []

    def add(self, what: str, take_back: Callable[[], Awaitable[None]] | None) -> None:
        """`what` stays if `take_back` raises OSError, RelayError or an error of httpx; None: it always stays."""
        self._steps.append((what, take_back))

    async def run(self) -> None:
        """The last first. Says what is saved all the same."""
        stays = []
        for what, take_back in reversed(self._steps):
            try:
                if take_back is None:
                    stays.append(what)
                else:
                    await take_back()
            except (OSError, RelayError, httpx.HTTPError):
                stays.append(what)
        self._steps.clear()
        if stays:
            complain("nothing was saved but what stays: " + "; ".join(reversed(stays)))
        else:
            complain("nothing was saved")


def make_folder(path: str, undo: Undo) -> None:
    """With the rights of the README: its group may write, and what is new belongs to the group. Raises OSError."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        os.mkdir(folder, 0o770 if folder == missing[0] else 0o777)
        undo.add(f"the new folder {folder}", _removal(folder))
    if missing:
        os.chmod(missing[0], 0o2770)  # noqa: S103 - applications of the group write here


def _removal(folder: str) -> Callable[[], Awaitable[None]]:
    async def remove() -> None:
        made = {os.fsdecode(BADMAIL), os.fsdecode(STATE_DIRECTORY)}  # by the check of a directory, or the service
        if set(os.listdir(folder)) <= made:  # where there is mail all stays
            with suppress(FileNotFoundError):
                os.rmdir(os.path.join(folder, os.fsdecode(BADMAIL)))
            with suppress(FileNotFoundError):
                shutil.rmtree(os.path.join(folder, os.fsdecode(STATE_DIRECTORY)))
        os.rmdir(folder)

    return remove
