"""The state of a `KRLoss`: what it was made for, and the refusal of one that is not whole."""

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
"""Tensors that a message names, of many that are wrong."""


class MadeFor(Section):
    """What a loss was made for, kept in its state as the extra state of a module."""

    teacher_taps: tuple[str, ...]
    """Module paths in the teacher, in depth order."""
    student_taps: tuple[str, ...]
    """Module paths in the student, in depth order."""
    image_shape: tuple[Side, Side, Side]
    """`(C, H, W)` of the images that probes and heads were fitted to."""
    settings: dict[str, Any]
    """All of KR's."""

    @classmethod
    def of(cls, state: object) -> Self:
        """Read what a whole state was made for.

        Args:
            state: What `KRLoss.state_dict` returned.

        Raises:
            UserError: If it is of something else, or says this in another form.
        """
        made = state.get("_extra_state") if isinstance(state, Mapping) else None
        if not isinstance(made, Mapping) or not set(MADE).issubset(made):
            raise UserError("this is not the state of a KRLoss: it does not say what it is of.")
        return cls.from_keywords(with_former({name: made[name] for name in MADE}), _WHERE)

    def knowledge(self, state: Mapping[str, Any], teacher: TappedNetwork) -> TeacherKnowledge:
        """Return probes for a teacher, not loaded yet, and what each tap is worth by the state.

        Args:
            state: Of which this was read.
            teacher: Read at `teacher_taps`.

        Raises:
            UserError: If the state does not say what each tap is worth.
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
    """Return what a loss was made for, settings that it lacks as KR was when it was made."""
    settings = made.get("settings")
    if not isinstance(settings, Mapping):
        return dict(made)
    return {**made, "settings": {**FORMER_OF_KR, **settings}}


def check_whole(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a state that has not the tensors of a loss.

    Args:
        state: Of a file.
        own: Of the loss that was built for it.

    Raises:
        UserError: Naming what is missing, what is of another shape and what does not belong there.
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
    """Refuse knowledge of a teacher that holds NaN or infinity.

    Heads may: they are the student's, whose training may have diverged.

    Raises:
        UserError: Naming the tensor.
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
