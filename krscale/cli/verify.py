"""`krscale verify RUN`: compare all that a run rests on, and all that came of it, with records."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from krscale.config import load, read_record
from krscale.runs.folder import find_run, storage_folder
from krscale.runs.kinds import require_folder
from krscale.showing import show

if TYPE_CHECKING:
    from krscale.runs.verify_files import Finding

EXIT_DAMAGED = 1
_SENT_AGAIN = "Delete it; MLflow is told again what the run recorded, and keeps what it has."

DESCRIPTION = (
    "Read every file that a run uses or has written: data, teacher, stores, records, students, "
    "checkpoints, exports. Each must be, byte for byte, what was written. Exit code 0: all are; 1: "
    "files are damaged, which are listed with what makes them again; 2: there is no such run. "
    "Files of an older krscale that have no checksum are named and are no error."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name; or an export")
    parser.add_argument(
        "--storage-path",
        metavar="FOLDER",
        help="folder of all runs, where a name is looked up (default: that of the experiments)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace) -> int:
    """Compare the files and print the findings."""
    folder = find_run(options.run, storage_folder(options.storage_path or load().storage_path))
    require_folder(folder)
    from krscale.runs.verify import verify_run  # torch takes seconds to import

    found, note = verify_run(folder)
    found += [*_journal(folder), *_record(folder)]
    if options.json:
        rows = [{"path": str(f.path), "state": f.state, "message": f.message} for f in found]
        show(json.dumps({"note": note, "files": rows}, indent=2))
    else:
        _print(found, note)
    return EXIT_DAMAGED if any(each.state == "damaged" for each in found) else 0


def _journal(folder: Path) -> list[Finding]:
    from krscale.runs.verify_files import look
    from krscale.search.studies.journal import JOURNAL, refuse_lost_journal
    from krscale.search.studies.journal_check import check_journal

    path = folder / JOURNAL

    def compare() -> bool:
        refuse_lost_journal(folder)
        if os.path.lexists(path):
            check_journal(path)
        return True

    finding = look(path, compare, "Restore it from a copy.")
    return [finding] if os.path.lexists(path) or finding.state != "ok" else []


def _record(folder: Path) -> list[Finding]:
    """Compare the files that were kept for MLflow."""
    from krscale.runs.verify_files import look
    from krscale.tracking.mending import check_spool
    from krscale.tracking.position import STATE_FILE, State
    from krscale.tracking.tracker import FOLDER, SPOOL_FILE

    def events() -> bool:
        check_spool(folder / FOLDER / SPOOL_FILE)
        return True

    def state() -> bool:
        return bool(read_record(folder / FOLDER / STATE_FILE, State, _SENT_AGAIN).checksum)

    looks = ((SPOOL_FILE, events), (STATE_FILE, state))
    paths = [(folder / FOLDER / name, compare) for name, compare in looks]
    return [look(path, how, _SENT_AGAIN) for path, how in paths if os.path.lexists(path)]


def _print(found: list[Finding], note: str) -> None:
    counts = {
        state: sum(f.state == state for f in found) for state in ("ok", "unverifiable", "damaged")
    }
    for state in ("unverifiable", "damaged"):
        for each in found:
            if each.state == state:
                show(f"{state}: {each.message}")
    if note:
        show(f"Note: {note}")
    if len(found) == counts["ok"]:
        show(f"ok: all {len(found)} files are what was written")
        return
    show(", ".join(f"{number} {state}" for state, number in counts.items() if number))
