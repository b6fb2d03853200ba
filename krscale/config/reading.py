"""Reading an experiment from TOML and overrides; every mistake is reported on its own line."""

from __future__ import annotations

import codecs
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from krscale.config.experiment import STORAGE_VARIABLE, Experiment
from krscale.config.fields import plain_message
from krscale.config.hints import expected_form, explain_item, explain_unknown, field_paths
from krscale.config.ranges import SearchChoices, SearchRange, UsedWith
from krscale.config.training import refuse_long_warmup
from krscale.errors import UserError, nearest
from krscale.foreign import missing, regular, user_path
from krscale.redaction import redact

RENAMED = {"search.trials_per_rung": "search.trials_per_size"}
"""Dotted paths of older experiments and commands, and their names now; both are accepted."""
_KEY_OF_MANY = re.compile(
    r"""(?:^|[\[{,])[ \t]*+(?:(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){100}""",
    re.MULTILINE,
)
"""A key of many parts: `tomllib` needs memory quadratic in their number, 20 GB for 200 kB."""
_MOST_BYTES = 4 * 1024**2
_DESCRIPTOR = re.compile(r"(/dev|/proc/(self|\d+))/fd/\d+")  # bash and zsh


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment from TOML and apply `key.path=value` overrides.

    Args:
        path: A TOML file; `jobs/NAME.toml`, in any working directory, for a job that ships with
            krscale; or None for the embedded default (the digits experiment).
        overrides: Assignments such as `"train.num_epochs=20"`; values are TOML, and a bare word
            is a string.

    Raises:
        UserError: If the file cannot be read, or any key or value is refused.

    Example:
        >>> load(overrides=["train.num_epochs=7", "name=first"]).train.num_epochs
        7
        >>> load(overrides=["train.epochs=7"])
        Traceback (most recent call last):
        krscale.errors.UserError: ... Did you mean 'train.num_epochs'? ...
    """
    if path == "":  # a shell variable that is not set; the default would be another experiment
        raise UserError("EXPERIMENT.toml: expected a file, got an empty text.")
    file = _experiment_file(user_path(path, "EXPERIMENT.toml")) if path else None
    content: dict[str, Any] = read_toml(file) if file else {}
    where = str(path) if path else "defaults"
    content = dict(_with_new_names(content, where))
    for assignment in overrides:
        _assign(content, assignment)
    given = {a.partition("=")[0].strip() for a in overrides}
    sources = {RENAMED.get(key, key) for key in given}
    experiment = validate(content, where, sources)
    if "train.num_epochs" not in sources or "train.warmup_epochs" in sources:
        refuse_long_warmup(experiment.train, where)  # not if --set only lowers the epochs
    return experiment


def validate(content: Mapping[str, Any], where: str, overridden: Iterable[str] = ()) -> Experiment:
    """Build the experiment from plain content.

    Args:
        content: Tables of fields, as TOML gives them.
        where: The file, for errors.
        overridden: Dotted paths of fields that were given by `--set`.

    Raises:
        UserError: Naming every mistake on its own line.

    Example:
        >>> validate({"train": {"num_epochs": 0, "learning_rate": -1.0}}, "my.toml")
        Traceback (most recent call last):
        krscale.errors.UserError: my.toml: train.num_epochs: ... (got 0).
        my.toml: train.learning_rate: ... (got -1.0).
    """
    content = _with_new_names(content, where)
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        set_keys = set(overridden)
        by_field: dict[tuple[str, ...], list[Any]] = {}
        for found in error.errors(include_url=False):
            if found["type"] == "default_factory_not_called":  # only because another field is wrong
                continue
            by_field.setdefault(_field_of(found["loc"]), []).append(found)
        lines = [
            _explain(path, found, _place_of(path, content, where), set_keys)
            for path, found in by_field.items()
        ]
        raise UserError("\n".join(lines)) from None


def with_values(experiment: Experiment, values: Mapping[str, Any], where: str) -> Experiment:
    """Return a validated copy in which each dotted path of `values` has the given value.

    Raises:
        UserError: Naming `where` and every mistake.
    """
    content = experiment.model_dump(mode="python")
    for dotted, value in values.items():
        _put(content, dotted, value, where)
    return validate(content, where)


def search_ranges() -> dict[str, SearchRange | SearchChoices]:
    """Return the default search ranges by dotted path, for the fields that declare one.

    Example:
        >>> search_ranges()["distill.temperature"].table()
        {'type': 'float', 'low': 1.0, 'high': 8.0, 'log': True}
    """
    declared = _declarations(Experiment, "")
    return {path: d for path, d in declared if isinstance(d, SearchRange | SearchChoices)}


def used_with() -> dict[str, tuple[UsedWith, ...]]:
    """Return the `UsedWith` conditions by dotted path, for the fields that declare any.

    Example:
        >>> used_with()["distill.at_mean_weight"]
        (UsedWith(field='at_reduction', values=('mean',)),)
    """
    found: dict[str, tuple[UsedWith, ...]] = {}
    for path, declared in _declarations(Experiment, ""):
        if isinstance(declared, UsedWith):
            found[path] = (*found.get(path, ()), declared)
    return found


def _experiment_file(path: Path) -> Path:
    """Return the path itself, or the job of this name that ships with krscale."""
    if path.exists() or path.parent.is_dir() or path.parent != Path("jobs"):
        return path
    package = Path(__file__).parents[1]
    folder = next((f for f in (package / "jobs", package.parent / "jobs") if f.is_dir()), None)
    return folder / path.name if folder else path


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file, or raise a `UserError` that says why it cannot be read."""
    try:
        text = _text(_bounded(path))
        if _KEY_OF_MANY.search(text):
            raise ValueError("a key of more than 100 parts")
        return tomllib.loads(text)
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        guess = nearest(path.name, set(siblings) - {path.name})
        hint = f" Did you mean {path.parent / guess}?" if guess else ""
        raise UserError(f"{path}: {missing(path)}.{hint}") from None
    except (OSError, ValueError, RecursionError) as error:  # bad text or TOML, or a too long number
        raise UserError(f"{path}: not a readable TOML file: {error}") from None


def _text(content: bytes) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark (as Windows writes it)."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is text in UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not text in UTF-8; save it as UTF-8") from None


def _bounded(path: Path) -> bytes:
    """Return the content of a file that a user names; raise if it is too long for an experiment.

    Only regular files are read: opening a named pipe without a writer would block, and `/dev/zero`
    would fill the memory. The exceptions are `<(...)` and standard input, whose pipes a shell
    connects to a writer.
    """
    of_a_shell = path == Path("/dev/stdin") or _DESCRIPTOR.fullmatch(path.as_posix())
    with (path if of_a_shell else regular(path)).open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    return content


def _declarations(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield what fields declare besides their type, with the field's dotted path."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _declarations(annotation, f"{prefix}{name}.")
        yield from ((f"{prefix}{name}", declared) for declared in field.metadata)


def _assign(content: dict[str, Any], assignment: str) -> None:
    dotted, separator, text = assignment.partition("=")
    if not separator or not dotted.strip():
        raise UserError(f"--set {assignment}: expected key.path=value, e.g. train.num_epochs=20.")
    dotted = dotted.strip()
    value = value_of(text, dotted, "--set")
    dotted = RENAMED.get(dotted, dotted)
    for path, one in _by_field(dotted, value):
        _put(content, path, one, f"--set {assignment}")


def value_of(text: str, name: str, flag: str) -> Any:
    """Return the value after the `=` of `--set` and similar options: TOML, or else the text itself.

    Args:
        text: The text after the `=`.
        name: The name before the `=`.
        flag: The option.

    Raises:
        UserError: If further keys follow on lines of their own, which would be dropped.

    Example:
        >>> value_of("[1, 2]", "key", "--set"), value_of("resnet", "key", "--set")
        ([1, 2], 'resnet')
    """
    text = text.strip()
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    if len(read) > 1:
        raise UserError(f"{flag} {name}: it takes one value; give every other key its own {flag}.")
    return read["value"]


def _by_field(dotted: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a value with its path; for a section, each field of the table, so that others stay."""
    is_section = any(path.startswith(f"{dotted}.") for path in field_paths())
    if not (is_section and isinstance(value, Mapping)):
        yield dotted, value
        return
    if not value:
        raise UserError(f"--set {dotted}: an empty table sets no field of the section.")
    for name, one in value.items():
        yield from _by_field(f"{dotted}.{name}", one)


def _with_new_names(content: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return the content with the keys of `RENAMED` under their new names.

    Raises:
        UserError: If a field is given under both names.
    """
    for old, new in RENAMED.items():
        section, _, old_key = old.partition(".")
        new_key = new.partition(".")[2]
        table = content.get(section)
        if not isinstance(table, Mapping) or old_key not in table:
            continue
        if new_key in table:
            raise UserError(f"{where}: {old} is the older name of {new}; give one of them.")
        renamed = {new_key if key == old_key else key: value for key, value in table.items()}
        content = {**content, section: renamed}
    return content


def _put(content: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    *parents, leaf = dotted.split(".")
    table = content
    for name in parents:
        child = table.setdefault(name, {})
        if not isinstance(child, dict):
            raise UserError(f"{where}: {name!r} is a value, not a table of fields.")
        table = child
    table[leaf] = value


def _place_of(path: tuple[str, ...], content: Mapping[str, Any], where: str) -> str:
    """Return where a value comes from: `where`, or the environment for a storage not given."""
    own = path != ("storage_path",) or "storage_path" in content
    return where if own else f"${STORAGE_VARIABLE}"


def _field_of(location: Sequence[int | str]) -> tuple[str, ...]:
    """Drop what pydantic adds below a field: the branch of a union, the index in a list."""
    path = tuple(str(part) for part in location)
    known = {tuple(name.split(".")) for name in field_paths()}
    return next((path[:end] for end in range(1, len(path)) if path[:end] in known), path)


def _explain(path: tuple[str, ...], found: list[Any], where: str, overridden: set[str]) -> str:
    """Return a line for one field: the place, what is allowed, what was given, the nearest name."""
    dotted = ".".join(path)
    flags = [key for key in sorted(overridden) if _one_within(key, dotted)]
    # An error of a section as a whole may come from any of its fields.
    flag = flags[0] if len(flags) == 1 else next((key for key in flags if key == dotted), None)
    place = f"--set {flag}" if flag else f"{where}: {dotted}"
    if within := _within_list(path, found[0]["loc"]):
        return f"{place}: {within}: {_explain_item(path, within, found[0])}"
    if found[0]["type"] == "extra_forbidden":
        hint = explain_unknown(path)
        return f"{place}: unknown key {dotted!r}. {hint} Run with --dry-run to see every key."
    if not path:  # several sections contradict each other
        message = found[0]["msg"].removeprefix("Value error, ")
        given = message.partition(":")[0] in overridden
        return f"--set {message}." if given else f"{where}: {message}."
    said = (_message(path, error, overridden=flag is not None) for error in found)
    allowed = ", or ".join(dict.fromkeys(said))
    if dotted not in field_paths() and isinstance(found[0]["input"], Mapping):
        # Fields that contradict each other: showing all values of their section would hide which.
        if flag is None and allowed.startswith(f"{dotted}."):
            place = where
        return f"{place}: {allowed.removeprefix(f'{flag}: ')}."
    return f"{place}: {allowed} (got {redact(repr(found[0]['input']))})."


def _within_list(path: tuple[str, ...], location: Sequence[int | str]) -> str:
    """Return the place of a mistake in a list of tables, e.g. `table 2, model`; else empty."""
    rest = location[len(path) :]
    if len(rest) < 2 or not isinstance(rest[0], int) or not isinstance(rest[1], str):
        return ""
    return f"table {rest[0] + 1}, {'.'.join(map(str, rest[1:]))}"


def _explain_item(path: tuple[str, ...], within: str, error: Any) -> str:
    name = within.rpartition(" ")[2]
    if error["type"] != "extra_forbidden":
        return f"{plain_message(error['msg'])} (got {error['input']!r})."
    return f"unknown key {name!r}. {explain_item(path, name)}"


def _one_within(first: str, second: str) -> bool:
    """Whether two dotted names are equal, or one is a section that contains the other."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def _message(path: tuple[str, ...], error: Any, *, overridden: bool) -> str:
    form = expected_form(path, error["type"], error["input"], overridden=overridden)
    return form or plain_message(error["msg"])
