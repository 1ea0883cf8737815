"""Pictures of how far heads can be trusted: reliability, abstaining, confusions."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from warmline.evaluate.drawing import BLUE, GREY, new_figure, tidy
from warmline.evaluate.results import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LABELS = 32  # of a confusion matrix that can still be read
PANEL = (3.2, 3.0)  # inches
NUM_COLUMNS = 2  # of panels


def draw_reliability(stage: str, measured: Mapping[str, Calibration]) -> "Figure":
    """Accuracy by mean confidence in bins of equal mass; the diagonal is a head that means what it says."""
    figure, panels = _panels(len(measured))
    for axes, (name, calibration) in zip(panels, measured.items(), strict=False):
        bins = calibration.reliability
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        values = np.array([each.accuracy.value for each in bins])
        low = values - [each.accuracy.low or 0.0 for each in bins]
        high = [1.0 if each.accuracy.high is None else each.accuracy.high for each in bins] - values
        arms = np.maximum([low, high], 0.0)
        axes.errorbar(
            [each.confidence for each in bins], values, yerr=arms, fmt="o-", color=BLUE, capsize=2, markersize=4
        )
        error = calibration.metrics["ece_equal_mass"].value.value
        axes.set_title(f"{name} ({sum(each.n for each in bins)} turns, error {error:.3f})", fontsize=9)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        tidy(axes)
    figure.supxlabel("confidence", fontsize=10)
    figure.supylabel("accuracy, with 95 % interval", fontsize=10)
    figure.suptitle(f"Stage {stage}: reliability", x=0.01, ha="left")
    return figure


def draw_abstain(stage: str, measured: Mapping[str, Calibration]) -> "Figure":
    """Accuracy by the share of turns that are answered, the surest first; the line is accuracy on all of them."""
    figure, panels = _panels(len(measured))
    for axes, (name, calibration) in zip(panels, measured.items(), strict=False):
        points = calibration.abstain
        axes.axhline(points[-1].accuracy, color=GREY, linewidth=1, linestyle="--")
        axes.plot(
            [point.coverage for point in points], [point.accuracy for point in points], "o-", color=BLUE, markersize=3
        )
        area = calibration.metrics["aurc"].value.value
        axes.set_title(f"{name} (area above it {area:.3f})", fontsize=9)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.03)
        tidy(axes)
    figure.supxlabel("share of turns answered, the surest first", fontsize=10)
    figure.supylabel("accuracy", fontsize=10)
    figure.suptitle(f"Stage {stage}: what abstaining is worth", x=0.01, ha="left")
    return figure


def draw_confusion(stage: str, name: str, confusion: Mapping[str, Mapping[str, int]]) -> "Figure | None":
    """Shares of each recorded label's turns by predicted label; None without turns or with more labels than can be read."""
    labels = sorted({*confusion, *(guess for guesses in confusion.values() for guess in guesses)})
    if not labels or len(labels) > MAX_LABELS:
        return None
    recorded = [label for label in labels if label in confusion]
    counts = np.array([[confusion[right].get(guess, 0) for guess in labels] for right in recorded])
    shares = counts / counts.sum(axis=1, keepdims=True)
    figure = new_figure(2.6 + 0.3 * len(labels), 2.2 + 0.3 * len(recorded))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axes.set_yticks(
        range(len(recorded)), [f"{label} ({counts[at].sum()})" for at, label in enumerate(recorded)], fontsize=8
    )
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", fontsize=6, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("recorded (turns)")
    figure.suptitle(f"Stage {stage}: {name}, % of each recorded label", x=0.01, ha="left")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _panels(num: int) -> tuple["Figure", list[Any]]:
    num_columns = min(NUM_COLUMNS, num)
    num_rows = math.ceil(num / num_columns)
    figure = new_figure(PANEL[0] * num_columns, PANEL[1] * num_rows + 0.4)
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flatten())
    for axes in panels[num:]:
        axes.set_visible(False)
    return figure, panels[:num]
