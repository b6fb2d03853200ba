"""Images that are given as objects: what is read, kept and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gratings import MEAN, STD, gratings
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from krscale.config import DataConfig
from krscale.data import prepare_data
from krscale.data.given import keep_given
from krscale.data.reading.pixels import Normalisation
from krscale.errors import UserError

LABELS = torch.arange(30) % 3
PIXELS = torch.randint(0, 256, (30, 3, 5, 4), generator=torch.Generator().manual_seed(0)).byte()


class OfImages(Dataset[Any]):
    """Pillow images with class names, as in torchvision's data sets; accepts any index."""

    classes = ("ant", "bee", "cow")

    def __len__(self) -> int:
        return 30

    def __getitem__(self, number: int) -> Any:
        array = PIXELS[number % 30].permute(1, 2, 0).numpy()
        return Image.fromarray(array), int(LABELS[number % 30])


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from zip(PIXELS, LABELS, strict=True)


class Random(Dataset[Any]):
    def __len__(self) -> int:
        return 30

    def __getitem__(self, number: int) -> Any:
        return torch.rand(3, 5, 4), int(LABELS[number])


class RandomLater(Random):
    def __getitem__(self, number: int) -> Any:
        image, label = super().__getitem__(number)
        return image if number == 20 else torch.zeros_like(image), label


def of(dataset: Any) -> Any:
    """Return the batches of a loader as pairs; the loader itself does not show their shapes."""
    return [(images, labels) for images, labels in DataLoader(dataset, batch_size=7)]


NAMES = {
    image.numpy().tobytes(): OfImages.classes[int(label)]
    for image, label in zip(PIXELS, LABELS, strict=True)
}
FLOATS = TensorDataset(PIXELS / 255, LABELS)
TABLES = [{"image": image, "label": label} for image, label in zip(PIXELS, LABELS, strict=True)]
OF_PIXELS = list(zip(PIXELS.split(7), LABELS.split(7), strict=True))
SAME = {
    "arrays": (PIXELS, LABELS),
    "numpy, channels last": (PIXELS.permute(0, 2, 3, 1).numpy(), LABELS.numpy()),
    "whole numbers": (PIXELS.int(), LABELS[:, None]),
    "a batch of no image": [*OF_PIXELS, (PIXELS[:0], LABELS[:0])],
    "floats": FLOATS,
    "half": TensorDataset((PIXELS / 255).half(), LABELS),
    "loader": DataLoader(FLOATS, batch_size=8),
    "shuffled loader": DataLoader(FLOATS, batch_size=8, shuffle=True, drop_last=True),
    "batches": of(FLOATS),
    "once": iter(of(FLOATS)),
    "samples": list(zip(PIXELS, LABELS.tolist(), strict=True)),
    "Pillow": OfImages(),
    "subset": Subset(OfImages(), range(30)),
    "streamed": Streamed(),
    "labels in lists": [(image, [int(label)]) for image, label in zip(PIXELS, LABELS, strict=True)],
    "Pillow, labels in arrays": [
        (image, np.array([label])) for image, label in (OfImages()[number] for number in range(30))
    ],
    "tables": TABLES,
}


def read(data: Any, folder: Path, normalisation: Any = None) -> tuple[Tensor, Tensor, Any]:
    known = None if normalisation is None else Normalisation.of(normalisation)
    given = keep_given(data, known, folder / "given")
    arrays = {f.stem: torch.tensor(np.load(f)) for f in Path(given.table["path"]).glob("*.npy")}
    return arrays["train_images"], arrays["train_labels"], given


@pytest.mark.parametrize("form", SAME)
def test_all_forms_are_the_same_pixels(form: str, tmp_path: Path) -> None:
    images, labels, given = read({"train": SAME[form]}, tmp_path)
    if form == "numpy, channels last":
        images = images.permute(0, 3, 1, 2)
    assert torch.equal(images, PIXELS)
    assert torch.equal(labels, LABELS)
    assert given.is_float == (form in ("floats", "half", "once", "batches") or "loader" in form)
    named = form in ("Pillow", "subset")
    assert given.table["files"]["classes"] == (OfImages.classes if named else ())


def test_the_source_reads_what_was_kept(tmp_path: Path) -> None:
    given = keep_given(
        {"train": OfImages(), "val": (PIXELS.flip(0) // 2, LABELS)}, None, tmp_path / "given"
    )
    config = DataConfig(**given.table)
    dataset = prepare_data(config, tmp_path)
    assert dataset.classes == OfImages.classes
    assert dataset.image_shape == (3, 5, 4)
    assert dataset.num_samples["val"] == 30
    assert torch.equal(torch.tensor(dataset.split("val").images), PIXELS.flip(0) // 2)


def test_a_custom_order_is_sorted_and_content_names_the_folder(tmp_path: Path) -> None:
    """Fails if a second start of a script, with another order, gives other data than the first."""
    found = []
    for seed in (1, 2):
        sampler = torch.utils.data.SubsetRandomSampler(
            range(30), generator=torch.Generator().manual_seed(seed)
        )
        found.append(read({"train": DataLoader(FLOATS, 4, sampler=sampler)}, tmp_path)[2])
    assert found[0].table == found[1].table
    assert len(list((tmp_path / "given").iterdir())) == 1


def test_normalisation_is_undone_exactly(tmp_path: Path) -> None:
    dataset = gratings(0, 30)
    images, _, given = read(dataset, tmp_path, (MEAN, STD))
    again = (images / 255 - MEAN) / STD
    assert torch.allclose(again, dataset.tensors[0], atol=1e-5)
    assert given.is_float
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    shape = (1, 3, 1, 1)
    coloured = (PIXELS / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    assert torch.equal(read((coloured, LABELS), tmp_path, (mean, std))[0], PIXELS)


def test_splits_by_place_and_by_name(tmp_path: Path) -> None:
    parts = [(PIXELS // factor, LABELS) for factor in (1, 2, 3)]
    by_place = keep_given(tuple(parts), None, tmp_path).table
    names = ("train", "validation", "test")
    by_name = keep_given(dict(zip(names, parts, strict=True)), None, tmp_path).table
    assert by_place == by_name
    stems = {file.stem for file in Path(by_place["path"]).glob("*.npy")}
    assert {stem.partition("_")[0] for stem in stems} == {"train", "val", "test"}


WRONG = (PIXELS / 255 - 0.5) / 0.1


@pytest.mark.parametrize(
    ("data", "normalisation", "said"),
    [
        ((WRONG, LABELS), None, r"data: train: images are floats from -5 to 5; .*normalisation="),
        ((WRONG, LABELS), (0.5, 0.3), "which normalisation leads to -1 to 2"),
        ((WRONG, LABELS), 3, r"normalisation: 3: expected \(mean, std\)"),
        ((WRONG, LABELS), (0.5, 0), r"std is positive"),
        ((WRONG, LABELS), ((0.5, 0.5), (1, 1)), "normalisation has 2 channels"),
        ((PIXELS, LABELS), (0.5, 0.1), "which are not normalised; leave it out"),
        ((PIXELS / 255 * torch.nan, LABELS), None, "floats from nan to nan"),
        ((PIXELS.int() * 2, LABELS), None, r"from 0 to \d+; expected 0\.\.255"),
        ((PIXELS, LABELS[:20]), None, "30 images, but 20 labels"),
        ((PIXELS, LABELS / 2), None, "labels of type float"),
        (Random(), None, "image 0 differs from one reading to the next"),
        (DataLoader(Random(), 4), None, "differs from one reading"),
        (RandomLater(), None, "image 20 differs from one reading to the next"),
        ({"train": [], "val": []}, None, "data: train: there are no images"),
        ({"val": (PIXELS, LABELS)}, None, "no training images"),
        ({"training": 3}, None, "unknown split 'training'. Did you mean 'train'"),
        ({"train": 3}, None, "int holds no images"),
        ({"train": [3, 4]}, None, "each entry must be"),
        ({"train": [("a.png", 1)]}, None, "images of str; expected tensors"),
        (
            {"train": [(PIXELS[0], 0), (PIXELS[0, :, 1:], 0)]}, None,
            r"\[3, 5, 4\] and \[3, 4, 4\]; all must have one size",
        ),
        ([(PIXELS, LABELS), FLOATS], None, "some splits are floats"),
        (of(FLOATS)[:2], None, "a list of 2 pairs .* may be batches .*, or train and val: give"),
        ([[PIXELS, LABELS]] * 3, None, "or train and val and test: give {'train'"),
        ([[(PIXELS, LABELS), (PIXELS / 255, LABELS)], FLOATS], None, "some images are floats"),
        ({"train": [(Image.new("RGBA", (4, 4)), 0)]}, None, "mode RGBA; convert them"),
        ({"train": [(Image.new("L", (4, 4)), [])]}, None, "4 images, but 0 labels"),
        ({"train": [(Image.new("I;16", (4, 4)), 0)]}, None, "mode I;16; give them as floats in 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(data: Any, normalisation: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read(data, tmp_path, normalisation)
    assert not list(tmp_path.iterdir())


def names_of(dataset: Any) -> dict[bytes, str]:
    """Return the class of every training image by its pixels."""
    train = dataset.split("train")
    pairs = zip(train.images, train.labels, strict=True)
    return {image.tobytes(): dataset.classes[label] for image, label in pairs}


def test_classes_without_an_image_are_refused_or_left_out(tmp_path: Path) -> None:
    """The rule is that of files: a subset may have images of fewer classes than it names."""
    part = Subset(OfImages(), [number for number in range(30) if LABELS[number] != 1])
    given = keep_given(part, None, tmp_path / "given")
    with pytest.raises(UserError, match=r"1 of 3 classes have no training image: bee\. data\.map"):
        prepare_data(DataConfig(**given.table), tmp_path)
    found = prepare_data(DataConfig(**given.table, map_labels=True), tmp_path)
    assert found.classes == ("ant", "cow")
    assert names_of(found).items() <= NAMES.items()


def test_classes_that_are_set_reorder_names_or_name_numbers(tmp_path: Path) -> None:
    order = ("cow", "ant", "bee")
    given = keep_given(OfImages(), None, tmp_path / "given", {"classes": order})
    found = prepare_data(DataConfig(**given.table), tmp_path)
    assert found.classes == order
    assert names_of(found).items() <= NAMES.items()
    new = keep_given((PIXELS, LABELS), None, tmp_path / "given", {"classes": OfImages.classes})
    found = prepare_data(DataConfig(**new.table), tmp_path)
    assert names_of(found).items() <= NAMES.items()


@pytest.mark.parametrize("name", ["train_images", "train_labels"])
def test_a_byte_that_changes_where_they_are_kept_is_refused(name: str, tmp_path: Path) -> None:
    given = keep_given((PIXELS, LABELS), None, tmp_path)
    file = Path(given.table["path"]) / f"{name}.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        UserError, match=rf"{name}\.npy: damaged: .* Delete the folder {file.parent}"
    ):
        keep_given((PIXELS, LABELS), None, tmp_path)
    with pytest.raises(UserError, match=rf"{name}\.npy: damaged"):
        prepare_data(DataConfig(**given.table, val_fraction=0.2, test_fraction=0.2), tmp_path / "c")
