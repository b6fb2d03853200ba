"""Sections of the page: which settings won where, and whether the search was long enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from krscale.report.convergence import draw_convergence, epochs_needed, trials_needed
from krscale.report.findings import Insight, StudyInsight
from krscale.report.html import Cell, image, paragraph, table
from krscale.report.result import Curve
from krscale.report.students import MethodResult

_SHOWN_APART = {"distill.granularity": "granularity", "distill.sparsity": "sparsity"}
_TEXTS = ("size", "method")
_EXPLANATION = (
    "Knowledge Representing asks the teacher at several depths. Granularity is the number of "
    "groups into which these depths are gathered: at 1 the whole network speaks with one voice, at "
    "more the student hears its earlier stages, too. Sparsity is the share of the differences "
    "between student and teacher, the smallest ones, that the student need not care for: at 0 all "
    "of them count. Which values are good may depend on the size of the student."
)
_FIGURE_NOTE = (
    "Every trial that ran to its end, by sparsity (across) and granularity (up). The star is the "
    "best, rings mark what came within half a percentage point of it, colours say how far the "
    "others stayed behind. Where enough trials ran, bars below say how much of the differences in "
    "accuracy each setting explains."
)
_CONVERGENCE = (
    "Above: the best validation accuracy after each trial of the search; the line begins with the "
    "first trial that early stopping let run to its end. Below: validation accuracy after each "
    "epoch of the final trainings, the mean over their seeds. A line that is flat at its end would "
    "have gained little from more trials, or more epochs; one that still rises might have."
)


def winning_settings(
    curve: Curve, insight: Insight | None, figure: bytes | None, missing: str
) -> list[str]:
    """Return which granularity and sparsity won at which size; nothing where neither was searched.

    Args:
        curve: The result.
        insight: What is known of all trials; None where only the winners are known.
        figure: The figure of the insight, a PNG.
        missing: What to say where there is no insight.
    """
    won = [(capacity, method, r) for capacity, method, r in _results(curve) if _varied(r)]
    if not won:
        return []
    rows = [_won(*entry, insight.study(entry[1], entry[0]) if insight else None) for entry in won]
    headings = max(rows, key=len)  # a study that the insight does not know has fewer
    caption = (
        "The winning trial of each size, by validation accuracy; near-best: the range of all "
        "trials that came within half a percentage point of it. A trial is one training with one "
        "seed, and only whole trials, which early stopping did not end, are counted: where there "
        "are few of them the winner may be luck."
        if insight
        else "The winning trial of each size, by validation accuracy: one training with one seed."
    )
    cells: list[list[Cell]] = [
        [("text" if name in _TEXTS else "", row.get(name, "-")) for name in headings]
        for row in rows
    ]
    parts = [paragraph(_EXPLANATION), table(list(headings), cells, caption, num_text=len(_TEXTS))]
    if insight is None:
        return [*parts, paragraph(missing, "note")]
    if figure is not None:
        parts += [image(figure, "Trials by granularity and sparsity"), paragraph(_FIGURE_NOTE)]
    return parts


def other_settings(curve: Curve) -> list[str]:
    """Return the winners' values of all other settings."""
    won = [entry for entry in _results(curve) if entry[2].best]
    names = sorted({n for _, _, r in won for n in r.best if n not in _SHOWN_APART})
    rows: list[list[Cell]] = [
        [("text", capacity), ("text", method), *(("", _value(r.best.get(n, ""))) for n in names)]
        for capacity, method, r in won
    ]
    shown = [name.removeprefix("distill.").removeprefix("train.") for name in names]
    caption = "Chosen by validation accuracy. An empty cell: no setting of this method."
    return [table(("size", "method", *shown), rows, caption, num_text=2)]


def convergence(curve: Curve, insight: Insight | None, missing: str) -> list[str]:
    """Return what more trials or more epochs might have gained.

    Args:
        curve: The result.
        insight: What is known of all trials.
        missing: What to say where it is not known.
    """
    figure = draw_convergence(insight) if insight else None
    if insight is None or figure is None:
        return [paragraph(missing, "note")]
    rows: list[list[Cell]] = [
        [
            ("text", capacity), ("text", method),
            ("", _of(trials_needed(study), len(study.best_so_far))),
            ("", _of(epochs_needed(study), len(study.learning))),
        ]
        for capacity, method, _ in _results(curve)
        if (study := insight.study(method, capacity))
    ]  # fmt: skip
    caption = (
        "How many trials of the search, and how many epochs of the final trainings, it took to "
        "come within half a percentage point of what all of them reached, and to stay there."
    )
    return [
        paragraph(_CONVERGENCE),
        image(figure, "Validation accuracy by trial and by epoch"),
        table(("size", "method", "trials", "epochs"), rows, caption, num_text=2),
    ]


def _results(curve: Curve) -> Iterator[tuple[str, str, MethodResult]]:
    for method in curve.methods:
        for size in curve.sizes:
            if result := size.methods.get(method):
                yield size.capacity, method, result


def _varied(result: MethodResult) -> bool:
    return any(name in result.best for name in _SHOWN_APART)


def _won(
    capacity: str, method: str, result: MethodResult, study: StudyInsight | None
) -> dict[str, str]:
    row = {"size": capacity, "method": method}
    for name, title in _SHOWN_APART.items():
        row[title] = _value(result.best.get(name, "-"))
        if study:
            row[f"near-best {title}"] = _range(study.near_best.get(name, []))
    if study:
        row["whole trials"] = str(study.num_complete)
    return row


def _range(values: Sequence[Any]) -> str:
    if not values:
        return ""
    if isinstance(values[0], str):
        return ", ".join(values)
    low, high = map(_value, (values[0], values[-1]))
    return low if low == high else f"{low} to {high}"


def _of(number: int | None, total: int) -> str:
    return "-" if number is None else f"{number} of {total}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
