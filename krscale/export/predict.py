"""Classify image files with the student in `student.onnx`; needs onnxruntime, Pillow and numpy.

    python predict.py IMAGE_OR_FOLDER ...       prints file, class and probability as CSV
    python predict.py --accuracy FOLDER         a folder for each class: prints how many are right
    python predict.py --accuracy splits.csv --split test --root FOLDER
                                                the same for files in a list: path, label, split

Everything between a file and the input of the network is in `student.json` and in the graph. This
file lies beside both; copy all three together.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
BATCH_SIZE = 64

Labelled = tuple[Path, str]


class Student:
    """An exported student.

    Args:
        folder: Holds `student.onnx` and `student.json`.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        card = json.loads((folder / "student.json").read_text(encoding="utf-8"))
        self.classes: list[str] = card["classes"]
        self.preprocessing: dict[str, Any] = card["preprocessing"]
        onnx = folder / "student.onnx"
        if not onnx.is_file():
            raise SystemExit(f"{onnx}: not there; the student was exported in other formats.")
        self.session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])

    def logits(self, files: Sequence[Path]) -> npt.NDArray[np.float32]:
        """Return `[N, K]` for image files."""
        pixels = np.stack([load_pixels(file, self.preprocessing) for file in files])
        images = pixels.astype(np.float32) / 255
        found: npt.NDArray[np.float32] = self.session.run(None, {"images": images})[0]
        return found

    def predict(self, files: Sequence[Path]) -> Iterator[tuple[Path, str, float]]:
        """Yield each file with its class and the probability of it."""
        for start in range(0, len(files), BATCH_SIZE):
            batch = files[start : start + BATCH_SIZE]
            logits = self.logits(batch)
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            for file, row in zip(batch, powers / powers.sum(axis=1, keepdims=True), strict=True):
                yield file, self.classes[int(row.argmax())], float(row.max())

    def accuracy(self, labelled: Sequence[Labelled]) -> float:
        """Return the share of files whose class is the label."""
        found = self.predict([file for file, _ in labelled])
        right = [name == label for (_, name, _), (_, label) in zip(found, labelled, strict=True)]
        return sum(right) / len(right)


def load_pixels(file: Path, preprocessing: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Return the pixels of an image file as the student's data were read, uint8 `[C, H, W]`.

    Args:
        file: PNG, JPEG, WebP, BMP, GIF or TIFF.
        preprocessing: Of the card.
    """
    channels, height, width = preprocessing["image_shape"]
    decoding = preprocessing["decoding"]
    with Image.open(file, formats=FORMATS) as opened:
        image = _flat(opened, decoding["background"])
        image = image.convert("L" if channels == 1 else "RGB")
    if decoding["scaled"]:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    if image.size != (width, height):
        raise SystemExit(
            f"{file}: {image.height}x{image.width} pixels, the student takes {height}x{width}."
        )
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _flat(image: Image.Image, background: str) -> Image.Image:
    """Return an image of 8 bits a channel, what is transparent laid on the background."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image).astype(np.int64)  # the upper eight bits are kept
        flat = Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
        if background != "ignore" and "transparency" in image.info:
            clear = Image.fromarray(values == image.info["transparency"])
            flat.paste(ImageColor.getrgb(background), mask=clear)
        return flat
    if image.mode[0] in "IF":
        raise SystemExit(f"{getattr(image, 'filename', 'an image')}: 32 bits a channel.")
    if background == "ignore" or not image.has_transparency_data:
        return image
    key, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    kept = tiles[0][3] if tiles and image.format == "PNG" else ""
    if isinstance(key, int) and kept in ("L;2", "L;4"):  # it counts levels, which Pillow spreads
        image.info["transparency"] = key * (85 if kept == "L;2" else 17)
    elif key is not None and kept == "RGB;16B":  # of which Pillow reads the upper bytes only
        del image.info["transparency"]
        return image
    layer = image.convert("RGBA")
    if layer.getchannel("A").getextrema()[0] == 255:
        return image
    below = Image.new("RGBA", layer.size, ImageColor.getrgb(background))
    return Image.alpha_composite(below, layer)


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files, and the image files in folders, sorted."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [one for one in inside if one == path or one.suffix.lower() in SUFFIXES]
    if not found:
        raise SystemExit("no image files there.")
    return found


def find_labelled(path: Path, split: str, root: Path) -> list[Labelled]:
    """Return files with their labels: of a list, or of a folder with a folder for each class."""
    if path.is_dir():
        return [(file, file.relative_to(path).parts[0]) for file in find_files([path])]
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("split", split) == split]
    if not rows:
        raise SystemExit(f"{path}: no line of the split {split!r}.")
    return [(root / row["path"], row["label"]) for row in rows]


def main(arguments: Sequence[str]) -> int:
    """Classify, or count what is right."""
    parser = argparse.ArgumentParser(description="Classify image files with the exported student.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--accuracy", action="store_true", help="count how many are right")
    parser.add_argument("--split", default="test", help="with a list: the split to count (test)")
    where = "with a list: where its paths begin"
    parser.add_argument("--root", default=Path(), type=Path, help=where)
    options = parser.parse_args(arguments)
    student = Student(Path(__file__).resolve().parent)
    if options.accuracy:
        labelled = find_labelled(options.paths[0], options.split, options.root)
        print(f"{student.accuracy(labelled):.4%} of {len(labelled)} files are right")
        return 0
    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow(("file", "class", "probability"))
    for file, name, probability in student.predict(find_files(options.paths)):
        lines.writerow((file, name, f"{probability:.4f}"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
