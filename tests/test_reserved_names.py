"""A run cannot be called what its storage needs itself."""

from pathlib import Path

import pytest
from finished_search import search
from running import in_process

from krscale.config import RESERVED_NAMES, load
from krscale.errors import UserError


@pytest.mark.parametrize(
    "name", [*sorted(RESERVED_NAMES), "Cache", "MLFLOW.DB", "mlflow.db.lock", "mlflow.db-journal"]
)
def test_a_reserved_name_is_refused_and_the_reserved_ones_named(name: str) -> None:
    with pytest.raises(UserError, match=r"name: the storage keeps cache, mlartifacts, mlflow\.db"):
        load(None, [f"name={name}"])


@pytest.mark.parametrize("name", [".", "..", "", "a/b", "/a", "-a", ".hidden", "a b"])
def test_what_is_no_name_of_a_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        load(None, [f'name="{name}"'])


@pytest.mark.parametrize("name", ["cached", "reports-2", "mlflow", "mlflow.database", "digits"])
def test_others_are_free(name: str) -> None:
    assert load(None, [f"name={name}"]).name == name


def test_at_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("tune")(["--set", "name=mlflow.db", "--set", f"storage_path={tmp_path}"]) == 2
    assert "--set name: the storage keeps cache" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(240)
def test_whatever_a_storage_gets_beside_its_runs_is_reserved(tmp_path: Path) -> None:
    """A file that is new there is to be added to the names."""
    search(tmp_path / "storage", "search.trials_per_size=1")
    found = {path.name for path in (tmp_path / "storage").iterdir()} - {"small"}
    assert {"cache", "mlflow.db"} <= found
    for name in found:
        with pytest.raises(UserError, match="name"):
            load(None, [f"name={name}"])
