"""One service a data directory, and what its log says of its end."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from core.runtime.instance import DataDirLock, ServiceLock
from tests.support.command import mpu
from tests.support.service import COMMAND, PATIENCE_SECONDS, environment, service


def test_a_second_service_is_refused_and_commands_are_not(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with service(data, tmp_path) as first:
        command = [*COMMAND, "serve", "--port", "0", "--data-dir", str(data), "--pickup-root", str(tmp_path)]
        second = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
        assert second.returncode == 1
        assert f"another service uses the data directory {data}" in second.stderr
        assert "--data-dir" in second.stderr
        assert mpu("key", "list", "--data-dir", data) == 0
        assert mpu("migrate", "--data-dir", data) == 0
        assert first.http.get("/health/ready").is_success
        assert first.stop() == 0
        events = Counter(json.loads(line)["event"] for line in first.log.read_text().splitlines())
        assert [events[name] for name in ("signal taken", "stopping", "stopped", "ended")] == [1, 1, 1, 1]


def test_the_lock_goes_with_a_killed_service(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with service(data, tmp_path) as first:
        first.kill()
        with ServiceLock(data):
            pass


def test_a_start_that_fails_leaves_no_lock(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert mpu("serve", "--host", "192.0.2.1", "--port", "0") == 1
    assert "can't listen" in capsys.readouterr().err
    with ServiceLock(tmp_path / "data"), DataDirLock(tmp_path / "data", exclusive=True):
        pass
