"""What a report states of images without labels: how many there are, and what they gain."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from krscale.report import (
    Curve,
    CurveSize,
    MethodResult,
    comparison_table,
    curve_table,
    draw_curve,
    find_pareto,
    write_interactive,
    write_page,
)
from krscale.report.comparison import differences
from krscale.report.figure import _legend_title
from krscale.report.gains import gains_of_unlabelled
from krscale.report.page import ShownRun

PNG = b"\x89PNG\r\n\x1a\nnot really"
DATA = {"source": "digits", "fingerprint": "d1", "num_train": 100, "num_test": 450}


def result(val: float, *test: float) -> MethodResult:
    return MethodResult.over_seeds(
        seeds=range(len(test)), val_accuracies=[val] * len(test), test_accuracies=test,
        num_trials=6, num_pruned=2, num_failed=1, best={},
    )  # fmt: skip


def make(name: str = "digits", **changes: object) -> Curve:
    methods = (
        {"plain": result(0.9, 0.88, 0.9), "kr": result(0.96, 0.95, 0.95)},
        {"plain": result(0.97, 0.96, 0.96), "kr": result(0.5)},
    )
    sizes = tuple(
        CurveSize(
            capacity=capacity, width=3, num_parameters=number, flops=9, latency_ms=0.2, methods=m
        )
        for (capacity, number), m in zip((("1/16", 3_000), ("1/4", 9_000)), methods, strict=True)
    )
    teacher = {
        "model": "resnet", "width": 32, "num_parameters": 696_042, "flops": 10**7,
        "val_accuracy": 0.98, "test_accuracy": 0.989, "fingerprint": "t1",
    }  # fmt: skip
    content = {
        "name": name, "commit": "abc", "data": DATA, "teacher": teacher, "sizes": sizes,
        "pareto": find_pareto(sizes),
    }  # fmt: skip
    return Curve(**(content | changes))


def page(folder: Path, *curves: Curve) -> str:
    write_page([ShownRun(curve, PNG, None, {}) for curve in curves], folder / "r.html", PNG)
    return " ".join((folder / "r.html").read_text().split())


def with_them(name: str = "more", number: int = 1_234, gain: float = 0.02) -> Curve:
    plain = make().sizes
    sizes = tuple(
        size.model_copy(
            update={
                "methods": {
                    **size.methods,
                    "kr": result(0.97, *(a + gain for a in size.methods["kr"].test_accuracies)),
                }
            }
        )
        for size in plain
    )
    data = DATA | {"num_unlabelled": number, "unlabelled": f"{number:032x}"}
    return make(name, data=data, sizes=sizes, pareto=find_pareto(sizes))


def shown(table: object, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return " ".join(console.export_text().split())


def test_the_number_is_in_table_figure_page_and_chart(tmp_path: Path) -> None:
    curve = with_them()
    assert "1,234 images without labels" in shown(curve_table(curve, ascii_only=True))
    assert "1,234 images without labels" in _legend_title(curve)
    draw_curve(curve, tmp_path / "curve.png")
    write_interactive([make(), curve], tmp_path / "curve.html")
    text = " ".join((tmp_path / "curve.html").read_text().split())
    assert "In more, methods with a teacher learned from 1,234 images without labels" in text
    assert "1,234 without labels, for methods with a teacher only" in page(tmp_path, curve)


def test_a_curve_without_them_says_nothing_of_them(tmp_path: Path) -> None:
    assert "without labels" not in shown(curve_table(make(), ascii_only=True))
    assert "without labels" not in _legend_title(make())
    assert "without labels" not in page(tmp_path, make())


def test_two_runs_say_what_they_gave(tmp_path: Path) -> None:
    curves = [make(), with_them()]
    (line,) = gains_of_unlabelled(curves)
    assert line == (
        "points on test that more (1,234 images without labels) has over digits (0), "
        "whose epochs have fewer steps with a teacher: plain 1/16 +0.0, 1/4 +0.0; kr 1/16 +2.0"
    )
    assert gains_of_unlabelled(curves[::-1]) == [line]
    assert differences(curves) == [
        "different images without labels: digits none, more 1,234 (00000000)"
    ]
    assert "kr 1/16 +2.0" in shown(comparison_table(curves, ascii_only=True))
    assert line in page(tmp_path, *curves)


@pytest.mark.parametrize(
    "other",
    [
        make("same"),
        with_them().model_copy(update={"data": {**DATA, "fingerprint": "d2", "num_unlabelled": 9}}),
        with_them().model_copy(update={"teacher": {**make().teacher, "fingerprint": "t2"}}),
    ],
)
def test_runs_that_differ_in_more_are_no_pair(other: Curve) -> None:
    assert gains_of_unlabelled([make(), other]) == []


def test_runs_whose_data_or_teacher_is_not_known_are_no_pair() -> None:
    """Older curves have no fingerprints, so it is unknown whether data and teacher are the same."""
    for lacking in ("data", "teacher"):
        curves = []
        for curve in (make(), with_them()):
            content = {**getattr(curve, lacking)}
            del content["fingerprint"]
            curves.append(curve.model_copy(update={lacking: content}))
        assert gains_of_unlabelled(curves) == [], lacking


def test_a_method_of_one_run_alone_is_not_compared() -> None:
    less, more = make(), with_them()
    (line,) = gains_of_unlabelled([less, more])
    sizes = [s.model_copy(update={"methods": {**s.methods, "kd": result(0.9, 0.9)}})
             for s in more.sizes]  # fmt: skip
    assert gains_of_unlabelled([less, more.model_copy(update={"sizes": tuple(sizes)})]) == [line]
