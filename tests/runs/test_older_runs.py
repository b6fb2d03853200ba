"""Run folders that krscale wrote at commit 3afaaac are read, continued and exported today.

The archive holds the storage of two searches on digits: `old`, finished, and `cut`, whose process
was killed while both of its first trials trained. MLflow's database is left out.
"""

import json
from pathlib import Path

import optuna
import pytest
from drilling import Drill
from finished_search import without_ray
from optuna.trial import TrialState
from recorded import journal
from running import here, overrides, unpack

from krscale.report import read_curve

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ARCHIVE = Path(__file__).parent / "older" / "runs_3afaaac.tar.xz"
# As printed by a start without them.
FORMER = ("distill.alignment=depth", "distill.auxiliary_schedule=constant",
          "distill.probe_grid=1", "distill.kr_weight=2.0")  # fmt: skip
COMMON = ("teacher.width=8", "teacher.num_epochs=2", "search.methods=['plain', 'kr']",
          "cluster.address=local", "cluster.num_cpus=2", "tracking.enabled=false")  # fmt: skip
OLD = ("name=old", "train.num_epochs=2", "ladder.capacities=['1/16', '1/4']",
       "search.trials_per_rung=3", "search.num_final_seeds=2")  # fmt: skip
CUT = ("name=cut", "train.num_epochs=40", "ladder.capacities=['1/16']",
       "search.trials_per_rung=3", "search.num_final_seeds=1",
       "search.checkpoint_seconds=1")  # fmt: skip


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    unpack(ARCHIVE, folder)
    return folder


def counted(studies: dict[str, optuna.Study]) -> dict[str, int]:
    """Return the number of trials of every study that were not interrupted."""
    return {
        name: sum(not trial.user_attrs.get("interrupted") for trial in study.trials)
        for name, study in studies.items()
    }


def tune(storage: Path, *settings: str) -> dict[str, object]:
    arguments = overrides(*COMMON, f"storage_path={storage}", *FORMER, *settings)
    done = here("tune", ["--quiet", "--json", *arguments])
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def teachers(storage: Path) -> list[str]:
    return sorted(p.name for p in (storage / "cache" / "teachers").iterdir() if p.is_dir())


def test_another_formulation_is_refused_with_what_goes_on(storage: Path) -> None:
    arguments = overrides(*COMMON, f"storage_path={storage}", *OLD)
    done = here("tune", ["--quiet", *arguments])
    assert done.returncode == 2
    assert f"{' '.join(f'--set {setting}' for setting in FORMER)} goes on" in done.stderr


def test_a_finished_search_has_nothing_left_to_do(storage: Path) -> None:
    before, known = read_curve(storage / "old"), teachers(storage)
    trials = {name: len(study.trials) for name, study in journal(storage / "old").items()}
    with without_ray():
        tune(storage, *OLD)
    after = read_curve(storage / "old")
    assert {n: len(study.trials) for n, study in journal(storage / "old").items()} == trials
    assert teachers(storage) == known, "the kept teacher serves"
    assert [size.capacity for size in after.sizes] == ["1/16", "1/4"]
    for size, former in zip(after.sizes, before.sizes, strict=True):
        for method in ("plain", "kr"):
            found, kept = size.methods[method], former.methods[method]
            assert (found.seeds, found.best) == (kept.seeds, kept.best)
            # Another processor may classify one or two of the 450 images differently.
            assert found.test_accuracy == pytest.approx(kept.test_accuracy, abs=0.01)


@pytest.mark.drill
def test_a_killed_search_goes_on_from_its_checkpoints(storage: Path, drill: Drill) -> None:
    drill.injected("SIGKILL to a search of commit 3afaaac")
    drill.must_hold("today's command completes it; each killed trial goes on from its checkpoint")
    tune(storage, *CUT)
    studies = journal(storage / "cut")
    assert counted(studies) == {
        "plain@1/16": 3, "kr@1/16": 3, "plain@1/16 final": 1, "kr@1/16 final": 1,
    }  # fmt: skip
    states = {trial.state for study in studies.values() for trial in study.trials}
    assert TrialState.RUNNING not in states
    for name in ("plain@1/16", "kr@1/16"):
        trials = studies[name].trials
        retries = [trial for trial in trials if "retry_of" in trial.user_attrs]
        assert [trial.user_attrs["retry_of"] for trial in retries] == [0]
        assert "continues" in retries[0].user_attrs
    assert [size.capacity for size in read_curve(storage / "cut").sizes] == ["1/16"]
    drill.held("complete; both killed trials went on from their checkpoints")


@pytest.mark.usefixtures("checked_here")
def test_a_student_is_exported(storage: Path) -> None:
    place = ["--storage-path", str(storage), "--format", "safetensors", "--no-register"]
    done = here("pick", ["old", "--max-params", "100k", "--quiet", *place])
    assert done.returncode == 0, done.stderr
    assert list((storage / "old" / "export").rglob("student.safetensors"))
