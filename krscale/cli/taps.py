"""`krscale taps MODEL`: the blocks of a network, with the shapes of what they give."""

from __future__ import annotations

import argparse
import json
import tomllib
from typing import Any

from krscale.errors import UserError

DESCRIPTION = (
    "List what can be a tap of a network: its blocks in the order in which they run, the shape of "
    "what each gives, and where its channels are; and propose a list for an experiment."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="as in an experiment: a name of the zoo, timm:NAME, torchvision:NAME, hf:FOLDER or "
        "package.module:callable",
    )
    parser.add_argument(
        "--image",
        type=int,
        nargs=3,
        default=(3, 224, 224),
        metavar=("CHANNELS", "HEIGHT", "WIDTH"),
        help="shape of the images, default 3 224 224",
    )
    parser.add_argument(
        "--classes", type=int, default=10, metavar="K", help="number of classes, default 10"
    )
    parser.add_argument(
        "--width", type=int, default=8, metavar="W", help="the capacity dial, where there is one"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the network, e.g. --option num_blocks=2; repeatable",
    )
    parser.add_argument(
        "--output-key",
        default="",
        metavar="NAME",
        help="which of several outputs are the logits, as in an experiment",
    )
    parser.add_argument("--json", action="store_true", help="print the blocks as JSON")


def run(options: argparse.Namespace) -> int:
    """Build, list, print."""
    arguments = dict(_option(text) for text in options.option)
    _check_numbers(options)
    # Imported here, so that --help and wrong arguments are answered at once.
    from functools import partial

    from rich.console import Console
    from rich.table import Table

    from krscale.models import build_model
    from krscale.models.blocks import list_blocks, proposed_taps
    from krscale.models.probing import build_for_shapes, check_network

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
    blocks = list_blocks(model, options.image)
    proposed = proposed_taps(build(), options.image)
    if options.json:
        rows = [{**vars(block), "proposed": block.path in proposed} for block in blocks]
        print(json.dumps(rows, indent=2))
        return 0
    table = Table("tap", "block", "gives each image", "channels")
    for block in blocks:
        mark = " *" if block.path in proposed else ""
        layout = {"channels_first": "first", "channels_last": "last", "?": "say tap_layout"}
        shape = " x ".join(map(str, block.shape))
        table.add_row(block.path + mark, block.kind, shape, layout.get(block.layout, ""))
    Console().print(table)
    print(f"* a proposal:\ntaps = {json.dumps(proposed)}")
    return 0


def _option(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--option {text}: expected KEY=VALUE, e.g. num_blocks=2.")
    try:
        return key.strip(), tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _check_numbers(options: argparse.Namespace) -> None:
    for name, numbers in (
        ("--image", options.image), ("--classes", [options.classes]), ("--width", [options.width])
    ):  # fmt: skip
        if min(numbers) < 1:
            raise UserError(f"{name}: numbers from 1 on are allowed (got {min(numbers)}).")
