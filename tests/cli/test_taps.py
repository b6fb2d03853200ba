"""`krscale taps`: what can be a tap, in order, and a line to paste."""

import json

import pytest

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
