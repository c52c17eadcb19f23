"""What the sandbox account of `mpu serve --demo` received: a page for people, JSON for everybody else.

Everything shown comes from mails, so everything is escaped, and the page runs no script.
"""

from __future__ import annotations

from html import escape
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from api.deps import Relay
from api.schemas.base import Digits, show_time
from api.schemas.service import SandboxMailPublic
from api.security import PAGE, SCOPE, GuardedRoute
from core.errors import NotFound
from core.runtime.facade import RelayFacade, Sandbox
from core.runtime.views import SandboxMail, Scope

router = APIRouter(route_class=GuardedRoute, include_in_schema=False)

_GUARD = {SCOPE: str(Scope.READ), PAGE: True}
_SOURCE_GUARD = {SCOPE: str(Scope.OPERATE), PAGE: True}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td { overflow-wrap: anywhere; }
pre { background: #f6f6f6; padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd; } th, td { border-color: #444; } pre { background: #262626; }
  a { color: #8ab4f8; }
}
"""
_SHOWN_BYTES = 200_000


def _sandbox(relay: RelayFacade) -> Sandbox:
    if relay.sandbox is None:
        raise NotFound("sandbox", "mpu serve --demo")
    return relay.sandbox


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _page(title: str, body: str) -> HTMLResponse:
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )
    return HTMLResponse(text.encode("utf-8", "replace"), headers={"Content-Security-Policy": _POLICY, "Vary": "Accept"})


def _row(mail: SandboxMail) -> str:
    cells = (
        f'<a href="sandbox/{mail.id}">{mail.id}</a>',
        escape(show_time(mail.received_at)),
        escape(mail.sender or "<>"),
        "<br>".join(escape(recipient) for recipient in mail.recipients[:20])
        + (f"<br>and {len(mail.recipients) - 20} more" if len(mail.recipients) > 20 else ""),
        escape(mail.subject),
        f"{mail.size_bytes:,}",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


@router.get("/sandbox", openapi_extra=_GUARD)
async def list_sandbox(relay: Relay, request: Request) -> Response:
    mails = _sandbox(relay).list()
    if not _wants_page(request):
        items = [SandboxMailPublic.model_validate(mail).model_dump(mode="json") for mail in mails]
        return JSONResponse({"items": items, "next": None}, headers={"Vary": "Accept"})
    head = "".join(f"<th>{name}</th>" for name in ("", "Received", "From", "To", "Subject", "Octets"))
    table = f"<table><tr>{head}</tr>{''.join(map(_row, mails))}</table>"
    empty = "<p>Nothing yet. Copy a mail into the pickup directory and load this page again.</p>"
    return _page("MPU sandbox", f"<h1>MPU sandbox</h1><p>{len(mails)} received.</p>{table if mails else empty}")


@router.get("/sandbox/{id}", openapi_extra=_SOURCE_GUARD)
async def show_sandbox_mail(
    relay: Relay, request: Request, mail_id: Annotated[int, Digits, Path(alias="id", ge=1, le=2**53)]
) -> Response:
    source = _sandbox(relay).get(mail_id)
    if not _wants_page(request):
        headers = {"Content-Disposition": f'attachment; filename="sandbox-{mail_id}.eml"', "Vary": "Accept"}
        return Response(source.data, media_type="message/rfc822", headers=headers)
    shown = source.data[:_SHOWN_BYTES].decode("utf-8", "replace")
    more = "<p>The rest is not shown.</p>" if len(source.data) > _SHOWN_BYTES else ""
    mail = source.mail
    text = (
        f'<p><a href="../sandbox">All mails</a></p><h1>{escape(mail.subject) or "No subject"}</h1>'
        f"<p>Envelope: from {escape(mail.sender or '<>')} to {escape(', '.join(mail.recipients[:100]))}, "
        f"{escape(show_time(mail.received_at))}</p><pre>{escape(shown)}</pre>{more}"
    )
    return _page(f"MPU sandbox: {mail.subject}", text)
