"""The card's own words, in six languages: interface copy of the app, not of the companion.

[CLINICAL] The `care_` lines (being with someone, distance from danger) await review by a clinician and by people with
lived experience, in every language. The five translations also await a native reader.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable

# labels.json has these words too. They stand in code so that a card can be read where the package's data is missing.
ENGLISH = {
    "title": "Support from people, shown by the warmline app",
    "showing": "Showing {country}.",
    "showing_none": "No country is chosen, or there is no list for it. International services are shown.",
    "elsewhere": "If you are somewhere else, these numbers may not work.",
    "emergency": "Emergency",
    "emergency_call": "If a life is in danger now, call {numbers}.",
    "emergency_unknown": "If a life is in danger now, call your local emergency number. {number} works from mobiles in many countries.",
    "or": "or",
    "care_self_company": "If you can, be with someone you trust, or ask someone to come to you.",
    "care_self_distance": "If you can, move away from anything that could be dangerous.",
    "care_other_company": "If it is safe for you, stay with them, or ask someone near them to.",
    "care_other_distance": "If it is safe for you, help them be away from anything that could be dangerous.",
    "services": "People you can reach",
    "services_other": "People you can reach for someone else, and for yourself",
    "provisional": "More numbers",
    "international": "Find a service in your country and language",
    "call": "Call {value}",
    "call_press": "Call {value}, then press {keyword}",
    "sms": "Text {value}",
    "sms_word": "Text {keyword} to {value}",
    "whatsapp": "WhatsApp {value}",
    "chat": "Chat: {value}",
    "free": "free",
    "always": "open day and night, every day",
    "limited": "not open all the time",
    "only_mobiles": "from mobile phones",
    "only_some_cities": "in some cities only",
    "only_caba_gba": "in CABA and GBA only",
    "checked": "checked on {date}",
    "unchecked": "please check this number",
    "group_child": "for children and young people",
    "group_veteran": "for veterans",
    "group_perinatal": "around pregnancy and birth",
    "group_lgbtq": "for LGBTQ people",
    "group_abuse": "about violence and abuse",
    "group_eating": "about eating",
    "group_poison": "about poisoning",
    "group_indigenous": "for Indigenous people",
    "degraded": "The list of local services could not be read. General ones are shown.",
    "overdue": "Some of these numbers have not been checked for a long time. Those that are too old are not shown.",
    "from_app": "This card comes from the warmline app, not from the companion.",
    "no_contact": "warmline has not contacted anyone and cannot.",
    "not_service": "warmline is not a crisis or medical service.",
    "not_reviewed": "This card has not been reviewed by a clinician.",
    "why": "You see this card because something written here may mean that someone needs support. The app can be wrong.",
    "why_open": "You can open this card at any time.",
    "action_with_me": "Someone is with me",
    "action_hide": "Hide",
    "action_country": "Change country",
    "action_other": "Worried about someone else",
    "action_self": "This is about me",
    "action_why": "Why am I seeing this?",
}


def labels_for(language: str, folder: Traversable | None = None) -> tuple[str, Mapping[str, str]]:
    """The nearest language that the card speaks, and its words; `folder`: where labels.json lies.

    `pt-BR` gives `pt`, `hi` gives `hi-Latn`, an unknown one `en`. A missing file or word gives English; nothing raises.

    >>> labels_for("pt-BR")[1]["or"], labels_for("ja")[0]
    ('ou', 'en')
    """
    table = _table(resources.files("warmline.safety.resources") if folder is None else folder)
    by_prefix = {name.split("-")[0]: name for name in table}
    name = by_prefix.get(re.split("[-_]", language.strip().lower())[0], "en")
    return name, {key: _usable(table.get(name, {}).get(key), english) for key, english in ENGLISH.items()}


def fill(label: str, **parts: str) -> str:
    """A label with its places filled; unlike str.format, this has nothing to raise.

    >>> fill("Text {keyword} to {value}", keyword="HELLO", value="50808")
    'Text HELLO to 50808'
    """
    return re.sub(r"{(\w+)}", lambda place: parts.get(place[1], place[0]), label)


@lru_cache(maxsize=8)
def _table(folder: Traversable) -> dict[str, dict[str, object]]:
    try:
        table = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    rows = table.items() if isinstance(table, dict) else ()
    return {name: row for name, row in rows if isinstance(row, dict)}


def _usable(label: object, english: str) -> str:
    """`label` if it has the places that the English one has: a number must not get lost in a translation."""
    if isinstance(label, str) and _places(label) == _places(english):
        return label
    return english


def _places(label: str) -> list[str]:
    return sorted(re.findall(r"{(\w+)}", label))
