"""The same name started twice at once: the second is refused, and the first is not affected."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drilling import Drill
from parts.killed_search import NUM_FINALS, NUM_STUDIES, NUM_TRIALS, SETTINGS
from parts.recorded_trials import find_faults, recorded_trials
from running import ROOT, environment, here, overrides

pytestmark = [
    pytest.mark.drill,
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # MLflow's client
]


@pytest.fixture
def temporary() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="kr", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_the_same_name_twice_at_once(drill: Drill, tmp_path: Path, temporary: Path) -> None:
    drill.must_hold("the second start ends at once with one sentence that names the first")
    drill.must_hold("the first has exactly its trials, nothing doubled, also in MLflow")
    run, log = tmp_path / "twice", tmp_path / "log.txt"
    settings = overrides(
        *SETTINGS, f"storage_path={tmp_path}", "name=twice", "tracking.experiment=twice"
    )

    def begun() -> bool:
        return (run / ".owner").exists()

    def in_the_middle() -> bool:
        return sum(trial.ended for trial in recorded_trials(run).values()) >= 2

    with log.open("w") as output:
        first = subprocess.Popen(
            [sys.executable, "-m", "krscale.tune", "--quiet", *settings], cwd=ROOT,
            env=environment(RAY_TMPDIR=str(temporary)), stdout=output, stderr=output,
        )  # fmt: skip
        try:
            refuse(drill, first, begun, settings)
            refuse(drill, first, in_the_middle, settings)
            assert first.wait(600) == 0, log.read_text()
        finally:
            first.kill()
            first.wait()
    drill.held(f"both named process {first.pid}")
    planned = {False: NUM_TRIALS, True: NUM_FINALS}
    assert find_faults(run, planned, NUM_STUDIES) == []
    drill.held(f"{len(recorded_trials(run))} trials, as planned")


def refuse(
    drill: Drill, first: "subprocess.Popen[bytes]", is_time: Callable[[], bool], settings: list[str]
) -> None:
    """Wait for `is_time`, start the same command in this process, and check that it is refused."""
    while not is_time():
        assert first.poll() is None, "it ended before"
        time.sleep(0.1)
    began = time.monotonic()
    second = here("tune", ["--quiet", *settings])
    drill.injected("a second start of the same name while the first runs")
    drill.measured("until the second has ended", time.monotonic() - began, "s")
    assert second.returncode == 2, second.stderr
    (line,) = second.stderr.strip().splitlines()
    assert f"run 'twice' is being run now by process {first.pid} on" in line
    assert first.poll() is None
