"""`krscale store {check, info} RUN`: compare a run's store with its teacher, or describe it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from krscale.cli.common import positive
from krscale.config import Experiment, load
from krscale.errors import DamagedFileError, UserError
from krscale.foreign import user_path
from krscale.runs.experiment_file import read_experiment
from krscale.runs.folder import find_run, storage_folder
from krscale.runs.kinds import require_run
from krscale.showing import show, terminal

if TYPE_CHECKING:
    from krscale.setup.recipe import StoreRecipe

EXIT_DIFFERENT = 1

DESCRIPTION = "Check or describe the store of a run: its teacher's knowledge on disk."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="run the teacher again on a sample of rows, and compare",
        description="Compare the checksums of all shards and of the data, then compute a sample of "
        "rows again and compare their pixels and probabilities. Exit code 0: all as it was "
        "written; 1: something differs, which is printed on stderr; 2: there is nothing to check.",
    )
    check.add_argument(
        "--rows", type=positive, default=512, metavar="N", help="rows to compare (512)"
    )
    check.add_argument("--repair", action="store_true", help="rebuild broken shards, only those")
    check.add_argument("--quiet", action="store_true", help="no progress on stderr")
    info = commands.add_parser("info", help="print size, truncation error and fingerprints")
    for command in (check, info):
        command.add_argument("run", metavar="RUN", help="a run's name or folder, or its TOML file")
        command.add_argument(
            "--storage-path",
            metavar="FOLDER",
            help="folder of all runs, where a name is looked up (default: that of the experiments)",
        )
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="with a TOML file: the overrides of the run; repeatable",
        )
        command.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Find the experiment, and check or describe its stores."""
    experiment = find_experiment(options.run, options.storage_path, options.set)
    from krscale.setup.methods import methods_of
    from krscale.setup.recipe import StoreRecipe  # torch takes seconds to import
    from krscale.store import StoreCheckError

    recipe = StoreRecipe.find(experiment)
    recipes = [recipe, *recipe.of_features(methods_of(experiment)).values()]
    try:
        if options.command == "info":
            show_info(recipes, as_json=options.json)
        else:
            check(recipes, options)
    except StoreCheckError as error:
        show(f"krscale: {error}", file=sys.stderr)
        return EXIT_DIFFERENT
    return 0


def find_experiment(name: str, storage_path: str | None, overrides: Sequence[str]) -> Experiment:
    """Return the experiment of a run's name or folder, or of a TOML file.

    For a run, the storage is where its folder is now, even if it was elsewhere when the run began.
    """
    written = user_path(name, "RUN")
    if written.suffix == ".toml" or written.is_file():
        place = [f"storage_path={json.dumps(storage_path)}"] if storage_path else []
        return load(written, [*overrides, *place])
    if overrides:
        raise UserError(f"--set changes a TOML file; {name} is a run, whose settings are fixed.")
    folder = find_run(name, storage_folder(storage_path or load().storage_path))
    require_run(folder)
    return read_experiment(folder)


def check(recipes: Sequence[StoreRecipe], options: argparse.Namespace) -> None:
    """Rebuild broken shards if `--repair` is given, then compare with the teacher's outputs now.

    Args:
        recipes: Those of the distributions, and of every kind of features that the run needs.
        options: Options of the command line.
    """
    from krscale.store import StoreCheckError

    try:
        recipes[0].dataset.verify()  # all recipes have the same data set
    except DamagedFileError as error:
        raise StoreCheckError(str(error)) from None
    found = [_check_one(recipe, options) for recipe in recipes]
    if options.json:
        show(json.dumps(_by_kind(recipes, found), indent=2))
        return
    for content in found:
        for name in content["rebuilt"]:
            show(f"Rebuilt {name}")
        show(
            f"{content['path']}: {content['num_shards']} shards and {content['num_rows']} rows are "
            f"what the teacher gives today (largest difference: {content['max_difference']:.1e})"
        )


def _check_one(recipe: StoreRecipe, options: argparse.Namespace) -> dict[str, Any]:
    from krscale.progress import Progress
    from krscale.setup.prepare import pick_device
    from krscale.store import broken_shards, check_store, find_store, prepare_store

    spec = recipe.spec(pick_device(recipe.experiment.train.device))
    manifest = find_store(spec.path, spec.key)
    broken = broken_shards(spec.path, manifest, checksums=True) if options.repair else []
    rebuilt = [shard.stem for shard in broken]
    if rebuilt:
        with Progress(quiet=options.quiet, planned={}) as progress:
            progress.phase("repair")
            prepare_store(spec, progress.advance, repair=True)
    found = check_store(spec, options.rows)
    return {"path": str(recipe.path), "rebuilt": rebuilt, **asdict(found)}


def _by_kind(recipes: Sequence[StoreRecipe], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the findings: those of the distributions' store, and in it those of features by kind."""
    features = {str(recipe.kind): part for recipe, part in zip(recipes, found, strict=True)}
    whole = features.pop("None")
    return whole | ({"features": features} if features else {})


def show_info(recipes: Sequence[StoreRecipe], *, as_json: bool) -> None:
    """Print what the stores hold."""
    found = [recipe.open().info() for recipe in recipes]
    if as_json:
        show(json.dumps(_by_kind(recipes, found), indent=2))
        return
    from rich import box
    from rich.table import Table

    for recipe, info in zip(recipes, found, strict=True):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("store" if recipe.kind is None else f"{recipe.kind} features")
        table.add_column(info["path"], overflow="fold")
        for name, value in _lines(info):
            table.add_row(name, value)
        terminal().print(table)


def _lines(info: dict[str, Any]) -> list[tuple[str, str]]:
    errors = ", ".join(f"{error:.4f}" for error in info["encoding_error"])
    rows = f"{info['num_views']} views of {info['num_samples']:,} samples"
    if "shapes" in info:
        shapes = ", ".join("x".join(map(str, shape)) for shape in info["shapes"])
        content = [("features", f"{shapes}, {info['bits']} bits each")]
        measure = "mean relative error of each feature"
        if info["bits"] < 16:
            measure = "mean total variation of each stage"
    else:
        rows += f" at {info['num_taps']} taps"
        kept = f"{info['top_k']} of {info['num_classes']}, {info['bits']} bits each"
        content = [("classes kept", f"{kept}, at temperature {info['temperature']:g}")]
        measure = "mean total variation of each tap"
    return [
        ("size", f"{info['num_bytes'] / 1e6:,.1f} MB in {info['num_shards']} shards"),
        ("rows", rows),
        ("bytes per view and tap", f"{info['bytes_per_view_and_tap']:.2f}"),
        *content,
        ("encoding error", f"{errors} ({measure})"),
        *((f"fingerprint: {name}", print_) for name, print_ in info["fingerprints"].items()),
    ]
