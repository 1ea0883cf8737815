"""The report in a real browser: it asks the network for nothing, complains of nothing, and fits a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from warmline.evaluate.report import write_report
from warmline.run_dir import RunDir

from .test_report_html import new_run, whole

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
# How far a box outside every frame that scrolls reaches over the right edge, and what it is.
OVERHANG = """() => [...document.querySelectorAll('body *')]
  .filter(each => !each.closest('.scroll, pre, .skip') && each.getBoundingClientRect().right > innerWidth + 1)
  .map(each => each.tagName + ' ' + each.className)"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
__all__ = ["whole"]  # a run with something of everything, made by the other tests of the page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield opened
        opened.close()


class Visit:
    """A page as it was opened, with what it asked for and complained of."""

    def __init__(self, browser: Any, run: RunDir, size: dict[str, int], scheme: str = "light") -> None:
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.url = (run.path / "report.html").absolute().as_uri()
        self.page.goto(self.url, wait_until="load")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_asks_for_nothing_complains_of_nothing_and_fits(
    browser: Any, whole: RunDir, size: dict[str, int], scheme: str
) -> None:
    visit = Visit(browser, whole, size, scheme)
    assert [url for url in visit.requests if not url.startswith("data:")] == [visit.url]
    assert visit.complaints == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") == size["width"]
    assert visit.page.evaluate(OVERHANG) == []
    assert visit.page.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    frames = visit.page.evaluate("[...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth, e.clientWidth])")
    assert len(frames) > 20
    assert size == DESKTOP or any(inside > shown for inside, shown in frames), "wide tables scroll in their own box"
    visit.context.close()


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_first_screen_says_what_was_found(browser: Any, whole: RunDir, size: dict[str, int]) -> None:
    visit = Visit(browser, whole, size)
    lead = visit.page.locator(".in-short > p").first
    assert "what people really answered is" in lead.inner_text().lower()
    box = lead.bounding_box()
    assert box["y"] + box["height"] < size["height"], "it is seen without scrolling"
    visit.context.close()


def test_a_page_that_loads_something_would_be_seen(browser: Any, tmp_path: Path) -> None:
    """What the test above looks for is there to be found: a picture from elsewhere is asked for, and refused aloud."""
    run = new_run(tmp_path / "runs" / "tiny")
    write_report(run)
    file = run.path / "report.html"
    text = file.read_text(encoding="utf-8")
    wide = '<p style="width: 900px">wide</p><img src="http://127.0.0.1:9/p.png" alt="">'
    file.write_text(text.replace("</main>", f"{wide}</main>"), encoding="utf-8")
    visit = Visit(browser, run, PHONE)
    assert any("127.0.0.1:9" in each for each in [*visit.complaints, *visit.requests])
    assert visit.page.evaluate("document.documentElement.scrollWidth") > PHONE["width"]
    assert any(each.startswith("P") for each in visit.page.evaluate(OVERHANG))
    visit.context.close()
