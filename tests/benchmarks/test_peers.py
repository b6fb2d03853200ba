"""The peers of `benchmarks/own_folder.py`: counted correctly, and the same task for each."""

import re
import tomllib
from pathlib import Path

import pytest
from parts.peer_list import PEERS_BY_NAME
from parts.peers import PEERS, added_lines, commands_of, own_lines
from parts.peers_table import peers_table

from krscale.config import validate

RECIPES = pytest.mark.parametrize("name", PEERS_BY_NAME)


def test_lines_of_a_program_are_those_that_do_something(tmp_path: Path) -> None:
    program = tmp_path / "a.py"
    program.write_text(
        '"""What it is\n\nfor."""\n\n# a comment\nx = 1  # beside code\n\n\ndef f():\n'
        '    """Twice."""\n    # another\n    return (\n        x,  # in brackets\n    )\n'
    )
    lines = [line.strip() for line in own_lines(program)]
    assert lines == ["x = 1  # beside code", "def f():", "return (", "x,  # in brackets", ")"]


def test_lines_of_a_configuration_are_those_without_blanks_and_comments(tmp_path: Path) -> None:
    settings = tmp_path / "a.toml"
    settings.write_text("# what it is\n[data]\n\npath = 'x' # where\n  # end\n")
    assert own_lines(settings) == ["[data]", "path = 'x' # where"]


def test_a_continued_command_is_one() -> None:
    assert commands_of("# first\n\na \\\n   --b 1 \\\n\t--c\nd\n") == ["a --b 1 --c", "d"]


def test_what_a_program_adds_to_another_is_counted(tmp_path: Path) -> None:
    before, after = tmp_path / "before.py", tmp_path / "after.py"
    before.write_text("a = 1\nb = 2\n")
    after.write_text("a = 1\n\n# new\nc = 0\nb = c\n")
    assert added_lines(before, after) == ["c = 0", "b = c"]


@RECIPES
def test_every_recipe_is_for_the_same_task(name: str) -> None:
    peer = PEERS_BY_NAME[name]
    text = "\n".join(path.read_text() for path in [*peer.files, peer.folder / "run.sh"])
    if name.startswith("krscale"):
        experiment = validate(tomllib.loads((peer.folder / "photos.toml").read_text()), "here")
        assert (experiment.train.num_epochs, experiment.train.global_batch_size) == (10, 64)
        assert experiment.teacher.preprocessing.input_size == (40,)
        assert experiment.search.trials_per_size == 8  # the script's number, too
        return
    epochs = r"(?:num_epochs: |--epochs |NUM_EPOCHS, BATCH_SIZE, NUM_TRIALS = )10\b"
    assert re.search(epochs, text)
    assert re.search(r"(?:batch_size: |--batch-size |NUM_TRIALS = 10, )64\b", text)
    assert re.search(r"size=40\b", text)


@RECIPES
def test_every_recipe_has_commands_and_no_more_than_it_needs(name: str) -> None:
    peer = PEERS_BY_NAME[name]
    count = peer.count()
    assert count["commands"] == len(peer.commands("install")) + len(peer.commands("run")) >= 2
    assert count["config_lines"] + count["code_lines"] > 0
    assert peer.needs in peer.commands("run")[0]


def test_kr_in_a_loop_is_five_lines() -> None:
    """The import, the loss, its heads for the optimiser, the epoch, and the call."""
    added = added_lines(PEERS / "own_loop" / "plain.py", PEERS / "own_loop" / "kr.py")
    assert len([line for line in added if {"kr", "krscale"} & set(re.findall(r"\w+", line))]) == 5


def test_what_was_not_run_has_no_seconds() -> None:
    noted = {"load_before_and_after": [1.0, 2.0], "commit": "c" * 40, "command": "python x"}
    timm = {"not_run": "no network", "stand_in": "timm_task.py", "tried": "loss 1", **noted}
    mine = {"install_seconds": 9.0, "seconds": 3.0, "test_accuracy": 0.5, **noted}
    peers = {"timm": timm, "krscale_distill": mine}
    rows = peers_table({"machine": "m", "peers": peers}).splitlines()
    (row,) = (line for line in rows if line.startswith("| timm"))
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == ["not run here", ""]
    (row,) = (line for line in rows if line.startswith("| `krscale distill`"))
    assert [cell.strip() for cell in row.split("|")[-4:-1]] == ["9.0", "3.0", "50.0 %"]
