"""Daily counts of what the safety system did, and nothing about anybody: no text, no session, no time of day."""

import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal

from filelock import FileLock

from warmline.run_dir import write_json
from warmline.safety.levels import DOMAINS, Level

VERSION = 1  # of the day files
LOCK_S, POLL_S = 0.5, 0.002  # how long a count waits for another process, and how often it looks
PUBLIC_FROM = 10  # smaller counts could point at somebody

CARDS = ("none", "chip", "first", "full", "pinned")  # pinned: it was shown before and still is, which counts no more
REFERRALS = frozenset({"first", "full"})  # cards by which somebody was newly referred to crisis services
LANGUAGES = ("en", "es", "fr", "de", "pt", "hi-Latn", "other")
SOURCES = ("model", "rewrite", "slots", "guided", "notice")
PARTS = (
    *(
        "rules",
        "linear",
        "network",
        "rules_slow",
        "linear_slow",
        "network_slow",
        "guarded",
        "input",
        "guard",
        "head",
        "state",
    ),
    *(
        "validators",
        "policy",
        "engine",
        "deadline",
        "directory",
        "disclosure",
        "store",
        "language",
        "companion",
        "other",
    ),
)
PHASES = ("detect", "rules", "linear", "network", "head", "generate", "validate", "total")
VALIDATORS = frozenset(
    "probing_question invalidating fabricated_memory directive_or_actionable_advice method_information diagnosis "
    "missing_acknowledgement missing_emotion_name missing_support_encouragement multiple_escalations "
    "promise_of_secrecy human_claim unsafe_validation dependency_hook abandonment number_in_model_text "
    "no_suicide_contract delusion_confirmed ed_content sexual_content length_form repetition language_mismatch "
    "pii_echo".split()
)
LIMITS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000)
# Whose law asks for which referrals (safety.md 10.1); to be checked with counsel.
PROFILES: Mapping[str, frozenset[str]] = {
    "ca": frozenset({"suicide", "self_harm"}),
    "ny": frozenset({"suicide", "self_harm", "harm_others", "financial_harm"}),
    "or": frozenset({"suicide", "self_harm"}),
    "wa": frozenset({"suicide", "self_harm", "eating"}),
}
_RULE = re.compile(r"[A-Z0-9_.]{1,40}")  # the shape of ids in rule packs
_COUNTRY = re.compile(r"[A-Z]{2}")
_VERSION = re.compile(r"[0-9]{4}[.-][0-9]{2}(?:[.-][0-9]{1,2}){0,2}")  # 2026.11, 2026-11-20
_DAY_FILE = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})\.json")

_drops: Counter[str] = Counter()  # events of this process that could not be kept, by kind of error


class AuditError(ValueError):
    """An event with something that must not be counted, or a report that cannot be given."""


@dataclass(frozen=True)
class Event:
    """One reply, as numbers and as words of fixed lists. Raises AuditError for anything else: no text can be in it."""

    level: Level
    observed: Level  # by the last turn alone
    floor: Level
    domains: frozenset[str]  # of DOMAINS
    rules: tuple[str, ...]  # ids from the rule packs
    language: str  # of LANGUAGES
    card: str  # of CARDS
    country: str | None  # two capital letters
    source: str  # of SOURCES: the tier that gave the reply
    num_candidates: int
    violations: tuple[tuple[str, int], ...]  # of VALIDATORS: how many candidates broke each
    degraded: frozenset[str]  # of PARTS: what failed or is absent
    ms: tuple[tuple[str, float], ...]  # of PHASES: milliseconds
    policy: str  # versions, as dates
    directory: str  # or `fallback`

    def __post_init__(self) -> None:
        for name, holds in _checks(self):
            if not holds:  # the value is not shown: it may be what somebody wrote
                raise AuditError(f"event.{name}: not one of its fixed values")


@dataclass(frozen=True)
class Report:
    """What an operator may publish for some days. Nothing personal."""

    profile: str  # of PROFILES, or `all`
    start: date
    end: date  # inclusive
    policies: tuple[str, ...]  # versions of the protocol that were in use
    num_days: int  # that were counted
    referrals: int | Literal["<10"]  # times a card with crisis services was newly shown, for the profile's domains
    replies: int | Literal["<10"]
    broken: tuple[str, ...]  # days whose file cannot be read: their counts are missing


def record(folder: Path, event: Event, day: date | None = None) -> bool:
    """Count an event in `YYYY-MM-DD.json` (today in UTC); whether that worked. Raises nothing: what fails is dropped.

    Several processes and threads may count at once. A file that is broken stays as it is, for somebody to look at.
    """
    today = day or datetime.now(UTC).date()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            file = folder / f"{today.isoformat()}.json"
            counts = (read_day(file) if file.exists() else Counter()) + Counter(_keys(event))
            write_json(file, {"v": VERSION, "counts": dict(sorted(counts.items()))})
    except (OSError, ValueError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        _drops[type(error).__name__] += 1
        return False
    return True


def dropped() -> int:
    """How many events this process could not keep."""
    return _drops.total()


def read_day(file: Path) -> Counter[str]:
    """The counts of a day, by keys such as `level/high`. Raises OSError or AuditError that names the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        counts = content["counts"]
        if content["v"] != VERSION or not all(_is_count(each) for each in counts.values()):
            raise TypeError("not counts of this version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AuditError(f"{file} is truncated or altered: {type(error).__name__}") from None
    return Counter(counts)


def report(folder: Path, start: date, end: date, profile: str) -> Report:
    """The counts of the days from `start` to `end`. Counts below 10 are `<10`. A broken day is named, not fatal.

    `profile`: of PROFILES, or `all`: every card with crisis services. Raises AuditError for an unknown one, for an end
    before the start and for a folder that does not exist, OSError for one that cannot be read.
    """
    if profile not in ("all", *PROFILES):
        raise AuditError(f"profile is {profile!r}; it is one of all, {', '.join(PROFILES)}")
    if not folder.is_dir():
        raise AuditError(f"{folder} is no folder: nothing was counted there")
    if end < start:
        raise AuditError(f"the report would end on {end}, before it starts on {start}")
    total, num_days, broken = Counter[str](), 0, []
    for day, file in days(folder):
        if start <= day <= end:
            try:
                total += read_day(file)
                num_days += 1
            except (OSError, AuditError):
                broken.append(day.isoformat())
    policies = tuple(sorted(key.removeprefix("policy/") for key in total if key.startswith("policy/")))
    referrals, replies = _public(total[f"referrals/{profile}"]), _public(total["replies"])
    return Report(profile, start, end, policies, num_days, referrals, replies, tuple(broken))


def prune(folder: Path, keep_days: int, today: date) -> tuple[str, ...]:
    """Delete the days before the last `keep_days` (today is one of them); which. Raises OSError, or Timeout of the lock."""
    if keep_days < 0:
        raise AuditError(f"keep_days is {keep_days}; it is 0 or more")
    old = [(day, file) for day, file in days(folder) if day <= today - timedelta(days=keep_days)]
    if old:
        with _locked(folder):
            for _, file in old:
                file.unlink(missing_ok=True)
    return tuple(day.isoformat() for day, _ in old)


def days(folder: Path) -> Iterator[tuple[date, Path]]:
    """The day files of a folder, oldest first; none where there is no folder. Raises OSError if it cannot be read."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        named = _DAY_FILE.fullmatch(file.name)
        if named:
            try:
                yield date.fromisoformat(named[1]), file
            except ValueError:  # 2026-13-40.json is not ours
                continue


def _locked(folder: Path) -> FileLock:
    return FileLock(folder / ".lock", timeout=LOCK_S, poll_interval=POLL_S)


def _public(count: int) -> int | Literal["<10"]:
    return count if count >= PUBLIC_FROM else "<10"


def _keys(event: Event) -> Iterator[str]:
    """What an event adds one to; violations by their number."""
    yield from ("replies", f"level/{event.level.label}", f"observed/{event.observed.label}")
    yield from (f"floor/{event.floor.label}", f"language/{event.language}", f"card/{event.card}")
    yield from (f"country/{event.country or 'unknown'}", f"source/{event.source}", f"candidates/{event.num_candidates}")
    yield from (f"policy/{event.policy}", f"directory/{event.directory}")
    yield from (f"domain/{each}" for each in event.domains)
    yield from (f"rule/{each}" for each in dict.fromkeys(event.rules))
    yield from (f"degraded/{each}" for each in event.degraded)
    yield from (f"violation/{rule}" for rule, count in event.violations for _ in range(count))
    yield from (f"ms/{phase}/{_limit(ms)}" for phase, ms in event.ms)
    if event.card in REFERRALS:
        yield "referrals/all"
        yield from (f"referrals/{name}" for name, domains in PROFILES.items() if domains & event.domains)


def _limit(ms: float) -> str:
    """The smallest of LIMITS_MS that `ms` does not pass."""
    at = bisect_left(LIMITS_MS, ms)
    return str(LIMITS_MS[at]) if at < len(LIMITS_MS) else "more"


def _checks(event: Event) -> Iterator[tuple[str, bool]]:
    """Each field's name, and whether it holds what it may."""
    for name in ("level", "observed", "floor"):
        yield name, type(getattr(event, name)) is Level
    for name, known in (("domains", DOMAINS), ("degraded", PARTS)):
        value = getattr(event, name)
        yield name, type(value) is frozenset and all(_is_of(each, known) for each in value)
    for name, known in (("language", LANGUAGES), ("card", CARDS), ("source", SOURCES)):
        yield name, _is_of(getattr(event, name), known)
    yield "policy", _is_like(event.policy, _VERSION)
    yield "directory", _is_like(event.directory, _VERSION) or _is_of(event.directory, ("fallback",))
    yield "rules", type(event.rules) is tuple and all(_is_like(each, _RULE) for each in event.rules)
    yield "country", event.country is None or _is_like(event.country, _COUNTRY)
    yield "num_candidates", _is_count(event.num_candidates) and event.num_candidates < 100
    yield (
        "violations",
        _are_pairs(event.violations)
        and all(_is_of(rule, VALIDATORS) and _is_count(count) and count < 1000 for rule, count in event.violations),
    )
    yield (
        "ms",
        _are_pairs(event.ms)
        and all(_is_of(phase, PHASES) and type(ms) in (int, float) and 0 <= ms < 1e9 for phase, ms in event.ms),
    )


def _are_pairs(value: object) -> bool:
    return type(value) is tuple and all(type(each) is tuple and len(each) == 2 for each in value)


def _is_of(value: object, known: tuple[str, ...] | frozenset[str]) -> bool:
    return type(value) is str and value in known


def _is_like(value: object, shape: re.Pattern[str]) -> bool:
    return type(value) is str and shape.fullmatch(value) is not None


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
