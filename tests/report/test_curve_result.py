import io
import json
import math

import pytest
from pydantic import ValidationError
from rich.console import Console
from scipy.stats import binomtest

from krscale.errors import UserError
from krscale.files import write_json
from krscale.report import (
    Budgets,
    Curve,
    CurveSize,
    FrontTrial,
    MethodResult,
    find_pareto,
    front_table,
    read_curve,
    write_curve,
)
from krscale.report.interval import half_width, sampling_half_width
from krscale.report.table import curve_table

TEACHER = {
    "model": "resnet", "width": 32, "num_parameters": 400_000, "flops": 12_000_000,
    "val_accuracy": 0.985, "test_accuracy": 0.982,
}  # fmt: skip


def result(val, test, **changes):
    fields = {
        "seeds": range(len(val)), "val_accuracies": val, "test_accuracies": test,
        "num_trials": 8, "num_pruned": 4, "num_failed": 1,
        "best": {"distill.granularity": 3, "train.learning_rate": 0.1},
    }  # fmt: skip
    return MethodResult.over_seeds(**(fields | changes))


def size(capacity, num_parameters, **methods):
    return CurveSize(
        capacity=capacity, width=2, num_parameters=num_parameters, flops=10 * num_parameters,
        latency_ms=0.25, methods=methods,
    )  # fmt: skip


def curve(*sizes):
    return Curve(
        name="digits", commit="abc1234", data={"source": "digits", "fingerprint": "f00"},
        teacher=TEACHER, sizes=sizes, pareto=find_pareto(sizes),
    )  # fmt: skip


def test_a_written_curve_is_read_back_and_has_every_key_of_the_format(tmp_path):
    small = size("1/64", 6000, plain=result([0.5, 0.7], [0.4, 0.5]), kr=result([0.8], [0.9]))
    written = curve(small)
    path = write_curve(written, tmp_path)
    assert path == tmp_path / "curve.json"
    assert read_curve(tmp_path) == written
    content = json.loads(path.read_text())
    assert set(content) == {
        "name", "commit", "data", "teacher", "sizes", "pareto", "cost", "budgets",
        "sha256_of_above",
    }  # fmt: skip
    assert set(content["sizes"][0]) == {
        "capacity", "num_parameters", "flops", "latency_ms", "methods", "width",
    }  # fmt: skip
    plain = content["sizes"][0]["methods"]["plain"]
    assert plain["test_accuracy"] == pytest.approx(0.45)
    assert plain["val_accuracy"] == pytest.approx(0.6)
    assert plain["best"] == {"distill.granularity": 3, "train.learning_rate": 0.1}
    assert {"num_trials", "num_pruned", "num_failed", "seeds"} <= set(plain)
    assert set(content["pareto"][0]) == {
        "capacity", "method", "num_parameters", "flops", "latency_ms", "val_accuracy",
        "test_accuracy",
    }  # fmt: skip


def test_a_curve_written_before_sizes_fronts_and_budgets_is_read(tmp_path):
    written = curve(size("1/4", 9, kr=result([0.5], [0.5])))
    path = write_curve(written, tmp_path)
    content = json.loads(path.read_text())
    for name in ("size", "front", "ended_by"):
        del content["sizes"][0]["methods"]["kr"][name]
    del content["budgets"], content["cost"]
    write_json(path, content)
    assert read_curve(tmp_path) == written
    assert written.sizes[0].size_of("kr").flops == 90


def test_a_curve_with_means_that_were_not_rounded_is_read_as_one_of_today(tmp_path):
    small = size("1/64", 6000, kr=result([0.7] * 3, [0.7] * 3))
    large = size("1/16", 24_000, kr=result([0.7] * 2, [0.7] * 2))
    today = curve(small, large)
    content = today.model_dump(mode="json")
    for name in ("val_accuracy", "test_accuracy"):
        content["sizes"][0]["methods"]["kr"][name] = math.fsum([0.7] * 3) / 3
    assert content["sizes"][0]["methods"]["kr"]["val_accuracy"] < 0.7, "as it was written"
    content["pareto"].append({**content["pareto"][0], "capacity": "1/16"})
    write_json(tmp_path / "curve.json", content)
    assert read_curve(tmp_path) == today


def test_what_ended_a_search_and_what_it_was_allowed_is_kept(tmp_path):
    budgets = Budgets(
        trials_per_size=8, num_final_seeds=5, max_wall_seconds=0.0, max_epochs=40,
        target_accuracy=0.0,
    )  # fmt: skip
    ended = result([0.5], [0.5], ended_by="max_epochs")
    written = curve(size("1/4", 9, kr=ended)).model_copy(update={"budgets": budgets})
    content = json.loads(write_curve(written, tmp_path).read_text())
    assert read_curve(tmp_path) == written
    reason = content["sizes"][0]["methods"]["kr"]["ended_by"]
    assert content["budgets"][reason] == 40


def test_the_front_of_trials_is_kept_and_shown(tmp_path):
    front = [
        FrontTrial(
            number=n, objectives={"val/accuracy": accuracy, "flops": flops},
            settings={"student.options.num_blocks": blocks, "student.model": "resnet",
                      "train.learning_rate": 0.1},
        )
        for n, accuracy, flops, blocks in ((4, 0.9, 39_600, 3), (1, 0.85, 12_000, 1))
    ]  # fmt: skip
    written = curve(size("1/4", 9, kr=result([0.5], [0.5], front=front)))
    write_curve(written, tmp_path)
    assert read_curve(tmp_path) == written
    shown = Console(width=80, file=io.StringIO())
    shown.print(front_table(written, ascii_only=True))
    lines = [line.split() for line in shown.file.getvalue().splitlines()]
    assert ["size", "method", "validation", "%", "FLOPs", "student"] in lines
    assert ["1/4", "kr", "90.0", "39.6k", "resnet", "num_blocks=3"] in lines
    assert ["1/4", "kr", "85.0", "12k", "resnet", "num_blocks=1"] in lines


def test_the_front_is_chosen_by_validation_never_by_test():
    sizes = [
        size("1/4", 100, plain=result([0.9], [0.1]), kr=result([0.8], [1.0])),
        size("1/16", 25, plain=result([0.6], [0.0]), kr=result([0.7], [0.0])),
        size("1/64", 6, plain=result([0.7], [1.0])),
        size("1/256", 2, kr=result([], [])),
    ]
    front = find_pareto(sizes)
    assert [(e.capacity, e.method) for e in front] == [("1/64", "plain"), ("1/4", "plain")]
    assert front[1].test_accuracy == 0.1


def test_a_method_whose_trials_all_failed_has_no_accuracy(tmp_path):
    failed = result([], [], num_trials=2, num_failed=2)
    assert failed.test_accuracy is None
    assert failed.val_accuracy is None
    write_curve(curve(size("1/4", 9, kr=failed)), tmp_path)
    assert read_curve(tmp_path).sizes[0].methods["kr"] == failed


@pytest.mark.parametrize(
    "change",
    [
        {"test_accuracy": 0.8},
        {"test_accuracy": None},
        {"seeds": (0,)},
        {"test_accuracies": (0.5, 1.7), "test_accuracy": 1.1},
        {"val_accuracies": (math.nan, 0.5), "val_accuracy": math.nan},
    ],
)
def test_inconsistent_results_are_refused(change):
    fields = result([0.5, 0.7], [0.4, 0.5]).model_dump()
    MethodResult.model_validate(fields)
    with pytest.raises(ValidationError):
        MethodResult.model_validate(fields | change)


def test_where_no_search_has_finished_there_is_no_curve(tmp_path):
    with pytest.raises(UserError, match=r"no search has finished here: there is no curve\.json"):
        read_curve(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}', '{"nam": 1}', "NaN"])
def test_a_file_that_is_no_curve_is_a_user_error(tmp_path, text):
    (tmp_path / "curve.json").write_text(text)
    with pytest.raises(UserError, match=r"curve\.json: damaged: .* another version of krscale"):
        read_curve(tmp_path)


@pytest.mark.parametrize("accuracy", [0.0, 0.3, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("count", [1, 15, 450, 10_000])
def test_sampling_against_wilsons_interval(accuracy, count):
    right = round(accuracy * count)
    exact = binomtest(right, count).proportion_ci(method="wilson")
    assert sampling_half_width(right / count, count) == pytest.approx((exact.high - exact.low) / 2)


def test_a_table_says_how_much_its_test_images_are_worth():
    def caption(data, *tests):
        sizes = [size("1/64", 6000, plain=result([0.5], [test])) for test in tests]
        made = curve(*sizes).model_copy(update={"data": data})
        return str(curve_table(made, ascii_only=False).caption)

    assert "450 test images: ±0.8 to ±2.2 on others" in caption({"num_test": 450}, 0.938, 0.995)
    assert "15 test images: ±19.1 on others like them" in caption({"num_test": 15}, 0.8)
    assert "test images" not in caption({}, 0.8)
    assert "test images" not in caption({"num_test": 0}, 0.8)


def test_half_width_against_the_table_of_student_t():
    # t_{2, 0.975} = 4.30265, t_{4, 0.975} = 2.77645 from a printed table.
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.30265 * 1.0 / math.sqrt(3), rel=1e-5)
    assert half_width([1, 2, 3, 4, 5]) == pytest.approx(2.77645 * math.sqrt(2.5 / 5), rel=1e-5)
    assert half_width([0.5]) is None
    assert half_width([]) is None
    assert half_width([0.5, 0.5]) == 0.0
