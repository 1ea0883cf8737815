"""Keeping conversations from the web page: off until somebody wants it, with a key that only the browser has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from warmline.serve.keys import Key, Keys, digest_of, new_key
from warmline.serve.models import Options
from warmline.serve.store.database import CONVERSATIONS
from warmline.serve.store.history import Store

from .browser import Visit, visiting
from .web_server import DANGER, web_server

SECRET = "My cat is called Marmalade."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    store = Store(f"sqlite:///{folder / 'history.db'}")
    with web_server(store=store) as address:
        yield address


@pytest.fixture
def visit(chromium: Browser, url: str) -> Iterator[Visit]:
    with visiting(chromium, url, accept_downloads=True) as opened:
        yield opened


def switch_on(visit: Visit) -> str:
    """Turn history on in the settings; the key."""
    page = visit.page
    page.click("#open-settings")
    page.check("#keep")
    expect(page.locator("#history-said")).to_have_text("From now on this conversation is kept.")
    page.click("#settings .primary[data-closes]")
    return page.evaluate("localStorage.getItem('warmline.history-key')")


def test_nothing_is_kept_until_somebody_wants_it(visit: Visit) -> None:
    page = visit.begin()
    visit.say(SECRET)
    assert [request.url for request in visit.requests if "/v1/history" in request.url] == []
    page.click("#open-settings")
    expect(page.locator("#history-controls")).to_be_visible()
    expect(page.locator("#keep")).not_to_be_checked()
    expect(page.locator("#history-actions")).to_be_hidden()
    assert page.evaluate("localStorage.getItem('warmline.history-key')") is None


def test_a_kept_conversation_is_there_after_a_reload(visit: Visit, folder: Path) -> None:
    page = visit.begin()
    visit.say(SECRET)
    key = switch_on(visit)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", key)  # 256 bits
    visit.say("She is asleep.")
    with page.expect_response(lambda each: "/v1/history/" in each.url):
        page.reload()
    expect(page.locator(".by-user .text")).to_have_text([SECRET, "She is asleep."])
    expect(page.locator(".by-companion .text")).to_have_count(2)
    visit.say("Good night.")
    assert key not in " ".join(request.url for request in visit.requests)
    sent = [request for request in visit.requests if "/v1/chat" in request.url]
    assert [request.all_headers().get("warmline-key") for request in sent] == [None, key, key]
    assert not any(b"Marmalade" in file.read_bytes() for file in folder.iterdir())
    stored = page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}])")
    assert "Marmalade" not in stored


def test_conversations_are_listed_opened_exported_and_forgotten(visit: Visit) -> None:
    page = visit.begin()
    visit.say(SECRET)
    switch_on(visit)
    page.click("#open-settings")
    page.click("#new-conversation")
    expect(page.locator(".said")).to_have_count(0)
    visit.say("Another day.")
    page.click("#open-settings")
    expect(page.locator("#kept li")).to_have_count(2)
    with page.expect_download() as arrived:
        page.click("#export")
    assert re.fullmatch(r"warmline-\d{4}-\d\d-\d\d\.json", arrived.value.suggested_filename)
    tree = json.loads(Path(arrived.value.path()).read_text(encoding="utf-8"))
    said = sorted(turn["content"] for each in tree["conversations"] for turn in each["turns"] if turn["role"] == "user")
    assert said == ["Another day.", SECRET]
    row = page.locator("#kept li").filter(has_not_text="this one")
    row.get_by_role("button", name="Open").click()
    expect(page.locator(".by-user .text")).to_have_text([SECRET])
    page.click("#open-settings")
    page.locator("#kept li").filter(has_text="this one").get_by_role("button", name="Forget").click()
    page.get_by_role("button", name="Forget", exact=True).last.click()
    expect(page.locator("#kept li")).to_have_count(1)
    expect(page.locator("#history-said")).to_have_text("Forgotten.")
    page.click("#settings .primary[data-closes]")
    expect(page.locator(".said")).to_have_count(0)


def test_forgetting_all_drops_the_key(visit: Visit) -> None:
    page = visit.begin()
    visit.say(SECRET)
    key = switch_on(visit)
    page.click("#open-settings")
    page.click("#forget-all")
    page.locator("#sure button[value=no]").click()
    expect(page.locator("#kept li")).to_have_count(1)
    page.click("#forget-all")
    page.locator("#sure button[value=yes]").click()
    expect(page.locator("#history-said")).to_have_text("Everything is forgotten, and the key is gone.")
    expect(page.locator("#keep")).not_to_be_checked()
    assert page.evaluate("localStorage.getItem('warmline.history-key')") is None
    left = page.evaluate("key => fetch('/v1/history', {headers: {'Warmline-Key': key}}).then(r => r.json())", key)
    assert left["data"] == []
    page.click("#settings .primary[data-closes]")
    visit.say("Go on.")
    page.reload()
    expect(page.locator(".app-note")).to_contain_text("was not kept")


def test_switching_it_off_asks_and_forgets(visit: Visit) -> None:
    page = visit.begin()
    visit.say(SECRET)
    switch_on(visit)
    page.click("#open-settings")
    page.locator("#keep").click()
    page.locator("#sure button[value=no]").click()
    expect(page.locator("#keep")).to_be_checked()
    page.locator("#keep").click()
    page.locator("#sure button[value=yes]").click()
    expect(page.locator("#history-said")).to_have_text("Everything is forgotten, and the key is gone.")
    expect(page.locator("#keep")).not_to_be_checked()
    assert page.evaluate("localStorage.getItem('warmline.history-key')") is None


def test_leaving_quickly_keeps_the_key_but_shows_nothing(visit: Visit) -> None:
    page = visit.begin()
    visit.say(DANGER)
    key = switch_on(visit)
    with page.expect_navigation(url="https://www.bbc.com/**"):
        page.click("#leave")
    page.goto(visit.url)
    page.click("#notice-accept")
    expect(page.locator(".said")).to_have_count(0)
    assert page.evaluate("localStorage.getItem('warmline.history-key')") == key


def test_a_server_without_a_store_says_so(chromium: Browser) -> None:
    with web_server() as url, visiting(chromium, url, expected=("/v1/history",)) as visit:
        page = visit.begin()
        page.click("#open-settings")
        expect(page.locator("#history-off-here")).to_be_visible()
        expect(page.locator("#history-controls")).to_be_hidden()


def test_a_store_that_breaks_loses_nothing_and_is_told(chromium: Browser, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'history.db'}")
    expected = ("/v1/history",)
    with web_server(store=store) as url, visiting(chromium, url, expected=expected) as visit:
        page = visit.begin()
        visit.say(SECRET)
        switch_on(visit)
        with store.database.engine.begin() as connection:
            CONVERSATIONS.drop(connection)
        visit.say("Are you there?")
        expect(page.get_by_text("could not be kept")).to_be_visible()
        expect(page.locator(".by-user .text")).to_have_text([SECRET, "Are you there?"])


def test_a_server_with_keys_asks_for_one_once(chromium: Browser) -> None:
    key = new_key()
    options = Options(keys=Keys((Key("somebody", digest_of(key)),)))
    with web_server(options=options) as url, visiting(chromium, url, expected=("401",)) as visit:
        page = visit.begin()
        page.click("#support")  # help needs no key
        expect(page.locator("#help a[href='tel:988']")).to_be_visible()
        page.click("#help [data-closes]")
        page.fill("#message", "Hello.")
        page.press("#message", "Enter")
        page.fill("#access-key", "wrong")
        page.press("#access-key", "Enter")
        expect(page.locator("#access-wrong")).to_be_visible()
        page.fill("#access-key", key)
        page.press("#access-key", "Enter")
        expect(page.locator(".by-companion .text")).to_have_count(1)
        page.reload()
        visit.say("Still here.")
        kept = page.evaluate("[sessionStorage.getItem('warmline.access'), localStorage.getItem('warmline.access')]")
        assert kept == [key, None]


def test_whoever_has_no_key_is_told_calmly(chromium: Browser) -> None:
    options = Options(keys=Keys((Key("somebody", digest_of(new_key())),)))
    with web_server(options=options) as url, visiting(chromium, url, expected=("401",)) as visit:
        page = visit.begin()
        page.fill("#message", "Hello.")
        page.press("#message", "Enter")
        page.locator("#access button[value=no]").click()
        expect(page.locator(".app-note")).to_contain_text("This server asks for a key. Your words are still here")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#access")).to_be_visible()
