"""A data set on disk: built once, named by its fingerprint, memory-mapped by all processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock

from krscale.config import DataConfig, as_record, fingerprint, read_record
from krscale.data.arrow import Labels, Split, read_split
from krscale.data.building import CONTENT_FILE, FORMAT, build_data, content_record
from krscale.data.content import Content
from krscale.data.source import Note, Report, Source, SplitName
from krscale.data.sources.registry import open_source
from krscale.data.splits.counting import describe_counts
from krscale.digests import CheckedFile, FileDigest, read_digest
from krscale.errors import UserError, unknown_name
from krscale.files import damaged, read_json, reading, write_json
from krscale.leftovers import hidden_lock, sweep_leftovers
from krscale.methods.batch import UNLABELLED
from krscale.storage.folders import present, publish

SPLITS: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True)
class Dataset:
    """A data set on disk.

    Attributes:
        path: Its folder.
        fingerprint: Hash of what determines images and splits; for the user's own files, a hash of
            the content itself.
        source: Name of the source.
        classes: Name of each class; a label is an index into them.
        image_shape: `(C, H, W)` of every image.
        mean: Mean of each channel over the training images, pixels in 0..1.
        std: Standard deviation of each channel, likewise.
        num_samples: Number of images of each split that it has.
        sha256: Hash of the file of each split.
        identity: Hash of the files and settings it was built from. Data sets built by older
            versions of krscale use it as their fingerprint, and so do their runs.
        num_unlabelled: Number of images at the end of train that have no label (`data.unlabelled`).
        unlabelled: Digest of these; empty if there are none.
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
    num_unlabelled: int = 0
    unlabelled: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes `K`."""
        return len(self.classes)

    @property
    def names(self) -> tuple[SplitName, ...]:
        """Names of the splits that it has."""
        return tuple(name for name in SPLITS if name in self.num_samples)

    @property
    def num_train(self) -> int:
        """Number of images in the training split."""
        return self.num_samples["train"]

    def split(self, name: SplitName, *, lazily: bool = False) -> Split:
        """Map a split into memory; only final evaluations may open `"test"`.

        Args:
            name: Which split.
            lazily: Do not compare images with what was written, so that opening a large split costs
                nothing; the caller then calls `Split.check` for the images it reads. Otherwise all
                images are compared now. Labels always are.

        Raises:
            UserError: If there is no such split, or its file does not match the manifest.
        """
        if name not in self.num_samples:
            raise unknown_name("split", name, self.num_samples, str(self.path))
        path, file = self.path / f"{name}.arrow", self._checked(name)
        split = read_split(path, file)
        expected = (self.num_samples[name], *self.image_shape)
        if split.images.shape != expected:
            raise UserError(
                f"{path}: holds images of shape {list(split.images.shape)}, its manifest says "
                f"{list(expected)}. Delete {self.path}; it will be built again."
            )
        # Images without labels come last in train; their label is UNLABELLED.
        num_labelled = len(split.labels) - (self.num_unlabelled if name == "train" else 0)
        rebuild = rebuild_data(self.path)
        _check_labels(path, split.labels[:num_labelled], self.num_classes, rebuild)
        if (split.labels[num_labelled:] != UNLABELLED).any():
            raise damaged(path, "an image that has no label has one", rebuild)
        if not lazily:
            split.check()
        return split

    def content(self) -> DatasetContent:
        """Return what the data set holds; if no record was written, read it from the images.

        Raises:
            DamagedFileError: If the record is not what was written.
        """
        file = self.path / CONTENT_FILE
        if not file.is_file():
            found = Content.of(self.classes, {name: self.split(name) for name in self.names})
            record = content_record(found)
            try:
                write_json(file, record)
            except OSError:  # a cache prepared by other users may be read-only
                return DatasetContent(**record)
        rebuild = f"Delete it; it is written again from the images in {self.path}."
        return read_record(file, DatasetContent, rebuild)

    def summary(self) -> str:
        """Return a one-line summary of the numbers of images and classes."""
        labels = {name: self.split(name, lazily=True).labels for name in self.names}
        return describe_counts(self.source, self.classes, self.image_shape, labels)

    def verify(self) -> None:
        """Compare every split with what was written.

        Raises:
            DamagedFileError: If a split is not what was written; the message names its file.
        """
        for name in self.names:
            self.split(name)

    def _checked(self, name: SplitName) -> CheckedFile | None:
        """Return the file of a split with its digest; None if no digest was recorded.

        For data sets of older versions of krscale, only the digest of the whole file is known, from
        the manifest.
        """
        path, rebuild = self.path / f"{name}.arrow", rebuild_data(self.path)
        digest = read_digest(path, rebuild)
        if digest is None and name in self.sha256:
            num_bytes = path.stat().st_size if path.is_file() else 0
            digest = FileDigest.whole(num_bytes, self.sha256[name])
        return CheckedFile(path, digest, rebuild) if digest else None


@dataclass(frozen=True)
class DatasetContent:
    """What a data set holds, in a form that can be stored and compared.

    Attributes:
        digest: Digest of the pixels and labels of all images; see `Content.digest`.
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
        cache: Folder that runs share; data sets are in `cache/data`.
        report: Called with the number of items done and of all items while the source is read.
        note: Called while the data set is built, with what the user should know about it, such as
            skipped files or copies of images.

    Raises:
        UserError: If the source is unknown or refuses its options, or its images are unsuitable for
            learning (see `check_source`) or cannot be cut (see `cut_splits`).
    """
    source = open_source(config)
    identity = _identity(config, source)
    path = _path(config, identity, cache)
    if not present(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(path.parent)
        with FileLock(hidden_lock(path)):
            if not path.is_dir():
                notes = build_data(path, config, source, identity, report or _silent)
                if note:
                    for text in notes:
                        note(text)
    publish(path)
    return open_data(path)


def find_data(config: DataConfig, cache: Path) -> Dataset:
    """Open the data set that an earlier `prepare_data` left under `cache`.

    Raises:
        UserError: If there is none.
    """
    path = dataset_path(config, cache)
    if not present(path):
        raise UserError(f"{path}: this data was never prepared; `krscale teach` does so.")
    return open_data(path)


def dataset_path(config: DataConfig, cache: Path) -> Path:
    """Return the folder that `prepare_data` builds or reuses; it need not exist."""
    return _path(config, _identity(config, open_source(config)), cache)


def _path(config: DataConfig, identity: Mapping[str, Any], cache: Path) -> Path:
    name = config.source.replace(":", ".")  # file systems may not allow colons
    return cache / "data" / f"{name}-{fingerprint(identity)}"


def open_data(path: Path) -> Dataset:
    """Open the folder of a data set.

    Raises:
        UserError: If it is not a data set of this version of krscale.
    """
    file = path / "manifest.json"
    rebuild = rebuild_data(path)
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


def rebuild_data(path: Path) -> str:
    """Return advice on how to rebuild the damaged folder of a data set."""
    return f"Delete the folder {path}; the data is prepared again by whatever needs it."


def _check_labels(path: Path, labels: Labels, num_classes: int, rebuild: str) -> None:
    """Refuse labels that are not classes."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise damaged(path, f"label {wrong} is none of the {num_classes} classes", rebuild)


def _identity(config: DataConfig, source: Source) -> dict[str, Any]:
    """Return what determines images and splits; fractions only if they are used."""
    identity: dict[str, Any] = {"format": FORMAT, "source": config.source}
    identity["images"] = dict(source.identity())
    fractions = {"test": config.test_fraction, "val": config.val_fraction}
    cuts = {name: f for name, f in fractions.items() if name not in source.own_splits}
    if cuts:
        identity["cuts"] = {**cuts, "seed": config.seed}
    if config.max_images:
        identity["max_images"] = {"count": config.max_images, "seed": config.seed}
    if config.allow_duplicates:  # left out otherwise, as in data sets older than the setting
        identity["allow_duplicates"] = True
    return identity


@dataclass(frozen=True)
class _Manifest:
    """The fields of `manifest.json` that readers need."""

    fingerprint: str
    source: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_samples: dict[str, int]
    sha256: dict[str, str]
    num_unlabelled: int = 0
    unlabelled: str = ""


_FIELDS = tuple(_Manifest.__dataclass_fields__)


def _silent(_done: int, _all: int) -> None:
    """Report nothing."""
