"""A data set on disk: built once, named by its fingerprint, memory-mapped by everyone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from filelock import FileLock

from krscale.config import DataConfig, as_record, fingerprint, read_record
from krscale.data.arrow import Split, read_split, write_split
from krscale.data.content import SPLITS_FILE, Content, Paths, count_by_class, write_split_list
from krscale.data.counting import describe_counts
from krscale.data.cutting import Cut, cut_splits
from krscale.data.seen import Fault, UnreadableError, skipped_notes
from krscale.data.skipping import without
from krscale.data.source import Note, Report, Source, SourceData, SplitName
from krscale.data.sources import open_source
from krscale.data.splitting import channel_statistics, check_source
from krscale.errors import UserError, unknown_name
from krscale.files import damaged, new_folder, read_json, reading, sha256, write_json

CONTENT_FILE = "content.json"
FORMAT = 1
"""Version of the files below; a change of it, or of how images are cut, builds data anew."""
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True)
class Dataset:
    """A data set on disk.

    Attributes:
        path: Its folder.
        fingerprint: Hash of what determines images and splits; of the content itself where it was
            read from files of the user's own.
        source: Name of the source.
        classes: Name of each class; a label is an index into them.
        image_shape: `(C, H, W)` of every image.
        mean: Mean of each channel over the training images, pixels in 0..1.
        std: Standard deviation of each channel, likewise.
        num_samples: Images of each split that it has.
        sha256: Hash of the file of each split.
        identity: Hash of the files and settings it was built from; data sets that krscale built
            earlier have it as their fingerprint, and their runs know them by it.
    """

    path: Path
    fingerprint: str
    source: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_samples: Mapping[str, int]
    sha256: Mapping[str, str]
    identity: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes `K`."""
        return len(self.classes)

    @property
    def num_train(self) -> int:
        """Images of the training split."""
        return self.num_samples["train"]

    def split(self, name: SplitName) -> Split:
        """Map a split into memory; only final evaluations may open `"test"`.

        Raises:
            UserError: If there is no such split, or its file does not hold what the manifest
                says.
        """
        if name not in self.num_samples:
            raise unknown_name("split", name, self.num_samples, str(self.path))
        path = self.path / f"{name}.arrow"
        split = read_split(path)
        expected = (self.num_samples[name], *self.image_shape)
        if split.images.shape != expected:
            raise UserError(
                f"{path}: holds images of shape {list(split.images.shape)}, its manifest says "
                f"{list(expected)}. Delete {self.path}; it will be built again."
            )
        return split

    def content(self) -> DatasetContent:
        """Return what the data set holds; read from its images where it is older than the record.

        Raises:
            DamagedFileError: If the record is not what was written.
        """
        file = self.path / CONTENT_FILE
        if not file.is_file():
            found = Content.of(self.classes, {name: self.split(name) for name in _names(self)})
            record = _content_record(found)
            try:
                write_json(file, record)
            except OSError:  # a cache that others have prepared may not be written to
                return DatasetContent(**record)
        rebuild = f"Delete it; it is written again from the images in {self.path}."
        return read_record(file, DatasetContent, rebuild)

    def summary(self) -> str:
        """Say in one line how many images of how many classes there are."""
        labels = {name: self.split(name).labels for name in _names(self)}
        return describe_counts(self.source, self.classes, self.image_shape, labels)

    def verify(self) -> None:
        """Raise `UserError` when the content of a split is not what was written."""
        for name in self.sha256:
            path = self.path / f"{name}.arrow"
            if not path.is_file() or sha256(path) != self.sha256[name]:
                raise UserError(
                    f"{path}: missing or damaged (its SHA-256 is not the manifest's). "
                    f"Delete {self.path}; it will be built again."
                )


@dataclass(frozen=True)
class DatasetContent:
    """What a data set holds, in a form that can be kept and compared.

    Attributes:
        digest: Of the pixels and labels of all images; see `Content.digest`.
        images: Number of images of each class in all splits.
    """

    digest: str
    images: dict[str, int]


def prepare_data(
    config: DataConfig, cache: Path, report: Report | None = None, note: Note | None = None
) -> Dataset:
    """Build the data set once under `cache`; later calls, in any process, reuse it.

    Args:
        config: Source, options and fractions of the splits.
        cache: Folder of what runs share; data sets live in `cache/data`.
        report: Called with the items done and all items while the source is read.
        note: Called, when the data set is built, with what the user should know of it: files that
            were passed over, copies of images.

    Raises:
        UserError: If the source is unknown or refuses its options, or its images cannot be
            learned from (see `check_source`), or not be cut (see `cut_splits`).
    """
    source = open_source(config)
    identity = _identity(config, source)
    path = _path(config, identity, cache)
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_dir():
                notes = _build(path, config, source, identity, report or _silent)
                if note:
                    for text in notes:
                        note(text)
    return open_data(path)


def find_data(config: DataConfig, cache: Path) -> Dataset:
    """Open the data set that an earlier `prepare_data` left under `cache`.

    Raises:
        UserError: If there is none.
    """
    path = dataset_path(config, cache)
    if not path.is_dir():
        raise UserError(f"{path}: this data was never prepared; `krscale teach` does so.")
    return open_data(path)


def dataset_path(config: DataConfig, cache: Path) -> Path:
    """Return the folder that `prepare_data` builds or reuses; it need not exist."""
    return _path(config, _identity(config, open_source(config)), cache)


def _path(config: DataConfig, identity: Mapping[str, Any], cache: Path) -> Path:
    name = config.source.replace(":", ".")  # of a callable: a folder cannot be called so everywhere
    return cache / "data" / f"{name}-{fingerprint(identity)}"


def open_data(path: Path) -> Dataset:
    """Open the folder of a data set.

    Raises:
        UserError: If it is not a data set of this version of krscale.
    """
    file = path / "manifest.json"
    rebuild = f"Delete the folder {path}; the data is prepared again by whatever needs it."
    content = read_json(file, rebuild)
    with reading(file, rebuild):
        if content["format"] != FORMAT:
            raise UserError(
                f"{path}: written in format {content['format']}, this krscale reads {FORMAT}. "
                f"{rebuild}"
            )
    manifest = as_record(file, content, _Manifest, rebuild)
    if set(manifest.num_samples) != set(manifest.sha256):
        raise damaged(file, "num_samples and sha256 are not of the same splits", rebuild)
    known = {name: getattr(manifest, name) for name in _FIELDS}
    return Dataset(path=path, identity=fingerprint(content.get("identity")), **known)


def _identity(config: DataConfig, source: Source) -> dict[str, Any]:
    """What determines images and splits; fractions only where they are used."""
    identity: dict[str, Any] = {"format": FORMAT, "source": config.source}
    identity["images"] = dict(source.identity())
    fractions = {"test": config.test_fraction, "val": config.val_fraction}
    cuts = {name: f for name, f in fractions.items() if name not in source.own_splits}
    if cuts:
        identity["cuts"] = {**cuts, "seed": config.seed}
    if config.allow_duplicates:  # left out otherwise, as in data sets older than the setting
        identity["allow_duplicates"] = True
    return identity


def _build(
    path: Path, config: DataConfig, source: Source, identity: dict[str, Any], report: Report
) -> list[str]:
    """Build the folder and return what the user should know of its content."""
    data = source.read(report)
    check_source(config.source, data)
    # Beside the data, since a temporary folder of the system may itself be memory.
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        data, cut, skipped = _cut(data, config, Path(scratch))
        train = cut.splits["train"]
        mean, std = channel_statistics(train)
        content = Content.of(data.classes, cut.splits, cut.pixels)
        paths = _paths(data, cut, Path(config.path).expanduser())
        # Known only now, so it is in the fingerprint but not in the name of the folder.
        identity = identity | ({"rules": cut.rules} if cut.rules else {})
        facts = {
            "source": config.source,
            # Files that were copied, or only touched, are the same images.
            "fingerprint": fingerprint(content.digest if paths else identity),
            "identity": identity,
            "classes": data.classes,
            "image_shape": train.image_shape,
            "mean": mean,
            "std": std,
            "notes": [*data.notes, *cut.notes],
            "skipped": [str(fault) for fault in skipped],
        }
        write_data(path, cut.splits, facts, content, paths)
    return [*data.notes, *cut.notes]


def _cut(
    data: SourceData, config: DataConfig, scratch: Path
) -> tuple[SourceData, Cut, tuple[Fault, ...]]:
    """Cut the splits; where that is allowed, once more without the images that cannot be read.

    Returns:
        The source as it was cut, its splits, and what was left out.
    """
    where, skipped = config.path or config.source, tuple[Fault, ...]()
    try:
        cut = cut_splits(data, config, scratch)
    except UnreadableError as error:
        if not config.skip_unreadable:
            raise
        skipped = error.faults
        data = without(data, skipped)
        check_source(config.source, data)
        (scratch / "readable").mkdir()
        cut = cut_splits(data, config, scratch / "readable")
    notes = (*data.notes, *skipped_notes(where, skipped))
    if data.seen is not None:
        notes += data.seen.notes(where, config.background)
    return replace(data, notes=notes), cut, skipped


def write_data(
    path: Path,
    splits: Mapping[SplitName, Split],
    facts: Mapping[str, Any],
    content: Content | None = None,
    paths: Paths | None = None,
) -> None:
    """Write the folder of a data set, whole or not at all.

    Args:
        path: The folder.
        splits: Its splits.
        facts: What the manifest says of them; `identity` determines the fingerprint, unless that
            is among them.
        content: Of the splits; None leaves it to whoever asks for it.
        paths: Where each image was found; None where there are no files.
    """
    with new_folder(path) as folder:
        for name, split in splits.items():
            write_split(folder / f"{name}.arrow", split)
        if content is not None:
            write_json(folder / CONTENT_FILE, _content_record(content))
            if paths:
                write_split_list(folder / SPLITS_FILE, content, paths)
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint(facts["identity"]),
            **facts,
            "num_samples": {name: len(split) for name, split in splits.items()},
            "sha256": {name: sha256(folder / f"{name}.arrow") for name in splits},
        }
        write_json(folder / "manifest.json", manifest)


def _content_record(content: Content) -> dict[str, Any]:
    images = count_by_class(content.classes, content.labels)
    return {"digest": content.digest, "images": images}


def _paths(data: SourceData, cut: Cut, root: Path) -> Paths | None:
    """Return where each image is, from the folder of the source on; None if it has no files."""
    if not data.places:
        return None
    start = f"{root if root.is_dir() else root.parent}{os.sep}"
    return {
        name: [data.place(origin, int(row)).removeprefix(start) for row in rows]
        for name, (origin, rows) in cut.rows.rows.items()
    }


def _names(dataset: Dataset) -> tuple[SplitName, ...]:
    return tuple(name for name in SPLITS if name in dataset.num_samples)


@dataclass(frozen=True)
class _Manifest:
    """What `manifest.json` says, besides what a reader of it does not need."""

    fingerprint: str
    source: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_samples: dict[str, int]
    sha256: dict[str, str]


_FIELDS = tuple(_Manifest.__dataclass_fields__)


def _silent(_done: int, _all: int) -> None:
    """Report to nobody."""
