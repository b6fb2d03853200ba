"""What goes wrong while a search runs: NaN, a server that is away. For real, on a real Ray."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState
from recorded import journal, mlflow_runs
from running import SMALL, here, one_ray, overrides

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]

ONE_STUDY = (
    "search.methods=['plain']", "ladder.capacities=['1/16']", "search.num_final_seeds=1",
    "cluster.num_cpus=1",
)  # fmt: skip
SPACE = """
[plain]
"train.weight_decay" = { type = "float", low = 1e-5, high = 1e-3, log = true }
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """One for all, so that the teacher is trained once; with MLflow's database."""
    folder = tmp_path_factory.mktemp("storage")
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """One for all."""
    with one_ray(num_cpus=1):
        yield


def space(folder: Path) -> str:
    path = folder / "space.toml"
    path.write_text(SPACE, encoding="utf-8")
    return f"search.space='{path}'"


def test_nan_is_fail_in_optuna_and_mlflow_and_ends_the_search_with_its_first_error(
    storage: Path,
) -> None:
    settings = (*SMALL, *ONE_STUDY, space(storage), f"storage_path={storage}", "name=poisoned")
    done = here(
        "tune",
        overrides(*settings, "train.learning_rate=1e30", "search.max_failures=2"),
    )
    assert done.returncode == 2, done.stderr
    assert "2 trials failed (search.max_failures = 2)" in done.stderr
    assert "NonFiniteError: loss term 'ce' is not finite in epoch 1" in done.stderr
    states = [t.state for study in journal(storage / "poisoned").values() for t in study.trials]
    assert states == [TrialState.FAIL] * 2
    statuses = {r.data.tags["krscale.kind"]: r.info.status for r in mlflow_runs(storage)}
    assert statuses == {"search": "FAILED", "trial": "FAILED"}


def test_mlflow_away_is_said_spooled_and_does_not_stop_the_search(storage: Path) -> None:
    settings = (*SMALL, *ONE_STUDY, space(storage), f"storage_path={storage}", "name=away")
    done = here("tune", ["--json", *overrides(*settings, "tracking.uri=http://127.0.0.1:9")])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sizes"][0]["methods"]["plain"]["num_trials"] == 2
    assert "http://127.0.0.1:9" in done.stderr
    assert "cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
    spool = (storage / "away" / "tracking" / "spool.jsonl").read_text().splitlines()
    assert any("curve/test_accuracy" in line for line in spool)
