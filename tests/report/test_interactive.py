"""The interactive figure: its content, and that a real browser shows it without a network."""

import itertools
import re
import time

import plotly.graph_objects
import pytest
from chromium import chromium, keep_screenshot, requested, wait_for
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from krscale.report import (
    Curve,
    CurveSize,
    MethodResult,
    ShownRun,
    find_pareto,
    write_interactive,
    write_page,
)
from krscale.report.figure import draw_curve, styles_of
from krscale.report.interactive import _figure


def result(*accuracies: float) -> MethodResult:
    return MethodResult.over_seeds(
        seeds=range(len(accuracies)), val_accuracies=accuracies, test_accuracies=accuracies,
        num_trials=4, num_pruned=1, num_failed=0, best={"distill.sparsity": 0.312345},
    )  # fmt: skip


def make(name: str = "digits") -> Curve:
    sizes = (
        CurveSize(
            capacity="1/16", width=3, num_parameters=3_000, flops=56_000, latency_ms=0.2,
            methods={"plain": result(0.88, 0.90), "kr": result(0.94, 0.96)},
        ),
        CurveSize(
            capacity="1/4", width=6, num_parameters=11_000, flops=219_000, latency_ms=0.3,
            methods={"plain": result(0.97, 0.99), "kr": result()},
        ),
    )  # fmt: skip
    return Curve(
        name=name, commit="abc", data={"source": "digits"},
        teacher={
            "model": "resnet", "width": 32, "num_parameters": 696_042, "flops": 10**7,
            "val_accuracy": 0.98, "test_accuracy": 0.989,
        },
        sizes=sizes, pareto=find_pareto(sizes),
    )  # fmt: skip


def test_points_intervals_front_and_teacher_are_in_the_figure() -> None:
    curve = make()
    figure = _figure([curve])
    plotly.graph_objects.Figure(figure)  # raises for unknown names
    plain, kr, front = figure["data"]
    assert [trace["name"] for trace in figure["data"]] == ["plain", "kr", "Pareto front"]
    assert plain["y"] == pytest.approx([89.0, 98.0])
    # Two seeds 2 points apart: t_{1, 0.975} * sqrt(2) / sqrt(2) = 12.706
    assert plain["error_y"]["arrayminus"] == pytest.approx([12.706, 12.706], abs=1e-3)
    assert plain["error_y"]["array"] == pytest.approx([11.0, 2.0]), "no accuracy is above 100 %"
    assert kr["x"] == pytest.approx([3_000], rel=0.05), "a size without a student is left out"
    assert front["y"] == pytest.approx([95.0, 98.0])
    assert [shape["y0"] for shape in figure["layout"]["shapes"]] == [98.9]
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert "sparsity 0.312" in kr["text"][0]


def test_no_two_methods_look_alike() -> None:
    methods = ["plain", "kd", "kr", *(f"m{number}" for number in range(50))]
    styles = styles_of(methods)
    assert len(set(styles.values())) == len(methods)
    assert len({marker for _, marker in list(styles.values())[:13]}) == 13
    size = make().sizes[0]
    result = size.methods["kr"]
    sizes = (size.model_copy(update={"methods": dict.fromkeys(methods, result)}),)
    drawn = _figure([make().model_copy(update={"sizes": sizes})])["data"]
    looks = {
        (trace["marker"]["color"], trace["marker"]["symbol"]) for trace in drawn if "line" in trace
    }
    assert len(looks) == len(methods)
    plotly.graph_objects.Figure({"data": drawn})  # raises for an unknown symbol


def test_buttons_move_every_point_to_the_other_axes() -> None:
    curve = make()
    figure = _figure([curve, make("other")])
    assert [trace["name"] for trace in figure["data"]][3:5] == ["other: plain", "other: kr"]
    buttons = figure["layout"]["updatemenus"][0]["buttons"]
    for button, axis in zip(buttons, ("num_parameters", "flops", "latency_ms"), strict=True):
        places, _ = button["args"]
        assert [len(x) for x in places["x"]] == [len(trace["x"]) for trace in figure["data"]]
        expected = [getattr(size, axis) for size in curve.sizes]
        assert places["x"][0] == pytest.approx(expected, rel=0.05)
        assert places["x"][2] == pytest.approx(expected, rel=0.05), "the rings go with them"


def test_equally_accurate_teachers_are_all_named() -> None:
    first, same, larger = make("a"), make("b"), make("c")
    larger = larger.model_copy(update={"teacher": {**larger.teacher, "num_parameters": 11_000_000}})
    layout = _figure([first, same, larger])["layout"]
    assert [note["text"] for note in layout["annotations"]] == [
        "teacher: 696k and 11M parameters, 98.9 %"
    ]


def test_slow_students_have_whole_milliseconds_on_the_axis() -> None:
    curve = make()
    sizes = tuple(s.model_copy(update={"latency_ms": 6_172 * s.latency_ms}) for s in curve.sizes)
    slow = curve.model_copy(update={"sizes": sizes, "pareto": find_pareto(sizes)})
    buttons = _figure([slow])["layout"]["updatemenus"][0]["buttons"]
    shown = {button["label"]: button["args"][1]["xaxis.ticktext"] for button in buttons}
    assert shown["Latency"] == ["1234<br>1/16", "1852<br>1/4"]


def test_a_name_cannot_break_out(tmp_path) -> None:
    evil = '</script><script>alert("x")</script>\x00\x1b\ud800'
    write_interactive([make(evil)], tmp_path / "curve.html")
    text = (tmp_path / "curve.html").read_text(encoding="utf-8")
    assert evil[:-3] not in text
    assert "alert(" not in re.sub(r"&lt;script&gt;alert\(&#34;", "", text)
    assert "\x00\x1b" not in text


@pytest.fixture
def offline(tmp_path):
    """A browser without a network, which must log no error and request nothing from outside."""
    with chromium(tmp_path / "profile", (1100, 900)) as driver:
        driver.set_network_conditions(offline=True, latency=0, throughput=0)
        requested(driver)  # the empty page it starts with
        yield driver
        assert driver.get_log("browser") == []
        assert {url.partition(":")[0] for url in requested(driver)} <= {"file", "data", "blob"}


def test_figure_and_page_open_from_disk(tmp_path, offline) -> None:
    curve = make()
    write_interactive([curve], tmp_path / "curve.html")
    offline.get((tmp_path / "curve.html").as_uri())
    points = "return document.querySelectorAll('.scatterlayer .point').length"
    wait_for(lambda: offline.execute_script(points) == 5, "3 students and 2 rings")
    offline.find_elements(By.CSS_SELECTOR, ".updatemenu-button")[1].click()
    title = "return document.querySelector('.xtitle').textContent"
    wait_for(lambda: "FLOPs of one image" in offline.execute_script(title), "the other axis")
    keep_screenshot(offline, "curve")
    titles = "return [...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)"
    shown = offline.execute_script(titles)
    assert "Autoscale" in shown
    assert not [title for title in shown if "hare" in title or "loud" in title], "it would upload"

    draw_curve(curve, tmp_path / "curve.png")
    picture = (tmp_path / "curve.png").read_bytes()
    write_page([ShownRun(curve, picture, None, {})], tmp_path / "report.html")
    offline.get((tmp_path / "report.html").as_uri())
    assert offline.execute_script("return document.images[0].naturalWidth") > 500
    keep_screenshot(offline, "report")


def test_hostile_names_are_shown_and_do_nothing(tmp_path, offline) -> None:
    evil = '"><img src=x onerror="window.hacked=1"> & {{ 7 * 7 }}'
    students = tuple(
        size.model_copy(
            update={"capacity": evil, "methods": {evil: result(0.9), "kr": result(0.8)}}
        )
        for size in make().sizes
    )
    curve = make(evil).model_copy(update={"sizes": students, "pareto": ()})
    write_interactive([curve], tmp_path / "curve.html")
    offline.get((tmp_path / "curve.html").as_uri())
    shown = "return [...document.querySelectorAll('text')].map(text => text.textContent)"
    wait_for(lambda: f"{evil}: accuracy versus capacity" in offline.execute_script(shown), "title")
    assert evil in offline.execute_script(shown), "the method in the legend"
    write_page([ShownRun(curve, b"", None, {}, evil)], tmp_path / "report.html")
    offline.get((tmp_path / "report.html").as_uri())
    assert f"Run {evil}" not in offline.page_source
    assert offline.title == f"Accuracy versus capacity: {evil}"
    assert offline.execute_script("return window.hacked") is None
    assert len(offline.find_elements(By.TAG_NAME, "img")) == 1


RANGES = """const {xaxis, yaxis} = document.querySelector('.js-plotly-plot')._fullLayout;
return [xaxis.range.map(end => Math.pow(10, end)), yaxis.range]"""
HEIGHTS = """return [...document.querySelectorAll('.scatterlayer .trace')].map(trace =>
    [...trace.querySelectorAll('.point')].map(p => {
        const box = p.getBoundingClientRect(); return (box.top + box.bottom) / 2}))"""
PLOT = """const box = document.querySelector('.nsewdrag').getBoundingClientRect();
return [box.top, box.bottom]"""


def close_methods() -> Curve:
    """Four methods at four sizes, all within three points."""
    sizes = tuple(
        CurveSize(
            capacity=f"1/{4 ** (4 - i)}", width=i + 1, num_parameters=1_000 * 4**i,
            flops=50_000 * 4**i, latency_ms=0.2 * (i + 1),
            methods={
                method: result(0.96 + 0.006 * j + 0.002 * i)
                for j, method in enumerate(("plain", "kd", "kr", "dkd"))
            },
        )
        for i in range(4)
    )  # fmt: skip
    return make().model_copy(update={"sizes": sizes, "pareto": ()})


def test_a_reader_sees_the_curves_apart(tmp_path, offline) -> None:
    write_interactive([close_methods()], tmp_path / "curve.html")
    offline.get((tmp_path / "curve.html").as_uri())
    points = "return document.querySelectorAll('.scatterlayer .point').length"
    wait_for(lambda: offline.execute_script(points) == 16, "16 students")
    keep_screenshot(offline, "curve-four-methods")
    sizes, accuracies = offline.execute_script(RANGES)
    assert 95.0 < accuracies[0] < 96.0
    assert 98.9 < accuracies[1] < 99.9
    assert 500 < sizes[0] < 1_000
    assert 64_000 < sizes[1] < 100_000
    top, bottom = offline.execute_script(PLOT)
    heights = [of_method for of_method in offline.execute_script(HEIGHTS) if of_method]
    assert all(top < y < bottom for of_method in heights for y in of_method)
    first = [of_method[0] for of_method in heights]
    apart = [a - b for a, b in itertools.pairwise(first)]
    assert len(apart) == 3
    assert min(apart) > 0.1 * (bottom - top), "of 0.6 points, where 0 to 100 would be 2 pixels"

    # A double click shows all students again on the chosen axis, not on the first one.
    offline.find_elements(By.CSS_SELECTOR, ".updatemenu-button")[1].click()
    wait_for(lambda: offline.execute_script(RANGES)[0][0] > 10_000, "the axis of FLOPs")
    plot = offline.find_element(By.CSS_SELECTOR, ".nsewdrag")
    ActionChains(offline).move_to_element_with_offset(plot, 50, 90).double_click().perform()
    time.sleep(1)
    sizes, accuracies = offline.execute_script(RANGES)
    assert 25_000 < sizes[0] < 50_000
    assert 50_000 * 64 < sizes[1] < 50_000 * 128
    assert accuracies[1] <= 100
