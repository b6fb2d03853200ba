"""Assign the Parquet files of a folder to splits by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from krscale.data.reading.hidden_splits import named_alike
from krscale.data.reading.own_files import OTHER_NAMES, SPLIT_NAMES
from krscale.data.reading.walking import is_hidden_folder
from krscale.data.source import SplitName
from krscale.errors import UserError, utf8_text

WANTED = "a .parquet file, or a folder with such files"


def is_hidden(name: str) -> bool:
    """Whether a folder holds no data; includes `_temporary`, as for Hadoop, Spark and Arrow."""
    return is_hidden_folder(name) or (name.startswith("_") and "=" not in name)


def files_by_split(path: Path, files: Sequence[Path]) -> dict[SplitName, list[Path]]:
    """Return the files of each split.

    Raises:
        UserError: If there is none, or only some are named after a split.
    """
    if path.is_file():
        return {"train": [path]}
    if not files:
        raise UserError(f"data.path: {path}: no .parquet file in it; expected {WANTED}.")
    for file in files:
        if utf8_text(str(file)) != str(file):
            raise UserError(f"{utf8_text(str(file))}: the name is not UTF-8; rename it.")
    names = {file: _split_of(file.relative_to(path)) for file in files}
    if not any(names.values()):
        names = _in_any_case(path, files)
    if not any(names.values()):
        _refuse_alike(path, files)
        return {"train": list(files)}
    unnamed = [file for file, name in names.items() if name is None]
    if unnamed or "train" not in names.values():
        reason = f"{unnamed[0]} is not named after a split" if unnamed else "none is named train"
        allowed = ", ".join(SPLIT_NAMES)
        raise UserError(
            f"data.path: {path}: some files are named after a split, but {reason}; name all of "
            f"them ({allowed}, alone or before a dash), or none."
        )
    found: dict[SplitName, list[Path]] = {}
    for file, name in names.items():
        if name is not None:
            found.setdefault(name, []).append(file)
    return found


def _refuse_alike(path: Path, files: Sequence[Path]) -> None:
    for names in named_alike([str(file.relative_to(path).with_suffix("")) for file in files]):
        listed = ", ".join(f"{name}.parquet" for name in list(names)[:5])
        raise UserError(
            f"data.path: {path}: files are named after splits ({listed}), but not all, or not by "
            "their first word; as they stand, they would be put together and cut anew. Name all "
            f"of them ({', '.join(SPLIT_NAMES)}, alone or before a dash), or none."
        )


def _split_of(file: Path, table: Mapping[str, SplitName] = SPLIT_NAMES) -> SplitName | None:
    # A folder may be named like a file: Spark writes `train.parquet/part-00000.parquet`.
    folders = [part.removesuffix(".parquet") for part in file.parts[:-1]]
    words = [*folders, file.stem, file.stem.split("-")[0], file.stem.split("_")[0]]
    return next((table[word] for word in words if word in table), None)


def _in_any_case(path: Path, files: Sequence[Path]) -> dict[Path, SplitName | None]:
    """Return the split of each file if all are named after one in any case, else None for each."""
    names = {
        file: _split_of(Path(str(file.relative_to(path)).lower()), OTHER_NAMES) for file in files
    }
    if None in names.values() or "train" not in names.values():
        return dict.fromkeys(files)
    return names
