"""Check a search before the teacher trains; used by `tune` and by `--dry-run`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from krscale.search.space.check import fitting_space
from krscale.search.space.notes import notes_on_space
from krscale.search.space.space import SearchSpace
from krscale.search.studies.objectives import check_objectives
from krscale.search.studies.samplers import check_sampler, num_planned
from krscale.search.studies.size_resolver import StudentSizeResolver
from krscale.setup.networks import Networks
from krscale.setup.sizes import StudentSize


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


def check_search(
    networks: Networks, sizes: Iterable[StudentSize], say: Callable[[str], None]
) -> CheckedSearch:
    """Check objectives, limits, space and sampler of a search.

    Args:
        networks: Networks of the experiment, resolved for its data.
        sizes: Sizes of the ladder.
        say: Prints a line for the user.

    Raises:
        UserError: If no size is left, or if the space cannot be searched at all or by this sampler.
    """
    config, size_resolver = networks.experiment.search, StudentSizeResolver(networks)
    check_objectives(config.objectives, networks.num_classes)
    space = fitting_space(networks)
    check_sampler(config, space)
    # Checked last, because measuring latency for a limit takes seconds.
    allowed = size_resolver.allowed(sizes, say)
    planned = {method: num_planned(config, space, method) for method in config.methods}
    return CheckedSearch(space, allowed, size_resolver, planned)
