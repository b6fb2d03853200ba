"""Load a teacher from a file or train it once, fit its probes and store its facts.

Everything is stored in `cache/teachers/<fingerprint>/`, where the next experiment with the same
data and the same settings finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krscale.config import Experiment, fingerprint
from krscale.data import Dataset
from krscale.digests import check_file
from krscale.errors import DamagedFileError, UserError
from krscale.files import has_checksum, new_folder, sha256, write_json
from krscale.knowledge.parameters import layers_by_tap, weight_histogram
from krscale.knowledge.probes import Probes, information_gain
from krscale.knowledge.taps import TappedModel
from krscale.leftovers import sweep_leftovers, unfinished_folder
from krscale.locking import locked
from krscale.metrics import ACCURACY
from krscale.models.capacity import count_flops, num_parameters
from krscale.models.preprocessing import DEFAULT, input_shape
from krscale.models.probing import check_built
from krscale.parallel import Workers
from krscale.setup.inputs import is_foreign
from krscale.setup.kept_probes import (
    gains_file,
    load_probes,
    make_probes,
    probe_grid,
    read_gains,
    save_probes,
)
from krscale.setup.network_builder import build_teacher, resolve_taps
from krscale.setup.networks import teacher_preprocessing
from krscale.setup.tap_reading import fit_probes, read_logits
from krscale.setup.teacher_code import CODE_FILE, Code, kept_folder, read_code
from krscale.setup.teacher_facts import FACTS_FILE, TeacherFacts, read_facts, rebuild_teacher
from krscale.setup.teacher_quality import find_faults, require_fit
from krscale.setup.teacher_training import train_teacher
from krscale.setup.weights import from_file, load_teacher_weights, weights_identity
from krscale.storage.folders import present, publish
from krscale.storage.trial_files import remove_all
from krscale.training.checkpoint import load_weights, save_weights
from krscale.training.loop import evaluate

WEIGHTS_FILE = "teacher.safetensors"
TrainOnWorkers = Callable[[Path, nn.Module], None]
"""Trains a teacher on several workers, in place; the folder holds its intermediate state."""
FORMAT = 1  # raise it whenever teachers or probes stored by older versions must not be reused


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher in memory, in eval mode and without gradients."""

    facts: TeacherFacts
    tapped: TappedModel
    probes: Probes


def prepare_teacher(
    experiment: Experiment,
    dataset: Dataset,
    device: torch.device,
    report: Callable[[int, int], None],
    on_workers: TrainOnWorkers | None = None,
) -> tuple[TeacherFacts, Path]:
    """Find the teacher in the cache, or load / train it, fit its probes and store it.

    Args:
        experiment: The experiment, which names teacher and data.
        dataset: The prepared data.
        device: Device for training.
        report: Called with (epochs done, epochs planned) during training.
        on_workers: Trains the teacher if `teacher.num_workers` is 2 or more.

    Returns:
        The facts, and the folder that `open_teacher` reads.

    Raises:
        UserError: If it is not fit to teach (`teacher.allow_poor`), or cannot be made.
    """
    folder, code = _folder(experiment, dataset)
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(folder.parent, _lock_of)
    with locked(_lock_of(folder), folder.is_dir):
        if not present(folder):
            with new_folder(folder) as temporary:
                train: Callable[[nn.Module], None] = partial(
                    train_teacher, experiment, dataset, device, report
                )
                if experiment.teacher.num_workers > 1 and not is_foreign(experiment.teacher):
                    if on_workers is None:
                        raise _no_workers(experiment)
                    train = partial(on_workers, unfinished_folder(folder))
                _make_teacher(experiment, dataset, device, folder.name, temporary, train)
                if code.key():
                    write_json(temporary / CODE_FILE, asdict(code))
        facts = read_facts(folder)
        if facts.faults is None:
            facts = _measured(experiment, dataset, device, folder)
        require_fit(experiment, facts.faults or (), facts.val_accuracy, facts.information_gain)
        if (grid := probe_grid(experiment)) > 1 and not gains_file(folder, grid).is_file():
            tapped = _open_network(experiment, dataset, folder, facts).to(device)
            make_probes(tapped, dataset, device, folder, grid)
        is_own = publish(folder)
        if (unfinished := unfinished_folder(folder)).is_dir():
            remove_all(unfinished)
    if not is_own:  # another machine has sent one meanwhile; its code may be another
        return prepare_teacher(experiment, dataset, device, report, on_workers)
    return _on_grid(experiment, facts, folder), folder


def _no_workers(experiment: Experiment) -> UserError:
    return UserError(
        f"teacher.num_workers = {experiment.teacher.num_workers}: this trains in one process. "
        "`krscale teach` trains the teacher on several workers; or set it to 1."
    )


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def find_teacher(experiment: Experiment, dataset: Dataset) -> tuple[TeacherFacts, Path]:
    """Return the facts and folder of a teacher that an earlier `prepare_teacher` stored.

    Raises:
        UserError: If there is none.
    """
    folder, _ = _folder(experiment, dataset)
    if not present(folder):
        raise UserError(f"{folder}: this teacher was never prepared; `krscale teach` does so.")
    return _on_grid(experiment, read_facts(folder), folder), folder


def open_teacher(experiment: Experiment, dataset: Dataset, folder: Path) -> LoadedTeacher:
    """Load a prepared teacher and its probes, frozen.

    Args:
        experiment: The experiment, which names the teacher and the grid of the probes.
        dataset: Its data.
        folder: As `prepare_teacher` returned it.
    """
    facts = _on_grid(experiment, read_facts(folder), folder)
    tapped = _open_network(experiment, dataset, folder, facts)
    num_classes, grid = len(dataset.classes), probe_grid(experiment)
    return LoadedTeacher(
        facts, tapped, load_probes(folder, num_classes, grid, rebuild_teacher(folder))
    )


def _open_network(
    experiment: Experiment, dataset: Dataset, folder: Path, facts: TeacherFacts
) -> TappedModel:
    """Load a stored teacher's network, frozen."""
    model = build_teacher(experiment, dataset, fresh=True)
    check_file(folder / WEIGHTS_FILE, rebuild_teacher(folder))
    load_weights(folder / WEIGHTS_FILE, model, where=str(folder))
    return TappedModel(model, facts.taps).eval().requires_grad_(False)


def _on_grid(experiment: Experiment, facts: TeacherFacts, folder: Path) -> TeacherFacts:
    """Return facts with the gains of the probes that the experiment uses."""
    if (grid := probe_grid(experiment)) == 1:
        return facts
    gain = read_gains(folder, grid, len(facts.taps) + 1, rebuild_teacher(folder))
    return replace(facts, information_gain=gain)


def foreign_teacher(experiment: Experiment, dataset: Dataset, device: torch.device) -> nn.Module:
    """Return a teacher that comes trained, in eval mode on the device.

    Raises:
        UserError: If the experiment trains its teacher, the weights do not fit, or its outputs are
            not valid logits.
    """
    if not is_foreign(experiment.teacher):
        raise UserError(
            "teacher.weights: empty, so the teacher is trained here, with the preprocessing that "
            "it teaches with; there is nothing to find out. Name the weights of a trained one."
        )
    model = build_teacher(experiment, dataset, fresh=from_file(experiment.teacher))
    load_teacher_weights(experiment, model)
    model.to(device).eval().requires_grad_(False)
    check_built(model, dataset.image_shape, "teacher")
    return model


def _folder(experiment: Experiment, dataset: Dataset) -> tuple[Path, Code]:
    """Return the folder where an experiment's teacher is or will be stored, and its code."""
    teachers, content = experiment.cache_path / "teachers", _content(experiment, dataset)
    code = read_code(experiment, dataset)

    def coded(number: int) -> Path:
        key = code.key() | ({"number": number} if number else {})
        return teachers / fingerprint(content | key)

    plain = teachers / fingerprint(content)
    fits = partial(_fits, experiment, dataset)
    return kept_folder(plain, coded, code, fits), code


def _fits(experiment: Experiment, dataset: Dataset, folder: Path) -> bool:
    """Whether a stored teacher still has its accuracy with the current code."""
    try:
        facts = read_facts(folder)
        model = _open_network(experiment, dataset, folder, facts).model
    except DamagedFileError:
        raise
    except UserError:  # the weights do not fit the network
        return False
    val = dataset.split("val")
    found = evaluate(model, dataset, val, Workers.alone(torch.device("cpu")))[ACCURACY.name]
    # A single prediction may change on another processor.
    return abs(found - facts.val_accuracy) * len(val) < 1.5


def _content(experiment: Experiment, dataset: Dataset) -> dict[str, Any]:
    """Return what a stored teacher depends on, except the code of its network."""
    content = experiment.teacher.identity() | {"format": FORMAT}
    preprocessing = teacher_preprocessing(experiment, dataset)
    if preprocessing != DEFAULT:
        content["preprocessing"] = asdict(preprocessing)
    content["data"] = dataset.fingerprint
    if weights := weights_identity(experiment, dataset):
        content["weights"] = weights
    if not experiment.teacher.weights:
        content["views"] = experiment.views.identity()
        content["global_batch_size"] = experiment.train.global_batch_size
    return content


def _make_teacher(
    experiment: Experiment,
    dataset: Dataset,
    device: torch.device,
    key: str,
    folder: Path,
    train: Callable[[nn.Module], None],
) -> None:
    torch.manual_seed(experiment.teacher.seed)
    model = build_teacher(experiment, dataset, fresh=from_file(experiment.teacher))
    taps, stage_ends = resolve_taps(model, experiment.teacher.taps, "teacher.taps")
    if is_foreign(experiment.teacher):
        load_teacher_weights(experiment, model)
        model.to(device)
        check_built(model, dataset.image_shape, "teacher")
    else:
        train(model)
        model.to(device)
    tapped = TappedModel(model, taps).eval().requires_grad_(False)
    probes = fit_probes(tapped, dataset, device)
    val = dataset.split("val")
    val_logits = read_logits(tapped, probes, dataset, "val", device)
    gain = information_gain(val_logits, torch.tensor(val.labels, device=device))
    layers = layers_by_tap(model, taps)
    facts = TeacherFacts(
        fingerprint=key,
        data_fingerprint=dataset.fingerprint,
        model=experiment.teacher.model,
        width=experiment.teacher.width,
        num_parameters=num_parameters(model),
        flops=count_flops(model, input_shape(model, dataset.image_shape)),
        val_accuracy=evaluate(model, dataset, val, Workers.alone(device))[ACCURACY.name],
        taps=taps,
        stage_ends=stage_ends,
        information_gain=tuple(gain.tolist()),
        layer_sizes=tuple(_num_weights(group) for group in layers),
        histograms=tuple(tuple(weight_histogram(group).tolist()) for group in layers),
        faults=find_faults(experiment, dataset, model, val_logits, gain.tolist()),
    )
    save_weights(folder / WEIGHTS_FILE, model.cpu())
    save_probes(folder, probes)
    # Training again, on another machine or a GPU, gives other outputs than those in existing
    # stores.
    made = {"key": key, "weights": sha256(folder / WEIGHTS_FILE)}
    write_json(folder / FACTS_FILE, asdict(replace(facts, fingerprint=fingerprint(made))))


def _measured(
    experiment: Experiment, dataset: Dataset, device: torch.device, folder: Path
) -> TeacherFacts:
    """Find the faults of a teacher that an older version stored without them, and add them."""
    facts = read_facts(folder)
    tapped = _open_network(experiment, dataset, folder, facts).to(device)
    num_classes, rebuild = len(dataset.classes), rebuild_teacher(folder)
    probes = load_probes(folder, num_classes, 1, rebuild).to(device)
    val_logits = read_logits(tapped, probes, dataset, "val", device)
    faults = find_faults(experiment, dataset, tapped.model, val_logits, facts.information_gain)
    facts = replace(facts, faults=faults)
    file = folder / FACTS_FILE
    write_json(file, asdict(facts), checksum=has_checksum(file))
    return facts


def _num_weights(layers: Iterable[nn.Module]) -> float:
    named = (pair for layer in layers for pair in layer.named_parameters())
    return float(sum(parameter.numel() for name, parameter in named if name == "weight"))
