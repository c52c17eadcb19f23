"""For all tests: tracebacks shown plainly in the log (local values take minutes to render), and what is measured."""

from __future__ import annotations

import os

import pytest
import structlog

structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

# What the shorter tests cover is measured in them; measuring whole relays too costs a minute of the five that all of
# the tests may take. COVERAGE=all measures everything.
_NOT_MEASURED = () if os.environ.get("COVERAGE") == "all" else ("tests/acceptance/", "tests/chaos/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave coverage out where it tells nothing new."""
    for item in items:
        if item.nodeid.startswith(_NOT_MEASURED):
            item.add_marker("no_cover")
