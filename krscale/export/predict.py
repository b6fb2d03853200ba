"""Classify image files with the student in `student.onnx`; needs onnxruntime, Pillow and numpy.

    python predict.py IMAGE_OR_FOLDER ...       prints file, class and probability as CSV
    python predict.py --accuracy FOLDER         one folder per class: prints the share that is right
    python predict.py --accuracy splits.csv --split test --root FOLDER
                                                the same for files in a list: path, label, split

All preprocessing between a file and the input of the network is in `student.json` and in the graph.
This file is in the same folder as both; copy all three together.

Exit code 0: done. 1: some files cannot be read; they are named on stderr, and the others are
classified, but no accuracy is printed, because it would be that of other files. 2: an argument or
a file of the export cannot be used.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import difflib
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm",
)  # fmt: skip
SYSTEM_FOLDERS = (
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
    "__pycache__",
)  # fmt: skip
"""Folders, in lower case, whose files krscale also ignores when it reads the student's data."""
BATCH_SIZE = 64
EXIT_UNREADABLE, EXIT_REFUSED, EXIT_PIPE = 1, 2, 141
_LISTED = 20
_MOST_ONNX = 2**31  # limit of protobuf
_MOST_CARD = 2**26
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Control characters of terminals, and characters that change the direction of text."""

Labelled = tuple[Path, str]


class RefusedError(Exception):
    """An argument or a file cannot be used; the message names it and the reason."""


class UnreadableError(Exception):
    """Image files cannot be read; the message names them, one per line."""


class Student:
    """An exported student.

    Args:
        folder: Holds `student.onnx` and `student.json`.

    Raises:
        RefusedError: If one of them, or onnxruntime, is missing or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        card, onnx = folder / "student.json", folder / "student.onnx"
        try:
            content = _read_card(card)
            hashes = {file["file"]: file["sha256"] for file in content.get("files", [])}
            self.classes: list[str] = content["classes"]
            self.preprocessing: dict[str, Any] = content["preprocessing"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise RefusedError(f"{card}: cannot be read: {_reason(error)}.") from error
        if not onnx.is_file():
            raise RefusedError(f"{onnx}: not there; the student was exported in other formats.")
        if onnx.stat().st_size > _MOST_ONNX:
            raise RefusedError(f"{onnx}: damaged: larger than a file of ONNX can be.")
        found = hashlib.sha256(onnx.read_bytes()).hexdigest()
        if hashes.get(onnx.name, found) != found:  # there is no hash while the export is written
            raise RefusedError(f"{onnx}: damaged: it is not the file that was exported.")
        try:
            import onnxruntime

            self.session = onnxruntime.InferenceSession(
                str(onnx), providers=["CPUExecutionProvider"]
            )
        except ImportError as error:
            raise RefusedError(f"onnxruntime cannot be imported: {_reason(error)}.") from error
        except Exception as error:  # onnxruntime has many exception classes of its own
            raise RefusedError(f"{onnx}: cannot be read: {_reason(error)}.") from error

    def logits(self, pixels: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Return `[N, K]` for images as `load_pixels` returns them.

        Raises:
            RefusedError: If they are not uint8: pixels in 0..1 would be divided by 255 again.
        """
        stacked = np.stack(pixels)
        if stacked.dtype != np.uint8:
            raise RefusedError(f"pixels are uint8 in 0..255, not {stacked.dtype}.")
        images = stacked.astype(np.float32) / 255
        found: npt.NDArray[np.float32] = self.session.run(None, {"images": images})[0]
        return found

    def predict(self, files: Sequence[Path]) -> Iterator[tuple[Path, str, float]]:
        """Yield each file with its class and its probability.

        Raises:
            UnreadableError: After all other files, if some cannot be read; names up to 20 of them.
        """
        failed: list[str] = []
        for start in range(0, len(files), BATCH_SIZE):
            read: list[tuple[Path, npt.NDArray[np.uint8]]] = []
            for file in files[start : start + BATCH_SIZE]:
                try:
                    read.append((file, load_pixels(file, self.preprocessing)))
                except UnreadableError as error:
                    failed.append(str(error))
            if not read:
                continue
            logits = self.logits([pixels for _, pixels in read])
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            for (file, _), row in zip(
                read, powers / powers.sum(axis=1, keepdims=True), strict=True
            ):
                yield file, self.classes[int(row.argmax())], float(row.max())
        if failed:
            text = f"{len(failed)} of {len(files)} files cannot be read:"
            listed = "\n  ".join((text, _shortened(failed, "\n  ")))
            raise UnreadableError(listed if len(failed) > 1 else failed[0])

    def accuracy(self, labelled: Sequence[Labelled]) -> float:
        """Return the share of files whose predicted class is the label.

        Raises:
            RefusedError: If there is no file, or some labels are not classes of the student.
            UnreadableError: If a file cannot be read; the share would be that of other files.
        """
        if not labelled:
            raise RefusedError("no labelled file: an accuracy is that of one at least.")
        unknown = sorted({label for _, label in labelled} - set(self.classes))
        if unknown and all(re.fullmatch(r"[0-9]+\.0+", label) for _, label in labelled):
            # krscale reads such labels of a list as whole numbers.
            return self.accuracy([(file, label.partition(".")[0]) for file, label in labelled])
        if unknown:
            listed = [repr(label) + _nearest(label, self.classes) for label in unknown]
            raise RefusedError(
                f"labels that are no class of the student: {_shortened(listed)}. It has: "
                f"{_shortened(self.classes)}."
            )
        found = [name for _, name, _ in self.predict([file for file, _ in labelled])]
        right = [name == label for name, (_, label) in zip(found, labelled, strict=True)]
        return sum(right) / len(right)


def load_pixels(file: Path, preprocessing: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Return the pixels of an image file as the student's data were read, uint8 `[C, H, W]`.

    Args:
        file: PNG, JPEG, WebP, BMP, GIF, TIFF or PPM.
        preprocessing: `preprocessing` of the card.

    Raises:
        UnreadableError: If it is missing, damaged, of another format or of another size.
    """
    channels, height, width = preprocessing["image_shape"]
    decoding = preprocessing["decoding"]
    try:
        with Image.open(_regular(file), formats=FORMATS) as opened:
            image = _flat(opened, decoding["background"])
            image = image.convert("L" if channels == 1 else "RGB")
            if decoding.get("exif_orientation"):  # older cards do not have it
                image = _upright(image, opened)
        if decoding["scaled"]:
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    except UnidentifiedImageError as error:
        raise UnreadableError(f"{file}: not one of {', '.join(FORMATS)}.") from error
    except Exception as error:  # Pillow raises many kinds of exceptions for damaged files
        raise UnreadableError(f"{file}: {_reason(error)}.") from error
    if image.size != (width, height):
        raise UnreadableError(
            f"{file}: {image.height}x{image.width} pixels, the student takes {height}x{width}."
        )
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _flat(image: Image.Image, background: str) -> Image.Image:
    """Return an image of 8 bits per channel, with transparent parts put on the background."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)  # the upper eight bits are kept
        flat = Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
        if background != "ignore" and "transparency" in image.info:
            clear = Image.fromarray(values == image.info["transparency"])
            flat.paste(ImageColor.getrgb(background), mask=clear)
        return flat
    if image.mode[0] in "IF":
        raise ValueError("32 bits a channel")
    tiles: Any = getattr(image, "tile", ())
    bits = getattr(image, "tag_v2", {}).get(258, ())
    if 16 in np.atleast_1d(bits) and len(image.getbands()) > 1 == len(tiles[0][3][0]):
        raise ValueError("16 bits a channel in separate planes")  # Pillow reads them as 8 bits
    if background == "ignore" or not image.has_transparency_data:
        return image
    key = image.info.get("transparency")
    kept = tiles[0][3] if tiles and image.format == "PNG" else ""
    if isinstance(key, int) and kept in ("L;2", "L;4"):  # Pillow scales the levels, not the key
        image.info["transparency"] = key * (85 if kept == "L;2" else 17)
    elif key is not None and kept == "RGB;16B":  # Pillow reads only the upper bytes of pixels
        del image.info["transparency"]
        return image
    layer = image.convert("RGBA")
    if layer.getchannel("A").getextrema()[0] == 255:
        return image
    below = Image.new("RGBA", layer.size, ImageColor.getrgb(background))
    return Image.alpha_composite(below, layer)


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Return an image rotated according to the EXIF data of its file; damaged data are ignored."""
    try:
        orientation = opened.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - of damaged files Pillow raises almost anything
        return image
    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90,
    }  # fmt: skip
    return image.transpose(turns[orientation]) if orientation in turns else image


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files, and the image files in folders, sorted, without hidden ones in folders.

    Raises:
        RefusedError: If a path does not exist, or a folder has no images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise RefusedError(f"{path}: a link to something that is not there.")
        if not path.exists():
            siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
            raise RefusedError(f"{path}: no such file or folder{_nearest(path.name, siblings)}.")
        inside = sorted(_all_inside(path)) if path.is_dir() else [path]
        images = [one for one in inside if one == path or _is_image(one, path)]
        if not images:
            raise RefusedError(f"{path}: no image files there ({', '.join(SUFFIXES)}).")
        found += images
    return found


def _all_inside(folder: Path) -> Iterator[Path]:
    """Yield the contents of a folder; as for data, links in it are followed, but none deeper."""
    yield from folder.rglob("*")
    for link in folder.iterdir():
        around = (folder, *folder.resolve().parents)
        if link.is_symlink() and link.is_dir() and not any(map(link.samefile, around)):
            yield from link.rglob("*")


def find_labelled(path: Path, split: str | None, root: Path | None) -> list[Labelled]:
    """Return files with their labels: from a list, or from a folder with one folder per class.

    Args:
        path: The list or folder.
        split: Split to take from a list with splits; None takes `test`.
        root: Folder that the paths of a list are relative to; None for the working directory.

    Raises:
        RefusedError: If it is neither, or something in it has no label.
    """
    if not path.is_dir():
        return [((root or Path()) / file, label) for file, label in _read_list(path, split)]
    if split is not None or root is not None:
        raise RefusedError(f"--split and --root are for a list of files; {path} is a folder.")
    for one in sorted(path.iterdir()):
        image = one.suffix.lower() in SUFFIXES
        other_file = not image and re.fullmatch(r"\.[A-Za-z]{2,4}", one.suffix)
        hidden = one.name.startswith(".")
        if one.is_symlink() and not one.exists() and not hidden and not other_file:
            raise RefusedError(f"{one}: a link to something that is not there; it may be a class.")
    files = find_files([path])
    for file in files:
        if file.parent == path:
            raise RefusedError(
                f"{file}: in no class folder; --accuracy takes a folder with a folder for each "
                "class."
            )
    return [(file, file.relative_to(path).parts[0]) for file in files]


def _read_list(path: Path, split: str | None) -> list[tuple[str, str]]:
    """Return path and label of the lines of a split, or of all lines if there are no splits."""
    form = "a CSV list with the columns path and label, and split where it has several"
    if path.suffix.lower() in SUFFIXES:
        raise RefusedError(f"{path}: an image; --accuracy takes a folder or {form}.")
    try:
        with _regular(path).open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            columns, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise RefusedError(f"{path}: {_reason(error)}; --accuracy takes {form}.") from error
    needed = ("path", "label") if split is None else ("path", "label", "split")
    lacking = [name for name in needed if name not in columns]
    if lacking:
        raise RefusedError(
            f"{path}: no column {', '.join(lacking)}; it has {', '.join(columns) or 'none'}. "
            f"Wanted: {form}."
        )
    wanted = split or "test"
    if not rows:
        raise RefusedError(f"{path}: it has no line below that of the columns.")
    if "split" in columns:
        rows = [row for row in rows if row["split"] == wanted]
    if not rows:
        raise RefusedError(f"{path}: no line of the split {wanted!r}.")
    short = next((row for row in rows if not row["path"] or not row["label"]), None)
    if short is not None:
        raise RefusedError(
            f"{path}: a line without path or label: {','.join(map(str, short.values()))}."
        )
    return [(row["path"], row["label"]) for row in rows]


def _is_image(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith(".") or part.lower() in SYSTEM_FOLDERS for part in parts)
    return not hidden and path.suffix.lower() in SUFFIXES and not path.is_dir()


def _read_card(path: Path) -> dict[str, Any]:
    """Return the content of `student.json`, after comparing it with the hash in its last line."""
    if path.stat().st_size > _MOST_CARD:
        raise ValueError("damaged: larger than any that was exported")
    text = _regular(path).read_bytes()
    content: dict[str, Any] = json.loads(text.decode("utf-8"))
    above, has_hash, last = text.rpartition(b',\n  "sha256_of_above": "')
    if has_hash and hashlib.sha256(above).hexdigest().encode() != last[:64]:
        raise ValueError("damaged: it is not the file that was exported")
    return content


def _regular(path: Path) -> Path:
    """Return a path that is about to be opened; refuse pipes and devices, which may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError("it is a named pipe, a socket or a device")
    return path


def _reason(error: Exception) -> str:
    """Return why something failed, in one line."""
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _shortened(texts: Sequence[str], between: str = ", ") -> str:
    more = len(texts) - _LISTED
    return between.join((*texts[:_LISTED], *([f"... and {more} more"] if more > 0 else ())))


def _nearest(name: str, others: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(others), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _run(options: argparse.Namespace) -> None:
    student = Student(Path(__file__).resolve().parent)
    if options.accuracy:
        if len(options.paths) > 1:
            raise RefusedError(
                f"--accuracy takes one folder or list, not {len(options.paths)}: "
                f"{', '.join(map(str, options.paths))}."
            )
        labelled = find_labelled(options.paths[0], options.split, options.root)
        print(f"{student.accuracy(labelled):.4%} of {len(labelled)} files are right")
        return
    if options.split is not None or options.root is not None:
        raise RefusedError("--split and --root go with --accuracy and a list of files.")
    files = find_files(options.paths)
    read_by_people = sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):  # writes names that are not UTF-8 unchanged
        codecs.register_error("escape", _encoded)
        sys.stdout.reconfigure(errors="escape")
    lines = csv.writer(sys.stdout, lineterminator="\n")
    # The default quotes the terminator "\n" alone; readers also take "\r" for the end of a line.
    quoted = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL)
    lines.writerow(("file", "class", "probability"))
    for file, name, probability in student.predict(files):
        row = (str(file), name, f"{probability:.4f}")
        if read_by_people:
            lines.writerow(map(_printable, row))
        else:
            (quoted if "\r" in row[0] + row[1] else lines).writerow(row)


def _encoded(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""Return the byte of a file name that is not UTF-8, or an escape: `\xe9` in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    error.end = error.start + 1
    is_byte = "\udc80" <= error.object[error.start] <= "\udcff"
    return codecs.lookup_error("surrogateescape" if is_byte else "backslashreplace")(error)


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def main(arguments: Sequence[str]) -> int:
    """Classify the files, or compute their accuracy."""
    parser = argparse.ArgumentParser(description="Classify image files with the exported student.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--accuracy", action="store_true", help="count how many are right")
    parser.add_argument("--split", help="with a list: the split to count (test)")
    parser.add_argument("--root", type=Path, help="with a list: where its paths begin (here)")
    options = parser.parse_args(arguments)
    code, message = 0, ""
    try:
        try:
            _run(options)
        except (RefusedError, UnreadableError) as error:
            code = EXIT_REFUSED if isinstance(error, RefusedError) else EXIT_UNREADABLE
            message = f"{Path(__file__).name}: {error}"
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    if message:
        print(_printable(message), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
