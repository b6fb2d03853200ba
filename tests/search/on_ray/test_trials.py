"""Trials on a real Ray: their threads, their failures, and whether they can be repeated."""

import importlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from brief_trial import BriefTrial
from foreign_networks import LikeResNet
from gratings import MEAN, STD, gratings, trained
from optuna.trial import FrozenTrial, TrialState
from recorded import journal
from rounding import same_but_for_rounding
from running import PATHS, end_ray, give_own_token

import krscale
from krscale.cluster.connect import SETTINGS, num_slots
from krscale.cluster.sending import check_arrival
from krscale.config import Experiment, load, with_values
from krscale.data import prepare_data
from krscale.errors import StorageError, UserError
from krscale.models.given import Copies
from krscale.progress import Progress
from krscale.search.on_ray import run
from krscale.search.on_ray.gpu_packing import candidates, gpus_per_trial
from krscale.search.on_ray.group_resources import gpus_per_worker, require_group, trial_resources
from krscale.search.on_ray.run import run_search
from krscale.search.results import collect
from krscale.search.space.check import fitting_space
from krscale.search.studies.ladder import Ladder
from krscale.search.studies.size_resolver import StudentSizeResolver
from krscale.search.studies.trial_spec import Assignment, FinalKey, TuningKey
from krscale.setup.gpu_memory import GpuMemory, gpu_share
from krscale.setup.networks import Networks
from krscale.setup.prepare import Prepared, prepare
from krscale.setup.sizes import ladder_sizes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

NUM_CPUS = 4
SETTINGS_OF_ALL = (
    "teacher.width=4",
    "teacher.num_epochs=1",
    "distill.probe_grid=2",
    "views.num_views=2",
    "ladder.capacities=['1/4']",
    "search.num_final_seeds=1",
)


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """Start a Ray that is told it has a GPU; torch finds none."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", PATHS)
        patch.delenv("OMP_NUM_THREADS", raising=False)  # set for the tests; a user does not set it
        patch.delenv("RAY_ADDRESS", raising=False)
        give_own_token(patch)
        ray.init(
            address="local", num_cpus=NUM_CPUS, num_gpus=1, include_dashboard=False,
            logging_level="ERROR", log_to_driver=False,
        )  # fmt: skip
        yield
        end_ray()


class Watcher:
    """Records which trials ran at the same time."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.beside: dict[str, set[str]] = {}
        self.losses: dict[str, list[float]] = {}
        self.most = 0

    def on_start(self, assignment: Assignment) -> None:
        self.running.add(assignment.name)
        self.most = max(self.most, len(self.running))
        for name in self.running:
            self.beside.setdefault(name, set()).update(self.running - {name})

    def on_epoch(self, assignment: Assignment, metrics: Mapping[str, float]) -> None:
        loss = metrics.get("train/loss", float("nan"))  # `BriefTrial` has none
        self.losses.setdefault(assignment.name, []).append(loss)

    def on_end(
        self, assignment: Assignment, state: TrialState, metrics: Mapping[str, float], error: str
    ) -> None:
        self.running.remove(assignment.name)


class OneMillisecond(StudentSizeResolver):
    """A SizeResolver that does not depend on the clock, so that searches can be compared."""

    def latency_ms(self, capacity: str, values: Mapping[str, Any]) -> float:
        return 1.0


def run_trials(
    experiment: Experiment, watcher: Watcher, resources: Mapping[str, float]
) -> tuple[Ladder, Prepared]:
    """Run a search as the session does, without MLflow."""
    dataset = prepare_data(experiment.data, experiment.cache_path)
    with Progress(quiet=True, planned={}) as progress:
        prepared = prepare(experiment, progress)
    networks = Networks.resolve(experiment, dataset)
    sizes, space = ladder_sizes(networks), fitting_space(networks)
    experiment.run_path.mkdir(parents=True)
    ladder = Ladder(
        experiment.run_path / "journal.log", experiment, space, sizes, [watcher],
        size_resolver=OneMillisecond(networks),
    )  # fmt: skip
    run_search(ladder, prepared, resources)
    return ladder, prepared


def search(
    experiment: Experiment, watcher: Watcher, resources: Mapping[str, float]
) -> tuple[Ladder, dict[str, Any]]:
    """Run a search; return its ladder and its curve."""
    ladder, prepared = run_trials(experiment, watcher, resources)
    return ladder, collect(ladder, prepared).model_dump(mode="json")


TROUBLES = """
[common."student.options.fate"]
type = "categorical"
choices = ["killed once", "out of memory", "calm"]
"""
Troubled = tuple[Path, Ladder, Watcher]


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Troubled:
    folder = tmp_path_factory.mktemp("troubled")
    (folder / "space.toml").write_text(TROUBLES)
    experiment = load(
        None,
        [
            *SETTINGS_OF_ALL,
            f"storage_path={folder}",
            f"search.space={folder / 'space.toml'}",
            "student.model=troubled_student:Troubled",
            f"student.options={{fate = 'calm', folder = '{folder}'}}",
            "search.methods=['plain']",
            "search.trials_per_size=3",
            "search.sampler=grid",
            "search.early_stopping=none",
            "search.cpus_per_trial=2",
            "search.checkpoint_seconds=0",
            "train.num_epochs=6",
        ],
    )
    watcher = Watcher()
    ladder, _ = search(experiment, watcher, trial_resources(experiment.search, 0.0))
    return folder, ladder, watcher


def attempts(ladder: Ladder, fate: str) -> list[FrozenTrial]:
    trials = ladder.optuna_studies[TuningKey("plain", "1/4")].trials
    return [trial for trial in trials if trial.params["student.options.fate"] == fate]


def test_a_trial_uses_the_threads_of_its_cpus_and_no_more(troubled: Troubled) -> None:
    folder, _, watcher = troubled
    assert watcher.most > 1, "trials ran side by side"
    noted = [json.loads(path.read_text()) for path in folder.glob("threads-*.json")]
    assert noted
    for found in noted:
        assert found["at::get_num_threads"] == 2
        assert found["at::get_num_interop_threads"] == 1
        assert found["omp_get_max_threads"] == found["mkl_get_max_threads"] == 2
        assert all(1 <= number <= 2 for number in found.values()), found


def test_out_of_memory_is_tried_alone_and_then_fails(troubled: Troubled) -> None:
    _, ladder, watcher = troubled
    first, second = attempts(ladder, "out of memory")
    assert first.user_attrs["interrupted"] == "it ran out of memory"
    assert second.user_attrs["retry_of"] == first.number
    assert "interrupted" not in second.user_attrs
    assert "CUDA out of memory" in second.user_attrs["error"]
    assert first.state is second.state is TrialState.FAIL
    key = TuningKey("plain", "1/4")
    assert watcher.beside[ladder.trial_name(key, second.number)] == set(), "alone"


def test_a_killed_worker_costs_no_trial_and_no_epoch_that_was_kept(troubled: Troubled) -> None:
    folder, ladder, _ = troubled
    assert (folder / "died").exists()
    first, second = attempts(ladder, "killed once")
    assert first.user_attrs["interrupted"] == "its worker was lost"
    assert second.user_attrs["continues"] == first.number
    assert second.state is TrialState.COMPLETE
    assert list(second.intermediate_values) == list(range(1, 7))
    kept = first.intermediate_values
    assert len(kept) < 6
    assert kept.items() <= second.intermediate_values.items(), "recalled, not trained again"


def test_the_search_ends_with_the_planned_trials_whatever_befell_them(troubled: Troubled) -> None:
    _, ladder, _ = troubled
    assert ladder.complete
    counted = ladder.counted(TuningKey("plain", "1/4"))
    assert sorted(trial.state.name for trial in counted) == ["COMPLETE", "COMPLETE", "FAIL"]
    assert len(ladder.finals[FinalKey("plain", "1/4")].complete()) == 1
    assert not (ladder.run_path / "unfinished").exists()


def test_trials_of_two_workers_give_the_numbers_of_one(troubled: Troubled, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(TROUBLES.replace('"killed once", "out of memory", ', ""))
    values = {
        "storage_path": str(troubled[0]),  # its teacher is trained already
        "name": "grouped",
        "train.num_workers": 2,
        "search.space": str(tmp_path / "space.toml"),
        "search.trials_per_size": 1,
        "search.cpus_per_trial": 1.0,
        "student.options": {"fate": "calm", "folder": str(tmp_path)},
    }
    experiment = with_values(troubled[1].experiment, values, "grouped")
    watcher = Watcher()
    ladder, _ = search(experiment, watcher, trial_resources(experiment.search, 0.0))
    assert ladder.complete
    assert len(list(tmp_path.glob("threads-*.json"))) == 2, "one group trained them all"
    (alone,) = attempts(troubled[1], "calm")
    expected = troubled[2].losses[ladder.trial_name(TuningKey("plain", "1/4"), alone.number)]
    found = watcher.losses[ladder.trial_name(TuningKey("plain", "1/4"), 0)]
    assert len(found) == 6
    assert same_but_for_rounding(found, expected), (found, expected)


def test_more_workers_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    """A search calls `require_group` before the teacher trains."""
    many = [f"train.num_workers={NUM_CPUS + 1}", "cluster.wait_seconds=1"]
    experiment = load(None, [*SETTINGS_OF_ALL, f"storage_path={tmp_path}", *many])
    with pytest.raises(
        UserError, match=r"^train\.num_workers, .*has room for 4, on 1 node of 4 CPU"
    ):
        require_group(experiment)


def test_groups_take_gpus_where_each_worker_can_have_one() -> None:
    settings = ["train.num_workers=2", "search.gpus_per_trial="]
    found = [gpus_per_worker(load(None, [settings[0], settings[1] + n])) for n in ("auto", "2")]
    assert found == [0.0, 2.0], "the cluster has one GPU"
    assert gpus_per_worker(load(None, [settings[0], "train.device=cuda"])) == 1.0


@pytest.mark.drill  # the suite tests when a search gives up, and its error (test_searcher.py)
def test_trials_that_fail_end_the_search_with_the_first_error(
    troubled: Troubled, tmp_path: Path
) -> None:
    """drills/test_numbers.py checks what MLflow has afterwards."""
    decay = '"train.weight_decay" = { type = "float", low = 1e-5, high = 1e-3, log = true }'
    (tmp_path / "space.toml").write_text(f"[plain]\n{decay}\n")
    values = {
        "storage_path": str(troubled[0]),  # its teacher is trained already
        "name": "poisoned",
        "search.space": str(tmp_path / "space.toml"),
        "search.trials_per_size": 2,
        "search.sampler": "random",
        "search.max_failures": 2,
        "student.model": "resnet",
        "student.options": {},
        "train.learning_rate": 1e30,
    }
    experiment = with_values(troubled[1].experiment, values, "poisoned")
    with pytest.raises(UserError) as ended:
        run_trials(experiment, Watcher(), trial_resources(experiment.search, 0.0))
    assert str(ended.value).startswith("search: 2 trials failed (search.max_failures = 2).")
    assert "NonFiniteError: loss term 'ce' is not finite in epoch 1" in str(ended.value)
    states = [t.state for study in journal(experiment.run_path).values() for t in study.trials]
    assert states == [TrialState.FAIL] * 2


def test_one_trial_at_a_time_repeats_every_trial_and_every_number(
    tmp_path: Path,
) -> None:
    def numbers(name: str) -> Any:
        """Run a search with a storage of its own, so that its teacher is also trained anew."""
        experiment = load(
            None,
            [
                *SETTINGS_OF_ALL,
                f"storage_path={tmp_path / name}",
                f"name={name}",
                "search.methods=['kr']",
                "search.trials_per_size=2",
                "search.grace_epochs=1",
                "train.num_epochs=3",
            ],
        )
        watcher = Watcher()
        ladder, curve = search(experiment, watcher, {"CPU": NUM_CPUS})
        trials = {
            key.name: [
                (t.number, t.state.name, t.params, t.intermediate_values, t.user_attrs)
                for t in study.trials
            ]
            for key, study in ladder.optuna_studies.items()
        }
        return trials, curve["sizes"], curve["teacher"]

    assert numbers("first") == numbers("again")


def fake_reader():
    """Return a memory reader for a machine without a GPU; nested, so it is pickled by value."""

    def read(device: torch.device) -> GpuMemory:
        return GpuMemory(f"{device} of {os.getpid()}", 16 * 2**30, 5 * 2**30)

    return read


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


def packed(storage: Path, *settings: str, **reader: Any) -> tuple[float, list[str], Path]:
    experiment = load(None, [*SETTINGS_OF_ALL, f"storage_path={storage}", *settings])
    dataset = prepare_data(experiment.data, experiment.cache_path)
    networks = Networks.resolve(experiment, dataset)
    space, sizes = (
        fitting_space(networks),
        StudentSizeResolver(networks),
    )
    with Progress(quiet=True, planned={}) as progress:
        prepared = prepare(experiment, progress)
    said: list[str] = []
    found = gpus_per_trial(
        experiment, prepared, lambda: candidates(experiment, space, sizes, "1/4"), said.append,
        **reader,
    )  # fmt: skip
    return found, said, experiment.run_path / "packing.json"


def test_a_worker_measures_and_what_it_found_is_said_and_kept(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel(*_: Any, **__: Any) -> None:
        raise AssertionError("a task cancelled at its end may abort the driver")

    monkeypatch.setattr(ray, "cancel", cancel)
    found, said, kept = packed(storage, "name=measured", read=fake_reader())
    assert found == 0.5, "two of 5 GiB in 16 less a tenth"
    content = json.loads(kept.read_text())
    assert content["gpus_per_trial"] == 0.5
    assert content["trials_per_gpu"] == 2
    assert content["name"] != f"cpu of {os.getpid()}", "not the driver"
    assert said == [
        "search.gpus_per_trial = 0.5: 2 trials share a GPU; the largest student takes 5.00 of "
        f"16.0 GiB ({content['name']})"
    ]


def test_places_are_whole_trials_whatever_floats_make_of_their_shares() -> None:
    assert num_slots({"CPU": 0.1}) == 10 * NUM_CPUS
    assert num_slots({"CPU": 0.1, "GPU": gpu_share(7)}) == 7
    assert num_slots({"CPU": 1.5}) == 2


def test_a_second_worker_comes_up_though_trials_end_sooner_than_it_starts(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "StudentTrial", BriefTrial)
    experiment = load(
        None,
        [
            *SETTINGS_OF_ALL,
            f"storage_path={storage}",
            "name=brief",
            "search.methods=['plain']",
            "search.sampler=random",
            "search.trials_per_size=400",
            "search.target_accuracy=0.9",
            "train.num_epochs=1",
        ],
    )
    watcher = Watcher()
    run_trials(experiment, watcher, {"CPU": NUM_CPUS / 2})
    assert len(list((experiment.run_path / "workers").iterdir())) == 2
    assert watcher.most <= 3, "a trial for every place, and one that a growing cluster would see"


# The suite tests the error of each kind of worker (cluster/test_versions.py) and that it ends the
# search (test_run.py).
@pytest.mark.drill
def test_a_worker_with_another_torch_ends_the_search_and_no_trial_counts(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node may have joined after the nodes were compared."""
    monkeypatch.setattr(run, "own_versions", lambda: {"torch": "9.9"})
    settings = [f"storage_path={storage}", "name=mixed", "search.methods=['plain']"]
    experiment = load(None, [*SETTINGS_OF_ALL, *settings])
    expected = r"no running trial counts: .* has other versions than here: torch \S+ \(here 9\.9\)"
    with pytest.raises(StorageError, match=expected):
        run_trials(experiment, Watcher(), {"CPU": NUM_CPUS})
    states = [t.state for study in journal(experiment.run_path).values() for t in study.trials]
    assert TrialState.RUNNING in states
    assert TrialState.FAIL not in states


@pytest.mark.parametrize("setting", ["search.gpus_per_trial=0.25", "train.device=cpu"])
def test_nothing_is_measured_where_nothing_is_to_be_known(storage: Path, setting: str) -> None:
    found, said, _ = packed(storage, setting, read=fake_reader())
    assert found == (0.25 if "0.25" in setting else 0.0)
    assert said == []


def test_networks_without_a_name_reach_the_workers(tmp_path: Path) -> None:
    """A trained network, and a function that is defined here: pickled by value or by its module."""
    result = krscale.search(
        teacher=trained(),
        students={"tiny": lambda: LikeResNet(2)},
        data=(gratings(0, 90), gratings(1, 60), gratings(2, 60)),
        normalisation=(MEAN, STD),
        methods=["kr"],
        num_trials=1,
        num_epochs=2,
        num_final_seeds=1,
        early_stopping="none",
        gpus_per_trial=0,
        storage_path=str(tmp_path),
        quiet=True,
        settings={"views.num_views": 1, "distill.probe_grid": 2, "tracking.enabled": False},
    )
    (row,) = result.rows
    assert row["num_trials"] == 1
    assert isinstance(result.load_student(), LikeResNet)


def test_what_workers_cannot_import_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text(
        "from foreign_networks import LikeResNet\nclass Here(LikeResNet):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    here = importlib.import_module("only_here").Here
    with pytest.raises(UserError, match=r"student\.model: 'only_here:Here': cannot import"):
        check_arrival(["resnet", "timm:x", "only_here:Here"], {})
    builders = {"object:tiny.Here": Copies(here(2), "tiny")}
    with pytest.raises(UserError, match=r"tiny\.Here: workers cannot read it .*only_here.*module"):
        check_arrival(builders, builders)
    builders = {"object:tiny.function": lambda: LikeResNet(2)}
    check_arrival(["foreign_networks:LikeResNet", *builders], builders)
