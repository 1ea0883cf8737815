"""What is counted of a conversation, where, and what `warmline safety report` makes of it."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from warmline.cli import app
from warmline.config.operator import GuardSettings
from warmline.dialogue.companion import Answer, Session, respond
from warmline.engine.engine import Sampling
from warmline.engine.scripted import ScriptedEngine
from warmline.safety import audit
from warmline.safety.audit import Event
from warmline.safety.guards import Guard
from warmline.safety.levels import Level
from warmline.safety.lexicon import LANGUAGES, load_lexicon
from warmline.safety.policy import POLICY_VERSION, TIERS
from warmline.safety.resources.card import Card
from warmline.safety.validate.release import Validated
from warmline.safety.validate.rules import RULES

from .test_companion import GOOD, RISK, SETTING, Says, answer
from .test_safety_audit import DAY, event
from .test_safety_head import SURE, TRUSTED, Reads

CALM = "We had soup for dinner."
NAME = "Zebulon"
SAYS_GOOD = Says(lambda request: [GOOD] * request.n)


def events_of(*said: str, **changes: Any) -> list[Event]:
    """What a conversation tells the audit."""
    found: list[Event] = []
    session = Session()
    setting = replace(SETTING, **{"engine": SAYS_GOOD, "audit": found.append} | changes)
    for text in said:
        answer(setting, text, session=session)
    return found


def test_each_turn_is_one_event() -> None:
    calm, first, again, worse = events_of(CALM, RISK, "it is so dark", "I took all the pills just now")
    assert [each.level.label for each in (calm, first, again, worse)] == ["none", "high", "high", "emergency"]
    assert [each.card for each in (calm, first, again, worse)] == ["none", "first", "pinned", "full"]
    assert (calm.floor, calm.domains, calm.rules, calm.source) == (0, frozenset(), (), "model")
    assert "suicide" in first.domains
    assert first.rules
    assert (first.language, first.country, first.policy) == ("en", "IE", POLICY_VERSION)
    assert first.directory == SETTING.directory.version
    assert first.num_candidates >= 4
    assert {"detect", "rules", "linear", "network", "generate"} == {phase for phase, _ in first.ms}
    assert "generate" not in dict(calm.ms)


def test_candidates_that_were_refused_are_counted_by_rule() -> None:
    secret = "I promise this stays our secret."

    def say(request: Any) -> list[str]:
        return [GOOD if "must not be sent" in request.messages[-1].content else secret] * request.n

    [event_] = events_of(RISK, engine=Says(say))
    assert event_.source == "rewrite"
    assert dict(event_.violations)["promise_of_secrecy"] == 4
    [event_] = events_of(CALM, engine=ScriptedEngine([f"That sounds nice. {secret}"]))
    assert (event_.source, event_.num_candidates) == ("model", 3)
    assert dict(event_.violations) == {"promise_of_secrecy": 3}


def test_a_country_in_any_spelling_is_two_letters_or_unknown() -> None:
    for country, kept in (("ie", "IE"), (" us ", "US"), ("Ireland", None), ("", None), (None, None), ("1x", None)):
        assert [each.country for each in events_of(CALM, country=country)] == [kept]


def test_without_an_audit_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, last = answer(replace(SETTING, engine=SAYS_GOOD), RISK)
    assert last.degraded == frozenset()
    assert [*tmp_path.rglob("*")] == []


def test_no_word_of_a_conversation_is_in_the_folder(tmp_path: Path) -> None:
    for text in (f"I am {NAME} and {RISK}", f"{NAME} says hello", f"my name is {NAME}, I took all the pills"):
        answer(replace(SETTING, engine=SAYS_GOOD, audit=tmp_path), text)
    [day] = tmp_path.glob("*.json")
    assert audit.read_day(day)["replies"] == 3
    kept = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file())
    for word in (NAME, "pills", "hello", "kill", "exhausting"):
        assert word.lower() not in kept.lower()


def test_somebody_who_stops_listening_is_counted_once() -> None:
    found: list[Event] = []
    setting = replace(SETTING, engine=ScriptedEngine(["It is good to see you. I like soup too."]), audit=found.append)
    for num_pieces in range(4):
        stream = respond(setting, Session(), CALM, 0.0)
        for _ in range(num_pieces):
            next(stream)
        stream.close()
    assert [each.source for each in found] == ["model"] * 3  # nothing was asked the first time
    list(respond(setting, Session(), CALM, 0.0))
    assert len(found) == 4


def test_what_the_companion_can_name_the_audit_knows() -> None:
    assert RULES.keys() == audit.VALIDATORS
    assert {*audit.SOURCES} <= {*TIERS}
    ids = {rule.id for language in LANGUAGES for rule in load_lexicon(language).rules}
    assert ids
    for each in ids:
        assert event(rules=(each,)).rules == (each,)


def test_a_part_that_the_audit_does_not_know_is_counted_as_another() -> None:
    from warmline.dialogue.tally import Tally

    found: list[Event] = []
    tally = Tally(found.append, "IE", "2026-11-20", level=Level.NONE, degraded=frozenset({"engine", NAME}))
    assert tally.keep()
    assert tally.keep()
    assert [each.degraded for each in found] == [{"engine", "other"}]


def test_a_turn_that_the_risk_head_raises_is_one_event_at_the_level_it_was_answered_at() -> None:
    [raised] = events_of(CALM, engine=Reads(lambda _: SURE[Level.HIGH], lambda _: GOOD), risk_head=TRUSTED)
    assert (raised.level, raised.observed, raised.floor) == (Level.HIGH, Level.HIGH, Level.HIGH)
    assert (raised.card, raised.source, raised.rules) == ("first", "model", ("HEAD.2",))
    assert "generate" in dict(raised.ms)
    text = "I have the pills in my hand and I want to kill myself tonight"
    [worse] = events_of(text, engine=Reads(lambda _: SURE[Level.EMERGENCY], lambda _: GOOD), risk_head=TRUSTED)
    assert (worse.level, worse.card) == (Level.EMERGENCY, "full")
    found: list[Event] = []
    engine = Reads(lambda _: SURE[Level.HIGH], lambda _: GOOD)
    stream = respond(replace(SETTING, engine=engine, risk_head=TRUSTED, audit=found.append), Session(), CALM, 0.0)
    next(stream)
    stream.close()
    assert [(each.level, each.card, each.source) for each in found] == [(Level.HIGH, "first", "notice")]


def test_a_guard_that_gives_no_verdict_is_counted_by_name() -> None:
    guard = Guard(GuardSettings(url="http://127.0.0.1:9", model="llama-guard"))
    [event_] = events_of(CALM, guards=(guard,))
    assert (event_.level, event_.degraded) == (Level.NONE, {"guard"})


def refuses(_: Event) -> object:
    raise OSError("no")


def test_an_audit_that_fails_changes_nothing_but_a_word_in_degraded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    setting = replace(SETTING, sampling=Sampling(seed=3))
    for text in (RISK, "hello there"):
        whole = answer(replace(setting, engine=ScriptedEngine(seed=1)), text)
        for keeper in (tmp_path / "file", refuses, lambda _: False):
            pieces, last = answer(replace(setting, engine=ScriptedEngine(seed=1), audit=keeper), text)
            assert (pieces, replace(last, degraded=frozenset())) == whole
            assert last.degraded == {"audit"}


def test_a_lock_that_another_process_holds_delays_no_word(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        stream = respond(replace(SETTING, engine=SAYS_GOOD, audit=tmp_path), Session(), RISK, 0.0)
        assert [type(next(stream)) for _ in range(2)] == [Card, Validated]
        started = time.monotonic()
        [last] = stream
    assert time.monotonic() - started < 2
    assert isinstance(last, Answer)
    assert last.degraded == {"audit"}


# -- the commands --------------------------------------------------------------------------------------------------------


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "warmline", *map(str, words)]
    said = f"I am {NAME}\n{RISK}\n/help-now\n/quit\n"
    return subprocess.run(
        command, input=said, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


CHAT = ("chat", "some-model", "--url", "http://127.0.0.1:9", "--country", "IE")  # nobody listens on the discard port


def test_chat_counts_under_warmline_home_unless_told_not_to(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = run(*CHAT, "--no-audit", WARMLINE_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert "116 123" in done.stdout
    assert not home.exists() or [*home.rglob("*")] == []
    assert run(*CHAT, WARMLINE_HOME=str(home)).returncode == 0
    [day] = (home / "audit").glob("*.json")
    counts = audit.read_day(day)
    assert (counts["replies"], counts["referrals/all"], counts["degraded/engine"]) == (2, 1, 2)
    assert NAME not in day.read_text(encoding="utf-8")


def test_help_says_what_chat_counts() -> None:
    shown = " ".join(CliRunner().invoke(app, ["chat", "--help"], terminal_width=200).stdout.split())
    assert "$WARMLINE_HOME/audit" in shown
    assert "--no-audit" in shown


def test_safety_reply_counts_nothing(tmp_path: Path) -> None:
    row = json.dumps({"id": 1, "turns": [{"role": "user", "content": RISK}]})
    command = [sys.executable, "-m", "warmline", "safety", "reply", "--engine", "scripted"]
    environment = {**os.environ, "WARMLINE_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, input=row, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout)["level"] == "high"
    assert not (tmp_path / "home" / "audit").exists()


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    folder = tmp_path / "counts"
    for number in range(12):
        audit.record(folder, event(), DAY)
        if number < 4:
            audit.record(folder, event(domains=frozenset({"eating"}), policy="2026.12"), date(2026, 11, 30))
    return folder


def report(*words: object) -> Any:
    return CliRunner().invoke(app, ["safety", "report", *map(str, words)])


NOVEMBER = ("--from", "2026-11-01", "--to", "2026-11-30")


def test_a_report_is_a_small_table(counted: Path) -> None:
    done = report(*NOVEMBER, "--profile", "wa", "--folder", counted)
    assert done.exit_code == 0
    lines = [" ".join(each.split()) for each in done.stdout.splitlines() if each.strip()]
    assert lines == [
        "2026-11-01 to 2026-11-30, profile wa",
        "times crisis services were newly shown 16",
        "replies 16",
        "days with counts 2",
        "protocol version 2026.11, 2026.12",
    ]


def test_a_report_for_programs_suppresses_small_counts_too(counted: Path) -> None:
    done = report("--from", "2026-11-30", "--to", "2026-11-30", "--folder", counted, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "profile": "all",
        "from": "2026-11-30",
        "to": "2026-11-30",
        "referrals": "<10",
        "replies": "<10",
        "days": 1,
        "policy_versions": ["2026.12"],
        "broken_days": [],
    }
    assert json.loads(report(*NOVEMBER, "--profile", "ca", "--folder", counted, "--json").stdout)["referrals"] == 12


def test_a_broken_day_is_named_beside_the_rest(counted: Path) -> None:
    (counted / "2026-11-25.json").write_text("{", encoding="utf-8")
    done = report(*NOVEMBER, "--folder", counted)
    assert done.exit_code == 1
    assert "replies" in done.stdout
    assert done.stderr == "warmline: truncated or altered, so that their counts are missing: 2026-11-25\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--from", "yesterday", "--to", "2026-11-30"), "--from 'yesterday': expected a date, as 2026-11-30"),
        (("--from", "2026-11-01", "--to", "2026-11-31"), "--to '2026-11-31': expected a date"),
        (("--from", "20261101", "--to", "2026-11-30"), "--from '20261101': expected a date"),
        (("--from", "2026-11-30", "--to", "2026-11-01"), "would end on 2026-11-01, before it starts on 2026-11-30"),
        ((*NOVEMBER, "--profile", "cn"), "profile is 'cn'; it is one of all, ca, ny, or, wa"),
        ((*NOVEMBER, "--folder", "nowhere"), "nowhere is no folder: nothing was counted there"),
    ],
)
def test_a_report_that_cannot_be_given_is_one_line_and_code_2(
    words: tuple[str, ...], message: str, counted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(counted)
    folder = () if "--folder" in words else ("--folder", counted)
    done = report(*words, *folder)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.startswith("warmline: ")
    assert done.stderr.count("\n") == 1


def test_the_default_folder_is_where_chat_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMLINE_HOME", str(tmp_path))
    assert "audit is no folder" in report(*NOVEMBER).stderr
    audit.record(tmp_path / "audit", event())
    today = datetime.now(UTC).date().isoformat()
    assert "days with counts" in report("--from", "2026-01-01", "--to", max(today, "2026-01-02")).stdout
