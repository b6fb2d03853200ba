"""Several searches in one figure: colour and marker by method, line style by run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from krscale.files import write_atomic
from krscale.report.axes import accuracy_range, bars, finished, percent
from krscale.report.figure import STYLE, label_sizes, plotted_sizes, styles_of
from krscale.report.result import Curve

_LINES: Sequence[Any] = (
    "-", "--", ":", "-.",
    (0, (9, 3)), (0, (9, 2, 3, 2)), (0, (6, 2, 1, 2, 1, 2)), (0, (1, 4)),
)  # fmt: skip
"""Line styles of the runs, repeated after the last; dashes and gaps in units of line width."""


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Draw the methods of all runs over the student's parameters, and write the file atomically.

    Args:
        curves: Results of searches.
        path: Path of the file; its suffix determines the format (`.png`, `.pdf`, `.svg`).
    """
    methods = list(dict.fromkeys(name for curve in curves for name in curve.methods))
    styles = styles_of(methods)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for number, curve in enumerate(curves):
            line = _LINES[number % len(_LINES)]
            for method in curve.methods:
                colour, marker = styles[method]
                results = [result for _, result in finished(curve, method)]
                axes.errorbar(
                    plotted_sizes(curve, method, methods), [percent(r) for r in results],
                    yerr=bars(results), color=colour, marker=marker, linestyle=line, markersize=5,
                    linewidth=1.5, elinewidth=1.0, capsize=2.5, label=f"{curve.name}: {method}",
                    clip_on=False, zorder=3,
                )  # fmt: skip
        label_sizes(axes, curves, methods)
        axes.set_ylabel("Test accuracy (%)")
        axes.set_title("Accuracy versus capacity", loc="left", pad=12)
        axes.set_ylim(*accuracy_range(curves))
        axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none", fontsize=8.5)
        kind = path.suffix.removeprefix(".") or "png"
        write_atomic(path, lambda temporary: figure.savefig(temporary, format=kind))
