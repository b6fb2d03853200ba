import numpy as np
import pytest

from krscale.data.sources.faces import FIRST_CHARACTERS, choose_characters, draw_shapes
from krscale.errors import UserError


@pytest.mark.parametrize(
    ("num_classes", "num_faces"), [(2, 22), (45, 22), (100, 16), (400, 16), (700, 12), (1000, 12)]
)
def test_the_more_characters_the_fewer_faces(num_classes, num_faces):
    face_set, characters = choose_characters(num_classes)
    assert len(set(characters)) == num_classes
    assert sum(len(family) for family in face_set.families.values()) == num_faces
    assert characters.startswith(FIRST_CHARACTERS[:num_classes])


def test_more_characters_than_any_face_has():
    with pytest.raises(UserError, match=r"num_classes: 9999 .* allowed: 2\.\.1[0-9]{3}\."):
        choose_characters(9999)


@pytest.mark.parametrize(
    "twins",
    [
        "A\N{GREEK CAPITAL LETTER ALPHA}\N{CYRILLIC CAPITAL LETTER A}",
        "B\N{GREEK CAPITAL LETTER BETA}\N{CYRILLIC CAPITAL LETTER VE}",
        "Oo\N{GREEK CAPITAL LETTER OMICRON}\N{CYRILLIC SMALL LETTER O}",
        "Cc\N{CYRILLIC CAPITAL LETTER ES}",
    ],
)
def test_characters_that_look_alike_count_once(twins):
    _, characters = choose_characters(1000)
    assert sum(character in characters for character in twins) == 1


def test_shapes_fill_the_square_and_are_centred():
    shapes = draw_shapes(["DejaVuSans", "cmr10"], "AgIW1", 32)
    assert shapes.shape == (2, 5, 32, 32)
    assert shapes.dtype == np.uint8
    for shape in shapes.reshape(-1, 32, 32):
        rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
        assert 29 <= max(len(rows), len(columns)) <= 32
        assert abs(rows[0] - (31 - rows[-1])) <= 1
        assert abs(columns[0] - (31 - columns[-1])) <= 1
        assert shape.max() > 200


def test_shapes_are_those_of_the_characters():
    ((bar, ring, cross),) = draw_shapes(["DejaVuSans"], "|O+", 32)
    assert bar[:, 12:20].sum() == bar.sum()  # all ink in the middle columns
    assert ring[13:19, 13:19].max() == 0  # nothing in the middle
    assert ring.sum() > bar.sum()
    assert np.array_equal(cross[4:28, 16] > 128, np.ones(24, dtype=bool))


def test_faces_differ():
    shapes = draw_shapes(["DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif"], "A", 32)[:, 0]
    assert len({shape.tobytes() for shape in shapes}) == 3
