"""The queue: what waits, why, and what can be done with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from api.deps import By, Cursor, Limit, MessageIdIn, Relay, RunIdIn, location
from api.errors import printable
from api.openapi import MOVED, QUEUE, operation
from api.schemas import examples
from api.schemas.base import NAME_PATTERN, ListOut, page_out
from api.schemas.queue import (
    BulkIn,
    OperationPublic,
    QueuedMessagePublic,
    QueuePublic,
    ReasonPublic,
    ReasonsPublic,
    RecipientFilter,
    StateWord,
)
from api.security import GuardedRoute
from core.domain.message import State
from core.runtime.facade import RawMessage, RelayFacade
from core.runtime.views import Actor, BulkAct, QueueFilter, Scope

router = APIRouter(tags=[QUEUE], route_class=GuardedRoute)

_GONE = {404: "There is no such message, or it was sent or deleted in the meantime. Remedy: GET /messages/{id}."}
_STATE = {409: "Its state does not allow this (`state`). Remedy: see the text above."}
_BULK = {
    202: {**MOVED, "description": "Begun; ask at Location how far it is.", "model": OperationPublic},
}
_BULK_TEXT = "Goes on in the background: `matched, done, skipped, failed` at /operations/{id}. "
_BULK_ERRORS = {
    422: "A field is wrong, or the filter is empty without `all`. Remedy: name a filter, or say all.",
    429: "As many bulk acts run as may at once. Remedy: wait for one to end.",
}


@router.get("/queue", **operation("get_queue", Scope.READ, "Count what waits"))
async def get_queue(relay: Relay) -> QueuePublic:
    return QueuePublic.model_validate(await relay.queue.counts())


@router.get(
    "/queue/messages",
    **operation(
        "list_queued_messages",
        Scope.READ,
        "List what waits",
        errors={404: "There is no such directory. Remedy: GET /directories lists them."},
    ),
)
async def list_queued_messages(
    relay: Relay,
    state: Annotated[StateWord | None, Query(description="Only these.")] = None,
    directory: Annotated[str | None, Query(pattern=NAME_PATTERN, description="Only of this directory.")] = None,
    account: Annotated[
        str | None, Query(pattern=NAME_PATTERN, description="Only those whose reason is about this account.")
    ] = None,
    recipient: Annotated[
        RecipientFilter | None, Query(description="Only those to this address, or domain as @example.org.")
    ] = None,
    code: Annotated[int | None, Query(ge=200, le=599, description="Only those with this SMTP code.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> ListOut[QueuedMessagePublic]:
    where = QueueFilter(None if state is None else State(state), directory, account, recipient, code)
    page = await relay.queue.messages(where, limit, cursor)
    return ListOut[QueuedMessagePublic].model_validate(page_out(page, QueuedMessagePublic.model_validate))


@router.get(
    "/queue/reasons",
    **operation("list_queue_reasons", Scope.READ, "Why mail waits", text="Most messages first; each with its remedy."),
)
async def list_queue_reasons(relay: Relay) -> ReasonsPublic:
    return ReasonsPublic(items=[ReasonPublic.model_validate(row) for row in await relay.reasons.list()])


async def _bulk(
    act: BulkAct, relay: RelayFacade, actor: Actor, request: Request, response: Response, body: BulkIn
) -> OperationPublic:
    view = await relay.operations.start(
        act, body.filter.value(), all_messages=body.all, dry_run=body.dry_run, actor=actor
    )
    response.headers["Location"] = location(request, f"/operations/{view.id}")
    return OperationPublic.model_validate(view)


Selection = Annotated[BulkIn, Body(openapi_examples=examples.BULK)]


@router.post(
    "/queue/messages/retry",
    status_code=202,
    **operation(
        "retry_messages",
        Scope.OPERATE,
        "Retry many messages",
        text=_BULK_TEXT,
        mail="As the retry of one message does, for each that matches.",
        body=True,
        errors=_BULK_ERRORS,
        answers=_BULK,
    ),
)
async def retry_messages(
    relay: Relay, actor: By, request: Request, response: Response, body: Selection
) -> OperationPublic:
    return await _bulk(BulkAct.RETRY, relay, actor, request, response, body)


@router.post(
    "/queue/messages/hold",
    status_code=202,
    **operation(
        "hold_messages",
        Scope.OPERATE,
        "Hold many messages",
        text=_BULK_TEXT,
        mail="Each that matches is set aside until released.",
        body=True,
        errors=_BULK_ERRORS,
        answers=_BULK,
    ),
)
async def hold_messages(
    relay: Relay, actor: By, request: Request, response: Response, body: Selection
) -> OperationPublic:
    return await _bulk(BulkAct.HOLD, relay, actor, request, response, body)


@router.post(
    "/queue/messages/release",
    status_code=202,
    **operation(
        "release_messages",
        Scope.OPERATE,
        "Release many messages",
        text=_BULK_TEXT,
        mail="Each that matches and is held waits again.",
        body=True,
        errors=_BULK_ERRORS,
        answers=_BULK,
    ),
)
async def release_messages(
    relay: Relay, actor: By, request: Request, response: Response, body: Selection
) -> OperationPublic:
    return await _bulk(BulkAct.RELEASE, relay, actor, request, response, body)


@router.post(
    "/queue/messages/delete",
    status_code=202,
    **operation(
        "delete_messages",
        Scope.ADMIN,
        "Delete many messages",
        text=_BULK_TEXT + "Try it with `dry_run` first.",
        mail="Each that matches is removed for ever, unsent; the history says so.",
        body=True,
        errors=_BULK_ERRORS,
        answers=_BULK,
    ),
)
async def delete_messages(
    relay: Relay, actor: By, request: Request, response: Response, body: Selection
) -> OperationPublic:
    return await _bulk(BulkAct.DELETE, relay, actor, request, response, body)


@router.get(
    "/queue/messages/{id}", **operation("get_queued_message", Scope.READ, "Show a message that waits", errors=_GONE)
)
async def get_queued_message(relay: Relay, message_id: MessageIdIn) -> QueuedMessagePublic:
    return QueuedMessagePublic.model_validate(await relay.queue.get(message_id))


@router.delete(
    "/queue/messages/{id}",
    status_code=204,
    **operation(
        "delete_message",
        Scope.ADMIN,
        "Delete a message",
        mail="It is removed for ever, unsent; the history says so.",
        idempotent="Not idempotent: a second time it answers 404.",
        errors={
            **_GONE,
            409: "It is being sent now. Remedy: wait for the outcome, or hold the directory with a pause.",
        },
    ),
)
async def delete_message(relay: Relay, actor: By, message_id: MessageIdIn) -> None:
    await relay.queue.delete(message_id, actor)


class _RawResponse(StreamingResponse):
    """Closes the file whatever becomes of the answer."""

    def __init__(self, raw: RawMessage) -> None:
        name = printable(raw.file_name)
        plain = "".join(char if (char.isalnum() and char.isascii()) or char in "._-" else "_" for char in name)
        super().__init__(
            self._chunks(raw),
            media_type="message/rfc822",
            headers={
                "Content-Length": str(raw.size),
                "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}",
            },
        )
        self._raw = raw

    @staticmethod
    async def _chunks(raw: RawMessage) -> AsyncIterator[bytes]:
        async for chunk in raw.chunks():
            yield chunk

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._raw.close()


@router.get(
    "/queue/messages/{id}/raw",
    response_class=Response,
    **operation(
        "get_raw_message",
        Scope.OPERATE,
        "Download a message",
        text="The file as it lies there, untouched.",
        errors={**_GONE, 409: "It can't be read now. Remedy: the detail says why."},
        answers={200: {"description": "The mail.", "content": {"message/rfc822": {"schema": {"type": "string"}}}}},
    ),
)
async def get_raw_message(relay: Relay, message_id: MessageIdIn) -> Response:
    return _RawResponse(await relay.queue.raw(message_id))


@router.post(
    "/queue/messages/{id}/retry",
    **operation(
        "retry_message",
        Scope.OPERATE,
        "Retry a message",
        text="Claimed: wait for its outcome. Held: release it.",
        mail="Deferred becomes due now. Badmail waits again, attempts and age restart. Waiting: no change. Recipients "
        "that a server accepted are never sent to again.",
        errors={**_GONE, **_STATE},
    ),
)
async def retry_message(relay: Relay, actor: By, message_id: MessageIdIn) -> QueuedMessagePublic:
    return QueuedMessagePublic.model_validate(await relay.queue.retry(message_id, actor))


@router.post(
    "/queue/messages/{id}/hold",
    **operation(
        "hold_message",
        Scope.OPERATE,
        "Hold a message",
        text="Claimed: wait for its outcome. Badmail isn't sent anyway.",
        mail="It is set aside until released. Held: no change.",
        errors={**_GONE, **_STATE},
    ),
)
async def hold_message(relay: Relay, actor: By, message_id: MessageIdIn) -> QueuedMessagePublic:
    return QueuedMessagePublic.model_validate(await relay.queue.hold(message_id, actor))


@router.post(
    "/queue/messages/{id}/release",
    **operation(
        "release_message",
        Scope.OPERATE,
        "Release a message",
        text="Badmail: retry it instead.",
        mail="Held waits again. Waiting or deferred: no change.",
        errors={**_GONE, **_STATE},
    ),
)
async def release_message(relay: Relay, actor: By, message_id: MessageIdIn) -> QueuedMessagePublic:
    return QueuedMessagePublic.model_validate(await relay.queue.release(message_id, actor))


@router.get(
    "/operations/{id}",
    **operation(
        "get_operation",
        Scope.READ,
        "Show how far a bulk act is",
        errors={404: "There is no such operation, or it ended long ago. Remedy: the history and audit remember it."},
    ),
)
async def get_operation(relay: Relay, operation_id: RunIdIn) -> OperationPublic:
    return OperationPublic.model_validate(await relay.operations.get(operation_id))
