"""The helpline directory: directory.json, read and checked, aged by date, and a minimal fallback in code.

A number reaches a card from here and from nowhere else. The hash beside the file finds damage and edits that nobody
meant; it is no signature. After a change: `sha256sum directory.json > directory.json.sha256`, in this folder.
"""

import hashlib
import json
import re
from datetime import date
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from warmline.safety.resources.services import (
    ONLY,
    STATUSES,
    Channel,
    Country,
    Directory,
    DirectoryError,
    Link,
    Service,
    Status,
    dial_uri,
)

FILE = "directory.json"
SCHEMA = 2

# For a directory that cannot be read: emergency numbers and the countries that have them, in the file's order.
EMERGENCY = {
    "911": "US CA PH MX",
    "999": "GB HK MY",
    "112 999": "IE",
    "000": "AU",
    "111": "NZ",
    "112": "IN ES PT DE NL BE IT SE DK FI PL CZ HU RO GR LT",
    "112 15": "FR",
    "192 190": "BR",
    "144 112": "CH AT",
    "113": "NO",
    "119": "JP KR TW",
    "120": "CN",
    "995": "SG",
    "112 10177": "ZA",
    "101": "IL",
    "107 911": "AR",
    "131": "CL",
    "123": "CO",
}
MOBILE_EMERGENCY = "112"  # works from mobiles in many countries; never shown as the number of one

INTERNATIONAL = (
    Link("Find A Helpline", "https://findahelpline.com"),
    Link("IASP crisis centres", "https://www.iasp.info/crisis-centres-helplines/"),
    Link("Befrienders Worldwide", "https://befrienders.org"),
)


def load_directory(folder: Traversable | None = None) -> Directory:
    """The directory in `folder`; default: the one that ships with warmline.

    Never raises: if the file is missing, altered or invalid, this is `fallback` with the reason in `degraded`.
    """
    try:
        content = _read(resources.files("warmline.safety.resources") if folder is None else folder)
        return _directory(json.loads(content))
    except (OSError, ValueError, RecursionError) as error:  # not JSON and not UTF-8 are ValueErrors
        return fallback(" ".join(str(error).split()))


def fallback(reason: str) -> Directory:
    """Emergency numbers by country and the international directories: what code knows without the file."""
    countries = {
        code: Country(code, {"en": code}, tuple(numbers.split()), ())
        for numbers, codes in EMERGENCY.items()
        for code in codes.split()
    }
    return Directory("fallback", countries, INTERNATIONAL, f"directory: {reason}")


def _read(folder: Traversable) -> bytes:
    """The file's content. Raises OSError if it is missing and DirectoryError if it is not what its hash says."""
    content = (folder / FILE).read_bytes().replace(b"\r\n", b"\n")  # as git may check it out on Windows
    expected = (folder / f"{FILE}.sha256").read_text(encoding="ascii").split()[:1]
    if [hashlib.sha256(content).hexdigest()] != expected:
        raise DirectoryError(f"{FILE} is not the file that {FILE}.sha256 was made from")
    return content


def _directory(tree: Any) -> Directory:
    if _field(tree, "schema", int, FILE) != SCHEMA:
        raise DirectoryError(f"{FILE}: schema: expected {SCHEMA}, found {tree['schema']}")
    released = date.fromisoformat(_field(tree, "released", str, FILE))
    rows = _field(tree, "countries", dict, FILE)
    countries = {code: _country(code, row, released) for code, row in rows.items()}
    ids = [service.id for country in countries.values() for service in country.services]
    if not countries or len(ids) != len(set(ids)):
        raise DirectoryError(f"{FILE}: no countries, or an id that stands for two services")
    links = [_link(row) for row in _field(tree, "international", list, FILE)]
    if not links:
        raise DirectoryError(f"{FILE}: international: expected a directory at least")
    return Directory(released.isoformat(), countries, tuple(links), None)


def _country(code: str, row: Any, released: date) -> Country:
    numbers = tuple(_field(each, "number", str, f"{code}.emergency") for each in _field(row, "emergency", list, code))
    if not re.fullmatch("[A-Z]{2}", code) or not numbers:
        raise DirectoryError(f"{code}: expected a two-letter code and an emergency number")
    for number in numbers:
        dial_uri("call", number)
    names = _field(row, "name", dict, code)
    for language in {"en", *names}:
        _field(names, language, str, f"{code}.name")
    services = tuple(_service(each, code, released) for each in _field(row, "services", list, code))
    pairs = [service.pair for service in services if service.pair]
    if any(pairs.count(pair) != 2 for pair in pairs):
        raise DirectoryError(f"{code}: a pair is two services: {pairs}")
    return Country(code, names, numbers, services)


def _service(row: Any, code: str, released: date) -> Service:
    where = f"{code}.{_field(row, 'id', str, code)}"
    status: Status = _one_of(_field(row, "status", str, where), STATUSES, f"{where}.status")
    checked = _field(row, "verified_on", str | None, where)
    if checked is None and status in {"verified", "corroborated"}:
        raise DirectoryError(f"{where}: {status}, but without a date in verified_on")
    if status == "verified" and not _well_sourced(_field(row, "sources", list, where), where):
        raise DirectoryError(f"{where}: verified needs two dated sources of two kinds, one operator or government")
    if status == "withheld" and not _field(row, "withdrawn_reason", str, where):
        raise DirectoryError(f"{where}: withheld, but without a reason")
    channels = tuple(_channel(each, where) for each in _field(row, "channels", list, where))
    if not channels:
        raise DirectoryError(f"{where}: no channels")
    return Service(
        id=row["id"],
        name=_field(row, "name", str, where),
        channels=channels,
        topics=_words(row, "topics", where),
        groups=_words(row.get("audience", {"groups": []}), "groups", where),
        languages=_words({"languages": [], **row}, "languages", where),
        always=_field(_field(row, "hours", dict, where), "always", bool | None, where),
        status=status,
        dated=released if checked is None else date.fromisoformat(checked),
        priority=_field(row, "priority", int, where),
        pair=_field(row, "pair", str | None, where),
    )


def _channel(row: Any, where: str) -> Channel:
    kind = _one_of(_field(row, "type", str, where), ("call", "sms", "whatsapp", "chat"), f"{where}.type")
    value = _field(row, "value", str, where)
    only = _one_of(_field(row, "only", str | None, where), (None, *ONLY), f"{where}.only")
    free = _field(row, "cost", str | None, where) == "free"
    return Channel(kind, value, dial_uri(kind, value), _field(row, "keyword", str | None, where), only, free)


def _link(row: Any) -> Link:
    url = _field(row, "url", str, "international")
    dial_uri("chat", url)
    return Link(_field(row, "name", str, "international"), url)


def _well_sourced(rows: list[Any], where: str) -> bool:
    kinds = {_field(row, "kind", str, where) for row in rows if date.fromisoformat(_field(row, "checked", str, where))}
    return len(kinds) >= 2 and bool(kinds & {"operator", "government"})


def _words(row: Any, key: str, where: str) -> frozenset[str]:
    words = _field(row, key, list, where)
    if not all(isinstance(word, str) for word in words):
        raise DirectoryError(f"{where}.{key}: expected words, found {words!r:.60}")
    return frozenset(words)


def _one_of(value: Any, allowed: tuple[Any, ...], where: str) -> Any:
    if value not in allowed:
        raise DirectoryError(f"{where}: expected one of {allowed}, found {value!r:.60}")
    return value


def _field(row: Any, key: str, kind: Any, where: str) -> Any:
    """`row[key]`, or None if there is none and `kind` allows that. Raises DirectoryError if it is of another kind."""
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(value, kind):
        raise DirectoryError(f"{where}.{key}: expected {getattr(kind, '__name__', kind)}, found {value!r:.60}")
    return value
