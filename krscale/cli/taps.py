"""`krscale taps MODEL`: the blocks of a network, with the shapes of what they give."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from krscale.config import value_of
from krscale.errors import UserError
from krscale.showing import show, terminal

if TYPE_CHECKING:
    from krscale.models.blocks import Block

DESCRIPTION = (
    "List what can be a tap of a network: its blocks in the order in which they run, the shape of "
    "what each gives, and where its channels are; and mark those that are taken where none are "
    "named. Of the teacher of an experiment, the information gain of each block as well: what a "
    "linear probe reads off it about the classes."
)
_DEFAULTS = {"image": (3, 224, 224), "classes": 10, "width": 8, "option": [], "output_key": ""}
_LAYOUTS = {"channels_first": "first", "channels_last": "last", "?": "say tap_layout"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="as in an experiment: a name of the zoo, timm:NAME, torchvision:NAME, hf:FOLDER or "
        "package.module:callable; or EXPERIMENT.toml, for its teacher with gains",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change any field of the experiment by its dotted path; repeatable",
    )
    parser.add_argument(
        "--image",
        type=int,
        nargs=3,
        metavar=("CHANNELS", "HEIGHT", "WIDTH"),
        help="shape of the images, default 3 224 224",
    )
    parser.add_argument("--classes", type=int, metavar="K", help="number of classes, default 10")
    parser.add_argument(
        "--width", type=int, metavar="W", help="the capacity dial, where there is one, default 8"
    )
    parser.add_argument(
        "--option",
        action="append",
        metavar="KEY=VALUE",
        help="an option of the network, e.g. --option num_blocks=2; repeatable",
    )
    parser.add_argument(
        "--output-key",
        metavar="NAME",
        help="which of several outputs are the logits, as in an experiment",
    )
    parser.add_argument("--json", action="store_true", help="print the blocks as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(options: argparse.Namespace) -> int:
    """List the blocks and print them."""
    if options.model.endswith(".toml"):
        _refuse_beside_experiment(options)
        blocks, proposed, gains = _of_experiment(options)
    else:
        if options.set:
            raise UserError("--set changes an experiment; give EXPERIMENT.toml in place of MODEL.")
        for name, value in _DEFAULTS.items():
            if getattr(options, name) is None:
                setattr(options, name, value)
        blocks, proposed = _of_network(options)
        gains = {}
    if options.json:
        rows = [{**vars(block), "proposed": block.path in proposed} for block in blocks]
        if gains:
            rows = [{**row, "information_gain": gains.get(row["path"])} for row in rows]
        show(json.dumps(rows, indent=2))
        return 0
    _print(blocks, proposed, gains)
    return 0


def _of_network(options: argparse.Namespace) -> tuple[Sequence[Block], Sequence[str]]:
    """Build the named network, and list its blocks and proposed taps."""
    arguments = dict(_option(text) for text in options.option)
    _check_numbers(options)
    # Imported here, so that --help and wrong arguments need not wait for it.
    from functools import partial

    from krscale.models import build_model
    from krscale.models.blocks import list_blocks, proposed_taps
    from krscale.models.probing import build_for_shapes, check_built, check_network

    build = partial(
        build_model,
        options.model,
        num_classes=options.classes,
        in_channels=options.image[0],
        width=options.width,
        options=arguments,
        output_key=options.output_key,
        fresh=True,
        where="network",
    )
    model = build_for_shapes(build, options.image)
    check_network(model, options.classes, options.image, "network")
    built = build()
    check_built(built, options.image, "network")
    return list_blocks(model, options.image), proposed_taps(built, options.image)


def _of_experiment(
    options: argparse.Namespace,
) -> tuple[Sequence[Block], Sequence[str], dict[str, float]]:
    """Prepare the data of an experiment, and measure the blocks of its teacher."""
    from krscale.config import load
    from krscale.progress import Progress
    from krscale.setup.block_gains import measure_blocks
    from krscale.setup.prepare import Setup, pick_device

    experiment = load(options.model, options.set)
    device = pick_device(experiment.train.device)
    with Progress(quiet=options.quiet, planned={}) as progress:
        setup = Setup.resolve(experiment, progress)
        progress.phase("teacher")
        blocks, gains = measure_blocks(setup.experiment, setup.dataset, device, progress.advance)
    return blocks, setup.networks.teacher.taps, gains


def _print(blocks: Sequence[Block], proposed: Sequence[str], gains: Mapping[str, float]) -> None:
    from rich.table import Table

    table = Table("tap", "block", "gives each image", "channels", *(["gain"] if gains else []))
    for block in blocks:
        mark = " *" if block.path in proposed else ""
        shape = " x ".join(map(str, block.shape))
        gain = f"{gains[block.path]:.2f}" if block.path in gains else ""
        row = (block.path + mark, block.kind, shape, _LAYOUTS.get(block.layout, ""))
        table.add_row(*row, *([gain] if gains else []))
    if gains:
        table.add_row("", "the classifier", "", "", f"{gains['']:.2f}")
    terminal().print(table)
    show(f"* taken{'' if gains else ' where none are named'}:\ntaps = {json.dumps(proposed)}")


def _refuse_beside_experiment(options: argparse.Namespace) -> None:
    for name in _DEFAULTS:
        if getattr(options, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag}: {options.model} is an experiment, which has this as a setting; use --set."
            )


def _option(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--option {text}: expected KEY=VALUE, e.g. num_blocks=2.")
    return key.strip(), value_of(value, key.strip(), "--option")


def _check_numbers(options: argparse.Namespace) -> None:
    for name, numbers in (
        ("--image", options.image), ("--classes", [options.classes]), ("--width", [options.width])
    ):  # fmt: skip
        if min(numbers) < 1:
            raise UserError(f"{name}: numbers from 1 on are allowed (got {min(numbers)}).")
