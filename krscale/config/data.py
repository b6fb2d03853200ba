"""The images that an experiment learns from, and the views of them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool

from krscale.config.fields import Count, Names, PathText, Progress, Section, StrictInt

_COLOUR = re.compile("#[0-9a-fA-F]{6}")


def _background(value: str) -> str:
    if value not in ("white", "black", "ignore") and not _COLOUR.fullmatch(value):
        raise ValueError(f"{value!r} is not white, black, #rrggbb (e.g. '#808080') or ignore")
    return value


def _whole_number(value: Any) -> Any:
    if type(value) is not int:  # `true` and 1.0 compare equal to 1
        raise ValueError("expected 1 or 3")
    return value


class GlyphsConfig(Section):
    """The source `glyphs`: characters of many type faces, warped and noisy, in grey."""

    num_classes: Annotated[int, Field(strict=True, ge=2, le=1000)] = 45
    """Number of characters; with more of them, fewer type faces have them all (22, 16, then 12)."""
    image_size: Annotated[int, Field(strict=True, ge=8, le=64)] = 16
    """Height and width in pixels."""
    num_train: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 20_000
    """Training images; every class has nearly the same number."""
    num_val: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 4_000
    """Validation images, from type faces that are not in training."""
    num_test: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 5_000
    """Test images, from type faces that are neither in training nor in validation."""
    warp: Progress = 0.5
    """Strength of rotation, shear, stretching and bending; 1 is up to 30 degrees."""
    noise: Progress = 0.5
    """Strength of background texture and pixel noise; 1 hides most glyphs."""
    seed: StrictInt = 0
    """Seed of every image, and of the choice of the type faces that are held out."""


class FilesConfig(Section):
    """Settings of sources that read files: your own images, in any number."""

    image_column: str = "image"
    """Parquet, `hf_disk`: column of PNG or JPEG bytes (also as the field `bytes` of a struct), or
    of raw pixels."""
    label_column: str = "label"
    """Parquet, `hf_disk`, `image_list`: column of whole numbers from 0, or of class names."""
    path_column: str = "path"
    """`image_list`: column of paths, absolute or relative to the folder of the list."""
    split_column: str = ""
    """`image_list`: column of train, val or test; if empty, a column named `split` is used where
    there is one."""
    classes: Names = ()
    """Names of the classes, in their order; if empty, all classes that are found: names sorted,
    numbers from 0. Where the labels are numbers and not these names, the names replace 0, 1, ..."""
    num_channels: Annotated[Literal[1, 3], BeforeValidator(_whole_number)] = 3
    """Encoded images are read as grey (1) or RGB (3)."""
    image_size: Annotated[int, Field(strict=True, ge=0, le=16_384)] = 0
    """Encoded images are scaled and cropped to a square with sides of this many pixels; 0 leaves
    them as they are, and all must then have one size."""
    raw_shape: tuple[Count, ...] = ()
    """Parquet: shape `[C, H, W]` of raw pixels (fixed-size binary of uint8, channel by channel); C
    is 1 or 3."""
    channels: Literal["auto", "first", "last"] = "auto"
    """Arrays: which axis of an image holds its channels; `auto` takes the one whose length is 1 or
    3."""
    exif_orientation: StrictBool = False
    """Whether encoded images are rotated according to their EXIF data, as in Hugging Face's
    datasets; `false` takes them as they are stored, as torchvision does (except TIFF, which is
    always rotated)."""


class DataConfig(Section):
    """Which images are used, and how they are split into train, validation and test."""

    source: str = "digits"
    """`digits` or `glyphs` (embedded); `image_folder`, `image_list`, `parquet`, `hf_disk`, `numpy`,
    `idx`, `cifar10` or `cifar100`, which read `path`; or `package.module:callable`, which returns
    (images, labels) or (images, labels, class_names)."""
    path: PathText = ""
    """File or folder that the source reads; empty for embedded sources."""
    unlabelled: PathText = ""
    """Images without labels, on which students learn from the teacher alone: a folder of images at
    any depth, an image list, Parquet files, an array, or a saved Hugging Face data set; empty for
    none."""
    seed: StrictInt = 0
    """Seed of the split into train, validation and test."""
    val_fraction: Annotated[float, Field(strict=True, gt=0.0, lt=0.5)] = 0.2
    """Share of the non-test images kept for validation; every selection uses these images."""
    test_fraction: Annotated[float, Field(strict=True, gt=0.0, lt=0.5)] = 0.25
    """Share of all images kept for test, where the source has no test split of its own."""
    max_images: Annotated[int, Field(strict=True, ge=0)] = 0
    """Take at most this many of the source's training images, drawn with `seed` class by class, for
    a first look at a large data set; 0 takes all. krscale splits validation and test images off
    from these; the source's own splits stay whole."""
    allow_duplicates: StrictBool = False
    """Whether two splits may hold the same image, pixel by pixel; `false` keeps copies in one split
    where krscale makes the splits, and refuses them in splits of your own."""
    background: Annotated[str, AfterValidator(_background)] = "white"
    """Colour of the background that transparent images are put on: `white`, `black`, `#rrggbb`;
    `ignore` takes the colours that the transparent pixels have in the file, as older versions of
    krscale did."""
    skip_unreadable: StrictBool = False
    """Whether to leave out images that cannot be read; they are listed either way."""
    map_labels: StrictBool = False
    """For labels that are numbers with gaps (0, 1, 3): whether the numbers that occur become the
    classes, in their order."""
    glyphs: GlyphsConfig = GlyphsConfig()
    """Settings of the source `glyphs`."""
    files: FilesConfig = FilesConfig()
    """Settings of sources that read files."""


NEWER_OF_VIEWS = ("resized_crop", "erasing", "mixup", "cutmix")
"""Fields of `views` that were added after fingerprints were first stored."""


class ViewsConfig(Section):
    """Seeded augmentation: the same (seed, sample, view) gives the same pixels everywhere."""

    seed: StrictInt = 0
    """Seed of every random draw of the views."""
    num_views: Count = 4
    """Number of different views of a sample; epoch e trains on view `e mod num_views`."""
    crop_padding: Annotated[int, Field(strict=True, ge=0)] = 0
    """Pixels of zero padding before a random crop back to the image's size."""
    shift: Annotated[int, Field(strict=True, ge=0)] = 1
    """Largest shift in pixels; border pixels are repeated."""
    flip: StrictBool = False
    """Mirror half of the views left to right."""
    cutout: Annotated[int, Field(strict=True, ge=0)] = 0
    """Side in pixels of a square set to zero; 0 for none."""
    jitter: Progress = 0.0
    """Strength of brightness, contrast and saturation changes; needs RGB images."""
    resized_crop: Progress = 0.0
    """Smallest share of the image's area that a random crop keeps, which is scaled to the image's
    size, its aspect changed by up to 4/3; 0 for none."""
    erasing: Progress = 0.0
    """Share of the views in which a rectangle of one random colour hides 2 to 33 % of the image."""
    mixup: Annotated[float, Field(strict=True, ge=0.0, le=10.0)] = 0.0
    """Mix every view with a view of another training image, with a weight drawn from Beta(mixup,
    mixup); 0 for none. The labels are mixed with the same weight."""
    cutmix: Annotated[float, Field(strict=True, ge=0.0, le=10.0)] = 0.0
    """Paste a rectangle of another training image into every view, with a share of the area drawn
    from Beta(cutmix, cutmix); 0 for none. With `mixup` as well, each applies to half of the
    views."""

    @property
    def mixes(self) -> bool:
        """Whether views and their labels are mixed from two images."""
        return self.mixup > 0.0 or self.cutmix > 0.0

    def identity(self) -> dict[str, Any]:
        """Return what tells one view policy from another, without newer fields that are not used.

        Unused newer fields are left out so that stores and teachers kept by an older krscale are
        found again.
        """
        content = self.model_dump(mode="json")
        defaults = {name: type(self).model_fields[name].default for name in NEWER_OF_VIEWS}
        return {k: v for k, v in content.items() if k not in defaults or v != defaults[k]}
