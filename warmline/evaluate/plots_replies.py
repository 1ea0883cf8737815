"""Pictures of replies: how long they are, by suite and stage."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from warmline.evaluate.drawing import BLUE, ORANGE, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHISKERS = (5, 95)  # percentiles


def draw_lengths(suite: str, counts: Mapping[str, Sequence[int]]) -> "Figure":
    """Words of the replies of each stage: median, quarters, and 5 to 95 %."""
    figure = new_figure(6.4, 1.4 + 0.5 * len(counts))
    axes = figure.subplots()
    names = [*counts][::-1]  # the first stage on top
    axes.boxplot(
        [list(counts[name]) for name in names],
        orientation="horizontal",
        tick_labels=[f"{name} ({len(counts[name])})" for name in names],
        whis=WHISKERS,
        showfliers=False,
        widths=0.55,
        medianprops={"color": ORANGE, "linewidth": 2},
        boxprops={"color": BLUE},
        whiskerprops={"color": BLUE},
        capprops={"color": BLUE},
    )
    axes.set_xlim(left=0)
    axes.set_xlabel("words a reply (box: middle half, line: median, whiskers: 5 to 95 %)")
    axes.set_title(f"{suite}: length of replies", loc="left")
    tidy(axes)
    axes.grid(axis="y", visible=False)
    return figure
