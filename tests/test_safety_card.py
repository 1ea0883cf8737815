"""The resource card: its order, its words, and nothing on it that the directory does not have."""

import dataclasses
import json
import re
import unicodedata
from pathlib import Path

import pytest

from warmline.safety.levels import Level
from warmline.safety.resources.card import Card, card_for
from warmline.safety.resources.country import ZONES, choose_country
from warmline.safety.resources.directory import MOBILE_EMERGENCY, fallback
from warmline.safety.resources.labels import ENGLISH, labels_for
from warmline.safety.resources.services import GROUPS, ONLY, Directory

from .test_safety_resources import CHECKED, DIRECTORY, FOLDER, LANGUAGES, cards

LABELS = json.loads((FOLDER / "labels.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("directory", [DIRECTORY, fallback("test")])
def test_a_card_has_an_emergency_number_and_no_number_from_elsewhere(directory: Directory) -> None:
    for code, card in cards(directory):
        country = directory.countries[code]
        text = card.text()
        assert country.emergency[0] in text
        assert all(each["uri"] == f"tel:{each['number']}" for each in card.as_json()["emergency"])
        words = [each.name for each in country.services] + [card.country_name, "2026-11-20"]
        channels = [channel for each in country.services for channel in each.channels]
        known = [*country.emergency, *(each.value for each in channels), *(each.keyword or "" for each in channels)]
        for each in sorted({*words, *known} - {""}, key=len, reverse=True):
            text = text.replace(each, "")
        assert re.findall(r"\d+", text) == [], card.text()


@pytest.mark.parametrize("country", [None, "", "KE", "??"])
def test_without_a_list_the_international_directories_come_first(country: str | None) -> None:
    card = card_for(DIRECTORY, country, Level.HIGH, today=CHECKED)
    text = card.text()
    assert card.country is None
    assert card.as_json()["emergency"] == []
    assert text.index(ENGLISH["showing_none"]) < text.index("findahelpline.com") < text.index("local emergency number")
    assert re.findall(r"\d+", text) == [MOBILE_EMERGENCY]


def test_the_emergency_line_is_first_at_emergency_and_last_otherwise() -> None:
    for _, card in cards():
        text, labels = card.text(), labels_for(card.language)[1]
        headings = [card.as_json()["headings"][section] for section in card.sections]
        order = [text.index(f"\n\n{heading}\n") for heading in headings if f"\n\n{heading}\n" in text]
        assert order == sorted(order)
        assert card.sections.index("emergency") == (0 if card.level == Level.EMERGENCY else 3)
        assert (labels["care_other_company" if card.about_other else "care_self_company"] in text) == (
            card.level == Level.EMERGENCY
        )


def test_unchecked_numbers_stand_below_the_international_directories() -> None:
    text = card_for(DIRECTORY, "AT", Level.HIGH, today=CHECKED).text()
    assert text.index("befrienders.org") < text.index("Call 142") < text.index("Please check this number")
    text = card_for(DIRECTORY, "US", Level.HIGH, groups=("poison",), today=CHECKED).text()
    assert text.index("Call 988") < text.index("befrienders.org") < text.index("1-800-222-1222")


def test_one_line_for_a_stated_group_and_child_lines_first() -> None:
    def ids(country: str, *groups: str, language: str = "en") -> list[str]:
        card = card_for(DIRECTORY, country, Level.HIGH, groups=groups, language=language, today=CHECKED)
        return [entry.service.id for entry in card.entries]

    assert ids("US") == ["us-988"]
    assert ids("US", language="es-MX") == ["us-988-press-2"]
    assert ids("US", "lgbtq", "eating", "veteran", "poison") == ["us-988", "us-988-press-1"]
    assert ids("CA", "child") == ["ca-kids-help-phone", "ca-988"]
    assert ids("FR", "abuse") == ["fr-3114", "fr-3919"]
    assert ids("FR", "suicide", "nobody") == ["fr-3114"]
    assert "Call 988, then press 1" in card_for(DIRECTORY, "US", Level.HIGH, groups=("veteran",), today=CHECKED).text()


def test_a_card_speaks_as_the_app_in_plain_lines() -> None:
    for _, card in cards():
        text, labels = card.text(), labels_for(card.language)[1]
        must = [labels[key] for key in ("title", "from_app", "no_contact", "not_service", "not_reviewed")]
        assert all(line in text for line in must)
        assert card.country_name in text
        assert text.isprintable() or {each for each in text if not each.isprintable()} == {"\n"}
        assert not {each for each in text if unicodedata.category(each) in {"So", "Sk", "Cf", "Co"}}
    text = card_for(DIRECTORY, "MX", Level.ELEVATED, today=CHECKED).text()
    assert "Showing Mexico." in text
    assert "warmline has not contacted anyone and cannot." in text


def test_only_card_for_makes_a_card() -> None:
    card = card_for(DIRECTORY, "GB", Level.HIGH, today=CHECKED)
    fields = {each.name: getattr(card, each.name) for each in dataclasses.fields(card)}
    with pytest.raises(TypeError, match="card_for"):
        Card(**fields, token=object())
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(card, emergency=("0",))
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.emergency = ()  # pyright: ignore[reportAttributeAccessIssue]
    assert len({card, card_for(DIRECTORY, "GB", Level.HIGH, today=CHECKED)}) == 1


def test_the_object_of_the_api() -> None:
    card = card_for(DIRECTORY, "gb", Level.EMERGENCY, about_other=True, today=CHECKED)
    found = json.loads(json.dumps(card.as_json()))
    assert found["country"] == "GB"
    assert found["sections"][0] == "emergency"
    assert found["emergency"] == [{"number": "999", "uri": "tel:999"}]
    assert [action["id"] for action in found["actions"]] == ["with_me", "hide", "country", "self", "why"]
    (service,) = found["services"]
    assert service["checked_on"] == "2026-11-20"
    assert service["channels"] == [
        {"type": "call", "value": "116 123", "uri": "tel:116123", "keyword": None, "text": "Call 116 123, free"}
    ]
    assert all(line in card.text() for line in (found["title"], found["emergency_text"], *found["safety_lines"]))


def test_words_that_product_copy_must_not_have() -> None:
    banned = re.compile(r"\b(therap\w*|treat\w*|diagnos\w*|clinical|committed|successful|failed)\b", re.IGNORECASE)
    assert [word for words in LABELS.values() for word in words.values() if banned.search(word)] == []


def test_every_language_has_every_label() -> None:
    assert (*LABELS,) == LANGUAGES
    assert LABELS["en"] == ENGLISH
    for language, words in LABELS.items():
        assert words.keys() == ENGLISH.keys()
        assert dict(labels_for(language)[1]) == words  # none was replaced for a place that it lacks
        assert all(word == word.strip() and word and not re.search(r"\d", word) for word in words.values())
    assert {f"group_{group}" for group in GROUPS} | {f"only_{only}" for only in ONLY} <= ENGLISH.keys()


def test_broken_labels_give_english(tmp_path: Path) -> None:
    assert labels_for("es", tmp_path) == ("en", ENGLISH)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "labels.json").write_text('{"de": {"or": "oder", "emergency_call": "Ruf an.", "free": 3}, "fr": []}')
    name, words = labels_for("de-AT", broken)
    assert (name, words["or"], words["emergency_call"]) == ("de", "oder", ENGLISH["emergency_call"])
    assert words["free"] == "free"
    assert labels_for("fr", broken)[0] == "en"


@pytest.mark.parametrize(
    ("arguments", "country"),
    [
        (("pt", "FR", "en-US", "Europe/Berlin"), "PT"),
        ((" uk ", "FR", "en-US", "Europe/Berlin"), "GB"),
        (("Portugal", "FR", "en-US", "Europe/Berlin"), "FR"),
        (("KE", "FR", None, None), "KE"),  # rather the international card than France's numbers
        ((None, "", "en-US,en;q=0.9", "Europe/Berlin"), "US"),
        ((None, None, "en,en-AU;q=0.5,de-CH;q=0.7", None), "CH"),
        ((None, None, "zh-Hant-TW", None), "TW"),
        ((None, None, "fr-CA;q=0, es-419, en-u-ca-gregory", "America/Bogota"), "CO"),
        ((None, None, "pt_BR.UTF-8", "Europe/Lisbon"), "BR"),
        ((None, None, "de_AT@euro", None), "AT"),
        ((None, None, "C.UTF-8", "Europe/Dublin"), "IE"),
        ((None, None, None, "America/Argentina/Cordoba"), "AR"),
        ((None, None, None, "Australia/Perth"), "AU"),
        ((None, None, "*;q=x,,;;", "Etc/UTC"), None),
        ((None, None, None, None), None),
    ],
)
def test_the_country_comes_from_the_first_that_says(arguments: tuple[str | None, ...], country: str | None) -> None:
    assert choose_country(*arguments) == country


def test_every_country_of_the_directory_can_be_found_by_time_zone() -> None:
    assert ZONES.keys() | {"AU"} == DIRECTORY.countries.keys()
