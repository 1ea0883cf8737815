"""Read risk in one user turn: rules, a linear model and a small network, each of which may fail without the others."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import NamedTuple, TypeVar

import numpy as np

from warmline.safety.levels import Frame, Level, Reason
from warmline.safety.lexicon import LANGUAGES, Lexicon, load_lexicon
from warmline.safety.linear import Linear, load_linear
from warmline.safety.matcher import Reading, read
from warmline.safety.network import Network, load_network
from warmline.safety.normalize import Speller, passages, plain
from warmline.safety.windows import Window, row, windows

RANKED = 4  # windows of a message that the network reads
DISCOUNT = 0.5  # of the log-odds of a passage: torn out of its message it is less sure
SHORT = 12  # words of a turn that may be part of a statement split over turns
NETWORK_SHARE = 0.75  # of the network in the sum of both
NUM_JOINED = 3  # newest turns that such a statement is looked for in
SLOW_MS = 200.0  # of CPU time, for one part and one turn: a busy machine is no fault of a part
Result = TypeVar("Result")


class Vocabulary(NamedTuple):
    """Ordinary words, which nothing repairs."""

    english: frozenset[str]
    others: frozenset[str]  # of other languages and not of English


class Mix(NamedTuple):
    """How the models' log-odds of level >= k become one probability."""

    linear: float  # standard deviation of the linear model's log-odds
    network: float  # of the network's
    slope: float  # of the log-odds of the probability over the sum of both, in standard deviations
    intercept: float


@dataclass(frozen=True)
class Calibration:
    """From which P(level >= k) of the models a level is given, and which rules only inform them (`hints`)."""

    elevated: float
    sure: float  # `sureness` that `high` asks for besides: whom it takes over should not be somebody who is fine
    high: float
    emergency: float
    hints: frozenset[str]
    mix: tuple[Mix, ...]  # for level >= 1, 2 and 3


@dataclass(frozen=True)
class Detector:
    """The parts that read one turn. `lexicons` by language; `foreign`: words that call for a pack other than English."""

    lexicons: Mapping[str, Lexicon]
    foreign: Mapping[str, frozenset[str]]
    speller: Speller
    triggers: frozenset[str]  # words around which the middle of a very long message is read
    linear: Linear | None
    network: Network | None
    calibration: Calibration
    reasons: Mapping[str, str]  # of each rule


@dataclass(frozen=True)
class Observation:
    """What one turn shows by itself. No text."""

    level: Level
    p: float  # of any risk, in [0, 1]
    frames: tuple[Frame, ...] = ()
    signals: frozenset[str] = frozenset()
    stances: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    reasons: tuple[Reason, ...] = ()
    degraded: frozenset[str] = frozenset()
    ms: Mapping[str, float] = field(default_factory=dict)
    acts: frozenset[str] = frozenset()  # that any rule reads, also one that only informs the models; not long past
    settled: Level = Level.NONE  # what of the level no model may lower: definite rules and the like


@cache
def load_detector() -> Detector:
    """The shipped detector. Rules are needed; weights that are missing or broken are left out and named later."""
    lexicons = {lang: load_lexicon(lang) for lang in LANGUAGES}
    models: list[Linear | Network | None] = []
    for load in (load_linear, load_network):
        try:
            models.append(load())
        except (OSError, ValueError, KeyError, TypeError):
            models.append(None)
    linear, network = models
    return make_detector(lexicons, shipped_vocabulary(), linear, network, shipped_calibration())  # type: ignore[arg-type]


def make_detector(
    lexicons: Mapping[str, Lexicon],
    vocabulary: Vocabulary,
    linear: Linear | None,
    network: Network | None,
    calibration: Calibration,
) -> Detector:
    """A detector of these parts."""
    risk = frozenset(word for word in lexicons["en"].words if len(word) >= 4 and word.isalpha())
    common = vocabulary.english | lexicons["en"].words
    foreign = {
        lang: frozenset(word for word in each.words - common if len(word) > 1 and word.isalpha())
        for lang, each in lexicons.items()
        if lang != "en"
    }
    known = vocabulary.english.union(vocabulary.others, *(each.words for each in lexicons.values()))
    triggers = frozenset().union(*(each.triggers for each in lexicons.values()))
    reasons = {rule.id: rule.reason for each in lexicons.values() for rule in each.rules}
    return Detector(lexicons, foreign, Speller(known, risk), triggers, linear, network, calibration, reasons)


def shipped_vocabulary() -> Vocabulary:
    """weights/vocabulary.txt: one word a line, an empty line between the two parts."""
    text = files("warmline.safety").joinpath("weights/vocabulary.txt").read_text(encoding="utf-8")
    english, others = text.split("\n\n")
    return Vocabulary(frozenset(english.split()), frozenset(others.split()))


def shipped_calibration() -> Calibration:
    """weights/calibration.json."""
    stored = json.loads(files("warmline.safety").joinpath("weights/calibration.json").read_text(encoding="utf-8"))
    mix = tuple(Mix(*each) for each in stored["mix"])
    return Calibration(
        stored["elevated"], stored["sure"], stored["high"], stored["emergency"], frozenset(stored["hints"]), mix
    )


def observe(text: str, detector: Detector, before: Sequence[str] = (), question: str = "") -> Observation:
    """What one user turn shows. `before`: the user's turns so far; `question`: the companion's words just before it.

    A part that raises is left out and named in `degraded`; without the rules, which the models read too, the level is
    `elevated`. One that was slow is named there (`rules_slow`) and counts: nothing cuts it off.
    """
    degraded: set[str] = set()
    ms: dict[str, float] = {}
    reading = _guarded("rules", degraded, ms, lambda: _read(text, detector, before, question))
    linear_WK = _guarded("linear", degraded, ms, lambda: linear_logits(reading, detector.linear))
    network_WK = _guarded("network", degraded, ms, lambda: network_logits(reading, detector.network, linear_WK))
    if reading is None:
        lacking = frozenset({*degraded, "guarded"})
        return Observation(Level.ELEVATED, 0.5, degraded=lacking, ms=ms, settled=Level.ELEVATED)
    p_K = mixed(linear_WK, network_WK, detector.calibration)
    working = detector if linear_WK is not None else replace(detector, linear=None)
    return replace(fuse(reading, p_K, working), degraded=frozenset(degraded), ms=ms)


def _guarded(name: str, degraded: set[str], ms: dict[str, float], part: Callable[[], Result]) -> Result | None:
    """What the part gives; None when it raises or gives no number. A detector must never take the reply with it."""
    started, spent = time.perf_counter(), time.thread_time()
    try:
        result = part()
        if isinstance(result, np.ndarray) and not np.isfinite(result).all():
            raise ValueError("not a number")
    except Exception:  # noqa: BLE001 - whatever breaks in one detector, the others go on
        degraded.add(name)
        return None
    ms[name] = 1e3 * (time.perf_counter() - started)
    if 1e3 * (time.thread_time() - spent) > SLOW_MS:
        degraded.add(f"{name}_slow")
    return result


def _read(text: str, detector: Detector, before: Sequence[str], question: str) -> Reading:
    """What the rules read in a turn, in what it completes of the turns before, and in what it answers."""
    reading = read_message(text, detector)
    others: list[Reading] = []
    turns = [*before[-NUM_JOINED + 1 :], text]
    if len(turns) > 1 and all(len(turn) < 8 * SHORT for turn in turns):
        others.append(read_message(" ".join(turns), detector))
    if question and len(text) < 8 * SHORT and "yes" in reading.stances:
        others.append(_answered(question, detector))
    frames = [*reading.frames, *(frame for each in others for frame in each.frames)]
    return replace(reading, frames=tuple(dict.fromkeys(frames)))


def read_message(text: str, detector: Detector) -> Reading:
    """What English rules and those of every language whose words occur read in a message."""
    text = plain(passages(text, detector.triggers))  # once: what is plain already costs little to read again
    reading = read(text, detector.lexicons["en"], detector.speller)
    words = set(text.split())
    for lang, distinctive in detector.foreign.items():
        if words & distinctive:
            other = read(text, detector.lexicons[lang], only=distinctive)
            reading = replace(
                reading,
                frames=tuple(dict.fromkeys((*reading.frames, *other.frames))),
                denied=tuple(dict.fromkeys((*reading.denied, *other.denied))),
                signals=reading.signals | other.signals,
                contexts=reading.contexts | other.contexts,
                stances=reading.stances | other.stances,
            )
    return reading


_TO_FIRST_PERSON = {"you": "i", "your": "my", "yours": "mine", "yourself": "myself", "are": "am", "you're": "i am"}


def _answered(question: str, detector: Detector) -> Reading:
    """What a bare yes says: the companion's question in the first person."""
    last = re.split(r"(?<=[.!?])\s+", question.strip())[-1]
    words = [_TO_FIRST_PERSON.get(found[0], found[0]) for found in re.finditer(r"[\w']+", plain(last))]
    if words[:1] == ["am"] and "i" in words:  # "are you thinking of ..." -> "i am thinking of ..."
        words = ["i", "am", *words[words.index("i") + 1 :]]
    return read(" ".join(words), detector.lexicons["en"], detector.speller)


def linear_logits(reading: Reading | None, linear: Linear | None) -> np.ndarray:
    """The linear model's log-odds of level >= 1, 2, 3 for each window. Raises without weights or reading."""
    if linear is None or reading is None:
        raise ValueError("no weights, or nothing was read")
    every = list(_windows(reading))
    return linear.logits(reading, every) - _discount(every)


def network_logits(reading: Reading | None, network: Network | None, linear_WK: np.ndarray | None = None) -> np.ndarray:
    """The same of the network. Of many windows it reads the RANKED that the linear model finds riskiest."""
    if network is None or reading is None:
        raise ValueError("no weights, or nothing was read")
    words, every = row(reading.words), list(_windows(reading))
    chosen = np.arange(len(every))
    if linear_WK is not None and len(every) > RANKED:
        chosen = np.argsort(linear_WK[:, 0], kind="stable")[-RANKED:]
    found_NK = network.logits([words[every[at].start : every[at].end] for at in chosen]).astype(np.float64)
    found_NK -= _discount([every[at] for at in chosen])
    logits_WK = np.tile(found_NK.min(axis=0), (len(every), 1))
    logits_WK[chosen] = found_NK
    return logits_WK


def _windows(reading: Reading) -> Iterator[Window]:
    return windows(reading.words, [sentence.is_for_machines for sentence in reading.sentences])


def _discount(read: Sequence[Window]) -> np.ndarray:
    return DISCOUNT * np.array([[each.is_passage] for each in read])


def mixed(linear_WK: np.ndarray | None, network_WK: np.ndarray | None, calibration: Calibration) -> np.ndarray | None:
    """P(level >= 1), P(>= 2), P(>= 3) of the riskiest window, never rising; None without any model.

    The network counts three quarters. One that is missing is taken to say what the other says.
    """
    if linear_WK is None and network_WK is None:
        return None
    logits = []
    for k, mix in enumerate(calibration.mix):
        parts = [
            each[:, k] / scale
            for each, scale in ((linear_WK, mix.linear), (network_WK, mix.network))
            if each is not None
        ]
        together_W = parts[0] + NETWORK_SHARE * parts[-1]
        logits.append(mix.slope * float(together_W.max()) + mix.intercept)
    return np.minimum.accumulate(1 / (1 + np.exp(-np.array(logits))))


def sureness(p_K: np.ndarray) -> float:
    """How sure it is that a turn is risky: the log-odds of level >= 1 and half of those of level >= 2."""
    odds_K = np.clip(p_K, 1e-6, 1 - 1e-6)
    return float(np.log(odds_K[0] / (1 - odds_K[0])) + np.log(odds_K[1] / (1 - odds_K[1])) / 2)


def by_wording(p_K: np.ndarray, calibration: Calibration) -> int:
    """The level that the models' probabilities give."""
    if p_K[1] >= calibration.high and sureness(p_K) >= calibration.sure:
        return 3 if p_K[2] >= calibration.emergency else 2
    return int(p_K[0] >= calibration.elevated)


def fuse(reading: Reading, p_K: np.ndarray | None, detector: Detector) -> Observation:
    """The level of a turn: the highest that a definite rule sets or that the models find likely enough."""
    calibration = detector.calibration
    definite = [frame for frame in reading.frames if frame.rule not in calibration.hints or p_K is None]
    level = settled = max((frame.level for frame in definite), default=Level.NONE)
    p, domains = 0.0, {frame.domain for frame in definite if frame.level}
    reasons = [Reason(frame.rule, detector.reasons.get(frame.rule, "")) for frame in definite if frame.level]
    if p_K is not None:
        p = float(p_K[0])
        model = by_wording(p_K, calibration)
        if model > level:
            if detector.linear is not None:
                domains.add(detector.linear.domain(reading))
            reasons.append(Reason(f"WORDING.{model}", "The wording resembles that of people at this level"))
        level = Level(max(level, model))
    if level:
        p = max(p, 0.5 + 0.15 * level)
    return Observation(
        level,
        p,
        tuple(definite),
        reading.signals,
        reading.stances,
        frozenset(domains),
        tuple(reasons),
        acts=frozenset(frame.act for frame in reading.frames if frame.time != "past_resolved"),
        settled=settled,
    )
