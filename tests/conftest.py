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

# `make coverage` measures what the shorter tests cover: measuring whole relays too takes long, and what is marked
# `timed` takes three times as long under the measuring. COVERAGE=all measures everything.
_ALL_MEASURED = os.environ.get("COVERAGE") == "all"
_NOT_MEASURED = ("tests/acceptance/", "tests/chaos/")

# Files with long tests, about how many seconds each takes; they come first, so that no worker waits for another's.
_LONG = {
    "tests/chaos/test_small.py": 35,
    "tests/integration/cli/test_serve_alone.py": 45,
    "tests/acceptance/test_security.py": 40,
    "tests/acceptance/test_processes.py": 33,
    "tests/acceptance/test_seams.py": 30,
    "tests/acceptance/test_schemathesis.py": 30,
    "tests/acceptance/test_model.py": 24,
    "tests/acceptance/test_damage.py": 20,
    "tests/integration/test_store_history_search.py": 14,
    "tests/acceptance/test_swagger.py": 8,
    "tests/integration/test_spool_processes.py": 8,
    "tests/acceptance/test_serve.py": 5,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave coverage out where it tells nothing new, and begin with what takes long."""
    for item in items:
        if not _ALL_MEASURED and (item.nodeid.startswith(_NOT_MEASURED) or item.get_closest_marker("timed")):
            item.add_marker("no_cover")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        items[:] = _long_first(items, workers)


def _long_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Workers are given shares of equal length, one behind the other; who is done takes from the end of another's."""
    files: dict[str, list[pytest.Item]] = {}
    rest: list[pytest.Item] = []
    for item in items:
        file = item.nodeid.partition("::")[0]
        (files.setdefault(file, []) if file in _LONG else rest).append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    seconds = [0] * workers
    for file in sorted(files, key=lambda file: -_LONG[file]):
        least = seconds.index(min(seconds))
        shares[least] += files[file]
        seconds[least] += _LONG[file]
    ordered: list[pytest.Item] = []
    taken = 0
    for number, share in enumerate(shares):
        more = max(len(items) * (number + 1) // workers - len(ordered) - len(share), 0)
        ordered += share + rest[taken : taken + more]
        taken += more
    return ordered + rest[taken:]
