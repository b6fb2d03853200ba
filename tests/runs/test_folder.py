"""Which folder is meant by the name of a run."""

from pathlib import Path

import pytest

from krscale.runs.folder import find_run, storage_folder
from krscale.storage.address import CACHE_VARIABLE


def test_a_folder_of_images_does_not_hide_the_run_that_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = tmp_path / "runs"
    for folder in ("photos", "other", "runs/photos", "runs/elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    assert find_run("photos", storage) == tmp_path / "photos", "neither is a run"
    (storage / "photos" / "experiment.json").write_text("{}")
    assert find_run("photos", storage) == storage / "photos"
    assert find_run("./photos/../photos", storage) == tmp_path / "photos", "a path is what it says"
    (tmp_path / "photos" / "experiment.json").write_text("{}")
    assert find_run("photos", storage) == tmp_path / "photos", "both are: the nearer one"
    assert find_run("elsewhere", storage) == storage / "elsewhere"
    assert find_run("other", storage) == tmp_path / "other"


def test_a_folder_of_images_does_not_hide_a_run_that_is_only_in_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine has fetched nothing of the run before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "machine"))
    (tmp_path / "photos").mkdir()
    bucket = tmp_path / "bucket" / "photos"
    bucket.mkdir(parents=True)
    (bucket / "experiment.json").write_text("{}")
    storage = storage_folder(f"file://{tmp_path}/bucket")
    assert find_run("photos", storage) == storage / "photos"
    assert (storage / "photos" / "experiment.json").is_file()
