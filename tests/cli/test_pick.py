"""`krscale pick` on a finished run: what is chosen, exported, trained again, and refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from finished_run import BEST
from running import environment, in_process
from safetensors.torch import load_file

import krscale.runs.refit
from krscale.cli.pick import _count, _share
from krscale.config import with_values
from krscale.data import open_data, prepare_data
from krscale.digests import digest_path
from krscale.files import CHECKSUM, write_json
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.report import Limits, MethodResult, Size, find_pareto, read_curve, write_curve
from krscale.runs.deliver import Order, choose_student, deliver
from krscale.runs.experiment_file import read_experiment
from krscale.runs.folder import student_path
from krscale.setup.network_builder import build_student
from krscale.setup.networks import Networks
from krscale.setup.sizes import find_size
from krscale.training.checkpoint import save_weights
from krscale.training.loop import evaluate

pytestmark = pytest.mark.timeout(300)
main = in_process("pick")


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory) -> Path:
    """A copy in another folder than the one it was made in, as when a user moves results."""
    storage = tmp_path_factory.mktemp("moved")
    shutil.copytree(finished_run.parent, storage / "runs")
    return storage / "runs" / finished_run.name


@pytest.mark.usefixtures("checked_here")
def test_pick_ends_with_an_onnx_file_of_the_tables_accuracy(run, capsys) -> None:
    size = read_curve(run).sizes[0]
    assert main([str(run), "--max-params", str(size.num_parameters), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    best = max(size.methods, key=lambda name: size.methods[name].val_accuracy)
    result = size.methods[best]
    seed = max(range(2), key=lambda i: result.val_accuracies[i])
    assert out.startswith(f"Picked {best} at 1/16: {size.num_parameters:,} parameters")
    assert "Why: the most accurate on validation of the 2 (of 4) students with at most" in out
    assert "Runner-up" in out
    folder = run / "export" / f"1-16-{best}"
    assert out.endswith(f"Folder: {folder}\n")
    assert f"{result.test_accuracies[seed]:.2%} on test" in out

    experiment = read_experiment(run)
    dataset = prepare_data(experiment.data, run.parent / "cache")
    split = dataset.split("test")
    session = onnxruntime.InferenceSession(str(folder / "student.onnx"))
    (logits,) = session.run(None, {"images": split.images.astype(np.float32) / 255})
    assert (logits.argmax(1) == split.labels).mean() == result.test_accuracies[seed]
    path = student_path(run, best, "1/16", result.seeds[seed])
    kept, shipped = load_file(path), load_file(folder / "student.safetensors")
    assert kept.keys() == shipped.keys()
    assert all(kept[name].equal(shipped[name]) for name in kept)


def test_json_alone_is_on_stdout_and_nothing_heavy_is_imported(run, tmp_path) -> None:
    arguments = [
        "tiny", "--storage-path", str(run.parent), "--min-accuracy", "1%", "--json", "--quiet",
        "--format", "safetensors", "--output", str(tmp_path / "ship"),
    ]  # fmt: skip
    code = (
        "import sys\nimport pytest\nfrom krscale.cli.app import main\n"
        "from running import check_exports_here\n"
        "check_exports_here(pytest.MonkeyPatch())  # another process would be of tests/export\n"
        f"assert main({['pick', *arguments]!r}) == 0\n"
        "heavy = {'ray', 'optuna', 'mlflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=environment(),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["picked"]["capacity"] == "1/16"
    assert found["folder"] == str(tmp_path / "ship")
    card = json.loads((tmp_path / "ship" / "student.json").read_text())
    further = {"files", "script", CHECKSUM}
    assert found["student"] == {key: card[key] for key in card if key not in further}
    assert found["files"] == card["files"]
    provenance = card["provenance"]
    assert provenance["run"] == "tiny"
    assert provenance["settings"] == BEST
    assert provenance["trained_on"] == ["train"]
    assert len(provenance["teacher"]["fingerprint"]) == 16
    assert provenance["data"]["fingerprint"] == read_curve(run).data["fingerprint"]


@pytest.mark.parametrize(
    ("text", "count"), [("1.009k", 1009), ("4.1k", 4100), ("2.0095k", 2009), ("8.2M", 8_200_000)]
)
def test_a_count_is_read_as_it_is_written(text, count) -> None:
    assert _count("--max-params", text) == count
    assert [_share("--min-accuracy", f"{n / 10:g}%") for n in range(1001)] == [
        n / 1000 for n in range(1001)
    ]


class Watching(Progress):
    """Records the epochs of the training, and may end it like a kill."""

    def __init__(self, kill_after: int = 0) -> None:
        super().__init__(quiet=True, planned={})
        self.kill_after = kill_after
        self.title = ""
        self.epochs: list[int] = []

    def phase(self, title: str) -> None:
        self.title = title

    def advance(self, done: int, total: int) -> None:
        if self.title == "train":
            self.epochs.append(done)
            if done == self.kill_after:
                raise KilledError


class KilledError(Exception):
    pass


def refit_again(run: Path, output: Path, epochs: list[int]) -> dict[str, torch.Tensor]:
    """Pick and refit; `epochs` are those that it must train."""
    order = Order(Limits(num_parameters=10**6), True, ("safetensors",), output)
    curve, choice = choose_student(run, order)
    watching = Watching()
    delivery = deliver(run, curve, choice, order, watching)
    assert watching.epochs == epochs
    assert delivery.card.accuracy["val"] is None
    assert delivery.card.provenance["trained_on"] == ["train", "val"]
    return load_file(delivery.folder / "student.safetensors")


@pytest.mark.usefixtures("checked_here")
def test_refit_learns_from_validation_too_and_survives_an_interruption(
    run, tmp_path, monkeypatch
) -> None:
    sizes = []
    build = krscale.runs.refit.build_training

    def watched(experiment, assets, width, workers):
        training = build(experiment, assets, width, workers)
        sizes.append(training.loader.num_samples)
        return training

    monkeypatch.setattr(krscale.runs.refit, "build_training", watched)
    whole = refit_again(run, tmp_path / "whole", epochs=[1, 2])
    dataset = open_data(next(p for p in (run.parent / "cache/data").glob("digits-*") if
                             (p / "val.arrow").exists()))  # fmt: skip
    assert sizes == [dataset.num_samples["train"] + dataset.num_samples["val"]]
    refit_again(run, tmp_path / "again", epochs=[])
    content = json.loads((run / "experiment.json").read_text())
    content["experiment"]["search"]["trials_per_size"] += 8  # as a continued search writes it
    write_json(run / "experiment.json", content)
    refit_again(run, tmp_path / "again", epochs=[])

    # The same from the start, killed after its first epoch, then started again.
    shutil.rmtree(run / "refit")
    order = Order(Limits(num_parameters=10**6), True, ("safetensors",), tmp_path / "killed")
    with pytest.raises(KilledError):
        deliver(run, *choose_student(run, order), order, Watching(kill_after=1))
    assert not (tmp_path / "killed").exists()
    (folder,) = (run / "refit").iterdir()
    assert (folder / "checkpoint").is_dir()
    # The first epoch is reported again, from its checkpoint; training continues from there.
    continued = refit_again(run, tmp_path / "continued", epochs=[1, 2])
    assert not (folder / "checkpoint").exists()
    for name, tensor in whole.items():
        torch.testing.assert_close(continued[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a limit is needed: --max-params"),
        (["--max-params", "many"], "--max-params: expected a positive number"),
        (["--max-params", "-5"], "--max-params: expected a positive number"),
        (["--max-params", "0.5"], "--max-params: expected at least 1"),
        (["--max-params", "1e999999999"], "--max-params: expected a positive number"),
        (["--max-flops", "0.9"], "--max-flops: expected at least 1"),
        (["--max-flops", "nan"], "--max-flops: expected a positive number"),
        (["--min-accuracy", "95"], r"--min-accuracy: expected a share such as 0\.95, or 95%"),
        (["--max-params", "10"], r"none of 4 students .* picked with --max-params \d+"),
        (["--max-params", "1M", "--format", "onx"], "--format: unknown format 'onx'"),
        (["--max-params", "1M", "--format", ","], "--format: at least one format"),
        (["--max-params", "1M", "--output", "."], "it would be replaced"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(arguments, message, run, capsys) -> None:
    assert main([str(run), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(message, err), err
    assert len(err.splitlines()) == 1


def test_unknown_run_and_run_without_a_curve(run, capsys) -> None:
    storage = run.parent
    assert main(["tny", "--max-params", "1k", "--storage-path", str(storage)]) == 2
    assert "no such run. Did you mean 'tiny'?" in capsys.readouterr().err
    (storage / "empty").mkdir(exist_ok=True)
    assert main(["empty", "--max-params", "1k", "--storage-path", str(storage)]) == 2
    assert "no curve.json here: it is empty." in capsys.readouterr().err


@pytest.fixture
def broken(finished_run, tmp_path) -> Path:
    """A copy to break."""
    shutil.copytree(finished_run.parent, tmp_path / "runs")
    return tmp_path / "runs" / finished_run.name


@pytest.mark.usefixtures("checked_here")
def test_the_architecture_that_won_is_what_leaves(broken, tmp_path, capsys) -> None:
    """At 1/16, a deeper and narrower network won than that of the experiment."""
    best = {**BEST, "student.options.num_blocks": 2, "student.options.num_stages": 3}
    experiment = read_experiment(broken)
    dataset = prepare_data(experiment.data, broken.parent / "cache")
    won = with_values(experiment, {**best, "distill.capacity": "1/16"}, "test")
    own = find_size(Networks.resolve(won, dataset))
    curve = read_curve(broken)
    size = curve.sizes[0]
    assert own.width != size.width
    assert own.flops != size.flops
    student = build_student(won, dataset, own.width)
    seed = size.methods["kr"].seeds[0]
    save_weights(student_path(broken, "kr", "1/16", seed), student)
    accuracy = evaluate(student, dataset, dataset.split("test"), Workers.alone())["accuracy"]
    result = MethodResult.over_seeds(
        seeds=[seed], val_accuracies=[0.9], test_accuracies=[accuracy], num_trials=1,
        num_pruned=0, num_failed=0, best=best,
        size=Size(width=own.width, num_parameters=own.num_parameters, flops=own.flops,
                  latency_ms=1.0),
    )  # fmt: skip
    sizes = (size.model_copy(update={"methods": {"kr": result}}),)
    write_curve(curve.model_copy(update={"sizes": sizes, "pareto": find_pareto(sizes)}), broken)
    arguments = ["--format", "safetensors", "--quiet", "--no-register"]
    assert main([str(broken), "--max-flops", str(own.flops), *arguments]) == 0
    out = capsys.readouterr().out
    assert f"{own.num_parameters:,} parameters, {own.flops:,} FLOPs" in out
    folder = broken / "export" / "1-16-kr"
    card = json.loads((folder / "student.json").read_text())
    assert card["architecture"]["width"] == own.width
    assert card["architecture"]["options"] == {"num_blocks": 2, "num_stages": 3}
    kept, shipped = student.state_dict(), load_file(folder / "student.safetensors")
    assert kept.keys() == shipped.keys()
    assert all(kept[name].equal(shipped[name]) for name in kept)
    assert card["files"][0]["test_accuracy"] == accuracy, "as a fresh process found it"
    assert main([str(broken), "--max-flops", str(own.flops - 1), *arguments]) == 2
    assert f"It is picked with --max-flops {own.flops}" in capsys.readouterr().err


@pytest.mark.usefixtures("checked_here")
def test_weights_that_are_gone_or_of_another_training(broken, capsys) -> None:
    arguments = [str(broken), "--max-params", "1M", "--format", "safetensors", "--quiet"]
    curve = read_curve(broken)
    picked = max(
        ((size, name) for size in curve.sizes for name in size.methods),
        key=lambda pair: pair[0].methods[pair[1]].val_accuracy,
    )
    result = picked[0].methods[picked[1]]
    best = max(range(2), key=lambda i: result.val_accuracies[i])
    paths = [student_path(broken, picked[1], picked[0].capacity, seed) for seed in result.seeds]
    for path_of in (lambda path: path, digest_path):
        shutil.copy(path_of(paths[1 - best]), path_of(paths[best]))
    assert result.test_accuracies[0] != result.test_accuracies[1]
    assert main(arguments) == 2
    assert "Were data or weights changed since?" in capsys.readouterr().err
    assert list((broken / "export").iterdir()) == []
    paths[best].unlink()
    assert main(arguments) == 2
    assert f"{paths[best]}: no such file" in capsys.readouterr().err


@pytest.mark.usefixtures("checked_here")
def test_data_of_another_split_is_refused(broken, capsys) -> None:
    path = broken / "experiment.json"
    content = json.loads(path.read_text())
    content["experiment"]["data"]["seed"] = 5
    write_json(path, content)
    assert main([str(broken), "--max-params", "1M", "--format", "safetensors", "--quiet"]) == 2
    assert "the data is not what the run was trained on" in capsys.readouterr().err
    path.unlink()
    assert main([str(broken), "--max-params", "1M", "--format", "safetensors", "--quiet"]) == 2
    assert "it has no experiment.json" in capsys.readouterr().err
