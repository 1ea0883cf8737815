"""The resource card: who can be reached, from the directory alone, in the app's words and never in the companion's.

[CLINICAL] At emergency it adds two lines in general words, on being with someone and on distance from danger. They and
the wording of the whole card await review by a clinician; until then the card says that it has not been reviewed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import date
from typing import Any, NamedTuple

from warmline.safety.levels import Level
from warmline.safety.resources.directory import MOBILE_EMERGENCY
from warmline.safety.resources.labels import fill, labels_for
from warmline.safety.resources.services import (
    GROUPS,
    Channel,
    Directory,
    Link,
    Listed,
    Service,
    Status,
    best,
    dial_uri,
    listed,
    overdue,
)

_MADE_HERE = object()


class Entry(NamedTuple):
    role: str  # `main`, or the group that it is for
    service: Service
    status: Status  # on the card's day


@dataclass(frozen=True)
class Card:
    """What the app shows about help. Made by `card_for` only: elsewhere, construction raises TypeError."""

    country: str | None  # None: none chosen, or none that the directory has
    country_name: str  # in the card's language where known; empty without a country
    language: str
    level: Level
    about_other: bool
    emergency: tuple[str, ...]
    entries: tuple[Entry, ...]  # in the order shown
    international: tuple[Link, ...]
    notes: tuple[str, ...]  # labels that say what is wrong with the list
    degraded: tuple[str, ...]  # the same for operators
    labels: Mapping[str, str] = field(repr=False, compare=False)
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _MADE_HERE:
            raise TypeError("a Card is made by card_for alone")

    @property
    def sections(self) -> tuple[str, ...]:
        """The order of the parts; numbers that nobody has checked stand below the international directories."""
        rest = ("services", "international", "provisional")
        return ("emergency", *rest) if self.level == Level.EMERGENCY else (*rest, "emergency")

    def text(self) -> str:
        """The card as plain lines, one thing a line, without marks that a screen reader would stumble over."""
        head = [self._say("title"), self._showing(), *(self._say(note) for note in self.notes)]
        blocks = [head, *(self._lines(section) for section in self.sections), self._footer()]
        return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """The API's object: the same words as `text`, in parts, and what a page needs for buttons."""
        return {
            "country": self.country,
            "country_name": self.country_name,
            "language": self.language,
            "title": self._say("title"),
            "showing": self._showing(),
            "notes": [self._say(note) for note in self.notes],
            "sections": [*self.sections],
            "headings": {section: self._heading(section) for section in self.sections},
            "emergency": [{"number": number, "uri": dial_uri("call", number)} for number in self.emergency],
            "emergency_text": self._emergency_text(),
            "safety_lines": self._care(),
            "services": [self._entry(each) for each in self._entries("services")],
            "international": [link._asdict() for link in self.international],
            "provisional": [self._entry(each) for each in self._entries("provisional")],
            "actions": [{"id": name, "label": self._say(f"action_{name}")} for name in self._actions()],
            "why": self._why(),
            "footer": self._footer(),
            "degraded": [*self.degraded],
        }

    def _say(self, label: str, **parts: str) -> str:
        return fill(self.labels[label], **parts)

    def _showing(self) -> str:
        return self._say("showing" if self.country else "showing_none", country=self.country_name)

    def _heading(self, section: str) -> str:
        return self._say("services_other" if section == "services" and self.about_other else section)

    def _lines(self, section: str) -> list[str]:
        if section == "emergency":
            return [self._heading(section), self._emergency_text(), *self._care()]
        lines = [f"{link.name}: {link.url}" for link in self.international if section == "international"]
        for entry in map(self._entry, self._entries(section)):
            lines += [entry["title"], *(channel["text"] for channel in entry["channels"]), entry["details"]]
        return [self._heading(section), *lines] if lines else []

    def _emergency_text(self) -> str:
        if not self.emergency:
            return self._say("emergency_unknown", number=MOBILE_EMERGENCY)
        return self._say("emergency_call", numbers=f" {self._say('or')} ".join(self.emergency))

    def _care(self) -> list[str]:
        who = "care_other" if self.about_other else "care_self"
        return [self._say(f"{who}_company"), self._say(f"{who}_distance")] if self.level == Level.EMERGENCY else []

    def _entries(self, section: str) -> list[Entry]:
        unchecked = {"services": False, "provisional": True}.get(section)  # no other section has entries
        return [each for each in self.entries if (each.status == "provisional") is unchecked]

    def _entry(self, entry: Entry) -> dict[str, Any]:
        service, unchecked = entry.service, entry.status == "provisional"
        group = None if entry.role == "main" else self._say(f"group_{entry.role}")
        hours = {True: self._say("always"), False: self._say("limited"), None: ""}[service.always]
        checked = self._say("unchecked") if unchecked else self._say("checked", date=service.dated.isoformat())
        details = "; ".join(filter(None, (hours, checked)))
        return {
            "id": service.id,
            "name": service.name,
            "group": group,
            "title": ", ".join(filter(None, (service.name, group))),
            "channels": [self._channel(channel) for channel in service.channels],
            "details": details[:1].upper() + details[1:],
            "status": entry.status,
            "checked_on": None if unchecked else service.dated.isoformat(),
        }

    def _channel(self, channel: Channel) -> dict[str, Any]:
        kind = {"call": "call_press", "sms": "sms_word"}.get(channel.type) if channel.keyword else None
        text = [self._say(kind or channel.type, value=channel.value, keyword=channel.keyword or "")]
        text += [self._say("free")] if channel.free else []
        text += [self._say(f"only_{channel.only}")] if channel.only else []
        return {key: getattr(channel, key) for key in ("type", "value", "uri", "keyword")} | {"text": ", ".join(text)}

    def _actions(self) -> tuple[str, ...]:
        return ("with_me", "hide", "country", "self" if self.about_other else "other", "why")

    def _why(self) -> str:
        return self._say("why_open" if self.level == Level.NONE else "why")  # never a word of what was written

    def _footer(self) -> list[str]:
        first = ("elsewhere",) if self.country else ()
        return [self._why(), *map(self._say, (*first, "from_app", "no_contact", "not_service", "not_reviewed"))]


def card_for(
    directory: Directory,
    country: str | None,
    level: Level,
    *,
    groups: Sequence[str] = (),
    about_other: bool = False,
    language: str = "en",
    today: date,
) -> Card:
    """The card of a country on the day `today`.

    `groups`: of GROUPS, only those that the user stated; the first that has a service adds it, and a child line comes
    first. `about_other`: the user worries about someone else. `language`: a tag such as `pt-BR`. A country, group or
    language that is not known never raises: the card is the international one, or lacks the group, or is in English.
    """
    place = directory.countries.get((country or "").strip().upper())
    spoken, labels = labels_for(language)
    choices = listed(place, today) if place else ()
    special = _special(choices, groups, spoken)
    known = {each.service for each in special}
    main = [Entry("main", *each) for each in best(choices, spoken) if each.service not in known]
    late = overdue(place.services if place else (), today)
    return Card(
        country=place.code if place else None,
        country_name=(place.names.get(spoken) or place.names["en"]) if place else "",
        language=spoken,
        level=level,
        about_other=about_other,
        emergency=place.emergency if place else (),
        entries=(*special, *main) if special and special[0].role == "child" else (*main, *special),
        international=directory.international,
        notes=tuple(note for note, why in (("degraded", directory.degraded), ("overdue", late)) if why),
        degraded=tuple(why for why in (directory.degraded, late) if why),
        labels=labels,
        token=_MADE_HERE,
    )


def _special(choices: Sequence[Listed], groups: Sequence[str], language: str) -> list[Entry]:
    found = ((group, best(choices, language, group)) for group in groups if group in GROUPS)
    return next(([Entry(group, *each) for each in services] for group, services in found if services), [])
