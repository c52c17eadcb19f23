"""Every call of the HTTP interface against its own document: no 500, no undocumented answer, no way in without a key.

A whole relay behind uvicorn on a loopback port. The examples of the document are made to fit: an account `office`, a
directory `pickup` and one held message are there, so that calls get beyond 404. Positive data may still be refused
(an unknown account, a path outside the roots), which is not looked at here. Bounded to about a minute.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CHECKS, load_all_checks

from api.app import create_app
from api.openapi import document
from core.domain.message import MessageIdentity
from core.runtime.relay import Relay
from core.settings import Settings
from tests.support.smtp_server import SmtpServer

KEY = "schemathesis-" + "k" * 40
HEADERS = {"Authorization": f"Bearer {KEY}"}
MTIME_NS = 1_700_000_000_000_000_000
MAIL = b"From: a@example.org\nTo: b@example.net\nSubject: one\n\nhello\n".ljust(180, b"\n")
MESSAGE_ID = MessageIdentity("pickup", b"mail.eml", MTIME_NS, len(MAIL)).id
EXAMPLES = 2


@schemathesis.serializer("message/rfc822")
def _mail(_context: Any, value: Any) -> bytes:
    """Generated bodies as they are."""
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else repr(value)).encode("utf-8", "surrogateescape")


load_all_checks()
CHECKED = CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "ignored_auth",
        "unsupported_method",
    ]
)

schema = schemathesis.openapi.from_dict(document(create_app(Settings.model_validate({}))))


class Service:
    """The application behind uvicorn in a thread of its own, as `mpu serve` has it."""

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self._folder = folder
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(30)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # told to the test's thread
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        pickup = self._folder / "roots" / "pickup"
        pickup.mkdir(parents=True)
        start = Settings.model_validate(
            {
                "data_dir": self._folder / "data",
                "pickup_roots": (self._folder / "roots",),
                "api_key": KEY,
                "grace_seconds": 1,
            }
        )
        async with SmtpServer() as sink:
            config = uvicorn.Config(
                create_app(start, Relay(start)), port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=5
            )
            self._server = uvicorn.Server(config)
            serving = asyncio.create_task(self._server.serve())
            while not self._server.started and not serving.done():
                await asyncio.sleep(0.01)
            self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
            await self._prepare(pickup, sink.port)
            self._ready.set()
            await serving

    async def _prepare(self, pickup: Path, port: int) -> None:
        async with httpx.AsyncClient(base_url=self.url, headers=HEADERS) as client:
            account = {"name": "office", "host": "127.0.0.1", "port": port, "security": "none"}
            (await client.post("/accounts", json=account)).raise_for_status()
            (await client.post("/accounts/office/pause")).raise_for_status()
            directory = {"name": "pickup", "path": str(pickup), "accounts": ["office"]}
            (await client.post("/directories", json=directory)).raise_for_status()
            (pickup / "mail.eml").write_bytes(MAIL)
            os.utime(pickup / "mail.eml", ns=(MTIME_NS, MTIME_NS))
            (await client.get(f"/queue/messages/{MESSAGE_ID}")).raise_for_status()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("service"))
    made.start()
    yield made
    made.stop()


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_no_call_answers_as_it_should_not(case: Any, service: Service) -> None:
    if case.operation.definition.raw["operationId"] == "delete_key" and str(case.path_parameters["id"]) == "1":
        return  # the test's own
    case.call_and_validate(base_url=service.url, headers=HEADERS, checks=CHECKED, timeout=30)


def test_the_service_is_still_well(service: Service) -> None:
    answer = httpx.get(f"{service.url}/health", headers=HEADERS)
    assert answer.status_code == 200
    assert answer.json()["status"] in ("ready", "degraded")
