"""Fit the linear model and the thresholds from the project's own lines: `python -m warmline.safety.fitting`.

Needs scikit-learn (`pip install warmline[dev]`). The result does not change from run to run.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from warmline.safety.assess import assess
from warmline.safety.detect import Calibration, Detector, make_detector, read_message
from warmline.safety.levels import DOMAINS, Level
from warmline.safety.lexicon import LANGUAGES, Lexicon, load_lexicon
from warmline.safety.linear import DIM, DOMAIN_DIM, Features, Linear, features
from warmline.safety.matcher import Reading, read
from warmline.safety.redteam.cases import Case, Line, part_of, read_cases, read_lines

WEIGHTS = Path(__file__).parent / "weights"
PENALTY = 8.0  # C of scikit-learn: the inverse of the penalty's strength
KNOWN_AFTER = 2  # times that a word must occur in the lines to be an ordinary one
MIN_HITS, MAX_WRONG = 3, 0.03  # a rule sets a level if it hit so many lines, and so few of them harmless
FPR_ELEVATED, FPR_HIGH = 0.04, 0.01  # of harmless cases of the calibrate part, by rules and model together
NEVER = Calibration(2.0, 2.0, 2.0, frozenset())  # no probability reaches it


def fit(lines: Sequence[Line], lexicons: Mapping[str, Lexicon], cases: Sequence[Case]) -> Detector:
    """A detector: a linear model of `lines`, thresholds from `cases`."""
    known = vocabulary(lines, lexicons["en"])
    detector = make_detector(lexicons, known, None, NEVER)
    readings = [read_message(line.text, detector) for line in lines]
    linear = fit_linear([features(each) for each in readings], lines)
    detector = make_detector(lexicons, known, linear, NEVER._replace(hints=hints(readings, lines, lexicons)))
    return make_detector(lexicons, known, linear, calibrate(detector, cases))


def lines_to_learn(without: Iterable[str] = ()) -> list[Line]:
    """The lines, and the single-turn cases of the fit part; none of a family that the other parts of the set hold."""
    cases = read_cases()
    held_out = {case.family for case in cases if part_of(case.family) != "fit"} | set(without)
    own = [
        Line(case.turns[-1]["content"], case.family, case.risk, case.domains, case.lang)
        for case in cases
        if case.is_single
    ]
    return [line for line in (*read_lines(), *own) if line.family not in held_out]


def vocabulary(lines: Iterable[Line], lexicon: Lexicon) -> dict[str, int]:
    """Words that occur KNOWN_AFTER times or more, in alphabetical order, with how often."""
    counts: Counter[str] = Counter()
    for line in lines:
        for sentence in read(line.text, lexicon).words:
            counts.update(sentence)
    return {word: count for word, count in sorted(counts.items()) if count >= KNOWN_AFTER}


def fit_linear(found: Sequence[Features], lines: Sequence[Line]) -> Linear:
    """Three logistic regressions for the level, P(level >= k); one against the rest for each domain, on risky lines."""
    level = np.array([line.level for line in lines])
    level_KD, level_bias_K = _regressions(_matrix(found, DIM), [level >= k for k in (1, 2, 3)])
    risky = np.flatnonzero(level)
    narrow = _matrix([Features(each.index & (DOMAIN_DIM - 1), each.value) for each in found], DOMAIN_DIM)[risky]
    of_domain = [np.array([name in lines[int(number)].domains for number in risky]) for name in DOMAINS]
    return Linear(level_KD, level_bias_K, *_regressions(narrow, of_domain))


def _matrix(found: Sequence[Features], width: int):
    from scipy.sparse import csr_matrix

    ends = np.cumsum([0, *(len(each.index) for each in found)])
    values = np.concatenate([each.value for each in found])
    index = np.concatenate([each.index for each in found])
    return csr_matrix((values, index, ends), shape=(len(found), width))


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


def calibrate(detector: Detector, cases: Sequence[Case]) -> Calibration:
    """The lowest thresholds at which harmless cases rise to `elevated` and `high` at the rates above, rules included."""
    harmless = [case for case in cases if case.risk == Level.NONE and case.is_single]
    found = [_highest(case, detector) for case in harmless]
    floors = np.array([int(level) for level, _ in found])
    p_NK = np.stack([p for _, p in found])
    limits = []
    for k, rate in ((1, FPR_ELEVATED), (2, FPR_HIGH), (3, 0.0)):
        allowed = max(0, int(rate * len(harmless)) - int((floors >= k).sum()))
        others = np.sort(p_NK[floors < k, k - 1])[::-1]
        limits.append(round(float(others[allowed]) + 1e-4, 4) if len(others) > allowed else 1.0)
    return Calibration(limits[0], max(limits[1], 0.3), max(limits[2], 0.5), detector.calibration.hints)


def _highest(case: Case, detector: Detector) -> tuple[Level, np.ndarray]:
    """The level of a case by rules and state alone, and the highest probabilities of its user turns."""
    from warmline.safety.detect import probabilities

    said = [turn["content"] for turn in case.turns if turn["role"] == "user"]
    p_TK = [probabilities(read_message(text, detector), detector.linear) for text in said]
    return assess(case.turns, detector).level, np.max(p_TK, axis=0)


def save(detector: Detector, known: Mapping[str, int]) -> None:
    """Write weights/: float16 weights, the vocabulary, the thresholds."""
    assert detector.linear is not None
    WEIGHTS.mkdir(exist_ok=True)
    stored = {"level_bias": detector.linear.level_bias_K, "domain_bias": detector.linear.domain_bias_N}
    stored["level"] = detector.linear.level_KD.astype(np.float16)
    stored["domain"] = detector.linear.domain_ND.astype(np.float16)
    np.savez_compressed(WEIGHTS / "linear.npz", allow_pickle=False, **stored)
    (WEIGHTS / "vocabulary.txt").write_text("\n".join(known) + "\n", encoding="utf-8")
    calibration = detector.calibration._asdict() | {"hints": sorted(detector.calibration.hints)}
    (WEIGHTS / "calibration.json").write_text(json.dumps(calibration, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Fit on every line that may be learned from, calibrate, write."""
    lexicons = {lang: load_lexicon(lang) for lang in LANGUAGES}
    lines = lines_to_learn()
    calibration = [case for case in read_cases() if part_of(case.family) == "calibrate"]
    save(fit(lines, lexicons, calibration), vocabulary(lines, lexicons["en"]))


if __name__ == "__main__":
    main()
