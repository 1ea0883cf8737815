"""Helplines: the file keeps to its schema and its source, ages, fails toward care, and is all that a card shows."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

import warmline
from warmline.safety.levels import Level
from warmline.safety.resources.card import Card, card_for
from warmline.safety.resources.directory import EMERGENCY, INTERNATIONAL, fallback, load_directory
from warmline.safety.resources.labels import ENGLISH
from warmline.safety.resources.services import (
    GROUPS,
    HIDDEN_AFTER,
    ONLY,
    PROVISIONAL_AFTER,
    STATUSES,
    Directory,
    DirectoryError,
    dial_uri,
    listed,
    overdue,
)

FOLDER = Path(warmline.__file__).parent / "safety" / "resources"
CHECKED = date(2026, 11, 20)
LANGUAGES = ("en", "es", "fr", "de", "pt", "hi-Latn")
LEVELS = tuple(Level)
TREE = json.loads((FOLDER / "directory.json").read_text(encoding="utf-8"))
LABELS = json.loads((FOLDER / "labels.json").read_text(encoding="utf-8"))
DIRECTORY = load_directory()
COUNTRIES = tuple(DIRECTORY.countries)
# Every service of a row of state A that the row does not mark (B), by its numbers (section 8.4 of the specification).
CORROBORATED = """
US 988 | CA 9-8-8, 1-800-668-6868 | GB 116 123 | IE 116 123 | AU 13 11 14, 0477 13 11 14 | NZ 1737, 0800 611 116
IN 14416, 1-800-891-4416 | FR 3114 | ES 024 | PT 1411, 808 24 24 24 | BR 188 | DE 0800 111 0 111, 0800 111 0 222, 116 111
CH 143 | NL 113, 0800-0113 | NO 116 123, 22 40 00 40 | KR 109, 1388 | HK 2896 0000, 2389 2222 | SG 1-767, 9151 1767, 1771
MX 800 911 2000 | CL *4141, 600 360 7777
"""
WITHHELD = {"IT": {"02 2327 2327", "800 860022", "199 284 284"}, "NL": {"0900-0113"}} | {
    code: {"116 123", "116 111"} for code in ("CZ", "HU", "RO", "GR", "LT")
}


def days(number: int) -> date:
    return CHECKED + timedelta(days=number)


def cards(directory: Directory = DIRECTORY, today: date = CHECKED) -> Iterator[tuple[str, Card]]:
    """Every country at every level, for every group, and in every language."""
    for code in directory.countries:
        for level in LEVELS:
            yield code, card_for(directory, code, level, today=today)
        for group in GROUPS:
            yield code, card_for(directory, code, Level.HIGH, groups=(group,), today=today)
        for language in LANGUAGES:
            yield code, card_for(directory, code, Level.EMERGENCY, language=language, about_other=True, today=today)


def shipped_to(folder: Path, tree: Any) -> Path:
    """A directory file with a hash that fits."""
    content = json.dumps(tree).encode()
    (folder / "directory.json").write_bytes(content)
    (folder / "directory.json.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  directory.json\n")
    return folder


def service_rows(tree: Any = TREE) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((code, row) for code, country in tree["countries"].items() for row in country["services"])


def copied(change: Callable[[dict[str, dict[str, Any]]], object]) -> Any:
    """The shipped tree after `change` of its services by id."""
    tree = json.loads(json.dumps(TREE))
    change({row["id"]: row for _, row in service_rows(tree)})
    return tree


def problems(value: Any, schema: Any, root: Any, where: str = "$") -> Iterator[str]:
    """What of JSON Schema the file uses, so that the tests need no validator; a keyword that is not known fails."""
    assert schema.keys() <= SIMPLE.keys() | NESTED, schema.keys()
    rules = [(key, rule) for key, rule in schema.items() if key in SIMPLE]  # `type` first: the others rely on it
    broken = next((f"{key} {rule}" for key, rule in rules if not SIMPLE[key](value, rule)), None)
    if broken:
        yield f"{where}: {broken}: {str(value)[:80]}"
        return
    if "$ref" in schema:
        yield from problems(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, where)
    choices = [[*problems(value, each, root, where)] for each in schema.get("anyOf", ())]
    if choices and all(choices):
        yield from choices[0]
    for member in value if "items" in schema else ():
        yield from problems(member, schema["items"], root, f"{where}[]")
    if isinstance(value, dict):
        yield from _member_problems(value, schema, root, where)


KINDS = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}
SIMPLE: dict[str, Callable[[Any, Any], bool]] = {
    "type": lambda value, rule: isinstance(
        value, tuple(KINDS[kind] for kind in ([rule], rule)[isinstance(rule, list)])
    ),
    "const": lambda value, rule: value == rule,
    "enum": lambda value, rule: value in rule,
    "pattern": lambda value, rule: bool(re.search(rule, value)),
    "minimum": lambda value, rule: value >= rule,
    "minLength": lambda value, rule: len(value) >= rule,
    "minItems": lambda value, rule: len(value) >= rule,
    "minProperties": lambda value, rule: len(value) >= rule,
    "uniqueItems": lambda value, rule: len(value) == len(set(value)),
    "required": lambda value, rule: value.keys() >= set(rule),
}
NESTED = set(
    "$schema $defs $ref title description anyOf items properties patternProperties additionalProperties".split()
)


def _member_problems(value: dict[str, Any], schema: Any, root: Any, where: str) -> Iterator[str]:
    for name, member in value.items():
        rules = [rule for pattern, rule in schema.get("patternProperties", {}).items() if re.search(pattern, name)]
        rules += [schema["properties"][name]] if name in schema.get("properties", {}) else []
        other = schema.get("additionalProperties", True)
        if not rules and other is False:
            yield f"{where}: {name} is not known"
        for rule in rules or ([other] if isinstance(other, dict) else []):
            yield from problems(member, rule, root, f"{where}.{name}")


def test_the_file_keeps_to_its_schema() -> None:
    schema = json.loads((FOLDER / "directory.schema.json").read_text(encoding="utf-8"))
    assert [*problems(TREE, schema, schema)] == []
    service = schema["$defs"]["service"]["properties"]
    assert (*service["status"]["enum"],) == STATUSES
    assert (*service["audience"]["properties"]["groups"]["items"]["enum"],) == GROUPS
    assert (*service["channels"]["items"]["anyOf"][0]["properties"]["only"]["enum"],) == ONLY
    broken = copied(lambda rows: rows["fr-3114"].update(status="withdrawn", colour="red"))
    assert len([*problems(broken, schema, schema)]) == 2


def test_the_shipped_file_is_in_use_and_its_hash_is_what_sha256sum_writes() -> None:
    assert DIRECTORY.degraded is None
    assert DIRECTORY.version == "2026-11-20"
    digest = hashlib.sha256((FOLDER / "directory.json").read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    assert (FOLDER / "directory.json.sha256").read_text() == f"{digest}  directory.json\n"


def test_corroborated_is_what_the_source_says_and_nothing_else() -> None:
    rows = [row.split(" ", 1) for line in CORROBORATED.strip().splitlines() for row in line.split(" | ")]
    expected = {(code, number) for code, numbers in rows for number in numbers.split(", ")}
    found = [(code, row) for code, row in service_rows() if row["status"] == "corroborated"]
    assert {(code, channel["value"]) for code, row in found for channel in row["channels"]} == expected
    assert {row["verified_on"] for _, row in found} == {"2026-11-20"}
    assert all(row["verified_on"] is None for _, row in service_rows() if row["status"] != "corroborated")


def test_withheld_numbers_are_on_no_card() -> None:
    withheld = [(code, row) for code, row in service_rows() if row["status"] == "withheld"]
    assert {row["id"] for _, row in withheld} >= {"us-988-press-3", "nl-0900-0113", "it-main"}
    assert all(row["withdrawn_reason"] for _, row in withheld)
    for code, card in cards():
        text = card.text() + json.dumps(card.as_json(), ensure_ascii=False)
        assert not [number for number in WITHHELD.get(code, ()) if number in text], text
        assert not {entry.service.id for entry in card.entries} & {row["id"] for _, row in withheld}
        assert "press 3" not in text
        assert not any(number in text for code in ("IT", "NL") for number in WITHHELD[code])


def test_a_tombstone_is_not_back_under_another_id() -> None:
    def numbers(code: str, *, withheld: bool) -> set[tuple[str, str, str]]:
        rows = (row for place, row in service_rows() if place == code and (row["status"] == "withheld") == withheld)
        found = (channel for row in rows for channel in row["channels"])
        return {(each["type"], re.sub(r"\D", "", each["value"]), each.get("keyword", "")) for each in found}

    assert [code for code in COUNTRIES if numbers(code, withheld=True) & numbers(code, withheld=False)] == []


def test_european_numbers_stand_only_where_the_source_has_them() -> None:
    where = {number: {code for code, card in cards() if number in card.text()} for number in ("116 123", "116 111")}
    assert where["116 123"] == {"GB", "IE", "NO"}
    assert where["116 111"] == {"ES", "DE", "NO", "SE", "DK", "PL"}
    assert "116" not in card_for(DIRECTORY, None, Level.EMERGENCY, groups=("child",), today=CHECKED).text()


def test_a_pair_is_shown_both_or_neither(tmp_path: Path) -> None:
    pair = ("be-1813", "be-0800-32-123")

    def shown(directory: Directory, today: date, language: str = "en") -> list[str]:
        card = card_for(directory, "BE", Level.HIGH, language=language, today=today)
        return [entry.service.id for entry in card.entries]

    assert shown(DIRECTORY, CHECKED) == [*pair]
    assert shown(DIRECTORY, CHECKED, "fr") == [*reversed(pair)]
    assert shown(DIRECTORY, days(HIDDEN_AFTER + 1)) == []
    one_gone = copied(lambda rows: rows[pair[0]].update(status="withheld", withdrawn_reason="gone"))
    assert shown(load_directory(shipped_to(tmp_path, one_gone)), CHECKED) == []
    one_checked = copied(lambda rows: rows[pair[0]].update(status="corroborated", verified_on="2026-11-20"))
    mixed = load_directory(shipped_to(tmp_path, one_checked))
    assert {each.status for each in listed(mixed.countries["BE"], CHECKED)} == {"provisional"}
    assert shown(mixed, CHECKED) == [*pair]


@pytest.mark.parametrize(
    ("age", "status"),
    [
        (-9, "corroborated"),  # a clock that is wrong
        (PROVISIONAL_AFTER, "corroborated"),
        (PROVISIONAL_AFTER + 1, "provisional"),
        (HIDDEN_AFTER, "provisional"),
        (HIDDEN_AFTER + 1, None),
    ],
)
def test_entries_age(age: int, status: str | None) -> None:
    card = card_for(DIRECTORY, "PT", Level.HIGH, today=days(age))
    assert [entry.status for entry in card.entries] == ([status] if status else [])
    text = card.text()
    assert ("checked on 2026-11-20" in text) == (status == "corroborated")
    assert ("please check this number" in text) == (status == "provisional")
    assert ("1411" in text) == (status is not None)
    assert bool(card.degraded) == (ENGLISH["overdue"] in text) == (age > PROVISIONAL_AFTER)
    assert "call 112." in text  # emergency numbers do not age


def test_overdue_counts_for_the_operator() -> None:
    services = DIRECTORY.countries["FR"].services
    assert overdue(services, days(PROVISIONAL_AFTER)) is None
    assert overdue(services, days(200)) == "directory: 3 of 3 services not checked for 180 days, 0 of them hidden"
    assert str(overdue(services, days(400))).endswith("3 of them hidden")


def test_a_missing_altered_or_corrupt_file_gives_the_fallback_with_a_reason(tmp_path: Path) -> None:
    assert "directory.json" in str(load_directory(tmp_path).degraded)
    shipped_to(tmp_path, TREE)
    assert load_directory(tmp_path) == DIRECTORY
    content = (tmp_path / "directory.json").read_bytes()
    (tmp_path / "directory.json").write_bytes((FOLDER / "directory.json").read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "directory.json.sha256").write_bytes((FOLDER / "directory.json.sha256").read_bytes())
    assert load_directory(tmp_path) == DIRECTORY  # as git may check it out
    shipped_to(tmp_path, TREE)
    (tmp_path / "directory.json").write_bytes(content.replace(b'"988"', b'"989"'))
    assert "is not the file" in str(load_directory(tmp_path).degraded)
    (tmp_path / "directory.json").write_bytes(content[:-9])
    assert load_directory(tmp_path).version == "fallback"
    for wrong in ([], {}, 3, None, TREE | {"schema": 1}, TREE | {"international": []}, TREE | {"countries": {}}):
        found = load_directory(shipped_to(tmp_path, wrong))
        assert str(found.degraded).startswith("directory: ")
        assert found.international == INTERNATIONAL
    (tmp_path / "directory.json.sha256").write_text("")
    assert load_directory(tmp_path).degraded
    (tmp_path / "directory.json.sha256").unlink()
    assert load_directory(tmp_path).degraded


@pytest.mark.parametrize(
    "row",
    [
        {"id": "es-024"},
        {"channels": []},
        {"channels": [{"type": "call", "value": "31 14; 12"}]},
        {"channels": [{"type": "fax", "value": "3114"}]},
        {"channels": [{"type": "call", "value": "3114", "only": "mars"}]},
        {"status": "good"},
        {"status": "withheld"},
        {"status": "verified", "sources": [{"url": "https://a.example", "kind": "operator", "checked": "2026-11-20"}]},
        {"verified_on": None},
        {"verified_on": "yesterday"},
        {"topics": [3]},
        {"pair": "alone"},
    ],
)
def test_an_entry_that_breaks_a_rule_is_not_shown(row: dict[str, Any], tmp_path: Path) -> None:
    tree = copied(lambda rows: rows["fr-3114"].update(row))
    assert load_directory(shipped_to(tmp_path, tree)).version == "fallback"


def test_verified_takes_two_sources_of_two_kinds(tmp_path: Path) -> None:
    kinds = ("operator", "press")
    sources = [{"url": "https://a.example", "kind": kind, "checked": "2026-11-20"} for kind in kinds]
    tree = copied(lambda rows: rows["fr-3114"].update(status="verified", sources=sources))
    card = card_for(load_directory(shipped_to(tmp_path, tree)), "FR", Level.HIGH, today=CHECKED)
    assert [entry.status for entry in card.entries] == ["verified"]


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, member in [*tree.items()] if isinstance(tree, dict) else [*enumerate(tree)]:
        yield tree, key
        if isinstance(member, dict | list):
            yield from _nodes(member)


def test_loading_never_raises(tmp_path: Path) -> None:
    small = TREE | {"countries": {code: TREE["countries"][code] for code in ("BE", "IT")}}
    tree = json.loads(json.dumps(small))
    for parent, key in _nodes(tree):
        before = parent[key]
        for wrong in (None, {}, "x", -1, [None]):
            parent[key] = wrong
            found = load_directory(shipped_to(tmp_path, tree))
            assert (found.version == "fallback") == (found.degraded is not None)
            assert card_for(found, "BE", Level.EMERGENCY, groups=GROUPS, today=CHECKED).text()
        parent[key] = before
    assert load_directory(shipped_to(tmp_path, tree)).degraded is None


def test_the_fallback_in_code_knows_the_emergency_numbers_of_the_file() -> None:
    spare = fallback("test")
    assert {code: each.emergency for code, each in spare.countries.items()} == {
        code: each.emergency for code, each in DIRECTORY.countries.items()
    }
    assert sum(len(codes.split()) for codes in EMERGENCY.values()) == len(COUNTRIES)
    assert spare.international == DIRECTORY.international
    text = card_for(spare, "FR", Level.EMERGENCY, today=CHECKED).text()
    assert "call 112 or 15." in text
    assert ENGLISH["degraded"] in text
    assert "https://findahelpline.com" in text


@pytest.mark.parametrize("value", ["988", "9-8-8", "*4141", "+44 7700 900000", "0800 111 0 111"])
def test_what_can_be_dialled(value: str) -> None:
    assert dial_uri("call", value) == "tel:" + value.replace(" ", "").replace("-", "")
    assert dial_uri("whatsapp", value) is None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "9",
        "+0",
        "+123456789012345678",
        "12  34",
        "1800RESPECT",
        "12;ext=3",
        "12\n",
        "\uff11\uff11\uff12",
        "tel:112",
        "-12",
    ],
)
def test_what_cannot_be_dialled(value: str) -> None:
    with pytest.raises(DirectoryError):
        dial_uri("call", value)


def test_every_address_of_the_directory_has_its_form() -> None:
    for country in DIRECTORY.countries.values():
        for channel in (channel for service in country.services for channel in service.channels):
            assert channel.uri is None or re.fullmatch(r"(tel|sms):(\+[1-9]|\*?[0-9])[0-9]{1,14}", channel.uri)
            assert (channel.uri is None) == (channel.type == "whatsapp")
