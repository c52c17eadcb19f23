from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog
from pydantic import SecretStr

from core.logs import configure_logs, escape


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def events(out: io.StringIO) -> list[dict[str, object]]:
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
