"""Swagger UI in a real browser: it comes up from our own files alone, and a call can be tried out with a key."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from playwright.async_api import async_playwright

from api.app import create_app
from core.runtime.relay import Relay
from tests.support.relay import settings_for

CHROMIUM = shutil.which("chromium")
BROWSER_SECONDS = 100  # many of the browser's own calls wait without a bound

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (Debian: apt-get install chromium)"),
]


@asynccontextmanager
async def served(root: Path) -> AsyncIterator[tuple[str, str]]:
    """The address of a whole application, and its key."""
    settings = settings_for(root, demo=True, pickup_roots=(root,))
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, Relay(settings)),
            port=0,
            log_config=None,
            lifespan="on",
            timeout_graceful_shutdown=5,
        )
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.01)
    assert settings.api_key is not None
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", settings.api_key.get_secret_value()
    finally:
        server.should_exit = True
        await asyncio.wait_for(serving, 30)


async def test_swagger_and_the_sandbox_in_a_browser(tmp_path: Path) -> None:
    async with asyncio.timeout(BROWSER_SECONDS), served(tmp_path) as (url, key), async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page()
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(f"{url}/docs")
        await page.wait_for_selector(".opblock-tag")
        tags = await page.locator(".opblock-tag").evaluate_all("found => found.map(tag => tag.dataset.tag)")
        assert tags[:2] == ["Start here", "Accounts"]
        assert await page.locator(".opblock").count() == 0  # docExpansion none
        await page.click(".btn.authorize")
        await page.fill(".auth-container input", key)
        await page.click(".auth-btn-wrapper .authorize")
        await page.click(".auth-btn-wrapper .btn-done")
        await page.click("[data-tag='Accounts']")
        await page.click("#operations-Accounts-list_accounts .opblock-summary-control")
        await page.click("#operations-Accounts-list_accounts .execute")
        await page.wait_for_selector("#operations-Accounts-list_accounts .live-responses-table")
        answer = await page.inner_text("#operations-Accounts-list_accounts .live-responses-table")
        assert "200" in answer
        assert '"sandbox"' in answer
        assert complaints == []
        assert all(address.startswith((f"{url}/", "data:")) for address in asked)

        context = await browser.new_context(http_credentials={"username": "me", "password": key})
        sandbox = await context.new_page()
        await sandbox.goto(f"{url}/sandbox")
        assert "MPU sandbox" in await sandbox.title()
        await browser.close()
