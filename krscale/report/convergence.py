"""Whether a search and its trainings were long enough: best by trial, accuracy by epoch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from krscale.report.figure import STYLE, styles_of
from krscale.report.findings import NEAR, Insight, StudyInsight
from krscale.report.students import is_within


def trials_needed(study: StudyInsight) -> int | None:
    """Return after how many trials the best was within half a point of the overall best."""
    best = study.best_so_far
    if not best or best[-1] is None:
        return None
    values = enumerate(best, 1)
    return next(n for n, value in values if value is not None and is_within(value, best[-1], NEAR))


def epochs_needed(study: StudyInsight) -> int | None:
    """Return after how many epochs accuracy stayed at most half a point below its final value."""
    learning = study.learning
    if not learning:
        return None
    end = learning[-1]
    below = [n for n, value in enumerate(learning, 1) if not is_within(value, end, NEAR)]
    return max(below, default=0) + 1


def draw_convergence(insight: Insight) -> bytes | None:
    """Draw the progress of a search over its trials and of its final trainings, as a PNG.

    There is one column per size, and one line per method. The upper row shows the best validation
    accuracy after each trial; the lower row shows that of the final trainings after each epoch, as
    a mean over their seeds.

    Returns:
        The PNG, or None if neither is known.
    """
    known = [study for study in insight.studies if study.best_so_far or study.learning]
    if not known:
        return None
    capacities = list(dict.fromkeys(study.capacity for study in known))
    styles = styles_of(insight.methods)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 2.5 * len(capacities), 5.2), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, len(capacities), squeeze=False, sharey="row")
        for column, capacity in enumerate(capacities):
            here = [study for study in known if study.capacity == capacity]
            for study in here:
                style = styles[study.method]
                _draw_line(above[column], study.method, study.best_so_far, style, steps=True)
                _draw_line(below[column], study.method, study.learning, style, steps=False)
            above[column].set_title(capacity, loc="left")
            above[column].set_xlabel("trials")
            below[column].set_xlabel("epochs")
        above[0].set_ylabel("best so far (%)")
        below[0].set_ylabel("final trainings (%)")
        # A method that was abandoned at one size may have lines at the others.
        drawn: dict[str, Any] = {}
        for ax in above:
            handles, labels = ax.get_legend_handles_labels()
            drawn.update(zip(labels, handles, strict=True))
        methods = [method for method in insight.methods if method in drawn]
        figure.legend(
            [drawn[method] for method in methods], methods,
            loc="outside upper right", ncols=len(methods), frameon=False,
        )  # fmt: skip
        content = io.BytesIO()
        figure.savefig(content, format="png")
    return content.getvalue()


def _draw_line(
    ax: Axes,
    method: str,
    values: Sequence[float | None],
    style: tuple[str, str],
    *,
    steps: bool,
) -> None:
    colour, marker = style
    points = [(n, 100 * value) for n, value in enumerate(values, 1) if value is not None]
    ax.plot(
        [n for n, _ in points], [value for _, value in points], color=colour, marker=marker,
        markersize=4, linewidth=1.4, label=method, drawstyle="steps-post" if steps else "default",
    )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
