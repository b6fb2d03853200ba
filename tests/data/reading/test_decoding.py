"""Decoding image files of every kind, and files that cannot be decoded."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from pngs import GREY, GREY_ALPHA, RGB, RGBA, png
from tiffs import tiff

from krscale.config import DataConfig, Experiment, FilesConfig, with_values
from krscale.config.older import with_former_defaults
from krscale.data import SPLITS, Dataset, prepare_data
from krscale.data.reading.decoding import FORMATS, Decoded, Decoder
from krscale.errors import UserError


def decode(path: Path, background: str = "white", **files: int) -> Decoded:
    return Decoder(FilesConfig(**files), background).decode(str(path))


def pixel(path: Path, background: str = "white", **files: int) -> list[int]:
    found = decode(path, background, **files)
    assert found.pixels is not None, found.problem
    return found.pixels[:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0)), ("RGBA", (9, 9, 9, 0)), ("PA", (0, 0)), ("P", 0)],
)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_what_is_transparent_shows_the_background(tmp_path, mode, colour, num_channels):
    path, image = tmp_path / "icon.tiff", Image.new(mode, (3, 2), colour)
    if mode.startswith("P"):
        image.putpalette([0, 0, 0, 255, 255, 255])
    if mode == "P":
        path, image.info["transparency"] = tmp_path / "icon.png", 0
    image.save(path)
    channels = {"num_channels": num_channels}
    assert pixel(path, **channels) == [255] * num_channels
    assert pixel(path, "black", **channels) == [0] * num_channels
    assert pixel(path, "#808080", **channels) == [128] * num_channels
    assert max(pixel(path, "ignore", **channels)) <= 9, "as krscale read them before"
    assert decode(path).transparent
    assert not decode(path, "ignore").transparent


def test_half_transparent_is_half_background(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 200, 128)).save(tmp_path / "half.png")
    expected = np.array([0, 0, 200]) * 128 / 255 + np.array([255, 255, 255]) * 127 / 255
    assert np.abs(np.array(pixel(tmp_path / "half.png")) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_images_are_read_as_before(tmp_path, mode):
    values = np.random.default_rng(0).integers(0, 256, (5, 6, len(mode)), dtype=np.uint8)
    values[..., -1] = 255
    Image.fromarray(values, mode).save(tmp_path / "a.png")
    found, before = decode(tmp_path / "a.png"), decode(tmp_path / "a.png", "ignore")
    assert found.pixels is not None
    assert np.array_equal(found.pixels, before.pixels)
    assert not found.transparent


@pytest.mark.parametrize(("colour", "channels"), [(GREY, 1), (RGB, 3), (GREY_ALPHA, 2), (RGBA, 4)])
def test_16_bits_are_scaled(tmp_path, colour, channels):
    levels = np.array([[0, 255, 256, 25_700, 32_768, 65_535]], np.uint16)
    values = np.repeat(levels[..., None], channels, axis=2)
    if colour in (GREY_ALPHA, RGBA):
        values[..., -1] = 65_535
    (tmp_path / "deep.png").write_bytes(png(values, colour))
    found = decode(tmp_path / "deep.png")
    assert found.pixels is not None
    exact = levels[0] / 65_535 * 255
    assert np.abs(found.pixels - exact).max() < 1
    assert found.pixels[:, 0, -1].tolist() == [255, 255, 255]
    assert found.brightest == 65_535


def test_16_bits_with_a_transparent_level(tmp_path):
    values = np.array([[[300], [40_000]]], np.uint16)
    (tmp_path / "deep.png").write_bytes(png(values, GREY, key=(300,)))
    found = decode(tmp_path / "deep.png", "#ff0000")
    assert found.pixels is not None
    assert found.pixels[:, 0].T.tolist() == [[255, 0, 0], [156, 156, 156]]
    assert pixel(tmp_path / "deep.png", "ignore") == [1, 1, 1]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_level_of_few_bits(tmp_path, bits, channels):
    highest = 2**bits - 1
    values = np.array([[[0], [highest], [highest - 1]]])
    for key in (0, highest, highest - 1):
        (tmp_path / "a.png").write_bytes(png(values, GREY, key=(key,), bits=bits))
        found = decode(tmp_path / "a.png", "#404040", num_channels=channels)
        assert found.pixels is not None
        assert found.transparent
        plain = (values[0, :, 0] * 255 // highest).tolist()
        expected = [64 if v == key else p for v, p in zip(values[0, :, 0], plain, strict=True)]
        assert found.pixels[:, 0].tolist() == [expected] * channels
        taken = decode(tmp_path / "a.png", "ignore").pixels
        assert taken is not None
        assert taken[0, 0].tolist() == plain


def test_a_transparent_colour_of_16_bits_is_said(tmp_path):
    root = images(tmp_path / "data")
    values = np.random.default_rng(0).integers(0, 2**16, (36, 6, 5, 3)).astype(np.uint16)
    paths = sorted(root.rglob("*.png"))
    for path, levels in zip(paths, values, strict=True):
        path.write_bytes(png(levels, RGB, key=tuple(levels[0, 0].tolist())))
    assert pixel(paths[0]) == (values[0, 0, 0] >> 8).tolist()
    assert decode(paths[0], num_channels=1).pixels is not None
    notes: list[str] = []
    prepare(root, notes)
    assert any("36 images of 16 bits a channel name a colour" in note for note in notes)
    paths[0].write_bytes(png(np.array([[[0, 128, 255]]]), RGB, key=(0, 128, 255), bits=8))
    assert decode(paths[0]).transparent


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"P6 2 1 255\n" + bytes([1, 2, 3, 4, 5, 6]), [1, 2, 3]),
     (b"P3 2 1 255 1 2 3 4 5 6", [1, 2, 3]), (b"P5 1 1 255\n\7", [7] * 3),
     (b"P2 1 1 15 3", [51] * 3), (b"P5 1 1 65535\n\x80\0", [128] * 3),
     (b"P6 1 1 65535\n" + bytes([128, 128, 0, 0, 255, 255]), [128, 0, 255]),
     (b"P1 1 1 0", [255] * 3), (b"P4 8 1\n\xff", [0] * 3)],
)  # fmt: skip
def test_portable_maps(tmp_path, content, expected):
    """Data sets of traffic signs and faces use them; Pillow scales their levels to 0..255."""
    (tmp_path / "a.ppm").write_bytes(content)
    assert pixel(tmp_path / "a.ppm") == expected
    for cut in range(2, len(content) - 1):
        (tmp_path / "a.ppm").write_bytes(content[:cut])
        decode(tmp_path / "a.ppm")  # a problem or fewer digits, never an exception


def photograph(path: Path, orientation: object) -> np.ndarray:
    """Write an image whose EXIF data have an orientation; return its pixels as they are stored."""
    pixels = np.kron(np.arange(0, 240, 40, np.uint8).reshape(2, 3), np.ones((8, 8), np.uint8))
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.convert("RGB").save(path, exif=exif, quality=100)
    return pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["jpg", "png", "webp"])
def test_a_photograph_is_turned_where_that_is_set(tmp_path, form, orientation):
    stored = photograph(tmp_path / f"a.{form}", orientation)
    with Image.open(tmp_path / f"a.{form}") as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("L"))
    found = decode(tmp_path / f"a.{form}", num_channels=1, exif_orientation=True)
    assert found.pixels.shape[1:] == expected.shape
    assert np.abs(found.pixels[0].astype(int) - expected).max() <= 1
    left = decode(tmp_path / f"a.{form}", num_channels=1)
    assert np.abs(left.pixels[0].astype(int) - stored).max() <= 8  # JPEG and WebP are lossy
    assert found.orientation == left.orientation == orientation


@pytest.mark.parametrize("turned", [False, True])
def test_a_tiff_is_turned_once_whatever_is_set(tmp_path, turned):
    """Pillow turns a TIFF as it reads it, so torchvision gets the turned image too."""
    stored = photograph(tmp_path / "a.tiff", 6)
    found = decode(tmp_path / "a.tiff", num_channels=1, exif_orientation=turned)
    assert np.array_equal(found.pixels[0], np.rot90(stored, -1))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_no_orientation_of_exif_turns_nothing(tmp_path, orientation):
    photograph(tmp_path / "a.jpg", orientation)
    assert decode(tmp_path / "a.jpg", exif_orientation=True).orientation == 1


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns as it opens an image
def test_damaged_exif_data_are_no_damaged_image(tmp_path):
    photograph(tmp_path / "a.jpg", 6)
    content = (tmp_path / "a.jpg").read_bytes()
    start = content.index(b"Exif\0\0")
    end = start - 2 + int.from_bytes(content[start - 2 : start], "big")
    for place in range(start, end):
        for value in (0, 255):
            damaged = bytearray(content)
            damaged[place] = value
            (tmp_path / "b.jpg").write_bytes(damaged)
            assert decode(tmp_path / "b.jpg", exif_orientation=True).pixels is not None


@pytest.mark.parametrize("turned", [False, True])
def test_photographs_that_are_to_be_turned_are_said(tmp_path, turned):
    root = images(tmp_path / "data")
    for number in range(3):
        photograph(root / f"ant/{number}-x.jpg", 6)
    notes: list[str] = []
    prepare(root, notes, files=FilesConfig(image_size=4, exif_orientation=turned))
    words = "3 images are turned as" if turned else "the EXIF data of 3 images say that they are"
    assert [note for note in notes if words in note]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_are_not_readable(tmp_path, mode):
    Image.new(mode, (2, 2)).save(tmp_path / "deep.tiff")
    assert decode(tmp_path / "deep.tiff").problem == f"32 bits a channel (mode {mode})"


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_colours_of_16_bits_in_planes_are_not_readable(tmp_path, bits, planes):
    """Pillow reads each byte of a plane as a pixel, which gives noise."""
    values = np.random.default_rng(0).integers(0, 2**bits, (5, 6, 3))
    (tmp_path / "a.tiff").write_bytes(tiff(values, bits, planes=planes))
    found = decode(tmp_path / "a.tiff")
    if bits == 16 and planes:
        assert found.problem.startswith("16 bits a channel in separate planes")
    else:
        assert found.pixels is not None
        assert np.array_equal(found.pixels, (values >> (bits - 8)).transpose(2, 0, 1))
        assert (found.brightest is not None) == (bits == 16)


def images(root: Path, num_images: int = 12) -> Path:
    for label, name in enumerate(("ant", "bee", "cat")):
        for number in range(num_images):
            values = np.random.default_rng(100 * label + number).integers(0, 256, (6, 5, 3))
            path = root / name / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(path)
    return root


def prepare(root: Path, notes: list[str], **config: object) -> Dataset:
    settings = DataConfig(source="image_folder", path=str(root), **config)
    return prepare_data(settings, root.parent / "cache", None, notes.append)


def spoil(root: Path) -> None:
    (root / "ant/00.png").write_bytes(b"")
    (root / "bee/05.png").write_bytes(b"not an image")
    whole = (root / "cat/11.png").read_bytes()
    (root / "cat/11.png").write_bytes(whole[: len(whole) // 2])


def test_all_unreadable_images_are_named_together(tmp_path):
    root = images(tmp_path / "data")
    spoil(root)
    with pytest.raises(UserError, match=r"3 images cannot be read: ") as caught:
        prepare(root, [])
    text = str(caught.value)
    assert "ant/00.png: not a readable image (it is empty (0 bytes))" in text
    assert "bee/05.png: not a readable image" in text
    assert "cat/11.png: not a readable image" in text
    assert "data.skip_unreadable = true" in text
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_unreadable_images_are_left_out_if_that_is_wanted(tmp_path):
    root = images(tmp_path / "data")
    spoil(root)
    notes: list[str] = []
    found = prepare(root, notes, skip_unreadable=True)
    assert sum(found.num_samples.values()) == 33
    (line,) = (note for note in notes if "left out" in note)
    assert "3 images left out: " in line
    skipped = json.loads((found.path / "manifest.json").read_text())["skipped"]
    assert [text.split(":")[0].removeprefix(f"{root}/") for text in skipped] == [
        "ant/00.png", "bee/05.png", "cat/11.png",
    ]  # fmt: skip
    for name in ("ant/00", "bee/05", "cat/11"):
        (root / f"{name}.png").unlink()
    clean = prepare(root, [])
    assert clean.fingerprint == found.fingerprint, "as if they had never been there"
    for name in SPLITS:
        assert np.array_equal(clean.split(name).images, found.split(name).images)
    assert (clean.path / "splits.csv").read_text() == (found.path / "splits.csv").read_text()


def test_a_folder_without_any_readable_image_is_refused(tmp_path):
    root = images(tmp_path / "data", 3)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    for skip in (False, True):
        with pytest.raises(UserError, match="nor is any other of the 9 images"):
            prepare(root, [], skip_unreadable=skip)


def test_a_class_that_is_left_without_images_is_named(tmp_path):
    root = images(tmp_path / "data")
    for path in (root / "bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="1 of 3 classes have no training image: bee"):
        prepare(root, [], skip_unreadable=True)


def test_all_images_of_another_size_are_named_together(tmp_path):
    root = images(tmp_path / "data")
    for name in ("bee/03", "cat/04"):
        Image.new("RGB", (7, 8)).save(root / f"{name}.png")
    with pytest.raises(UserError, match="2 images of another size") as caught:
        prepare(root, [], skip_unreadable=True)
    assert "bee/03.png: 8x7 pixels, where the first image has 6x5" in str(caught.value)
    assert "cat/04.png" in str(caught.value)


def test_transparency_is_said_once_and_kept_by_older_runs(tmp_path):
    root = images(tmp_path / "data")
    for number, name in enumerate(("bee/03", "cat/04")):
        Image.new("RGBA", (5, 6), (len(name), 0, 70 * number, 99)).save(root / f"{name}.png")
    notes: list[str] = []
    found = prepare(root, notes)
    (line,) = notes
    assert "2 images are transparent in places; they are laid on white" in line
    before = prepare(root, [], background="ignore")
    assert before.fingerprint != found.fingerprint
    current = with_values(Experiment(), {"data.source": "image_folder"}, "").model_dump(mode="json")
    older = {**current, "data": {k: v for k, v in current["data"].items() if k != "background"}}
    assert with_former_defaults(older)["data"]["background"] == "ignore"
    assert with_former_defaults(current)["data"]["background"] == "white"
    embedded = {**older, "data": {**older["data"], "source": "digits"}}
    assert "background" not in with_former_defaults(embedded)["data"]


@pytest.mark.parametrize(("colour", "channels"), [(GREY, 1), (RGB, 3)])
def test_dark_16_bit_images_are_said(tmp_path, colour, channels):
    root = images(tmp_path / "data")
    values = np.random.default_rng(0).integers(0, 4096, (36, 6, 5, channels)).astype(np.uint16)
    for path, levels in zip(sorted(root.rglob("*.png")), values, strict=True):
        path.write_bytes(png(levels, colour))
    notes: list[str] = []
    prepare(root, notes, allow_duplicates=True)
    assert any("36 images have 16 bits a channel" in note for note in notes)
    assert any("None is brighter than 40" in note for note in notes)


@pytest.mark.parametrize("background", ["whit", "#12", "#gggggg", ""])
def test_a_background_is_a_colour(background):
    with pytest.raises(ValueError, match="is not white, black, #rrggbb"):
        DataConfig(background=background)


def test_an_image_of_far_more_pixels_than_bytes(tmp_path, monkeypatch):
    """A file of a few kilobytes can decode to 100 million pixels, in each of eight threads."""
    Image.new("RGB", (7000, 6000)).save(tmp_path / "large.png")
    monkeypatch.setattr(Decoder, "_read", lambda *_: pytest.fail("it was read"))
    assert "6000x7000 pixels in " in decode(tmp_path / "large.png").problem
    content = (tmp_path / "large.png").read_bytes()
    found = Decoder(FilesConfig(), "white").decode(content)
    assert "more than 200 to a byte" in found.problem


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_images_are_read_or_have_a_problem(kind, changes):
    written = io.BytesIO()
    Image.fromarray(np.arange(120, dtype=np.uint8).reshape(5, 8, 3)).save(written, kind)
    content = bytearray(written.getvalue())
    for place, value in changes:
        content[place % len(content)] = value
    found = Decoder(FilesConfig(), "white").decode(bytes(content))
    assert found.problem or found.pixels is not None
