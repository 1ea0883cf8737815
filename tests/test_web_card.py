"""The card on the web page: before the reply, always at hand, offline too, and large enough to read."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from warmline.safety.levels import Level
from warmline.safety.resources.card import card_for
from warmline.safety.resources.directory import fallback, load_directory

from .browser import Visit, visiting
from .web_server import DANGER, EMERGENCY, web_server

# When the card and when the first words of a reply came onto the page, in the order of their coming.
WATCH_ARRIVAL = """
window.arrived = [];
addEventListener("DOMContentLoaded", () => {
  new MutationObserver(() => {
    const note = (what, selector) => {
      if (document.querySelector(selector) && !window.arrived.includes(what)) window.arrived.push(what);
    };
    note("card", "#card-place .card");
    note("reply", ".by-companion .piece");
  }).observe(document.body, { childList: true, subtree: true });
});
"""
CONTRAST = {"runOnly": ["color-contrast-enhanced"], "resultTypes": ["violations"]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with web_server() as address:
        yield address


@pytest.fixture
def visit(chromium: Browser, url: str) -> Iterator[Visit]:
    with visiting(chromium, url, expected=("/v1/history",)) as opened:  # that server has no store
        yield opened


def is_before(page: Page, first: str, second: str) -> bool:
    code = "([one, other]) => Boolean(document.querySelector(one).compareDocumentPosition(document.querySelector(other)) & 4)"
    return page.evaluate(code, [first, second])


def test_in_a_crisis_the_card_comes_before_the_reply_and_stays(visit: Visit) -> None:
    visit.context.add_init_script(WATCH_ARRIVAL)
    page = visit.begin()
    visit.say(DANGER)
    assert page.evaluate("window.arrived") == ["card", "reply"]
    assert is_before(page, "#card-place .card", ".by-companion .text")
    place = page.locator("#card-place")
    assert place.get_attribute("aria-live") == "assertive"
    assert place.get_attribute("tabindex") == "-1"
    top = place.bounding_box()
    talk = page.locator("#talk").bounding_box()
    assert top is not None
    assert talk is not None
    assert top["y"] + top["height"] <= talk["y"]
    expect(page.locator(".by-companion .text").first).to_be_in_viewport()
    visit.say("I do not know.")
    expect(place.locator(".card")).to_have_count(1)
    assert page.locator("#card-place a[href='tel:988']").inner_text() == "Call 988"
    assert page.locator("#card-place a[href='sms:988']").inner_text() == "Text 988"
    expect(place).to_contain_text("Checked on 2026-11-20")
    expect(place).to_contain_text("warmline has not contacted anyone and cannot.")
    expect(place).to_contain_text("not from the companion")


def test_nothing_on_the_page_names_a_level(visit: Visit) -> None:
    page = visit.begin()
    visit.say(DANGER)
    shown = page.locator("body").inner_text().lower()
    assert not any(word in shown.split() for word in ("high", "elevated", "level", "risk", "assessment", "suicidal"))


def test_the_card_is_hidden_shown_again_and_outlives_a_reload(visit: Visit) -> None:
    page = visit.begin()
    visit.say(DANGER)
    page.click("#card-place [data-action=hide]")
    expect(page.locator("#card-place .card-foot")).to_have_count(0)
    expect(page.locator("#card-place a[href='tel:988']")).to_be_visible()
    expect(page.locator(".card-unfold")).to_be_focused()
    visit.say("I do not know.")
    expect(page.locator(".card-unfold")).to_be_visible()
    page.reload()
    expect(page.locator(".card-unfold")).to_be_visible()
    assert page.locator("#card-place").get_attribute("aria-live") == "off"
    page.click(".card-unfold")
    expect(page.locator("#card-place .card-foot")).to_be_visible()
    expect(page.locator("#card-place .card-title")).to_be_focused()
    page.click("#open-settings")
    page.click("#new-conversation")
    expect(page.locator("#card-place .card-foot")).to_be_visible()


def test_its_buttons_reach_the_server(visit: Visit) -> None:
    page = visit.begin()
    visit.say(DANGER)
    session = page.evaluate("sessionStorage.getItem('warmline.session')")
    with page.expect_response(f"**/v1/sessions/{session}/actions") as answered:
        page.click("#card-place [data-action=with_me]")
    assert answered.value.json() == {"action": "with_me", "known": True, "level": "high"}
    expect(page.locator("#card-place .card-foot")).to_be_visible()
    assert DANGER not in " ".join(request.url for request in visit.requests)


def test_the_reason_holds_no_word_of_what_was_written(visit: Visit) -> None:
    page = visit.begin()
    visit.say(DANGER)
    why = page.locator("#card-place .card-why")
    expect(why).to_be_hidden()
    page.click("#card-place [data-action=why]")
    expect(why).to_have_text(
        "You see this card because something written here may mean that someone needs support. The app can be wrong."
    )
    expect(why).to_be_focused()


def test_another_country_and_another_person(visit: Visit) -> None:
    page = visit.begin()
    visit.say(EMERGENCY)
    card = page.locator("#card-place")
    parts = card.locator(".card-part").evaluate_all("all => all.map(part => part.classList[1])")
    assert parts == ["emergency", "services", "international"]
    expect(card).to_contain_text("be with someone you trust")
    page.click("#card-place [data-action=country]")
    page.select_option("#card-place .card-country select", "DE")
    expect(card.locator("a[href='tel:112']")).to_be_visible()
    expect(card).to_contain_text("TelefonSeelsorge")
    expect(card).to_contain_text("be with someone you trust")
    assert card.locator(".card-part").evaluate_all("all => all.map(part => part.classList[1])") == parts
    expect(card.locator(".card-title")).to_be_focused()
    page.click("#card-place [data-action=other]")
    expect(card).to_contain_text("People you can reach for someone else, and for yourself")
    expect(card.locator("[data-action=self]")).to_be_visible()
    visit.say("Still here.")
    expect(card).to_contain_text("TelefonSeelsorge")


def test_numbers_that_nobody_checked_say_so(chromium: Browser, url: str) -> None:
    with visiting(chromium, url) as visit:
        page = visit.begin()
        page.click("#support")
        page.click("#help [data-action=country]")
        page.select_option("#help .card-country select", "AT")
        unchecked = page.locator("#help .provisional")
        expect(unchecked.locator(".service-details").first).to_contain_text("lease check this number")
        assert is_before(page, "#help .international", "#help .provisional")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_card_is_large_still_and_of_high_contrast(chromium: Browser, url: str, scheme: str) -> None:
    with visiting(chromium, url, color_scheme=scheme, viewport={"width": 320, "height": 640}) as visit:
        page = visit.begin()
        visit.say(DANGER)
        page.click("#card-place [data-action=why]")
        page.click("#card-place [data-action=country]")
        code = """() => [...document.querySelectorAll('#card-place, #card-place *')].map(node => {
          const style = getComputedStyle(node);
          return [parseFloat(style.fontSize), style.animationName, style.transitionDuration, node.getAnimations().length];
        })"""
        seen = page.evaluate(code)
        assert len(seen) > 20
        assert min(size for size, *_ in seen) >= 16
        assert {(name, seconds, moving) for _, name, seconds, moving in seen} == {("none", "0s", 0)}
        found = Axe().run(page, "#card-place", CONTRAST).response
        assert found["violations"] == []
        for action in page.locator("#card-place :is(a.card-call, button)").all():
            box = action.bounding_box()
            assert box is not None
            assert box["height"] >= 44


@pytest.mark.parametrize("width", [320, 360, 390])
def test_nothing_is_cut_off_on_a_phone(chromium: Browser, url: str, width: int) -> None:
    phone = {"viewport": {"width": width, "height": 640}, "is_mobile": True, "has_touch": True}
    with visiting(chromium, url, expected=("/v1/history",), **phone) as visit:
        page = visit.page

        def fits() -> None:
            wide = page.evaluate(
                "w => [...document.querySelectorAll('body *')].filter(n => n.getClientRects().length && !n.closest('.unseen, .skip')"
                " && (n.getBoundingClientRect().right > w + 0.5 || n.getBoundingClientRect().left < -0.5))"
                ".map(n => n.tagName + '.' + n.className)",
                width,
            )
            assert wide == []
            assert page.evaluate("document.scrollingElement.scrollWidth") <= width

        page.goto(visit.url)
        fits()
        page.tap("#notice-accept")
        fits()
        visit.say("Averylongwordthatnobodywouldeverwritebutmightpasteintothepage" * 3)
        fits()
        for opener, closer in (
            ("#open-style", "#style .primary"),
            ("#open-settings", "#settings .primary[data-closes]"),
        ):
            page.tap(opener)
            fits()
            page.tap(closer)
        page.tap("#open-feelings")
        fits()
        page.tap("#hide-feelings")
        visit.say(DANGER)
        fits()
        expect(page.locator("#card-place a[href='tel:988']")).to_be_in_viewport()
        page.tap("#card-place [data-action=hide]")
        fits()
        page.tap("#support")
        expect(page.locator("#help .card")).to_be_visible()
        fits()


def test_help_works_when_the_server_is_gone(chromium: Browser) -> None:
    with web_server() as url:
        refused = ("ERR_CONNECTION_REFUSED", "503")
        leave = visiting(chromium, url, expected=refused)
        visit = leave.__enter__()
        page = visit.begin()
        page.evaluate("navigator.serviceWorker.ready")
        page.wait_for_function("navigator.serviceWorker.controller !== null")
    try:  # the server has stopped
        page.click("#support")
        expect(page.locator("#help a[href='tel:988']")).to_be_visible()
        page.click("#help [data-closes]")
        page.reload()
        expect(page.locator(".help-page a[href='tel:988']")).to_be_visible()
        expect(page.locator(".help-page h1")).to_have_text("warmline AI")
        names = page.evaluate(
            "caches.keys().then(all => Promise.all(all.map(name => caches.open(name).then(c => c.keys()))))"
        )
        assert len(names) == 1
        stored = page.evaluate(
            "caches.open('warmline-help-1').then(c => c.keys()).then(all => all.map(r => new URL(r.url).pathname))"
        )
        assert all(path.startswith("/static/") or path == "/resources" for path in stored)
    finally:
        leave.__exit__(None, None, None)


def module(page: Page, name: str, value: str) -> Any:
    return page.evaluate(f"import('/static/{name}').then(module => module.{value})")


def test_what_stands_in_the_page_is_what_the_directory_has(visit: Visit) -> None:
    page = visit.begin()
    assert module(page, "card.js", "COUNTRIES") == sorted(load_directory().countries)
    shown = module(page, "card.js", "FALLBACK")
    card = card_for(fallback("unreadable"), None, Level.NONE, today=datetime.now(UTC).date()).as_json()
    ids = {each["id"] for each in shown["actions"]}
    assert shown | {"degraded": [], "actions": []} == card | {"degraded": [], "actions": []}
    assert [each for each in card["actions"] if each["id"] in ids] != []


def test_the_card_of_a_service_that_is_no_link_is_still_drawn(visit: Visit) -> None:
    page = visit.begin()
    card = card_for(load_directory(), "US", Level.NONE, today=date(2026, 11, 22)).as_json()
    card["services"][0]["channels"][0]["uri"] = "javascript:alert(1)"
    card["services"][0]["title"] = "<b>bold</b>"
    card["international"][0]["url"] = "http://unsafe.example"
    drawn = "card => import('/static/card.js').then(({drawn}) => drawn(card, () => {}).outerHTML)"
    html = page.evaluate(drawn, card)
    assert "javascript:" not in html
    assert "unsafe.example" not in html
    assert "&lt;b&gt;bold&lt;/b&gt;" in html


def test_the_stream_reader_takes_any_cut_and_line_end(visit: Visit) -> None:
    page = visit.begin()
    read = """async ([text, size, ends]) => {
      const { eventsOf } = await import("/static/api.js");
      const bytes = new TextEncoder().encode(text.replaceAll("\\n", ends));
      const parts = [];
      for (let at = 0; at < bytes.length; at += size) parts.push(bytes.slice(at, at + size));
      const body = new ReadableStream({ pull(c) { parts.length ? c.enqueue(parts.shift()) : c.close(); } });
      const found = [];
      for await (const data of eventsOf(body)) found.push(data);
      return found;
    }"""
    text = ': \n\ndata: {"a": "ümläut 🌱"}\n\nevent: x\ndata:two\ndata: lines\n\n\ndata: [DONE]\n\n'
    for ends in ("\n", "\r\n", "\r"):
        for size in (1, 2, 3, 7, 1000):
            assert page.evaluate(read, [text, size, ends]) == ['{"a": "ümläut 🌱"}', "two\nlines", "[DONE]"], (
                ends,
                size,
            )
