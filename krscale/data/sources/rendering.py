"""Render warped, noisy characters on textured backgrounds, as a pure function of their number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from krscale.config import GlyphsConfig
from krscale.data.augmentation.draws import draw_integers
from krscale.data.sources.faces import Shapes

RENDERING = 1
"""Version of the pixels; raise it with every change that alters them."""
_STEPS = 1 << 20  # outcomes of a draw that represents a real number
_COARSE = 4  # bends and textures are drawn on a grid of this side, then interpolated
_NUM_TONES = 1 << 10  # a pixel's noise is the sum of three draws with this many outcomes


@dataclass(frozen=True)
class Renderer:
    """Renders any images of a split; holds all that a rendering process needs.

    Attributes:
        config: The `data.glyphs` section.
        split: Number of the split, part of every draw.
        shapes: `[faces, K, M, M]` uint8, the characters in the faces of this split.
    """

    config: GlyphsConfig
    split: int
    shapes: Shapes

    def labels(self, numbers: Tensor) -> Tensor:
        """Return the classes of images: the classes take turns."""
        return numbers % self.config.num_classes

    def images(self, numbers: Tensor) -> Tensor:
        """Render images by number.

        Args:
            numbers: `[B]` int64.

        Returns:
            `[B, 1, S, S]` uint8. Computed in float64, so that practically no pixel differs between
            machines through rounding.
        """
        size = self.config.image_size
        draws = self._draw_reals(numbers)
        ink = F.avg_pool2d(self._ink(numbers, draws, 2 * size), 2)
        contrast = 0.4 + 0.5 * draws["contrast"]
        dark = draws["dark"] * (1 - contrast)
        sign = torch.where(draws["polarity"] < 0.5, 1.0, -1.0)
        paper = torch.where(sign > 0, dark, dark + contrast)
        picture = paper + sign * contrast * ink
        picture = picture + 0.4 * self.config.noise * self._texture(numbers, size)
        picture = picture + 0.2 * self.config.noise * self._pixel_noise(numbers, size)
        pixels: Tensor = (picture * 255).round().clamp(0, 255).to(torch.uint8)
        return pixels

    def _draw(self, numbers: Tensor, bounds: Mapping[str, int]) -> dict[str, Tensor]:
        return draw_integers(numbers, self.config.seed, self.split, bounds)

    def _draw_reals(self, numbers: Tensor) -> dict[str, Tensor]:
        """Draw numbers in [0, 1), `[B, 1, 1, 1]` each."""
        names = ("angle", "shear", "stretch", "size", "right", "down", "contrast", "dark")
        draws = self._draw(numbers, dict.fromkeys((*names, "polarity"), _STEPS))
        return {name: draw.double().view(-1, 1, 1, 1) / _STEPS for name, draw in draws.items()}

    def _ink(self, numbers: Tensor, draws: dict[str, Tensor], side: int) -> Tensor:
        """Return the ink of each glyph in 0..1 after the warp, `[B, 1, side, side]`."""
        face = self._draw(numbers, {"face": len(self.shapes)})["face"]
        shapes = torch.from_numpy(self.shapes[face.numpy(), self.labels(numbers).numpy()])
        warp = self.config.warp
        axis = (torch.arange(side, dtype=torch.float64) * 2 + 1) / side - 1
        scale = 0.6 + 0.3 * draws["size"]  # share of the image that the longer side fills
        x = axis.view(1, 1, 1, side) - (1 - scale) * (2 * draws["right"] - 1)
        y = axis.view(1, 1, side, 1) - (1 - scale) * (2 * draws["down"] - 1)
        angle = warp * (2 * draws["angle"] - 1) * (torch.pi / 6)
        cosine, sine = angle.cos(), angle.sin()
        x, y = cosine * x + sine * y, cosine * y - sine * x
        x = x + 0.4 * warp * (2 * draws["shear"] - 1) * y
        stretch = 1 + 0.3 * warp * (2 * draws["stretch"] - 1)
        bend = self._coarse(numbers, side, ("bend_x", "bend_y")) * (0.25 * warp)
        grid = torch.cat((x / scale * stretch, y / scale / stretch), dim=1) + bend
        source = shapes[:, None].double() / 255
        ink: Tensor = F.grid_sample(source, grid.permute(0, 2, 3, 1), align_corners=False)
        return ink

    def _texture(self, numbers: Tensor, size: int) -> Tensor:
        return self._coarse(numbers, size, ("texture",))

    def _coarse(self, numbers: Tensor, size: int, names: tuple[str, ...]) -> Tensor:
        """Return smooth random fields in [-1, 1), `[B, names, size, size]`."""
        cells = _COARSE * _COARSE
        places = numbers[:, None] * cells + torch.arange(cells)
        draws = self._draw(places.view(-1), dict.fromkeys(names, _STEPS))
        grids = [draw.view(-1, 1, _COARSE, _COARSE) for draw in draws.values()]
        values = torch.cat(grids, dim=1).double() * (2 / _STEPS) - 1
        smooth: Tensor = F.interpolate(values, (size, size), mode="bilinear", align_corners=True)
        return smooth

    def _pixel_noise(self, numbers: Tensor, size: int) -> Tensor:
        """Return nearly normal noise of unit variance, `[B, 1, size, size]`."""
        pixels = size * size
        places = numbers[:, None] * pixels + torch.arange(pixels)
        draw = self._draw(places.view(-1), {"noise": _NUM_TONES**3})["noise"]
        total = draw % _NUM_TONES + draw // _NUM_TONES % _NUM_TONES + draw // _NUM_TONES**2
        deviation = ((_NUM_TONES**2 - 1) / 4) ** 0.5
        noise: Tensor = (total.double() - 1.5 * (_NUM_TONES - 1)) / deviation
        return noise.view(-1, 1, size, size)
