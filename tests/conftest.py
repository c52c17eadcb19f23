"""For all tests: tracebacks shown plainly in the log (local values take minutes to render), and what is measured."""

from __future__ import annotations

import pytest
import structlog

structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

# Long runs of what shorter tests cover: measuring them too costs a minute of the five that all tests may take.
_NOT_MEASURED = ("test_model", "test_processes", "test_peers", "test_schemathesis", "test_swagger", "tests.chaos")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave coverage out where it tells nothing new."""
    for item in items:
        if any(name in item.nodeid.replace("/", ".") for name in _NOT_MEASURED):
            item.add_marker("no_cover")
