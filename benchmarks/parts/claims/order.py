"""The order in which the searches of all tasks run: the most decisive come first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from parts.claims.families import FAMILIES, Family
from parts.claims.gathering import followers
from parts.claims.kept import find_kept
from parts.claims.tasks import TaskRun


class Search(NamedTuple):
    """One search of a family on a task.

    Attributes:
        run: The task.
        family: What is searched.
        number: Which of its searches, from 0.
    """

    run: TaskRun
    family: Family
    number: int

    @property
    def title(self) -> str:
        """The title that is printed before it starts."""
        methods = self.family.label or ", ".join(self.family.methods)
        return f"{self.run.task.name}, {self.family.name}, search {self.number + 1}: {methods}"

    @property
    def is_kept(self) -> bool:
        """Whether it has been finished before."""
        return find_kept(*self) is not None


def planned(runs: Sequence[TaskRun], names: Sequence[str] = ()) -> list[Search]:
    """Return every search that is known before any has run, in order.

    A family runs on every task before the next family on any, and the first searches of all
    families run before any second one.

    Args:
        runs: The tasks.
        names: Families to take; all of them if empty.
    """
    return [
        Search(run, family, number)
        for number in range(max((run.num_searches for run in runs), default=0))
        for family in FAMILIES
        for run in runs
        if number < run.searches_of(family)
        if not names or family.name in names
    ]


def in_order(runs: Sequence[TaskRun], names: Sequence[str] = ()) -> Iterator[Search]:
    """Yield every search; those that use KR's winners come between first and second searches.

    Args:
        runs: The tasks.
        names: Families to take; all of them if empty.
    """
    searches = planned(runs, names)
    yield from (search for search in searches if search.number == 0)
    for run in runs:
        for family in followers(run):
            yield Search(run, family, 0)
    yield from (search for search in searches if search.number > 0)
