"""Pictures of a run: loss curves, F1 per label, heads beside their floors. What cannot be drawn is said, not raised."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from warmline.evaluate.drawing import BLUE, GREY, ORANGE, PREDICTORS, new_figure, save, tidy
from warmline.evaluate.plots_heads import draw_abstain, draw_confusion, draw_reliability
from warmline.evaluate.plots_replies import draw_lengths
from warmline.evaluate.results import Head, Stage, Summary, SummaryError, read_summary
from warmline.evaluate.stats import Interval
from warmline.evaluate.task_rows import lengths, read_tasks
from warmline.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS = {"train": (GREY, ""), "validation": (BLUE, "o")}
PANEL = (3.4, 2.4)  # inches
NUM_COLUMNS = 3  # of panels

Curve = list[tuple[int, float]]  # step, mean loss
Curves = dict[str, dict[str, Curve]]  # term -> split -> curve


class Plots(NamedTuple):
    """What was drawn (caption and file, in order), and one sentence for everything that was not."""

    drawn: tuple[tuple[str, Path], ...]
    left_out: tuple[str, ...]


def draw_plots(run: RunDir) -> Plots:
    """Draw every plot that the run's files have the data for into `plots/`; missing or broken data is reported."""
    drawn: list[tuple[str, Path]] = []
    left_out: list[str] = []
    curves = read_curves(run.metrics)
    for stage, terms in curves.items():
        drawn.append((f"Losses of stage {stage}", save(_draw_curves(stage, terms), run, f"loss.{stage}")))
    if not curves:
        left_out.append("Loss curves: metrics.jsonl has no losses.")
    for suite, counts in lengths(read_tasks(run)).items():
        drawn.append((f"Length of the replies of {suite}", save(draw_lengths(suite, counts), run, f"lengths.{suite}")))
    try:
        summary = read_summary(run)
    except SummaryError as error:
        left_out.append(f"Heads: {error}.")
        return Plots(tuple(drawn), tuple(left_out))
    pictures = list(_draw_heads(run, summary)) if summary else []
    if not pictures:
        left_out.append("Heads: no stage has readings of a labelled turn." if summary else "Heads: nothing is scored.")
    drawn += pictures
    return Plots(tuple(drawn), tuple(left_out))


def _draw_heads(run: RunDir, summary: Summary) -> Iterator[tuple[str, Path]]:
    for name, stage in summary.stages.items():
        if any("macro_f1" in head.metrics for head in stage.heads.values()):
            figure = _draw_floors(name, stage)
            yield f"Macro-F1 of the heads of stage {name} and of their floors", save(figure, run, f"heads.{name}")
        for head_name, head in stage.heads.items():
            if head.labels:
                figure = _draw_labels(name, head_name, head)
                yield f"F1 per {head_name} label, stage {name}", save(figure, run, f"labels.{head_name}.{name}")
        yield from _draw_trust(run, name, stage)


def _draw_trust(run: RunDir, name: str, stage: Stage) -> Iterator[tuple[str, Path]]:
    measured = {head_name: head.calibration for head_name, head in stage.heads.items() if head.calibration}
    if measured:
        figure = draw_reliability(name, measured)
        yield f"Accuracy by confidence of the heads of stage {name}", save(figure, run, f"reliability.{name}")
        figure = draw_abstain(name, measured)
        yield f"Accuracy of stage {name} where unsure turns are not answered", save(figure, run, f"abstain.{name}")
    for head_name, head in stage.heads.items():
        if figure := draw_confusion(name, head_name, head.confusion):
            caption = f"What the {head_name} head of stage {name} takes for what"
            yield caption, save(figure, run, f"confusion.{head_name}.{name}")


def read_curves(file: Path) -> dict[str, Curves]:
    """The losses in metrics.jsonl by stage, term and split; rows and values that are not numbers are passed over."""
    stages: dict[str, Curves] = {}
    if not file.is_file():
        return stages
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
            stage, split, step = str(row["stage"]), str(row["split"]), int(row["step"])
            values = [("total", row.get("loss"))] + [
                (name, term.get("value")) for name, term in row.get("terms", {}).items() if term.get("count", 1)
            ]
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        for term, value in values:
            if isinstance(value, int | float) and math.isfinite(value):
                curves = stages.setdefault(stage, defaultdict(dict))
                curves[term].setdefault(split, []).append((step, float(value)))
    return stages


def _draw_curves(stage: str, terms: Curves) -> "Figure":
    num_columns = min(NUM_COLUMNS, len(terms))
    num_rows = math.ceil(len(terms) / num_columns)
    figure = new_figure(PANEL[0] * num_columns, PANEL[1] * num_rows + 0.5)
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes, (term, splits) in zip(grid, terms.items(), strict=False):
        for split, curve in splits.items():
            colour, marker = SPLITS.get(split, (ORANGE, "s"))
            steps, values = zip(*sorted(curve), strict=True)
            # A single value has no line: it needs a marker to be seen.
            shape = marker or ("." if len(curve) == 1 else "")
            axes.plot(steps, values, color=colour, marker=shape, markersize=3.5, linewidth=1.2, label=split)
        axes.set_title(term, fontsize=10)
        tidy(axes)
    for axes in grid[len(terms) :]:
        axes.set_visible(False)
    for at in range(0, len(terms), num_columns):
        grid[at].set_ylabel("mean loss")
    legend = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(legend.values(), legend.keys(), loc="outside upper right", ncols=len(legend), frameon=False)
    figure.supxlabel("optimizer step", fontsize=10)
    figure.suptitle(f"Stage {stage}: loss by term", x=0.01, ha="left")
    return figure


def _draw_labels(stage: str, name: str, head: Head) -> "Figure":
    scores = [score for score in head.labels if score.support][::-1]  # the most frequent label on top
    figure = new_figure(6.4, 1.2 + 0.24 * len(scores))
    axes = figure.subplots()
    bars = axes.barh([f"{score.label} ({score.support})" for score in scores], [score.f1 for score in scores], 0.7)
    for bar in bars:
        bar.set_color(BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlim(0, 1.08)
    axes.set_ylim(-0.6, len(scores) - 0.4)
    axes.set_xlabel("F1 (in brackets: how often the label occurs)")
    axes.set_title(f"Stage {stage}: {name}, F1 per label", loc="left")
    tidy(axes)
    axes.grid(axis="y", visible=False)
    return figure


def _draw_floors(stage_name: str, stage: Stage) -> "Figure":
    heads = {name: head.metrics["macro_f1"] for name, head in stage.heads.items() if "macro_f1" in head.metrics}
    predictors = ["head", *dict.fromkeys(floor for metric in heads.values() for floor in metric.floors)]
    figure = new_figure(6.4, 1.5 + 0.75 * len(heads))
    axes = figure.subplots()
    for number, predictor in enumerate(predictors):
        colour, marker = PREDICTORS[number % len(PREDICTORS)]
        points = [
            (
                at + 0.18 * (number - (len(predictors) - 1) / 2),
                metric.value if number == 0 else metric.floors[predictor],
            )
            for at, metric in enumerate(heads.values())
            if number == 0 or predictor in metric.floors
        ]
        places, estimates = zip(*points, strict=True)
        axes.errorbar(
            [estimate.value for estimate in estimates],
            places,
            xerr=_arms(estimates),
            fmt=marker,
            color=colour,
            capsize=3,
            markersize=6,
            label=predictor,
        )
    axes.set_yticks(range(len(heads)), list(heads))
    axes.set_ylim(len(heads) - 0.5, -0.5)  # the first head on top
    axes.set_xlim(left=-0.01)  # a marker at 0 stays whole
    axes.set_xlabel("macro-F1, with 95 % interval")
    axes.set_title(f"Stage {stage_name}: heads and floors", loc="left")
    figure.legend(loc="outside lower center", ncols=len(predictors), frameon=False, fontsize=9)
    tidy(axes)
    return figure


def _arms(estimates: tuple[Interval, ...]) -> list[list[float]]:
    """Lengths of the error bars; none where there is no interval, and none to the side where it ends too early."""
    low = [max(0.0, value - (value if low is None else low)) for value, low, _ in estimates]
    high = [max(0.0, (value if high is None else high) - value) for value, _, high in estimates]
    return [low, high]
