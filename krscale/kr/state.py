"""The state of a `KRLoss`: what the loss was made for, and checks that the state is complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from krscale.config.fields import Section, Side
from krscale.config.methods import KRSettings
from krscale.config.older import FORMER_OF_KR
from krscale.errors import UserError
from krscale.knowledge.measuring import TeacherKnowledge
from krscale.knowledge.probes import Probes, read_tap
from krscale.models.tapped import TappedNetwork

_OF_TEACHER = ("probes.", "information_gain", "tap_accuracy")
_NAMED = 3
"""How many wrong tensors an error message names."""


class MadeFor(Section):
    """What a loss was made for, kept in its state as the extra state of a module."""

    teacher_taps: tuple[str, ...]
    """Module paths in the teacher, in depth order."""
    student_taps: tuple[str, ...]
    """Module paths in the student, in depth order."""
    image_shape: tuple[Side, Side, Side]
    """`(C, H, W)` of the images that probes and heads were fitted to."""
    settings: dict[str, Any]
    """All of KR's settings."""

    @classmethod
    def of(cls, state: object) -> Self:
        """Read what the loss was made for from its complete state.

        Args:
            state: What `KRLoss.state_dict` returned.

        Raises:
            UserError: If it is not the state of a KRLoss, or has another form.
        """
        made = state.get("_extra_state") if isinstance(state, Mapping) else None
        if not isinstance(made, Mapping) or not set(MADE).issubset(made):
            raise UserError("this is not the state of a KRLoss: it does not say what it is of.")
        return cls.from_keywords(with_former({name: made[name] for name in MADE}), _WHERE)

    def knowledge(self, state: Mapping[str, Any], teacher: TappedNetwork) -> TeacherKnowledge:
        """Return unloaded probes for a teacher, and the measures of its taps from the state.

        Args:
            state: The state that this object was read from.
            teacher: The teacher, read at `teacher_taps`.

        Raises:
            UserError: If the state lacks a measure of each tap.
        """
        grid = KRSettings.from_keywords(self.settings, _WHERE).probe_grid
        features = (torch.empty(1, *shape, device="meta") for shape in teacher.shapes)
        sizes = [read_tap(feature, grid).shape[1] for feature in features]
        gain, accuracy = (
            _vector(state, name, len(sizes) + 1) for name in ("information_gain", "tap_accuracy")
        )
        return TeacherKnowledge(Probes(sizes, teacher.num_classes, grid), gain, accuracy, 0)


MADE = tuple(MadeFor.model_fields)
_WHERE = "the state of a KRLoss"


def with_former(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a loss was made for; missing settings get the values KR used at that time."""
    settings = made.get("settings")
    if not isinstance(settings, Mapping):
        return dict(made)
    return {**made, "settings": {**FORMER_OF_KR, **settings}}


def check_whole(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a state whose tensors are not those of the loss.

    Args:
        state: The state from a file.
        own: The state of the loss that was built for it.

    Raises:
        UserError: With the tensors that are missing, have another shape or do not belong there.
    """
    shapes = {name: value.shape for name, value in own.items() if isinstance(value, Tensor)}
    wrong = [f"{name} is missing" for name in shapes if name not in state]
    for name, shape in shapes.items():
        given = getattr(state.get(name), "shape", None)
        if name in state and given != shape:
            found = "no tensor" if given is None else f"of shape {list(given)}"
            wrong.append(f"{name} is {found}, not of shape {list(shape)}")
    wrong += [f"{name} does not belong there" for name in state if name not in own]
    if wrong:
        more = f" (and {len(wrong) - _NAMED} more)" if len(wrong) > _NAMED else ""
        raise UserError(f"{_WHERE} is not whole: {'; '.join(wrong[:_NAMED])}{more}.")


def check_finite(state: Mapping[str, Any]) -> None:
    """Refuse knowledge of the teacher that contains NaN or infinity.

    Heads may contain them: they belong to the student, whose training may have diverged.

    Raises:
        UserError: With the name of the tensor.
    """
    for name, value in state.items():
        if name.startswith(_OF_TEACHER) and not bool(torch.isfinite(value).all()):
            raise UserError(f"{_WHERE}: {name} holds NaN or infinity, so it teaches nothing.")


def _vector(state: Mapping[str, Any], name: str, length: int) -> Tensor:
    value = state.get(name)
    if not isinstance(value, Tensor) or value.shape != (length,):
        what = "missing" if value is None else f"not one number for each of {length} taps"
        raise UserError(f"{_WHERE} is not whole: {name} is {what}.")
    return value.clone()
