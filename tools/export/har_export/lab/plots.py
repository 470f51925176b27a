"""Plots for docs/plots: SVG that is the same whenever the figures are the same, and that reads in grey."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": grey, "marker": marker, "markersize": 5, "linewidth": 1, "markerfacecolor": inside}
    for grey, marker, inside in (
        ("#000000", "o", "#000000"),
        ("#777777", "s", "#ffffff"),
        ("#333333", "^", "#ffffff"),
        ("#999999", "D", "#999999"),
        ("#555555", "v", "#ffffff"),
        ("#000000", "x", "#000000"),
    )
)
"""Curves in the order of their importance. Markers tell them apart; shades of grey only help."""


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as SVG, without the date and with text as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")
