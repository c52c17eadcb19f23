"""The log: one line an event, JSON for machines or columns for people, on standard error.

`configure_logs` is called once by the process's entry. Events are structlog's: `log = structlog.get_logger()`,
`log.warning("account paused", account=name, remedy=...)`. Guarantees: keys that name a secret are masked, bodies and
overlong values are cut, control characters never reach a terminal raw, and no event of a log raises into the work that
logged it (a full disk or a closed pipe loses the line, not the mail). In a service none waits for its reader either:
lines leave by a thread; what a reader leaves lying over WAITING_MAX_CHARACTERS is dropped, and its number told. Foreign
loggers (uvicorn, apscheduler, alembic) take the same way out.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MAX_VALUE_CHARACTERS = 4096  # of one value in one line
MAX_DEPTH = 6
WAITING_MAX_CHARACTERS = 4 << 20  # of lines that no reader took yet
GATHER_SECONDS = 0.01  # between two writes: at full speed what came meanwhile is one
LAST_LINES_SECONDS = 2.0  # that the end of the process waits for its reader
MASK = "[redacted]"
_SECRET_KEY = re.compile(r"passw|token|authorization|secret|api_?key|credential|cookie", re.IGNORECASE)
# Whatever follows in a header (RFC 9110 section 11.6.2); elsewhere what no word looks like: long, and with a digit,
# "=" or capitals inside, or very long. "basic authentication" stays.
_CREDENTIAL = re.compile(
    r"""((?i:authorization)['"]?\s*[:=]\s*['"]?(?i:bearer|basic)\s+)[^\s'",]+"""
    r"|\b((?i:bearer|basic)\s+)(?=[A-Za-z0-9._~+/=-]{16})"
    r"(?:(?=[A-Za-z._~+/-]*[0-9=])|(?=[A-Za-z._~+/-]*[a-z][A-Z])|(?=[A-Za-z._~+/-]{32}))[A-Za-z0-9._~+/=-]+"
)
# C0 but tab, DEL, C1, line and paragraph separators, bidirectional overrides, surrogates (undecodable octets)
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def configure_logs(
    *,
    log_format: Literal["auto", "json", "console"] = "auto",
    log_level: str = "info",
    stream: TextIO | None = None,
    final: bool = False,
) -> None:
    """Set structlog and the standard library's logging up. May be called again; the last call counts.

    `final`: it won't be. So loggers may keep what they find at their first use, lines of one turn of the event loop
    that tell of no trouble are written together, and a thread writes: a reader that hangs holds up nobody.
    """
    global _last
    out = stream if stream is not None else sys.stderr
    console = log_format == "console" or (log_format == "auto" and out.isatty())
    level = getattr(logging, log_level.upper())
    render: Processor = ConsoleLine(colours=console and out.isatty()) if console else json_line

    def line(logger: WrappedLogger, method: str, event: EventDict) -> Any:
        """All that is done to an event, in one: the chain of structlog's takes as long as the work."""
        structlog.processors.add_log_level(logger, method, event)
        stamp(logger, method, event)
        if "exc_info" in event:
            event = structlog.processors.format_exc_info(logger, method, event)
        return render(logger, method, redact(logger, method, event))

    def dropped(number: int) -> str:
        told = {"event": "log lines dropped", "lines": number, "remedy": "see what reads the log: it is too slow"}
        return str(line(None, "warning", told))

    lines: _Lines = _Lines(out)
    if final:
        lines = _last = _QueuedLines(out, dropped)
    structlog.configure(
        processors=[line],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lines,
        cache_logger_on_first_use=final,
    )
    handler = _StandardLibrary(lines, [line])
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "apscheduler", "alembic"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # a line a request or step is noise beside the relay's own events
    for name in (
        "uvicorn.access",
        "uvicorn.error",
        "alembic",
        "apscheduler",
        "mail.log",
        "httpx",
        "httpcore",
        "asyncio",
    ):
        logging.getLogger(name).setLevel(max(level, logging.WARNING) if level > logging.DEBUG else level)


_second = (0, "")  # the last second seen, and its text


def stamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the time: RFC 3339, UTC, microseconds."""
    global _second  # a race between threads only costs the work again
    now = time.time_ns() // 1000
    whole, part = divmod(now, 1_000_000)
    second = _second
    if second[0] != whole:
        second = _second = (whole, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)))
    event["timestamp"] = f"{second[1]}.{part:06d}Z"
    return event


_known_keys: dict[str, bool] = {}  # key -> whether it names a secret; the same few keys come again and again


def _is_secret(key: str) -> bool:
    known = _known_keys.get(key)
    if known is None:
        known = _SECRET_KEY.search(key) is not None
        if len(_known_keys) < 1000:
            _known_keys[key] = known
    return known


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask what a key calls a secret, cut what is long, decode octets."""
    for key, value in event.items():
        if type(value) is str and _known_keys.get(key) is False and len(value) < 64 and " " not in value:
            continue  # nothing to mask or to cut: nearly all of them
        event[key] = _safe(key, value, 0)
    return event


def _safe(key: str, value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is int or kind is float or kind is bool or value is None:
        return value
    if _is_secret(key):
        return MASK
    if kind is str:
        if key != "exception" and len(value) > MAX_VALUE_CHARACTERS:
            value = value[:MAX_VALUE_CHARACTERS] + "…"
        return _CREDENTIAL.sub(_mask, value) if " " in value else value
    if depth >= MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        return {str(k): _safe(str(k), v, depth + 1) for k, v in list(value.items())[:100]}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_safe(key, v, depth + 1) for v in list(value)[:100]]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value[: MAX_VALUE_CHARACTERS + 1]).decode("utf-8", "backslashreplace")
    return _safe(key, str(value), depth + 1)


def _mask(match: re.Match[str]) -> str:
    return (match[1] or match[2]) + MASK


_encode = json.JSONEncoder(
    separators=(",", ":"), default=str, check_circular=False
).encode  # made once: it is slow to make


def json_line(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """One JSON object: time, level and event first."""
    ordered = {"time": event.pop("timestamp", None), "level": event.pop("level", None), "event": event.pop("event", "")}
    ordered.update(event)
    return _encode(ordered)  # ASCII: control characters and surrogates escaped


def escape(text: str) -> str:
    r"""Text with control characters as \x1b, \\n, \\u202e: what a file name or a server says can't steer a terminal."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}


class ConsoleLine:
    """Renders for people: time of day, level, event, then key=value. A traceback follows, indented."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, _logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]) -> str:
        time = str(event.pop("timestamp", ""))[11:23]
        level = str(event.pop("level", ""))
        text = escape(str(event.pop("event", "")))
        exception = event.pop("exception", None)
        pairs = " ".join(f"{escape(str(key))}={self._value(value)}" for key, value in event.items())
        shown = f"\x1b[{_COLOURS.get(level, '0')}m{level:<7}\x1b[0m" if self._colours else f"{level:<7}"
        line = f"{time} {shown} {text}{'  ' if pairs else ''}{pairs}"
        if exception:
            line += "".join(f"\n    {escape(part)}" for part in str(exception).splitlines())
        return line

    @staticmethod
    def _value(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        text = escape(text)
        return json.dumps(text, ensure_ascii=False) if isinstance(value, str) and (not text or " " in text) else text


class _Lines:
    """structlog's logger factory and logger in one: whole lines, one write each, never an exception."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.RLock()  # the collector may have something to say in the middle of a write
        self._gathered: list[str] = []
        self._writing = False

    def __call__(self, *_args: Any) -> _Lines:
        return self

    def msg(self, line: str) -> None:
        """Write it, behind all that was said before."""
        with self._lock:
            self._gathered.append(line)
            self._write()

    debug = info = warning = error = critical = exception = log = fatal = warn = msg

    def _write(self) -> None:
        if self._writing:  # by this thread: it goes on with what was said meanwhile
            return
        self._writing = True
        try:
            while self._gathered:
                lines, self._gathered = self._gathered, []
                self._send(lines)
        finally:
            self._writing = False

    def _send(self, lines: list[str]) -> None:
        with contextlib.suppress(OSError, ValueError):  # no reader, no room, closed: the line is lost, the mail is not
            self._out.write("\n".join((*lines, "")))
            self._out.flush()


class _QueuedLines(_Lines):
    """A thread writes. What is said below a warning in one turn of an event loop is one write, behind the turn's end.

    A kill loses the lines of that turn and those that still wait for the thread, some 10 ms where the reader keeps up,
    WAITING_MAX_CHARACTERS at most; the history and the spool have what they told. Where more wait, lines are dropped
    until half of it is read; then their number is told in their place.
    """

    def __init__(self, out: TextIO, dropped: Callable[[int], str]) -> None:
        super().__init__(out)
        self._say_dropped = dropped
        try:
            self._fd: int | None = out.fileno()
        except (OSError, ValueError):
            self._fd = None
        self.forget()
        atexit.register(self.written, LAST_LINES_SECONDS)

    def forget(self) -> None:
        """Begin anew, with nothing said: a forked process has no thread, and its parent tells of the lines."""
        self._lock = threading.RLock()
        self._gathered = []
        self._writing = False
        self._due_in: asyncio.AbstractEventLoop | None = None  # the loop at whose turn's end the lines are sent
        self._queue: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._sent = 0  # characters; with the lock only
        self._taken = 0  # of them, written; the thread's only
        self._dropped = 0  # lines, since their number was told

    def info(self, line: str) -> None:
        """Gather it."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a thread without one
            self.msg(line)
            return
        with self._lock:
            self._gathered.append(line)
            due, self._due_in = self._due_in is loop, loop
        if not due:
            loop.call_soon(self._flush)

    debug = info

    def written(self, seconds: float) -> bool:
        """Wait until all that was said is written. False: time was up."""
        self._flush()
        if self._thread is None:
            return True
        mark = threading.Event()
        self._queue.put(mark)
        return mark.wait(seconds)

    def _flush(self) -> None:
        with self._lock:
            self._due_in = None
            self._write()

    def _send(self, lines: list[str]) -> None:
        """Into the queue, or not where it is full."""
        text = "\n".join((*lines, "")) if lines else ""
        waiting = self._sent - self._taken
        if waiting > WAITING_MAX_CHARACTERS // 2 and (self._dropped or waiting + len(text) > WAITING_MAX_CHARACTERS):
            self._dropped += len(lines)
            return
        if self._dropped:
            text = f"{self._say_dropped(self._dropped)}\n{text}"
            self._dropped = 0
        self._sent += len(text)
        self._queue.put(text)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mpu-log", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            texts, marks = self._take()
            if texts:
                self._put_out("".join(texts))
                self._taken += sum(map(len, texts))
            for mark in marks:
                mark.set()
            if self._dropped:
                with self._lock:
                    if not self._writing:
                        self._send([])
            time.sleep(GATHER_SECONDS)

    def _take(self) -> tuple[list[str], list[threading.Event]]:
        """All that is queued, once there is something."""
        texts: list[str] = []
        marks: list[threading.Event] = []
        item = self._queue.get()
        with contextlib.suppress(queue.Empty):
            while True:
                if isinstance(item, str):
                    texts.append(item)
                else:
                    marks.append(item)
                item = self._queue.get_nowait()
        return texts, marks

    def _put_out(self, text: str) -> None:
        """Past sys.stderr, whose lock a write that hangs would hold at the end of the process."""
        with contextlib.suppress(OSError, ValueError):
            if self._fd is None:
                self._out.write(text)
                self._out.flush()
                return
            octets = memoryview(text.encode(getattr(self._out, "encoding", None) or "utf-8", "backslashreplace"))
            while octets:
                try:
                    octets = octets[os.write(self._fd, octets) :]
                except BlockingIOError:  # somebody made the pipe so that it does not block
                    time.sleep(GATHER_SECONDS)


_last: _QueuedLines | None = None  # of the call that counts


def logs_written(seconds: float = LAST_LINES_SECONDS) -> bool:
    """Wait until all that was said before is written, so long at most. False: time was up."""
    return _last is None or _last.written(seconds)


def _after_fork() -> None:
    if _last is not None:
        _last.forget()


if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_after_fork)


class _StandardLibrary(logging.Handler):
    """Takes records of foreign loggers into the same processors."""

    def __init__(self, lines: _Lines, processors: list[Processor]) -> None:
        super().__init__()
        self._lines = lines
        self._processors = processors

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: Any = {"event": record.getMessage(), "logger": record.name}
            if record.exc_info:
                event["exc_info"] = record.exc_info
            for processor in self._processors:
                event = processor(None, record.levelname.lower(), event)
            self._lines.msg(event)
        except Exception:  # noqa: BLE001 - a log call that can't be rendered must not break its caller
            self.handleError(record)
