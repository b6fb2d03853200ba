"""`krscale taps`: what can be a tap, in order, and a line to paste."""

import json
from pathlib import Path

import pytest
import torch

from krscale.cli.app import main


def test_blocks_are_listed_with_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["taps", "resnet", "--image", "1", "8", "8", "--option", "num_blocks=1", "--width", "2"]
    assert main([*model, "--json"]) == 0
    blocks = json.loads(capsys.readouterr().out)
    assert [b["path"] for b in blocks if b["proposed"]] == ["stages.0.0", "stages.1.0"]
    by_path = {b["path"]: b for b in blocks}
    assert by_path["stages.1.0"]["shape"] == [4, 4, 4]
    assert by_path["stages.1.0"]["layout"] == "channels_first"
    assert main(model) == 0
    assert 'taps = ["stages.0.0", "stages.1.0"]' in capsys.readouterr().out


def test_a_network_that_names_no_taps_gets_a_proposal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["taps", "odd_networks:deep", "--image", "1", "8", "8"]) == 0
    assert 'taps = ["blocks.0", "blocks.1"]' in capsys.readouterr().out


def test_the_teacher_of_an_experiment_is_listed_with_gains(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "my.toml"
    storage = f"storage_path = '{tmp_path}'"
    file.write_text(
        f"{storage}\nviews.num_views = 1\n[teacher]\nmodel = 'odd_networks:deep'\n"
        "weights = 'own'\nallow_poor = true\noptions = {}\n"
    )
    torch.manual_seed(0)  # for the weights that it is built with
    assert main(["taps", str(file), "--json"]) == 0
    blocks = {block["path"]: block for block in json.loads(capsys.readouterr().out)}
    gains = [blocks[f"blocks.{number}"]["information_gain"] for number in range(3)]
    assert all(0 < gain < 1 for gain in gains), "of random weights, on digits"
    torch.manual_seed(0)
    assert main(["taps", str(file)]) == 0
    out = capsys.readouterr().out
    assert f"{gains[0]:.2f}" in out
    assert "the classifier" in out


def test_a_teacher_that_is_yet_to_be_trained_has_no_gains(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "my.toml"
    file.write_text(f"storage_path = '{tmp_path}'")
    assert main(["taps", str(file), "--quiet"]) == 2
    assert "this teacher was never prepared; `krscale teach` does so" in capsys.readouterr().err
    assert main(["taps", str(file), "--width", "3"]) == 2
    assert f"--width: {file} is an experiment, which has this" in capsys.readouterr().err
    assert main(["taps", "resnet", "--set", "teacher.width=3"]) == 2
    assert "give EXPERIMENT.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnett"], "network.model: unknown model 'resnett'. Did you mean 'resnet'?"),
        (["resnet", "--option", "num_block=1"], "Did you mean 'num_blocks'?"),
        (["resnet", "--option", "num_blocks"], "--option num_blocks: expected KEY=VALUE"),
        (["resnet", "--image", "1", "0", "8"], "--image: numbers from 1 on are allowed (got 0)"),
        (
            ["odd_networks:Net", "--image", "1", "8", "8", "--option", "form=three"],
            "gives 3 logits",
        ),
        (["odd_networks:Net", "--image", "1", "8", "8", "--option", "form=pair"], "output_key"),
    ],
)
def test_mistakes_are_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["taps", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_option_has_one_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["taps", "resnet", "--option", "num_blocks=1\nstem_channels=4"]) == 2
    assert "--option num_blocks: it takes one value" in capsys.readouterr().err
