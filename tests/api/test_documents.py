"""Swagger UI, the OpenAPI document, and the sandbox's pages."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI

from api.app import create_app
from api.openapi import TAGS, document, document_text
from api.schemas import accounts, base, directories, drain, examples, queue, service
from core.runtime.views import SandboxMail, SandboxSource
from core.settings import Settings
from tests.api.fakes import FakeRelay, FakeSandbox
from tests.support.database import START
from tests.support.token_server import service_key


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return document(create_app(Settings.model_validate({})))


@functools.cache
def text_of_the_document() -> str:
    """It takes seconds."""
    return document_text()


def operations(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, entry) for path, methods in schema["paths"].items() for method, entry in methods.items()]


async def test_the_pages_come_from_ourselves(nobody: httpx.AsyncClient) -> None:
    page = await nobody.get("/docs")
    assert page.status_code == 200
    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert "//" not in page.text.replace("<!doctype", "")
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        answer = await nobody.get(f"/{address}")
        assert answer.status_code == 200, address
        assert len(answer.content) > 100
    start = (await nobody.get("/docs/start.js")).text
    for option in ('docExpansion: "none"', "filter: true", "tryItOutEnabled: true", "displayRequestDuration: true"):
        assert option in start
    assert "defaultModelsExpandDepth: -1" in start
    for missing in (
        "/docs/redoc.standalone.js",
        "/docs/..%2f__init__.py",
        "/redoc",
        "/static-offline-docs/favicon.png",
    ):
        assert (await nobody.get(missing)).status_code == 404


async def test_the_document_is_served(nobody: httpx.AsyncClient, schema: dict[str, Any]) -> None:
    assert (await nobody.get("/openapi.json")).json()["paths"].keys() == schema["paths"].keys()


def test_the_file_is_what_the_application_says() -> None:
    file = Path(__file__).parents[2] / "openapi.yaml"
    assert file.read_text(encoding="utf-8") == text_of_the_document(), "make openapi"


def test_the_text_says_what_the_document_says(schema: dict[str, Any]) -> None:
    text = text_of_the_document()
    assert yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) == schema
    assert "&id" not in text


def test_tags_are_in_working_order(schema: dict[str, Any]) -> None:
    assert [tag["name"] for tag in schema["tags"]] == [
        "Start here",
        "Accounts",
        "Directories",
        "Queue",
        "Drain",
        "Messages",
        "History",
        "Alerts and health",
        "Keys and settings",
    ]
    used = {tag for _, _, entry in operations(schema) for tag in entry["tags"]}
    assert used == {tag["name"] for tag in TAGS}
    assert schema["tags"][0]["description"].count("curl") >= 5


def test_each_operation_says_all_that_is_asked(schema: dict[str, Any]) -> None:
    ids = [entry["operationId"] for _, _, entry in operations(schema)]
    assert len(ids) == len(set(ids))
    for method, path, entry in operations(schema):
        where = f"{method} {path}"
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", entry["operationId"]), where
        assert entry["summary"], where
        assert len(entry["tags"]) == 1, where
        text = entry["description"]
        assert re.search(r"Scope: `\w+`\.|Open: no key needed\.", text), where
        assert re.search(r"[Ii]dempotent|repeated at will", text), where
        for status, answer in entry["responses"].items():
            assert answer["description"], where
            if status >= "400" and "application/problem+json" in answer.get("content", {}):
                assert len(answer["description"]) > 20, where
                assert status == "422" or "Remedy" in answer["description"] or "Scope" in text, (where, status)
        if "requestBody" in entry:
            for content in entry["requestBody"]["content"].values():
                assert content.get("examples"), where
        if method == "patch":
            kinds = list(entry["requestBody"]["content"])
            assert kinds == ["application/merge-patch+json", "application/json"], where


def test_parameters_and_fields_are_described(schema: dict[str, Any]) -> None:
    for name in ("AccountCreate", "AccountUpdate", "DirectoryCreate", "DirectoryUpdate", "KeyIn"):
        for field, value in schema["components"]["schemas"][name]["properties"].items():
            described = value.get("description") or any(part.get("description") for part in value.get("anyOf", ()))
            assert described or field == "scopes", f"{name}.{field}"


MODELS = {
    "ACCOUNT_CREATE": accounts.AccountCreate,
    "ACCOUNT_PUT": accounts.AccountPut,
    "ACCOUNT_UPDATE": accounts.AccountUpdate,
    "ACCOUNT_TRY": accounts.AccountTry,
    "DIRECTORY_CREATE": directories.DirectoryCreate,
    "DIRECTORY_PUT": directories.DirectoryPut,
    "DIRECTORY_UPDATE": directories.DirectoryUpdate,
    "PAUSE": base.PauseIn,
    "DRAIN": drain.DrainIn,
    "BULK": queue.BulkIn,
    "TEST_MESSAGE": accounts.TestMessageIn,
    "KEY": service.KeyIn,
    "SETTINGS": service.SettingsUpdate,
}


@pytest.mark.parametrize(
    ("model", "value"),
    [
        pytest.param(MODELS[name], entry["value"], id=f"{name}-{key}")
        for name, entries in ((name, getattr(examples, name)) for name in MODELS)
        for key, entry in entries.items()
    ],
)
def test_examples_are_good(model: type[base.In], value: dict[str, Any]) -> None:
    model.model_validate(value)
    if model.__name__.endswith("Update"):
        assert len(value) == 1


async def test_account_and_directory_examples_can_be_saved(admin: httpx.AsyncClient, roots: Path) -> None:
    for entry in examples.ACCOUNT_CREATE.values():
        oauth = entry["value"].get("oauth", {})
        if "service_account_key" in oauth:  # a document is no place for a private key
            oauth = {**oauth, "service_account_key": service_key()}
        answer = await admin.post("/accounts", json={**entry["value"], **({"oauth": oauth} if oauth else {})})
        assert answer.status_code == 201, answer.text
    for entry in examples.DIRECTORY_CREATE.values():
        path = roots / entry["value"]["name"]
        path.mkdir()
        answer = await admin.post("/directories", json={**entry["value"], "path": str(path)})
        assert answer.status_code == 201, answer.text


# --- sandbox ---------------------------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>"
PAGE = {"Accept": "text/html,application/xhtml+xml"}


async def test_the_sandbox_shows_what_it_got(admin: httpx.AsyncClient, relay: FakeRelay, app: FastAPI) -> None:
    assert (await admin.get("/sandbox")).status_code == 404
    relay.sandbox = FakeSandbox()
    assert "Nothing yet" in (await admin.get("/sandbox", headers=PAGE)).text
    data = b"Subject: x\r\n\r\n<script>alert(1)</script>\xff\r\n"
    mail = SandboxMail(1, START, "", (f"{HOSTILE}@x.y",) * 30, HOSTILE, len(data))
    relay.sandbox.kept.append(SandboxSource(mail, data))
    listed = await admin.get("/sandbox")
    assert listed.json()["items"][0]["subject"] == HOSTILE
    source = await admin.get("/sandbox/1")
    assert (source.content, source.headers["content-type"]) == (data, "message/rfc822")
    for page in (await admin.get("/sandbox", headers=PAGE), await admin.get("/sandbox/1", headers=PAGE)):
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "script" not in page.headers["content-security-policy"]
        assert "<img" not in page.text
        assert "<script" not in page.text
        assert "&lt;img" in page.text
    assert "and 10 more" in (await admin.get("/sandbox", headers=PAGE)).text
    assert (await admin.get("/sandbox/2")).status_code == 404
