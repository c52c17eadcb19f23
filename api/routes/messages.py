"""Single mails: handed in, explained, followed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.requests import ClientDisconnect

from api.deps import By, MessageIdIn, Relay, Start
from api.errors import Forbidden, hung_up
from api.openapi import MESSAGES, TOO_SLOWLY, operation
from api.schemas.base import NAME_PATTERN
from api.schemas.messages import ExplanationPublic, MessagePublic, SubmittedPublic
from api.security import GuardedRoute, may_submit_to
from core.errors import FieldError, InvalidSettings, MessageRejected
from core.runtime.views import Scope

router = APIRouter(tags=[MESSAGES], route_class=GuardedRoute)

DirectoryIn = Annotated[str, Query(pattern=NAME_PATTERN, description="Name of the directory.")]

_MAIL = """\
X-Sender: shop@example.org
X-Receiver: customer@example.net
From: Shop <shop@example.org>
To: customer@example.net
Subject: Your order

Thank you.
"""

_WRONG_KIND = (
    "The body has a Content-Encoding, or a Content-Type that is none of message/rfc822, text/plain and "
    "application/octet-stream. Remedy: the mail as it is, as message/rfc822."
)


def _takes_mail(route: dict[str, Any]) -> dict[str, Any]:
    """The body is the mail itself."""
    route["openapi_extra"]["requestBody"] = {
        "required": True,
        "content": {
            "message/rfc822": {
                "schema": {"type": "string", "format": "binary", "minLength": 1},
                "examples": {"mail": {"summary": "A mail with its envelope", "value": _MAIL}},
            }
        },
    }
    return route


@router.post(
    "/messages",
    status_code=202,
    **_takes_mail(
        operation(
            "submit_message",
            Scope.SUBMIT,
            "Hand a mail in",
            text="Written durably and atomically into the directory; 202 says that it lies there. From then on it is "
            "as if an application had written it. Scope operate or admin will do too.",
            mail="It is sent as every other mail of the directory.",
            idempotent="Idempotent with an Idempotency-Key, for 24 hours; without one each call hands one in.",
            errors={
                400: "The client hung up in the middle; nothing was kept. Remedy: send it again.",
                403: "The key may not submit to this directory. Remedy: a key with it in `directories`.",
                404: "There is no such directory. Remedy: GET /directories lists them.",
                408: TOO_SLOWLY,
                409: "The same Idempotency-Key is at work right now. Remedy: repeat after it has its answer.",
                413: "The mail is larger than the directory's `max_message_bytes`. Remedy: raise that.",
                415: _WRONG_KIND,
                422: "A parameter is wrong, the mail is empty, or the same Idempotency-Key came with another body or "
                "directory.",
                503: "The directory, or with an Idempotency-Key the database, can't be used, or MPU starts or stops. "
                "Remedy: try again after `Retry-After`, with the same key.",
                507: "No space is left. Remedy: make room; the client tries again.",
            },
        )
    ),
)
async def submit_message(
    relay: Relay,
    actor: By,
    start: Start,
    request: Request,
    directory: DirectoryIn,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern=r"^[\x21-\x7e]+$",
            description="Chosen by you, one for each mail: repeating the call with it hands nothing in twice.",
        ),
    ] = None,
) -> SubmittedPublic:
    if not may_submit_to(actor, directory):
        raise Forbidden(f"the key {actor.key_name!r} may not submit to {directory!r}", required_scope=Scope.OPERATE)
    stream = _capped(request, start.max_submit_bytes)
    try:
        return SubmittedPublic.model_validate(await relay.messages.submit(directory, stream, actor, idempotency_key))
    except ClientDisconnect:
        raise hung_up() from None


async def _capped(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it comes in; the directory's own limit is the relay's to watch."""
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > limit:
            raise MessageRejected(
                "5.3.4", f"the mail is larger than {limit} octets", remedy="Raise MPU_MAX_SUBMIT_BYTES."
            )
        if chunk:
            yield chunk
    if seen == 0:
        raise InvalidSettings([FieldError("", "required", "the body is the mail, and it is empty")])


@router.post(
    "/messages/explain",
    **_takes_mail(
        operation(
            "explain_message",
            Scope.OPERATE,
            "Explain a mail",
            text="What would happen to this mail in this directory and why: its envelope, what is stripped, added and "
            "re-encoded, how leading dots are read, which account, in which state.",
            mail="Nothing is sent or kept.",
            errors={
                400: "The client hung up in the middle. Remedy: send it again.",
                404: "There is no such directory. Remedy: GET /directories lists them.",
                408: TOO_SLOWLY,
                413: "The mail is too large. Remedy: raise MPU_MAX_SUBMIT_BYTES.",
                415: _WRONG_KIND,
            },
        )
    ),
)
async def explain_message(relay: Relay, request: Request, directory: DirectoryIn) -> ExplanationPublic:
    try:
        data = await request.body()
    except ClientDisconnect:
        raise hung_up() from None
    if not data:
        raise InvalidSettings([FieldError("", "required", "the body is the mail, and it is empty")])
    return ExplanationPublic.model_validate(await relay.messages.explain(directory, data))


@router.get(
    "/messages/{id}",
    **operation(
        "get_message",
        Scope.READ,
        "Show the whole life of a mail",
        text="Queued or gone: envelope, recipients, every attempt, what operators did.",
        errors={
            404: "There is no such message, or the history forgot it. Remedy: `history_days` says how long it is kept."
        },
    ),
)
async def get_message(relay: Relay, message_id: MessageIdIn) -> MessagePublic:
    return MessagePublic.model_validate(await relay.messages.life(message_id))
