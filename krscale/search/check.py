"""What a search is refused for before the teacher trains; the same for `tune` and `--dry-run`."""

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
    """What a search is made of, nothing of which is refused.

    Attributes:
        space: What is varied.
        sizes: Those of the ladder that no limit forbids.
        size_resolver: How large students are.
        planned: Trials of each study, by method.
    """

    space: SearchSpace
    sizes: tuple[StudentSize, ...]
    size_resolver: StudentSizeResolver
    planned: Mapping[str, int]

    @property
    def notes(self) -> list[str]:
        """What a user should know of the space, a line each."""
        return notes_on_space(self.space, self.planned)


def check_search(
    networks: Networks, sizes: Iterable[StudentSize], say: Callable[[str], None]
) -> CheckedSearch:
    """Check objectives, limits, space and sampler of a search.

    Args:
        networks: Of the experiment, resolved for its data.
        sizes: Of the ladder.
        say: Takes a line for the user.

    Raises:
        UserError: If no size is left, or the space cannot be searched, or not with this sampler.
    """
    config, size_resolver = networks.experiment.search, StudentSizeResolver(networks)
    check_objectives(config.objectives, networks.num_classes)
    space = fitting_space(networks)
    check_sampler(config, space)
    # Last, as a limit on latency takes seconds to be measured.
    allowed = size_resolver.allowed(sizes, say)
    planned = {method: num_planned(config, space, method) for method in config.methods}
    return CheckedSearch(space, allowed, size_resolver, planned)
