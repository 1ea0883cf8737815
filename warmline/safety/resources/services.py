"""What a helpline directory holds, how its entries age, and what of a country may be shown on a day."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal, NamedTuple

Status = Literal["verified", "corroborated", "provisional", "withheld"]
STATUSES: tuple[Status, ...] = ("verified", "corroborated", "provisional", "withheld")  # best to worst
GROUPS = ("child", "veteran", "perinatal", "lgbtq", "abuse", "eating", "poison", "indigenous")
ONLY = ("mobiles", "some_cities", "caba_gba")  # where a number works, if not everywhere in its country
PROVISIONAL_AFTER = 180  # days since an entry was checked
HIDDEN_AFTER = 365  # days

# `+` is E.164 (15 digits at most). Without it: a short code, or a number as it is dialled inside its country.
_NUMBER = re.compile(r"(?:\+[1-9]|\*?[0-9])(?:[ -]?[0-9]){1,14}")


class DirectoryError(ValueError):
    """A directory file is not what it should be; the message names the place."""


class Channel(NamedTuple):
    type: str  # call, sms, whatsapp or chat
    value: str  # the number as people write it; of a chat, its https address
    uri: str | None  # tel:, sms: or https:; None where no scheme is known for sure
    keyword: str | None  # of a call: the key to press once it is answered; of an sms: the word to send
    only: str | None  # one of ONLY
    free: bool  # False: not stated


class Link(NamedTuple):
    name: str
    url: str


@dataclass(frozen=True)
class Service:
    id: str  # never used again, not even for the same service under a new number
    name: str  # as it calls itself; its number where the source gave no name
    channels: tuple[Channel, ...]
    topics: frozenset[str]
    groups: frozenset[str]  # whom it is for; empty: everybody
    languages: frozenset[str]  # empty: not stated
    always: bool | None  # open day and night; None: not stated
    status: Status  # as filed; `listed` gives today's
    dated: date  # when it was checked; of an entry that nobody checked, when the file was released
    priority: int  # 1 first
    pair: str | None  # services of one pair are shown together or not at all


@dataclass(frozen=True)
class Country:
    code: str  # ISO 3166, two letters
    names: Mapping[str, str]  # by language; always `en`
    emergency: tuple[str, ...]  # the usual one first
    services: tuple[Service, ...]


@dataclass(frozen=True)
class Directory:
    version: str  # the release date, or `fallback`
    countries: Mapping[str, Country]  # by code
    international: tuple[Link, ...]
    degraded: str | None  # why the file is not in use; None: it is


class Listed(NamedTuple):
    service: Service
    status: Status  # today's; never `withheld`


def listed(country: Country, today: date) -> tuple[Listed, ...]:
    """The services that a card may show on the day `today`, in the file's order, each with its status of that day.

    A pair has the worse status of its two, so that both are shown at one place, or neither.
    """

    def status(service: Service) -> Status:
        pair = (each for each in country.services if service.pair and each.pair == service.pair)
        standings = {_standing(each, today) for each in (service, *pair)}
        return next(each for each in reversed(STATUSES) if each in standings)

    found = (Listed(service, status(service)) for service in country.services)
    return tuple(each for each in found if each.status != "withheld")


def overdue(services: Iterable[Service], today: date) -> str | None:
    """One line for the operator if any of these has gone unchecked for over PROVISIONAL_AFTER days, else None."""
    ages = [(today - service.dated).days for service in services if service.status != "withheld"]
    late = sum(age > PROVISIONAL_AFTER for age in ages)
    if not late:
        return None
    hidden = sum(age > HIDDEN_AFTER for age in ages)
    return (
        f"directory: {late} of {len(ages)} services not checked for {PROVISIONAL_AFTER} days, {hidden} of them hidden"
    )


def dial_uri(kind: str, value: str) -> str | None:
    """The address that a button opens. Raises DirectoryError if `value` cannot be dialled, or is no https address.

    >>> dial_uri("call", "1-800-222-1222"), dial_uri("sms", "+44 7700 900000"), dial_uri("call", "*4141")
    ('tel:18002221222', 'sms:+447700900000', 'tel:*4141')
    """
    if kind == "chat":
        if not re.fullmatch(r"https://[!-~]+", value):
            raise DirectoryError(f"{value!r} is not an https address")
        return value
    if not _NUMBER.fullmatch(value):
        raise DirectoryError(f"{value!r} is neither an E.164 number, nor a short code, nor a number dialled at home")
    scheme = {"call": "tel", "sms": "sms"}.get(kind)  # a WhatsApp link would need a country code that nobody gave us
    return None if scheme is None else f"{scheme}:{re.sub('[ -]', '', value)}"


def best(choices: Sequence[Listed], language: str, group: str | None = None) -> list[Listed]:
    """The one service for everybody, or for a group of GROUPS, with its pair if it has one; empty if there is none.

    Of those that fit: checked before unchecked, then those in `language` (a tag), then by priority.
    """

    def fits(service: Service) -> bool:
        if group is None:
            return bool({"suicide", "crisis"} & service.topics) and not service.groups
        return group in service.groups | service.topics

    def rank(each: Listed) -> tuple[bool, int, int]:
        spoken = each.service.languages
        distance = 0 if language.partition("-")[0] in spoken else 2 if spoken else 1  # not stated may still be the one
        return each.status == "provisional", distance, each.service.priority

    first = sorted((each for each in choices if fits(each.service)), key=rank)[:1]
    pairs = {each.service.pair for each in first} - {None}
    others = (each for each in choices if each.service.pair in pairs and each not in first)
    return first + sorted(others, key=rank)


def _standing(service: Service, today: date) -> Status:
    age = (today - service.dated).days  # below 0 if the clock is wrong: as if checked today
    if service.status == "withheld" or age > HIDDEN_AFTER:
        return "withheld"
    return "provisional" if age > PROVISIONAL_AFTER else service.status
