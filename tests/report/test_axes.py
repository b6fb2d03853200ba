"""The axes show the range of the data: the same in the picture and on the interactive page."""

import math

import matplotlib.figure
import plotly.graph_objects
import pytest

from krscale.report import Curve, CurveSize, MethodResult, draw_curve, draw_curves, find_pareto
from krscale.report.axes import accuracy_range, bars, finished, marked, size_range
from krscale.report.interactive import _figure, write_interactive


def result(*accuracies):
    return MethodResult.over_seeds(
        seeds=range(len(accuracies)), val_accuracies=accuracies, test_accuracies=accuracies,
        num_trials=4, num_pruned=1, num_failed=0, best={},
    )  # fmt: skip


def make(methods, sizes=(1_000, 4_000, 16_000, 64_000), teacher=0.9, name="digits", latency=0.1):
    """`methods`: name -> accuracies of each size."""
    count = len(next(iter(methods.values()), ()))
    students = tuple(
        CurveSize(
            capacity=f"1/{4 ** (count - i)}", width=i + 1, num_parameters=sizes[i],
            flops=30 * sizes[i], latency_ms=latency * (i + 1),
            methods={method: result(*values[i]) for method, values in methods.items()},
        )
        for i in range(count)
    )  # fmt: skip
    return Curve(
        name=name, commit="abc", data={"source": "digits"},
        teacher={
            "model": "resnet", "width": 32, "num_parameters": 696_042, "flops": 10**7,
            "val_accuracy": 0.98, "test_accuracy": teacher,
        },
        sizes=students, pareto=find_pareto(students),
    )  # fmt: skip


FOUR = make(
    {
        method: [(0.95 + 0.002 * (i + j),) for i in range(4)]
        for j, method in enumerate(("plain", "kd", "kr", "dkd"))
    },
    teacher=0.97,
)
CURVES = {
    "four methods at four sizes": FOUR,
    "one size": make({"plain": [(0.9, 0.91)], "kr": [(0.93, 0.94)]}),
    "one method": make({"kr": [(0.5,), (0.6,), (0.7,), (0.8,)]}),
    "one student, as good as its teacher": make({"kr": [(0.9,)]}),
    "a collapsed method": make({"plain": [(0.95,)] * 4, "kr": [(0.1,)] * 4}),
    "near 0": make({"plain": [(0.0,)] * 2, "kr": [(0.0, 0.01)] * 2}, teacher=0.02),
    "near 100": make({"plain": [(0.999, 1.0)] * 4, "kr": [(1.0,)] * 4}, teacher=1.0),
    "sizes close to each other": make({"kr": [(0.5,)] * 4}, sizes=(3_000, 3_001, 3_010, 3_300)),
    "no finished student": make({"kr": [()]}),
    "no size": make({}),
    "a size that no logarithm has": make({"kr": [(0.5,)] * 2}, latency=0.0),
}


def test_the_range_by_hand():
    # Means 95.0 to 96.2, teacher 97.0: a span of 2 points, of which 6 % are less than half a point.
    assert accuracy_range([FOUR]) == pytest.approx((94.5, 97.5))
    # 10 to 95: 6 % of 85 are 5.1 points, and nothing is above 100.
    assert accuracy_range([CURVES["a collapsed method"]]) == pytest.approx((4.9, 100.0), abs=1e-9)
    # Two seeds a point apart: the mean of 0.5 % has an interval of 12.706 / 2 points on each side,
    # cut at 0 below; half a point is left free above.
    assert accuracy_range([CURVES["near 0"]]) == pytest.approx((0.0, 7.353), abs=1e-3)
    assert accuracy_range([FOUR, CURVES["one method"]]) == pytest.approx((50 - 0.06 * 47, 99.82))


def test_intervals_end_where_accuracies_do():
    assert bars([result(0.0, 0.01), result(0.5), result(0.99, 1.0)]) == (
        pytest.approx([0.5, 0.0, 6.353], abs=1e-3),
        pytest.approx([6.353, 0.0, 0.5], abs=1e-3),
    )


def test_the_range_of_sizes_by_hand():
    low, high = size_range([1_000.0, 100_000.0])
    assert (low, high) == pytest.approx((1_000 / 10**0.12, 100_000 * 10**0.12))
    assert size_range([0.0, 20.0]) == pytest.approx((20 / 1.15, 20 * 1.15))


def test_labels_do_not_overlap_and_one_size_always_has_one():
    assert marked([10, 11, 100, 1_000], (10, 1_000)) == [10, 100, 1_000]
    assert marked([3_000], size_range([3_000])) == [3_000]
    assert marked([3_000, 3_900], size_range([3_000, 3_900])) == [3_000, 3_900]
    assert marked([0.0, 5.0], size_range([5.0])) == [5.0]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws a picture and returns the axes that were saved."""
    saved = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, *args, **options):
        saved.append(figure.axes[0])
        save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)

    def draw(curves):
        if len(curves) == 1:
            draw_curve(curves[0], tmp_path / "curve.png")
        else:
            draw_curves(curves, tmp_path / "curve.png")
        return saved.pop()

    return draw


def check_contains(ends, values):
    assert ends[0] < ends[1]
    for value in values:
        assert ends[0] <= value <= ends[1]


@pytest.mark.parametrize("name", CURVES)
def test_picture_and_page_show_the_range_of_the_data(name, drawn):
    curve = CURVES[name]
    axes, figure = drawn([curve]), _figure([curve])
    layout = figure["layout"]
    assert layout["yaxis"]["range"] == pytest.approx(axes.get_ylim())
    assert [10**end for end in layout["xaxis"]["range"]] == pytest.approx(axes.get_xlim())

    low, high = axes.get_ylim()
    assert 0 <= low < high <= 100
    shown = [
        value
        for trace in figure["data"]
        if "error_y" in trace
        for y, up, down in zip(
            trace["y"], trace["error_y"]["array"], trace["error_y"]["arrayminus"], strict=True
        )
        for value in (y - down, y + up)
    ]
    shown.append(100 * curve.teacher["test_accuracy"])
    check_contains((low, high), shown)
    assert high - low <= max(shown) - min(shown) + max(0.12 * (max(shown) - min(shown)), 1) + 1e-6


@pytest.mark.parametrize("name", CURVES)
def test_each_button_brings_its_own_range_with_a_label(name):
    curve = CURVES[name]
    figure = _figure([curve])
    for button, field in zip(
        figure["layout"]["updatemenus"][0]["buttons"],
        ("num_parameters", "flops", "latency_ms"),
        strict=True,
    ):
        moved, changed = button["args"]
        ends = [10**end for end in changed["xaxis.range"]]
        positive = [x for of_trace in moved["x"] for x in of_trace if x > 0]
        check_contains(ends, positive)
        if positive:
            assert ends[1] / ends[0] <= 1.16**2 * (max(positive) / min(positive)) ** 1.13
            assert [x for x in changed["xaxis.tickvals"] if ends[0] <= x <= ends[1]]
        sizes = {getattr(size, field): size.capacity for size in curve.sizes}
        texts = zip(changed["xaxis.tickvals"], changed["xaxis.ticktext"], strict=True)
        assert all(text.endswith(f"<br>{sizes[x]}") for x, text in texts)


def test_pictures_of_several_runs_have_the_range_of_them_all(drawn):
    curves = [FOUR, make({"kr": [(0.5,)] * 4}, sizes=(100, 200, 300, 400), name="other")]
    axes, layout = drawn(curves), _figure(curves)["layout"]
    assert layout["yaxis"]["range"] == pytest.approx(axes.get_ylim())
    assert [10**end for end in layout["xaxis"]["range"]] == pytest.approx(axes.get_xlim())
    check_contains(axes.get_ylim(), [50.0, 96.2])
    check_contains(axes.get_xlim(), [100, 64_000])
    assert not any("<br>" in text for text in layout["xaxis"]["ticktext"])


def test_students_are_ordered_by_their_own_size():
    curve = make({"kr": [(0.5,), (0.6,)]}, sizes=(4_000, 1_000))
    assert [size.num_parameters for size, _ in finished(curve, "kr")] == [1_000, 4_000]
    assert math.isclose(_figure([curve])["data"][0]["y"][0], 60.0)


def test_equally_large_students_are_all_named_and_names_are_no_shares(drawn, tmp_path):
    sizes = FOUR.sizes
    named = tuple(
        size.model_copy(update={"capacity": name, "num_parameters": count})
        for size, name, count in zip(
            sizes, ("deep", "flat", "big", "huge"), (1_000, 1_000, 9_000, 90_000), strict=True
        )
    )
    curve = FOUR.model_copy(update={"sizes": named, "pareto": find_pareto(named)})
    axes = drawn([curve])
    shown = [text.get_text() for text in axes.get_xticklabels()]
    assert shown == ["1k\ndeep, flat", "9k\nbig", "90k\nhuge"]
    assert axes.get_xlabel() == "Student parameters (below: name), log scale"
    layout = _figure([curve])["layout"]
    assert layout["xaxis"]["ticktext"][0] == "1k<br>deep, flat"
    for one, below in ((curve, "name"), (FOUR, "share of the teacher's parameters")):
        write_interactive([one], tmp_path / "curve.html")
        page = (tmp_path / "curve.html").read_text(encoding="utf-8")
        assert f"Under each size stands the student's {below}." in page
        assert page.count("Under each size stands") == 1


def test_no_two_of_eight_runs_have_one_line_style(drawn):
    curves = [make({"kr": [(0.9,), (0.95,)]}, name=f"run-{number}") for number in range(8)]
    lines = [bars.lines[0] for bars in drawn(curves).containers]
    assert len({(line._dash_pattern[0], str(line._dash_pattern[1])) for line in lines}) == 8
    traces = [trace for trace in _figure(curves)["data"] if "line" in trace]
    assert len({trace["line"]["dash"] for trace in traces}) == len(traces) == 8
    plotly.graph_objects.Figure(_figure(curves))  # raises for unknown dashes
