"""A disk that is full while a search runs, and has room again afterwards."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from drill_searches import Report, fates, own_ray, trials_of
from drilling import Drill
from optuna.trial import TrialState

from krscale.errors import UserError
from krscale.search.session import run_session
from krscale.search.studies.retries import was_interrupted

pytestmark = [pytest.mark.drill, pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB; only root can mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill all free space."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return path


@pytest.mark.parametrize("tracking", [True, False], ids=["tracked", "untracked"])
def test_a_full_disk_stops_a_search_and_counts_nothing(
    drill: Drill, small_disk: Path, capfd: pytest.CaptureFixture[str], *, tracking: bool
) -> None:
    report = Report(drill, f"the disk fills up while trials run, tracking {tracking}")
    settings = (f"tracking.enabled={str(tracking).lower()}", "train.num_epochs=12")
    experiment = fates(small_disk, "slow", "calm", settings=settings)
    filled: list[Path] = []

    def fill_in_mid_epoch() -> None:
        while not list(small_disk.glob("slow-*")):
            time.sleep(0.1)
        filled.append(fill(small_disk))

    thread = threading.Thread(target=fill_in_mid_epoch)
    thread.start()
    said = ""
    with own_ray(2):
        began = time.monotonic()
        try:
            run_session(experiment, quiet=True)
        except UserError as error:
            said = str(error).replace(str(small_disk), "STORAGE")  # it is shown on a page
        drill.measured("until the search has stopped", time.monotonic() - began, "s")
        thread.join()
        report.must_hold(f"it stops with one sentence: {said!r}", "full" in said)
        report.must_hold("of one line", said and "\n" not in said)
        before = trials_of(experiment.run_path)
        failed = [
            t for ts in before.values() for t in ts
            if t.state is TrialState.FAIL and not was_interrupted(t)
        ]  # fmt: skip
        report.must_hold("no trial has failed of it", not failed)
        filled[0].unlink()
        run_session(experiment, quiet=True)
    errors = capfd.readouterr().err
    report.must_hold(
        "no traceback, no bad file descriptor",
        "Traceback" not in errors and "bad file descriptor" not in errors.lower(),
    )
    after = {name: [t for t in ts if not was_interrupted(t)] for name, ts in trials_of(
        experiment.run_path).items()}  # fmt: skip
    report.must_hold(
        "with room again it ends exact: two trials and one final, all complete",
        sorted(map(len, after.values())) == [1, 2]
        and all(t.state is TrialState.COMPLETE for ts in after.values() for t in ts),
    )
    report.done()


def test_a_full_disk_under_rays_session_stops_a_search(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, "the disk of Ray's session fills up while trials run")
    with TemporaryDirectory(prefix="kr", ignore_cleanup_errors=True) as name:  # a short path
        session = Path(name) / "disk"
        session.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(session)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("this user cannot mount a file system")
        experiment = fates(tmp_path, "slow", "calm", settings=("train.num_epochs=12",))
        filled: list[Path] = []

        def fill_in_mid_epoch() -> None:
            while not list(tmp_path.glob("slow-*")):
                time.sleep(0.1)
            filled.append(fill(session))

        thread = threading.Thread(target=fill_in_mid_epoch)
        thread.start()
        said = ""
        try:
            with own_ray(2, session=session):
                try:
                    run_session(experiment, quiet=True)
                except UserError as error:
                    said = str(error)
                thread.join()
                filled[0].unlink()
            with own_ray(2):
                run_session(experiment, quiet=True)
        finally:
            subprocess.run(["umount", "--lazy", str(session)], check=True)
    after = {
        name: [t for t in ts if not was_interrupted(t)]
        for name, ts in trials_of(experiment.run_path).items()
    }
    report.must_hold("it ended, or stopped with one sentence", "\n" not in said)
    report.must_hold(
        "with room again it ends exact: two trials and one final, all complete",
        sorted(map(len, after.values())) == [1, 2]
        and all(t.state is TrialState.COMPLETE for ts in after.values() for t in ts),
    )
    report.done()
