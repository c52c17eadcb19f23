"""Several processes on one directory, and processes that die: each mail once, nothing lost, nothing stuck."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.relay import mail
from tests.support.service import Service, mail_server, process_directory, service, taken, wait_until


def _fill(path: Path, count: int, *, start: int = 0) -> None:
    """As a careful writer does: elsewhere first, then moved in."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        hidden = path / f".{number}.tmp"
        hidden.write_bytes(mail(number))
        hidden.rename(path / f"{number}.eml")


def _configure(running: Service, path: Path, port: int, **directory: object) -> None:
    running.http.put(
        "/accounts/main", json={"host": "127.0.0.1", "port": port, "security": "none", "auth": "none"}
    ).raise_for_status()
    running.http.put(
        "/directories/pickup", json={"path": str(path), "accounts": ["main"], **directory}
    ).raise_for_status()


def _left(path: Path) -> list[str]:
    """Files, in badmail too."""
    return [
        entry.name
        for folder in (path, path / "badmail")
        if folder.exists()
        for entry in os.scandir(folder)
        if entry.is_file()
    ]


def _took(ledger: Path, count: int) -> bool:
    return len(taken(ledger)) >= count


def _took_or_empty(ledger: Path, count: int, path: Path) -> bool:
    return _took(ledger, count) or not _left(path)


def _history(running: Service) -> Iterator[dict[str, Any]]:
    cursor: dict[str, str] = {}
    while True:
        page = running.http.get("/history", params={"limit": 500, **cursor}).json()
        yield from page["items"]
        if page["next"] is None:
            return
        cursor = {"cursor": page["next"]}


def test_three_services_and_two_commands_on_one_directory_send_each_mail_once(tmp_path: Path) -> None:
    path, ledger, count = tmp_path / "spool" / "pickup", tmp_path / "ledger", 700
    path.mkdir(parents=True)
    with (
        mail_server(ledger) as port,
        service(tmp_path / "one" / "data", tmp_path / "spool") as one,
        service(tmp_path / "two" / "data", tmp_path / "spool") as two,
        service(tmp_path / "three" / "data", tmp_path / "spool") as three,
    ):
        for running in (one, two, three):
            _configure(running, path, port)
        commands = [process_directory(path, port) for _ in range(2)]
        _fill(path, count)
        commands += [process_directory(path, port) for _ in range(2)]
        for command in commands:
            output, _ = command.communicate(timeout=60)
            assert command.returncode in (0, 1), output.decode()
        wait_until(lambda: not _left(path), "the directory is empty")
        times = Counter(taken(ledger))
        assert len(times) == count
        assert [name for name, n in times.items() if n > 1] == []
        for running in (one, two, three):
            assert running.stop() == 0


def test_killed_in_mid_flow_and_started_again_loses_nothing_and_doubles_only_what_was_in_flight(
    tmp_path: Path,
) -> None:
    path, ledger, batch, kills = tmp_path / "spool" / "pickup", tmp_path / "ledger", 300, 4
    chance = random.Random(20261124)
    data = tmp_path / "data"
    in_flight = 0
    path.mkdir(parents=True)
    with mail_server(ledger, "--round-trip-seconds", "0.002") as port:
        for kill in range(kills):
            with service(data, tmp_path / "spool") as running:
                if kill == 0:
                    _configure(running, path, port, retry_initial_seconds=1, retry_max_seconds=1, unknown_max=50)
                wanted = len(taken(ledger)) + chance.randrange(10, batch - 50)
                _fill(path, batch, start=kill * batch)
                wait_until(partial(_took, ledger, wanted), "some of it was sent")
                running.kill()
                in_flight += sum(name.endswith(".lck") for name in _left(path))
        with service(data, tmp_path / "spool") as running:
            wait_until(lambda: not _left(path), "the directory is empty")
            marked = {row["internet_message_id"] for row in _history(running) if row["possible_duplicate"]}
            assert running.stop() == 0
    times = Counter(taken(ledger))
    assert set(times) == {f"<{number}@test>" for number in range(kills * batch)}, "lost"
    doubled = {name for name, n in times.items() if n > 1}
    assert len(doubled) <= in_flight
    assert doubled <= marked, "every duplicate is marked"


def test_a_stop_under_load_leaves_no_claim_and_no_duplicate(tmp_path: Path) -> None:
    path, ledger, count = tmp_path / "spool" / "pickup", tmp_path / "ledger", 900
    data = tmp_path / "data"
    path.mkdir(parents=True)
    with mail_server(ledger) as port:
        with service(data, tmp_path / "spool") as running:
            _configure(running, path, port)
        _fill(path, count)
        for _ in range(3):
            with service(data, tmp_path / "spool") as running:
                wait_until(partial(_took_or_empty, ledger, len(taken(ledger)) + 1, path), "some of it was sent")
                assert running.stop() == 0, running.log.read_text()[-3000:]
                assert [name for name in _left(path) if name.endswith(".lck")] == []
        with service(data, tmp_path / "spool") as running:
            wait_until(lambda: not _left(path), "the directory is empty")
    times = Counter(taken(ledger))
    assert len(times) == count
    assert max(times.values()) == 1


def _drains_started(running: Service) -> int:
    return running.http.get("/audit").text.count("drain.start")


def test_an_open_drain_answers_that_it_was_stopped(tmp_path: Path) -> None:
    path, ledger = tmp_path / "spool" / "pickup", tmp_path / "ledger"
    path.mkdir(parents=True)
    with mail_server(ledger, "--round-trip-seconds", "0.05") as port:
        with service(tmp_path / "data", tmp_path / "spool") as running:
            _configure(running, path, port, watch=False, interval_seconds=3600)
            _fill(path, 400)
            started = running.http.post("/drain", params={"wait": "false"})
            assert started.status_code == 202
            wait_until(lambda: taken(ledger), "the drain's begin")
            with ThreadPoolExecutor(1) as asking:
                answer = asking.submit(running.post, "/drain")
                wait_until(lambda: _drains_started(running) == 2, "the second drain")
                running.process.terminate()
                body = answer.result(60)
            assert body["stopped"] is True
            assert running.process.wait(30) == 0
