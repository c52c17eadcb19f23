"""One service a data directory, and what its log says of its end."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from core.runtime.instance import DataDirLock, ServiceLock
from tests.support.command import mpu
from tests.support.service import COMMAND, PATIENCE_SECONDS, Service, environment, free_port, service, wait_until


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """For commands that change nothing."""
    folder = tmp_path_factory.mktemp("started")
    with service(folder / "data", folder) as running:
        yield running


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


@pytest.mark.parametrize("nohup", [False, True])
def test_the_end_of_a_session_is_a_clean_stop_but_under_nohup(tmp_path: Path, nohup: bool) -> None:
    with service(tmp_path / "data", tmp_path, wrapper=["nohup"] if nohup else []) as running:
        running.process.send_signal(signal.SIGHUP)
        if nohup:
            assert running.http.get("/health/ready").is_success
            assert running.stop() == 0
        assert running.process.wait(PATIENCE_SECONDS) == 0
    taken = [line for line in running.log.read_text().splitlines() if "signal taken" in line]
    assert [json.loads(line)["signal"] for line in taken] == ["SIGTERM" if nohup else "SIGHUP"]


def test_a_log_that_nobody_reads_holds_up_neither_work_nor_end(tmp_path: Path) -> None:
    port = free_port()
    arguments = ["serve", "--data-dir", str(tmp_path / "data"), "--port", str(port), "--log-level", "debug"]
    with subprocess.Popen([*COMMAND, *arguments], env=environment(), stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        try:
            wait_until(lambda: _is_up(port), "the service's start")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                for _ in range(200):  # each is a line
                    assert client.get("/health/live").is_success
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()


def test_the_lock_goes_with_a_killed_service(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with service(data, tmp_path) as first:
        first.kill()
        with ServiceLock(data):
            pass


@pytest.mark.parametrize("lead", ["2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_service_needs_no_standard_files(tmp_path: Path, lead: str) -> None:
    data = tmp_path / "data"
    port = free_port()
    arguments = f"serve --demo --data-dir {data} --port {port}"
    told = tmp_path / "told"
    lead = lead if "2>" in lead else f"{lead} 2>{told}"
    with subprocess.Popen(["sh", "-c", f'exec "$@" {arguments} {lead}', "sh", *COMMAND], env=environment()) as process:
        try:
            wait_until(lambda: process.poll() is not None or _is_up(port), "the service's start")
            held = {number: os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)}
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()
    assert not any(str(data) in path for path in held.values())  # no database or mail where Python writes to
    assert not told.exists() or "Traceback" not in told.read_text()


def _is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False).is_success
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize(
    ("command", "lead", "said"),
    [
        ("secret-key", ">&-", "Bad file descriptor"),
        ("secret-key", ">/dev/full", "No space left on device"),
        ("openapi", ">/dev/full", "No space left on device"),
        ("backup copy", ">/dev/full", "No space left on device"),
        ("history", ">/dev/full", "No space left on device"),
        ("history", ">&-", "Bad file descriptor"),
        ("queue --json", ">/dev/full", "No space left on device"),
        ("--version", ">/dev/full 2>&-", None),
        ("openapi", "| true", ""),
    ],
)
def test_output_that_can_not_be_written_is_told_in_a_line(
    started: Service, tmp_path: Path, command: str, lead: str, said: str | None
) -> None:
    where = environment(MPU_DATA_DIR=str(started.data_dir), MPU_PORT=str(started.http.base_url.port))
    ended = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {command} {lead}', "bash", *COMMAND],
        env=where,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert ended.returncode == 1
    told = f"mpu: standard output can't be written: {said}\n     Lead it elsewhere, or make room.\n"
    assert ended.stderr == (told if said else "")


def test_a_start_that_fails_leaves_no_lock(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert mpu("serve", "--host", "192.0.2.1", "--port", "0") == 1
    assert "can't listen" in capsys.readouterr().err
    with ServiceLock(tmp_path / "data"), DataDirLock(tmp_path / "data", exclusive=True):
        pass
