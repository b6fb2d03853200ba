"""Insight as a figure: per rung, what granularity and sparsity were worth, and what mattered."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from krscale.curve.figure import STYLE
from krscale.files import write_atomic
from krscale.search.insight import (
    FIGURE_FILE,
    NEAR,
    Insight,
    StudyInsight,
    find_insight,
    write_insight,
)

SHOWN_RANGE = 0.05
"""Colours span so much below the best of a rung; what is worse looks alike."""


def record_insight(run_path: Path) -> tuple[Insight, list[Path]]:
    """Compute a run's insight, write data and figure into its folder; return it and the files."""
    insight = find_insight(run_path)
    files = [write_insight(insight, run_path)]
    if draw_insight(insight, run_path / FIGURE_FILE):
        files.append(run_path / FIGURE_FILE)
    return insight, files


def draw_insight(insight: Insight, path: Path) -> bool:
    """Draw the figure and write it atomically.

    A column per rung. Two rows for each method that varies granularity or sparsity: every complete
    trial by its sparsity and granularity, coloured by how far it stayed behind the best of its
    rung, those near the best ringed and the best as a star; and how much each setting mattered.

    Returns:
        False, with nothing written, when no method varied either.
    """
    methods = [m for m in insight.methods if any(s.settings for s in insight.of_method(m))]
    if not methods:
        return False
    num_rungs = len({study.capacity for study in insight.studies})
    with mpl.rc_context(STYLE):
        size = (2.2 + 2.9 * num_rungs, 5.4 * len(methods))
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2 * len(methods), num_rungs, squeeze=False)
        for row, method in enumerate(methods):
            studies = insight.of_method(method)
            _draw_settings(figure, axes[2 * row], studies)
            _draw_importance(axes[2 * row + 1], studies)
        figure.suptitle(f"{insight.name}: which settings win at which capacity", x=0.01, ha="left")
        write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    return True


def _draw_settings(figure: Figure, axes: Sequence[Axes], studies: Sequence[StudyInsight]) -> None:
    colours = Normalize(-100 * SHOWN_RANGE, 0)
    for ax, study in itertools.zip_longest(axes, studies):
        if study is None:
            ax.set_axis_off()
            continue
        best = study.best_accuracy or 0.0
        worst_first = sorted(study.settings, key=lambda s: s.val_accuracy)
        x = [s.sparsity if s.sparsity is not None else 0.0 for s in worst_first]
        y = [s.granularity if s.granularity is not None else 1 for s in worst_first]
        behind = [100 * (s.val_accuracy - best) for s in worst_first]
        rings = ["#000000" if b >= -100 * NEAR else "none" for b in behind]
        ax.scatter(x, y, c=behind, cmap="viridis", norm=colours, s=42, edgecolors=rings)
        if worst_first:
            ax.scatter(x[-1:], y[-1:], marker="*", s=230, color="#D55E00", edgecolors="#000000")
        ax.set_title(f"{study.method} at {study.capacity}: best {100 * best:.1f} %", loc="left")
        ax.set_xlabel("sparsity")
        ax.set_xlim(-0.04, 1.0)
        ax.set_ylim(0.5, max([*y, 2]) + 0.5)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("granularity (groups of taps)")
    figure.colorbar(
        ScalarMappable(colours, "viridis"), ax=list(axes), extend="min", pad=0.01,
        label="points behind\nthe best trial",
    )  # fmt: skip


def _draw_importance(axes: Sequence[Axes], studies: Sequence[StudyInsight]) -> None:
    names = sorted({name for study in studies for name in study.importance.shares})
    for ax, study in itertools.zip_longest(axes, studies):
        if study is None or not names:
            ax.set_axis_off()
            continue
        shares = study.importance.shares
        ax.barh(range(len(names)), [100 * shares.get(n, 0.0) for n in names], color="#0072B2")
        ax.set_yticks(range(len(names)), [n.partition(".")[2] for n in names], fontsize=9)
        ax.set_xlim(0, 100)
        ax.set_xlabel("% of the variance")
        ax.set_title(f"what mattered ({study.importance.num_trials} trials)", fontsize=10)
        if not shares:
            ax.text(50, 0, "too few trials", ha="center")
    for ax in axes[1:]:
        ax.tick_params(labelleft=False)
