"""The OpenAPI document: how an operation is described, the words of the tags, and the file openapi.yaml.

`operation()` makes the arguments of a route: the one place where its scope is said, for the guard as for the reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import yaml
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.errors import DOCUMENTED, MEDIA_TYPE, PREFIX, RETRIED, USUAL, Kind
from api.security import OPEN, PAGE, SCOPE
from core.runtime.views import Scope
from core.settings import Settings

START, ACCOUNTS, DIRECTORIES, QUEUE, DRAIN, MESSAGES, HISTORY, HEALTH, SERVICE = (
    "Start here",
    "Accounts",
    "Directories",
    "Queue",
    "Drain",
    "Messages",
    "History",
    "Alerts and health",
    "Keys and settings",
)

_START_TEXT = """\
Five steps from nothing to a mail that is delivered. `KEY` is an API key; the first one lies in the file `api-key` of
the data directory. Press **Authorize** above and give it there, or use curl:

1. **An account**, the way out. With `?check=true` the login is tried before anything is saved.

       curl -H "Authorization: Bearer $KEY" 'localhost:8025/accounts?check=true' -d '{"name": "office",
         "host": "smtp.example.org", "username": "relay@example.org", "password": "..."}'

2. **A directory** that your applications write into.

       curl -H "Authorization: Bearer $KEY" localhost:8025/directories -d '{"name": "pickup",
         "path": "/var/spool/mpu/pickup", "accounts": ["office"]}'

3. **Write a mail** into it, or let MPU write it:

       curl -H "Authorization: Bearer $KEY" 'localhost:8025/messages?directory=pickup' \\
         -H 'Content-Type: message/rfc822' --data-binary @examples/plain.eml

4. **Work off what waits** and see what came of it.

       curl -H "Authorization: Bearer $KEY" -X POST localhost:8025/drain
       curl -H "Authorization: Bearer $KEY" 'localhost:8025/history?limit=5'

5. **When something waits**: why, and what to do about it.

       curl -H "Authorization: Bearer $KEY" localhost:8025/queue/reasons
       curl -H "Authorization: Bearer $KEY" localhost:8025/alerts

With `mpu serve --demo` there are an account and a directory already; what the account got is shown under `/sandbox`.
"""

TAGS = [
    {"name": START, "description": _START_TEXT},
    {"name": ACCOUNTS, "description": "Ways out: SMTP servers with a login. Passwords are never shown."},
    {"name": DIRECTORIES, "description": "Pickup directories: where applications write their mails."},
    {"name": QUEUE, "description": "What waits, why, and what can be done with it: one by one or in bulk."},
    {"name": DRAIN, "description": "Work off what waits, now."},
    {"name": MESSAGES, "description": "Single mails: hand one in, see its whole life, or what would happen to it."},
    {"name": HISTORY, "description": "What was attempted and what came of it, a row a recipient."},
    {"name": HEALTH, "description": "What needs a person now; what supervisors and Prometheus ask."},
    {"name": SERVICE, "description": "API keys, the audit, settings of the service."},
]

_COMMON = {
    401: "No API key, or an unknown or expired one. Remedy: `Authorization: Bearer KEY`.",
    403: "The key's scope is not enough. Remedy: a key with the scope in `required_scope`.",
    422: "A field or parameter is wrong or unknown. Remedy: `errors` names each with pointer and code.",
    503: "The database can't be used now, or MPU starts or stops. Remedy: try again after `Retry-After` seconds.",
}
STALE = "It was changed since you saw it. Remedy: GET it again, then repeat."
STALE_OR_THERE = f"{STALE} Or, with `If-None-Match: *`, it is there already. Remedy: leave that out to replace it."
TOO_SLOWLY = "The body came too slowly. Remedy: send it again; `MPU_REQUEST_BODY_TIMEOUT_SECONDS` is what is waited."
_BODY = {
    400: "The body is not UTF-8 or nested beyond measure. Remedy: send JSON.",
    408: TOO_SLOWLY,
    413: "The body is too large. Remedy: a smaller one, or raise MPU_MAX_REQUEST_BYTES.",
    415: "The body has another Content-Type, or a Content-Encoding. Remedy: application/json, as it is.",
}


def _problem_example(kind: Kind) -> dict[str, Any]:
    example: dict[str, Any] = {
        "type": PREFIX + kind.name,
        "title": kind.title,
        "status": kind.status,
        "detail": "what happened, for a person",
        "remedy": "what to do about it",
    }
    if kind.status == HTTPStatus.UNPROCESSABLE_ENTITY:
        example["errors"] = [{"pointer": "/port", "code": "out_of_range", "detail": "must be at most 65535"}]
    elif kind.status == HTTPStatus.FORBIDDEN:
        example["required_scope"] = "admin"
    return example


# by status: the type that comes most
_EXAMPLES = {kind.status: _problem_example(kind) for kind in reversed(DOCUMENTED)} | {
    kind.status: _problem_example(kind) for kind in DOCUMENTED if kind.name in USUAL
}


def operation(
    operation_id: str,
    scope: Scope | None,
    summary: str,
    *,
    mail: str = "Nothing happens to mail.",
    idempotent: str = "Idempotent.",
    text: str = "",
    body: bool = False,
    errors: Mapping[int, str] | None = None,
    answers: Mapping[int, dict[str, Any]] | None = None,
    page: bool = False,
) -> dict[str, Any]:
    """Arguments of a route: what it does (to mail, too), its scope, errors with cause and remedy. None: open."""
    needed = f"Scope: `{scope}`." if scope else "Open: no key needed."
    described = {} if scope is None else dict(_COMMON)
    if scope is None:
        described[422] = _COMMON[422]
    if body:
        described |= _BODY
    described |= errors or {}
    responses: dict[Any, dict[str, Any]] = {
        status: {
            "description": words,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": _EXAMPLES[status]}},
        }
        for status, words in sorted(described.items())
    }
    for status in RETRIED:
        if status in responses:
            responses[status]["headers"] = {"Retry-After": _header("Seconds to wait.", "integer")}
    responses |= answers or {}
    extra: dict[str, Any] = {OPEN: True} if scope is None else {SCOPE: str(scope)}
    if page:
        extra[PAGE] = True
    description = "\n\n".join(part for part in (text, f"{mail} {idempotent} {needed}") if part)
    return {
        "operation_id": operation_id,
        "summary": summary,
        "description": description,
        "responses": responses,
        "openapi_extra": extra,
    }


def _header(description: str, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


ETAG = {"headers": {"ETag": _header("The version, for If-Match.")}}
CREATED = {"headers": {"ETag": _header("The version, for If-Match."), "Location": _header("Where it is now.")}}
MOVED = {"headers": {"Location": _header("Where to ask how far it is.")}}

_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457. `type` stays the same for ever; further members by type.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "enum": [PREFIX + kind.name for kind in DOCUMENTED]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened, for a person."},
        "remedy": {"type": "string", "description": "What to do about it."},
        "errors": {
            "type": "array",
            "description": "422: each wrong field.",
            "items": {
                "type": "object",
                "required": ["pointer", "code", "detail"],
                "properties": {
                    "pointer": {
                        "type": "string",
                        "description": "RFC 6901 pointer into the body; or query/NAME, path/NAME, header/NAME.",
                    },
                    "code": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
        "required_scope": {"type": "string", "enum": [str(scope) for scope in Scope], "description": "403."},
        "used_by": {"type": "array", "items": {"type": "string"}, "description": "409: what needs it."},
        "state": {"type": "string", "description": "409: the state that it is in."},
        "enhanced_code": {"type": "string", "description": "RFC 3463 code of a mail that can't be sent."},
        "check": {"type": "object", "description": "422 of `?check=true`: what the check found, step by step."},
    },
}


def _introduction() -> str:
    rows = "\n".join(f"| {kind.status} | `{PREFIX}{kind.name}` | {kind.title}. {kind.cause} |" for kind in DOCUMENTED)
    return (
        "Mail Processing Unit: a relay that takes mails from pickup directories and sends them through accounts that "
        "are allowed to send.\n\n"
        "Times are RFC 3339 in UTC, durations seconds, sizes octets. Lists come in pages: give `next` back as "
        "`cursor`. A PATCH is a merge patch (RFC 7396). Errors are problem+json (RFC 9457).\n\n"
        f"<details><summary>All types of errors</summary>\n\n"
        f"| status | type | meaning |\n| --- | --- | --- |\n{rows}\n\n</details>\n"
    )


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document; made once, the same for every configuration."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=_introduction(),
            routes=app.routes,
            tags=TAGS,
            license_info={"name": "MIT", "identifier": "MIT"},
        )
        components = schema["components"]
        components["schemas"]["Problem"] = _PROBLEM
        components["schemas"] = {
            name: value
            for name, value in sorted(components["schemas"].items())
            if name not in ("HTTPValidationError", "ValidationError")
        }
        components["securitySchemes"] = {
            "key": {
                "type": "http",
                "scheme": "bearer",
                "description": "An API key: `mpu_...`. The first lies in the file `api-key` of the data directory.",
            }
        }
        for path in schema["paths"].values():
            for method, entry in path.items():
                _finish(method, entry)
        app.openapi_schema = schema
    return app.openapi_schema


def _finish(method: str, entry: dict[str, Any]) -> None:
    entry["security"] = [] if entry.pop(OPEN, False) else [{"key": []}]
    content = entry.get("requestBody", {}).get("content", {})
    if method == "patch" and "application/json" in content:
        entry["requestBody"]["content"] = {
            "application/merge-patch+json": content["application/json"],
            "application/json": content["application/json"],
        }
    for status, answer in entry["responses"].items():
        if answer.get("description") in ("", "Successful Response"):
            answer["description"] = HTTPStatus(int(status)).phrase


class _Dumper(yaml.SafeDumper):
    """Writes everything out, and texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def document_text() -> str:
    """The text of openapi.yaml; the same on every machine and with every configuration."""
    from api.app import create_app  # which needs this module

    text: str = yaml.dump(
        document(create_app(Settings.model_validate({}))),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=120,
    )
    return text
