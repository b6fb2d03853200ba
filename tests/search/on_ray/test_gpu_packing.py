"""Trials per GPU: the arithmetic, the candidates that are tried, and the probe with a fake GPU."""

from unittest.mock import create_autospec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from krscale.config import Experiment, load
from krscale.data import describe_data
from krscale.errors import UserError
from krscale.progress import Progress
from krscale.search.on_ray import gpu_packing as packing
from krscale.search.on_ray.gpu_packing import candidates, gpus_per_trial
from krscale.search.on_ray.group_resources import trial_resources
from krscale.search.space.space import load_space
from krscale.search.studies.size_resolver import StudentSizeResolver
from krscale.setup import gpu_memory
from krscale.setup.gpu_memory import (
    GpuMemory,
    ProbeCandidate,
    gpu_share,
    probe,
    read_memory,
    trials_per_gpu,
)
from krscale.setup.networks import Networks
from krscale.setup.prepare import Prepared, prepare
from krscale.training.loop import Training, evaluate

GIB = 2**30
SPACE = """
[common]
"train.global_batch_size" = { type = "categorical", choices = [32, 64, 256] }

[kr]
"distill.granularity" = { type = "int", low = 1, high = "num_taps" }
[kr."distill.auxiliary_weight"]
type = "float"
low = 0.1
high = 2.0
when = { "distill.granularity" = { low = 2 } }
"""
Assets = tuple[Experiment, Prepared]


def memory(trial_gib: float, total_gib: float = 16.0) -> GpuMemory:
    return GpuMemory("a GPU", int(total_gib * GIB), int(trial_gib * GIB))


@pytest.mark.parametrize(
    ("trial_gib", "cpus_per_gpu", "cpus_per_trial", "expected"),
    [
        (2.0, 64.0, 1.0, 7),  # 16 GiB less a tenth hold seven trials of 2 GiB
        (1.8, 64.0, 1.0, 8),  # 14.4 GiB hold exactly eight
        (2.0, 4.0, 1.0, 4),  # there is no core for more
        (2.0, 8.0, 3.0, 2),
        (2.0, 1.0, 0.1, 7),
        (15.0, 64.0, 1.0, 1),  # it did run, but without the margin
        (2.0, 1.0, 2.0, 1),  # Ray then reports what the cluster lacks
    ],
)
def test_trials_of_a_gpu(
    trial_gib: float, cpus_per_gpu: float, cpus_per_trial: float, expected: int
) -> None:
    assert trials_per_gpu(memory(trial_gib), cpus_per_gpu, cpus_per_trial) == expected


@given(st.integers(min_value=1, max_value=10_000))
def test_so_many_trials_fit_a_gpu_as_ray_counts(num_trials: int) -> None:
    counted = round(10_000 * gpu_share(num_trials))
    assert counted == pytest.approx(10_000 * gpu_share(num_trials)), "nothing left to round"
    assert counted >= 1
    assert num_trials * counted <= 10_000


def test_a_cpu_search_reserves_no_gpu() -> None:
    assert trial_resources(load(None, ["search.cpus_per_trial=0.5"]).search, 0.0) == {"CPU": 0.5}


@pytest.mark.parametrize("value", ["1.5", "-1", "most"])
def test_impossible_shares_are_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"^--set search.gpus_per_trial: .* \(got .*\)\.$"):
        load(None, [f"search.gpus_per_trial={value}"])


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    folder = tmp_path_factory.mktemp("storage")
    (folder / "space.toml").write_text(SPACE)
    settings = (
        f"storage_path={folder}",
        f"search.space={folder / 'space.toml'}",
        "search.methods=['plain', 'kr']",
        "ladder.capacities=['1/16', '1/4']",
        "teacher.width=4",
        "teacher.num_epochs=1",
        "distill.probe_grid=2",
        "views.num_views=2",
    )
    experiment = load(None, settings)
    with Progress(quiet=True, planned={}) as progress:
        return experiment, prepare(experiment, progress)


def tried(experiment: Experiment, *limits: str) -> list[ProbeCandidate]:
    task = describe_data(experiment.data, experiment.cache_path)
    size_resolver = StudentSizeResolver(Networks.resolve(experiment, task))
    return candidates(experiment, load_space(experiment, 4), size_resolver, "1/4")


def test_every_method_is_tried_at_the_ends_of_its_space(assets: Assets) -> None:
    found = tried(assets[0])
    assert {student.width for student in found} == {3}, "the largest student"
    batches, deepest, weight = (
        "train.global_batch_size", "distill.granularity", "distill.auxiliary_weight",
    )  # fmt: skip
    assert [s.values for s in found if s.method == "plain"] == [
        {}, {batches: 32}, {batches: 64}, {batches: 256},
    ]  # fmt: skip
    assert [s.values for s in found if s.method == "kr"] == [
        {},
        {batches: 32, deepest: 1},
        {batches: 64, deepest: 4, weight: 2.0},
        {batches: 256, deepest: 1},
    ]


def test_what_a_limit_forbids_is_not_tried(assets: Assets) -> None:
    class Nothing:
        def excess(self, capacity: str, values: object) -> dict[str, float]:
            return {"search.max_parameters": 0.5}

    space = load_space(assets[0], 4)
    assert candidates(assets[0], space, Nothing(), "1/4") == []  # type: ignore[arg-type]


def test_the_probe_trains_and_judges_every_candidate(
    assets: Assets, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    judged: list[int] = []
    step = Training._step
    monkeypatch.setattr(
        Training,
        "_step",
        lambda self, batch: (
            steps.append((len(batch.labels), len(self.optimiser.state))), step(self, batch)
        )[1],
    )  # fmt: skip
    monkeypatch.setattr(
        "krscale.training.loop.evaluate",
        lambda model, dataset, split, workers: (
            judged.append(len(split)), evaluate(model, dataset, split, workers)
        )[1],
    )  # fmt: skip
    monkeypatch.setattr("krscale.training.loop.EVALUATION_BATCH_SIZE", 100)
    students = tried(assets[0])
    found = probe(*assets, students, lambda device: memory(2.0))
    assert found == memory(2.0)
    assert len(steps) == 2 * len(students)
    assert max(size for size, _ in steps) > 200, "the largest batch of the space"
    assert all(momenta > 0 for _, momenta in steps[1::2]), "the second step has momentum"
    assert judged == [100] * len(students)


def test_without_a_gpu_nothing_is_trained(assets: Assets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_memory, "build_training", None)
    assert probe(*assets, tried(assets[0]), lambda device: None) is None
    assert read_memory(torch.device("cpu")) is None


def test_what_lies_beside_the_allocator_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's functions are replaced by fakes with the same signatures."""
    device = torch.device("cuda")
    answers = {
        "mem_get_info": (60 * GIB, 80 * GIB),  # 20 in use: 5 by the allocator now, 15 outside it
        "memory_reserved": 5 * GIB,
        "max_memory_reserved": 9 * GIB,
        "get_device_name": "A GPU",
    }
    asked = {
        name: create_autospec(getattr(torch.cuda, name), return_value=answers[name])
        for name in answers
    }
    for name, ask in asked.items():
        monkeypatch.setattr(torch.cuda, name, ask)
    assert read_memory(device) == GpuMemory("A GPU", 80 * GIB, (9 + 15) * GIB)
    for ask in asked.values():
        ask.assert_called_once_with(device)


def test_gpus_that_torch_does_not_see_are_left_alone_with_a_word(
    assets: Assets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "has_gpus", lambda experiment: True)
    monkeypatch.setattr(packing, "_probe_on_worker", lambda *_: None)
    said: list[str] = []
    assert gpus_per_trial(*assets, list, said.append) == 0.0
    assert said == ["search.gpus_per_trial: Ray has GPUs, but torch sees none; trials run on CPUs."]
    assert not (assets[0].run_path / "packing.json").exists()


def test_a_student_too_large_for_any_gpu_is_named(
    assets: Assets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(self: Training) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90 GiB.\nMore.")

    monkeypatch.setattr(Training, "rehearse", hungry)
    with pytest.raises(
        UserError, match=r"width 3 with method 'plain' .*Tried to allocate 90 GiB\)"
    ):
        probe(*assets, tried(assets[0]), lambda device: memory(2.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_more_is_taken_by_larger_batches(assets: Assets) -> None:
    small = probe(*assets, [ProbeCandidate("plain", 2, {"train.global_batch_size": 32})])
    large = probe(*assets, [ProbeCandidate("plain", 64, {"train.global_batch_size": 1024})])
    assert small is not None
    assert large is not None
    assert 0 < small.peak_bytes < large.peak_bytes <= large.total_bytes
