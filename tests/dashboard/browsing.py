"""A headless Chromium: the system's, driven by Playwright."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest
from playwright.async_api import Browser, Page, async_playwright

NAMES = ("chromium", "chromium-headless-shell", "google-chrome")


def find_chromium() -> str:
    """Its path; a test that has none skips at home and fails in CI."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    if os.environ.get("CI") == "true":
        pytest.fail("Chromium is missing, and CI looks at the dashboard with it")
    pytest.skip("Chromium is not installed: apt-get install chromium")


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """One browser process, ended with the block."""
    path = find_chromium()
    async with async_playwright() as playwright:
        # Inside a container the kernel may not allow its sandbox; it visits this dispatcher only.
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = await playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def opened(
    browser: Browser,
    url: str,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
    motion: Literal["reduce", "no-preference"] = "no-preference",
) -> AsyncIterator[Page]:
    """The dashboard, drawn; whatever it complains of, or asks of others, fails the test."""
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion=motion
    )
    complaints: list[str] = []
    try:
        page = await context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((url, "data:"))
                else complaints.append(f"asked {request.url}")
            ),
        )
        await page.goto(f"{url}/dashboard/")
        await page.wait_for_selector("body[data-drawn]")
        yield page
        assert complaints == []
    finally:
        await context.close()
