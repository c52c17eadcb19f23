from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog
from pydantic import SecretStr

from core.logs import configure_logs, escape, logs_written

WAIT_SECONDS = 20.0  # never reached when all is well


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def events(out: io.StringIO) -> list[dict[str, object]]:
    assert logs_written(WAIT_SECONDS)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_one_json_line_an_event(out: io.StringIO) -> None:
    configure_logs(log_format="json", stream=out)
    structlog.get_logger().warning("account paused", account="a", remedy="x\ny")
    structlog.get_logger().debug("not shown")
    (event,) = events(out)
    assert list(event)[:3] == ["time", "level", "event"]
    assert (event["level"], event["event"], event["remedy"]) == ("warning", "account paused", "x\ny")


@pytest.mark.parametrize(
    "fields",
    [
        {"password": "hunter22"},
        {"smtp_password": b"hunter22"},
        {"Authorization": "Bearer hunter22"},
        {"access_token": ["hunter22"]},
        {"secret_key": {"a": "hunter22"}},
        {"account": {"name": "a", "password": "hunter22"}},
        {"headers": [{"authorization": "hunter22"}]},
        {"anything": SecretStr("hunter22")},
        {"line": "Authorization: Bearer hunter22hunter22"},
        {"line": "Authorization: Basic hunter22"},
        {"line": "headers {'authorization': 'basic hunter22', ...}"},
        {"line": "sent bearer hunter22hunter22."},
        {"line": "sent BASIC aHunter22huntermypassword="},
        {"line": "got Bearer abcdefghHunterIJKLhunter22"},
        {"line": f"got bearer {'k' * 32}hunter22"},
    ],
)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_are_masked(
    out: io.StringIO, fields: dict[str, object], log_format: Literal["json", "console"]
) -> None:
    configure_logs(log_format=log_format, stream=out)
    structlog.get_logger().info("saved", password_set=True, **fields)
    assert "hunter22" not in out.getvalue()
    assert "password_set" in out.getvalue()
    assert "true" in out.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "the server asks for basic authentication, which is off",
        "basic authentication/authorization mechanisms",
        "Basic responsibilities of a bearer internationalization team",
        "needs a bearer token",
        "basic auth-and-transport-security",
    ],
)
def test_prose_is_no_credential(out: io.StringIO, text: str) -> None:
    configure_logs(log_format="json", stream=out)
    structlog.get_logger().info("refused", reply=text)
    assert events(out)[0]["reply"] == text


def test_console_shows_no_raw_control_characters(out: io.StringIO) -> None:
    configure_logs(log_format="console", stream=out)
    structlog.get_logger().error("a\nb", name="\x1b[2J\u202e\udcff", raw=b"\xff\x00", nested={"k": "\x07\x9b"})
    (line,) = out.getvalue().splitlines()
    assert line.isprintable()
    assert r"\x1b[2J\u202e\udcff" in line


def test_a_traceback_cannot_pose_as_an_event(out: io.StringIO) -> None:
    configure_logs(log_format="console", stream=out)
    try:
        raise ValueError("x\n12:00:00.000 info    all is well\x1b[0m")
    except ValueError:
        structlog.get_logger().exception("failed")
    first, *rest = out.getvalue().splitlines()
    assert "failed" in first
    assert rest
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_foreign_loggers_take_the_same_way(out: io.StringIO) -> None:
    configure_logs(log_format="json", stream=out)
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.access").info("GET / 200")
    logging.getLogger("uvicorn.error").warning("Bad %s", "request")
    try:
        raise RuntimeError("x")
    except RuntimeError:
        logging.getLogger("uvicorn.error").exception("broke")
    bad, broke = events(out)
    assert (bad["event"], bad["logger"], bad["level"]) == ("Bad request", "uvicorn.error", "warning")
    assert "RuntimeError: x" in str(broke["exception"])


def test_a_bad_log_call_or_a_broken_pipe_harms_nobody(out: io.StringIO) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    configure_logs(log_format="json", stream=Broken())
    structlog.get_logger().info("lost")
    configure_logs(log_format="json", stream=out)
    structlog.get_logger().info("odd", value={1, 2}, deep=[[[[[[[[1]]]]]]]], long="x" * 100_000)
    (event,) = events(out)
    assert len(out.getvalue()) < 6000
    assert event["value"] == [1, 2]


def test_escape_leaves_text_alone() -> None:
    assert escape("Grüße\tan 株式会社") == "Grüße\tan 株式会社"


class Writes(io.StringIO):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def write(self, text: str) -> int:
        self.count += 1
        return super().write(text)


async def test_what_is_said_in_one_turn_of_the_loop_is_one_write(out: io.StringIO) -> None:
    writes = Writes()
    configure_logs(log_format="json", stream=writes, final=True)
    log = structlog.get_logger()
    for number in range(3):
        log.info("sent", number=number)
    assert writes.getvalue() == ""
    await asyncio.sleep(0)
    assert [event["number"] for event in events(writes)] == [0, 1, 2]
    assert writes.count == 1


async def test_trouble_is_written_at_once_behind_what_was_said_before(out: io.StringIO) -> None:
    writes = Writes()
    configure_logs(log_format="json", stream=writes, final=True)
    log = structlog.get_logger()
    log.info("sent")
    log.warning("deferred")
    assert [event["event"] for event in events(writes)] == ["sent", "deferred"]
    await asyncio.sleep(0)
    assert len(events(writes)) == 2


async def test_threads_and_the_loop_lose_no_line_of_one_another(out: io.StringIO) -> None:
    writes = Writes()
    configure_logs(log_format="json", stream=writes, final=True)
    log = structlog.get_logger()

    def other() -> None:
        for number in range(2000):
            log.info("thread", number=number)

    thread = asyncio.to_thread(other)
    task = asyncio.get_running_loop().create_task(thread)
    for number in range(2000):
        log.info("loop", number=number)
        if number % 7 == 0:
            await asyncio.sleep(0)
    await task
    await asyncio.sleep(0)
    for who in ("thread", "loop"):
        assert [event["number"] for event in events(writes) if event["event"] == who] == list(range(2000))


def test_a_loop_that_ended_before_its_lines_were_written_keeps_back_no_other_loops(out: io.StringIO) -> None:
    configure_logs(log_format="json", stream=out, final=True)

    async def say(text: str, turns: int) -> None:
        structlog.get_logger().info(text)
        for _ in range(turns):
            await asyncio.sleep(0)
        asyncio.get_running_loop().stop()

    for text, turns in (("first", 0), ("second", 2)):
        loop = asyncio.new_event_loop()
        task = loop.create_task(say(text, turns))
        loop.run_forever()
        assert task.done()
        loop.close()
    assert [event["event"] for event in events(out)][-1] == "second"


class Talking(io.StringIO):
    """The collector finds something to say in the middle of a write."""

    def write(self, text: str) -> int:
        if "gathered" in text:
            logging.getLogger("asyncio").error("Task was destroyed")
        return super().write(text)


@pytest.mark.timeout(20)
async def test_what_is_said_in_the_middle_of_a_write_comes_behind_it(out: io.StringIO) -> None:
    talking = Talking()
    configure_logs(log_format="json", stream=talking, final=True)
    structlog.get_logger().info("gathered")
    await asyncio.sleep(0)
    assert logs_written(WAIT_SECONDS)
    assert [event["event"] for event in events(talking)] == ["gathered", "Task was destroyed"]


async def test_other_libraries_lines_keep_their_place(out: io.StringIO) -> None:
    configure_logs(log_format="json", stream=out, final=True)
    structlog.get_logger().info("said first")
    logging.getLogger("core.store").error("said then")
    assert [event["event"] for event in events(out)] == ["said first", "said then"]


def test_without_a_loop_each_line_is_written_at_once(out: io.StringIO) -> None:
    configure_logs(log_format="json", stream=out, final=True)
    structlog.get_logger().info("ready")
    assert [event["event"] for event in events(out)] == ["ready"]


def test_what_the_end_of_the_process_finds_is_written() -> None:
    program = (
        "import asyncio, structlog; from core.logs import configure_logs\n"
        "configure_logs(log_format='json', final=True)\n"
        "async def last(): structlog.get_logger().info('stopped'); asyncio.get_running_loop().stop()\n"
        "loop = asyncio.new_event_loop(); loop.create_task(last()); loop.run_forever()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(ended.stderr)["event"] == "stopped"


class Stuck(io.StringIO):
    """A reader that takes nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.goes_on = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.begun.set()
        assert self.goes_on.wait(WAIT_SECONDS)
        return super().write(text)


async def test_a_reader_that_hangs_holds_nobody_up_and_what_it_missed_is_counted(
    out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.logs.WAITING_MAX_CHARACTERS", 4000)
    stuck = Stuck()
    configure_logs(log_format="json", stream=stuck, final=True)
    log = structlog.get_logger()
    log.warning("said", number=0)
    assert stuck.begun.wait(WAIT_SECONDS)
    for number in range(1, 501):
        log.info("said", number=number) if number % 2 else log.warning("said", number=number)
        if number % 10 == 0:
            await asyncio.sleep(0)
    assert not logs_written(0.01)
    stuck.goes_on.set()
    assert logs_written(WAIT_SECONDS)
    log.info("said", number=501)
    log.error("said", number=502)
    told = events(stuck)
    (dropped,) = [event for event in told if event["event"] == "log lines dropped"]
    numbers = [event["number"] for event in told if event["event"] == "said"]
    kept = told.index(dropped)
    assert numbers == [*range(kept), 501, 502]
    assert dropped["lines"] == 501 - kept
    assert 10 < kept < 100
    assert dropped["level"] == "warning"


async def test_what_was_dropped_is_told_without_another_line(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.logs.WAITING_MAX_CHARACTERS", 1000)
    stuck = Stuck()
    configure_logs(log_format="console", stream=stuck, final=True)
    for number in range(100):
        structlog.get_logger().warning("said", number=number)
    stuck.goes_on.set()
    assert logs_written(WAIT_SECONDS)
    assert logs_written(WAIT_SECONDS)
    assert "log lines dropped  lines=" in stuck.getvalue().splitlines()[-1]


def test_the_end_of_the_process_does_not_wait_for_a_reader_that_hangs() -> None:
    program = (
        "import structlog; from core.logs import configure_logs\n"
        "configure_logs(log_format='json', final=True)\n"
        "for number in range(5000): structlog.get_logger().warning('said', number=number)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(WAIT_SECONDS) == 0  # nobody reads; a pipe holds some 600 of them
        finally:
            process.kill()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_tells_its_own_lines_and_not_its_parents() -> None:
    program = (
        "import os, structlog; from core.logs import configure_logs\n"
        "configure_logs(log_format='json', final=True); log = structlog.get_logger()\n"
        "log.warning('parent')\n"
        "if os.fork() == 0: log.warning('child')\n"
        "else: os.wait()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert sorted(json.loads(line)["event"] for line in ended.stderr.splitlines()) == ["child", "parent"]
