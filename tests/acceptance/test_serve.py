"""`mpu serve --demo` as a process of its own: from the file to the sandbox, and a clean end by SIGTERM."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.service import answer_on, begin_body

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE_SECONDS = 30


@dataclass
class Service:
    process: subprocess.Popen[bytes]
    data: Path
    url: str
    notify: socket.socket

    def log(self) -> str:
        return (self.data / "log").read_text()

    def until(self, holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log()
            try:
                if holds():
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.02)  # another process is waited for
        raise AssertionError(f"{what} did not come\n{self.log()}")

    def get(self, path: str) -> httpx.Response:
        key = (self.data / "api-key").read_text().strip()
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {key}"}, trust_env=False)

    def ended(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)


def start(data: Path, *arguments: str, port: int, environ: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MPU_")}
    command = [sys.executable, "-c", "from api.cli import main; main()", "serve", *arguments]
    with (data.parent / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--data-dir", str(data), "--port", str(port), "--log-format", "json"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**clean, **(environ or {})},
        )


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(PATIENCE_SECONDS)
        process = start(data, "--demo", port=port, environ={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        (data / "log").symlink_to(tmp_path / "log")
        service = Service(process, data, f"http://127.0.0.1:{port}", notify)
        try:
            service.until(lambda: httpx.get(service.url + "/health/ready", trust_env=False).is_success, "readiness")
            yield service
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE_SECONDS)


def test_from_the_file_to_the_sandbox_and_a_clean_end(service: Service, tmp_path: Path) -> None:
    assert service.notify.recv(100) == b"READY=1"
    assert service.data.stat().st_mode & 0o777 == 0o700
    assert (service.data / "api-key").stat().st_mode & 0o777 == 0o600
    key = (service.data / "api-key").read_text().strip()
    shutil.copyfile(EXAMPLES / "plain.eml", service.data / "pickup" / "plain.eml")  # no chmod behind it: it may be gone
    service.until(lambda: "Your invoice" in service.get("/sandbox").text, "the mail")
    service.until(lambda: not (service.data / "pickup" / "plain.eml").exists(), "the end of the file")
    _what_is_wrong_is_named(service, tmp_path / "other")
    service.process.send_signal(signal.SIGTERM)
    assert service.ended() == 0
    assert service.notify.recv(100) == b"STOPPING=1"
    log = service.log()
    assert "examples/dotnet.eml" in log  # what to do next
    assert '"exit_code":0' in log
    assert "api-key" in log
    assert key not in log
    assert "42.00 EUR" not in log  # no bodies


def _what_is_wrong_is_named(service: Service, folder: Path) -> None:
    """A taken port and a wrong setting end a second service, with the reason."""
    folder.mkdir()
    port = int(service.url.rpartition(":")[2])
    ended = [start(folder / "data", port=port), start(folder / "data", "--log-level", "loud", port=0)]
    assert [process.wait(PATIENCE_SECONDS) for process in ended] == [1, 2]
    log = (folder / "log").read_text()
    assert f"can't listen on 127.0.0.1 port {port}" in log
    assert "--log-level: " in log


@pytest.mark.parametrize("sent", [b"", b"Subject: half a mail"])
def test_a_stop_does_not_wait_for_what_an_upload_does_not_send(service: Service, sent: bytes) -> None:
    key = (service.data / "api-key").read_text().strip()
    with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), PATIENCE_SECONDS) as connection:
        begin_body(connection, "POST /messages?directory=pickup", key=key)
        connection.sendall(sent)
        begun = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        answer = answer_on(connection)
        assert (answer.status, answer.problem()) == (503, "not_running")
        assert int(answer.headers["retry-after"]) > 0
        assert service.ended() == 0
    assert time.monotonic() - begun < 15, "the grace time is 25 seconds"
    assert "Traceback" not in service.log()
