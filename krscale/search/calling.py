"""`krscale.search`: run a whole search from objects, from an experiment, or from both."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

from krscale.cluster.sending import check_sendable
from krscale.config import Experiment, PreprocessingConfig, load, validate, with_values
from krscale.config.flat import put_settings
from krscale.config.training import refuse_long_warmup
from krscale.data import describe_data
from krscale.data.given import given_folder, keep_given
from krscale.data.reading.pixels import Normalisation
from krscale.errors import UserError
from krscale.models import ZOO
from krscale.models.given import available
from krscale.models.libraries import LIBRARIES
from krscale.models.preprocessing import Preprocessing, preprocessing_of_network
from krscale.models.probing import build_for_shapes
from krscale.search.given_networks import GivenNetworks, Table, read_students, read_teacher
from krscale.search.in_python import errors_in_python
from krscale.search.result import SearchResult
from krscale.search.session import run_session
from krscale.setup.network_builder import builder
from krscale.setup.networks import teacher_preprocessing

METHODS = ("plain", "kr")
_NUMBERS = {"normalisation", "mean", "std"}
"""Fields of a network's preprocessing that say how its images are normalised."""
_UNITS = ("pixel_range", "channel_order")
"""Fields that say in which form these numbers are."""


def search(
    experiment: Experiment | str | Path | None = None,
    *,
    teacher: Any = None,
    students: Any = None,
    data: Any = None,
    normalisation: Any = None,
    methods: Sequence[str] | None = None,
    num_trials: int | None = None,
    quiet: bool = False,
    new_space: bool = False,
    new_data: bool = False,
    settings: Mapping[str, Any] | None = None,
    **fields: Any,
) -> SearchResult:
    """Find how accurate students of several sizes become, with equal tuning per method, on Ray.

    The same call again continues an interrupted search, and returns the result of a finished one at
    once. A run is identified by `name` and `storage_path`.

    Args:
        experiment: An experiment or the path of its TOML file; the other arguments override it.
            None starts from the defaults of all settings, and then requires teacher, students and
            data.
        teacher: A trained classifier: an `nn.Module`, a callable that returns it, or text:
            `"package.module:callable"`, `"timm:NAME"`, ... Such a teacher keeps the weights that it
            is built with. A zoo network, given by name, is trained by the search.
        students: A callable from a width to an `nn.Module` (or the name of a model with a width);
            sizes are then shares of the teacher, `capacities=("1/64", "1/16")`. Or a mapping of
            names to callables or text, one for each size. Or a `LadderConfig`.
        data: `(train, val)`, `(train, val, test)`, a dictionary of these, or training images
            alone; missing splits are cut from the training images. Each is a data set of
            `(image, label)`, a loader, batches, or `(images, labels)` as arrays, with images
            without random augmentation. Or text: the name of a source, or
            `"package.module:callable"`.
        normalisation: `(mean, std)` if the images are normalised. It is undone to store the images
            as 8-bit pixels, and applied again for the networks, which take images as given.
        methods: Methods to compare; None takes those of the experiment, or `("plain", "kr")`.
        num_trials: Trials of every method at every size; None takes the experiment's number, 8 by
            default.
        quiet: Show no live view on stderr.
        new_space: Continue although the search space has changed; methods whose space changed start
            anew.
        new_data: If data or teacher have changed, set the existing results aside and start again.
        settings: Any other settings by dotted path, `{"views.flip": True}`, as with `--set`.
        **fields: Settings by their own name: `name`, `storage_path`, `capacities`, and those of
            `[train]` (`num_epochs`, ...), `[distill]` (`granularity`, ...) and `[search]`
            (`sampler`, ...).

    Returns:
        The curve and its students.

    Raises:
        UserError: If arguments do not fit together; nearly always raised before the first training.

    Example:
        >>> import krscale
        >>> krscale.search("no.toml")
        Traceback (most recent call last):
        krscale.errors.UserError: no.toml: no such file.
    """
    with errors_in_python():
        _require(experiment, teacher=teacher, students=students, data=data)
        networks = _networks(teacher, students)
        content, builders = _with_networks(_content(experiment), networks), networks.builders
        if experiment is None:
            content.setdefault("name", "search")
            content["search"] = {"methods": METHODS}
        named = {"search.methods": _listed(methods), "search.trials_per_size": num_trials}
        chosen = {path: value for path, value in named.items() if value is not None}
        put_settings(content, chosen, settings or {}, fields)
        check_sendable(builders)
        with available(builders):
            prepared, given = _with_data(content, networks.tables, data, normalisation, settings)
            if "train.warmup_epochs" in (settings or {}) or "warmup_epochs" in fields:
                refuse_long_warmup(prepared.train, "search")
            curve, how_to_open = run_session(
                prepared, quiet=quiet, new_space=new_space, new_data=new_data
            )
        return SearchResult(curve, prepared, how_to_open, builders, given)


def _require(experiment: Any, **given: Any) -> None:
    if experiment is not None and not isinstance(experiment, Experiment | str | Path):
        raise UserError(
            f"search: {type(experiment).__name__} is no experiment; give an Experiment or the path "
            "of a TOML file, or name the arguments: teacher=..., students=..., data=..."
        )
    missing = [name for name, value in given.items() if value is None]
    if experiment is None and missing:
        raise UserError(
            f"search: without an experiment, {' and '.join(missing)} must be given: teacher=..., "
            "students=..., data=..."
        )


def _content(experiment: Experiment | str | Path | None) -> Table:
    """Return the settings of an experiment as in its file, without defaults."""
    if experiment is None:
        return {}
    found = experiment if isinstance(experiment, Experiment) else load(experiment)
    return found.model_dump(mode="python", exclude_unset=True)


def _networks(teacher: Any, students: Any) -> GivenNetworks:
    """Combine the given teacher and students."""
    taught = GivenNetworks() if teacher is None else read_teacher(teacher)
    learning = GivenNetworks() if students is None else read_students(students)
    return GivenNetworks(
        {**taught.tables, **learning.tables}, {**taught.builders, **learning.builders}
    )


def _with_networks(content: Table, networks: GivenNetworks) -> Table:
    """Return the content with the given teacher and students in place of its own."""
    tables = networks.tables
    content = {**content, **tables}
    if "student" in tables and "ladder" not in tables:  # one student with a width
        ladder = content.get("ladder", {})
        content["ladder"] = {key: ladder[key] for key in ladder if key != "students"}
    return content


def _with_data(
    content: Table,
    sections: Collection[str],
    data: Any,
    normalisation: Any,
    settings: Mapping[str, Any] | None,
) -> tuple[Experiment, Normalisation]:
    """Return the experiment with its data, and the normalisation of the given images.

    Args:
        content: Content of the experiment, without data that are given as objects.
        sections: Sections whose networks were given.
        data: As for `search`.
        normalisation: As for `search`.
        settings: As for `search`; those of `data.files` apply to given images, too.
    """
    known = None if normalisation is None else Normalisation.of(normalisation)
    plain = Normalisation((0.0,), (1.0,))
    if data is None or isinstance(data, str):
        if known is not None:
            raise UserError(
                "normalisation: it says by what images that are given are normalised; data that "
                "are named have settings={'teacher.preprocessing.mean': ...}."
            )
        if data is not None:
            content = {**content, "data": {**content.get("data", {}), "source": data}}
        return validate(content, "search"), plain
    checked = validate(content, "search")  # before all images are read
    start = "data.files."
    chosen = {k.removeprefix(start): v for k, v in (settings or {}).items() if k.startswith(start)}
    given = keep_given(data, known, given_folder(checked.cache_path), chosen)
    own = content.get("data", {})
    files = {**own.get("files", {}), **given.table["files"]}
    content = {**content, "data": {**own, **given.table, "files": files}}
    if not given.is_float:
        return validate(content, "search"), plain
    content |= {name: _taking(content[name], known) for name in sections if name in content}
    experiment = validate(content, "search")
    if "teacher" in sections and not _names_numbers(checked.teacher.preprocessing):
        experiment = _as_given(experiment)
    return experiment, known or plain


def _taking(table: Table, normalisation: Normalisation | None) -> Table:
    """Return a section whose networks take images as given, unless it has other numbers.

    Networks of libraries define their preprocessing themselves. In another pixel range or channel
    order, too, images are normalised as they were given.
    """
    if "students" in table:
        return {**table, "students": [_taking(one, normalisation) for one in table["students"]]}
    model = table.get("model")
    if model is None or model.partition(":")[0] in LIBRARIES:
        return table
    own = table.get("preprocessing", {})
    if not isinstance(own, Mapping) or own.keys() & _NUMBERS:
        return table
    how: Table = {"normalisation": "none"}
    if normalisation is not None:
        pixel_range, order = (own.get(name, "auto") for name in _UNITS)
        as_given = Preprocessing(normalisation.mean, normalisation.std)
        found = as_given.expressed(
            as_given.pixel_range if pixel_range == "auto" else pixel_range,
            as_given.channel_order if order == "auto" else order,
        )
        how = {"mean": found.mean, "std": found.std}
    return {**table, "preprocessing": {**how, **own}}


def _names_numbers(preprocessing: PreprocessingConfig) -> bool:
    """Whether the normalisation of a network's images is said."""
    return bool(preprocessing.model_fields_set & _NUMBERS)


def _as_given(experiment: Experiment) -> Experiment:
    """Return an experiment whose teacher takes images as they were given, whatever it says itself.

    Networks of timm say a size, trained or not, to which the images would be scaled, and others may
    say a range or an order of channels; the loaders have brought all of these about. Images are
    scaled only for one that does not run on them as they are.
    """
    model, own = experiment.teacher.model, experiment.teacher.preprocessing
    if model in ZOO or model.partition(":")[0] in LIBRARIES:
        return experiment
    task = describe_data(experiment.data, experiment.cache_path)
    build = partial(builder(experiment.teacher, task, "teacher"), experiment.teacher.width)
    said = preprocessing_of_network(build_for_shapes(build, task.image_shape))
    size = task.image_shape[1:]
    values: Table = {}
    if own.pixel_range == "auto" and said.pixel_range != "0..1":
        values["teacher.preprocessing.pixel_range"] = "0..1"
    if own.channel_order == "auto" and said.channel_order != "rgb":
        values["teacher.preprocessing.channel_order"] = "rgb"
    found = with_values(experiment, values, "search") if values else experiment
    if own.input_size or said.input_size in (None, size):
        return found
    at_size = with_values(found, {"teacher.preprocessing.input_size": size}, "search")
    try:
        teacher_preprocessing(at_size, task)
    except UserError:  # it takes one size alone, which it says
        return found
    return at_size


def _listed(methods: Any) -> tuple[str, ...] | None:
    """Return the methods in order; a set, whose order varies between runs, is sorted by name."""
    if methods is None or isinstance(methods, str):
        return methods if methods is None else (methods,)
    if not isinstance(methods, Iterable):
        raise UserError(f"search: methods: a list of names is needed (got {methods!r}).")
    return tuple(sorted(methods, key=str) if isinstance(methods, Set) else methods)
