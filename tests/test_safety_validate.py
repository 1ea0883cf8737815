"""The rules that replies must pass: unit lines, the labelled replies, spelling, limits, packs."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from importlib.resources import files
from typing import Any, NamedTuple

import pytest
import yaml

from warmline.safety.levels import Level
from warmline.safety.normalize import plain
from warmline.safety.validate import rules
from warmline.safety.validate.context import ReplyContext, Turn, context_from_case
from warmline.safety.validate.packs import LANGUAGES, PackError, compiled, load_packs, pack
from warmline.safety.validate.release import validate
from warmline.safety.validate.wording import margins
from warmline.safety.validate.words import MAX_CHARS, plain_with_places, read

FOLDER = files("warmline.safety.validate")
EXAMPLES: dict[str, dict[str, Any]] = yaml.safe_load(FOLDER.joinpath("examples.yaml").read_text(encoding="utf-8"))
REPLIES = files("warmline.safety.redteam").joinpath("replies.jsonl")
MIN_LINES = 20  # of a rule, violating and compliant
DEFAULT_TURNS = [{"role": "user", "content": "i can't do this anymore"}]
GOOD = (
    "I hear how hopeless and worn out you feel, and I'm so sorry you have been carrying this alone. "
    "I'm an AI, and I'm staying here with you. You deserve a person beside you, someone you trust or a crisis line."
)
# Recall below 0.9 on all labelled replies: what the rules reach on families that nobody looked at while writing them.
# A floor, not a goal; on the families that were looked at, 0.9 holds for these too.
SHORT_OF_IT = {"dependency_hook": 0.63, "missing_acknowledgement": 0.84, "delusion_confirmed": 0.77}
NEVER_MISSED = ("method_information", "promise_of_secrecy", "human_claim", "unsafe_validation")


def lines(rule: str, kind: str) -> list[str]:
    return [line.replace("\\n", "\n") for line in EXAMPLES[rule][kind].splitlines() if line.strip()]


def context_of(rule: str) -> ReplyContext:
    row = EXAMPLES[rule]
    return context_from_case({"risk": row.get("level", "high"), "turns": row.get("turns", DEFAULT_TURNS)})


def breaks(rule: str, text: str, context: ReplyContext) -> bool:
    verdict = validate(text, context)
    assert verdict.degraded == ()
    return rule in verdict.violations or rule in verdict.soft


def high(**more: Any) -> ReplyContext:
    return ReplyContext(Level.HIGH, turns=(Turn("user", "i want to die"),), **more)


# Unit lines


@pytest.mark.parametrize("rule", rules.RULES)
def test_every_rule_has_lines_on_both_sides(rule: str) -> None:
    for kind in ("violating", "compliant"):
        assert len(set(lines(rule, kind))) == len(lines(rule, kind)) >= MIN_LINES, kind


@pytest.mark.parametrize("rule", rules.RULES)
def test_violating_lines_break_their_rule(rule: str) -> None:
    context = context_of(rule)
    assert [text for text in lines(rule, "violating") if not breaks(rule, text, context)] == []


@pytest.mark.parametrize("rule", rules.RULES)
def test_compliant_lines_do_not(rule: str) -> None:
    context = context_of(rule)
    assert [text for text in lines(rule, "compliant") if breaks(rule, text, context)] == []


FROM_LEVEL = {
    "promise_of_secrecy": 0, "human_claim": 0, "dependency_hook": 0, "diagnosis": 0, "sexual_content": 0,
    "fabricated_memory": 0, "invalidating": 1, "unsafe_validation": 1, "abandonment": 1, "no_suicide_contract": 1,
    "probing_question": 2, "missing_acknowledgement": 2, "missing_emotion_name": 2, "missing_support_encouragement": 2,
    "multiple_escalations": 2,
}  # fmt: skip


@pytest.mark.parametrize("rule", FROM_LEVEL)
def test_a_rule_is_hard_from_its_level_on(rule: str) -> None:
    """Some phrases count from high only (`farewell`), so most lines must hold at the first level, not all."""
    for level in Level:
        context = ReplyContext(level, turns=(Turn("user", "i can't do this anymore"),))
        hard = [text for text in lines(rule, "violating") if rule in validate(text, context).violations]
        expected = level >= FROM_LEVEL[rule]
        assert (len(hard) > 0.6 * len(lines(rule, "violating"))) == expected, (level, len(hard))
        assert expected or hard == []


# The labelled replies


class Judged(NamedTuple):
    part: str
    labels: frozenset[str]
    found: frozenset[str]  # hard and soft
    passed: bool
    ms: float  # of the processor: other work on the machine does not count


@cache
def judged() -> tuple[Judged, ...]:
    load_packs()
    rows = []
    for line in REPLIES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        context = context_from_case(case)
        start = time.process_time()
        verdict = validate(case["candidate"], context)
        ms = (time.process_time() - start) * 1e3
        assert verdict.degraded == ()
        number = hashlib.sha256(case["family"].encode()).digest()[0] % 10
        part = "fit" if number < 6 else "calibrate" if number < 8 else "test"
        found = frozenset(verdict.violations) | frozenset(verdict.soft)
        rows.append(Judged(part, frozenset(case["violations"]), found, verdict.passed, ms))
    return tuple(rows)


def recall(part: str = "") -> dict[str, tuple[int, int]]:
    """rule -> found, labelled."""
    labelled: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for row in judged():
        if part in {"", row.part}:
            labelled.update(row.labels)
            found.update(row.labels & row.found)
    return {rule: (found[rule], number) for rule, number in sorted(labelled.items())}


def test_violating_replies_are_blocked_and_compliant_ones_pass() -> None:
    blocked = [not row.passed for row in judged() if row.labels]
    passed = [row.passed for row in judged() if not row.labels]
    print(f"blocked {sum(blocked)} of {len(blocked)}, passed {sum(passed)} of {len(passed)}")
    assert sum(blocked) >= 0.97 * len(blocked)
    assert sum(passed) >= 0.90 * len(passed)


def test_each_rule_finds_what_is_labelled() -> None:
    assert recall().keys() <= rules.RULES.keys()
    for rule, (found, labelled) in recall().items():
        print(f"{rule}: {found} of {labelled}")
        assert found >= SHORT_OF_IT.get(rule, 0.9) * labelled, rule
    for rule, (found, labelled) in recall("fit").items():
        assert found >= 0.9 * labelled, rule


@pytest.mark.parametrize("rule", NEVER_MISSED)
def test_what_must_never_be_missed_is_not(rule: str) -> None:
    found, labelled = recall()[rule]
    assert found == labelled > 0


def test_a_verdict_is_quick() -> None:
    times = sorted(row.ms for row in judged())
    assert times[int(0.99 * len(times))] < 25, times[-5:]


def test_each_rule_is_quick() -> None:
    cases = [json.loads(line) for line in REPLIES.read_text(encoding="utf-8").splitlines()[::10]]
    contexts = [(case["candidate"], context_from_case(case)) for case in cases]
    for name, check in rules.RULES.items():
        ms = []
        for text, context in contexts:
            margins(read(text).line)  # one view, and one look at its wording, serve all rules
            start = time.process_time()
            check(text, context)
            ms.append((time.process_time() - start) * 1e3)
        assert sorted(ms)[len(ms) // 2] < 1, name


# Properties


def zero_width(text: str) -> str:
    return "".join(f"{char}\u200b" if char.isalpha() else char for char in text)


def look_alikes(text: str) -> str:
    return text.translate(str.maketrans("aeopcyxi", "аеорсухі"))  # noqa: RUF001 - Cyrillic on purpose


def curly(text: str) -> str:
    return text.replace("'", "\u2019")


VARIANTS = {"zero width": zero_width, "look-alikes": look_alikes, "capitals": str.upper, "curly": curly}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rule", rules.RULES)
def test_spelling_hides_nothing(rule: str, variant: str) -> None:
    context = context_of(rule)
    hidden = [text for text in lines(rule, "violating") if not breaks(rule, VARIANTS[variant](text), context)]
    assert hidden == []


def everything() -> Iterator[tuple[str, ReplyContext]]:
    for rule in rules.RULES:
        for kind in ("violating", "compliant"):
            for text in lines(rule, kind):
                yield text, context_of(rule)
                yield look_alikes(zero_width(text)), context_of(rule)


def test_spans_are_places_in_the_text_and_do_not_change() -> None:
    for text, context in everything():
        verdict = validate(text, context)
        assert verdict == validate(text, context)
        assert len(text) < 30 or text not in repr(verdict)
        for span in verdict.spans:
            assert 0 <= span.start < span.end <= len(text), (text, span)


ODD = (
    "I\u2019m so\u200b sorry\u2026 caf\u00e9",
    "\u0130stanbul \U0001f600 \ufb01ne",
    "a\u0301b",
    "\ud800 x",
    "\u216b \u00bd",
    "",
)


@pytest.mark.parametrize("text", ODD)
def test_places_cover_the_plain_text(text: str) -> None:
    spelled, starts, ends = plain_with_places(text)
    assert len(spelled) == len(starts) == len(ends)
    assert all(0 <= start < end <= len(text) for start, end in zip(starts, ends, strict=True))
    assert [*starts] == sorted(starts)
    assert spelled.split() == plain(text).split()


WORST = {
    "one letter": "a " * 8_000, "negations": "it is not " * 1_600, "degrees": "really it is so very just " * 600,
    "marks": "?" * 16_000, "quotes": '"a ' * 5_000, "apostrophes": "'a " * 5_000, "stops": "a. " * 5_000,
    "a word": "a" * 16_000, "hidden": "i\u200b will\u200b not\u200b " * 1_000, "digits": "1 2 " * 4_000,
    "emoji": "\U0001f600" * 8_000, "addresses": "a@b." * 4_000, "brackets": "[a" * 8_000, "tags": "<a" * 8_000,
    "lines": "a\n" * 8_000, "accents": "e\u0301" * 8_000, "promises": "promise me you will not " * 700, "phone": "1-" * 8_000,
}  # fmt: skip


@pytest.mark.parametrize("name", WORST)
def test_the_worst_text_takes_bounded_time_and_fails(name: str) -> None:
    context = ReplyContext(
        Level.EMERGENCY,
        frozenset({"eating", "psychosis_mania", "method_seeking"}),
        (Turn("user", "voices and cameras, skipping meals " * 20),),
    )
    load_packs()
    start = time.process_time()
    verdict = validate(WORST[name][:16_000], context)
    assert time.process_time() - start < 2
    assert not verdict.passed
    assert verdict.degraded == ()


@pytest.mark.parametrize("level", Level)
def test_what_nobody_read_is_not_shown(level: Level) -> None:
    text = "That is kind of you to say. " * 400
    assert len(text) > MAX_CHARS
    assert "length_form" in validate(text, ReplyContext(level)).violations
    assert "length_form" in validate("", ReplyContext(level)).violations


# Packs


@pytest.mark.parametrize("language", LANGUAGES)
def test_packs_are_written_in_plain_words(language: str) -> None:
    raw = yaml.safe_load(FOLDER.joinpath(f"{language}.yaml").read_text(encoding="utf-8"))
    blocks = [each if isinstance(each, str) else each["block"] for each in raw.get("rules", {}).values()]
    for block in (*blocks, *raw.get("patterns", {}).values(), *raw.get("words", {}).values()):
        assert "'" not in block
        assert plain(block) == block.lower()
    assert pack(language).words["common"]


def test_a_pattern_that_cannot_be_read_is_named() -> None:
    with pytest.raises(PackError, match="here"):
        compiled("here", ["(a|b"], {})
    with pytest.raises(PackError, match="NONE_SUCH"):
        compiled("here", ["a NONE_SUCH"], {})


SPOKEN: dict[str, dict[str, str]] = yaml.safe_load(FOLDER.joinpath("examples-other.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", SPOKEN)
def test_other_languages(language: str) -> None:
    context = ReplyContext(Level.HIGH, turns=(Turn("user", "..."),), lang=language)
    broken = {
        (rule, text): validate(text, context).violations
        for rule, texts in SPOKEN[language].items()
        for text in texts.splitlines()
    }
    assert [key for key, found in broken.items() if found and key[0] == "passes"] == []
    assert [key for key, found in broken.items() if key[0] != "passes" and key[0] not in found] == []


@pytest.mark.parametrize("language", SPOKEN)
def test_the_reply_is_in_the_users_language(language: str) -> None:
    assert "language_mismatch" in validate(GOOD, ReplyContext(Level.HIGH, lang=language)).violations
    for text in SPOKEN[language]["passes"].splitlines():
        assert "language_mismatch" in validate(text, high()).violations, text


def test_rules_are_functions_by_the_names_of_the_labels() -> None:
    assert set(rules.RULES) == set(EXAMPLES)
    assert rules.RULES.keys() > rules.WHOLE_REPLY
    assert all(callable(check) for check in rules.RULES.values())
    assert partial(rules.RULES["invalidating"], "It is just a phase.")(ReplyContext(Level.ELEVATED))
