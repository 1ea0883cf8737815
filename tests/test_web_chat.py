"""The web page in a real browser: the notice before the first message, the conversation, and leaving."""

import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from .browser import ELSEWHERE, Visit, visiting
from .web_server import HEAVY, REPLIES, PacedEngine, web_server


@pytest.fixture(scope="module")
def engine() -> PacedEngine:
    return PacedEngine()


@pytest.fixture(scope="module")
def url(engine: PacedEngine) -> Iterator[str]:
    with web_server(engine) as address:
        yield address


@pytest.fixture
def visit(chromium: Browser, url: str) -> Iterator[Visit]:
    with visiting(chromium, url) as opened:
        yield opened


def test_nobody_writes_before_the_notice_is_acknowledged(visit: Visit) -> None:
    page = visit.page
    page.goto(visit.url)
    notice = page.locator("#notice")
    expect(notice).to_be_visible()
    said = notice.inner_text()
    for claim in ("AI", "not a person", "cannot feel", "can be wrong", "not a crisis service", "medical service"):
        assert claim in said
    assert "Who can see this" in said
    assert "may be able to read" in said
    assert "Where help is" in said
    page.keyboard.press("Escape")
    expect(notice).to_be_visible()
    page.evaluate("document.querySelector('#message').focus()")
    page.keyboard.type("hello")
    assert page.input_value("#message") == ""
    page.click("#notice-accept")
    expect(notice).to_be_hidden()
    page.keyboard.type("hello")
    assert page.input_value("#message") == "hello"


def test_each_later_start_has_the_notice_in_short_and_a_reload_none(visit: Visit) -> None:
    page = visit.begin()
    page.reload()
    expect(page.locator("#message")).to_be_focused()
    expect(page.locator("#notice")).to_be_hidden()
    again = visit.another()
    expect(again.locator("#notice-short")).to_be_visible()
    expect(again.locator("#notice-long")).to_be_hidden()
    said = again.locator("#notice").inner_text()
    assert all(claim in said for claim in ("AI", "not a person", "cannot feel", "can be wrong", "may be able to read"))
    again.click("#notice-accept")
    expect(again.locator("#message")).to_be_focused()


def test_help_can_be_had_before_anything_is_acknowledged(visit: Visit) -> None:
    visit.page.goto(visit.url)
    visit.page.click("#notice-support")
    expect(visit.page.locator("#help").get_by_text("Call 988")).to_be_visible()


def test_a_chat_is_answered_in_turn_and_every_reply_says_that_it_is_an_ai(visit: Visit, engine: PacedEngine) -> None:
    page = visit.begin()
    assert page.locator("header .name").inner_text() == "warmline AI"
    visit.say("It was a long week.")
    visit.say("Thank you for listening.")
    assert [reply in REPLIES for reply in visit.replies()] == [True, True]
    assert page.locator(".by-companion .who").all_inner_texts() == ["warmline AI", "warmline AI"]
    roles = [(each.role, each.content) for each in engine.requests[-1].messages]
    assert roles[-3:] == [
        ("user", "It was a long week."),
        ("assistant", visit.replies()[0]),
        ("user", "Thank you for listening."),
    ]
    expect(page.locator("#message")).to_be_focused()


def test_what_the_app_must_say_stands_between_turns_and_only_once(visit: Visit) -> None:
    page = visit.begin()
    visit.say("It was a long week.")
    visit.say("It goes on.")
    visit.say("And on.")
    notes = page.locator(".app-note").all_inner_texts()
    assert len([note for note in notes if note.startswith("You are talking with an AI, a computer program.")]) == 1


def test_enter_sends_and_shift_enter_starts_a_line(visit: Visit) -> None:
    page = visit.begin()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.locator(".by-user .text")).to_have_text("one\ntwo")
    page.fill("#message", "   ")
    page.keyboard.press("Enter")
    expect(page.locator(".by-user")).to_have_count(1)


def test_sentences_appear_as_they_are_released_and_stop_ends_the_work(chromium: Browser) -> None:
    engine = PacedEngine(
        ["This is the first sentence. " + "And then it goes on, slowly and quietly. " * 20], seconds=0.05
    )
    with web_server(engine) as url, visiting(chromium, url) as visit:
        page = visit.begin()
        page.keyboard.type("Hello.")
        page.keyboard.press("Enter")
        expect(page.locator(".by-companion .text")).to_contain_text("This is the first sentence.")
        expect(page.locator("#send")).to_be_hidden()
        page.click("#stop")
        expect(page.locator("#send")).to_be_visible()
        time.sleep(0.5)
        num_words = engine.num_words
        time.sleep(0.5)
        assert engine.num_words == num_words < 140
        assert visit.replies()[0].startswith("This is the first sentence.")
        expect(page.locator(".waiting")).to_have_count(0)
        engine.seconds = 0
        visit.say("Go on.")
        assert len(visit.replies()) == 2


def test_a_style_reaches_the_model_and_stays_for_the_tab(visit: Visit, engine: PacedEngine) -> None:
    page = visit.begin()
    visit.say("It was a long week.")
    assert "<tone" not in engine.requests[-1].messages[0].content
    page.click("#open-style")
    page.get_by_label("calm").check()
    page.get_by_label("mentor").check()
    page.click("#style .primary")
    visit.say("It goes on.")
    assert "<tone:calm><persona:mentor>" in engine.requests[-1].messages[0].content
    expect(page.locator("#open-style")).to_have_text("Style: calm, mentor")
    page.reload()
    expect(page.locator("#open-style")).to_have_text("Style: calm, mentor")


@pytest.mark.parametrize("kind", ["tone", "persona"])
def test_every_style_that_the_page_offers_is_one_that_the_server_takes(
    visit: Visit, kind: str, engine: PacedEngine
) -> None:
    page = visit.begin()
    offered = page.locator(f"#{kind}s input").evaluate_all("all => all.map(each => each.value)")
    assert len(offered) == {"tone": 7, "persona": 6}[kind]
    for value in offered[1:]:
        page.evaluate("([kind, value]) => sessionStorage.setItem(`warmline.${kind}`, value)", [kind, value])
        visit.say("Hello.")
        assert f"<{kind}:{value}>" in engine.requests[-1].messages[0].content


MARKUP = "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=2</script><a href='javascript:hacked=3'>x</a>"


def test_script_in_messages_is_shown_as_text(chromium: Browser) -> None:
    reply = "I hear you, and <b>that</b> <img src=x onerror=window.hacked=4> sounds heavy."
    with web_server(PacedEngine([reply])) as url, visiting(chromium, url) as visit:
        page = visit.begin()
        visit.say(MARKUP)
        assert page.locator(".by-user .text").inner_text() == MARKUP
        assert page.locator(".by-companion .text").inner_text() == reply
        assert page.locator("#log :is(img, script, a, b)").count() == 0
        assert page.evaluate("window.hacked") is None


def test_a_reload_keeps_no_words_and_says_so(visit: Visit) -> None:
    page = visit.begin()
    visit.say("My cat is called Marmalade.")
    session = page.evaluate("sessionStorage.getItem('warmline.session')")
    page.reload()
    expect(page.locator(".app-note")).to_contain_text("was not kept")
    expect(page.locator(".said")).to_have_count(0)
    assert page.evaluate("sessionStorage.getItem('warmline.session')") == session
    kept = page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}])")
    assert "Marmalade" not in kept
    assert not any(reply[:20] in kept for reply in REPLIES)
    assert visit.context.cookies() == []


def test_a_heavier_message_is_met_with_an_offer_and_no_level_is_shown(chromium: Browser) -> None:
    with web_server() as url, visiting(chromium, url) as visit:
        page = visit.begin()
        visit.say(HEAVY)
        expect(page.locator(".app-note").first).to_contain_text("there are people you can talk with")
        shown = page.locator("body").inner_text().lower()
        assert not re.search(r"\b(elevated|level|risk|assessment)\b", shown)
        with page.expect_response("**/actions") as answered:
            page.get_by_role("button", name="This isn\u2019t about me being in danger").click()
        assert answered.value.json() == {"action": "not_me", "known": True, "level": "none"}
        expect(page.locator(".app-note").first).not_to_contain_text("there are people")


def test_a_server_that_is_away_costs_no_words(chromium: Browser, url: str) -> None:
    with visiting(chromium, url, expected=("ERR_INTERNET_DISCONNECTED",)) as visit:
        page = visit.begin()
        visit.say("It was a long week.")
        visit.context.set_offline(True)
        page.fill("#message", "Are you there?")
        page.press("#message", "Enter")
        line = page.locator(".app-note").last
        expect(line).to_contain_text("Your words are still here")
        expect(page.locator(".by-user .text").last).to_have_text("Are you there?")
        visit.context.set_offline(False)
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".by-companion .text")).to_have_count(2)
        expect(page.get_by_text("Your words are still here")).to_have_count(0)
        expect(page.locator(".by-user")).to_have_count(2)


def test_feelings_are_drawn_listed_and_hidden(visit: Visit) -> None:
    page = visit.begin()
    expect(page.locator("#open-feelings")).to_be_hidden()
    visit.say("I feel so alone.")
    visit.say("Thank you. My sister called.")
    picture = page.locator("#feelings-picture svg")
    assert "2 messages, the newest as joy and gratitude" in (picture.get_attribute("aria-label") or "")
    heavy, light = picture.locator("circle").evaluate_all("all => all.map(dot => Number(dot.getAttribute('cx')))")
    assert heavy < light
    assert picture.locator(".feeling").all_text_contents() == ["grief", "joy"]
    page.click("#feelings summary")
    assert page.locator("#feelings-table tbody tr").all_inner_texts() == [
        "1\tgrief, sadness\t\u22120.8",
        "2\tjoy, gratitude\t+0.5",
    ]
    page.click("#hide-feelings")
    expect(page.locator("#feelings")).to_be_hidden()
    expect(page.locator("#open-feelings")).to_be_focused()
    visit.say("And on.")
    expect(page.locator("#feelings")).to_be_hidden()
    page.keyboard.press("Escape")
    page.evaluate("sessionStorage.setItem('warmline.feelings', 'hidden')")
    visit.say("And on.")
    expect(page.locator("#open-feelings")).to_be_hidden()


@pytest.mark.parametrize("how", ["button", "escape"])
def test_leaving_at_once_leaves_nothing_behind(visit: Visit, how: str) -> None:
    page = visit.begin()
    visit.say("Nobody must read this.")
    assert not any(request.url.startswith(ELSEWHERE) for request in visit.requests)
    stop_at_elsewhere = page.expect_navigation(url=f"{ELSEWHERE}*")
    with stop_at_elsewhere:
        if how == "button":
            page.click("#leave")
        else:
            page.keyboard.press("Escape")
            page.keyboard.press("Escape")
    assert page.title() == "Weather"
    sent = [request for request in visit.requests if request.url.startswith(ELSEWHERE)]
    assert [request.all_headers().get("referer") for request in sent] == [None]
    page.go_back()
    assert "Nobody must read this." not in page.content()
    page.goto(visit.url)
    expect(page.locator(".said")).to_have_count(0)
    assert page.evaluate("sessionStorage.getItem('warmline.talking')") is None


def test_one_escape_alone_leads_nowhere(visit: Visit) -> None:
    page = visit.begin()
    page.keyboard.press("Escape")
    page.wait_for_timeout(1000)
    page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    assert page.url.rstrip("/") == visit.url


def theme_of(page: Page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_light_and_dark_follow_the_device_until_one_is_chosen(chromium: Browser, url: str) -> None:
    with visiting(chromium, url, expected=("/v1/history",), color_scheme="dark") as visit:
        page = visit.begin()
        dark = theme_of(page)
        page.click("#open-settings")
        page.select_option("#theme", "light")
        light = theme_of(page)
        assert light != dark
        page.reload()
        assert theme_of(page) == light
        page.click("#open-settings")
        page.select_option("#theme", "")
        assert theme_of(page) == dark
