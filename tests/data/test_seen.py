"""Findings of the decoder are counted once, however often images are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from krscale.config import DataConfig
from krscale.data import prepare_data
from krscale.data.seen import Fault, Seen
from krscale.data.unlabelled import prepare_unlabelled


def test_all_but_what_is_left_out_is_forgotten() -> None:
    seen, fault = Seen(), Fault("train", 0, "here", "wrong")
    for name, value in vars(seen).items():
        filled = {int: 3, list: [fault]}.get(type(value))
        if filled is not None:
            setattr(seen, name, filled)
    seen.modes["L"] = seen.sizes[8, 8] = 1
    seen.left_out.add(("train", 0))
    assert all(vars(seen).values())
    seen.forget()
    assert seen == Seen(left_out={("train", 0)})


def fill(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x112] = 6
    for number, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (6, 8, 8, 3))):
        image = Image.fromarray(pixels.astype(np.uint8))
        image.save(folder / f"{number}.jpg", exif=exif)


def test_photographs_are_counted_once_where_some_images_cannot_be_read(tmp_path: Path) -> None:
    for seed, name in enumerate(("data/cat", "data/dog", "more")):
        fill(tmp_path / name, seed)
    for name in ("data/cat", "more"):
        (tmp_path / name / "bad.jpg").write_bytes(b"abc")
    config = DataConfig(
        source="image_folder",
        path=str(tmp_path / "data"),
        unlabelled=str(tmp_path / "more"),
        skip_unreadable=True,
    )
    notes: list[str] = []
    dataset = prepare_data(config, tmp_path / "cache", None, notes.append)
    assert sum("data: the EXIF data of 12 images say" in note for note in notes) == 1
    prepare_unlabelled(config, dataset, tmp_path / "cache", None, notes.append)
    assert sum("more: the EXIF data of 6 images say" in note for note in notes) == 1
