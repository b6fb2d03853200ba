"""`krscale teacher check [EXPERIMENT.toml]`: with which preprocessing is the teacher right?"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from krscale.cli.common import add_experiment_arguments, positive
from krscale.showing import show, terminal

if TYPE_CHECKING:
    from krscale.data import Dataset
    from krscale.setup.candidates import Candidate, Tried

EXIT_DIFFERENT = 1
OUTPUTS = "outputs"
"""In place of a setting, where the data fix the order of classes: what each output stands for."""
_FIXED = ("digits", "glyphs", "cifar10", "cifar100")
"""Sources whose classes have one order, which no setting changes."""
_SHOWN = 8

DESCRIPTION = "Check a teacher that was trained elsewhere before it teaches."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="try the usual preprocessings and class orders on validation, and say which fits",
        description="Run the teacher on validation images with the usual normalisations, pixel "
        "ranges, orders of channels, input sizes and orders of the classes. Exit code 0: it is "
        "best as the experiment has it; 1: another way is clearly better, and is printed.",
    )
    add_experiment_arguments(check)
    check.add_argument(
        "--images",
        type=positive,
        default=0,
        metavar="N",
        help="validation images to use (512, or ten for each class where that is more)",
    )
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    check.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(options: argparse.Namespace) -> int:
    """Prepare the data, try the candidates and print the result."""
    from krscale.config import load

    experiment = load(options.experiment, options.set)
    from krscale.progress import Progress
    from krscale.setup.candidates import try_candidates
    from krscale.setup.prepare import Setup, pick_device
    from krscale.setup.teacher import foreign_teacher

    device = pick_device(experiment.train.device)
    with Progress(quiet=options.quiet, planned={}) as progress:
        setup = Setup.resolve(experiment, progress)
        experiment, dataset = setup.experiment, setup.dataset
        progress.phase("teacher")
        network = foreign_teacher(experiment, dataset, device)
        number = options.images or max(512, 10 * dataset.num_classes)
        tried = try_candidates(network, dataset, max(2, number))
    order = OUTPUTS if dataset.source in _FIXED else "data.files.classes"
    content = as_content(tried, dataset, order)
    if options.json:
        show(json.dumps(content, indent=2))
    else:
        _show(tried, content, dataset)
    return EXIT_DIFFERENT if content["changes"] else 0


def as_content(tried: Tried, dataset: Dataset, order: str) -> dict[str, Any]:
    """Return the result as JSON-serialisable content; `changes` holds the settings to change.

    Args:
        tried: The candidates that were tried.
        dataset: The data that they were tried on.
        order: The setting that holds the order of the classes, or `OUTPUTS`.
    """
    from krscale.setup.candidates import as_settings

    changes: dict[str, Any] = {}
    best = tried.reordered or tried.best
    if best is not tried.configured:
        changes["teacher.preprocessing"] = as_settings(best.preprocessing, dataset.image_shape)
    if tried.reordered is not None:
        # For each of the teacher's outputs, the class of the data that it stands for.
        of_output = {output: name for name, output in zip(dataset.classes, best.order, strict=True)}
        changes[order] = [of_output[number] for number in range(len(of_output))]
    return {
        "num_images": len(tried.labels),
        "configured": _facts(tried.configured, dataset) if tried.configured else None,
        "best": _facts(best, dataset),
        "changes": changes,
        "candidates": [_facts(candidate, dataset) for candidate in tried.candidates],
        "refused_sizes": tried.refused,
    }


def _facts(candidate: Candidate, dataset: Dataset) -> dict[str, Any]:
    from krscale.setup.candidates import as_settings, size_name

    return {
        "normalisation": candidate.name,
        "input_size": size_name(candidate.preprocessing, dataset),
        "pixel_range": candidate.preprocessing.pixel_range,
        "channel_order": candidate.preprocessing.channel_order,
        "accuracy": candidate.accuracy,
        "accuracy_reordered": candidate.reordered,
        "settings": as_settings(candidate.preprocessing, dataset.image_shape),
    }


def _show(tried: Tried, content: dict[str, Any], dataset: Dataset) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("", "normalisation", "pixels", "channels", "size", "right", "classes reordered"):
        table.add_column(name)
    chosen = [c for c in (tried.configured, tried.reordered) if c is not None]
    shown = list(dict.fromkeys([*tried.candidates[:_SHOWN], *chosen]))
    for one in shown:
        facts = _facts(one, dataset)
        table.add_row(
            "now" if one is tried.configured else "",
            *(facts[n] for n in ("normalisation", "pixel_range", "channel_order", "input_size")),
            f"{one.accuracy:.1%}",
            f"{one.reordered:.1%}",
        )
    terminal().print(table)
    more = len(tried.candidates) - len(shown)
    show(f"Measured on {content['num_images']} validation images; {more} worse ways are not shown.")
    for size, reason in tried.refused.items():
        show(f"It does not take images of {size} ({reason}).")
    if not content["changes"]:
        show("The teacher is best as the experiment has it, or nearly so.")
        return
    show("Clearly better with these lines in the experiment file:")
    for section, value in content["changes"].items():
        if isinstance(value, dict):
            show(f"\n[{section}]")
            show("\n".join(f"{name} = {json.dumps(part)}" for name, part in value.items()))
        elif section == OUTPUTS:
            order = ", ".join(value)
            show(f"\nChange the order of its outputs, which is now that of these classes: {order}")
        else:
            table_name, _, name = section.rpartition(".")
            show(f"\n[{table_name}]\n{name} = {json.dumps(value, ensure_ascii=False)}")
