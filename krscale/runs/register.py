"""Registering a picked student in MLflow, beside the run that it comes from."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from krscale.errors import UserError
from krscale.redaction import redact
from krscale.report.table import short_latency
from krscale.runs.deliver import Delivery
from krscale.runs.experiment_file import last_start, read_experiment
from krscale.tracking import HASH_TAG, Begun, Registration, reopen, save_onnx_model

FOLDER = "registered"
SECONDS = 30.0
"""How long to wait for MLflow; what it has not received by then stays in the run's spool."""
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
"""Names of the splits in descriptions."""


def register(run_path: Path, delivery: Delivery, uri: str, warn: Callable[[str], None]) -> str:
    """Register the ONNX file of a delivery, with its signature, an example and its size's alias.

    Args:
        run_path: Folder of the run.
        delivery: What was exported.
        uri: Where to register it; if empty, where the run was recorded.
        warn: Receives lines for the user, e.g. that MLflow cannot be reached.

    Returns:
        The outcome in one line for the user; empty for a run with tracking disabled. The student is
        already exported, so a failure to register it is not an error.
    """
    experiment = read_experiment(run_path)
    if not experiment.tracking.enabled:
        return ""
    onnx = next((file for file in delivery.files if file.format == "onnx"), None)
    if onnx is None:
        return "not registered: the registry takes the ONNX file, which was not asked for."
    card, picked = delivery.card, delivery.choice.picked
    wanted = registration(experiment.tracking.experiment, delivery, onnx.sha256)
    try:
        known = last_start(run_path)
        tracker = reopen(run_path, uri, begun=Begun(*known) if known else None, warn=warn)
    except UserError as error:
        return f"not registered: {error}"
    refused = tracker.num_refused
    # One folder for each content, so that the next pick does not replace one that is still waiting
    # for MLflow.
    folder = run_path / FOLDER / f"{delivery.folder.name}-{onnx.sha256[:8]}"
    run = tracker.newest(picked.method)
    if not tracker.has_run(run):
        tracker.close(SECONDS)
        return (
            f"not registered: the record of this run in {run_path / 'tracking'} is lost. The "
            f"command that ran the search records it again from its journal."
        )
    try:
        source = delivery.folder / onnx.file
        save_onnx_model(source, folder, card.image_shape, len(card.classes))
        tracker.register_model(run, folder, wanted)
    finally:
        unsent = tracker.close(SECONDS)
    if unsent:
        command = f"krscale sync {shlex.quote(str(run_path))}"
        return f"waiting for MLflow; {command} registers {wanted.uri} later."
    if tracker.num_refused > refused:
        return f"MLflow refused it; see {run_path / 'tracking' / 'refused.jsonl'}"
    return wanted.uri


def registration(experiment: str, delivery: Delivery, digest: str) -> Registration:
    """Return the names and tags under which a student is registered.

    Args:
        experiment: Name of the MLflow experiment.
        delivery: What was exported.
        digest: SHA-256 of the ONNX file.
    """
    card, picked = delivery.card, delivery.choice.picked
    origin = card.provenance
    accuracies = {f"{split}_accuracy": value for split, value in card.accuracy.items()}
    tags = {
        HASH_TAG: digest,
        "krscale.search": origin["run"],
        "krscale.method": picked.method,
        "krscale.size": picked.size.capacity,
        "krscale.seed": origin["seed"],
        "krscale.trained_on": "+".join(origin["trained_on"]),
        "krscale.commit": origin["commit"],
        "krscale.data": origin["data"]["fingerprint"],
        "num_parameters": card.num_parameters,
        "flops": card.flops,
        **{name: f"{value:.4f}" for name, value in accuracies.items() if value is not None},
    }
    return Registration(
        name=re.sub(r"[/:]", "-", f"{experiment}-{origin['run']}"),
        alias=re.sub(r"[^\w-]", "-", f"size-{picked.size.capacity}"),
        tags={name: redact(str(value)) for name, value in tags.items()},
        description=f"{_describe(delivery)}. Takes images in 0..1, returns logits.",
    )


def _describe(delivery: Delivery) -> str:
    """Describe these weights, not the mean of their method over the seeds."""
    card, picked = delivery.card, delivery.choice.picked
    origin = card.provenance
    parts = [
        f"{picked.name}, seed {origin['seed']}: {card.num_parameters:,} parameters, "
        f"{card.flops:,} FLOPs, {short_latency(picked.measure('latency_ms'))} ms"
    ]
    if origin["trained_on"] != ["train"]:
        parts.append(f"trained on {' and '.join(_SPLITS[s] for s in origin['trained_on'])}")
    split = "test" if card.accuracy["val"] is None else "val"
    if (accuracy := card.accuracy[split]) is not None:
        parts.append(f"{100 * accuracy:.1f} % on {_SPLITS[split]}")
    return "; ".join(parts)
