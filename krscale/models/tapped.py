"""Any network with its taps: run it and read its logits and features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from krscale.errors import UserError
from krscale.knowledge.layouts import zeros
from krscale.knowledge.tap_order import check_depth_order
from krscale.knowledge.tap_search import FoundTaps, evaluating, find_taps
from krscale.knowledge.taps import (
    LAYOUTS_ATTRIBUTE,
    TapOutputs,
    check_taps,
    layouts_of,
    run_tapped,
    unwrapped,
)
from krscale.models.foreign import located
from krscale.models.outputs import (
    check_steady,
    find_logits,
    outputs_by_name,
    refuse_bounded,
    refuse_probabilities,
    refuse_programs,
    without_positions,
)


@dataclass(frozen=True)
class TappedNetwork:
    """A network, the module paths of its taps, and properties found by running it once.

    Attributes:
        network: The network as the caller uses it, with its wrappers.
        paths: Module paths of the taps in depth order, the classifier excluded.
        stage_ends: For each stage the 1-based number of its last tap.
        shapes: Shape of each tap's feature for one image, `[C, H, W]` if it is a map.
        num_classes: Number of classes `K`.
        stage_paths: Module paths of the blocks that end stages, at which positions are compared.
        stage_shapes: Shape of the output of each of these for one image.
        missing: Why it has no taps, if it does not need any.
    """

    network: nn.Module
    paths: tuple[str, ...]
    stage_ends: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_classes: int
    stage_paths: tuple[str, ...] = ()
    stage_shapes: tuple[tuple[int, ...], ...] = ()
    missing: str = ""

    @classmethod
    def of(
        cls,
        network: nn.Module,
        images: Tensor,
        paths: Sequence[str] = (),
        where: str = "network",
        *,
        optional: bool = False,
    ) -> TappedNetwork:
        """Use the given taps, the network's own (`tap_paths`), or those that `find_taps` finds.

        Args:
            network: The network; the modes of its modules are kept.
            images: `[B, C, H, W]` real images; if taps are to be found, at least two different
                ones.
            paths: Module paths in depth order.
            where: The role of the network, for error messages: `"teacher"`.
            optional: Whether the taps may be missing: if none is given, and none can be found or
                read, the result has no taps and `missing` gives the reason.

        Raises:
            UserError: If it does not run on the images or returns no finite logits; if taps do not
                exist or are out of order, none is found, or a layout cannot be determined.
        """
        check_network(network, where)
        paths = checked_paths(paths, where)
        inner = unwrapped(network)
        images = images[:2].to(device_of(inner))
        try:
            with evaluating(inner):
                logits = _logits_for(inner, images)
                _check_logits(inner, images, logits, where)
                try:
                    read = cls._read(network, images, paths, where)
                    check_depth_order(inner, read.paths, images, where)
                    return read
                except UserError as error:
                    if paths or not optional:
                        raise
                    return cls(network, (), (1,), (), logits.shape[1], missing=str(error))
        except UserError as error:
            raise _placed(error, where) from None

    @classmethod
    def by_shape(
        cls, network: nn.Module, image_shape: Sequence[int], paths: Sequence[str], where: str
    ) -> TappedNetwork:
        """Use taps that are already known, without any image.

        The network's output is not checked: for a black image it is NaN if the network divides each
        image by its own standard deviation.

        Args:
            network: The network; the modes of its modules are kept.
            image_shape: `(C, H, W)`.
            paths: Module paths in depth order; none if `of` found none.
            where: The role of the network, for error messages.

        Raises:
            UserError: If it does not run on images of this shape, or has no such taps.
        """
        inner = unwrapped(network)
        images = zeros(inner, image_shape)
        try:
            with evaluating(inner):
                logits = _logits_for(inner, images)
                if not paths and getattr(inner, "tap_paths", None) != ():
                    missing = "none was found when this was made"
                    return cls(network, (), (1,), (), logits.shape[1], missing=missing)
                return cls._read(network, images, tuple(paths), where)
        except UserError as error:
            raise _placed(error, where) from None

    @classmethod
    def _read(
        cls, network: nn.Module, images: Tensor, given: tuple[str, ...], where: str
    ) -> TappedNetwork:
        inner = unwrapped(network)
        paths, ends = _taps_of(inner, images, given, where)
        _settle(inner, paths, images, where)
        outputs = run_tapped(inner, paths, images)
        shapes = _shapes(outputs.features)
        ends = FoundTaps(paths, shapes).stage_ends if ends is None else ends
        stages = _stages_of(inner, paths, ends)
        _settle(inner, stages, images, where)
        read = run_tapped(inner, paths, images, stages)
        num_classes = logits_of(outputs.logits).shape[1]
        return cls(network, paths, ends, shapes, num_classes, stages, _shapes(read.stages))

    def __call__(self, images: Tensor) -> TapOutputs:
        """Run the network once in its current modes, and read all of its taps and stages."""
        return self.read(images, self.paths, self.stage_paths)

    def read(self, images: Tensor, taps: Sequence[str], stages: Sequence[str] = ()) -> TapOutputs:
        """Run the network once in its current modes, and read some of its blocks.

        Args:
            images: `[B, C, H, W]`.
            taps: Module paths of the taps to read.
            stages: Module paths of the stages to read.
        """
        outputs = run_tapped(self.network, taps, images, stages)
        logits = logits_of(outputs.logits)
        return TapOutputs(logits, outputs.features, outputs.stages, outputs.paths)

    def check_trainable(self, images: Tensor, where: str = "student") -> None:
        """Refuse to train a network whose outputs are not logits.

        Args:
            images: `[B, C, H, W]`.
            where: The role of the network, for the error message.
        """
        inner = unwrapped(self.network)
        with evaluating(inner):
            refuse_bounded(inner, logits_of, images[:2].to(device_of(inner)), where)

    def without_stages(self) -> TappedNetwork:
        """Return the same network, read only at its taps."""
        return replace(self, stage_paths=(), stage_shapes=())


def check_network(network: Any, where: str) -> None:
    """Refuse an object that is not a network, or a network whose weights have no values.

    Args:
        network: The object that the user gave.
        where: Its role, for error messages: `"teacher"`.

    Raises:
        UserError: If it is refused; the message says what it is.

    Example:
        >>> check_network("resnet", "teacher")
        Traceback (most recent call last):
        krscale.errors.UserError: teacher: a torch.nn.Module is needed, and this is str.
    """
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{where}: a torch.nn.Module is needed, and this is {type(network).__name__}."
        )
    refuse_programs(network, where)
    if device_of(network).type == "meta":  # single weights may be on meta: accelerate restores them
        raise UserError(f"{where}: its weights have no values: they are on the device 'meta'.")


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's first parameter, the CPU if it has none."""
    parameter = next(unwrapped(network).parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def logits_of(output: Any) -> Tensor:
    """Return the logits `[B, K]` within a network's output."""
    try:
        logits = without_positions(find_logits(output))
    except UserError:
        names = ", ".join(outputs_by_name(output) or {}) or "no tensor"
        raise UserError(
            f"the network returns {type(output).__name__} ({names}), and nothing tells which are "
            "the logits; wrap it in a module that returns these alone."
        ) from None
    if logits.ndim != 2:
        raise UserError(f"the network's logits are {list(logits.shape)}, and not [B, K].")
    return logits


def _placed(error: UserError, where: str) -> UserError:
    message = str(error)
    return UserError(message if message.startswith(where) else f"{where}: {message}")


def _logits_for(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of images; refuse a network that does not run on them or returns none."""
    try:
        output = network(images)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the network does not run on images of shape {list(images.shape[1:])}: "
            f"{located(error)}."
        ) from error
    return logits_of(output)


def _check_logits(network: nn.Module, images: Tensor, logits: Tensor, where: str) -> None:
    """Refuse outputs that are not valid logits of these images."""
    check_steady(lambda some: logits_of(network(some)), images, where)
    refuse_probabilities(logits, where)
    if not bool(logits.isfinite().all()):
        raise UserError(
            "the network gives NaN or infinity for the first images; its weights are broken, or "
            "what it computes of them."
        )


def _taps_of(
    network: nn.Module, images: Tensor, given: tuple[str, ...], where: str
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Return the taps, and the last tap of each stage if the network itself defines it."""
    own: tuple[str, ...] | None = getattr(network, "tap_paths", None)
    if own is None and not given:
        return find_taps(network, images, logits_of).paths, None
    chosen = given or tuple(own or ())
    check_taps(network, chosen, where)
    if own is not None and chosen == tuple(own):
        return chosen, tuple(getattr(network, "stage_ends", range(1, len(own) + 2)))
    return chosen, None


def _stages_of(network: nn.Module, paths: tuple[str, ...], ends: Sequence[int]) -> tuple[str, ...]:
    """Return the ends of stages that the network itself defines, or the last tap of each stage."""
    own: tuple[str, ...] | None = getattr(network, "stage_paths", None)
    if own is not None and paths == tuple(getattr(network, "tap_paths", ())):
        return tuple(own)
    last = (paths[min(end, len(paths)) - 1] for end in ends) if paths else ()
    return tuple(dict.fromkeys(last))


def _shapes(features: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(feature.shape[1:]) for feature in features)


def _settle(network: nn.Module, paths: tuple[str, ...], images: Tensor, where: str) -> None:
    """Determine the layouts of the taps and store them; keep known layouts of other taps."""
    found = layouts_of(network, paths, tuple(images.shape[1:]), where=where)
    setattr(network, LAYOUTS_ATTRIBUTE, {**getattr(network, LAYOUTS_ATTRIBUTE, {}), **found})


def checked_paths(paths: object, where: str) -> tuple[str, ...]:
    """Return module paths as a tuple; read them only once, since they may be an iterator.

    Raises:
        UserError: If it is not a list of paths, e.g. a string, whose characters would be read as
            paths.
    """
    if isinstance(paths, str):
        raise UserError(f"{where}: taps are a list of paths: [{paths!r}], not {paths!r}.")
    listed = tuple(paths) if isinstance(paths, Iterable) else None
    if listed is None or not all(isinstance(path, str) for path in listed):
        shown = paths if listed is None else list(listed)
        raise UserError(f"{where}: taps are a list of paths, such as ['layer1'], not {shown!r}.")
    return listed
