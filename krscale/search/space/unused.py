"""Fields of a space that no trial would use, because of the value of another field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution

from krscale.config import used_with
from krscale.errors import UserError
from krscale.search.space.conditions import Condition, allowed_values
from krscale.search.space.fields import own_value

Values = tuple[str, tuple[Any, ...]]
"""Path of a field, and values of it."""
_ONE_GROUP: Values = ("distill.granularity", (1, "network"))
_NO_WEIGHT: Values = ("distill.auxiliary_weight", (0.0,))
_NO_POSITIONS: Values = ("distill.where_weight", (0.0,))
IDLE_WITH: Mapping[str, tuple[tuple[Values, ...], ...]] = {
    "distill.alignment": ((_ONE_GROUP,),),
    "distill.auxiliary_interval": ((_ONE_GROUP, _NO_POSITIONS), (_NO_WEIGHT, _NO_POSITIONS)),
    "distill.auxiliary_schedule": ((_ONE_GROUP,), (_NO_WEIGHT,)),
    "distill.auxiliary_weight": ((_ONE_GROUP,),),
    "distill.head_grid": ((_ONE_GROUP,),),
    "distill.reviewkd_warmup": ((("distill.reviewkd_weight", (0.0,)),),),
    "distill.rkd_angle_weight": ((("distill.rkd_weight", (0.0,)),),),
    "distill.rkd_distance_weight": ((("distill.rkd_weight", (0.0,)),),),
    "distill.sparsity_schedule": ((("distill.sparsity", (0.0,)),),),
    "distill.where_schedule": ((_NO_POSITIONS,),),
}
"""The ways in which a field is not used: all of a way's fields have such values. `UsedWith` covers
fields that depend on one with few values; the fields here have many, only some of which make others
unused."""


@dataclass(frozen=True)
class Surroundings:
    """The context of a field: the other fields of its method, and the experiment's own values.

    Attributes:
        distributions: Distributions of all fields that are searched.
        conditions: Conditions under which each field is searched.
        content: The experiment, as plain tables.
    """

    distributions: Mapping[str, BaseDistribution]
    conditions: Mapping[str, Sequence[Condition]]
    content: Mapping[str, Any]

    def values_beside(self, dotted: str, other: str) -> list[Any]:
        """Return values of the other field in trials that search this one: choices, or ends."""
        own, found = own_value(self.content, other), []
        needed = [c for c in self.conditions[dotted] if c.path == other]
        if other in self.distributions:
            found = allowed_values(needed, self.distributions[other])
        stays = other not in self.distributions or (self.conditions[other] and not needed)
        return [*found, *([own] if stays else [])]

    def may_be(self, dotted: str, other: str, values: Sequence[Any]) -> bool:
        """Return whether the other field may have one of these in trials that search this one."""
        if any(value in values for value in self.values_beside(dotted, other)):
            return True
        if other not in self.distributions:
            return False
        needed = [c for c in self.conditions[dotted] if c.path == other]
        among = Condition(other, choices=tuple(values))
        return bool(allowed_values([among, *needed], self.distributions[other]))


def check_used(dotted: str, around: Surroundings, where: str) -> None:
    """Refuse a field that no trial would use.

    Args:
        dotted: Path of the field.
        around: The context of the field.
        where: File and field, for the error.

    Raises:
        UserError: With the name of the other field and its required value.
    """
    section = dotted.rpartition(".")[0]
    needed = used_with().get(dotted, ())
    if needed and not any(
        around.may_be(dotted, f"{section}.{one.field}", one.values) for one in needed
    ):
        other, wanted = f"{section}.{needed[0].field}", needed[0].values[0]
        allowed = " or ".join(f"{section}.{one}" for one in needed)
        raise UserError(
            f"{where}: it is used with {allowed} alone, and {_found(dotted, other, around)}: set "
            f"it (--set {other}={wanted}), or search {other} with such a value as well."
        )
    for way in IDLE_WITH.get(dotted, ()):
        if not all(v in idle for other, idle in way for v in around.values_beside(dotted, other)):
            continue
        idle_with = " and ".join(f"{other} = {' or '.join(map(repr, v))}" for other, v in way)
        found = " and ".join(_found(dotted, other, around) for other, _ in way)
        others = " or ".join(other for other, _ in way)
        raise UserError(
            f"{where}: it is not used with {idle_with}, and {found}: leave it out, set {others} to "
            f"another value, or search {others} with others as well."
        )


def _found(dotted: str, other: str, around: Surroundings) -> str:
    values = " or ".join(map(repr, dict.fromkeys(around.values_beside(dotted, other))))
    searched = other in around.distributions
    return f"{other} is {values} {'where this is searched' if searched else 'in this experiment'}"
