"""The web page for everybody: with the keyboard alone, by a screen reader's names, and what axe-core finds."""

from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from warmline.serve.store.history import Store

from .browser import Visit, visiting
from .web_server import DANGER, web_server


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('store') / 'history.db'}")
    with web_server(store=store) as address:
        yield address


@pytest.fixture
def visit(chromium: Browser, url: str) -> Iterator[Visit]:
    with visiting(chromium, url) as opened:
        yield opened


def tab_to(page: Page, selector: str, backwards: bool = False) -> None:
    """Press Tab until the element has the focus, which must be seen there."""
    for _ in range(40):
        if page.evaluate("s => document.activeElement?.matches(s)", selector):
            outline = page.evaluate(
                "() => { const node = document.activeElement; const ring = node.matches('.chip input') ? node.nextElementSibling : node;"
                " return getComputedStyle(ring).outlineStyle }"
            )
            assert outline != "none", selector
            return
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
    pytest.fail(f"{selector} cannot be reached")


def test_all_is_done_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit.page
    page.goto(visit.url)
    tab_to(page, "#notice-accept")
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_be_focused()
    page.keyboard.type("It was a long week.")
    page.keyboard.press("Enter")
    expect(page.locator(".by-companion .text")).to_have_count(1)
    expect(page.locator("#send")).to_be_visible()
    tab_to(page, "#open-style")
    page.keyboard.press("Enter")
    tab_to(page, "#style input[name=tone]")
    page.keyboard.press("ArrowRight")
    tab_to(page, "#style .primary")
    page.keyboard.press("Enter")
    expect(page.locator("#open-style")).to_have_text("Style: warm")
    expect(page.locator("#open-style")).to_be_focused()
    tab_to(page, "#open-settings", backwards=True)
    page.keyboard.press("Enter")
    expect(page.locator("#settings")).to_be_visible()
    tab_to(page, "#keep")
    page.keyboard.press("Space")
    expect(page.locator("#kept li")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    expect(page.locator("#open-settings")).to_be_focused()
    page.wait_for_timeout(1000)  # two Escapes in a row would leave the page
    tab_to(page, "#support")
    page.keyboard.press("Enter")
    expect(page.locator("#help .card-title")).to_be_focused()
    tab_to(page, "#help a[href='tel:988']")
    page.keyboard.press("Escape")
    expect(page.locator("#support")).to_be_focused()
    tab_to(page, "#message")
    page.keyboard.type(DANGER)
    page.keyboard.press("Enter")
    expect(page.locator(".by-companion .text")).to_have_count(2)
    expect(page.locator("#send")).to_be_visible()
    tab_to(page, "#card-place a[href='tel:988']", backwards=True)
    tab_to(page, "#card-place [data-action=hide]", backwards=True)
    page.keyboard.press("Enter")
    expect(page.locator(".card-unfold")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#card-place .card-title")).to_be_focused()


def test_a_link_before_everything_skips_to_writing(visit: Visit) -> None:
    page = visit.begin()
    stops = page.evaluate("[...document.querySelectorAll('a[href], button, textarea')].map(stop => stop.className)")
    assert stops[0] == "skip"
    tab_to(page, ".skip", backwards=True)
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_be_focused()


def test_everything_has_a_name_for_screen_readers(visit: Visit) -> None:
    page = visit.begin()
    expect(page.get_by_role("textbox", name="Your message")).to_be_visible()
    expect(page.get_by_role("log", name="Messages")).to_have_attribute("aria-live", "polite")
    expect(page.get_by_role("link", name="Get support now")).to_be_visible()
    visit.say(DANGER)
    region = page.get_by_role("region", name="Support from people, shown by the warmline app")
    expect(region).to_be_visible()
    expect(region.get_by_role("heading", name="People you can reach")).to_be_visible()
    assert page.get_by_role("heading", name="You", exact=True).count() == 1
    page.get_by_role("button", name="Feelings").click()
    page.get_by_role("button", name="Feelings").click()
    expect(page.get_by_role("img", name="Feelings read in one message")).to_be_visible()


def test_without_motion_nothing_moves(chromium: Browser, url: str) -> None:
    with visiting(chromium, url, reduced_motion="reduce") as visit:
        page = visit.begin()
        page.keyboard.type("Hello.")
        page.keyboard.press("Enter")
        expect(page.locator(".piece").first).to_be_visible()
        assert page.evaluate("document.getAnimations().length") == 0


def dialog(opener: str) -> Callable[[Visit], None]:
    def show(visit: Visit) -> None:
        visit.begin().click(opener)

    return show


def first_run(visit: Visit) -> None:
    visit.page.goto(visit.url)
    expect(visit.page.locator("#notice")).to_be_visible()


def empty(visit: Visit) -> None:
    visit.begin()


def talking(visit: Visit) -> None:
    visit.begin()
    visit.say("I feel so alone.")
    visit.say("Thank you. My sister called.")
    if visit.page.locator("#feelings").is_hidden():
        visit.page.click("#open-feelings")
    visit.page.click("#feelings summary")


def card(visit: Visit) -> None:
    visit.begin()
    visit.say(DANGER)


def folded(visit: Visit) -> None:
    card(visit)
    visit.page.click("#card-place [data-action=hide]")


def support(visit: Visit) -> None:
    visit.begin().click("#support")
    expect(visit.page.locator("#help .card")).to_be_visible()


def forgetting(visit: Visit) -> None:
    page = visit.begin()
    visit.say("Hello.")
    page.click("#open-settings")
    page.check("#keep")
    expect(page.locator("#kept li")).to_have_count(1)
    page.click("#forget-all")


def help_page(visit: Visit) -> None:
    visit.page.goto(f"{visit.url}/static/help.html")
    expect(visit.page.locator(".card")).to_be_visible()


SCENES = {
    "first run": first_run,
    "empty": empty,
    "talking": talking,
    "card": card,
    "folded": folded,
    "support": support,
    "style": dialog("#open-style"),
    "settings": dialog("#open-settings"),
    "forgetting": forgetting,
    "help page": help_page,
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("scene", SCENES)
def test_axe_finds_nothing_serious(chromium: Browser, url: str, scene: str, scheme: str) -> None:
    width = 390 if scheme == "dark" else 1280
    size = {"width": width, "height": 800}
    with visiting(chromium, url, color_scheme=scheme, reduced_motion="reduce", viewport=size) as visit:
        SCENES[scene](visit)
        found = Axe().run(visit.page, options={"resultTypes": ["violations"]}).response
        assert found["passes"]
        serious = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious] == []


def test_axe_would_find_something(visit: Visit) -> None:
    page = visit.begin()
    page.evaluate(
        "document.querySelector('#composer label').remove(); document.querySelector('#message').placeholder = ''"
    )
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert "label" in {each["id"] for each in found if each["impact"] in ("serious", "critical")}
