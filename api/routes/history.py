"""The history: what was attempted and what came of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Cursor, Limit, Relay
from api.openapi import HISTORY, operation
from api.schemas.base import NAME_PATTERN, ListOut, TimeIn, page_out
from api.schemas.messages import HistoryPublic, StatusWord
from api.schemas.queue import RecipientFilter
from api.security import GuardedRoute
from core.domain.outcome import Outcome
from core.errors import FieldError, InvalidSettings
from core.runtime.views import HistoryFilter, Scope

router = APIRouter(tags=[HISTORY], route_class=GuardedRoute)


@router.get(
    "/history",
    **operation(
        "list_history",
        Scope.READ,
        "Search the history",
        text="A row a recipient, newest first, each as it stands after its last attempt. Filters add up. Names of "
        "accounts and directories stay after these are deleted. Where little of a very long history meets several "
        "filters, a page may be short or even empty: go on while there is a `next`.",
    ),
)
async def list_history(
    relay: Relay,
    status: Annotated[StatusWord | None, Query(description="Only with this outcome.")] = None,
    recipient: Annotated[
        RecipientFilter | None, Query(description="Only to this address, or domain as @example.org.")
    ] = None,
    sender: Annotated[
        str | None,
        Query(min_length=1, max_length=320, description="Only from this address, whatever the case of its letters."),
    ] = None,
    directory: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    account: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    internet_message_id: Annotated[
        str | None, Query(min_length=1, max_length=998, description="Message-ID of the mail's header.")
    ] = None,
    since: Annotated[TimeIn | None, Query(description="From this time on.")] = None,
    until: Annotated[TimeIn | None, Query(description="Before this time.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> ListOut[HistoryPublic]:
    if since is not None and until is not None and since > until:
        raise InvalidSettings([FieldError("query/until", "out_of_range", "lies before `since`")])
    where = HistoryFilter(
        status=None if status is None else status if status == "deleted" else Outcome(status),
        recipient=recipient,
        sender=sender,
        directory=directory,
        account=account,
        internet_message_id=internet_message_id,
        since=since,
        until=until,
    )
    page = await relay.history.list(where, limit, cursor)
    return ListOut[HistoryPublic].model_validate(page_out(page, HistoryPublic.model_validate))
