"""The experiment file: read, overridden, refused with one clear error per mistake."""

from pathlib import Path

import pytest

from krscale.config import Experiment, field_paths, load, parse_capacity, with_values
from krscale.errors import UserError


def toml(folder: Path, text: str) -> Path:
    path = folder / "experiment.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_the_embedded_experiment() -> None:
    assert load() == Experiment()
    assert len(load().ladder.capacities) >= 4


def test_file_then_overrides(tmp_path: Path) -> None:
    path = toml(tmp_path, 'name = "a"\n[train]\nnum_epochs = 7\nlearning_rate = 1e-3\n')
    found = load(
        path, ["train.num_epochs=9", "search.methods=['kd', 'kr']", "student.model=resnet"]
    )
    assert found.name == "a"
    assert found.train.num_epochs == 9
    assert found.train.learning_rate == 0.001
    assert found.search.methods == ("kd", "kr")


def test_every_field_path_can_be_overridden() -> None:
    content = load().model_dump(mode="python")
    for dotted in field_paths():
        value = content
        for name in dotted.split("."):
            value = value[name]
        assert with_values(load(), {dotted: value}, "test") == load(), dotted


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.num_epoch=3", ["--set train.num_epoch", "Did you mean 'train.num_epochs'"]),
        ("distil.method=kr", ["unknown key 'distil'", "Did you mean 'distill'"]),
        ("train.num_epochs=0", ["--set train.num_epochs", "greater than or equal to 1", "got 0"]),
        ("train.num_epochs=1.5", ["valid integer", "got 1.5"]),
        ("train.device=gpu", ["'auto', 'cpu' or 'cuda'", "got 'gpu'"]),
        ("distill.granularity=0", ["at least 1", "got 0"]),
        ("distill.granularity=stages", ["'network', 'stage' or 'layer'", "got 'stages'"]),
        ("distill.sparsity=1.0", ["less than 1", "got 1.0"]),
        ("ladder.capacities=['2']", ["(0, 1]"]),
        ("ladder.capacities=['1/4', '0.25']", ["twice"]),
        ("distill.kr_weight=nan", ["finite"]),
        ("name=../elsewhere", ["--set name", "got '../elsewhere'"]),
        ("train=3", ["--set train"]),
        ("train.num_epochs", ["expected key.path=value"]),
        ("train.num_epochs.x=3", ["--set train.num_epochs.x=3"]),
    ],
)
def test_mistakes_are_named(override: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(None, ["train.num_epochs=5", override])
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_mistake_of_a_file_is_listed_once(tmp_path: Path) -> None:
    path = toml(tmp_path, '[train]\nnum_epochs = "many"\nlerning_rate = 1\n')
    with pytest.raises(UserError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(str(path)) for line in lines)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    toml(tmp_path, "x = ")
    with pytest.raises(UserError, match=r"not a readable TOML"):
        load(tmp_path / "experiment.toml")
    with pytest.raises(UserError, match=r"no such file.*Did you mean .*experiment\.toml"):
        load(tmp_path / "experimnt.toml")


def test_fingerprint_covers_results_and_not_places() -> None:
    base = load()
    same = load(None, ["storage_path=/elsewhere", "tracking.uri=http://h:1", "cluster.num_cpus=3"])
    assert same.fingerprint() == base.fingerprint()
    assert load(None, ["train.seed=1"]).fingerprint() != base.fingerprint()


def test_storage_path_is_absolute_wherever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = load(None, ["storage_path=here"])
    monkeypatch.chdir("/")
    assert found.run_path == tmp_path / "here" / "digits"


def test_storage_path_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRSCALE_STORAGE_PATH", "/somewhere")
    assert load().run_path == Path("/somewhere/digits")


@pytest.mark.parametrize(("text", "share"), [("1/16", 0.0625), ("0.05", 0.05), ("1", 1.0)])
def test_parse_capacity(text: str, share: float) -> None:
    assert parse_capacity(text) == share


@pytest.mark.parametrize("text", ["0", "-1/4", "3/2", "1/0", "sixteenth", ""])
def test_parse_capacity_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"fraction|\(0, 1\]"):
        parse_capacity(text)
