"""From errors to answers: RFC 9457 problem+json, one table.

Each problem has a `type` that stays the same (`urn:mpu:problem:NAME`), a `title`, the `status`, a `detail` for a person
and, where there is one, a `remedy`. Some carry more: `errors` (422), `required_scope` (403), `used_by` and `state`
(409), `check` (a check before saving that failed). Nothing of an unexpected exception is shown; it is logged.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.types import Scope as AsgiScope

from core import errors as relay_errors
from core.runtime.views import Scope

log = structlog.get_logger("api")

MEDIA_TYPE = "application/problem+json"
PREFIX = "urn:mpu:problem:"
RETRY_AFTER_SECONDS = "5"
RETRIED = (429, 503, 507)  # their answers say when


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """One type of problem, as documented."""

    name: str
    status: int
    title: str
    cause: str


KINDS: dict[type[relay_errors.RelayError], Kind] = {
    relay_errors.NotFound: Kind("not_found", 404, "There is no such thing", "The name or id leads to nothing."),
    relay_errors.MessageGone: Kind("gone", 404, "The message is gone", "It was sent or deleted in the meantime."),
    relay_errors.AlreadyExists: Kind("already_exists", 409, "It is there already", "The name or path is taken."),
    relay_errors.InUse: Kind("in_use", 409, "It is in use", "`used_by` names what needs it."),
    relay_errors.StateConflict: Kind(
        "state_conflict", 409, "Its state does not allow this", "`state` names the state that it is in."
    ),
    relay_errors.MessageBusy: Kind("busy", 409, "Somebody else works on it", "Another process holds the message."),
    relay_errors.MessageError: Kind(
        "message_error", 409, "Something is the matter with the message file", "The detail says what."
    ),
    relay_errors.PreconditionFailed: Kind(
        "precondition_failed",
        412,
        "It is not as you suppose",
        "If-Match names another version than the saved, or If-None-Match: * came for what is there already.",
    ),
    relay_errors.InvalidSettings: Kind("invalid", 422, "Something in the request is wrong", "`errors` names each."),
    relay_errors.CheckFailed: Kind(
        "check_failed", 422, "The check failed, nothing was saved", "`check` holds each step with cause and remedy."
    ),
    relay_errors.MessageRejected: Kind(
        "message_rejected", 422, "The mail can't be sent as it is", "The detail says why; RFC 3463 code with it."
    ),
    relay_errors.TooMany: Kind(
        "too_many", 429, "Too many of these are at work", "As many drains or bulk acts run as may at once."
    ),
    relay_errors.DirectoryUnavailable: Kind(
        "directory_unavailable", 503, "The directory can't be reached", "Missing, unmounted or not accessible."
    ),
    relay_errors.DatabaseUnavailable: Kind(
        "database_unavailable", 503, "The database can't be used now", "Locked, unreadable, or newer than this MPU."
    ),
    relay_errors.SecretKeyLost: Kind(
        "secret_key_lost", 503, "The secrets can't be read", "The encryption key is not the one they were saved with."
    ),
    relay_errors.StorageBroken: Kind("storage_broken", 503, "The disk reports errors", "A write or sync failed."),
    relay_errors.NotRunning: Kind("not_running", 503, "The relay does not run", "It is starting or stopping."),
    relay_errors.StorageFull: Kind("storage_full", 507, "No space is left", "The disk or quota is full."),
    relay_errors.RelayError: Kind("error", 500, "Something went wrong", "The detail says what."),
}

MALFORMED = Kind(
    "malformed_body",
    400,
    "The body can't be read",
    "It is not UTF-8, nested beyond measure, or broke off. What is read and no JSON is `invalid`: `malformed_json`.",
)
MALFORMED_REQUEST = Kind("malformed_request", 400, "This is no HTTP request", "The detail says what HTTP has not.")
UNAUTHORIZED = Kind("unauthorized", 401, "A valid API key is needed", "None was given, or it is unknown or expired.")
FORBIDDEN = Kind("forbidden", 403, "The API key may not do this", "`required_scope` names the scope that it needs.")
NO_ROUTE = Kind("no_such_path", 404, "There is no such path", "The calls are listed at /docs.")
WRONG_METHOD = Kind("method_not_allowed", 405, "The path has no such method", "`Allow` names those it has.")
TOO_LARGE = Kind("too_large", 413, "The body is too large", "MPU_MAX_REQUEST_BYTES, or the directory's limit.")
TOO_SLOW = Kind("request_timeout", 408, "The request came too slowly", "The client or the network stalled; try again.")
URL_TOO_LONG = Kind("url_too_long", 414, "The URL is too long", "Filters of many values; or no client of MPU at all.")
WRONG_MEDIA_TYPE = Kind("unsupported_media_type", 415, "This kind of body is not read here", "`remedy` names what is.")
HEADER_TOO_LARGE = Kind(
    "header_too_large", 431, "The header of the request is too large", "MPU_MAX_REQUEST_HEADER_BYTES for all of it."
)
INTERNAL = Kind("internal", 500, "An error nobody thought of", "The log has it, with the time of the request.")

DOCUMENTED: tuple[Kind, ...] = tuple(
    sorted(
        {
            *KINDS.values(),
            MALFORMED,
            MALFORMED_REQUEST,
            UNAUTHORIZED,
            FORBIDDEN,
            NO_ROUTE,
            WRONG_METHOD,
            TOO_SLOW,
            TOO_LARGE,
            URL_TOO_LONG,
            WRONG_MEDIA_TYPE,
            HEADER_TOO_LARGE,
            INTERNAL,
        },
        key=lambda kind: (kind.status, kind.name),
    )
)
USUAL = frozenset({"not_found", "state_conflict", "invalid", "database_unavailable"})  # of several with one status


class Unauthorized(Exception):
    """No key, or none that is valid. `basic`: a browser asks for a page, so it may ask its user for the key."""

    def __init__(self, detail: str, *, basic: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.basic = basic


class Forbidden(Exception):
    """A valid key without the scope, or without the directory."""

    def __init__(self, detail: str, *, required_scope: Scope) -> None:
        super().__init__(detail)
        self.detail = detail
        self.required_scope = required_scope


def problem(
    kind: Kind, detail: str, *, remedy: str = "", headers: Mapping[str, str] | None = None, **more: object
) -> JSONResponse:
    """One answer of the table. `more` are further members."""
    content: dict[str, object] = {
        "type": PREFIX + kind.name,
        "title": kind.title,
        "status": kind.status,
        "detail": printable(detail),
    }
    if remedy:
        content["remedy"] = printable(remedy)
    content.update({name: value for name, value in more.items() if value is not None})
    answer_headers = dict(headers or {})
    if kind.status in RETRIED:
        answer_headers.setdefault("Retry-After", RETRY_AFTER_SECONDS)
    return JSONResponse(content, status_code=kind.status, media_type=MEDIA_TYPE, headers=answer_headers)


def hung_up() -> HTTPException:
    """To a client that went away in the middle of its body; the log of a proxy may show it."""
    return HTTPException(400, "the client hung up before the body was whole")


def path_of(scope: AsgiScope) -> str:
    """The request's path as our routes have it, without a proxy's prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def printable(text: str) -> str:
    """Text that JSON can carry: lone surrogates (of undecodable file names) as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def kind_of(error: relay_errors.RelayError) -> Kind:
    """The row of the table: the nearest of the error's classes."""
    if isinstance(error, relay_errors.MessageRejected) and error.enhanced_code == "5.3.4":
        return TOO_LARGE
    return next(KINDS[kind] for kind in type(error).__mro__ if kind in KINDS)


def relay_problem(error: relay_errors.RelayError) -> JSONResponse:
    """The answer to one of the relay's own errors."""
    more: dict[str, Any] = {}
    if isinstance(error, relay_errors.InvalidSettings):
        more["errors"] = [dataclasses.asdict(item) for item in error.errors]
    elif isinstance(error, relay_errors.InUse):
        more["used_by"] = error.used_by
    elif isinstance(error, relay_errors.StateConflict):
        more["state"] = error.state
    elif isinstance(error, relay_errors.CheckFailed):
        more["check"] = dataclasses.asdict(error.check) if dataclasses.is_dataclass(error.check) else None  # type: ignore[arg-type]  # an instance, never a class
    elif isinstance(error, relay_errors.MessageRejected):
        more["enhanced_code"] = error.enhanced_code
    kind = kind_of(error)
    if kind.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request_failed", code=error.code, detail=error.detail, remedy=error.remedy)
    return problem(kind, error.detail, remedy=error.remedy, **more)


# --- what pydantic and FastAPI found ---------------------------------------------------------------------------------

_WHERE = {"query", "path", "header", "cookie"}
_CODES = {
    "missing": "required",
    "extra_forbidden": "unknown_field",
    "literal_error": "not_allowed",
    "enum": "not_allowed",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "finite_number": "out_of_range",
    "string_too_long": "too_long",
    "string_too_short": "too_short",
    "too_long": "too_long",
    "too_short": "too_short",
    "string_pattern_mismatch": "wrong_form",
    "value_error": "wrong_form",
    "string_unicode": "wrong_form",
}


_LENGTHS = {"too_short": ("at least", "min_length"), "too_long": ("at most", "max_length")}


def field_errors(
    found: Sequence[Mapping[str, Any]], read_only: Container[tuple[str, ...]] = ()
) -> list[relay_errors.FieldError]:
    """Each error with its pointer, stable code and a sentence; never the value given. `read_only`: ways in the body."""
    answers = []
    for item in found:
        location = [str(part) for part in item["loc"]]
        place = location.pop(0) if location else "body"
        kind = str(item["type"])
        code = _CODES.get(kind, "wrong_type")
        detail = re.sub(r"^Value error, ", "", str(item["msg"]))
        if kind == "extra_forbidden":
            shown = place == "body" and tuple(location) in read_only
            code = "read_only" if shown else code
            detail = "can be read, not set" if shown else "there is no such field here"
        elif kind == "missing":
            detail = "is needed" if location else "a body is needed"
        elif kind in _LENGTHS and isinstance(item.get("input"), str):  # which pydantic takes for a list of items
            word, limit = _LENGTHS[kind]
            detail = f"String should have {word} {item['ctx'][limit]} characters"
        pointer = "/".join([place, *location]) if place in _WHERE else pointer_to(location)
        answers.append(relay_errors.FieldError(printable(pointer), code, printable(detail)))
    return answers


def pointer_to(location: Sequence[str]) -> str:
    """RFC 6901."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in location)


# --- handlers --------------------------------------------------------------------------------------------------------


async def _on_relay_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, relay_errors.RelayError)
    return relay_problem(error)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = field_errors(error.errors(), getattr(request.state, "read_only", ()))
    kind = KINDS[relay_errors.InvalidSettings]
    shown = [dataclasses.asdict(item) for item in found[:100]]
    return problem(kind, "; ".join(map(str, found[:20])), errors=shown)


async def _on_unauthorized(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Unauthorized)
    challenge = 'Basic realm="MPU: any name, an API key as password"' if error.basic else 'Bearer realm="MPU"'
    return problem(
        UNAUTHORIZED,
        error.detail,
        remedy="Send `Authorization: Bearer KEY` with a key of POST /keys or `mpu key create`.",
        headers={"WWW-Authenticate": challenge},
    )


async def _on_forbidden(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Forbidden)
    return problem(
        FORBIDDEN,
        error.detail,
        remedy=f"Use a key with the scope {error.required_scope}; an admin makes one with POST /keys.",
        required_scope=str(error.required_scope),
    )


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kinds = {
        400: MALFORMED,
        404: NO_ROUTE,
        405: WRONG_METHOD,
        408: TOO_SLOW,
        413: TOO_LARGE,
        415: WRONG_MEDIA_TYPE,
        503: KINDS[relay_errors.NotRunning],
    }
    kind = kinds.get(error.status_code, INTERNAL)
    details = {
        404: f"nothing is at {request.url.path[:200]}",
        405: f"{request.method} is not for {request.url.path[:200]}",
        500: "the request could not be answered",
    }
    detail = details.get(kind.status, str(error.detail))
    remedies = {
        400: "Send the body whole, and JSON as UTF-8.",
        404: "The calls are listed at /docs.",
        405: "The calls are listed at /docs.",
    }
    remedy = remedies.get(kind.status, "")
    headers = {"Allow": ", ".join(_methods_at(request))} if kind is WRONG_METHOD else error.headers
    return problem(kind, detail, remedy=remedy, headers=headers)


def _methods_at(request: Request) -> list[str]:
    """All that the request's path takes. Each has a route of its own, and Starlette knows of the first one only."""
    path = path_of(request.scope)
    methods = {
        method
        for route in iter_route_contexts(request.app.routes)
        if route.path_regex.match(path)
        for method in route.methods or ()
    }
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)  # api/middleware.py answers HEAD


async def _on_anything(request: Request, error: Exception) -> JSONResponse:
    log.error("request_crashed", method=request.method, path=request.url.path, exc_info=error)
    return problem(
        INTERNAL,
        "the request could not be answered",
        remedy="The log of MPU has the cause. Trying again does no harm where the call is idempotent.",
    )


def install(app: FastAPI) -> None:
    """Tell the application how errors are answered."""
    app.add_exception_handler(relay_errors.RelayError, _on_relay_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Unauthorized, _on_unauthorized)
    app.add_exception_handler(Forbidden, _on_forbidden)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_anything)
