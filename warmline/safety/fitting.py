"""Fit both models and the thresholds from the project's own lines: `python -m warmline.safety.fitting`.

Needs scikit-learn (`pip install warmline[dev]`) and torch. The result does not change from run to run.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from warmline.progress import Advance, progress
from warmline.safety.detect import (
    NETWORK_SHARE,
    Calibration,
    Detector,
    Mix,
    Vocabulary,
    fuse,
    linear_logits,
    make_detector,
    mixed,
    network_logits,
    read_message,
    sureness,
)
from warmline.safety.levels import DOMAINS, LEVELS, Level
from warmline.safety.lexicon import LANGUAGES, Lexicon, load_lexicon
from warmline.safety.linear import DIM, DOMAIN_DIM, Features, Linear, features
from warmline.safety.matcher import Reading, read
from warmline.safety.redteam.cases import Case, Line, part_of, read_cases, read_lines
from warmline.safety.windows import row


def quiet(_count: int, _note: str) -> None:
    """Nobody watches."""


WEIGHTS = Path(__file__).parent / "weights"
PENALTY = 8.0  # C of scikit-learn: the inverse of the penalty's strength
KNOWN_AFTER = 2  # times that a word must occur in the lines to be an ordinary one
MIN_HITS, MAX_WRONG = 3, 0.03  # a rule sets a level if it hit so many lines, and so few of them harmless
NUM_FOLDS = 2  # groups of families that are left out in turn
FPR_ELEVATED, FPR_HIGH = 0.045, 0.025  # of harmless turns whose families were left out
HIGH, EMERGENCY = 0.45, 0.4  # P(level >= k) from which a turn that is surely risky is one of these
SAME = (Mix(1.0, 1.0, 1.0, 0.0),) * 3
NEVER = Calibration(2.0, 2.0, 2.0, 2.0, frozenset(), SAME)  # no probability reaches it


def fit(
    lines: Sequence[Line], lexicons: Mapping[str, Lexicon], cases: Sequence[Case], advance: Advance = quiet
) -> Detector:
    """A detector that is still without limits: models of `lines`, mixed as `cases` say. Needs scikit-learn and torch; minutes."""
    from warmline.safety.fit_network import fit_network

    known = vocabulary(lines, lexicons["en"])
    detector = make_detector(lexicons, known, None, None, NEVER)
    readings = [read_message(line.text, detector) for line in lines]
    linear = fit_linear([features(each) for each in readings], lines)
    network = fit_network([row(each.words) for each in readings], lines, advance)
    uncalibrated = replace(NEVER, hints=hints(readings, lines, lexicons))
    detector = make_detector(lexicons, known, linear, network, uncalibrated)
    return replace(detector, calibration=replace(uncalibrated, mix=fit_mix(detector, cases)))


def left_out(cases: Sequence[Case], advance: Advance) -> Iterator[tuple[Detector, list[Case]]]:
    """Detectors that are still without limits, and the cases of the families that each has never seen.

    Families are left out in NUM_FOLDS groups: their rules, their lines and their cases.
    """
    families = sorted({case.family for case in cases})
    for fold in range(NUM_FOLDS):
        without = frozenset(families[fold::NUM_FOLDS])
        lexicons = {lang: load_lexicon(lang).without(without) for lang in LANGUAGES}
        mixing = [case for case in cases if part_of(case.family) == "calibrate" and case.family not in without]
        detector = fit(lines_to_learn(without), lexicons, mixing, advance)
        yield detector, [case for case in cases if case.family in without]


def lines_to_learn(without: Iterable[str] = ()) -> list[Line]:
    """The lines, and the single-turn cases of the fit part; none of a family that the other parts of the set hold."""
    cases = read_cases()
    held_out = {case.family for case in cases if part_of(case.family) != "fit"} | set(without)
    own = [
        Line(case.turns[-1]["content"], case.family, case.risk, case.domains, case.lang)
        for case in cases
        if case.is_single
    ]
    return [line for line in (*read_lines(), *own, *bundled()) if line.family not in held_out]


def bundled() -> Iterator[Line]:
    """The users' turns of the bundled corpus: what ordinary talk looks like, with a little danger in it."""
    for text in files("warmline.samples").joinpath("conversations.jsonl").read_text(encoding="utf-8").splitlines():
        talk = json.loads(text)
        for turn in talk["messages"]:
            if turn["role"] == "user" and "risk" in turn:
                yield Line(turn["content"], f"bundled.{talk['id']}.{turn['risk']}", LEVELS[turn["risk"]], (), "en")


def vocabulary(lines: Iterable[Line], lexicon: Lexicon) -> Vocabulary:
    """Words of letters alone that occur KNOWN_AFTER times or more, those of English lines apart."""
    counts: defaultdict[bool, Counter[str]] = defaultdict(Counter)
    for line in lines:
        for sentence in read(line.text, lexicon).words:
            counts[line.lang == "en"].update(sentence)
    english, others = (
        {word for word, count in counts[is_english].items() if count >= KNOWN_AFTER and word.isalpha()}
        for is_english in (True, False)
    )
    return Vocabulary(frozenset(english), frozenset(others - english))


def fit_linear(found: Sequence[Features], lines: Sequence[Line]) -> Linear:
    """Three logistic regressions for the level, P(level >= k); one against the rest for each domain, on risky lines."""
    level = np.array([line.level for line in lines])
    level_KD, level_bias_K = _regressions(_matrix(found, DIM), [level >= k for k in (1, 2, 3)])
    risky = np.flatnonzero(level)
    narrow = _matrix([Features(each.column & (DOMAIN_DIM - 1), each.value) for each in found], DOMAIN_DIM)[risky]
    of_domain = [np.array([name in lines[int(number)].domains for number in risky]) for name in DOMAINS]
    return Linear(np.ascontiguousarray(level_KD.T), level_bias_K, *_regressions(narrow, of_domain))


def _matrix(found: Sequence[Features], width: int):
    from scipy.sparse import csr_matrix

    ends = np.cumsum([0, *(len(each.column) for each in found)])
    values = np.concatenate([each.value for each in found])
    index = np.concatenate([each.column for each in found])
    matrix = csr_matrix((values, index, ends), shape=(len(found), width))
    matrix.sum_duplicates()
    return matrix


def _regressions(matrix, targets: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One logistic regression a target. Features count by their rarity (inverse document frequency), which the weights take in."""
    from scipy.sparse import diags
    from sklearn.linear_model import LogisticRegression

    rarity_D = np.log((matrix.shape[0] + 1) / (np.bincount(matrix.indices, minlength=matrix.shape[1]) + 1)) / 4
    rare = matrix @ diags(rarity_D)
    weights, biases = [], []
    for target in targets:
        if target.all() or not target.any():
            weights.append(np.zeros(matrix.shape[1], np.float32))
            biases.append(20.0 if target.all() else -20.0)
            continue
        model = LogisticRegression(C=PENALTY, solver="liblinear", dual=True, tol=1e-3, max_iter=2000, random_state=0)
        model.fit(rare, target)
        weights.append((np.asarray(model.coef_)[0] * rarity_D).astype(np.float32))
        biases.append(float(np.asarray(model.intercept_)[0]))
    return np.stack(weights), np.array(biases)


def hints(readings: Sequence[Reading], lines: Sequence[Line], lexicons: Mapping[str, Lexicon]) -> frozenset[str]:
    """Rules that the lines have not shown to be precise: they inform the model and set no level by themselves."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for reading, line in zip(readings, lines, strict=True):
        for frame in reading.frames:
            if frame.level:
                hits[frame.rule].append(line.level == Level.NONE)
    precise = {rule for rule, wrong in hits.items() if len(wrong) >= MIN_HITS and sum(wrong) <= MAX_WRONG * len(wrong)}
    every = {rule.id for lexicon in lexicons.values() for rule in lexicon.rules if rule.frame and not rule.definite}
    return frozenset(every - precise)


def fit_mix(detector: Detector, cases: Sequence[Case]) -> tuple[Mix, ...]:
    """How the models' log-odds become probabilities, from single-turn cases that none of them learned from (Platt)."""
    from sklearn.linear_model import LogisticRegression

    single = [case for case in cases if case.is_single]
    level = np.array([int(case.risk) for case in single])
    read = [read_message(case.turns[-1]["content"], detector) for case in single]
    linear_NK = np.stack([linear_logits(each, detector.linear).max(axis=0) for each in read])
    network_NK = np.stack([network_logits(each, detector.network).max(axis=0) for each in read])
    mixes = []
    for k in (1, 2, 3):
        scales = linear_NK[:, k - 1].std(), network_NK[:, k - 1].std()
        together = linear_NK[:, k - 1] / scales[0] + NETWORK_SHARE * network_NK[:, k - 1] / scales[1]
        model = LogisticRegression().fit(together[:, None], level >= k)
        slope, intercept = np.asarray(model.coef_)[0, 0], np.asarray(model.intercept_)[0]
        mixes.append(Mix(*(round(float(each), 4) for each in (*scales, slope, intercept))))
    return tuple(mixes)


class Harmless(NamedTuple):
    """What a detector that never saw its family makes of a harmless turn."""

    floor: Level  # by rules alone
    p_K: np.ndarray


def harmless(cases: Iterable[Case], detector: Detector) -> Iterator[Harmless]:
    """The harmless single turns among cases; those of the test part are left out."""
    for case in cases:
        if case.risk == Level.NONE and case.is_single and part_of(case.family) != "test":
            p_K = _probabilities(case, detector)
            yield Harmless(fuse(read_message(case.turns[-1]["content"], detector), np.zeros(3), detector).level, p_K)


def calibrate(turns: Sequence[Harmless], calibration: Calibration) -> Calibration:
    """The lowest limits at which harmless turns rise to `elevated` and `high` at the rates above, rules included."""
    floor_N = np.array([int(each.floor) for each in turns])
    p_NK = np.stack([each.p_K for each in turns])
    limits = []
    for level, rate, score_N in (
        (1, FPR_ELEVATED, p_NK[:, 0]),
        (2, FPR_HIGH, np.where(p_NK[:, 1] >= HIGH, [sureness(p_K) for p_K in p_NK], -np.inf)),
    ):
        allowed = max(0, int(rate * len(turns)) - int((floor_N >= level).sum()))
        others = np.sort(score_N[floor_N < level])[::-1]
        limits.append(round(float(others[allowed]) + 1e-4, 4))
    return replace(calibration, elevated=limits[0], sure=limits[1], high=HIGH, emergency=EMERGENCY)


def _probabilities(case: Case, detector: Detector) -> np.ndarray:
    reading = read_message(case.turns[-1]["content"], detector)
    found = mixed(
        linear_logits(reading, detector.linear), network_logits(reading, detector.network), detector.calibration
    )
    assert found is not None
    return found


def save(detector: Detector, known: Vocabulary) -> None:
    """Write weights/: float16 weights, the vocabulary, the thresholds."""
    assert detector.linear is not None
    assert detector.network is not None
    WEIGHTS.mkdir(exist_ok=True)
    linear = {
        "level": detector.linear.level_DK.T.astype(np.float16),
        "domain": detector.linear.domain_ND.astype(np.float16),
        "level_bias": detector.linear.level_bias_K,
        "domain_bias": detector.linear.domain_bias_N,
    }
    stored = {item.name: getattr(detector.network, item.name) for item in fields(detector.network)}
    words = np.array("\n".join(stored.pop("word_ids")))
    network = {name: np.asarray(value).astype(np.float16) for name, value in stored.items()}
    np.savez_compressed(WEIGHTS / "linear.npz", allow_pickle=False, **linear)
    np.savez_compressed(WEIGHTS / "network.npz", allow_pickle=False, words=words, **network)
    (WEIGHTS / "vocabulary.txt").write_text(
        "\n\n".join("\n".join(sorted(part)) for part in known) + "\n", encoding="utf-8"
    )
    calibration = asdict(detector.calibration) | {"hints": sorted(detector.calibration.hints)}
    (WEIGHTS / "calibration.json").write_text(json.dumps(calibration, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Fit on every line that may be learned from, find the limits on what was left out, write."""
    from warmline.safety.fit_network import num_steps

    lexicons = {lang: load_lexicon(lang) for lang in LANGUAGES}
    lines, cases = lines_to_learn(), read_cases()
    with progress("fit", (1 + NUM_FOLDS) * num_steps(lines)) as advance:
        detector = fit(lines, lexicons, [case for case in cases if part_of(case.family) == "calibrate"], advance)
        turns = [each for other, unseen in left_out(cases, advance) for each in harmless(unseen, other)]
    detector = replace(detector, calibration=calibrate(turns, detector.calibration))
    save(detector, vocabulary(lines, lexicons["en"]))


if __name__ == "__main__":
    main()
