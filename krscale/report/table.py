"""The curve as a table for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from krscale.report.interval import half_width, sampling_half_width
from krscale.report.result import Curve
from krscale.report.students import CurveSize, MethodResult, Size

T = TypeVar("T")

_ASCII_HEAD = box.Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)
"""`box.SIMPLE_HEAD` in ASCII; rich's own substitute adds borders that do not fit 60 columns."""


def curve_table(curve: Curve, *, ascii_only: bool | None = None) -> Table:
    """Return the table: a row per size, test accuracy in percent for every method.

    If students of one capacity differ in size, each of their sizes has its own row.

    Args:
        curve: The result of a search.
        ascii_only: Use ASCII characters only; None decides by the encoding of stdout.

    The best mean of a row is bold, students on the Pareto front are marked with an asterisk, and
    several seeds are shown with half their 95 % interval. Fits 60 columns with three methods.
    """
    plain_text = stdout_is_ascii() if ascii_only is None else ascii_only
    plus_minus = "+-" if plain_text else "±"
    title = f"{curve.name}: test accuracy in %"
    table = new_table(title, _caption(curve, plus_minus), plain_text=plain_text)
    for heading in ("size", "params", "FLOPs", "ms"):
        table.add_column(heading, justify="right", overflow="fold")
    for method in curve.methods:
        table.add_column(method, justify="left", overflow="fold")
    for size in curve.sizes:
        for cells in student_rows(size, curve.methods, front_of(curve), plus_minus):
            table.add_row(*cells)
    return table


def new_table(title: str, caption: str, *, plain_text: bool) -> Table:
    """Return an empty table in the style of all tables of accuracies."""
    return Table(
        title=Text(title, style="bold"),
        caption=Text(caption),
        caption_justify="left",
        box=_ASCII_HEAD if plain_text else box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )


def front_of(curve: Curve) -> set[tuple[str, str]]:
    """Return capacity and method of every student on the front."""
    return {(entry.capacity, entry.method) for entry in curve.pareto}


def short_number(value: float) -> str:
    """Return a count in at most five characters: `312`, `1.24k`, `39.6k`, `1.24M`.

    Example:
        >>> [short_number(count) for count in (312, 1_240, 999_600)]
        ['312', '1.24k', '1M']
    """
    for divisor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * divisor:
            return f"{value / divisor:.3g}{suffix}"
    return f"{value:.0f}"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural unless the number is 1.

    Example:
        >>> counted(1, "fresh seed"), counted(5, "fresh seed")
        ('1 fresh seed', '5 fresh seeds')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def short_latency(milliseconds: float, digits: int = 3) -> str:
    """Return milliseconds with this many digits, or with all digits before the point if more.

    Example:
        >>> [short_latency(value) for value in (0.2517, 12.349, 1234.5)]
        ['0.252', '12.3', '1234']
        >>> short_latency(123.4, 2)
        '123'
    """
    is_whole = milliseconds >= 10 ** (digits - 1)
    return f"{milliseconds:.0f}" if is_whole else f"{milliseconds:.{digits}g}"


def student_rows(
    size: CurveSize, methods: Sequence[str], front: set[tuple[str, str]], plus_minus: str
) -> list[list[Text]]:
    """Return a row for each size of the students of one capacity, with their accuracies."""
    accuracies = dict(zip(methods, _accuracy_cells(size, methods, front, plus_minus), strict=True))
    rows = []
    for own, cells in apart(size, accuracies):
        latency = f"{own.latency_ms:.2f}" if own.latency_ms < 100 else f"{own.latency_ms:.0f}"
        sizes = (short_number(own.num_parameters), short_number(own.flops), latency)
        row = [Text(cell) for cell in (size.capacity, *sizes)]
        rows.append([*row, *(cell or Text("") for cell in cells)])
    return rows


def apart(size: CurveSize, cells: Mapping[str, T]) -> list[tuple[Size, list[T | None]]]:
    """Distribute the methods' cells over rows, so that each is in the row of its student's size.

    Args:
        size: Students of one capacity.
        cells: One cell per method; those without a finished student go to the first row.

    Returns:
        A row for each size, with None for methods whose cell is in another row.
    """
    found = size.by_student()
    trained = {method for _, here in found for method in here}
    return [
        (own, [cell if m in here or (not n and m not in trained) else None
               for m, cell in cells.items()])
        for n, (own, here) in enumerate(found)
    ]  # fmt: skip


def several_rows(curves: Sequence[Curve]) -> list[str]:
    """Return a note on why a size has several rows; empty if none has."""
    if all(len(size.by_student()) == 1 for curve in curves for size in curve.sizes):
        return []
    return ["size in several rows: the architecture was searched, students differ in size"]


def _accuracy_cells(
    size: CurveSize, methods: Sequence[str], front: set[tuple[str, str]], plus_minus: str
) -> list[Text]:
    """Return a cell for each method: percent, interval, a mark for the front; the best is bold."""
    means = [result.test_accuracy for result in size.methods.values()]
    best = max((mean for mean in means if mean is not None), default=None)
    cells = []
    for method in methods:
        result = size.methods.get(method)
        if result is None or result.test_accuracy is None:
            cells.append(Text("-"))
            continue
        mark = "*" if (size.capacity, method) in front else ""
        style = "bold" if result.test_accuracy == best else ""
        cells.append(Text(_accuracy(result, plus_minus) + mark, style=style))
    return cells


def _accuracy(result: MethodResult, plus_minus: str) -> str:
    if result.test_accuracy is None:
        raise ValueError("a method without a finished trial has no accuracy")
    mean = f"{100 * result.test_accuracy:.1f}"
    spread = half_width(result.test_accuracies)
    return mean if spread is None else f"{mean}{plus_minus}{100 * spread:.1f}"


def sampling(curve: Curve) -> str:
    """Return how far a curve's accuracies may be from those on other images: `±0.8 to ±2.2`.

    Empty if the number of test images is unknown.
    """
    means = [
        result.test_accuracy
        for size in curve.sizes
        for result in size.methods.values()
        if result.test_accuracy is not None
    ]
    count = curve.data.get("num_test", 0)
    if not means or count < 1:
        return ""
    reaches = sorted(100.0 * sampling_half_width(mean, count) for mean in means)
    return " to ".join(dict.fromkeys(f"±{reach:.1f}" for reach in (reaches[0], reaches[-1])))


def span(counts: Collection[int]) -> str:
    """Return the minimum and the maximum: `5`, or `2-5`; `0` if empty.

    Example:
        >>> span([5, 5]), span([5, 2, 3]), span([])
        ('5', '2-5', '0')
    """
    ends = {min(counts, default=0), max(counts, default=0)}
    return "-".join(str(count) for count in sorted(ends))


def seeds_of(curve: Curve) -> set[int]:
    """Return the numbers of seeds of finished students."""
    return {len(r.seeds) for size in curve.sizes for r in size.methods.values() if r.seeds}


def interval_notes(curves: Sequence[Curve], plus_minus: str) -> list[str]:
    """Return a note that explains the intervals; empty with one seed."""
    counts = {count for curve in curves for count in seeds_of(curve)}
    if max(counts, default=0) < 2:
        return []
    return [f"{plus_minus} 95 % interval over {span(counts)} seeds; bold: best of its size"]


def _caption(curve: Curve, plus_minus: str) -> str:
    lines = interval_notes([curve], plus_minus)
    if reach := sampling(curve):
        reach = reach.replace("±", plus_minus)
        lines.append(f"{curve.data['num_test']:,} test images: {reach} on others like them")
    lines += several_rows([curve])
    lines.append("* Pareto front: validation accuracy, parameters")
    if curve.num_unlabelled:
        lines.append(f"with a teacher: {curve.num_unlabelled:,} images without labels as well")
    teacher = curve.teacher
    lines.append(
        f"teacher {teacher['model']} width {teacher['width']}:"
        f" {short_number(teacher['num_parameters'])} params, {100 * teacher['test_accuracy']:.1f} %"
    )
    return "\n".join(lines)


def stdout_is_ascii() -> bool:
    """Return whether stdout can show ASCII only."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    return not encoding.startswith(("utf", "cp65001"))
