"""One split of a data set as one Arrow file, read back without a copy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from krscale.digests import CheckedFile
from krscale.foreign import parsing, regular

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Labelled images of one split.

    Attributes:
        images: `[N, C, H, W]` uint8; read from disk, it is memory-mapped and read-only, so that
            all processes of a machine share its pages.
        labels: `[N]` int64, indices into the classes.
    """

    images: Images
    labels: Labels
    _unread: _Unread | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape `(C, H, W)` of every image."""
        return self.images.shape[1:]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return images and labels as CPU tensors that share their memory with the split.

        They must not be written to: the pages of a file on disk are read-only.
        """
        return from_dlpack(self.images), from_dlpack(self.labels)

    def check(self, rows: npt.NDArray[np.int64] | None = None) -> None:
        """Compare the images of some rows with what was written, unless that was done before.

        Does nothing if the split was already compared whole, or was never on disk.

        Args:
            rows: `[B]` numbers of images; None checks all of them.

        Raises:
            DamagedFileError: If an image is not what was written; the message names the file.
        """
        if self._unread is not None:
            self._unread.check(rows)


@dataclass(frozen=True)
class _Unread:
    """Position of a split's images in its file, and which blocks of the file were compared."""

    file: CheckedFile
    start: int
    row_bytes: int

    def check(self, rows: npt.NDArray[np.int64] | None) -> None:
        if self.file.is_whole:
            return
        if rows is None or not self.row_bytes:
            self.file.check()
            return
        block = self.file.digest.block_bytes
        firsts = (self.start + rows * self.row_bytes) // block
        lasts = (self.start + (rows + 1) * self.row_bytes - 1) // block
        spans = range(int((lasts - firsts).max(initial=0)) + 1)
        touched = np.concatenate([np.minimum(firsts + span, lasts) for span in spans])
        self.file.check_blocks(np.unique(touched).tolist())


def write_split(path: Path, split: Split) -> None:
    """Write a split as an Arrow IPC file of one record batch.

    Columns: `image`, Arrow's canonical fixed-shape tensor of uint8 `[C, H, W]`, and `label`, int64.
    With a single batch, each column is contiguous, so that `read_split` can map it.
    """
    # Flatten and reshape: an axis of length 1 may have any stride, and Arrow would store it as a
    # dimension order.
    images = np.ascontiguousarray(split.images).reshape(-1).reshape(split.images.shape)
    columns = {"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images), "label": split.labels}
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(len(split), 1))


def read_split(path: Path, file: CheckedFile | None = None) -> Split:
    """Map a file of `write_split` into memory.

    Args:
        path: The file.
        file: The same file with its digest. Everything but the images is compared now; images are
            compared by `Split.check`. None compares nothing.

    Raises:
        UserError: If the file is missing or damaged.
    """
    if file is not None:  # the parts from which Arrow locates the columns
        file.check(0, 1)
        file.check(file.digest.num_bytes - 1)
    with parsing(f"{path}: not a readable split", "Delete its folder; it will be built again."):
        source = pa.memory_map(str(regular(path)))
        batch = pa.ipc.open_file(source).get_batch(0)
        batch.validate()  # checks that the bytes match the rows
        images = batch.column("image").to_numpy_ndarray()
        labels = batch.column("label").to_numpy()
    unread = None
    if file is not None:
        unread = _unread(file, source, images)
        file.check(0, unread.start)
        file.check(unread.start + images.nbytes)
    return Split(images, labels, unread)


def _unread(file: CheckedFile, source: Any, images: Images) -> _Unread:
    source.seek(0)
    start = images.ctypes.data - source.read_buffer(1).address
    return _Unread(file, start, images.nbytes // max(len(images), 1))
