"""Determine what an experiment would build, without building it."""

from __future__ import annotations

from dataclasses import dataclass

from krscale.config import Experiment
from krscale.data import describe_data, describe_unlabelled, find_unlabelled, open_data
from krscale.data.augmentation.views import check_views, notes_on_views
from krscale.data.check import check_data
from krscale.data.dataset import dataset_path
from krscale.errors import UserError
from krscale.methods import parse_method
from krscale.setup.found_taps import describe_taps
from krscale.setup.methods import check_methods, describe_taught
from krscale.setup.networks import Networks
from krscale.setup.sizes import StudentSize, ladder_sizes
from krscale.setup.weights import check_weights
from krscale.training.optimisers import check_optimiser


@dataclass(frozen=True)
class ExperimentPlan:
    """What an experiment would build.

    Attributes:
        networks: Teacher and student, resolved for the data.
        sizes: Sizes of the ladder.
        notes: Notes on the data, such as skipped files, and on taps that were found.
        num_unlabelled: Number of images without labels, from which students of the teacher learn,
            too.
    """

    networks: Networks
    sizes: tuple[StudentSize, ...]
    notes: tuple[str, ...]
    num_unlabelled: int = 0

    @property
    def num_train(self) -> int:
        """Number of labelled images in the training split."""
        return self.networks.num_train

    def num_images(self, method: str) -> int:
        """Return the number of images that a method learns from."""
        needs_teacher = parse_method(method)[0].needs_teacher
        return self.num_train + (self.num_unlabelled if needs_teacher else 0)

    @property
    def num_taps(self) -> int:
        """Number of the teacher's taps, its classifier included."""
        return self.networks.teacher.num_taps

    @property
    def teacher_parameters(self) -> int:
        """Number of parameters of the teacher."""
        return self.networks.teacher.num_parameters

    @property
    def teacher_flops(self) -> int:
        """FLOPs of one forward pass of one image, 2 per multiply-add."""
        return self.networks.teacher.flops


def describe(experiment: Experiment) -> ExperimentPlan:
    """Resolve an experiment without writing to disk; networks are built on meta tensors.

    Images that were never prepared are all read.

    Raises:
        UserError: For everything that `tune` would refuse before training.
    """
    check_methods(experiment)
    check_optimiser(experiment.train)
    source = describe_data(experiment.data, experiment.cache_path)
    check_views(experiment.views, source.image_shape)
    networks = Networks.resolve(experiment, source)
    networks.check()
    num_unlabelled = describe_unlabelled(experiment.data, source.image_shape, experiment.cache_path)
    taught = describe_taught(experiment, source.num_train, num_unlabelled)
    notes = (
        *(_look(experiment) or source.notes),
        *((taught,) if taught else ()),
        *notes_on_views(experiment.views, experiment.data.source),
        *describe_taps(experiment, networks.experiment),
        *networks.describe_where(),
        *check_weights(networks),
    )
    return ExperimentPlan(networks, ladder_sizes(networks), notes, num_unlabelled)


def _look(experiment: Experiment) -> tuple[str, ...]:
    """Return a summary and notes on image files, unless they were prepared and thus read before."""
    data, path = experiment.data, dataset_path(experiment.data, experiment.cache_path)
    if path.is_dir():
        taught = find_unlabelled(data, open_data(path), experiment.cache_path)
        looked_at = taught is not None
    else:
        looked_at = not data.path and not data.unlabelled
    if looked_at:
        return ()
    found = check_data(data)
    if found.problems:
        raise UserError("\n".join(found.problems))
    return (found.summary(), *found.notes)
