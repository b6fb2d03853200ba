"""One student by the command: in one process, over Ray Train, interrupted, and refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from drilling import Drill
from running import SMALL, here, one_ray, overrides
from safetensors.torch import load_file

from krscale.setup.networks import Networks

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

# 1,077 images are 13 batches of 77 and one of 76: two workers hold unequal shares of all but one.
UNEVEN = "train.global_batch_size=77"
BRIEF = (*SMALL, "teacher.num_epochs=1")
# Sums in another order differ by 1e-7, which a large learning rate and the kinks of ReLU and of
# sparse recoding amplify, also between two runs of one worker (docs/log.md). Without them, a wrong
# gradient, norm or weight of a sample still shows.
CALM = (
    "student.model=smooth_student:Smooth",
    "student.options={}",
    "train.learning_rate=0.01",
    "train.num_epochs=2",
    "distill.sparsity=0.0",
    "distill.granularity=2",
)


def distil(storage: Path, *settings: str) -> dict[str, object]:
    arguments = ["--json", *overrides(*BRIEF, f"storage_path={storage}", UNEVEN, *settings)]
    torch.set_num_threads(1)  # also in fixtures: makes weights equal, bit by bit
    done = here("distill", arguments)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """One storage for all tests, so that the teacher is trained once; with MLflow's database."""
    folder = tmp_path_factory.mktemp("storage")
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """One Ray for all tests."""
    with one_ray(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def student(storage: Path) -> dict[str, object]:
    return distil(storage)


def test_two_workers_give_the_result_of_one(storage: Path) -> None:
    one = distil(storage, *CALM, "name=alone")
    two = distil(storage, *CALM, "name=shared", "train.num_workers=2")
    assert two["num_workers"] == 2
    alone, shared = (load_file(str(result["weights"])) for result in (one, two))
    assert alone.keys() == shared.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(shared[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert two["val_accuracy"] == one["val_accuracy"]
    assert two["test_accuracy"] == one["test_accuracy"]


def test_same_command_again_shows_the_same_student(
    storage: Path, student: dict[str, object]
) -> None:
    weights = Path(str(student["weights"]))
    stamp = weights.stat().st_mtime_ns
    assert distil(storage) == student
    assert weights.stat().st_mtime_ns == stamp


def test_interrupted_training_goes_on_to_the_same_weights(
    storage: Path, student: dict[str, object]
) -> None:
    run = Path(str(student["weights"])).parent
    expected = load_file(str(student["weights"]))
    # A kill after two of three epochs leaves the checkpoint, but no weights and no result.
    (run / "student.json").unlink()
    (run / "student.safetensors").unlink()
    _rewind(run)
    again = distil(storage)
    assert again["weights"] == student["weights"]
    for name, tensor in load_file(str(again["weights"])).items():
        torch.testing.assert_close(tensor, expected[name])


def test_weights_that_are_gone_are_made_again(storage: Path, student: dict[str, object]) -> None:
    """Fails if a result is shown whose weights are not where it says."""
    weights = Path(str(student["weights"]))
    expected = load_file(weights)
    weights.unlink()
    again = distil(storage)
    assert again["test_accuracy"] == student["test_accuracy"]
    for name, tensor in load_file(weights).items():
        torch.testing.assert_close(tensor, expected[name])


def _rewind(run: Path) -> None:
    """Put the checkpoint of the second epoch in place of the third's."""
    from krscale.parallel import Workers
    from krscale.progress import Progress
    from krscale.runs.experiment_file import read_experiment
    from krscale.setup.build import Assets, build_training
    from krscale.setup.prepare import prepare
    from krscale.setup.sizes import find_size
    from krscale.training.checkpoint import save_checkpoint

    torch.set_num_threads(1)
    experiment = read_experiment(run)
    with Progress(quiet=True, planned={}) as progress:
        assets = Assets.open(prepare(experiment, progress))
    width = find_size(Networks.resolve(experiment, assets.dataset)).width
    training = build_training(experiment, assets, width, Workers.alone())
    training.run_epoch()
    metrics = training.run_epoch()
    state = {"training": training.state_dict(), "metrics": metrics}
    save_checkpoint(run / "checkpoint", state)


@pytest.mark.drill
@pytest.mark.parametrize(("section", "seed"), [("train", 7), ("teacher", 8)])
def test_more_workers_than_the_cluster_has(section: str, seed: int, storage: Path) -> None:
    """The teacher needs a new seed: a kept teacher needs no workers."""
    workers = (f"{section}.num_workers=64", f"teacher.seed={seed}")
    many = (f"storage_path={storage}", "name=many", *workers)
    done = here("distill", overrides(*SMALL, *many))
    assert done.returncode == 2
    assert f"{section}.num_workers" in done.stderr
    assert "64 times 1 CPU, each on one node" in done.stderr
    assert "the cluster has room for 2, on 1 node of 2 CPU" in done.stderr
    assert "Traceback" not in done.stderr


POISONED = ("student.model=poisoned_student:Poisoned", "student.options={}")
NOT_FINITE = "loss term 'ce' is not finite in epoch 1, step 1 of 17"


@pytest.mark.parametrize(
    ("name", "settings", "error"),
    [
        (
            "distill",
            (UNEVEN, "train.learning_rate=1e30"),  # the batch of the teacher that is there
            "loss term 'ce' is not finite in epoch 1, step",
        ),
        pytest.param(
            "distill", (*POISONED, "train.num_workers=2"), NOT_FINITE, marks=pytest.mark.drill
        ),
        (
            "teach",
            ("teacher.learning_rate=1e30",),
            "teacher: loss term 'ce' is not finite in epoch",
        ),
    ],
)
def test_a_loss_that_is_not_finite_is_one_line(
    name: str, settings: tuple[str, ...], error: str, storage: Path, drill: Drill
) -> None:
    drill.injected("a training whose loss becomes NaN")
    drill.must_hold("one line that says so, and exit code 2")
    done = here(name, ["--quiet", *overrides(*BRIEF, f"storage_path={storage}", *settings)])
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("krscale: error: ")
    assert error in last
    assert "Traceback" not in done.stderr
    drill.held(f"{name}: one line")
