"""The experiment in a run folder: reading it, and comparing it with that of another start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

from krscale.config import Experiment, TrackingConfig, as_record, validate
from krscale.config.older import FORMER_OF_KR, MENDED, uses_mended_method, with_former_defaults
from krscale.errors import UserError
from krscale.files import follow, read_json, reading, write_json
from krscale.redaction import redact_all
from krscale.runs.aside import forget_data, has_begun
from krscale.runs.origin import read_environment
from krscale.storage.address import storage_of

EXPERIMENT_FILE = "experiment.json"
UNBOUND = {"storage_path", "tracking", "cluster"}
"""Fields that may differ between two starts of one run: where it is kept, shown and computed."""
BUDGETS = frozenset({"search.trials_per_size", "search.num_final_seeds"})
"""Fields that may grow in a run that has begun, or shrink to no less than what has run."""
FREE = (
    "search.max_wall_seconds",
    "search.max_epochs",
    "search.target_accuracy",
    "search.max_failures",
    "search.max_retries",
    "search.stall_seconds",
    "search.checkpoint_seconds",
    "search.gpus_per_trial",
    "teacher.num_workers",
)
"""Fields that may differ between two starts: they end, protect or place a search, and do not change
any trial."""
SPACE = ("search.space", "space.")
"""Names, or prefixes of names, of the fields of a run that hold the search space."""
_BEGIN_ANEW = "Restore it from a copy; deleted, the command that began the run writes it again."

Spent = Callable[[Path], Mapping[str, int]]
"""How much of each of `BUDGETS` a run has used."""


def read_experiment(folder: Path) -> Experiment:
    """Return the experiment of a run folder.

    Its `storage_path` is where the folder is now, and paths within the storage are adapted to it,
    wherever the storage was when the run was started.

    Raises:
        UserError: If the folder has no experiment, or one that is damaged or of an incompatible
            version of krscale.
    """
    path = folder / EXPERIMENT_FILE
    if not path.is_file():
        raise UserError(f"{folder}: not the folder of a run: it has no {EXPERIMENT_FILE}.")
    return validate(with_former_defaults(_stored(folder)["experiment"]), str(path))


def last_start(folder: Path) -> tuple[TrackingConfig, Path] | None:
    """Return where a run was recorded when it was last started, and where its storage was then.

    Returns:
        Both, or None for a folder without an experiment.

    Raises:
        DamagedFileError: If `experiment.json` is not what was written.
    """
    path = folder / EXPERIMENT_FILE
    if not path.is_file():
        return None
    content = read_json(path, _BEGIN_ANEW)
    storage = _storage_of(path, content)
    with reading(path, _BEGIN_ANEW):
        tracking = content["experiment"]["tracking"]
    return as_record(path, tracking, TrackingConfig, _BEGIN_ANEW), storage


def check_or_write(
    folder: Path,
    experiment: Experiment,
    bound: Mapping[str, Any],
    spent: Spent,
    renewed: tuple[str, ...],
) -> None:
    """Write the experiment of a start, after comparing it with that of the run if there is one.

    A run in which nothing was trained takes another experiment, and then other data as well: its
    first start was refused (more workers than the cluster has), or ended with the teacher.

    Args:
        folder: Folder of the run, claimed by this process.
        experiment: The resolved experiment.
        bound: What else must be the same in every start of the run.
        spent: Called when a budget is smaller than before.
        renewed: Prefixes of the dotted names of fields that the user allows to differ.

    Raises:
        UserError: If it is another experiment, naming fields that differ; or if a budget is smaller
            than what has run.
    """
    path = folder / EXPERIMENT_FILE
    content = redact_all({"experiment": experiment.model_dump(mode="json"), "bound": dict(bound)})
    if path.exists():
        stored = _stored(folder)
        begun_with = redact_all(_begun_with(folder, stored["experiment"]))
        written = _flat(stored["experiment"], UNBOUND)
        old = _flat(begun_with, UNBOUND) | _flat(redact_all(stored["bound"]), set())
        new = _flat(content["experiment"], UNBOUND) | _flat(content["bound"], set())
        changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
        free = (*FREE, *renewed)
        bound_to = [key for key in changed if not key.startswith(free) and key not in BUDGETS]
        if bound_to and not has_begun(folder):
            forget_data(folder)
            bound_to = []
        _refuse_changes(folder, old, new, bound_to, newer=old.keys() - written.keys())
        _refuse_less(folder, old, new, spent)
    write_json(path, content)


def _stored(folder: Path) -> dict[str, dict[str, Any]]:
    """Return `experiment` and `bound` of `experiment.json`, with paths in the storage of now."""
    path = folder / EXPERIMENT_FILE
    content = read_json(path, _BEGIN_ANEW)
    before, now = _storage_of(path, content), folder.resolve().parent
    with reading(path, _BEGIN_ANEW):
        found = {name: dict(content[name]) for name in ("experiment", "bound")}
    found = {name: _following(part, before, now) for name, part in found.items()}
    found["experiment"]["storage_path"] = storage_of(now)
    return found


def _storage_of(path: Path, content: Any) -> Path:
    with reading(path, _BEGIN_ANEW):
        return Path(content["experiment"]["storage_path"])


def _following(content: Any, before: Path, now: Path) -> Any:
    """Return plain content with each absolute path in the folder `before` moved to `now`."""
    if isinstance(content, str):
        return str(follow(Path(content), before, now)) if content.startswith("/") else content
    if isinstance(content, Mapping):
        return {key: _following(value, before, now) for key, value in content.items()}
    if isinstance(content, list):
        return [_following(item, before, now) for item in content]
    return content


def _begun_with(folder: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the experiment of a run that has begun, as this version of krscale interprets it.

    Fields that are newer than the run have today's defaults (CONTRIBUTING.md, Style), except those
    in `config/older.py`.
    """
    path = folder / EXPERIMENT_FILE
    bound = {key: value for key, value in stored.items() if key not in UNBOUND}
    try:
        if uses_mended_method(bound):
            raise UserError(f"{MENDED!r}, one of its methods, computed another loss then.")
        return validate(with_former_defaults(bound), str(path)).model_dump(mode="json")
    except UserError as error:
        commit = read_environment(folder).get("commit", "unknown")
        raise UserError(
            f"{folder} was begun by another version of krscale (commit {commit}): {error} "
            f"Continue it with that one, or choose another name (--set name=...)."
        ) from None


def _refuse_changes(
    folder: Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    changed: list[str],
    newer: Set[str],
) -> None:
    if not changed:
        return
    lines = [_change(key, old.get(key), new.get(key)) for key in changed[:5]]
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    if all(key.startswith(SPACE) for key in changed):
        raise UserError(
            f"search.space: the space of {folder} has changed: {'; '.join(lines)}{more}. "
            f"--new-space goes on knowingly: methods whose space has changed start anew, and what "
            f"they tried before is kept but does not count. Or choose another name "
            f"(--set name=...)."
        )
    raise UserError(
        f"{folder} belongs to another experiment: {'; '.join(lines)}{more}. "
        f"{_how_it_was_begun(old, changed, newer)}"
        f"Choose another name (--set name=...), or remove the folder."
    )


def _how_it_was_begun(old: Mapping[str, Any], changed: list[str], newer: Set[str]) -> str:
    """Return the options that continue a run which is older than some settings; empty if none is.

    They include `distill.kr_weight`, which the run has stored, because its default changed when the
    newer settings of KR were added.
    """
    older = [key for key in changed if key in newer and not key.startswith(SPACE)]
    if any(key.removeprefix("distill.") in FORMER_OF_KR for key in older):
        older += [key for key in changed if key == "distill.kr_weight"]
    if not older:
        return ""
    names = ", ".join(older)
    options = " ".join(f"--set {key}={old[key]}" for key in older)
    return f"The run is older than today's {names}: {options} goes on as it was begun. "


def _change(key: str, before: Any, now: Any) -> str:
    if key == "data.path" and all(Path(str(path)).parent.name == "given" for path in (before, now)):
        return "the images that were given are others (new_data=True begins again)"
    return f"{key} was {before!r}, is now {now!r}"


def _refuse_less(
    folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], spent: Spent
) -> None:
    smaller = [key for key in sorted(BUDGETS) if new[key] < old.get(key, new[key])]
    used = spent(folder) if smaller else {}
    for key in smaller:
        if new[key] < used.get(key, 0):
            raise UserError(
                f"{key}: {used[key]} have run in {folder} already (got {new[key]}). Give at least "
                f"so many, e.g. --set {key}={old[key]}, or choose another name (--set name=...)."
            )


def _flat(content: Mapping[str, Any], skip: set[str], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if key in skip and not prefix:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, skip, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
