"""Which images an experiment learns from, and the views of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from krscale.config.fields import Count, Names, Section, StrictInt


class GlyphsConfig(Section):
    """The source `glyphs`: characters of many type faces, warped and noisy, in grey."""

    num_classes: Annotated[int, Field(strict=True, ge=2, le=1000)] = 45
    """Characters to tell apart; the more, the fewer faces have them all (22, 16, then 12)."""
    image_size: Annotated[int, Field(strict=True, ge=8, le=64)] = 16
    """Height and width in pixels."""
    num_train: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 20_000
    """Training images; every class has nearly the same number."""
    num_val: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 4_000
    """Validation images, from faces that are not in training."""
    num_test: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 5_000
    """Test images, from faces that are neither in training nor in validation."""
    warp: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Strength of rotation, shear, stretching and bending; 1 is up to 30 degrees."""
    noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Strength of background texture and pixel noise; 1 hides most glyphs."""
    seed: StrictInt = 0
    """Seed of every image, and of which faces are held out."""


class FilesConfig(Section):
    """The sources `parquet` and `image_folder`: images of one's own, however many."""

    image_column: str = "image"
    """Parquet: column of PNG or JPEG bytes (also within a struct, as `bytes`), or of raw pixels."""
    label_column: str = "label"
    """Parquet: column of whole numbers from 0, or of names of classes."""
    classes: Names = ()
    """Names of the classes; empty takes all that are found: names sorted, numbers from 0."""
    num_channels: Literal[1, 3] = 3
    """Encoded images are read as grey (1) or RGB (3)."""
    image_size: Annotated[int, Field(strict=True, ge=0)] = 0
    """Encoded images are scaled and cut to a square of so many pixels; 0 leaves them as they are,
    which must be of one size."""
    raw_shape: tuple[Count, ...] = ()
    """Parquet: `[C, H, W]` of raw pixels (fixed-size binary of uint8, channel by channel)."""


class DataConfig(Section):
    """Which images, and how they are cut into train, validation and test."""

    source: str = "digits"
    """`digits` or `glyphs` (embedded), or `cifar10`, `cifar100`, `parquet` or `image_folder`, which
    read `path`."""
    path: str = ""
    """File or folder that the source reads; empty for embedded sources."""
    seed: StrictInt = 0
    """Seed of the split into train, validation and test."""
    val_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.2
    """Share of the non-test images kept for validation; every selection uses it."""
    test_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.25
    """Share of all images kept for test, where the source has no test split of its own."""
    allow_duplicates: bool = False
    """Whether two splits may hold the same image, pixel by pixel; `false` keeps copies in one split
    where krscale cuts, and refuses them in splits of your own."""
    glyphs: GlyphsConfig = GlyphsConfig()
    """Settings of the source `glyphs`."""
    files: FilesConfig = FilesConfig()
    """Settings of the sources `parquet` and `image_folder`."""


class ViewsConfig(Section):
    """Seeded augmentation: the same (seed, sample, view) gives the same pixels everywhere."""

    seed: StrictInt = 0
    """Seed of every random draw of the views."""
    num_views: Count = 4
    """Distinct views of a sample; epoch e trains on view `e mod num_views`."""
    crop_padding: Annotated[int, Field(strict=True, ge=0)] = 0
    """Pixels of zero padding before a random crop back to the image's size."""
    shift: Annotated[int, Field(strict=True, ge=0)] = 1
    """Largest shift in pixels, borders repeated."""
    flip: bool = False
    """Mirror half of the views left to right."""
    cutout: Annotated[int, Field(strict=True, ge=0)] = 0
    """Side in pixels of a square set to zero; 0 for none."""
    jitter: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Strength of brightness, contrast and saturation changes; needs RGB images."""
