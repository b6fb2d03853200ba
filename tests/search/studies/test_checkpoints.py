"""A trial that was cut short goes on from its checkpoint, and ends as if nothing had happened."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from krscale.config import Experiment, load, with_values
from krscale.progress import Progress
from krscale.search.on_ray import trial as trial_module
from krscale.search.on_ray.searcher import LadderSearcher, Running
from krscale.search.on_ray.trial import StudentTrial
from krscale.search.studies import checkpoints as unfinished
from krscale.search.studies.checkpoints import Keeper, checkpoint_path, sweep
from krscale.search.studies.trial_spec import TuningKey
from krscale.setup.prepare import Prepared, prepare
from krscale.training.checkpoint import load_checkpoint, save_checkpoint

KEY = TuningKey("kr", "1/16")
NUM_EPOCHS = 4
Assets = tuple[Experiment, Prepared]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    settings = (
        f"storage_path={tmp_path_factory.mktemp('storage')}",
        "teacher.width=4",
        "teacher.num_epochs=1",
        "teacher.allow_poor=true",
        "distill.probe_grid=2",
        "views.num_views=2",
        "data.max_images=700",
        f"train.num_epochs={NUM_EPOCHS}",
        "search.checkpoint_seconds=0",
    )
    experiment = load(None, settings)
    with Progress(quiet=True, planned={}) as progress:
        return experiment, prepare(experiment, progress)


def config_of(number: int, continues: int | None = None) -> dict[str, Any]:
    """Return a trial as the searcher hands it out."""
    return {
        "method": KEY.method,
        "capacity": KEY.capacity,
        "kind": "trial",
        "name": KEY.trial_name(number),
        "continues": "" if continues is None else KEY.trial_name(continues),
        "width": 3,
        "seed": 5,
        "values": {"train.learning_rate": 0.05},
        "milestones": tuple(range(1, NUM_EPOCHS)),
    }


def start(assets: Assets, number: int, continues: int | None = None) -> StudentTrial:
    """Begin a trial as Tune does in its actor, without Ray."""
    trial = object.__new__(StudentTrial)
    trial.setup(config_of(number, continues), *assets)
    return trial


def run(trial: StudentTrial, num_steps: int = NUM_EPOCHS + 1) -> list[dict[str, Any]]:
    results = []
    while len(results) < num_steps and not (results and results[-1]["done"]):
        results.append(trial.step())
    return results


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after every epoch, whatever they cost."""
    monkeypatch.setattr(unfinished, "MAX_SHARE", 1e9)


Whole = tuple[StudentTrial, list[dict[str, float]]]


@pytest.fixture(scope="module")
def whole(assets: Assets) -> Whole:
    """An uninterrupted trial, and the metrics of its epochs."""
    torch.set_num_threads(1)
    trial = start(assets, number=0)
    return trial, [metrics for result in run(trial) for metrics in result["history"]]


@pytest.fixture(scope="module")
def interrupted(assets: Assets) -> Path:
    """The checkpoint of a trial that was killed after two epochs; tests copy it."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unfinished, "MAX_SHARE", 1e9)
        run(start(assets, number=3), num_steps=2)
    return checkpoint_path(assets[0].run_path, KEY.trial_name(3))


@pytest.mark.usefixtures("eager")
def test_a_continued_trial_ends_exactly_like_an_uninterrupted_one(
    assets: Assets, whole: Whole
) -> None:
    trained, expected = whole
    assert len(expected) == NUM_EPOCHS

    killed = start(assets, number=1)
    run(killed, num_steps=2)
    del killed
    torch.manual_seed(99)  # as if the next process had drawn other random numbers
    continued = start(assets, number=2, continues=1)
    results = run(continued)
    assert [len(result["history"]) for result in results] == [2, 1, 1], "two epochs are recalled"
    assert [metrics for result in results for metrics in result["history"]] == expected
    for name, tensor in trained.training.student.state_dict().items():
        assert torch.equal(tensor, continued.training.student.state_dict()[name]), name


@pytest.mark.usefixtures("eager")
def test_interrupted_twice_goes_on_from_the_second_checkpoint(assets: Assets) -> None:
    run(start(assets, number=10), num_steps=1)
    run(start(assets, number=11, continues=10), num_steps=2)
    assert len(start(assets, number=12, continues=11).recalled) == 2


def test_the_next_trial_of_a_worker_drops_the_checkpoints_of_the_one_before(
    assets: Assets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without the driver nobody else does, and each trial writes one."""
    dropped = list[Path]()
    monkeypatch.setattr(trial_module, "drop_checkpoint", dropped.append)
    trial = start(assets, number=20)
    trial.reset_config(config_of(22, continues=21))
    trial.reset_config(config_of(23))
    path = assets[0].run_path
    assert dropped == [checkpoint_path(path, KEY.trial_name(number)) for number in (20, 22, 21)]


def cut(folder: Path) -> None:
    state = folder / "state.pt"
    state.write_bytes(state.read_bytes()[:100])


def without_training(folder: Path) -> None:
    save_checkpoint(folder, {"history": []})


def of_another_student(folder: Path) -> None:
    """Save a whole checkpoint whose last weight does not fit the student."""
    state = load_checkpoint(folder)
    weights = state["training"]["learner"]
    name = list(weights)[-1]
    weights[name] = torch.zeros(3, 1, 4)
    save_checkpoint(folder, state)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("number", "spoil", "reason"),
    [
        (20, cut, "state.pt: broken: its SHA-256 is"),
        (22, lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: damaged"),
        (24, shutil.rmtree, "not a checkpoint"),
        (26, without_training, "the field 'training' is missing"),
        (28, of_another_student, "size mismatch"),
    ],
)
def test_a_broken_checkpoint_is_named_and_costs_its_epochs_only(
    assets: Assets,
    whole: Whole,
    interrupted: Path,
    number: int,
    spoil: Callable[[Path], object],
    reason: str,
) -> None:
    _, expected = whole
    folder = checkpoint_path(assets[0].run_path, KEY.trial_name(number))
    spoil(Path(shutil.copytree(interrupted, folder)))
    results = run(start(assets, number=number + 1, continues=number))
    assert [metrics for result in results for metrics in result["history"]] == expected
    notes = [result["note"] for result in results]
    assert notes[0].startswith(
        f"{KEY.trial_name(number + 1)} cannot go on from the checkpoint of "
        f"{KEY.trial_name(number)} and starts from the beginning: {folder}"
    )
    assert reason in notes[0]
    assert set(notes[1:]) == {""}, "it is said once"


@pytest.mark.usefixtures("eager")
def test_nothing_is_said_of_a_whole_one(assets: Assets, interrupted: Path) -> None:
    shutil.copytree(interrupted, checkpoint_path(assets[0].run_path, KEY.trial_name(40)))
    results = run(start(assets, number=41, continues=40))
    assert {result["note"] for result in results} == {""}


def test_a_note_of_a_worker_reaches_the_user() -> None:
    class Counting:
        reported = 0

        def report(self, assignment: object, metrics: dict[str, float]) -> bool:
            self.reported += 1
            return False

    said: list[str] = []
    ladder = Counting()
    searcher = LadderSearcher(ladder, (), None, said.append)  # type: ignore[arg-type]
    searcher.trials["x"] = Running(None, {})  # type: ignore[arg-type]
    searcher.on_report("x", {"note": "damaged", "history": [{"epoch": 1.0}, {"epoch": 2.0}]})
    searcher.on_report("x", {"note": "", "history": [{"epoch": 3.0}]})
    assert said == ["damaged"]
    assert ladder.reported == 3


def test_short_trials_write_no_checkpoint(assets: Assets) -> None:
    experiment = with_values(assets[0], {"search.checkpoint_seconds": 3600.0}, "test")
    run(start((experiment, assets[1]), number=30))
    assert not checkpoint_path(experiment.run_path, KEY.trial_name(30)).exists()


def test_slow_storage_is_written_to_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    writes = []

    def write_for_two_seconds(path: Path, state: object, note: str) -> None:
        nonlocal now
        writes.append(now)
        now += 2.0

    class Endless:
        finished = False

        def state_dict(self) -> dict[str, int]:
            return {}

    monkeypatch.setattr(unfinished, "save_checkpoint", write_for_two_seconds)
    keeper = Keeper(tmp_path, 5.0, clock=lambda: now)
    while now < 1000:
        keeper.keep(Endless(), [])  # type: ignore[arg-type]
        now += 1.0
    assert writes[0] == 5.0
    assert 2.0 * len(writes) <= 1000 * unfinished.MAX_SHARE + 2.0


def test_sweep_leaves_only_what_a_waiting_trial_needs(tmp_path: Path) -> None:
    kept, gone = (checkpoint_path(tmp_path, KEY.trial_name(number)) for number in (1, 2))
    for folder in (kept, gone):
        folder.mkdir(parents=True)
    sweep(tmp_path, {kept})
    assert kept.exists()
    assert not gone.exists()
    sweep(tmp_path, set())
    assert not (tmp_path / "unfinished").exists()
