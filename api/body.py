"""Bodies of requests: none where none is asked for."""

from __future__ import annotations

from fastapi import Request
from starlette.requests import ClientDisconnect

from api.errors import hung_up
from core.errors import FieldError, InvalidSettings


async def refuse_body(request: Request) -> None:
    """Raises InvalidSettings where there is one."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return
    try:
        async for chunk in request.stream():
            if chunk:
                raise InvalidSettings(
                    [FieldError("", "no_body", "this call takes no body")], remedy="Send it without one."
                )
    except ClientDisconnect:
        raise hung_up() from None
