from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from core.runtime.sandbox import Sandbox
from tests.support.sandbox_thread import sandbox_in_thread


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings of the machine, a data directory and a working directory of the test's own; logs as they were."""
    for variable in [name for name in os.environ if name.startswith("MPU_")]:
        monkeypatch.delenv(variable)
    (tmp_path / "data").mkdir(mode=0o700)
    monkeypatch.setenv("MPU_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MPU_PICKUP_ROOTS", str(tmp_path))
    monkeypatch.setenv("MPU_PORT", "9")  # nobody listens there
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with sandbox_in_thread() as sandbox:
        yield sandbox
