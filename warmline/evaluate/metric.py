"""One number beside its floors: draws become an estimate, a paired difference to the best floor and a verdict."""

from collections.abc import Mapping

from warmline.evaluate.results import Metric
from warmline.evaluate.stats import Better, Floats, Resampling, verdict

HEAD = "head"  # the predictor that is held against the others

Draws = Mapping[str, Floats]  # predictor -> draws of one metric


def metric(draws: Draws, resampling: Resampling, better: Better = "higher", *, floors_compete: bool = True) -> Metric:
    """`draws` of HEAD beside those of its floors, all on the same items and resamples.

    `floors_compete` False: the others stand there to be seen, and nothing is won against them.
    """
    floors = {name: resampling.interval(draws_R) for name, draws_R in draws.items() if name != HEAD}
    best = (max if better == "higher" else min)(floors, key=lambda name: floors[name].value, default=None)
    if not floors_compete:
        best = None
    difference = None if best is None else resampling.interval(draws[HEAD] - draws[best])
    return Metric(
        value=resampling.interval(draws[HEAD]),
        better=better,
        floors=floors,
        best_floor=best,
        difference=difference,
        verdict=None if difference is None else verdict(difference, better),
    )
