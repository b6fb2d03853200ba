"""The source `glyphs`: characters of many type faces, warped and noisy, with whole faces held out.

One face of each family is kept for validation and one for test, so that training and test really
differ.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, ClassVar

import numpy as np
import torch

from krscale.config import DataConfig
from krscale.data.arrow import Split
from krscale.data.source import Description, Report, SourceData, SplitName, refuse_path
from krscale.data.sources.faces import FaceSet, Shapes, choose_characters, draw_shapes
from krscale.data.sources.rendering import RENDERING, Renderer
from krscale.errors import UserError

_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
_CHUNK = 512  # images rendered at once
_PIXELS_PER_PROCESS = 20_000_000  # rendering fewer takes less time than starting a process
Task = tuple[int, int, int]
"""Number of a renderer, and start and stop of the numbers of its images."""


class Glyphs:
    """Characters of the type faces that ship with matplotlib."""

    own_splits: ClassVar[tuple[SplitName, ...]] = ("val", "test")

    def __init__(self, config: DataConfig) -> None:
        refuse_path("glyphs", config)
        self.config = config.glyphs
        if self.config.num_train < self.config.num_classes:
            raise UserError(
                f"data.glyphs.num_train: {self.config.num_train} images cannot show each of "
                f"{self.config.num_classes} classes."
            )

    def identity(self) -> Mapping[str, Any]:
        """Return the settings, and the versions of the libraries that draw the characters."""
        from matplotlib import __version__, ft2font

        return {
            "rendering": RENDERING,
            "matplotlib": __version__,
            "freetype": ft2font.__freetype_version__,
            **self.config.model_dump(mode="json"),
        }

    def describe(self) -> Description:
        """Return the sizes that the settings ask for."""
        size = self.config.image_size
        return Description(self.config.num_classes, (1, size, size), self.config.num_train)

    def read(self, report: Report) -> SourceData:
        """Render all images, on several processes when there are many."""
        config = self.config
        face_set, characters = choose_characters(config.num_classes)
        faces = hold_out(face_set, config.seed)
        renderers = [
            Renderer(config, number, draw_shapes(faces[name], characters, 2 * config.image_size))
            for number, name in enumerate(_SPLITS)
        ]
        sizes = (config.num_train, config.num_val, config.num_test)
        images = _render_all(renderers, sizes, report)
        splits: dict[SplitName, Split] = {
            name: Split(images[number], renderers[number].labels(torch.arange(size)).numpy())
            for number, (name, size) in enumerate(zip(_SPLITS, sizes, strict=True))
        }
        return SourceData(tuple(characters), splits, published=True)


def hold_out(face_set: FaceSet, seed: int) -> dict[SplitName, tuple[str, ...]]:
    """Divide the faces among the splits: one of each family for validation and one for test."""
    faces: dict[SplitName, list[str]] = {name: [] for name in _SPLITS}
    for family in face_set.families.values():
        val, test, *train = sorted(
            family, key=lambda face: hashlib.sha256(f"{seed}/{face}".encode()).digest()
        )
        faces["val"].append(val)
        faces["test"].append(test)
        faces["train"] += sorted(train)
    return {name: tuple(chosen) for name, chosen in faces.items()}


def _render_all(
    renderers: Sequence[Renderer], sizes: Sequence[int], report: Report
) -> list[Shapes]:
    """Render `sizes[i]` images with renderer i, `[N, 1, S, S]` each."""
    tasks = [
        (number, start, min(start + _CHUNK, size))
        for number, size in enumerate(sizes)
        for start in range(0, size, _CHUNK)
    ]
    side = renderers[0].config.image_size
    num_processes = min(_num_cores(), sum(sizes) * side * side // _PIXELS_PER_PROCESS)
    pieces: list[list[Shapes]] = [[] for _ in renderers]
    done = 0
    for (number, start, stop), images in zip(
        tasks, _render_tasks(renderers, tasks, num_processes), strict=True
    ):
        pieces[number].append(images)
        done += stop - start
        report(done, sum(sizes))
    return [np.concatenate(images) for images in pieces]


def _render_tasks(
    renderers: Sequence[Renderer], tasks: Sequence[Task], num_processes: int
) -> Iterator[Shapes]:
    """Yield the images of each task in order, from this process or from several new ones."""
    if num_processes < 2:
        for number, start, stop in tasks:
            yield renderers[number].images(torch.arange(start, stop)).numpy()
        return
    with ProcessPoolExecutor(
        num_processes, get_context("spawn"), initializer=_start_process, initargs=(renderers,)
    ) as executor:
        yield from executor.map(_render_task, tasks)


_renderers: Sequence[Renderer] = ()  # renderers of a rendering process, sent once when it starts


def _start_process(renderers: Sequence[Renderer]) -> None:
    global _renderers  # an initialiser can store objects only in globals
    _renderers = renderers
    torch.set_num_threads(1)


def _render_task(task: Task) -> Shapes:
    number, start, stop = task
    images: Shapes = _renderers[number].images(torch.arange(start, stop)).numpy()
    return images


def _num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
