"""A served line, a browser that watches what a page does wrong, and people who look at it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.line.conftest import _trial_in_this_process, new_model
from tests.serving.conftest import brightness_model, new_service, picture

__all__ = ["LINE", "_trial_in_this_process", "brightness_model", "new_model", "new_service", "picture"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LINE = "/v1/lines/bolt"
MILLISECONDS = 10_000


@pytest.fixture(scope="module")
def site(new_service: Callable[..., Any]) -> Any:
    """A line that has judged twelve parts and puts all of them before a reviewer."""
    running = new_service({"audit_share": 1.0})
    for number, brightness in enumerate((20, 40, 60, 80, 90, 95, 110, 120, 130, 140, 160, 200)):
        assert running.judge(picture(brightness, note=number), f"A-{number}").status == 201
    return running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, site: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages, each in a browser of its own; fails where one logs an error or asks another host."""
    contexts, wrong = [], []

    def open_page(path: str, *, running: Any = site, **settings: Any) -> Any:
        home = f"http://127.0.0.1:{running.port}"
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 720}, **settings})
        context.set_default_timeout(MILLISECONDS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: None if _is_own(request.url, home) else wrong.append(request.url))
        page.goto(f"{home}/studio/{path}")
        return page

    open_page.wrong = wrong  # type: ignore[attr-defined]
    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def _is_own(address: str, home: str) -> bool:
    return address.startswith((f"{home}/", "blob:", "data:"))
