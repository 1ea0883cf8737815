"""Ablations and sweeps: a grid of ordinary runs with names of their own, and one table over seeds.

Intervals over seeds are Student's t at 95 %: mean +- t(n - 1) s / sqrt(n). With two seeds t is 12.7: an interval that
says so little is what two seeds are worth. One seed has none. The difference from the first row is taken seed by seed.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from warmline.evaluate.results import Stage, read_summary
from warmline.evaluate.rows import StrictRow, digest
from warmline.evaluate.stats import Interval
from warmline.evaluate.wording import difference, estimate, table
from warmline.run_dir import STAGES, RunDir, write_text

MAX_CELLS = 200
MAX_NAME = 120  # characters of a run's name
# 97.5 % quantiles of Student's t with 1 to 30 degrees of freedom; beyond, the last one is a little too wide.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class AblationError(ValueError):
    """A variation that cannot be read, or a grid that cannot be run."""


class Variation(NamedTuple):
    """A setting and the values that it takes in turn, as texts for `--set`."""

    key: str
    values: tuple[str, ...]


class Cell(NamedTuple):
    """One run of the grid."""

    recipe: str  # name or file
    variant: str  # what differs from other cells but for the seed; a row of the table
    seed: int | None  # None: the recipe's own
    overrides: tuple[str, ...]  # for `--set`
    run: str  # the run's name


class Row(StrictRow):
    """One variant, over its seeds."""

    variant: str
    runs: tuple[str, ...]  # finished ones
    failed: tuple[str, ...]  # runs without scores; they are in no number
    stage: str | None  # whose scores these are; None: no run is finished
    values: dict[str, dict[str, float]]  # metric -> run -> value


def parse_variation(text: str) -> Variation:
    """What stands after `--vary`. Raises AblationError.

    >>> parse_variation("model.lora.r=4,8")
    Variation(key='model.lora.r', values=('4', '8'))
    >>> parse_variation("model.lora.targets=[q_proj, v_proj],all-linear").values
    ('[q_proj, v_proj]', 'all-linear')
    """
    key, sign, rest = text.partition("=")
    parts = _split(rest)
    values = tuple(value.strip() for value in parts)
    if not sign or not key.strip() or not all(values) or ",".join(parts) != rest:
        raise AblationError(f"--vary {text!r}: expected a.b=A,B,C")
    if len({*values}) != len(values):
        raise AblationError(f"--vary {text!r}: a value stands there twice")
    return Variation(key.strip(), values)


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of `--seeds 1,2,3`. Raises AblationError."""
    try:
        seeds = tuple(int(each) for each in text.split(","))
    except ValueError:
        raise AblationError(f"--seeds {text!r}: expected whole numbers, as 1,2,3") from None
    if len({*seeds}) != len(seeds):
        raise AblationError(f"--seeds {text!r}: a seed stands there twice")
    return seeds


def grid(
    recipes: Mapping[str, str], variations: Sequence[Variation], seeds: Sequence[int], overrides: Sequence[str] = ()
) -> list[Cell]:
    """Every recipe with every combination of values and every seed, the first values first.

    `recipes`: what stands in a run's name -> recipe. `overrides` are set in every cell. Raises AblationError.
    """
    keys = Counter(variation.key for variation in variations)
    if twice := next((key for key, count in keys.items() if count > 1), None):
        raise AblationError(f"--vary {twice}: stands there twice")
    if "seed" in keys:
        raise AblationError("--vary seed: give seeds with --seeds, so that the table is over them")
    short = Counter(variation.key.rsplit(".", 1)[-1] for variation in variations)
    names = [key if short[key.rsplit(".", 1)[-1]] > 1 else key.rsplit(".", 1)[-1] for key in keys]
    cells = []
    for (name, recipe), values in itertools.product(
        recipes.items(), itertools.product(*(v.values for v in variations))
    ):
        settings = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        parts = [f"{short_name}={value}" for short_name, value in zip(names, values, strict=True)]
        for seed in seeds or (None,):
            own = [*overrides, *settings, *([] if seed is None else [f"seed={seed}"])]
            label = [name, *parts, *([] if seed is None else [f"seed={seed}"])]
            cells.append(Cell(recipe, " ".join([name, *parts]), seed, tuple(own), _run_name(label, overrides)))
    if len(cells) > MAX_CELLS:
        raise AblationError(f"{len(cells)} runs are more than {MAX_CELLS}: vary less at a time")
    if len(cells) < 2:
        raise AblationError("nothing varies: give --vary, --variant or several --seeds")
    if len({cell.run for cell in cells}) != len(cells):
        raise AblationError("two cells would have the same run; name the recipes differently")
    return cells


def run_cells(cells: Sequence[Cell], runs: Path, run: Callable[[Cell], int]) -> list[str]:
    """Let `run` make every cell's run; returns the names of those that failed. A failed cell stops no other.

    `run` gives an exit code, and is called for finished cells too: an ordinary run that is finished returns at once,
    and refuses if its settings changed.
    """
    return [cell.run for cell in cells if run(cell) != 0 or read_summary(RunDir(runs / cell.run)) is None]


def rows_of(cells: Sequence[Cell], runs: Path, failed: Sequence[str] = ()) -> list[Row]:
    """What the finished runs of each variant scored, of the latest stage. Raises SummaryError for a broken summary."""
    rows = []
    for variant in dict.fromkeys(cell.variant for cell in cells):
        names = [cell.run for cell in cells if cell.variant == variant]
        values: dict[str, dict[str, float]] = {}
        finished: dict[str, str] = {}
        for name in names:
            summary = None if name in failed else read_summary(RunDir(runs / name))
            if summary is None or not (stages := [stage for stage in STAGES if stage in summary.stages]):
                continue
            finished[name] = stages[-1]
            for metric, value in metrics_of(summary.stages[stages[-1]]).items():
                values.setdefault(metric, {})[name] = value
        rows.append(
            Row(
                variant=variant,
                runs=tuple(finished),
                failed=tuple(name for name in names if name not in finished),
                stage=", ".join(dict.fromkeys(finished.values())) or None,
                values=values,
            )
        )
    return rows


def metrics_of(stage: Stage) -> dict[str, float]:
    """The numbers of a stage that a table of variants shows."""
    overall = stage.responses.overall
    found = {
        name: interval.value
        for name, interval in (("loss per token", overall.loss_per_token), ("bits per char", overall.bits_per_char))
        if interval is not None
    }
    for head, scores in stage.heads.items():
        found |= {f"{head} {name}": metric.value.value for name, metric in scores.metrics.items()}
    return found


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean with Student's t interval.

    >>> [round(x, 2) for x in over_seeds([1.0, 2.0, 3.0]) if x is not None]
    [2.0, -0.48, 4.48]
    """
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = T_975[min(len(values) - 1, len(T_975)) - 1] * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def as_markdown(rows: Sequence[Row], cells: Sequence[Cell]) -> str:
    """A table a metric: each variant over its seeds, and its difference from the first variant, seed by seed."""
    seeds = {cell.run: cell.seed for cell in cells}
    parts = []
    for metric in dict.fromkeys(metric for row in rows for metric in row.values):
        first = _by_seed(rows[0], metric, seeds)
        lines = []
        for row in rows:
            own = _by_seed(row, metric, seeds)
            gaps = [own[seed] - first[seed] for seed in own if seed in first]
            gap = "" if row is rows[0] else difference(over_seeds(gaps)) if gaps else "no seed in common"
            lines.append((row.variant, len(own), estimate(over_seeds([*own.values()]) if own else None), gap))
        header = ("variant", "seeds", f"{metric} [95 % over seeds]", f"difference from {rows[0].variant}")
        parts.append(table(header, lines))
    failed = [name for row in rows for name in row.failed]
    if failed:
        parts.append(f"{len(failed)} runs have no scores and are in no number: {', '.join(failed)}")
    stages = dict.fromkeys(row.stage for row in rows if row.stage)
    parts.append(f"Scores are those of the stage {', '.join(stages) or 'none'}.")
    return "\n\n".join(parts) + "\n"


def write_rows(rows: Sequence[Row], file: Path) -> None:
    """Write the rows as JSON Lines, for the report."""
    write_text(file, "".join(row.model_dump_json() + "\n" for row in rows))


def _by_seed(row: Row, metric: str, seeds: Mapping[str, int | None]) -> dict[int | None, float]:
    return {seeds[name]: value for name, value in row.values.get(metric, {}).items()}


def _split(text: str) -> list[str]:
    """The values between commas; commas inside brackets and quotes part nothing."""
    return re.findall(r"(?:\[[^\]]*\]|\{[^}]*\}|\"[^\"]*\"|'[^']*'|[^,])+", text) if text else [""]


def _run_name(parts: Sequence[str], overrides: Sequence[str]) -> str:
    """A folder's name that says what varies; settings that all cells share are a short digest in it."""
    plain = ["-".join(re.findall(r"[\w.]+", part)) for part in parts]
    shared = [digest(*sorted(overrides))[:6]] if overrides else []
    name = "--".join([*plain, *shared])
    changed = len(name) > MAX_NAME or any(re.search(r"[^\w.=+-]", part) for part in parts)
    return f"{name[:MAX_NAME]}--{digest(*parts)[:6]}" if changed else name
