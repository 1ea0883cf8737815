"""What every picture shares: colours, size, a quiet frame, and how it is written."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmline.run_dir import RunDir, write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision. Markers differ too, for print in grey.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#666666"
PREDICTORS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"))  # the head first, then its floors
DPI = 120  # pixels per inch


def new_figure(width: float, height: float) -> "Figure":
    """An empty picture; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: no global state, no window, and safe in a server's thread.
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: "Axes") -> None:
    """A light grid behind the data, no frame."""
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: "Figure", run: RunDir, name: str) -> Path:
    """Write `plots/NAME.png` of the run."""
    file = run.path / "plots" / f"{name}.png"
    # Without the software's version in it the same data gives the same file.
    options: dict[str, Any] = {"format": "png", "metadata": {"Software": None}}
    write_atomic(file, lambda draft: figure.savefig(draft, **options))
    return file
