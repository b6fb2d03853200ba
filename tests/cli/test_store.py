"""The store of a run, checked, described, damaged and repaired by the command."""

import json
from pathlib import Path

import pytest
import torch
from running import in_process

from krscale.config import load
from krscale.progress import Progress
from krscale.runs.folder import run_folder
from krscale.setup.prepare import prepare
from krscale.store import teacher_inference

main = in_process("store")
SETTINGS = (
    "teacher.width=2",
    "teacher.num_epochs=1",
    "distill.probe_grid=2",
    "views.num_views=2",
    "store.shard_rows=512",
    "store.top_k=2",
)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage path with everything that a run named `small` prepared."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("storage")
    experiment = load(None, [*SETTINGS, "name=small", f"storage_path={path}"])
    with Progress(quiet=True, planned={}) as progress, run_folder(experiment, {}):
        prepare(experiment, progress)
    return path


@pytest.fixture(autouse=True)
def _undamaged(storage: Path):
    """Restore every file of the store."""
    before = {file: file.read_bytes() for file in (storage / "cache/stores").rglob("*.arrow")}
    yield
    for file, content in before.items():
        if not file.exists() or file.read_bytes() != content:
            file.write_bytes(content)


def shards(storage: Path) -> list[Path]:
    return sorted((storage / "cache/stores").glob("*/view-*/*.arrow"))


def run(storage: Path, command: str, *arguments: str, name: str = "small") -> int:
    return main([command, name, "--storage-path", str(storage), *arguments])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-300] ^= 1
    file.write_bytes(content)


def test_an_untouched_store_passes(storage, capsys):
    assert run(storage, "check") == 0
    out, err = capsys.readouterr()
    assert "6 shards and 512 rows are what the teacher gives today" in out
    assert err == ""


def test_check_as_json(storage, capsys):
    assert run(storage, "check", "--rows", "10", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_shards"], found["num_rows"], found["rebuilt"]) == (6, 10, [])
    assert 0 < found["max_difference"] < 1e-3


def test_one_pixel_of_one_view_is_caught(storage, capsys, monkeypatch):
    apply_views = teacher_inference.apply_views

    def changed(images, samples, view, policy):
        views = apply_views(images, samples, view, policy)
        if view == 1:
            views[:, 0, 3, 4] ^= 1
        return views

    monkeypatch.setattr(teacher_inference, "apply_views", changed)
    assert run(storage, "check", "--rows", "2") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "the pixels of view 1 of sample" in err
    assert "images or view policy give other pixels" in err


def test_a_flipped_bit_is_named_and_repaired_alone(storage, capsys):
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in shards(storage)}
    damaged = shards(storage)[4]
    flip(damaged)
    assert run(storage, "check") == 1
    assert "1 broken shard(s)" in (text := capsys.readouterr().err)
    assert "view-0001/shard-00001. `krscale store check RUN --repair`" in text
    assert run(storage, "check", "--repair", "--quiet") == 0
    out, err = capsys.readouterr()
    assert out.startswith("Rebuilt view-0001/shard-00001\n")
    assert err == ""
    for file in shards(storage):
        assert file.read_bytes() == before[file][0]
        assert (file.stat().st_mtime_ns == before[file][1]) == (file != damaged)
    assert run(storage, "check") == 0


def test_a_truncated_shard_is_no_traceback_for_info(storage, capsys):
    shards(storage)[0].write_bytes(b"")
    assert run(storage, "info") == 1
    assert "view-0000/shard-00000" in capsys.readouterr().err


def test_info_as_table(storage, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert run(storage, "info") == 0
    out = capsys.readouterr().out
    for text in (
        "MB in 6 shards",
        "2 views of 1,077 samples at 6 taps",
        "2 of 10, 16 bits",
        "encoding error",
    ):
        assert text in out
    for name in ("teacher", "data", "views", "taps", "store"):
        assert f"fingerprint: {name}" in out


def test_info_as_json(storage, capsys):
    assert run(storage, "info", "--json") == 0
    info = json.loads(capsys.readouterr().out)
    assert info["num_bytes"] == sum(file.stat().st_size for file in shards(storage))
    assert info["bytes_per_view_and_tap"] == pytest.approx(2 * (3 + 2) + 4 / 6)
    assert len(info["encoding_error"]) == 6
    assert set(info["fingerprints"]) == {
        "teacher",
        "data",
        "views",
        "taps",
        "probes",
        "store",
    }


def test_a_run_may_be_named_by_its_folder_which_may_have_moved(storage, capsys, tmp_path):
    moved = tmp_path / "moved"
    storage.rename(moved)
    try:
        assert main(["info", str(moved / "small"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["path"].startswith(str(moved))
    finally:
        moved.rename(storage)


def toml(folder: Path, *changes: str) -> list[str]:
    """Arguments that name the same experiment by a TOML file, with changes."""
    file = folder / "small.toml"
    file.write_text('name = "small"\n', encoding="utf-8")
    sets = [part for change in (*SETTINGS, *changes) for part in ("--set", change)]
    return [str(file), *sets]


def test_a_run_may_be_named_by_its_toml_file(storage, capsys, tmp_path):
    arguments = toml(tmp_path)
    assert main(["check", *arguments, "--storage-path", str(storage), "--rows", "4"]) == 0
    assert "4 rows are what the teacher gives" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "differing"),
    [("views.shift=0", "teacher and views"), ("store.top_k=3", "store")],
)
def test_a_store_of_something_else_names_what_differs(storage, capsys, tmp_path, change, differing):
    arguments = [*toml(tmp_path, change), "--storage-path", str(storage)]
    if change.startswith("views"):
        # Another policy gives another teacher, too, unless its weights are given.
        weights = next((storage / "cache/teachers").glob("*/teacher.safetensors"))
        given = ["--set", f"teacher.weights='{weights}'", "--set", "teacher.allow_poor=true"]
        settings = [*SETTINGS, change, f"storage_path={storage}", given[1], given[3]]
        experiment = load(None, settings)
        with Progress(quiet=True, planned={}) as progress:
            from krscale.data import find_data
            from krscale.setup.teacher import prepare_teacher

            dataset = find_data(experiment.data, experiment.cache_path)
            prepare_teacher(experiment, dataset, torch.device("cpu"), progress.advance)
        arguments += given
    assert main(["check", *arguments]) == 2
    err = capsys.readouterr().err
    assert "no such store; `krscale teach` builds it" in err
    assert f"was built from another {differing}." in err
    for name in differing.split(" and "):
        assert f"{name}: the store has " in err
    assert "data: the store has" not in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.seed=1", "this data was never prepared"),
        ("teacher.seed=1", "this teacher was never prepared"),
    ],
)
def test_what_was_never_prepared_is_not_built(storage, capsys, tmp_path, change, message):
    before = sorted((storage / "cache").rglob("*"))
    arguments = [*toml(tmp_path, change), "--storage-path", str(storage)]
    assert main(["check", *arguments, "--repair"]) == 2
    assert message in capsys.readouterr().err
    assert sorted((storage / "cache").rglob("*")) == before


def test_an_unfinished_store_is_told_apart(storage, capsys):
    manifest = next((storage / "cache/stores").glob("*/manifest.json"))
    content = manifest.read_text()
    plan = manifest.with_name("plan.json")
    held = json.loads(content)
    plan.write_text(json.dumps(held["plan"] | {"format": held["format"]}))
    manifest.unlink()
    try:
        assert run(storage, "check", "--repair") == 2
        assert "not finished; `krscale teach` continues it" in capsys.readouterr().err
    finally:
        manifest.write_text(content)
        plan.unlink()


def test_no_such_run(storage, capsys):
    assert run(storage, "check", name="smal") == 2
    assert "smal: no such run. Did you mean 'small'?" in capsys.readouterr().err


def test_a_finished_run_takes_no_overrides(storage, capsys):
    assert run(storage, "info", "--set", "views.shift=0") == 2
    assert "a run, whose settings are fixed" in capsys.readouterr().err
