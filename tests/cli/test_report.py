import base64
import json
import os
import shutil
import subprocess
import sys

import pytest
from running import bounded_memory, in_process

from krscale.cli.report import _figure_names, _told_apart
from krscale.config import load
from krscale.files import read_json, write_json
from krscale.report import Curve, CurveSize, MethodResult, find_pareto, write_curve

main = in_process("report")


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A storage path that holds one finished run, `digits`, and one unfinished, `other`."""
    monkeypatch.setenv("KRSCALE_STORAGE_PATH", str(tmp_path))
    result = MethodResult.over_seeds(
        seeds=(0, 1), val_accuracies=(0.8, 0.82), test_accuracies=(0.7, 0.72),
        num_trials=2, num_pruned=0, num_failed=0, best={"distill.sparsity": 0.5},
    )  # fmt: skip
    size = CurveSize(
        capacity="1/4", width=8, num_parameters=99_000, flops=10**6, latency_ms=0.3,
        methods={"plain": result, "kr": result},
    )  # fmt: skip
    teacher = {
        "model": "resnet", "width": 32, "num_parameters": 396_000, "flops": 10**7,
        "val_accuracy": 0.98, "test_accuracy": 0.97,
    }  # fmt: skip
    curve = Curve(
        name="digits", commit="abc", data={"source": "digits"}, teacher=teacher, sizes=(size,),
        pareto=find_pareto([size]),
    )  # fmt: skip
    for name in ("digits", "other", "cache"):
        (tmp_path / name).mkdir()
    experiment = load(None, ["name=other"]).model_dump(mode="json")
    begun = {"experiment": experiment, "bound": {"space": {}}}
    write_json(tmp_path / "other" / "experiment.json", begun)
    write_curve(curve, tmp_path / "digits")
    return tmp_path


def test_a_run_by_name_or_by_folder_prints_the_table_and_draws_the_figure(storage, capsys):
    figure = storage / "digits" / "curve.png"
    for name in ("digits", str(storage / "digits")):
        assert main([name]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "99k" in out
        assert "71.0" in out
        assert f"Figure: {figure}, to explore in a browser: {figure.with_suffix('.html')}" in out
        assert figure.with_suffix(".html").stat().st_size > 10**6
        assert figure.read_bytes().startswith(b"\x89PNG")
        page = (figure.parent / "report.html").read_text()
        assert base64.b64encode(figure.read_bytes()).decode() in page
        assert "it has no experiment.json" in page
        assert len((figure.parent / "curve.csv").read_text().splitlines()) == 3
        figure.unlink()


def test_several_runs_are_compared(storage, tmp_path, capsys):
    shutil.copytree(storage / "digits", storage / "elsewhere" / "digits")
    names = ["digits", str(storage / "elsewhere" / "digits")]
    assert main([*names, "--output", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("71.0") == 4
    assert "digits-2" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.html", "report.json", "curve.csv", "curve.png", "curve.html", "digits.png",
        "digits-2.png",
    }  # fmt: skip
    listed = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [curve["name"] for curve in listed] == ["digits", "digits-2"]
    assert main([*names, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == listed
    assert (storage / "reports" / "digits+digits-2" / "report.html").exists()
    assert main(["digits", str(storage / "digits")]) == 2
    assert "the same run is named twice" in capsys.readouterr().err
    # Reports are not runs.
    assert main(["digitz"]) == 2
    assert "reports" not in capsys.readouterr().err


def test_a_copy_is_called_as_its_folder_unless_no_run_can_be(storage, capsys):
    for name in ("second", "my copy"):
        shutil.copytree(storage / "digits", storage / name)
    assert main(["digits", "second", str(storage / "my copy"), "--json"]) == 0
    curves = json.loads(capsys.readouterr().out)
    assert [curve["name"] for curve in curves] == ["digits", "second", "digits-2"]
    assert main(["second"]) == 0
    assert "second: test accuracy" in capsys.readouterr().out
    assert "second,1/4," in (storage / "second" / "curve.csv").read_text()


def test_figures_of_another_run_are_not_replaced(storage, capsys):
    shutil.copytree(storage / "digits", storage / "second")
    assert main(["second"]) == 0
    before = {path: path.read_bytes() for path in storage.rglob("*.*") if path.is_file()}
    for names in (["digits"], ["digits", "second"]):
        for folder in ("second", "other"):
            assert main([*names, "--output", str(storage / folder)]) == 2
            assert f"--output: {storage / folder} is the folder" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in storage.rglob("*.*") if path.is_file()}
    assert main(["second", "--output", str(storage / "second")]) == 0, "its own"


def test_no_two_runs_have_one_name_or_one_figure():
    class Named:
        def __init__(self, name):
            self.name = name

        def model_copy(self, update):
            return Named(**update)

    def names(*given):
        found = _told_apart([Named(name) for name in given])
        return [curve.name for curve in found], _figure_names(found)

    assert names("a", "a", "a-2")[0] == ["a", "a-3", "a-2"]
    assert names("a-2", "a", "a", "a")[0] == ["a-2", "a", "a-3", "a-4"]
    told, figures = names("curve", "other", "curve", "curve-2")
    assert told == ["curve", "other", "curve-3", "curve-2"]
    assert figures == ["curve-4.png", "other.png", "curve-3.png", "curve-2.png"]
    assert names("digits")[1] == ["curve.png"]


def test_experiment_of_another_version_is_told_on_the_page(storage, capsys):
    settings = {"name": "digits", "storage_path": str(storage), "no_such_field": 1}
    content = {"experiment": settings, "bound": {}}
    (storage / "digits" / "experiment.json").write_text(json.dumps(content))
    assert main(["digits"]) == 0
    page = (storage / "digits" / "report.html").read_text()
    assert "The command is not known" in page
    assert "no_such_field" in page


def test_insight_of_the_run_is_on_the_page_whatever_its_version(storage, capsys):
    page, file = storage / "digits" / "report.html", storage / "digits" / "insight.json"
    assert main(["digits"]) == 0
    assert f"`krscale insight {storage / 'digits'}` finds it" in page.read_text()
    study = {
        "method": "kr", "capacity": "1/4", "num_complete": 7, "num_pruned": 1, "num_failed": 0,
        "best_accuracy": 0.8, "best": {"distill.sparsity": 0.5},
        "near_best": {"distill.sparsity": [0.25, 0.75]},
        "importance": {"shares": {}, "num_trials": 7, "left_out": [], "reason": "too few"},
        "settings": [],
    }  # fmt: skip
    file.write_text(json.dumps({"name": "digits", "studies": [study]}))  # before there was learning
    assert main(["digits"]) == 0
    assert "0.25 to 0.75" in page.read_text()
    assert f"`krscale insight {storage / 'digits'}` finds it" in page.read_text(), "convergence"
    assert capsys.readouterr().err == ""
    figure = file.with_suffix(".png")
    figure.touch()
    os.truncate(figure, 10**12)
    with bounded_memory():
        assert main(["digits"]) == 0
    assert "insight.png: damaged: it cannot be read (it has 1,000,000" in capsys.readouterr().err
    figure.unlink()
    file.write_text("{}")
    assert main(["digits"]) == 0
    assert "insight.json: damaged: the field" in page.read_text()
    assert capsys.readouterr().err == ""


def test_a_name_is_looked_up_in_the_storage_path_that_is_given(storage, tmp_path, monkeypatch):
    monkeypatch.setenv("KRSCALE_STORAGE_PATH", str(storage / "elsewhere"))
    assert main(["digits"]) == 2
    assert main(["digits", "--storage-path", str(storage)]) == 0


def test_json_alone_is_on_stdout(storage, capsys):
    assert main(["digits", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == read_json(storage / "digits" / "curve.json")
    assert err == ""


def test_a_mistyped_path_is_looked_for_where_it_points(storage, capsys, monkeypatch):
    monkeypatch.chdir(storage.parent)
    assert main([f"{storage.name}/digitz"]) == 2
    expected = f"krscale: error: {storage}/digitz: no such run. Did you mean 'digits'?"
    assert capsys.readouterr().err.startswith(expected)


def test_a_run_that_is_not_there_says_what_is(storage, capsys):
    assert main(["digitz"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith(f"krscale: error: {storage}/digitz: no such run. Did you mean 'digits'?")
    assert f"Runs with a curve in {storage}: digits; without one: other." in err
    assert main(["other"]) == 2
    assert "its search has not begun its trials" in capsys.readouterr().err


def test_a_figure_that_cannot_be_written_is_a_user_error(storage, capsys):
    (storage / "digits" / "curve.png").mkdir()
    assert main(["digits"]) == 2
    assert "curve.png: a folder stands in the place of a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "shown"), [([], "test accuracy in %"), (["--json"], '"test_accuracy"')]
)
def test_the_table_is_shown_even_where_no_file_can_be_written(storage, capsys, options, shown):
    (storage / "digits" / "report.html").mkdir()
    assert main(["digits", *options]) == 2
    out, err = capsys.readouterr()
    assert "report.html: a folder stands in the place of a file" in err
    assert shown in out
    assert "Page:" not in out


def test_the_module_runs_as_a_program(storage):
    done = subprocess.run(
        [sys.executable, "-m", "krscale.report", "nothing"],
        env={**os.environ, "KRSCALE_STORAGE_PATH": str(storage)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("krscale: error: ")
