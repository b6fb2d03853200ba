"""The type faces that ship with matplotlib: which characters they share, and their shapes."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krscale.errors import UserError

Shapes = npt.NDArray[np.uint8]

_DEJAVU = {
    "sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    "mono": (
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-Oblique",
        "DejaVuSansMono-BoldOblique",
    ),
    "serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
}
_STIX = {"stix": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta")}
_MODERN = {"modern": ("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10", "cmmi10")}


@dataclass(frozen=True)
class FaceSet:
    """Families of faces, the regular face of each first, and what to take from them.

    Attributes:
        families: Faces by family.
        only_ascii: Whether only ASCII letters and digits are common to all of them; the Computer
            Modern faces have other shapes at the other codes.
    """

    families: Mapping[str, tuple[str, ...]]
    only_ascii: bool = False


FACE_SETS = (
    FaceSet({**_DEJAVU, **_STIX, **_MODERN}, only_ascii=True),
    FaceSet({**_DEJAVU, **_STIX}),
    FaceSet(_DEJAVU),
)
"""Ordered from many faces with few common characters to few faces with many."""

FIRST_CHARACTERS = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZabdefghnqrt"
"""The first 45 classes: digits and letters whose shapes differ even at equal size."""

_SAME_SHAPE = 0.9  # correlation above which two characters count as one
_SHAPE_SIDE = 24  # pixels at which shapes are compared


def choose_characters(num_classes: int) -> tuple[FaceSet, str]:
    """Return the largest set of faces that shares enough characters, and the characters.

    Characters that look alike in the regular face of any family (A in Latin, Greek and Cyrillic;
    o and O) count as one, because images are scaled to a common size.

    Raises:
        UserError: If no set of faces has that many.
    """
    characters = ""
    for number, face_set in enumerate(FACE_SETS):
        characters = _distinct(number)
        if len(characters) >= num_classes:
            return face_set, characters[:num_classes]
    raise UserError(
        f"data.glyphs.num_classes: {num_classes} characters are more than the embedded faces "
        f"share; allowed: 2..{len(characters)}."
    )


def draw_shapes(faces: Sequence[str], characters: str, side: int) -> Shapes:
    """Draw every character in every face, scaled so that its longer side fills the square.

    Returns:
        `[faces, characters, side, side]`, 255 where there is ink, each shape centred.
    """
    shapes = np.zeros((len(faces), len(characters), side, side), dtype=np.uint8)
    for row, name in enumerate(faces):
        font = _open(name)
        for column, character in enumerate(characters):
            bitmap = _draw(font, character, side)
            height, width = bitmap.shape
            top, left = (side - height) // 2, (side - width) // 2
            shapes[row, column, top : top + height, left : left + width] = bitmap
    return shapes


@lru_cache
def _distinct(number: int) -> str:
    """Return the characters that all faces of a set have, without those that look alike."""
    face_set = FACE_SETS[number]
    candidates = FIRST_CHARACTERS + "".join(
        sorted(_shared(face_set) - set(FIRST_CHARACTERS), key=lambda c: (_rank(c), c))
    )
    regular = [family[0] for family in face_set.families.values()]
    shapes = draw_shapes(regular, candidates, _SHAPE_SIDE).astype(np.float64)
    shapes = shapes.reshape(len(regular), len(candidates), -1)
    shapes -= shapes.mean(axis=2, keepdims=True)
    shapes /= np.linalg.norm(shapes, axis=2, keepdims=True)
    likeness = (shapes @ shapes.transpose(0, 2, 1)).max(axis=0)
    kept = list(range(len(FIRST_CHARACTERS)))  # chosen by eye: E and F only correlate
    for index in range(len(kept), len(candidates)):
        if likeness[index, kept].max() < _SAME_SHAPE:
            kept.append(index)
    return "".join(candidates[index] for index in kept)


def _shared(face_set: FaceSet) -> set[str]:
    """Return the characters that leave ink in every face of a set."""
    fonts = [_open(face) for family in face_set.families.values() for face in family]
    codes = set.intersection(*(set(font.get_charmap()) for font in fonts))
    characters = {chr(code) for code in codes if _rank(chr(code)) >= 0}
    if face_set.only_ascii:
        characters = {c for c in characters if c.isascii() and c.isalnum()}
    for font in fonts:
        characters = {c for c in characters if _longer_side(font, c) > 0}
    return characters


def _rank(character: str) -> int:
    """Letters, then numbers, symbols and punctuation; -1 for marks, modifiers and spaces."""
    category = unicodedata.category(character)
    return -1 if category in ("Lm", "Sk") else "LNSP".find(category[0])


def _open(face: str) -> Any:
    """Open one of matplotlib's faces."""
    import matplotlib  # imported here, because only the first rendering needs it
    from matplotlib.ft2font import FT2Font

    return FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"))


_UNITS = 100.0  # points at which a character is measured


def _longer_side(font: Any, character: str) -> float:
    """Longer side of a character's box in pixels, at `_UNITS` points of 1/72 inch, 72 dpi."""
    from matplotlib.ft2font import LoadFlags

    font.set_size(_UNITS, 72)
    glyph = font.load_char(ord(character), flags=LoadFlags.NO_HINTING)
    return float(max(glyph.width, glyph.height)) / 64


def _draw(font: Any, character: str, side: int) -> Shapes:
    """Draw one character so that its longer side has at most `side` pixels."""
    from matplotlib.ft2font import LoadFlags

    points = _UNITS * (side - 2) / _longer_side(font, character)  # leaves 2 pixels for soft edges
    font.set_size(points, 72)
    font.set_text(character, 0, flags=LoadFlags.NO_HINTING)
    font.draw_glyphs_to_bitmap(antialiased=True)
    bitmap = np.asarray(font.get_image(), dtype=np.uint8)
    inked = bitmap[bitmap.any(axis=1)][:, bitmap.any(axis=0)]  # drops rows and columns without ink
    return inked[:side, :side]
