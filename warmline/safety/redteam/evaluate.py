"""Run the detector over the red-team set: as shipped, and with each family's rules and lines left out of the fit."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from warmline.progress import Advance
from warmline.safety.assess import assess
from warmline.safety.detect import Detector, shipped_calibration
from warmline.safety.redteam.cases import Case
from warmline.safety.redteam.score import Scored


def score(cases: Sequence[Case], detector: Detector, advance: Advance) -> Iterator[Scored]:
    """The level that the detector gives each case."""
    for case in cases:
        assessment = assess(case.turns, detector)
        advance(1, "")
        yield Scored(case, assessment.level, assessment.ms)


def num_steps(cases: Sequence[Case]) -> int:
    """Of what `leave_families_out` reports its progress: steps of all fits, and cases."""
    from warmline.safety import fit_network
    from warmline.safety.fitting import NUM_FOLDS, lines_to_learn

    return NUM_FOLDS * fit_network.num_steps(lines_to_learn()) + len(cases)


def leave_families_out(cases: Sequence[Case], advance: Advance) -> Iterator[Scored]:
    """The same, each case read by a detector that never saw its family: neither rules written for it nor its lines.

    Each case's detector misses half of all families: stricter than leaving out one at a time. The limits are those that
    are shipped. Needs scikit-learn and torch, and some minutes a half.
    """
    from warmline.safety.fitting import left_out

    shipped = shipped_calibration()
    for detector, unseen in left_out(cases, advance):
        calibration = replace(shipped, hints=detector.calibration.hints, mix=detector.calibration.mix)
        yield from score(unseen, replace(detector, calibration=calibration), advance)
