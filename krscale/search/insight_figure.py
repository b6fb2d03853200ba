"""Insight as a figure: per size, which granularity and sparsity won, and what mattered."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from krscale.choices import LEVELS
from krscale.files import write_atomic
from krscale.report.figure import STYLE
from krscale.report.findings import (
    INSIGHT_FIGURE_FILE,
    NEAR,
    Insight,
    Setting,
    StudyInsight,
    write_insight,
)
from krscale.report.students import is_within
from krscale.search.insight import GRANULARITY, SPARSITY, find_insight

_Row = Callable[[Sequence[Axes], Sequence[StudyInsight]], None]
SHOWN_RANGE = 0.05
"""Range of the colours below the best of a size; all worse values share one colour."""


def record_insight(run_path: Path) -> tuple[Insight, list[Path]]:
    """Compute a run's insight and write data and figure to its folder; return insight and files."""
    insight = find_insight(run_path)
    files = [write_insight(insight, run_path)]
    if draw_insight(insight, run_path / INSIGHT_FIGURE_FILE):
        files.append(run_path / INSIGHT_FIGURE_FILE)
    return insight, files


def draw_insight(insight: Insight, path: Path) -> bool:
    """Draw the figure and write it atomically.

    There is a column per size, and a row for each method that varies granularity or sparsity. Every
    complete trial is a point at its sparsity and granularity, coloured by how far it is behind the
    best of its size. Trials near the best have a ring, and the best is a star. If there were enough
    trials, a second row shows how much each setting mattered.

    Returns:
        False if no method varied granularity or sparsity; then nothing is written.
    """
    methods = [m for m in insight.methods if any(s.settings for s in insight.of_method(m))]
    if not methods:
        return False
    num_sizes = len({study.capacity for study in insight.studies})
    with mpl.rc_context(STYLE):
        rows = [(method, draw) for method in methods for draw in _rows(insight.of_method(method))]
        size = (2.2 + 2.9 * num_sizes, 0.4 + 2.7 * len(rows))
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (method, draw) in zip(
            figure.subplots(len(rows), num_sizes, squeeze=False), rows, strict=True
        ):
            draw(axes, insight.of_method(method))
        figure.suptitle(f"{insight.name}: which settings win at which capacity", x=0.01, ha="left")
        write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    return True


def _rows(studies: Sequence[StudyInsight]) -> list[_Row]:
    explained = any(study.importance.shares for study in studies)
    return [_draw_settings, _draw_importance] if explained else [_draw_settings]


def _draw_settings(axes: Sequence[Axes], studies: Sequence[StudyInsight]) -> None:
    colours = Normalize(-100 * SHOWN_RANGE, 0)
    for ax, study in itertools.zip_longest(axes, studies):
        if study is None:
            ax.set_axis_off()
            continue
        best = study.best_accuracy or 0.0
        worst_first = sorted(study.settings, key=partial(_rank, study))
        x = [s.sparsity if s.sparsity is not None else 0.0 for s in worst_first]
        y = [_height(s.granularity) for s in worst_first]
        behind = [100 * (s.val_accuracy - best) for s in worst_first]
        near = [is_within(s.val_accuracy, best, NEAR) for s in worst_first]
        rings = ["#000000" if is_near else "none" for is_near in near]
        ax.scatter(x, y, c=behind, cmap="viridis", norm=colours, s=42, edgecolors=rings)
        if worst_first:
            ax.scatter(x[-1:], y[-1:], marker="*", s=230, color="#D55E00", edgecolors="#000000")
        ax.set_title(f"{study.method} at {study.capacity}: best {100 * best:.1f} %", loc="left")
        ax.set_xlabel("sparsity")
        ax.set_xlim(-0.04, 1.0)
        ax.set_ylim(0.5, max([*y, 2]) + 0.5)
        if any(isinstance(s.granularity, str) for s in worst_first):
            ax.set_yticks(range(1, 1 + len(LEVELS)), LEVELS)
        else:
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("granularity (groups of taps)")
    axes[0].figure.colorbar(
        ScalarMappable(colours, "viridis"), ax=list(axes), extend="min", pad=0.01,
        label="points behind\nthe best trial",
    )  # fmt: skip


def _rank(study: StudyInsight, setting: Setting) -> tuple[float, bool]:
    """Return a sorting key; among equally accurate trials, the winner comes last."""
    won = study.best.get(GRANULARITY), study.best.get(SPARSITY)
    return setting.val_accuracy, (setting.granularity, setting.sparsity) == won


def _height(granularity: int | str | None) -> int:
    """Return a height: levels by their number of groups; no granularity counts as one group."""
    if isinstance(granularity, str):
        return 1 + LEVELS.index(granularity)
    return 1 if granularity is None else granularity


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
