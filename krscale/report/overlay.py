"""Several searches in one figure: colour and marker by method, line style by run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from krscale.files import write_atomic
from krscale.report.figure import STYLE, shifted, styles_of
from krscale.report.interval import half_width
from krscale.report.result import Curve

_LINES = ("-", "--", ":", "-.")


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Draw the methods of all runs over the student's parameters, and write it atomically.

    Args:
        curves: Results of searches.
        path: Where to write; the suffix chooses the format (`.png`, `.pdf`, `.svg`).
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
                points = [
                    (size.size_of(method).num_parameters, result)
                    for size in sorted(curve.sizes, key=lambda r: r.num_parameters)
                    if (result := size.methods.get(method)) and result.test_accuracy is not None
                ]
                axes.errorbar(
                    [shifted(size, method, methods) for size, _ in points],
                    [100 * (result.test_accuracy or 0.0) for _, result in points],
                    yerr=[100 * (half_width(r.test_accuracies) or 0.0) for _, r in points],
                    color=colour, marker=marker, linestyle=line, markersize=5, linewidth=1.5,
                    elinewidth=1.0, capsize=2.5, label=f"{curve.name}: {method}",
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("Student parameters, log scale")
        axes.set_ylabel("Test accuracy (%)")
        axes.set_title("Accuracy versus capacity", loc="left")
        axes.set_ylim(top=min(axes.get_ylim()[1], 101.0), bottom=max(axes.get_ylim()[0], -1.0))
        axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none", fontsize=8.5)
        kind = path.suffix.removeprefix(".") or "png"
        write_atomic(path, lambda temporary: figure.savefig(temporary, format=kind))
