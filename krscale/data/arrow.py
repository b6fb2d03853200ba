"""One split of a data set as one Arrow file, read back without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from krscale.errors import UserError

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


def write_split(path: Path, split: Split) -> None:
    """Write a split as an Arrow IPC file of one record batch.

    Columns: `image`, Arrow's canonical fixed-shape tensor of uint8 `[C, H, W]`, and `label`,
    int64. One batch keeps each column contiguous, which is what lets `read_split` map it.
    """
    # Flat in between: an axis of one has any stride, which Arrow would write down as an order.
    images = np.ascontiguousarray(split.images).reshape(-1).reshape(split.images.shape)
    columns = {"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images), "label": split.labels}
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(len(split), 1))


def read_split(path: Path) -> Split:
    """Map a file of `write_split` into memory.

    Raises:
        UserError: If the file is missing or damaged.
    """
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        batch.validate()  # that there are as many bytes as rows
        images = batch.column("image").to_numpy_ndarray()
        labels = batch.column("label").to_numpy()
    except (OSError, pa.ArrowException, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: not a readable split ({error}). Delete its folder; it will be built again."
        ) from error
    return Split(images, labels)
