"""`report.html`: searches explained to readers who do not know krscale, in one file, offline.

It is plain HTML without scripts: every figure is embedded, and nothing is loaded from elsewhere.
The fixed text is in `templates/`; this module adds what differs from run to run.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krscale.config import Experiment, is_share
from krscale.methods import METHODS
from krscale.report.choice import Candidate, Limits, find_candidates, preference
from krscale.report.comparison import differences
from krscale.report.findings import Insight
from krscale.report.front import FRONT_CAPTION, FRONT_TITLE, front_headings, front_rows
from krscale.report.gains import gains_of_unlabelled
from krscale.report.interval import half_width
from krscale.report.page_settings import convergence, other_settings, winning_settings
from krscale.report.rendering import Cell, Table, texts, write_rendered
from krscale.report.reproduce import command_of, why_no_command
from krscale.report.result import Curve
from krscale.report.students import CurveSize, MethodResult, is_within
from krscale.report.table import (
    apart,
    counted,
    front_of,
    sampling,
    seeds_of,
    several_rows,
    short_number,
)

CLOSE_ENOUGH = 0.01
"""Maximum distance from the best validation accuracy for the smallest student of the summary."""

_SPLITS = ("train", "val", "test")
_PURPOSES = {
    "plain": "learns from the labels alone; the other methods have to beat it.",
    "kd": "classic distillation: learns from the labels and from the teacher's probabilities.",
    "kr": "Knowledge Representing: learns from the labels and from the teacher's distributions "
    "over the classes at several depths, leaving out the smallest differences.",
}


@dataclass(frozen=True)
class ShownRun:
    """The content of the page for one run.

    Attributes:
        curve: Its result.
        figure: Its figure, a PNG.
        experiment: Its experiment; None if it cannot be read.
        environment: Versions, machine and command of its last start; empty if not recorded.
        problem: Why the experiment cannot be read.
        insight: Results on its settings from its journal; None if they cannot be read.
        insight_figure: The figure of the insight, a PNG.
        insight_problem: Why the insight is missing or incomplete, and how to create it.
    """

    curve: Curve
    figure: bytes
    experiment: Experiment | None
    environment: Mapping[str, Any]
    problem: str = ""
    insight: Insight | None = None
    insight_figure: bytes | None = None
    insight_problem: str = ""


def write_page(runs: Sequence[ShownRun], path: Path, overlay: bytes | None = None) -> None:
    """Write the page atomically.

    Args:
        runs: The runs to show, in this order.
        path: Path of the file.
        overlay: A figure of all runs together, a PNG.
    """
    curves = [run.curve for run in runs]
    experiments = [run.experiment for run in runs]
    names = ", ".join(curve.name for curve in curves)
    write_rendered(
        path,
        "report.html.j2",
        title=f"Accuracy versus capacity: {names}",
        names=names,
        overlay=overlay,
        same_trials=len({r.num_trials for c in curves for _, r in _cells(c)}) == 1,
        differences=[*differences(curves, experiments), *gains_of_unlabelled(curves)],
        runs=[_content(run) for run in runs],
    )


def _content(run: ShownRun) -> dict[str, Any]:
    """Return the values for one run, by their names in `run.html.j2`."""
    curve = run.curve
    given = why_no_command(run.experiment) if run.experiment is not None else ""
    return {
        "curve": curve,
        "figure": run.figure,
        "answer": _answer(curve),
        "question": _question(run),
        "students": _students(curve),
        "students_notes": several_rows([curve]),
        "front": _front(curve),
        "trials_title": FRONT_TITLE,
        "trials_caption": FRONT_CAPTION,
        "trials": _trials(curve),
        "winning": winning_settings(curve, run.insight),
        "other_settings": other_settings(curve),
        "convergence": convergence(curve, run.insight),
        "insight": run.insight,
        "insight_figure": run.insight_figure,
        "insight_problem": run.insight_problem,
        "cost": _cost(curve),
        "command": "" if run.experiment is None or given else command_of(run.experiment),
        "problem": run.problem or given,
        "made": _made(run),
    }


def _answer(curve: Curve) -> str:
    if not curve.pareto:
        return "No training of this search was finished."
    candidates = find_candidates(curve)
    best = min(candidates, key=lambda c: preference(c, Limits()))  # as `krscale pick` chooses
    near = [c for c in candidates if is_within(c.val_accuracy, best.val_accuracy, CLOSE_ENOUGH)]
    small = min(near, key=lambda c: preference(c, Limits(min_accuracy=0.0)))
    teacher = curve.teacher
    text = (
        f"The teacher has {teacher['num_parameters']:,} parameters and answers "
        f"{_percent(teacher['test_accuracy'])} of the test images correctly. "
        f"The most accurate student on validation is {_student(best)}."
    )
    if small == best:
        return text
    points = f"{100 * CLOSE_ENOUGH:.0f} percentage point"
    return f"{text} The smallest one within {points} of it on validation is {_student(small)}."


def _size_in_words(capacity: str) -> str:
    return f"{capacity} of the teacher's size" if is_share(capacity) else f"student {capacity}"


def _student(candidate: Candidate) -> str:
    share = candidate.result.test_accuracy or 0.0
    return (
        f"{candidate.method} at {_size_in_words(candidate.size.capacity)}, "
        f"{candidate.measure('num_parameters'):,.0f} parameters, with {_percent(share)} on test"
    )


def _question(run: ShownRun) -> list[str]:
    curve, data, teacher = run.curve, run.curve.data, run.curve.teacher
    counts = [f"{data[f'num_{s}']:,} for {s}" for s in _SPLITS if f"num_{s}" in data]
    if curve.num_unlabelled:
        counts.append(
            f"and {curve.num_unlabelled:,} without labels, for methods with a teacher only"
        )
    sizes = [f"{size.capacity} ({_parameters(size)} parameters)" for size in curve.sizes]
    lines = [
        f"Images: {data.get('source', 'unknown')}; {', '.join(counts) or 'number unknown'}.",
        f"Teacher: {teacher['model']} of width {teacher['width']}.",
        f"Students, as shares of the teacher's size or by name: {', '.join(sizes)}."
        if not all(is_share(size.capacity) for size in curve.sizes)
        else f"Students, as shares of the teacher's size: {', '.join(sizes)}.",
    ]
    if run.experiment is not None:
        # The experiment has another budget if an extension of the search has not finished.
        budget = curve.budgets or run.experiment.search
        lines.append(
            f"Budget: {counted(budget.trials_per_size, 'trial')} of up to "
            f"{counted(run.experiment.train.num_epochs, 'epoch')} for each way of training at each "
            "size; each winner was trained again with "
            f"{_fresh_seeds(curve, budget.num_final_seeds)}, and these are what the figure shows."
        )
    if reach := sampling(curve):
        several = max(seeds_of(curve), default=0) > 1
        spread = "± is between seeds" if several else "one seed does not show how far seeds differ"
        lines.append(
            f"How sure: {spread}. The {data['num_test']:,} test images are a sample besides: on "
            f"others like them an accuracy may be off by {reach.replace('±', '')} points (95 %)."
        )
    return [*lines, *(f"{name}: {_purpose(name)}" for name in curve.methods)]


def _cells(curve: Curve) -> list[tuple[str, MethodResult]]:
    """Return every student of a curve, finished or not: `kr at 1/16`, and its result."""
    return [
        (f"{method} at {size.capacity}", result)
        for size in curve.sizes
        for method, result in size.methods.items()
    ]


def _fresh_seeds(curve: Curve, planned: int) -> str:
    """Return the planned number of seeds of the winners, and those students with another one."""
    others = [(name, len(r.seeds)) for name, r in _cells(curve) if len(r.seeds) != planned]
    text = counted(planned, "fresh seed")
    if not others:
        return text
    listed = ", ".join(f"{name} with {count or 'none'}" for name, count in others)
    return f"{text} ({listed})"


def _parameters(size: CurveSize) -> str:
    counts = [short_number(own.num_parameters) for own, _ in size.by_student()]
    return " to ".join(dict.fromkeys((counts[0], counts[-1])))


def _purpose(method: str) -> str:
    base, *terms = method.split("+")
    if terms:
        return f"{base} (see there) combined with {' and '.join(terms)}."
    known = METHODS.get(method)
    described = inspect.getdoc(known) if known is not None else None
    return _PURPOSES.get(method) or (described or "a method of another version.").splitlines()[0]


def _students(curve: Curve) -> Table:
    front = front_of(curve)
    rows = []
    for size in curve.sizes:
        means = [r.test_accuracy for r in size.methods.values() if r.test_accuracy is not None]
        shown = {}
        for method in curve.methods:
            result = size.methods.get(method)
            text = _accuracy(result) if result else "-"
            mark = "*" if (size.capacity, method) in front else ""
            is_best = bool(result and means and result.test_accuracy == max(means))
            shown[method] = Cell(text + mark, "best" if is_best else "")
        for own, cells in apart(size, shown):
            sizes = (f"{own.num_parameters:,}", f"{own.flops:,}", f"{own.latency_ms:.2f}")
            row = texts([size.capacity, *sizes], 1)
            rows.append([*row, *(cell or Cell("") for cell in cells)])
    return Table(("size", "parameters", "FLOPs", "ms", *curve.methods), rows)


def _accuracy(result: MethodResult) -> str:
    if result.test_accuracy is None:
        return "-"
    spread = half_width(result.test_accuracies)
    mean = f"{100 * result.test_accuracy:.1f}"
    return mean if spread is None else f"{mean} ± {100 * spread:.1f}"


def _front(curve: Curve) -> Table:
    rows = [
        texts(
            [
                entry.capacity, entry.method, f"{entry.num_parameters:,}",
                f"{100 * entry.val_accuracy:.1f}", f"{100 * entry.test_accuracy:.1f}",
            ],
            2,
        )
        for entry in curve.pareto
    ]  # fmt: skip
    return Table(("size", "method", "parameters", "validation %", "test %"), rows, num_text=2)


def _trials(curve: Curve) -> Table | None:
    headings = front_headings(curve)
    rows = [texts(row, 2) for row in front_rows(curve)]
    return Table(headings, rows, num_text=2) if headings else None


def _cost(curve: Curve) -> str:
    results = [r for size in curve.sizes for r in size.methods.values()]
    text = (
        f"{counted(sum(r.num_trials for r in results), 'trial')}, of which early stopping ended "
        f"{sum(r.num_pruned for r in results)} and {sum(r.num_failed for r in results)} failed; "
        f"then {counted(sum(len(r.seeds) for r in results), 'final training')}."
    )
    early = {r.ended_by for r in results} - {"trials_per_size", None}
    if early:
        text += f" Some tuning ended before its last trial: {', '.join(sorted(map(str, early)))}."
    if curve.cost is None:
        return text
    return (
        f"{text} Together {_duration(curve.cost.trial_seconds)} of training, within "
        f"{_duration(curve.cost.wall_seconds)} from the first start to the last end."
    )


def _made(run: ShownRun) -> list[tuple[str, list[str]]]:
    """Return fingerprints and versions of the run, by label."""
    curve, environment = run.curve, run.environment
    marks = {"data": curve.data.get("fingerprint"), "teacher": curve.teacher.get("fingerprint")}
    known = [f"{name} {mark}" for name, mark in marks.items() if mark]
    made = [f"{name} {version}" for name, version in environment.get("packages", {}).items()]
    made += [f"Python {environment['python']}"] if "python" in environment else []
    made += [str(environment["platform"])] if "platform" in environment else []
    return [
        (label, facts) for label, facts in (("Fingerprints", known), ("Made with", made)) if facts
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
