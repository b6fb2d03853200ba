"""`python -m krscale.pick RUN`: choose a student of a finished search, and take it away."""

from __future__ import annotations

import argparse
import json
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from krscale.config import load
from krscale.errors import UserError
from krscale.runs.folder import find_run, storage_folder
from krscale.showing import show, terminal

if TYPE_CHECKING:
    from krscale.runs.deliver import Delivery, Order

_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}

DESCRIPTION = (
    "Choose a student of a finished search by validation accuracy, say why, and "
    "export it without heads. With limits on its size, the most accurate within them; with "
    "--min-accuracy, the smallest that reaches it."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name")
    parser.add_argument("--max-params", metavar="N", help="most parameters, e.g. 20000 or 20k")
    parser.add_argument("--max-flops", metavar="N", help="most FLOPs per image, e.g. 2.5M")
    parser.add_argument("--max-latency-ms", metavar="X", help="most ms per image, as in the table")
    parser.add_argument("--min-accuracy", metavar="A", help="validation accuracy: 0.95 or 95%%")
    parser.add_argument(
        "--refit", action="store_true", help="train it again on train and validation"
    )
    parser.add_argument(
        "--format",
        default="safetensors,onnx,pt2",
        metavar="A,B",
        help="formats, of safetensors, onnx and pt2 (default: all)",
    )
    parser.add_argument("--output", metavar="DIR", help="default: RUN/export/<capacity>-<method>")
    parser.add_argument(
        "--no-register", action="store_true", help="leave MLflow's model registry alone"
    )
    parser.add_argument(
        "--uri", default="", help="MLflow to register it in (default: where the run was recorded)"
    )
    parser.add_argument("--storage-path", metavar="FOLDER", help="where a run's name is looked up")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(options: argparse.Namespace) -> int:
    """Choose a student, export it and print the result."""
    from krscale.progress import Progress
    from krscale.runs.deliver import choose_student, deliver
    from krscale.runs.register import register

    order = _order(options)
    run_path = find_run(options.run, storage_folder(options.storage_path or load().storage_path))
    curve, choice = choose_student(run_path, order)
    if not options.json:
        show(f"Picked {choice.picked.describe()}.")
        show("\n".join(["Why: " + choice.reasons[0], *choice.reasons[1:]]), flush=True)
    with Progress(quiet=options.quiet, planned={}) as progress:
        delivery = deliver(run_path, curve, choice, order, progress)
        registered = ""
        if not options.no_register:
            progress.phase("register")
            registered = register(run_path, delivery, options.uri, progress.note)
    if options.json:
        show(json.dumps({**delivery.content(), "registered": registered}, indent=2))
    else:
        _show_files(delivery, registered)
    return 0


def _order(options: argparse.Namespace) -> Order:
    """Return the order that the options describe."""
    from krscale.report import Limits
    from krscale.runs.deliver import Order

    limits = Limits(
        num_parameters=_count("--max-params", options.max_params),
        flops=_count("--max-flops", options.max_flops),
        latency_ms=_number("--max-latency-ms", options.max_latency_ms),
        min_accuracy=_share("--min-accuracy", options.min_accuracy),
    )
    formats = tuple(part.strip() for part in options.format.split(",") if part.strip())
    output = Path(options.output) if options.output else None
    return Order(limits, options.refit, formats, output)


def _show_files(delivery: Delivery, registered: str) -> None:
    """Show what was exported, and where it is."""
    from rich.table import Table

    show(_weights(delivery))
    table = Table("file", "bytes", "largest difference", "test accuracy, recomputed")
    for file in delivery.files:
        table.add_row(
            file.file, f"{file.num_bytes:,}", f"{file.max_difference:.1e}",
            f"{file.test_accuracy:.2%}",
        )  # fmt: skip
    terminal().print(table)
    show(f"Folder: {delivery.folder}")
    if registered:
        show(f"MLflow: {registered}")


def _weights(delivery: Delivery) -> str:
    """Describe which training the files hold, and its accuracy beside the mean of the table."""
    from krscale.report.table import counted

    result, val = delivery.choice.picked.result, delivery.card.accuracy["val"]
    test = f"{delivery.card.test_accuracy:.2%} on test"
    seeds = counted(len(result.seeds), "seed")
    mean = f"the table's mean over {seeds} is {result.test_accuracy:.2%}"
    if val is None:
        return f"Weights: trained on train and validation; {test} ({mean})."
    seed = delivery.card.provenance["seed"]
    return f"Weights: seed {seed}, the best on validation ({val:.2%}); {test} ({mean})."


def _number(flag: str, text: str | None) -> float | None:
    value = _decimal(flag, text)
    return None if value is None else float(value)


def _count(flag: str, text: str | None) -> int | None:
    value = _decimal(flag, text)
    if value is not None and value < 1:
        raise UserError(f"{flag}: expected at least 1 (got {text!r}).")
    return None if value is None else int(value)


def _decimal(flag: str, text: str | None) -> Decimal | None:
    """Return a positive number exactly as written; `k`, `M` and `G` are allowed as in the table."""
    if text is None:
        return None
    unit = _UNITS.get(text[-1:], 1)
    try:
        value = Decimal(text[:-1] if unit > 1 else text) * unit
        fits = 0.0 < float(value) < float("inf")
    except (ArithmeticError, ValueError):  # not a number, too many digits, or sNaN
        fits = False
    if not fits:
        raise UserError(f"{flag}: expected a positive number such as 20000 or 20k (got {text!r}).")
    return value


def _share(flag: str, text: str | None) -> float | None:
    if text is None:
        return None
    percent = text.endswith("%")
    try:
        value = float(Decimal(text.removesuffix("%")) / (100 if percent else 1))
    except (ArithmeticError, ValueError):
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{flag}: expected a share such as 0.95, or 95% (got {text!r}).")
    return value
