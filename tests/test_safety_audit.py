"""Daily counts that hold no text, survive several processes and full disks, and never stand in a reply's way."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from warmline.safety import audit
from warmline.safety.audit import CARDS, LANGUAGES, PARTS, PHASES, PROFILES, SOURCES, VALIDATORS, AuditError, Event
from warmline.safety.levels import DOMAINS, Level

DAY = date(2026, 11, 20)
CANARY = "my name is Zebulon and I live at 12 Elm Street"
EVENT = Event(
    level=Level.HIGH,
    observed=Level.HIGH,
    floor=Level.ELEVATED,
    domains=frozenset({"suicide", "minor_signal"}),
    rules=("SUI.INTENT", "LINEAR.2", "SIGNALS"),
    language="hi-Latn",
    card="first",
    country="US",
    source="rewrite",
    num_candidates=4,
    violations=(("probing_question", 2),),
    degraded=frozenset({"linear"}),
    ms=(("detect", 2.1), ("generate", 1840.0)),
    policy="2026.11",
    directory="2026-11-20",
)
FIELDS = [field.name for field in dataclasses.fields(Event)]


def event(**changes: Any) -> Event:
    return dataclasses.replace(EVENT, **changes)


def counts(folder: Path, day: date = DAY) -> dict[str, int]:
    return dict(audit.read_day(folder / f"{day}.json"))


class Sly(str):
    """A string of a fixed list to those who only compare."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("first")


def test_a_day_holds_counts(tmp_path: Path) -> None:
    assert audit.record(tmp_path, EVENT, DAY)
    assert audit.record(tmp_path, event(domains=frozenset(), card="chip", country=None, rules=(), violations=()), DAY)
    assert counts(tmp_path) == {
        "replies": 2,
        "level/high": 2,
        "observed/high": 2,
        "floor/elevated": 2,
        "domain/suicide": 1,
        "domain/minor_signal": 1,
        "rule/SUI.INTENT": 1,
        "rule/LINEAR.2": 1,
        "rule/SIGNALS": 1,
        "language/hi-Latn": 2,
        "card/first": 1,
        "card/chip": 1,
        "country/US": 1,
        "country/unknown": 1,
        "source/rewrite": 2,
        "candidates/4": 2,
        "violation/probing_question": 2,
        "degraded/linear": 2,
        "ms/detect/5": 2,
        "ms/generate/2000": 2,
        "policy/2026.11": 2,
        "directory/2026-11-20": 2,
        "referrals/all": 1,
        "referrals/ca": 1,
        "referrals/ny": 1,
        "referrals/or": 1,
        "referrals/wa": 1,
    }


def test_today_is_a_day_of_utc(tmp_path: Path) -> None:
    assert audit.record(tmp_path, EVENT)
    (file,) = tmp_path.glob("*.json")
    assert abs((date.fromisoformat(file.stem) - date.today()).days) <= 1


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    "value",
    [
        CANARY,
        Sly(CANARY),
        CANARY.encode(),
        [CANARY],
        (CANARY,),
        ("SUI.INTENT", CANARY),
        (Sly(CANARY),),
        frozenset({CANARY}),
        frozenset({"suicide", CANARY}),
        {CANARY: 1},
        {"detect": CANARY},
        ((CANARY, 1),),
        (("detect", CANARY),),
        (("probing_question", CANARY),),
        (("detect", 1.0, CANARY),),
        ([CANARY, 1],),
        f"2026.11\n{CANARY}",
        "2026.11\n",
        f"US{CANARY}",
        ("SUI.INTENT\n",),
    ],
)
def test_no_text_enters_an_event(field: str, value: Any) -> None:
    with pytest.raises(AuditError) as raised:
        event(**{field: value})
    assert str(raised.value) == f"event.{field}: not one of its fixed values"  # nor the log, by way of the message


TEXT = st.text() | st.sampled_from([CANARY, "first", "en", "US", "2026.11", "SUI.X", "suicide", "detect"])


@settings(max_examples=300)
@given(st.sampled_from(FIELDS), TEXT)
def test_what_enters_is_of_a_fixed_list_or_shape(field: str, text: str) -> None:
    lists = {*DOMAINS, *PARTS, *PHASES, *VALIDATORS, *CARDS, *SOURCES, *LANGUAGES}
    for value in (text, (text,), frozenset({text}), ((text, 1),)):
        try:
            event(**{field: value})
        except AuditError:
            continue
        assert text in lists or re.fullmatch(r"[A-Z0-9_.]{1,40}|[A-Z]{2}|[0-9][0-9.-]{6,9}", text), (field, text)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_candidates": -1},
        {"num_candidates": True},
        {"num_candidates": 10**9},
        {"ms": (("detect", float("nan")),)},
        {"ms": (("detect", float("inf")),)},
        {"ms": (("detect", 10**400),)},
        {"ms": (("detect", -1.0),)},
        {"violations": (("probing_question", 10**6),)},
        {"level": 2},
        {"country": "usa"},
        {"rules": ("sui.intent",)},
        {"rules": ("A" * 41,)},
        {"domains": {"suicide"}},  # a set can be changed after it was checked
        {"language": "ja"},
    ],
)
def test_numbers_and_lists_are_checked_too(changes: dict[str, Any]) -> None:
    with pytest.raises(AuditError):
        event(**changes)


def subset(known: Any) -> st.SearchStrategy[frozenset[str]]:
    return st.frozensets(st.sampled_from(sorted(known)), max_size=4)


EVENTS = st.builds(
    Event,
    level=st.sampled_from(Level),
    observed=st.sampled_from(Level),
    floor=st.sampled_from(Level),
    domains=subset(DOMAINS),
    rules=st.lists(st.from_regex(r"[A-Z]{2,5}\.[A-Z0-9_]{1,9}", fullmatch=True), max_size=3).map(tuple),
    language=st.sampled_from(LANGUAGES),
    card=st.sampled_from(CARDS),
    country=st.none() | st.from_regex(r"[A-Z]{2}", fullmatch=True),
    source=st.sampled_from(SOURCES),
    num_candidates=st.integers(0, 20),
    violations=st.lists(st.tuples(st.sampled_from(sorted(VALIDATORS)), st.integers(0, 5)), max_size=3).map(tuple),
    degraded=subset(PARTS),
    ms=st.lists(st.tuples(st.sampled_from(PHASES), st.floats(0, 1e8)), max_size=3).map(tuple),
    policy=st.just("2026.11"),
    directory=st.just("2026-11-20"),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_every_event_can_be_counted_and_read_again(tmp_path_factory: pytest.TempPathFactory, events) -> None:
    folder = tmp_path_factory.mktemp("audit")
    assert all(audit.record(folder, each, DAY) for each in events)
    found = counts(folder)
    assert found["replies"] == len(events)
    assert sum(value for key, value in found.items() if key.startswith("level/")) == len(events)
    assert all(re.fullmatch(r"[a-z]+(?:/[A-Za-z0-9_.-]{1,40}){0,2}", key) for key in found)
    assert found.get("referrals/all", 0) == sum(each.card in ("first", "full") for each in events)


def test_times_are_kept_as_upper_limits_only() -> None:
    assert [audit._limit(ms) for ms in (0, 1, 1.01, 60_000, 60_001)] == ["1", "1", "2", "60000", "more"]


# What goes wrong


def run_python(code: str, *args: object) -> subprocess.Popen[str]:
    script = f"import sys\nfrom pathlib import Path\nfrom tests.test_safety_audit import *\n{code}"
    command = [sys.executable, "-c", script, *map(str, args)]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_count_at_once_and_lose_nothing(tmp_path: Path) -> None:
    code = "print(sum(audit.record(Path(sys.argv[1]), EVENT, DAY) for _ in range(60)), audit.dropped())"
    running = [run_python(code, tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in running]
    kept = [int(output.split()[0]) for output, _ in outputs]
    lost = [int(output.split()[1]) for output, _ in outputs]
    assert sum(kept) + sum(lost) == 120, outputs
    assert min(kept) > 0
    assert counts(tmp_path)["replies"] == counts(tmp_path)["rule/SUI.INTENT"] == sum(kept)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of files")
def test_a_full_disk_drops_the_event_and_keeps_the_day(tmp_path: Path) -> None:
    code = """
import resource
folder = Path(sys.argv[1])
results = [audit.record(folder, EVENT, DAY)]
resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
results += [audit.record(folder, EVENT, DAY), audit.record(folder, EVENT, DAY + timedelta(days=1)), audit.dropped()]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
results += [audit.record(folder, EVENT, DAY), audit.dropped()]
print(json.dumps(results))
"""
    output, errors = run_python(code, tmp_path).communicate(timeout=120)
    assert json.loads(output or "[]") == [True, False, False, 2, True, 2], errors
    assert counts(tmp_path)["replies"] == 2
    assert [path.name for path in sorted(tmp_path.glob("*")) if path.name != ".lock"] == [f"{DAY}.json"]
    assert not [path for path in tmp_path.iterdir() if "draft" in path.name]


def drops_one(folder: Path) -> bool:
    before = audit.dropped()
    return not audit.record(folder, EVENT, DAY) and audit.dropped() == before + 1


def test_a_folder_that_is_none_drops_the_event(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file", encoding="utf-8")
    assert drops_one(tmp_path / "audit")
    assert drops_one(tmp_path / "audit" / "below")


def test_a_lock_that_is_held_drops_the_event_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "LOCK_S", 0.05)
    with FileLock(tmp_path / ".lock"):
        assert drops_one(tmp_path)
    assert audit.record(tmp_path, EVENT, DAY)


BROKEN = [
    "",
    "{",
    "[]",
    "null",
    '{"v": 1}',
    '{"v": 2, "counts": {}}',
    '{"v": 1, "counts": []}',
    '{"v": 1, "counts": {"replies": -1}}',
    '{"v": 1, "counts": {"replies": true}}',
    '{"v": 1, "counts": {"replies": 1.5}}',
    '{"v": 1, "counts": {"replies": "3"}}',
    "[" * 100_000,
    "\udcff",
]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_day_is_named_and_left_alone(content: str, tmp_path: Path) -> None:
    file = tmp_path / f"{DAY}.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    before = file.read_bytes()
    assert drops_one(tmp_path)
    assert file.read_bytes() == before
    with pytest.raises(AuditError, match="is truncated or altered"):
        audit.read_day(file)
    for number in range(12):
        assert audit.record(tmp_path, EVENT, DAY + timedelta(days=1)), number
    report = audit.report(tmp_path, DAY, DAY + timedelta(days=1), "ca")
    assert report.broken == (str(DAY),)
    assert (report.referrals, report.num_days) == (12, 1)


# Reports


@pytest.fixture
def year(tmp_path: Path) -> Path:
    """Referrals on three days: 12 for suicide, 4 for eating, 10 for harm to others, 9 by a card that stayed."""
    for number in range(12):
        audit.record(tmp_path, EVENT, DAY)
        if number < 4:
            audit.record(tmp_path, event(domains=frozenset({"eating"}), card="full"), DAY + timedelta(days=1))
        if number < 10:
            audit.record(tmp_path, event(domains=frozenset({"harm_others"}), policy="2026.12"), DAY + timedelta(days=2))
        if number < 9:
            audit.record(tmp_path, event(card="pinned"), DAY)
    return tmp_path


@pytest.mark.parametrize(("profile", "referrals"), [("all", 26), ("ca", 12), ("or", 12), ("wa", 16), ("ny", 22)])
def test_each_law_counts_its_own_referrals(year: Path, profile: str, referrals: int) -> None:
    report = audit.report(year, DAY, DAY + timedelta(days=30), profile)
    assert (report.referrals, report.replies, report.num_days) == (referrals, 35, 3)
    assert report.policies == ("2026.11", "2026.12")
    assert report.broken == ()


def test_small_counts_are_not_published(year: Path) -> None:
    second = DAY + timedelta(days=1)
    report = audit.report(year, second, second, "wa")
    assert (report.referrals, report.replies) == ("<10", "<10")
    empty = audit.report(year, date(2020, 1, 1), date(2020, 12, 31), "wa")
    assert (empty.referrals, empty.num_days) == ("<10", 0)
    third = DAY + timedelta(days=2)
    assert audit.report(year, third, third, "ny").referrals == 10


def test_a_report_holds_nothing_personal(year: Path) -> None:
    fields = dataclasses.asdict(audit.report(year, DAY, DAY, "ny"))
    assert fields == {
        "profile": "ny",
        "start": DAY,
        "end": DAY,
        "policies": ("2026.11",),
        "num_days": 1,
        "referrals": 12,
        "replies": 21,
        "broken": (),
    }


def test_a_report_that_cannot_be_given(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="profile is 'cn'; it is one of all, ca, ny, or, wa"):
        audit.report(tmp_path, DAY, DAY, "cn")
    with pytest.raises(AuditError, match="would end on 2026-11-19, before it starts on 2026-11-20"):
        audit.report(tmp_path, DAY, DAY - timedelta(days=1), "ca")
    with pytest.raises(AuditError, match="nowhere is no folder"):
        audit.report(tmp_path / "nowhere", DAY, DAY, "ca")
    assert all(domains <= {*DOMAINS} for domains in PROFILES.values())


def test_files_that_are_no_days_are_left_out(year: Path) -> None:
    for name in ("notes.json", "2026-13-40.json", "2026-11-20.json.old", "02026-11-20.json"):
        (year / name).write_text("{}", encoding="utf-8")
    assert [day for day, _ in audit.days(year)] == [DAY + timedelta(days=number) for number in range(3)]


def test_old_days_can_be_pruned(year: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    today = DAY + timedelta(days=2)
    assert audit.prune(year, 3, today) == ()
    monkeypatch.setattr(audit, "LOCK_S", 0.05)
    with FileLock(year / ".lock"), pytest.raises(Timeout):
        audit.prune(year, 2, today)
    assert audit.prune(year, 2, today) == (str(DAY),)
    assert audit.prune(year, 0, today) == (str(DAY + timedelta(days=1)), str(today))
    assert [*audit.days(year)] == []
    with pytest.raises(AuditError, match="keep_days is -1"):
        audit.prune(year, -1, today)
