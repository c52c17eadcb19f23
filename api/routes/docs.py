"""Swagger UI at /docs, from our own files: no outside address, no inline script.

These and /openapi.json are open: they tell what can be called, not what is there.
"""

from __future__ import annotations

import os

import fastapi_offline
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from api.openapi import document
from api.security import OPEN, GuardedRoute

router = APIRouter(route_class=GuardedRoute, include_in_schema=False)

_STATIC = os.path.join(os.path.dirname(fastapi_offline.__file__), "static")
_FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mail Processing Unit</title>
<link rel="icon" type="image/png" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "none",
  filter: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: -1,
  syntaxHighlight: {theme: "obsidian"},
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset]
});
"""


@router.get("/docs", openapi_extra={OPEN: True})
async def docs_page() -> HTMLResponse:
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})


@router.get("/docs/{file}", openapi_extra={OPEN: True})
async def docs_file(file: str) -> Response:
    if file == "start.js":
        return Response(_START, media_type="text/javascript", headers={"Cache-Control": "no-cache"})
    kind = _FILES.get(file)
    if kind is None:
        raise HTTPException(404)
    return FileResponse(os.path.join(_STATIC, file), media_type=kind, headers={"Cache-Control": "max-age=86400"})


@router.get("/openapi.json", openapi_extra={OPEN: True})
async def openapi_document(request: Request) -> JSONResponse:
    return JSONResponse(document(request.app), headers={"Cache-Control": "no-cache"})
