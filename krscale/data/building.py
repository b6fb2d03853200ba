"""Build the folder of a data set: read the source, cut it into splits and write them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from krscale.config import DataConfig, fingerprint
from krscale.data.arrow import Split, write_split
from krscale.data.content import SPLITS_FILE, Content, Paths, count_by_class, write_split_list
from krscale.data.cutting import Cut, cut_splits
from krscale.data.seen import Fault, UnreadableError, skipped_notes
from krscale.data.source import Report, Source, SourceData, SplitName
from krscale.data.splits.limiting import limit_images
from krscale.data.splits.skipping import without
from krscale.data.splits.splitting import channel_statistics, check_source
from krscale.digests import write_digest
from krscale.files import new_folder, sha256, write_json

CONTENT_FILE = "content.json"
FORMAT = 1
"""Version of the files below; changing it, or how images are cut, makes krscale rebuild data."""


def build_data(
    path: Path, config: DataConfig, source: Source, identity: dict[str, Any], report: Report
) -> list[str]:
    """Build the folder and return notes for the user about its content."""
    data = source.read(report)
    check_source(config.source, data)
    data = limit_images(data, config)
    # Placed beside the data, since the system's temporary folder may be held in memory.
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
            # Copying files or changing only their times leaves the fingerprint as it is.
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
    """Cut the splits; if images cannot be read and may be skipped, cut again without them.

    Returns:
        The source as it was cut, its splits, and the images that were left out.
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
    """Write the folder of a data set atomically.

    Args:
        path: The folder.
        splits: Its splits.
        facts: Contents of the manifest. `identity` determines the fingerprint, unless `facts`
            contains one.
        content: Content of the splits. With None it is not written; `Dataset.content` computes it
            on demand.
        paths: Where each image was found; None if there are no files.
    """
    with new_folder(path) as folder:
        for name, split in splits.items():
            write_split(folder / f"{name}.arrow", split)
            write_digest(folder / f"{name}.arrow")
        if content is not None:
            write_json(folder / CONTENT_FILE, content_record(content))
            if paths:
                write_split_list(folder / SPLITS_FILE, content, paths)
                write_digest(folder / SPLITS_FILE)
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint(facts["identity"]),
            **facts,
            "num_samples": {name: len(split) for name, split in splits.items()},
            "sha256": {name: sha256(folder / f"{name}.arrow") for name in splits},
        }
        write_json(folder / "manifest.json", manifest)


def content_record(content: Content) -> dict[str, Any]:
    """Return what `content.json` holds."""
    images = count_by_class(content.classes, content.labels)
    return {"digest": content.digest, "images": images}


def _paths(data: SourceData, cut: Cut, root: Path) -> Paths | None:
    """Return each image's path relative to the source's folder; None if it has no files."""
    if not data.places:
        return None
    start = f"{root if root.is_dir() else root.parent}{os.sep}"
    return {
        name: [data.place(origin, int(row)).removeprefix(start) for row in rows]
        for name, (origin, rows) in cut.rows.rows.items()
    }
