"""A real browser for tests of the web page: what it asked for, what it complained about, and what a person does in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
ELSEWHERE = "https://www.bbc.com/weather"  # where quick exit goes; answered here, nothing leaves the machine
WATCH_POLICY = (
    "addEventListener('securitypolicyviolation', e => console.error('policy violated: ' + e.violatedDirective))"
)

PATIENCE = 60_000  # milliseconds, for a machine that does much else
expect.set_options(timeout=PATIENCE)


@contextmanager
def running() -> Iterator[Browser | None]:
    """Chromium without a window; None where it is not installed."""
    if not CHROMIUM.exists():
        yield None
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """One person's stay on the page."""

    context: BrowserContext
    page: Page
    url: str
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # of the console, and errors that nothing caught

    def begin(self) -> Page:
        """Open the page and acknowledge the notice."""
        self.page.goto(self.url)
        self.page.click("#notice-accept")
        return self.page

    def say(self, text: str) -> None:
        """Write a message and wait until the answer has ended."""
        before = self.page.locator(".by-companion").count()
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")
        self.page.wait_for_function(
            "n => document.querySelectorAll('.by-companion').length > n && !document.querySelector('#send').hidden",
            arg=before,
        )

    def replies(self) -> list[str]:
        return self.page.locator(".by-companion .text").all_inner_texts()

    def another(self) -> Page:
        """A new tab of the same browser."""
        page = self.context.new_page()
        self._watch(page)
        page.goto(self.url)
        return page

    def _watch(self, page: Page) -> None:
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} {message.location.get('url', '')}")


@contextmanager
def visiting(browser: Browser, url: str, *, expected: tuple[str, ...] = (), **options: Any) -> Iterator[Visit]:
    """A fresh profile. In the end nothing but the server was asked, and the console has no more than `expected`.

    `expected`: parts of what the browser itself writes there, such as the address of a request that was refused.
    `options`: of the context, as viewport and color_scheme.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    context.set_default_timeout(PATIENCE)
    context.add_init_script(WATCH_POLICY)
    context.route(f"{ELSEWHERE}*", lambda route: route.fulfill(body="<title>Weather</title>", content_type="text/html"))
    visit = Visit(context, context.new_page(), url)
    context.on("request", lambda request: visit.requests.append(request))  # noqa: PLW0108 - no builtin is taken
    visit._watch(visit.page)
    try:
        yield visit
        asked = {urlsplit(request.url)[:2] for request in visit.requests if urlsplit(request.url).scheme != "blob"}
        strangers = asked - {urlsplit(ELSEWHERE)[:2], urlsplit(url)[:2]}
        assert not strangers, strangers
        complaints = [each for each in visit.complaints if not any(part in each for part in expected)]
        assert not complaints, complaints
    finally:
        context.close()
