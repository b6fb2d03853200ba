"""`krscale space check`: what it lists and how it ends."""

import json
from pathlib import Path

import pytest
from running import in_process

main = in_process("space")


def test_lists_every_method_of_the_file_with_own_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["check", "kr_plus_posterior", "--set", "distill.sparsity=0.25", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["method"] for row in rows} >= {"plain", "kd", "dkd", "dist", "kr", "kr+dkd"}
    kr = {row["field"]: row for row in rows if row["method"] == "kr"}
    assert kr["distill.sparsity"]["own_value"] == 0.25
    assert kr["distill.auxiliary_weight"]["when"] == "distill.granularity >= 2"
    assert not kr["distill.granularity"]["inside"], "'stage' is no number of groups"
    combined = {row["field"]: row for row in rows if row["method"] == "kr+dkd"}
    assert combined.keys() > kr.keys()
    assert combined["distill.posterior.dkd"]["own_value"] == 1.0


def test_the_table_reads_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "kr"]) == 0
    out = capsys.readouterr().out
    assert "float 0.03 .. 0.5, log" in out
    assert "stage (outside)" in out


def test_a_default_range_is_shown_as_what_it_stands_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[kr]\n"distill.sparsity" = "default"\n"distill.granularity" = "default"\n')
    arguments = ["check", str(path), "--set", "search.methods=['kr']"]
    assert main([*arguments, "--json"]) == 0
    sparsity, granularity = json.loads(capsys.readouterr().out)
    assert (sparsity["type"], sparsity["range"]) == ("float", "0 .. 0.9")
    assert (granularity["type"], granularity["range"]) == ("int", "1 .. 6")
    assert main(arguments) == 0
    assert "float 0 .. 0.9" in capsys.readouterr().out


def test_a_refused_space_ends_with_2_and_a_line_for_each_mistake(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[kr]\n"distill.sparsty" = { type = "float", low = 0, high = 1 }\n'
        '"distill.kr_weight" = { type = "float", low = 0, high = 1, log = true }\n'
    )
    assert main(["check", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2
    assert "Did you mean 'distill.sparsity'" in lines[0]
    assert "above 0" in lines[1]


def test_an_experiment_in_place_of_a_space_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[teacher]\nwidth = 8\n[search]\nspace = "kr"\n')
    assert main(["check", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: this is an experiment and no search space: it has [teacher]." in line
    assert "krscale space check SPACE --experiment" in line


def test_methods_without_a_table_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.toml"
    space.write_text('[common]\n"train.learning_rate" = "default"\n')
    assert main(["check", str(space), "--set", "search.methods=['kd']"]) == 0
    assert f"kd: only train.learning_rate is searched; {space} has no table [kd]" in (
        capsys.readouterr().out
    )
