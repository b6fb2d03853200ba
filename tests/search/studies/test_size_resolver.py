"""The sizes of students before they are built, and the limits on them."""

from pathlib import Path

import pytest
from ladder_play import Assignment, play
from optuna.trial import TrialState

from krscale.config import Experiment, load
from krscale.data import describe_data
from krscale.errors import UserError
from krscale.search.space.space import load_space
from krscale.search.studies.ladder import Ladder
from krscale.search.studies.size_resolver import StudentSizeResolver
from krscale.search.studies.trial_spec import TuningKey
from krscale.setup.networks import Networks
from krscale.setup.sizes import ladder_sizes

SPACE = """
[common]
"train.learning_rate" = { type = "float", low = 0.03, high = 0.5, log = true }
"student.options.num_blocks" = { type = "int", low = 1, high = 3 }
"""


def experiment(folder: Path, *settings: str) -> Experiment:
    (folder / "space.toml").write_text(SPACE)
    return load(
        None,
        [
            f"search.space={folder / 'space.toml'}",
            "search.methods=['plain']",
            "ladder.capacities=['1/64', '1/4']",
            "search.trials_per_size=6",
            "search.num_final_seeds=1",
            *settings,
        ],
    )


def sizes_of(config: Experiment) -> StudentSizeResolver:
    return StudentSizeResolver(
        Networks.resolve(config, describe_data(config.data, config.cache_path))
    )


def test_another_architecture_has_the_parameters_of_its_size(tmp_path: Path) -> None:
    size_resolver = sizes_of(experiment(tmp_path))
    one, three = (size_resolver.size("1/4", {"student.options.num_blocks": n}) for n in (1, 3))
    assert three.width < one.width
    assert three.num_parameters == pytest.approx(one.num_parameters, rel=0.1)
    assert size_resolver.size("1/4", {}) == one, "the experiment's own has one block"


def test_an_architecture_too_thin_for_the_multiple_is_forbidden(tmp_path: Path) -> None:
    """Fails if it trains at a size other than its own, or ends the search with an error."""
    coarse = "student.width_multiple=16", "ladder.capacities=['1/4']", "teacher.width=32"
    config = experiment(tmp_path, *coarse)
    size_resolver = sizes_of(config)
    deep = {"student.options.num_blocks": 12}
    assert size_resolver.size("1/4", deep).width == 16
    assert size_resolver.excess("1/4", {}) == {}
    assert list(size_resolver.excess("1/4", deep)) == ["student.width_multiple"]
    assert sizes_of(experiment(tmp_path)).excess("1/4", deep) == {}


def test_latencies_are_measured_once_a_run_and_per_architecture(tmp_path, monkeypatch) -> None:
    measured = iter([3.0, 5.0, 7.0])
    monkeypatch.setattr(
        "krscale.search.studies.size_resolver.latency_ms", lambda *_: next(measured)
    )
    path, deep = tmp_path / "latency.json", {"student.options.num_blocks": 3}
    first = sizes_of(experiment(tmp_path))
    first.keep_latencies(path)
    assert [first.latency_ms("1/4", v) for v in ({}, deep, {"train.learning_rate": 0.1})] == [
        3,
        5,
        3,
    ]
    assert first.latency_ms("1/4", {"student.options.num_blocks": 1}) == 3, "the same student"
    again = sizes_of(experiment(tmp_path))
    again.keep_latencies(path)
    assert [again.latency_ms("1/4", values) for values in ({}, deep)] == [3, 5]
    path.write_text('{"1/4": 2.0}')  # as an older krscale wrote it
    old = sizes_of(experiment(tmp_path))
    old.keep_latencies(path)
    assert [old.latency_ms("1/4", values) for values in ({}, deep)] == [2, 7]


ACTIVATED = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes, in_channels, width, activation="relu"):
        first = nn.Conv2d(in_channels, width, 3)
        active = {"relu": nn.ReLU, "gelu": nn.GELU}[activation]()
        last = nn.Linear(width, num_classes)
        super().__init__(first, active, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
"""


def test_architectures_of_one_size_have_latencies_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a network that differs in its activations alone gets the latency of another."""
    (tmp_path / "nets_of_one_size.py").write_text(ACTIVATED)
    monkeypatch.syspath_prepend(tmp_path)
    measured = iter([3.0, 5.0])
    monkeypatch.setattr(
        "krscale.search.studies.size_resolver.latency_ms", lambda *_: next(measured)
    )
    own = "student.model=nets_of_one_size:Net", "student.options={activation = 'relu'}"
    found = sizes_of(experiment(tmp_path, *own, "student.taps=['0']"))
    relu, gelu = ({"student.options.activation": name} for name in ("relu", "gelu"))
    assert found.size("1/64", gelu) == found.size("1/64", {})
    assert [found.latency_ms("1/64", values) for values in ({}, gelu, relu, gelu)] == [3, 5, 3, 5]


def test_sizes_beyond_a_limit_are_left_out_and_named(tmp_path: Path) -> None:
    config = experiment(tmp_path, "search.max_parameters=100000")
    said: list[str] = []
    task = describe_data(config.data, config.cache_path)
    kept = sizes_of(config).allowed(ladder_sizes(Networks.resolve(config, task)), said.append)
    assert [size.capacity for size in kept] == ["1/64"]
    assert said == ["size 1/4 is left out: 74% beyond search.max_parameters = 100,000"]


def test_no_size_left_is_refused(tmp_path: Path) -> None:
    config = experiment(tmp_path, "search.max_latency_ms=1e-6")
    task = describe_data(config.data, config.cache_path)
    with pytest.raises(UserError, match=r"(?s)search.max_latency_ms.*no size is left"):
        sizes_of(config).allowed(ladder_sizes(Networks.resolve(config, task)), print)


def test_forbidden_students_cost_no_trial_and_teach_the_sampler(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    task = describe_data(config.data, config.cache_path)
    flops = {n: sizes_of(config).size("1/4", {"student.options.num_blocks": n}).flops
             for n in (1, 2, 3)}  # fmt: skip
    smallest, limit = min(flops, key=flops.__getitem__), sorted(flops.values())[0]
    config = experiment(tmp_path, f"search.max_flops={limit}", "ladder.capacities=['1/4']")
    space = load_space(config, 6)
    sizes = ladder_sizes(Networks.resolve(config, task))
    found = Ladder(tmp_path / "journal.log", config, space, sizes, size_resolver=sizes_of(config))
    blocks = []
    while isinstance(upcoming := found.next(), Assignment):
        blocks.append(upcoming.values["student.options.num_blocks"])
        play(found, upcoming)
    key = TuningKey("plain", "1/4")
    assert blocks == [smallest] * 7, "six trials and one final, none of them forbidden"
    assert len(found.counted(key)) == 6
    forbidden = [t for t in found.optuna_studies[key].trials if "forbidden" in t.user_attrs]
    assert forbidden
    for trial in forbidden:
        assert trial.state is TrialState.PRUNED
        assert trial.constraints["search.max_flops"] > 0


def test_a_study_without_an_allowed_student_ends(tmp_path: Path) -> None:
    config = experiment(tmp_path, "search.max_parameters=10", "ladder.capacities=['1/4']")
    task = describe_data(config.data, config.cache_path)
    found = Ladder(
        tmp_path / "journal.log", config, load_space(config, 6),
        ladder_sizes(Networks.resolve(config, task)),
        size_resolver=sizes_of(config),
    )  # fmt: skip
    assert found.complete or not isinstance(found.next(), Assignment)
    assert "limit" in found.ended_by(TuningKey("plain", "1/4"))
