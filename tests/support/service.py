"""`mpu serve` and `mpu process` as processes of their own, and a mail server that outlives them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

PATIENCE_SECONDS = 30.0
KEY = "test-key-" + "0" * 40
COMMAND = [sys.executable, "-c", "from api.cli import main; main()"]


def environment(**more: str) -> dict[str, str]:
    """Nothing of the caller's MPU_ settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith("MPU_")} | {"MPU_API_KEY": KEY} | more


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Wait for a child process."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.01)


def free_port() -> int:
    """One that nobody listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Service:
    """A running `mpu serve`."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    log: Path
    data_dir: Path

    def kill(self) -> None:
        """As a power cut of this one process."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)

    def stop(self) -> int:
        """As systemd does; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)

    def post(self, path: str, /, **body: Any) -> Any:
        """A POST that must succeed."""
        answer = self.http.post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()


@dataclass
class Answer:
    """What came back over a connection of the test's own."""

    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self) -> str:
        """The name of the problem; it must be one."""
        assert self.headers["content-type"] == "application/problem+json", self
        told = json.loads(self.body)
        assert told["status"] == self.status
        return str(told["type"]).removeprefix("urn:mpu:problem:")


def connected(service: Service) -> socket.socket:
    """A connection that says nothing by itself."""
    url = service.http.base_url
    return socket.create_connection((url.host, url.port), timeout=PATIENCE_SECONDS)


def begin_body(connection: socket.socket, call: str, *, length: int = 1000, key: str = KEY) -> None:
    """The header of a request, until its body is waited for. `call`: as "POST /drain"."""
    lines = (
        f"{call} HTTP/1.1",
        "Host: mpu",
        f"Authorization: Bearer {key}",
        f"Content-Length: {length}",
        "Expect: 100-continue",
    )
    connection.sendall("\r\n".join((*lines, "", "")).encode())
    expected = b"HTTP/1.1 100 Continue\r\n\r\n"
    received = connection.recv(len(expected))
    assert received == expected, received


def answer_on(connection: socket.socket) -> Answer:
    """The next answer that comes."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return Answer(answer.status, headers, answer.read())


def is_closed(connection: socket.socket) -> bool:
    """Waits for the service to end it: True if it did, and said nothing more."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@contextmanager
def service(
    data_dir: Path, root: Path, wrapper: Sequence[str] = (), command: Sequence[str] = COMMAND, **settings: str
) -> Iterator[Service]:
    """Start one on a free port and wait until it listens.

    `wrapper`: a command that runs it, as another user, say. `command`: in the place of `mpu`.
    """
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    log = data_dir.parent / f"{data_dir.name}.log"
    with log.open("ab") as out:
        offset = out.tell()
        process = subprocess.Popen(
            [*wrapper, *command, "serve", "--port", "0", "--data-dir", str(data_dir), "--pickup-root", str(root)],
            stdout=out,
            stderr=out,
            env=environment(MPU_LOG_FORMAT="json", **settings),
        )

    def url() -> str | None:
        assert process.poll() is None, log.read_text()
        for line in log.read_bytes()[offset:].splitlines():
            if b'"listening"' in line:
                found: str = json.loads(line)["url"]
                return found
        return None

    try:
        wait_until(url, "the service's start")
        with httpx.Client(
            base_url=url() or "", headers={"Authorization": f"Bearer {KEY}"}, timeout=60, verify=False
        ) as http:
            yield Service(process, http, log, data_dir)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_SECONDS)


@contextmanager
def mail_server(ledger: Path, *options: str) -> Iterator[int]:
    """The scripted server in a process of its own; appends one JSON line a message. Gives its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.smtp_server", "--ledger", str(ledger), *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)
        if process.stdout is not None:
            process.stdout.close()


def taken(ledger: Path) -> list[str]:
    """Message-IDs that the server took, in order."""
    if not ledger.exists():
        return []
    return [json.loads(line)["message_id"] for line in ledger.read_text().splitlines() if line.endswith("}")]


def process_directory(path: Path, port: int, *options: str) -> subprocess.Popen[bytes]:
    """`mpu process PATH --send` through that port."""
    arguments = ["process", str(path), "--send", "--host", "127.0.0.1", "--port", str(port), "--security", "none"]
    return subprocess.Popen(
        [*COMMAND, *arguments, *options], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
