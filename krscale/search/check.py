"""Check a search before the teacher trains; used by `tune` and by `--dry-run`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from krscale.config import Experiment
from krscale.errors import UserError
from krscale.links import refuse_links
from krscale.runs.aside import being_put_aside
from krscale.search.space.check import fitting_space
from krscale.search.space.notes import notes_on_space
from krscale.search.space.space import SearchSpace
from krscale.search.studies.objectives import check_objectives
from krscale.search.studies.samplers import check_sampler, num_planned
from krscale.search.studies.size_resolver import LATENCY_FILE, StudentSizeResolver
from krscale.setup.networks import Networks
from krscale.setup.sizes import StudentSize
from krscale.storage.objects import check_scheme
from krscale.storage.run_mirror import newest
from krscale.tracking.address import resolve_address


@dataclass(frozen=True)
class CheckedSearch:
    """The parts of a search that has passed all checks.

    Attributes:
        space: The search space.
        sizes: Sizes of the ladder that no limit forbids.
        size_resolver: Computes how large students are.
        planned: Number of trials of each study, by method.
    """

    space: SearchSpace
    sizes: tuple[StudentSize, ...]
    size_resolver: StudentSizeResolver
    planned: Mapping[str, int]

    @property
    def notes(self) -> list[str]:
        """Notes on the space for the user, one line each."""
        return notes_on_space(self.space, self.planned)


def check_settings(experiment: Experiment) -> None:
    """Check what can be checked before data is read, without a connection to anything.

    Raises:
        UserError: If the storage's URI or MLflow's could never work, or if the workers of a trial
            would share a GPU.
    """
    check_scheme(experiment.storage_path)
    resolve_address(experiment.tracking.uri, experiment.run_path.absolute().parent)
    refuse_shared_gpus(experiment)


@contextmanager
def known_latencies(experiment: Experiment) -> Iterator[Path | None]:
    """Yield the file of the latencies that a run has measured; None if no limit is set on them.

    Raises:
        UserError: If the run folder holds links.
        StorageError: If the storage is a URI and cannot be read.
    """
    folder = experiment.run_path
    if not experiment.search.max_latency_ms:
        yield None
        return
    refuse_links(folder)
    if being_put_aside(folder):  # they are of other data
        yield None
        return
    with newest(folder, LATENCY_FILE) as path:
        yield path


def refuse_shared_gpus(experiment: Experiment) -> None:
    """Refuse workers of one trial that would share a GPU, over which they cannot communicate.

    Raises:
        UserError: With the allowed values.
    """
    gpus, train = experiment.search.gpus_per_trial, experiment.train
    if train.most_workers == 1 or gpus == "auto":
        return
    if 0.0 < gpus < 1.0 or (gpus == 0.0 and train.device == "cuda"):
        raise UserError(
            f"search.gpus_per_trial: each worker of a trial needs a GPU of its own, with "
            f"{train.most_workers} workers a trial (train.num_workers, train.max_workers) and "
            f"train.device = {train.device!r} (got {gpus:g}). Allowed: 'auto', and 1, 2, ... "
            f"for each worker; with train.device = 'auto' or 'cpu' also 0, which trains on CPUs."
        )


def check_search(
    networks: Networks,
    sizes: Iterable[StudentSize],
    say: Callable[[str], None],
    latencies: Path | None = None,
) -> CheckedSearch:
    """Check objectives, limits, space and sampler of a search.

    Args:
        networks: Networks of the experiment, resolved for its data.
        sizes: Sizes of the ladder.
        say: Prints a line for the user.
        latencies: File of the latencies that the run has measured, if any: another measurement
            might leave out a size whose students are trained.

    Raises:
        UserError: If no size is left, or if the space cannot be searched at all or by this sampler.
    """
    config, size_resolver = networks.experiment.search, StudentSizeResolver(networks)
    if latencies is not None:
        size_resolver.recall_latencies(latencies)
    check_objectives(config.objectives, networks.num_classes)
    space = fitting_space(networks)
    check_sampler(config, space)
    # Checked last, because measuring latency for a limit takes seconds.
    allowed = size_resolver.allowed(sizes, say)
    planned = {method: num_planned(config, space, method) for method in config.methods}
    return CheckedSearch(space, allowed, size_resolver, planned)
