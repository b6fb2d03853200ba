"""Every krscale command of every page is run, or is listed with the reason why it is not.

They run in this process, on a copy of the small finished run, in a folder with what the pages
mention: images, an experiment, a search space. A search is only planned (`--dry-run`), as it takes
minutes and a cluster; a command that trains one network trains a tiny one for one epoch.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from documents import CURRENT, ROOT, blocks, code, commands
from PIL import Image
from running import check_exports_here

from krscale.cli.app import main

NOT_RUN = {
    "tune jobs/cifar100_resnet.toml --set data.path=cifar-100-python": "its archive is not here; "
    "tests/benchmarks/test_cifar_jobs.py",
    "tune jobs/cifar100_wide_resnet.toml --set data.path=cifar-100-python": "likewise",
    "tune jobs/digits.toml --set cluster.address=auto": "a cluster; tests/cluster/test_connect.py",
    "distill jobs/digits.toml --set distill.granularity=3 --set train.num_workers=2": "Ray Train; "
    "tests/cluster/test_train.py",
    "teach jobs/digits.toml --set teacher.num_workers=2": "Ray Train; "
    "tests/drills/test_teacher_on_workers.py",
    "tune jobs/digits.toml --set train.num_workers=2": "groups of workers; "
    "tests/search/on_ray/test_trials.py",
    "taps timm:resnet18 --image 3 64 64": "timm; tests/models/test_libraries.py",
    "sync RUN": "an MLflow server; tests/tracking/test_sync.py",
    "sync digits": "likewise",
    "ui": "a server until Ctrl-C; tests/cli/test_ui.py",
    "insight RUN": "a journal of Optuna, which only a search writes; tests/cli/test_tune.py",
    "insight digits": "likewise",
    "verify RUN": "likewise: a run without its journal is damaged; tests/cli/test_verify.py",
    "pick RUN --refit": "a sentence that names one option; tests/cli/test_pick.py",
    "pick digits --min-accuracy 0.95": "another limit than that of the one that is run",
    "pick digits --min-accuracy 0.95 --refit --format onnx --output ship/": "seconds of training "
    "and of ONNX; tests/cli/test_pick.py",
    "pick photos --max-params 20k --output small": "likewise; tests/cli/test_pick.py",
    "teacher check": "minutes: it trains the default teacher; the next one is run",
    "teacher check my.toml": "run by tests/test_tutorials.py, with the teacher of the tutorial",
    "verify FOLDER": "the folder of an export; tests/cli/test_verify.py",
    "taps my.toml": "a teacher with weights; tests/cli/test_taps.py",
}
"""Commands that are not run here, and why; if another test runs one, it is named."""

PROGRAMS = {
    "git": "no network",
    "make": "targets are checked by name; they set up .venv and take minutes",
    "source": "changes the shell alone",
    "export": "changes the shell alone",
    "umask": "a subshell that writes the token; tests/cluster/test_job_submit.py",
    "ray": "a cluster; tests/cluster/test_job_submit.py",
    "python": "tests/test_tutorials.py, tests/export/test_predict.py",
}
"""Other programs in console lines, and why they are not run here, or which test runs them."""

SMALL = (
    "tracking.enabled=false", "teacher.width=8", "teacher.num_epochs=1", "views.num_views=2",
    "ladder.capacities=['1/16','1/64']", "train.num_epochs=1", "distill.probe_grid=2",
)  # fmt: skip
"""The settings of the small finished run, whose data, teacher and store exist already."""

STANDS_FOR = {
    "RUN": "digits",
    "photos": "digits",  # the run of the tutorial
    "PATH": "my_images",
    "EXPERIMENT.toml": "jobs/digits.toml",
    "experiment.toml": "my.toml",
}


SHOWN = {
    " ".join(arguments): arguments
    for page in CURRENT
    for arguments in commands(page.read_text(encoding="utf-8"))
}
"""Every command of every page, once."""


def runnable(arguments: list[str]) -> list[str]:
    """Return the command as it is run here: planned, or on a tiny network."""
    arguments = [STANDS_FOR.get(word, word).replace("=+", "=") for word in arguments]
    if "--help" in arguments:
        return arguments
    if arguments[0] == "tune":
        return arguments if "--dry-run" in arguments else [*arguments, "--dry-run"]
    if arguments[0] == "pick" and "--format" not in arguments:
        return [*arguments, "--format", "safetensors"]
    takes_settings = arguments[0] in ("teach", "distill") or arguments[-1].endswith(".toml")
    if takes_settings and arguments[0] not in ("data", "space"):
        settings = [word for setting in SMALL for word in ("--set", setting)]
        return [*arguments, *settings]
    return arguments


@pytest.fixture(scope="module")
def desk(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages mention: runs, images, an experiment, a space."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(finished_run.parent, folder / "runs")
    for name in ("digits", "other", "deeper", "with", "without"):
        shutil.copytree(finished_run, folder / "runs" / name)
    (folder / "jobs").symlink_to(ROOT / "jobs")
    random = torch.Generator().manual_seed(0)
    for place in ("my_images/ant", "my_images/bee", "more_images"):
        (folder / place).mkdir(parents=True)
        for number in range(12):
            pixels = torch.randint(0, 256, (12, 12, 3), generator=random, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / place / f"{number}.png")
    (folder / "my.toml").write_text(
        'name = "mine"\n[data]\nsource = "image_folder"\npath = "my_images"\n', encoding="utf-8"
    )
    spaces = blocks((ROOT / "docs" / "search.md").read_text(encoding="utf-8"), "toml")
    (space,) = (text for text in spaces if "[kr]" in text)
    (folder / "mine.toml").write_text(space, encoding="utf-8")
    return folder


@pytest.fixture
def at_desk(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    check_exports_here(monkeypatch)
    monkeypatch.chdir(desk)
    return desk


@pytest.mark.parametrize("shown", sorted(SHOWN.keys() - NOT_RUN.keys()))
def test_a_command_of_a_page_runs(
    shown: str, at_desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        ended_with: object = main(runnable(SHOWN[shown]))
    except SystemExit as ended:  # of --help
        ended_with = ended.code
    said = capsys.readouterr()
    assert ended_with in (0, None), said.err or said.out
    assert said.out.strip()


def test_what_is_not_run_still_stands_on_a_page() -> None:
    assert NOT_RUN.keys() - SHOWN.keys() == set()
    for reason in NOT_RUN.values():
        for name in re.findall(r"tests/\S+\.py", reason):
            assert (ROOT / name).is_file(), name


def test_every_other_program_of_a_console_is_known() -> None:
    shown = {
        re.sub(r"^\(|^(?:[A-Z_]+=\S+ )+", "", line.strip().removeprefix("$ ")).split()[0]
        for page in CURRENT
        for block in code(page.read_text(encoding="utf-8"))
        for line in re.sub(r"\\\n\s*", " ", block).splitlines()
        if line.strip().startswith("$ ")
    }
    assert shown - {"krscale"} == set(PROGRAMS)
