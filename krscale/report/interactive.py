"""The curve as an interactive figure: one HTML file that works offline.

The page contains plotly.js (5 MB), so that it works from a disk, in a mail and as an artifact in
MLflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from krscale.config import is_share
from krscale.report.axes import (
    accuracy_range,
    bars,
    finished,
    marked,
    names_of_sizes,
    percent,
    size_range,
)
from krscale.report.figure import shifted, styles_of
from krscale.report.interval import half_width
from krscale.report.rendering import write_rendered
from krscale.report.result import Curve, ParetoEntry
from krscale.report.students import CurveSize, MethodResult, Size
from krscale.report.table import counted, short_latency, short_number
from krscale.showing import printable

_AXES = {
    "num_parameters": ("Parameters", "Student parameters, log scale"),
    "flops": ("FLOPs", "FLOPs of one image (2 per multiply-add), log scale"),
    "latency_ms": ("Latency", "Milliseconds of one image on one CPU thread, log scale"),
}
"""Field of a size -> label of its button, and title of its axis."""
_MARKERS = {
    "s": "square", "^": "triangle-up", "o": "circle", "D": "diamond", "v": "triangle-down",
    "P": "cross", "X": "x", "p": "pentagon", "<": "triangle-left", ">": "triangle-right",
    "*": "star", "h": "hexagon", "d": "diamond-tall",
}  # fmt: skip
"""Markers of the printed figure by plotly's names."""
_DASHES = (
    "solid", "dash", "dot", "dashdot",
    "16px,5px", "16px,4px,6px,4px", "11px,4px,2px,4px,2px,4px", "2px,8px",
)  # fmt: skip
"""Line styles of the runs, repeated after the last; lengths of dashes and gaps."""
_BEHAVIOUR = {
    "displaylogo": False,
    "responsive": True,
    # plotly resets to the initial range, that of parameters, even if another button was chosen.
    "doubleClick": "autosize",
    # Among plotly's own buttons are two that upload the chart to its makers' servers.
    "modeBarButtonsToRemove": [
        "resetScale2d", "select2d", "lasso2d", "sendChartToCloud", "sendDataToCloud",
    ],
    "plotlyServerURL": "",
}  # fmt: skip
_Point = Size | ParetoEntry


def write_interactive(curves: Sequence[Curve], path: Path) -> None:
    """Draw the methods of one run, or of several, and write the page atomically.

    Args:
        curves: Results of searches; several are distinguished by line style.
        path: Path of the HTML file.
    """
    import plotly.io  # takes a second, so it is imported only for drawing

    chart = plotly.io.to_html(
        _figure(curves),
        config=_BEHAVIOUR,
        include_plotlyjs=True,
        include_mathjax=False,
        full_html=False,
        default_height="34rem",
        validate=False,
    )
    title = f"Accuracy versus capacity: {', '.join(curve.name for curve in curves)}"
    content = Markup(chart)  # noqa: S704 - plotly escapes what its script holds
    unlabelled = [curve for curve in curves if curve.num_unlabelled]
    write_rendered(
        path, "curve.html.j2", title=title, chart=content, num_runs=len(curves),
        shares=all(is_share(size.capacity) for curve in curves for size in curve.sizes),
        unlabelled=[(curve.name, f"{curve.num_unlabelled:,}") for curve in unlabelled],
    )  # fmt: skip


def _figure(curves: Sequence[Curve]) -> dict[str, Any]:
    methods = list(dict.fromkeys(name for curve in curves for name in curve.methods))
    traces: list[dict[str, Any]] = []
    points: list[list[tuple[_Point, str]]] = []
    for number, curve in enumerate(curves):
        prefix = f"{_escaped(curve.name)}: " if len(curves) > 1 else ""
        dash = _DASHES[number % len(_DASHES)]
        for method in curve.methods:
            found = finished(curve, method)
            points.append([(size.size_of(method), method) for size, _ in found])
            traces.append(_line(found, method, methods, prefix, dash))
        points.append([(entry, entry.method) for entry in curve.pareto])
        traces.append(_rings(curve, methods, prefix))
    axes = {}
    buttons = []
    for field, (label, _) in _AXES.items():
        places = [_places(of_trace, field, methods) for of_trace in points]
        axes[field] = _size_axis(curves, field, [x for of_trace in places for x in of_trace])
        changed = {f"xaxis.{name}": value for name, value in axes[field].items()}
        buttons.append({"label": label, "method": "update", "args": [{"x": places}, changed]})
    return {"data": traces, "layout": _layout(curves, axes["num_parameters"], buttons)}


def _size_axis(curves: Sequence[Curve], field: str, drawn: Sequence[float]) -> dict[str, Any]:
    """Return the settings of the horizontal axis for one kind of size, as plotly takes them."""
    sizes = names_of_sizes(curves, field)
    ends = size_range(drawn or sizes)
    shown = marked(sizes, ends)
    number = (lambda x: short_latency(x, 2)) if field == "latency_ms" else short_number
    return {
        "title": {"text": _AXES[field][1]},
        "range": [math.log10(end) for end in ends],
        "tickvals": shown,
        "ticktext": [
            f"{number(x)}<br>{_escaped(sizes[x])}" if len(curves) == 1 else number(x) for x in shown
        ],
    }


def _line(
    found: Sequence[tuple[CurveSize, MethodResult]],
    method: str,
    methods: Sequence[str],
    prefix: str,
    dash: str,
) -> dict[str, Any]:
    colour, marker = styles_of(methods)[method]
    below, above = bars([result for _, result in found])
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"{prefix}{_escaped(method)}",
        "x": _places([(r.size_of(method), method) for r, _ in found], "num_parameters", methods),
        "y": [percent(result) for _, result in found],
        "error_y": {
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "thickness": 1.2,
            "width": 4,
        },
        # A marker at 100 % extends above the axis and must not be clipped.
        "cliponaxis": False,
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"color": colour, "symbol": _MARKERS[marker], "size": 9},
        "text": [_details(size, size.size_of(method), result) for size, result in found],
        "hovertemplate": f"<b>{prefix}{_escaped(method)}</b> %{{text}}<extra></extra>",
    }


def _rings(curve: Curve, methods: Sequence[str], prefix: str) -> dict[str, Any]:
    front = [(entry, entry.method) for entry in curve.pareto]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{prefix}Pareto front",
        "x": _places(front, "num_parameters", methods),
        "y": [100 * entry.test_accuracy for entry in curve.pareto],
        "marker": {
            "symbol": "circle-open", "size": 18, "color": "#555555", "line": {"width": 1.5},
        },
        "hoverinfo": "skip",
        "cliponaxis": False,
    }  # fmt: skip


def _places(points: Sequence[tuple[_Point, str]], axis: str, methods: Sequence[str]) -> list[float]:
    return [shifted(getattr(point, axis), method, methods) for point, method in points]


def _details(size: CurveSize, own: Size, result: MethodResult) -> str:
    """Return the text that is shown for one student."""
    settings = [
        f"{name.rpartition('.')[2]} {value:.3g}" if isinstance(value, float) else
        f"{name.rpartition('.')[2]} {value}"
        for name, value in result.best.items()
    ]  # fmt: skip
    test, val = result.test_accuracy or 0.0, result.val_accuracy or 0.0
    spread = half_width(result.test_accuracies)
    interval = f" ± {100 * spread:.1f}" if spread is not None else ""
    lines = [
        f"at {size.capacity} of the teacher" if is_share(size.capacity) else size.capacity,
        f"test {100 * test:.1f}{interval} %, validation {100 * val:.1f} %",
        f"{own.num_parameters:,} parameters, {short_number(own.flops)} FLOPs, "
        f"{own.latency_ms:.2f} ms",
        f"{counted(len(result.seeds), 'seed')}; {counted(result.num_trials, 'trial')} before",
        ", ".join(settings),
    ]
    return "<br>".join(_escaped(line) for line in lines if line)


def _layout(
    curves: Sequence[Curve], sizes: dict[str, Any], buttons: list[dict[str, Any]]
) -> dict[str, Any]:
    names = ", ".join(_escaped(curve.name) for curve in curves)
    teachers: dict[float, list[int]] = {}  # teachers of several runs may be equally accurate
    for curve in curves:
        sizes_of_equals = teachers.setdefault(100 * curve.teacher["test_accuracy"], [])
        if curve.teacher["num_parameters"] not in sizes_of_equals:
            sizes_of_equals.append(curve.teacher["num_parameters"])
    line = {"dash": "dash", "width": 1.5, "color": "#777777"}
    return {
        "plot_bgcolor": "#FFFFFF",
        "title": {"text": f"{names}: accuracy versus capacity", "x": 0.01},
        "xaxis": {
            **sizes, "type": "log", "showline": True, "linecolor": "#444444",
            "gridcolor": "#E0E0E0",
        },
        "yaxis": {
            "title": {"text": "Test accuracy (%)"}, "gridcolor": "#E0E0E0",
            "range": list(accuracy_range(curves)), "zeroline": False,
            "autorangeoptions": {"clipmin": 0, "clipmax": 100},
        },
        "shapes": [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}
            for y in teachers
        ],
        "annotations": [
            {
                # Teachers of several runs are often close; alternating sides separates labels.
                "xref": "paper", "x": number % 2, "xanchor": ("left", "right")[number % 2],
                "y": y, "yanchor": "bottom", "showarrow": False, "font": {"color": "#555555"},
                "text": f"teacher: {' and '.join(map(short_number, own))} parameters, {y:.1f} %",
            }
            for number, (y, own) in enumerate(teachers.items())
        ],
        "updatemenus": [
            {
                "type": "buttons", "direction": "right", "buttons": buttons, "showactive": True,
                "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom",
            }
        ],
        "legend": {"orientation": "h", "y": -0.2},
        "hovermode": "closest",
        "margin": {"l": 60, "r": 20, "t": 70, "b": 40},
    }  # fmt: skip


def _escaped(text: str) -> str:
    """Escape a text for plotly, which interprets a few HTML tags."""
    return str(escape(printable(text)))
