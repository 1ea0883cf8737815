"""Run the detector over the red-team set: as shipped, and with each family's rules and lines left out of the fit."""

from collections.abc import Iterator, Sequence

from warmline.progress import Advance
from warmline.safety.assess import assess
from warmline.safety.detect import Detector
from warmline.safety.lexicon import LANGUAGES, load_lexicon
from warmline.safety.redteam.cases import Case, part_of
from warmline.safety.redteam.score import Scored

NUM_FOLDS = 2


def score(cases: Sequence[Case], detector: Detector, advance: Advance) -> Iterator[Scored]:
    """The level that the detector gives each case."""
    for case in cases:
        assessment = assess(case.turns, detector)
        advance(1, "")
        yield Scored(case, assessment.level, assessment.ms)


def num_steps(cases: Sequence[Case]) -> int:
    """Of what `leave_families_out` reports its progress: steps of all fits, and cases."""
    from warmline.safety import fit_recurrent
    from warmline.safety.fitting import lines_to_learn

    return NUM_FOLDS * fit_recurrent.num_steps(lines_to_learn()) + len(cases)


def leave_families_out(cases: Sequence[Case], advance: Advance, num_folds: int = NUM_FOLDS) -> Iterator[Scored]:
    """The same, each case read by a detector that never saw its family: neither rules written for it nor its lines.

    Families are left out in `num_folds` groups, so that each case's detector misses its own family and half of the
    others: stricter than leaving out one at a time. Needs scikit-learn and torch, and some minutes a group.
    """
    from warmline.safety.fitting import fit, lines_to_learn

    families = sorted({case.family for case in cases})
    calibration = [case for case in cases if part_of(case.family) == "calibrate"]
    for fold in range(num_folds):
        left_out = frozenset(families[fold::num_folds])
        lexicons = {lang: load_lexicon(lang).without(left_out) for lang in LANGUAGES}
        kept = [case for case in calibration if case.family not in left_out]
        detector = fit(lines_to_learn(left_out), lexicons, kept, advance)
        yield from score([case for case in cases if case.family in left_out], detector, advance)
