"""The curve as a figure: test accuracy over the student's number of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from krscale.config import is_share
from krscale.files import write_atomic
from krscale.report.axes import (
    accuracy_range,
    bars,
    finished,
    marked,
    names_of_sizes,
    percent,
    size_range,
)
from krscale.report.result import Curve
from krscale.report.table import seeds_of, short_number, span

# The palette of Okabe and Ito, distinguishable with every common colour blindness and in print.
_KNOWN = {"plain": ("#000000", "s"), "kd": ("#0072B2", "^"), "kr": ("#D55E00", "o")}
_COLOURS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C8C8C")
_MARKERS = ("D", "v", "P", "X", "p", "<", ">", "*", "h", "d")
STYLE: Any = {
    "font.size": 11.0,
    "axes.titlesize": 12.0,
    "legend.fontsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E0E0E0",
}


def draw_curve(curve: Curve, path: Path) -> None:
    """Draw the figure and write it atomically.

    One line per method (mean over seeds, 95 % intervals), the teacher as a dashed line, rings
    around students on the Pareto front.

    Args:
        curve: The result of a search.
        path: Path of the file; its suffix determines the format (`.png`, `.pdf`, `.svg`).
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw_methods(axes, curve)
        _draw_front(axes, curve)
        _draw_teacher(axes, curve)
        _label(axes, curve)
        kind = path.suffix.removeprefix(".") or "png"
        write_atomic(path, lambda temporary: figure.savefig(temporary, format=kind))


def _draw_methods(axes: Axes, curve: Curve) -> None:
    styles = styles_of(curve.methods)
    for method in curve.methods:
        found = finished(curve, method)
        results = [result for _, result in found]
        colour, marker = styles[method]
        # A marker at 100 % extends above the axis and must not be clipped.
        axes.errorbar(
            plotted_sizes(curve, method, curve.methods), [percent(result) for result in results],
            yerr=bars(results), color=colour, marker=marker, markersize=6, linewidth=1.6,
            elinewidth=1.1, capsize=3, label=method, clip_on=False, zorder=3,
        )  # fmt: skip


def _draw_front(axes: Axes, curve: Curve) -> None:
    if not curve.pareto:
        return
    axes.plot(
        [shifted(entry.num_parameters, entry.method, curve.methods) for entry in curve.pareto],
        [100 * entry.test_accuracy for entry in curve.pareto],
        linestyle="none", marker="o", markersize=13, markerfacecolor="none",
        markeredgecolor="#555555", markeredgewidth=1.2, label="Pareto front (by validation)",
        clip_on=False,
    )  # fmt: skip


def _draw_teacher(axes: Axes, curve: Curve) -> None:
    teacher = curve.teacher
    axes.axhline(
        100 * teacher["test_accuracy"], color="#777777", linestyle=(0, (5, 3)), linewidth=1.3,
        label=f"teacher ({short_number(teacher['num_parameters'])} parameters)",
    )  # fmt: skip


def _label(axes: Axes, curve: Curve) -> None:
    label_sizes(axes, [curve], curve.methods)
    axes.set_ylabel("Test accuracy (%)")
    axes.set_title(f"{curve.name}: accuracy versus capacity", loc="left", pad=12)
    axes.set_ylim(*accuracy_range([curve]))
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] not in curve.methods)
    axes.legend(
        [handles[i] for i in order], [labels[i] for i in order],
        loc="best", frameon=True, framealpha=0.9, edgecolor="none",
        title=_legend_title(curve), alignment="left",
    )  # fmt: skip


def label_sizes(axes: Axes, curves: Sequence[Curve], methods: Sequence[str]) -> None:
    """Make the horizontal axis logarithmic, with the range of the data and a label at each size.

    Args:
        axes: Axes on which the methods are drawn.
        curves: Results of searches; for a single one, the shares of the teacher are added below.
        methods: All methods that are drawn.
    """
    axes.set_xscale("log")
    drawn = [x for curve in curves for m in curve.methods for x in plotted_sizes(curve, m, methods)]
    sizes = names_of_sizes(curves, "num_parameters")
    ends = size_range(drawn or sizes)
    shown = marked(sizes, ends)
    alone = len(curves) == 1
    labels = [f"{short_number(x)}\n{sizes[x]}" if alone else short_number(x) for x in shown]
    axes.set_xlim(*ends)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.xaxis.set_minor_locator(NullLocator())
    shares = all(is_share(size.capacity) for curve in curves for size in curve.sizes)
    meaning = "share of the teacher's" if shares else "name"
    below = f" (below: {meaning})" if alone else ""
    axes.set_xlabel(f"Student parameters{below}, log scale")


def plotted_sizes(curve: Curve, method: str, methods: Sequence[str]) -> list[float]:
    """Return the positions of a method's finished students on the axis of parameters."""
    sizes = [size.size_of(method).num_parameters for size, _ in finished(curve, method)]
    return [shifted(size, method, methods) for size in sizes]


def _legend_title(curve: Curve) -> str:
    if not curve.num_unlabelled:
        return _seeds(curve)
    return f"{_seeds(curve)};\n{curve.num_unlabelled:,} images without labels"


def _seeds(curve: Curve) -> str:
    counts = seeds_of(curve)
    if max(counts, default=0) < 2:
        return "one seed"
    return f"mean, 95 % interval, {span(counts)} seeds"


def styles_of(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return fixed colours for the three methods of every report, and further ones for others."""
    others = [name for name in methods if name not in _KNOWN]
    further = {name: _further(number) for number, name in enumerate(others)}
    return {name: _KNOWN.get(name) or further[name] for name in methods}


def _further(number: int) -> tuple[str, str]:
    """Return one of five colours and one of ten markers for the method with this number.

    After every ten methods the markers are shifted by one, so that fifty methods differ in colour
    or marker.
    """
    moved = number + number // len(_MARKERS)
    return _COLOURS[number % len(_COLOURS)], _MARKERS[moved % len(_MARKERS)]


def shifted(size: int, method: str, methods: Sequence[str]) -> float:
    """Shift the methods by a few percent, so that their intervals do not cover each other."""
    offset = list(methods).index(method) - (len(methods) - 1) / 2
    return size * math.exp(0.035 * offset)
