"""The figures of `docs/claims.md`, drawn from the results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from krscale.files import write_atomic
from krscale.report.figure import STYLE
from krscale.report.interval import half_width
from krscale.report.table import short_number
from parts.claims.families import COMBINED, FEATURES, KR, LOGITS, WITHOUT_SPARSITY

# Okabe and Ito's palette; KR keeps its colour in every picture of krscale.
_KR_COLOUR = "#D55E00"
_COLOURS = ("#000000", "#8C8C8C", "#0072B2", "#009E73", "#CC79A7", "#56B4E9")
_MARKERS = ("s", "D", "^", "v", "P", "X")
_PANELS = (
    ("on the logits", LOGITS),
    ("on features", FEATURES),
    ("with KR", (WITHOUT_SPARSITY, *COMBINED)),
)


def draw_figures(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the results of every task and return the files, each written atomically."""
    return [path for task in result["tasks"] for path in _draw_task(task, folder)]


def _draw_task(task: Mapping[str, Any], folder: Path) -> list[Path]:
    drawn = {
        "accuracy": (_draw_accuracy, bool(task["sizes"]) and bool(task["teacher"])),
        "residual": (_draw_residual, bool(task["C1"]["residual_by_depth"])),
        "convergence": (_draw_convergence, bool(task["C2"]["sizes"])),
    }
    paths = []
    for name, (draw, wanted) in drawn.items():
        if wanted:
            with mpl.rc_context(STYLE):
                figure = Figure(dpi=90, layout="constrained")
                FigureCanvasAgg(figure)
                draw(figure, task)
                path = folder / f"claims-{task['name']}-{name}.png"
                write_atomic(path, lambda t, f=figure: f.savefig(t, format="png"))
                paths.append(path)
    return paths


def _draw_accuracy(figure: Figure, result: Mapping[str, Any]) -> None:
    sizes = result["sizes"]
    found = {name for size in sizes for name in size["methods"]}
    panels = [(title, names) for title, names in _PANELS if found & set(names)]
    figure.set_size_inches(4.3 * max(1, len(panels)), 4.6)
    grid = figure.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0]
    for axes, (title, names) in zip(grid, panels or [("", ())], strict=True):
        shown = [name for name in (*names, KR) if name in found]
        for position, name in enumerate(shown):
            style = _style(position, name)
            shift = 1.0 + 0.03 * (position - (len(shown) - 1) / 2)
            _draw_method(axes, sizes, name, shift, style)
        axes.axhline(
            100 * result["teacher"]["test_accuracy"], color="#777777", linestyle=(0, (5, 3)),
            linewidth=1.2, label="teacher",
        )  # fmt: skip
        _label_sizes(axes, sizes)
        axes.set_title(title, loc="left")
        axes.legend(loc="lower right", fontsize=8)
    grid[0].set_ylabel("Test accuracy (%)")


def _draw_method(
    axes: Axes, sizes: Sequence[Any], name: str, shift: float, style: dict[str, Any]
) -> None:
    points = [
        (size["num_parameters"], size["methods"][name]["test_accuracy"])
        for size in sizes
        if name in size["methods"]
    ]
    axes.errorbar(
        [size * shift for size, _ in points],
        [100 * sum(values) / len(values) for _, values in points],
        yerr=[100 * (half_width(values) or 0.0) for _, values in points],
        markersize=5, linewidth=1.4, elinewidth=1.0, capsize=2, label=name, **style,
    )  # fmt: skip


def _label_sizes(axes: Axes, sizes: Sequence[Any]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([size["num_parameters"] for size in sizes]))
    labels = [f"{short_number(size['num_parameters'])}\n{size['capacity']}" for size in sizes]
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Student parameters")


def _draw_residual(figure: Figure, result: Mapping[str, Any]) -> None:
    by_size = result["C1"]["residual_by_depth"]
    grid = _row(figure, len(by_size))
    for axes, (capacity, pair) in zip(grid, by_size.items(), strict=True):
        for kind, colour, marker in (
            ("layer_wise", "#0072B2", "^"),
            ("aggregated", _KR_COLOUR, "o"),
        ):
            depths = list(zip(*pair[kind], strict=True))
            axes.errorbar(
                [(d + 1) / len(depths) for d in range(len(depths))],
                [sum(values) / len(values) for values in depths],
                yerr=[half_width(values) or 0.0 for values in depths],
                color=colour, marker=marker, markersize=5, linewidth=1.4, capsize=2,
                label=kind.replace("_", "-"),
            )  # fmt: skip
        axes.set_title(f"{capacity} of the teacher", loc="left")
        axes.set_xlabel("Relative depth")
    grid[0].set_ylabel("Residual: KL(teacher || student), nats")
    grid[0].legend()


def _draw_convergence(figure: Figure, result: Mapping[str, Any]) -> None:
    sizes = result["sizes"]
    grid = _row(figure, len(sizes))
    shown = (("plain", "#000000", "-"), ("kd", "#0072B2", "-"),
             (WITHOUT_SPARSITY, _KR_COLOUR, "--"), (KR, _KR_COLOUR, "-"))  # fmt: skip
    for axes, size in zip(grid, sizes, strict=True):
        for name, colour, line in shown:
            if name in size["methods"]:
                curves = size["methods"][name]["val_curves"]
                means = [100 * sum(values) / len(values) for values in zip(*curves, strict=True)]
                steps = [result["steps_per_epoch"] * (e + 1) for e in range(len(means))]
                axes.plot(steps, means, color=colour, linestyle=line, label=name)
        axes.set_title(f"{size['capacity']} of the teacher", loc="left")
        axes.set_xlabel("Steps")
    grid[0].set_ylabel("Validation accuracy (%), mean over seeds")
    grid[0].legend(loc="lower right", fontsize=8)


def _row(figure: Figure, count: int) -> list[Axes]:
    figure.set_size_inches(3.6 * count, 3.8)
    return list(figure.subplots(1, count, squeeze=False)[0])


def _style(position: int, name: str) -> dict[str, Any]:
    if name == KR:
        return {"color": _KR_COLOUR, "marker": "o", "zorder": 5}
    number = position % len(_COLOURS)
    return {"color": _COLOURS[number], "marker": _MARKERS[number]}
