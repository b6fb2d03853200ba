"""Choosing from a curve: hand-made cases, and what must hold for any curve."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krscale.errors import UserError
from krscale.pareto import pareto_front
from krscale.report import Curve, CurveSize, MethodResult, Size, find_pareto
from krscale.report.choice import Limits, choose, find_candidates

TEACHER = {
    "model": "resnet", "width": 32, "num_parameters": 400_000, "flops": 10**8,
    "val_accuracy": 0.98, "test_accuracy": 0.97,
}  # fmt: skip


def result(*val: float, test: float = 0.5) -> MethodResult:
    return MethodResult.over_seeds(
        seeds=range(len(val)), val_accuracies=val, test_accuracies=[test] * len(val),
        num_trials=2, num_pruned=0, num_failed=0, best={},
    )  # fmt: skip


def make(*sizes: tuple[int, dict[str, MethodResult]], latency=lambda size: size / 1000) -> Curve:
    built = tuple(
        CurveSize(
            capacity=f"1/{400_000 // size}", width=1, num_parameters=size, flops=10 * size,
            latency_ms=latency(size), methods=methods,
        )
        for size, methods in sizes
    )  # fmt: skip
    return Curve(
        name="made", commit="c", data={}, teacher=TEACHER, sizes=built, pareto=find_pareto(built)
    )


CURVE = make(
    (1_000, {"plain": result(0.80, 0.82), "kr": result(0.90, 0.90)}),
    (10_000, {"plain": result(0.88, 0.90), "kr": result(0.92, 0.96)}),
    (100_000, {"plain": result(0.95, 0.95), "kr": result(0.97, 0.97)}),
)


def test_a_student_with_an_architecture_of_its_own_is_as_large_as_itself() -> None:
    slow = Size(width=3, num_parameters=1_010, flops=40_000, latency_ms=4.0)
    deep = result(0.95, 0.95).model_copy(update={"size": slow})
    curve = make((1_000, {"plain": result(0.8, 0.8), "kr": deep}))
    assert choose(curve, Limits(flops=40_000)).picked.method == "kr"
    assert choose(curve, Limits(flops=39_999)).picked.method == "plain", "the size has 10,000"
    assert choose(curve, Limits(latency_ms=3.9)).picked.method == "plain"
    assert choose(curve, Limits(num_parameters=1_010)).picked.facts() == {
        "capacity": "1/400", "method": "kr", "num_parameters": 1_010, "flops": 40_000,
        "latency_ms": 4.0, "val_accuracy": 0.95,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"picked with --max-params 1010 --min-accuracy 0\.95"):
        choose(curve, Limits(num_parameters=900, min_accuracy=0.95))
    (small, large) = curve.pareto
    assert (small.method, small.flops) == ("plain", 10_000)
    assert (large.method, large.flops, large.latency_ms) == ("kr", 40_000, 4.0)


def test_seeds_with_equally_many_right_answers_are_equally_good() -> None:
    fewer, more = [444, 444, 444, 443, 443], [430, 447, 447, 447, 447]
    for small, large in ((fewer, more), (more, fewer)):
        curve = make(
            (1_000, {"kr": result(*(right / 450 for right in small))}),
            (16_000, {"kr": result(*(right / 450 for right in large))}),
        )
        assert choose(curve, Limits(num_parameters=20_000)).picked.size.num_parameters == 1_000
        assert [entry.num_parameters for entry in curve.pareto] == [1_000]
    curve = make((1_000, {"kr": result(0.7, 0.7, 0.7)}), (16_000, {"kr": result(0.8)}))
    assert choose(curve, Limits(min_accuracy=0.7)).picked.size.num_parameters == 1_000
    thirds = make((1_000, {"kr": result(0.0, 0.0, 1.0)}), (16_000, {"kr": result(0.8)}))
    assert choose(thirds, Limits(min_accuracy=1 / 3)).picked.size.num_parameters == 1_000


@pytest.mark.parametrize(
    "limits",
    [
        {"num_parameters": 0}, {"num_parameters": 0.5}, {"flops": -1}, {"latency_ms": 0.0},
        {"latency_ms": float("nan")},
    ],
)  # fmt: skip
def test_a_limit_that_no_student_can_be_within_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"a limit of {next(iter(limits))}: expected .* \\(got"):
        Limits(**limits)


@pytest.mark.parametrize(
    ("limits", "picked", "runner_up"),
    [
        (Limits(num_parameters=10_000), "kr at 1/40", "kr at 1/400"),
        (Limits(num_parameters=9_999), "kr at 1/400", "plain at 1/400"),
        (Limits(flops=1_000_000), "kr at 1/4", "plain at 1/4"),
        (Limits(latency_ms=10.0), "kr at 1/40", "kr at 1/400"),
        (Limits(num_parameters=100_000, latency_ms=1.0), "kr at 1/400", "plain at 1/400"),
        (Limits(min_accuracy=0.9), "kr at 1/400", "kr at 1/40"),
        (Limits(min_accuracy=0.941), "kr at 1/4", "plain at 1/4"),
        (Limits(min_accuracy=0.85, num_parameters=10_000), "kr at 1/400", "kr at 1/40"),
    ],
)
def test_best_within_the_limits(limits: Limits, picked: str, runner_up: str) -> None:
    choice = choose(CURVE, limits)
    assert choice.picked.name == picked
    assert choice.runner_up is not None
    assert choice.runner_up.name == runner_up


def test_of_equals_the_smaller_is_picked() -> None:
    curve = make((10, {"kr": result(0.9)}), (20, {"kr": result(0.9), "plain": result(0.9)}))
    assert choose(curve, Limits(num_parameters=100)).picked.size.num_parameters == 10


def test_weights_are_of_the_seed_with_the_best_validation() -> None:
    curve = make((10, {"kr": result(0.9, 0.93, 0.93, 0.91)}))
    choice = choose(curve, Limits(num_parameters=100))
    assert choice.picked.best_seed == 1
    assert choice.runner_up is None
    assert choice.reasons == ("the only one of 1 students with at most 100 parameters.",)


def test_reasons_say_limits_gap_and_whether_seeds_tell_them_apart() -> None:
    reasons = choose(CURVE, Limits(num_parameters=10_000)).reasons
    assert reasons[0] == (
        "the most accurate on validation of the 4 (of 6) students with at most 10,000 parameters."
    )
    assert "(-4.0 points; 95 % intervals overlap)" in reasons[1]
    # Two equal seeds each: intervals of width zero.
    assert (
        "(-2.0 points; 95 % intervals do not overlap)"
        in (choose(CURVE, Limits(num_parameters=100_000)).reasons[1])
    )


@pytest.mark.parametrize(
    ("limits", "nearest"),
    [
        (Limits(num_parameters=500), "kr at 1/400"),
        (Limits(latency_ms=0.3), "kr at 1/400"),
        (Limits(min_accuracy=0.99), "kr at 1/4"),
        (Limits(min_accuracy=0.96, num_parameters=50_000), "kr at 1/40"),
    ],
)
def test_impossible_limits_show_the_nearest_and_how_to_get_it(limits: Limits, nearest: str) -> None:
    with pytest.raises(UserError, match=r"none of 6 students has at (most|least)") as caught:
        choose(CURVE, limits)
    message = str(caught.value)
    assert f"Nearest: {nearest}:" in message
    typed = dict(
        re.findall(r"--(max-params|max-flops|max-latency-ms|min-accuracy) ([\d.]+\d)", message)
    )
    again = Limits(
        num_parameters=int(typed["max-params"]) if "max-params" in typed else None,
        latency_ms=float(typed["max-latency-ms"]) if "max-latency-ms" in typed else None,
        min_accuracy=float(typed["min-accuracy"]) if "min-accuracy" in typed else None,
    )
    assert choose(CURVE, again).picked.name == nearest


def test_no_limit_and_no_student() -> None:
    with pytest.raises(UserError, match="a limit is needed"):
        choose(CURVE, Limits())
    with pytest.raises(UserError, match=r"'made' has no finished student \(sizes: 1/400\)"):
        choose(make((1_000, {"kr": result()})), Limits(num_parameters=10))


accuracies = st.integers(0, 20).map(lambda n: n / 20)
curves = st.lists(
    st.tuples(st.integers(1, 30), st.lists(accuracies, min_size=1, max_size=3)),
    min_size=1, max_size=6, unique_by=lambda size: size[0],
).map(
    lambda sizes: make(
        *((size, {f"m{i}": result(a) for i, a in enumerate(vals)}) for size, vals in sizes),
        latency=lambda size: float(size % 7 + 1),
    )
)  # fmt: skip
limits_of = st.builds(
    Limits,
    num_parameters=st.none() | st.integers(1, 30),
    latency_ms=st.none() | st.integers(1, 7).map(float),
    min_accuracy=st.none() | accuracies,
).filter(lambda limits: limits.on_sizes or limits.min_accuracy is not None)


@given(curves, limits_of)
def test_any_choice_is_within_the_limits_and_on_their_front(curve: Curve, limits: Limits) -> None:
    def fits(c) -> bool:
        return (
            (limits.num_parameters is None or c.size.num_parameters <= limits.num_parameters)
            and (limits.latency_ms is None or c.size.latency_ms <= limits.latency_ms)
            and (limits.min_accuracy is None or c.val_accuracy >= limits.min_accuracy)
        )

    feasible = [c for c in find_candidates(curve) if fits(c)]
    if not feasible:
        with pytest.raises(UserError, match="Nearest"):
            choose(curve, limits)
        return
    picked = choose(curve, limits).picked
    assert picked in feasible
    names = list(limits.on_sizes) or ["num_parameters"]
    points = [(c.val_accuracy, *(c.measure(name) for name in names)) for c in feasible]
    front = pareto_front(points, maximise=(True, *(False for _ in names)))
    assert feasible.index(picked) in front or any(feasible[i] == picked for i in front)
    if limits.min_accuracy is None:
        assert picked.val_accuracy == max(c.val_accuracy for c in feasible)
    else:
        assert picked.measure(names[0]) == min(c.measure(names[0]) for c in feasible)


@given(curves, limits_of, st.randoms(use_true_random=False))
def test_test_accuracies_change_nothing(curve: Curve, limits: Limits, random) -> None:
    def shaken(methods: dict[str, MethodResult]) -> dict[str, MethodResult]:
        return {n: result(*r.val_accuracies, test=random.random()) for n, r in methods.items()}

    sizes = tuple(r.model_copy(update={"methods": shaken(r.methods)}) for r in curve.sizes)
    other = curve.model_copy(update={"sizes": sizes, "pareto": find_pareto(sizes)})

    def outcome(curve: Curve) -> str:
        try:
            return choose(curve, limits).picked.name
        except UserError as error:
            return str(error)

    assert outcome(curve) == outcome(other)


def test_limits_are_said_as_they_were_given() -> None:
    slow = make((1_000, {"kr": result(0.9704)}), latency=lambda size: 1_234.5)
    assert Limits(min_accuracy=0.95).describe() == "at least 95.0 % on validation"
    assert Limits(min_accuracy=0.57).describe() == "at least 57.0 % on validation"
    assert Limits(latency_ms=2_500.0).describe() == "at most 2500 ms"
    with pytest.raises(UserError, match=r"has at least 97\.0435 % on .* 1234 ms; 97\.0 % on val"):
        choose(slow, Limits(min_accuracy=0.970435))
