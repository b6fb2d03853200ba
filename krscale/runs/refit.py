"""Training a chosen student once more, on train and validation together."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock

from krscale.config import Experiment, SearchConfig
from krscale.data import Dataset, prepare_unlabelled
from krscale.data.joining import join_train_and_val
from krscale.parallel import Workers
from krscale.runs.binding import bind_weights
from krscale.runs.weights import check_weights, rebuild_refit
from krscale.setup.build import Assets, build_training, open_features
from krscale.setup.networks import Networks
from krscale.setup.prepare import Reporter, pick_device, prepare_features
from krscale.setup.recipe import StoreRecipe
from krscale.setup.teacher import prepare_teacher
from krscale.store import KnowledgeStore, prepare_store
from krscale.training.checkpoint import save_weights
from krscale.training.loop import fit_or_continue

WEIGHTS_FILE = "student.safetensors"
CHECKPOINT = "checkpoint"


def refit(
    experiment: Experiment, dataset: Dataset, width: int, run_path: Path, reporter: Reporter
) -> Path:
    """Train a student on train and validation, or find or continue an earlier such training.

    Images without labels are used as in the search, except copies of validation images.

    The teacher is that of the search: it was trained on train alone, and its knowledge of the
    validation images is computed now. No images are left to compare epochs on, so their number is
    that of the search.

    Args:
        experiment: All settings of this one training.
        dataset: The data of the search.
        width: The student's capacity dial.
        run_path: Folder of the run; trainings are kept in its `refit`.
        reporter: Receives the progress.

    Returns:
        The file of the weights.
    """
    folder = _folder_of(experiment, run_path)
    weights, checkpoint = folder / WEIGHTS_FILE, folder / CHECKPOINT
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not weights.exists():
            assets = _assets(experiment, dataset, run_path, reporter)
            workers = Workers.alone(pick_device(experiment.train.device))
            training = build_training(experiment, assets, width, workers)
            reporter.phase("train")
            num_epochs = experiment.train.num_epochs
            fit_or_continue(
                training, checkpoint, lambda metrics: reporter.advance(training.epoch, num_epochs)
            )
            save_weights(weights, training.student)
        shutil.rmtree(checkpoint, ignore_errors=True)
    check_weights(weights, rebuild_refit(folder))
    return weights


def _folder_of(experiment: Experiment, run_path: Path) -> Path:
    """Return the folder of a training, which depends on its own settings, not on the search's.

    A training that an older krscale began is under the fingerprint of the whole experiment.
    """
    older = run_path / "refit" / experiment.fingerprint()
    alone = SearchConfig(methods=(experiment.distill.method,))
    own = experiment.model_copy(update={"search": alone})
    return older if older.is_dir() else run_path / "refit" / own.fingerprint()


def _assets(experiment: Experiment, dataset: Dataset, run_path: Path, reporter: Reporter) -> Assets:
    device = pick_device(experiment.train.device)
    reporter.phase("teacher")
    facts, teacher_path = prepare_teacher(experiment, dataset, device, reporter.advance)
    bind_weights(run_path, teacher_path)  # refuses another teacher than that of the run
    joined = join_train_and_val(dataset, experiment.cache_path)
    taught = prepare_unlabelled(experiment.data, joined, experiment.cache_path)
    reporter.phase("store")
    networks = Networks.resolve(experiment, joined)
    recipe = StoreRecipe(networks, taught, facts, teacher_path)
    store_path = prepare_store(recipe.spec(device), reporter.advance)
    methods = (experiment.distill.method,)
    features = open_features(prepare_features(recipe, methods, device, reporter))
    return Assets(joined, None, KnowledgeStore.open(store_path), facts, features, taught)
