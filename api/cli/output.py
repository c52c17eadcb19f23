"""What the command line shows: tables and sentences for people, JSON for programs, complaints on standard error."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.logs import escape

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_ACCOUNT = 3
EXIT_UNREACHABLE = 4
EXIT_INTERRUPTED = 130


WIDE = 1000  # columns where nobody looks: a pipe or file gets one line a row
_WHOLE = ("id", "time", "created", "expires", "last used", "arrived", "due", "started at", "state", "status", "oldest")


def open_standard_files() -> None:
    """Put /dev/null where a standard file is closed: what is opened next would get its number, and be written to.

    The one for standard output can't be written: a key that goes nowhere must not look as if it had been printed.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest number that is free: this one
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives
    sys.stderr = sys.stderr or open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = Output(sys.stdout or open(1, "w", closefd=False))  # noqa: SIM115


class Output(io.TextIOWrapper):
    """Standard output that remembers whether it failed: the disk is full, the file is closed."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out.buffer, encoding=out.encoding, errors=out.errors, line_buffering=out.isatty())
        self._out = out  # would close the file at its end
        self.failed = False

    def write(self, text: str, /) -> int:
        """As any."""
        try:
            return super().write(text)
        except OSError:
            self.failed = True
            raise

    def flush(self) -> None:
        """As any."""
        try:
            super().flush()
        except OSError:
            self.failed = True
            raise


def output_failed() -> bool:
    """Whether what was to be printed could not be."""
    return bool(getattr(sys.stdout, "failed", False))


def drop_output() -> None:
    """What was not printed yet won't be, nor anything more: Python would try it again at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def out() -> Console:
    """Standard output; made anew so that it goes where sys.stdout leads now."""
    width = None if sys.stdout.isatty() else WIDE
    return Console(width=width, soft_wrap=True, highlight=False, emoji=False, markup=False)


def err() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False, emoji=False, markup=False)


def say(text: str) -> None:
    """A sentence on standard output."""
    out().print(Text(escape_lines(text)))


def greet(text: str) -> None:
    """As `say`, where it doesn't matter whether anybody sees it."""
    try:
        say(text)
    except OSError:
        drop_output()


def complain(detail: str, remedy: str = "") -> None:
    """What is wrong, and on the next line what to do about it, on standard error."""
    with contextlib.suppress(OSError):  # the exit code says it too
        err().print(Text(escape_lines(f"mpu: {detail}")))
        if remedy:
            err().print(Text(escape_lines(f"     {remedy}")))


def escape_lines(text: str) -> str:
    return "\n".join(escape(line) for line in text.split("\n"))


_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def show_json(value: object) -> None:
    """One JSON document, with everything escaped that could steer a terminal."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write(_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """A plain table; None is an empty cell. Columns named in `right` are numbers."""
    shown = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in columns:
        shown.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in _WHOLE
        )
    for row in rows:
        shown.add_row(*(Text(cell(value)) for value in row))
    return shown


def cell(value: object) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(cell, value))
    return escape(str(value))


def reply_text(code: object, enhanced_code: str | None, text: str | None) -> str:
    """A server's reply on one line; its text often begins with the enhanced code already."""
    text = text or ""
    shown = "" if enhanced_code and text.startswith(enhanced_code) else enhanced_code
    return " ".join(str(part) for part in (code, shown, text) if part)


def local_time(text: str | None) -> str:
    """An RFC 3339 time of the API as local time, to the second."""
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return escape(text)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float | None) -> str:
    """Seconds as 12 s, 3 min, 4 h, 5 d."""
    if seconds is None:
        return ""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def size(octets: int | None) -> str:
    """Octets as 12 B, 3.4 KiB, 5.6 MiB."""
    if octets is None:
        return ""
    value = float(octets)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")
