"""What is asked of every request before routing, and said with every answer.

Bodies are capped (by Content-Length at once, else while they come in) and have their time. A body without Content-Type,
or with the one that `curl -d` sends, is read as JSON; other kinds are refused where JSON is needed. A mail may come
without a type, as message/rfc822, or as what programs say of any file. Nothing is unpacked: a coded body is refused.
Answers tell browsers to guess and frame nothing. HEAD is answered as GET is, without the body.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import TOO_LARGE, WRONG_MEDIA_TYPE, path_of, problem

FORM = b"application/x-www-form-urlencoded"
JSON = b"application/json"
MAIL_KINDS = frozenset({b"", b"message/rfc822", b"text/plain", b"application/octet-stream", FORM})  # FORM: bare curl
MAIL = frozenset({"/messages", "/messages/explain"})  # what takes one
STREAMED = frozenset({"/messages"})  # has a limit of its own
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
NO_PAGE_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
NOT_STORED = (b"cache-control", b"no-store")
WITH_EVERY_ANSWER = (*HEADERS, NO_PAGE_POLICY, NOT_STORED)


class Bodies:
    """The time that bodies take. `idle_seconds`: until the next octets of one; `whole_seconds`: for all of it."""

    def __init__(self, *, idle_seconds: float, whole_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._whole_seconds = whole_seconds
        self._open: set[asyncio.Timeout] = set()
        self._stopping = False

    def begin_stop(self) -> None:
        """Those that are not whole end now: a stop would wait for their clients."""
        self._stopping = True
        now = asyncio.get_running_loop().time()
        for limit in self._open:
            if not limit.expired():
                limit.reschedule(now)

    def timed(self, receive: Receive) -> Receive:
        """Raises the 408 or 503 that FastAPI passes on as it is."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._whole_seconds
        whole = False

        async def timed() -> Message:
            nonlocal whole
            if whole:  # it is asked whether the client hung up
                return await receive()
            now = loop.time()
            limit = asyncio.timeout_at(now if self._stopping else min(ends_at, now + self._idle_seconds))
            self._open.add(limit)
            try:
                async with limit:
                    message = await receive()
            except TimeoutError:
                raise self._over(loop.time() >= ends_at) from None
            finally:
                self._open.discard(limit)
            whole = not message.get("more_body", False)
            return message

        return timed

    def _over(self, deadline: bool) -> HTTPException:
        close = {"Connection": "close"}  # nobody reads the rest
        if self._stopping:
            return HTTPException(503, "the service stops; the body was not whole. Send it again in a moment.", close)
        seconds = self._whole_seconds if deadline else self._idle_seconds
        what = "the body was not whole after" if deadline else "nothing of the body came for"
        return HTTPException(408, f"{what} {seconds:g} seconds. Send it again.", close)


class RequestRules:
    """ASGI middleware with the rules of this module's text. Sizes in octets."""

    def __init__(self, app: ASGIApp, *, bodies: Bodies, max_request_bytes: int, max_mail_bytes: int) -> None:
        self._app = app
        self._bodies = bodies
        self._max_request_bytes = max_request_bytes
        self._max_mail_bytes = max_mail_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        path = path_of(scope)
        limit = self._max_mail_bytes if path in MAIL else self._max_request_bytes
        length = _content_length(scope)
        if length is not None and length > limit:
            answer = problem(TOO_LARGE, f"{length} octets; at most {limit} are taken", remedy=_remedy(path))
            await answer(scope, receive, _with_headers(send))
            return
        if scope["method"] in ("POST", "PUT", "PATCH"):
            refused = _refused_kind(scope, path) if _has_body(scope) else None
            if refused is not None:
                await refused(scope, receive, _with_headers(send))
                return
            if path not in MAIL and _media_type(scope) in (b"", FORM):
                scope = {**scope, "headers": [*_without_type(scope), (b"content-type", JSON)]}
        receive = self._bodies.timed(receive)  # of GET too: a body that is refused is waited for as well
        if path not in STREAMED:
            receive = _capped(receive, limit, path)
        await self._app(scope, receive, _with_headers(send))


def _refused_kind(scope: Scope, path: str) -> JSONResponse | None:
    """The 415 to a body of a kind or coding that is not read there."""
    coding = _header(scope, b"content-encoding").strip().lower()
    if coding not in (b"", b"identity"):
        remedy = "Send the body as it is, without Content-Encoding."
        headers = {"Accept-Encoding": "identity"}  # RFC 9110, section 15.5.16
        return problem(WRONG_MEDIA_TYPE, "coded bodies are not read", remedy=remedy, headers=headers)
    kind = _media_type(scope)
    if path in MAIL:
        if kind in MAIL_KINDS:
            return None
        return problem(WRONG_MEDIA_TYPE, "a mail is needed", remedy="Send Content-Type: message/rfc822.")
    if kind in (b"", FORM, JSON) or (kind.startswith(b"application/") and kind.endswith(b"+json")):
        return None
    return problem(WRONG_MEDIA_TYPE, "JSON is needed", remedy="Send Content-Type: application/json.")


def _remedy(path: str) -> str:
    return "Raise MPU_MAX_SUBMIT_BYTES." if path in MAIL else "Raise MPU_MAX_REQUEST_BYTES."


def _header(scope: Scope, wanted: bytes) -> bytes:
    """The first of this name; empty: there is none."""
    return next((bytes(value) for name, value in scope["headers"] if name == wanted), b"")


def _has_body(scope: Scope) -> bool:
    return _content_length(scope) not in (None, 0) or _header(scope, b"transfer-encoding") != b""


def _content_length(scope: Scope) -> int | None:
    length = _header(scope, b"content-length")
    return int(length[:20]) if length.isdigit() else None


def _media_type(scope: Scope) -> bytes:
    return _header(scope, b"content-type").split(b";", 1)[0].strip().lower()


def _without_type(scope: Scope) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in scope["headers"] if name != b"content-type"]


def _capped(receive: Receive, limit: int, path: str) -> Receive:
    """Counts what comes in; raises the 413 that FastAPI passes on as it is."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, f"more than {limit} octets are not taken. {_remedy(path)}")
        return message

    return counted


def _without_body(send: Send) -> Send:
    """The answer's head only; its headers tell of the body that GET would bring."""

    async def heading(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
        elif not message.get("more_body", False):
            await send({"type": "http.response.body"})

    return heading


def _with_headers(send: Send) -> Send:
    """Adds the headers of every answer, where the answer has none of its own."""

    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if message["status"] == HTTPStatus.NO_CONTENT:  # FastAPI names the kind of a body that there isn't
                headers = [(name, value) for name, value in headers if name.lower() != b"content-type"]
            there = {name.lower() for name, _ in headers}
            headers += [item for item in WITH_EVERY_ANSWER if item[0] not in there]
            message = {**message, "headers": headers}
        await send(message)

    return adding
