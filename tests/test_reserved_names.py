"""A run cannot have a name that its storage needs itself."""

import shutil
from pathlib import Path

import pytest
from finished_search import search
from running import in_process

from krscale.config import RESERVED_NAMES, load, with_values
from krscale.errors import UserError
from krscale.files import read_json, write_json
from krscale.report import read_curve


@pytest.mark.parametrize(
    "name", [*sorted(RESERVED_NAMES), "Cache", "MLFLOW.DB", "mlflow.db.lock", "mlflow.db-journal"]
)
def test_a_reserved_name_is_refused_and_the_reserved_ones_named(name: str) -> None:
    with pytest.raises(UserError, match=r"name: the storage keeps cache, mlartifacts, mlflow\.db"):
        load(None, [f"name={name}"])


@pytest.mark.parametrize(
    "name",
    [
        ".", "..", "", "a/b", "/a", "-a", ".hidden", "a b", "a.", "a..", "cache.", "reports ",
        " a", "a\n", "a\t", "a\0", "a\x1b[31m", "a\u202eb", "\u00e9", "e\u0301", "\u540d", "a\\b",
        "a:b", "a*", "~", "$HOME", "a" * 101, "../a", "a/../b", "\ud800", "\uff0e\uff0e", "<b>",
    ],
)  # fmt: skip
def test_what_is_no_name_of_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name"):
        with_values(load(None, [f"storage_path={tmp_path}"]), {"name": name}, "test")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../x", "/x", "a/../../b", "x\0", "x" * 300, "", "a\nb"])
@pytest.mark.parametrize("field", ["name", "capacity", "method"])
def test_a_curve_of_a_stranger_names_no_file_elsewhere(
    field: str, name: str, finished_run: Path, tmp_path: Path
) -> None:
    content = read_json(finished_run / "curve.json")
    size = content["sizes"][0]
    if field == "name":
        content["name"] = name
    elif field == "capacity":
        size["capacity"] = name
    else:
        size["methods"][name] = size["methods"].pop("kr")
    write_json(tmp_path / "curve.json", content)
    with pytest.raises(UserError, match=r"curve\.json: damaged: .* is no name of a run, size"):
        read_curve(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["a" * 100, "a.b-", "A_", "cached", "reports-2", "mlflow", "mlflow.database", "digits"],
)
def test_others_are_free(name: str) -> None:
    assert load(None, [f"name={name}"]).name == name


def test_at_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("tune")(["--set", "name=mlflow.db", "--set", f"storage_path={tmp_path}"]) == 2
    assert "--set name: the storage keeps cache" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(240)
def test_whatever_a_storage_gets_beside_its_runs_is_reserved(
    searched: Path, tmp_path: Path
) -> None:
    """If a storage gets a new file, its name must be added to the reserved ones."""
    storage = Path(shutil.copytree(searched, tmp_path / "storage"))
    search(storage)  # records the search, which was made without tracking
    found = {path.name for path in storage.iterdir()} - {"small"}
    assert {"cache", "mlflow.db"} <= found
    for name in found:
        with pytest.raises(UserError, match="name"):
            load(None, [f"name={name}"])
