"""The gain from images without labels: two runs that differ in them, student by student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from krscale.report.result import Curve


def gains_of_unlabelled(curves: Sequence[Curve]) -> list[str]:
    """Return sentences on the gain of students from images without labels, one for each pair.

    Two runs form a pair if they have the same data set and the same teacher, and one has more
    images without labels. `differences` reports any other differences between them.

    Args:
        curves: Results of searches.
    """
    lines = []
    for first, second in combinations(curves, 2):
        less, more = sorted((first, second), key=lambda curve: curve.num_unlabelled)
        marks = [(c.data.get("fingerprint"), c.teacher.get("fingerprint")) for c in (less, more)]
        if less.num_unlabelled == more.num_unlabelled or marks[0] != marks[1] or not all(marks[0]):
            continue
        gains = "; ".join(f"{method} {listed}" for method, listed in _gains(less, more))
        if gains:
            lines.append(
                f"points on test that {more.name} ({more.num_unlabelled:,} images without labels) "
                f"has over {less.name} ({less.num_unlabelled:,}), whose epochs have fewer steps "
                f"with a teacher: {gains}"
            )
    return lines


def _gains(less: Curve, more: Curve) -> Iterator[tuple[str, str]]:
    """Yield each method of both runs, with the differences at the sizes of both."""
    sizes = {size.capacity: size for size in less.sizes}
    for method in more.methods:
        found = []
        for size in more.sizes:
            before = sizes[size.capacity].methods.get(method) if size.capacity in sizes else None
            now = size.methods.get(method)
            if before is None or now is None:
                continue
            if before.test_accuracy is not None and now.test_accuracy is not None:
                points = 100 * (now.test_accuracy - before.test_accuracy)
                found.append(f"{size.capacity} {points:+.1f}")
        if found:
            yield method, ", ".join(found)
