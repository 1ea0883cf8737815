"""What people are told about talking with an AI, and when; what they say of leaving, of what we are, of their age."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

import yaml

from warmline.safety.levels import Level
from warmline.safety.normalize import plain

Minor = Literal["yes", "no", "unknown"]
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0  # seconds
REMIND_ADULT, REMIND_OTHERS = 3 * HOUR, HOUR  # of use, from one AI notice to the next
LONGEST_WAIT = 15 * MINUTE  # of a reminder that comes due in a crisis
LONGEST_GAP = 30 * MINUTE  # a longer silence between two turns counts as this much use
SETTLED = 15 * MINUTE  # of use, before somebody is told at night that they might rest
NIGHT_BEGINS, NIGHT_ENDS = 22, 5  # o'clock, local
MUCH_A_DAY, COUNTS_AS_DAY, NIGHT_LONG = 3 * HOUR, 30 * MINUTE, 4 * HOUR  # of use
LONGEST_TEXT = 8_000  # characters of a turn that are read here; of a farewell the last ones
YOUNGEST, ADULT, OLDEST = 6, 18, 110  # years; other numbers are no ages of ours


@dataclass(frozen=True)
class Use:
    """What is kept of a session, in epoch seconds. One that begins is Use(now, None, now, 0, False)."""

    started: float
    last_notice: float | None  # None: the AI notice was not shown yet
    last_turn: float
    active_s: float  # of use since the last notice, up to the last turn
    night_break_shown: bool

    @property
    def begins(self) -> bool:
        """Whether the notice of the start is still to be shown; one of an earlier session does not count."""
        return self.last_notice is None or self.last_notice < self.started


@dataclass(frozen=True)
class Disclosure:
    """What the app shows between turns; at `high` and above beside the card, never inside the reply."""

    ai_notice_due: bool
    break_due: bool


def passed(use: Use, now: float) -> float:
    """Seconds of use since the last turn; none when the clock has jumped back or is no number."""
    gap = now - use.last_turn
    return min(gap, LONGEST_GAP) if gap > 0 else 0.0


def turned(use: Use, now: float, utc_offset_s: float | None = None) -> Use:
    """The session after one more turn at `now`. `utc_offset_s`: the person's clock; None: not known, never night."""
    return replace(
        use,
        last_turn=now if math.isfinite(now) else use.last_turn,
        active_s=use.active_s + passed(use, now),
        night_break_shown=use.night_break_shown and _is_night(now, utc_offset_s),
    )


def due(use: Use, now: float, level: Level, minor: Minor, utc_offset_s: float | None = None) -> Disclosure:
    """What is due at `now`: at the start; after 3 hours of use, 1 hour unless an adult; once a night a break alone.

    A reminder that comes due at `high` or above waits for 15 minutes of use at most; the notice at the start does not.
    """
    if use.begins:
        return Disclosure(ai_notice_due=True, break_due=False)
    active = use.active_s + passed(use, now)
    overdue = active - (REMIND_ADULT if minor == "no" else REMIND_OTHERS)
    in_crisis = level >= Level.HIGH
    reminder = overdue >= (LONGEST_WAIT if in_crisis else 0)
    night = _is_night(now, utc_offset_s) and not use.night_break_shown and active >= SETTLED and not in_crisis
    return Disclosure(reminder, reminder or night)


def shown(use: Use, disclosure: Disclosure, now: float, utc_offset_s: float | None = None) -> Use:
    """The session after `disclosure` was shown at `now`."""
    if disclosure.break_due and _is_night(now, utc_offset_s):
        use = replace(use, night_break_shown=True)
    if disclosure.ai_notice_due:
        use = replace(use, last_notice=max(now, use.started), active_s=0.0)  # the clock may have jumped back
    return use


def texts_for(disclosure: Disclosure, use: Use, language: str) -> tuple[str, ...]:
    """What the app says, in the nearest of its six languages: the whole notice the first time, then short reminders."""
    key, texts = re.split("[-_]", language.strip().lower())[0], _data()["texts"]
    words = next((words for name, words in texts.items() if name.split("-")[0] == key), texts["en"])
    notice = [words["start" if use.begins else "reminder"]] if disclosure.ai_notice_due else []
    return (*notice, words["break"]) if disclosure.break_due else tuple(notice)


def _is_night(now: float, utc_offset_s: float | None) -> bool:
    if utc_offset_s is None or not math.isfinite(now):
        return False
    hour = (now + utc_offset_s) % DAY / HOUR
    return hour >= NIGHT_BEGINS or hour < NIGHT_ENDS


class Day(NamedTuple):
    """How much somebody talked with us on one day, which goes from 05:00 to 05:00 on their clock."""

    number: int  # days since 1970
    active_s: float
    night_s: float  # seconds of it after 22:00
    num_only_you: int  # turns in which detection read that they have only us


def add_use(days: Sequence[Day], now: float, seconds: float, num_only_you: int, utc_offset_s: float) -> tuple[Day, ...]:
    """The last seven days after `seconds` more of use (see `passed`); a clock that jumps back adds to the last day."""
    local = now + utc_offset_s - NIGHT_ENDS * HOUR
    number = max([math.floor(local / DAY) if math.isfinite(local) else 0, *(day.number for day in days)])
    last = days[-1] if days and days[-1].number == number else Day(number, 0.0, 0.0, 0)
    night_s = last.night_s + seconds * _is_night(now, utc_offset_s)
    new = Day(number, last.active_s + seconds, night_s, last.num_only_you + num_only_you)
    return (*(day for day in days if number - 7 < day.number < number), new)


def leans_on_it(days: Sequence[Day]) -> bool:
    """Whether somebody may lean on the companion: over 3 hours on a day, over 5 days a week, night-long, or only us."""
    return sum(day.active_s >= COUNTS_AS_DAY for day in days) > 5 or any(
        day.active_s > MUCH_A_DAY or day.night_s >= NIGHT_LONG or day.num_only_you for day in days
    )


def is_farewell(text: str) -> bool:
    """Whether a user turn says an ordinary goodbye, after which a reply must not hold anyone back."""
    clauses = re.split(r"[.!?,;:()\n]+|\s[^\w\s]+\s", _read(text[-LONGEST_TEXT:]))
    return any(_says("farewell", " ".join(re.findall(r"[^\W_]+", clause))) for clause in clauses)


def asks_if_human(text: str) -> bool:
    """Whether a user turn asks who or what is talking: the answer must be the truth, at every level."""
    return _says("human", _read(text[:LONGEST_TEXT]))


def minor_of(text: str, before: Minor) -> Minor:
    """Whether the person is under 18, by what they say of themselves: an age, a school year, who decides for them.

    `yes` holds for the session, whatever is claimed later; only a stated age of majority makes `no`.
    """
    if before == "yes":
        return "yes"
    said = re.sub(r'"[^"]{1,400}"', " ", _read(text[:LONGEST_TEXT]))  # what stands in quotes may be another's
    ages = _of_self("age", said) + [(age - 1, claimed) for age, claimed in _of_self("nearly", said)]
    ages += [(age - 1, False) for age, _ in _of_self("not_yet", said) if age <= ADULT]
    if any(YOUNGEST <= age < ADULT for age, _ in ages) or _of_self("child", said):
        return "yes"
    grown = [claimed for age, claimed in ages if ADULT <= age <= OLDEST] + [each for _, each in _of_self("adult", said)]
    if before == "no" or not all(grown):
        return "no"
    return "yes" if _of_self("school", said) or _of_self("guardian", said) else "unknown"


def _of_self(kind: str, said: str) -> list[tuple[int, bool]]:
    """The ages that somebody states as their own (0 where a pattern names none), and whether as a claim to others."""
    found = []
    for each in (each for pattern in _regex(kind) for each in pattern.finditer(said)):
        lead_in = said[max(0, each.start() - 60) : each.start()]
        if not _says("not_mine", lead_in):
            word = each.groupdict().get("n", "0")
            age = next((by[word] for by in _data()["numbers"].values() if word in by), None)
            found.append((int(word) if age is None else age, _says("claimed", lead_in)))
    return found


def _read(text: str) -> str:
    """Plain text without the apostrophes inside words (`i'm` -> `im`), so that both spellings are one."""
    return re.sub(r"(?<=[^\W\d_])'(?=[^\W\d_])", "", plain(text))


def _says(kind: str, said: str) -> bool:
    return any(pattern.search(said) for pattern in _regex(kind))


@cache
def _regex(kind: str) -> tuple[re.Pattern[str], ...]:
    """The patterns of a kind in all languages, with `{name}` replaced by what disclosure.yaml has under `parts`."""
    return tuple(re.compile(_filled(text)) for text in _data()["phrases"][kind])


def _filled(text: str) -> str:
    def part(found: re.Match[str]) -> str:
        words = _data()["numbers"].get(found[1].removeprefix("n_"))
        return rf"(?P<n>\d{{1,3}}(?!\d)|(?:{'|'.join(words)})\b)" if words else _filled(_data()["parts"][found[1]])

    return re.sub(r"\{([a-z_]+)\}", part, text)


@cache
def _data() -> Mapping[str, Any]:
    text = files("warmline.safety").joinpath("disclosure.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
