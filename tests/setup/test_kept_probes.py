"""Probes of several grids beside one kept teacher do not affect each other or existing stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from krscale.config import Experiment, load
from krscale.data import open_data
from krscale.errors import DamagedFileError, UserError
from krscale.files import read_json
from krscale.knowledge import probes as limits
from krscale.knowledge.probes import Probes
from krscale.progress import Progress
from krscale.setup import tap_reading
from krscale.setup.kept_probes import probe_grid
from krscale.setup.prepare import Prepared, prepare
from krscale.setup.recipe import StoreRecipe
from krscale.setup.tap_reading import fit_probes, read_logits
from krscale.setup.teacher import find_teacher, open_teacher
from krscale.store import KnowledgeStore

CPU = torch.device("cpu")
SETTINGS = ("teacher.width=4", "teacher.num_epochs=1", "views.num_views=1")


def configured(storage: Path, *changes: str) -> Experiment:
    return load(None, [*SETTINGS, *changes, f"storage_path={storage}"])


def prepared(experiment: Experiment) -> Prepared:
    with Progress(quiet=True, planned={}) as progress:
        return prepare(experiment, progress)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Prepared]:
    torch.set_num_threads(1)
    experiment = configured(tmp_path_factory.mktemp("probes"), "distill.probe_grid=1")
    return experiment, prepared(experiment)


def test_another_grid_is_beside_what_there_was(pooled: tuple[Experiment, Prepared]) -> None:
    before, found = pooled
    folder, storage = Path(found.teacher_path), Path(before.storage_path)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    experiment = configured(storage, "distill.probe_grid=2")
    with pytest.raises(UserError, match="never read on a 2x2 grid; `krscale teach`"):
        StoreRecipe.find(experiment)
    again = prepared(experiment)
    assert Path(again.teacher_path) == folder, "the teacher is not trained again"
    assert {path: path.read_bytes() for path in kept} == kept
    assert {path.name for path in folder.iterdir()} - {path.name for path in kept} == {
        "probes-grid-2.pt",
        "probes-grid-2.pt.digest.json",
        "gains-grid-2.json",
    }
    gains = read_json(folder / "gains-grid-2.json")["information_gain"]
    assert list(again.teacher.information_gain) == pytest.approx(gains)
    assert again.teacher.information_gain[-1] == found.teacher.information_gain[-1], (
        "its own logits"
    )
    assert again.teacher.information_gain[0] > found.teacher.information_gain[0]
    assert again.store_path != found.store_path
    assert KnowledgeStore.open(Path(again.store_path)).manifest.plan.key["probes"] == "grid 2x2"
    assert "probes" not in KnowledgeStore.open(Path(found.store_path)).manifest.plan.key
    assert prepared(before).store_path == found.store_path, "and is found again"


def test_methods_on_logits_keep_the_store_they_had(pooled: tuple[Experiment, Prepared]) -> None:
    before, found = pooled
    chosen = configured(
        Path(before.storage_path), "search.methods=['plain','kd']", "distill.method=kd"
    )
    assert chosen.distill.probe_grid == 4
    assert probe_grid(chosen) == 1
    assert StoreRecipe.find(chosen).path == Path(found.store_path)


def test_an_opened_teacher_reads_on_the_experiments_grid(
    pooled: tuple[Experiment, Prepared],
) -> None:
    before, found = pooled
    dataset = open_data(Path(found.data_path))
    experiment = configured(Path(before.storage_path), "distill.probe_grid=2")
    folder = Path(prepared(experiment).teacher_path)
    for chosen, grid in ((before, 1), (experiment, 2)):
        teacher = open_teacher(chosen, dataset, folder)
        assert teacher.probes.grid == grid
        assert teacher.facts == find_teacher(chosen, dataset)[0]
        assert not any(p.requires_grad for p in teacher.probes.parameters())


def test_little_memory_reads_tap_by_tap_and_then_fewer_images(
    pooled: tuple[Experiment, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, found = pooled
    dataset = open_data(Path(found.data_path))
    tapped = open_teacher(experiment, dataset, Path(found.teacher_path)).tapped
    whole = fit_probes(tapped, dataset, CPU, 2)
    largest = max(linear.in_features for linear in whole.linears)

    def with_room_for(num_images: int) -> Probes:
        monkeypatch.setattr(tap_reading, "MAX_NUMBERS", num_images * largest)
        return fit_probes(tapped, dataset, CPU, 2)

    apart = with_room_for(dataset.num_train).state_dict()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(apart[name], value, rtol=1e-4, atol=1e-5)
    logits = read_logits(tapped, with_room_for(dataset.num_train // 2), dataset, "val", CPU)
    labels = torch.tensor(np.array(dataset.split("val").labels))
    assert (logits.argmax(dim=-1) == labels[:, None]).float().mean(dim=0)[:-1].min() > 0.6


def test_a_damaged_file_is_named(pooled: tuple[Experiment, Prepared]) -> None:
    before, _ = pooled
    experiment = configured(Path(before.storage_path), "distill.probe_grid=3")
    found = prepared(experiment)
    dataset = open_data(Path(found.data_path))
    for name in ("probes-grid-3.pt", "gains-grid-3.json"):
        file = Path(found.teacher_path) / name
        content = file.read_bytes()
        file.write_bytes(content.replace(b"0", b"1", 1) if name.endswith("json") else content[:-9])
        with pytest.raises(DamagedFileError, match=name):
            open_teacher(experiment, dataset, Path(found.teacher_path))
        file.write_bytes(content)


def test_probes_of_another_limit_are_others(
    pooled: tuple[Experiment, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, found = pooled
    experiment = configured(Path(before.storage_path), "distill.probe_grid=2")
    wide = prepared(experiment)
    monkeypatch.setattr(limits, "MAX_FEATURES", 20)
    with pytest.raises(UserError, match="never read on a 2x2 grid; `krscale teach`"):
        StoreRecipe.find(experiment)
    narrow = prepared(experiment)
    assert narrow.teacher_path == wide.teacher_path, "the teacher is not trained again"
    assert narrow.store_path != wide.store_path
    assert narrow.teacher.information_gain != wide.teacher.information_gain
    assert StoreRecipe.find(before).path == Path(found.store_path), "means have no limit"
    monkeypatch.undo()
    assert StoreRecipe.find(experiment).path == Path(wide.store_path)
