"""Traces of the data in run folders from before krscale kept a record of it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from krscale.data import Dataset
from krscale.data.dataset import open_data
from krscale.errors import UserError
from krscale.files import MOST_OF_A_LOG, read_json
from krscale.report import read_curve
from krscale.report.result import CURVE_FILE

_SPOOL = Path("tracking", "spool.jsonl")
_TAG = "krscale.data"


def data_of(folder: Path) -> set[str]:
    """Return the fingerprints of data in a run folder: in its result and in its MLflow records.

    What cannot be read is ignored here; the code that needs it reports it.
    """
    found: set[str] = set()
    if (folder / CURVE_FILE).is_file():
        with suppress(UserError):  # a damaged result will be written again
            found.add(str(read_curve(folder).data.get("fingerprint") or ""))
    return (found | _recorded(folder / _SPOOL)) - {""}


def is_of(dataset: Dataset, known: str) -> bool:
    """Whether a fingerprint is that of a data set, or of an earlier one with the same images.

    Args:
        dataset: The data set as it is now.
        known: A fingerprint of this or an older krscale, which also hashed the files' times.
    """
    if known in (dataset.fingerprint, dataset.identity):
        return True
    source = dataset.path.name.rpartition("-")[0]
    before = dataset.path.with_name(f"{source}-{known}")
    try:
        return before.is_dir() and open_data(before).content() == dataset.content()
    except UserError:  # of another version, or damaged: it cannot be compared
        return False


def no_store_is_of(dataset: Dataset, stores: Path) -> bool:
    """Whether stores are kept, but none of this data: a run that had one had other images."""
    known: set[str] = set()
    for manifest in stores.glob("*/manifest.json"):
        with suppress(UserError, LookupError, TypeError):  # reported when it is needed
            known.add(str(read_json(manifest)["plan"]["key"]["data"]))
    return bool(known) and not any(is_of(dataset, name) for name in known)


def _recorded(spool: Path) -> set[str]:
    found: set[str] = set()
    if not spool.is_file() or spool.stat().st_size > MOST_OF_A_LOG:
        return found
    with spool.open("rb") as file:
        for line in file:
            if b'"start"' not in line or _TAG.encode() not in line:
                continue
            try:
                event = json.loads(line)
                if event["op"] == "start":
                    found.add(str(event["content"]["tags"].get(_TAG) or ""))
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                continue
    return found
