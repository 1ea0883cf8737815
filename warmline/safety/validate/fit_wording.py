"""Fit the wording model from sentences: `python -m warmline.safety.validate.fit_wording`. Needs scikit-learn.

The sentences stand in `sentences/*.txt`: `@ labels | idea` opens a family, each other line is a sentence. The result does not
change from run to run.
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from warmline.safety.grammar.grammar import derive, spec_for
from warmline.safety.levels import DOMAINS, Level
from warmline.safety.validate.wording import BROKEN, GIVEN, LABELS, NUM_CHARS, NUM_WORDS, Wording, features
from warmline.safety.validate.words import read

HERE = Path(__file__).parent
KNOWN = frozenset({*LABELS, "emotion", "sexual_content", "ok"})
PENALTY = 8.0  # C of scikit-learn
NUM_DERIVATIONS = 2_000  # of the grammar of supportive replies
NUM_FOLDS = 5  # families are left out in such parts to set the limits
MAX_WRONG, MAX_WRONG_GIVEN = 0.003, 0.01  # of sentences without the label that pass its limit
WORTH_IT = 30  # times as many of those with the label must pass


class Sentence(NamedTuple):
    """One sentence that a companion might say."""

    words: tuple[str, ...]
    labels: frozenset[str]
    family: str
    known: frozenset[str] = frozenset(LABELS)  # labels that it is known to have or not to have


def read_sentences(folder: Path = HERE / "sentences") -> Iterator[Sentence]:
    """All sentences. Raises ValueError for a header with a label that does not exist."""
    for path in sorted(folder.glob("*.txt")):
        labels, family = frozenset[str](), ""
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("@"):
                names, _, idea = line[1:].partition("|")
                labels = frozenset(name.strip() for name in names.split(","))
                family = f"{path.stem}: {sorted(labels)} {idea.strip()}"
                if labels - KNOWN:
                    raise ValueError(f"{path.name}:{number}: no label {sorted(labels - KNOWN)}")
            elif line.strip():
                yield Sentence(read(line).words, labels, family)


def read_examples(path: Path = HERE / "examples.yaml") -> Iterator[Sentence]:
    """The lines of each rule, which say nothing of the other rules; a line of several sentences only where none breaks it."""
    for rule, row in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for kind in ("violating", "compliant") if rule in BROKEN else ():
            for number, line in enumerate(row[kind].splitlines()):
                view = read(line.replace("\\n", "\n"))
                if kind == "compliant" or len(view.sentences) == 1:
                    labels = frozenset({rule} if kind == "violating" else ())
                    for each in view.sentences:
                        words = view.words[each.first : each.last]
                        yield Sentence(words, labels, f"{rule} {kind} {number}", frozenset({rule}))


def read_derivations() -> Iterator[Sentence]:
    """Sentences of replies that the grammar allows: they break nothing. An urgent one is a command that may stand once."""
    rng = random.Random(0)
    seen: set[tuple[str, ...]] = set()
    for _ in range(NUM_DERIVATIONS):
        level, domain = rng.choice((Level.ELEVATED, Level.HIGH, Level.EMERGENCY)), rng.choice(DOMAINS)
        follow_up, about_other = rng.random() < 0.3, domain == "third_party"
        spec = spec_for(level, (domain,), (), about_other=about_other, follow_up=follow_up, minor=rng.random() < 0.2)
        view = read(derive(spec, rng)[0])
        known = frozenset(BROKEN) - ({"directive_or_actionable_advice"} if level == Level.EMERGENCY else set())
        for each in view.sentences:
            words = view.words[each.first : each.last]
            if words not in seen:
                seen.add(words)
                yield Sentence(words, frozenset(), "", known)


def fit(sentences: Sequence[Sentence], penalty: float = PENALTY) -> Wording:
    """One logistic regression a label; limits from predictions for families that were left out."""
    rows = [features(each.words) for each in sentences]
    targets = np.array([[label in each.labels for label in LABELS] for each in sentences])
    known = np.array([[label in each.known for label in LABELS] for each in sentences])
    families = {name: number for number, name in enumerate(sorted({each.family for each in sentences}))}
    fold_N = np.array([families[each.family] % NUM_FOLDS for each in sentences])
    held_out_NL = np.zeros(targets.shape)
    for fold in range(NUM_FOLDS):
        weight_DL, bias_L = _regressions(rows, targets, known & (fold_N != fold)[:, None], penalty)
        for at in np.flatnonzero(fold_N == fold):
            index, value = rows[at]
            held_out_NL[at] = value @ weight_DL[index] + bias_L
    learned = known.copy()
    known &= np.array([bool(each.family) for each in sentences])[:, None]  # the grammar's own are too alike to count
    columns = [(held_out_NL[known[:, k], k], targets[known[:, k], k]) for k in range(len(LABELS))]
    limits = [_limit(*column, label) for column, label in zip(columns, LABELS, strict=True)]
    for label, (found_N, target_N), limit in zip(LABELS, columns, limits, strict=True):
        _tell(label, found_N >= limit, target_N)
    return Wording(*_regressions(rows, targets, learned, penalty), np.array(limits))


def _limit(held_out_N: np.ndarray, target_N: np.ndarray, label: str) -> float:
    """The lowest log-odds at which few sentences without the label pass; infinite where that finds next to nothing."""
    others = np.sort(held_out_N[~target_N])[::-1]
    share = MAX_WRONG if label in BROKEN else MAX_WRONG_GIVEN
    limit = float(others[int(share * len(others))])
    worth_it = label in GIVEN or (held_out_N[target_N] > limit).mean() >= WORTH_IT * share
    return limit if worth_it else np.inf


def _regressions(rows, targets: np.ndarray, chosen_NL: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    ends = np.cumsum([0, *(len(index) for index, _ in rows)])
    values, index = (np.concatenate([each[part] for each in rows]) for part in (1, 0))
    matrix = csr_matrix((values, index, ends), shape=(len(rows), NUM_CHARS + NUM_WORDS))
    weights, biases = [], []
    for target_N, chosen_N in zip(targets.T, chosen_NL.T, strict=True):
        model = LogisticRegression(C=penalty, solver="liblinear", dual=True, tol=1e-3, max_iter=2000, random_state=0)
        model.fit(matrix[np.flatnonzero(chosen_N)], target_N[chosen_N])
        weights.append(np.asarray(model.coef_)[0].astype(np.float32))
        biases.append(float(np.asarray(model.intercept_)[0]))
    return np.stack(weights, axis=1), np.array(biases)


def _tell(label: str, passed_N: np.ndarray, target_N: np.ndarray) -> None:
    found = {"label": label, "n": int(target_N.sum()), "recall": round(float(passed_N[target_N].mean()), 3)}
    sys.stdout.write(json.dumps(found | {"wrong": round(float(passed_N[~target_N].mean()), 4)}) + "\n")


def main() -> None:
    """Fit on all sentences and write wording.npz."""
    fitted = fit([*read_sentences(), *read_examples(), *read_derivations()])
    weight = fitted.weight_DL.astype(np.float16)
    np.savez_compressed(
        HERE / "wording.npz", allow_pickle=False, weight=weight, bias=fitted.bias_L, limit=fitted.limit_L
    )


if __name__ == "__main__":
    main()
