"""A network of anybody's with its taps: how it is run, what it returns, how its features lie."""

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
    """A network, the module paths of its taps, and what follows from running it once.

    Attributes:
        network: As its owner uses it; wrappers and all.
        paths: Module paths of the taps in depth order, the classifier excluded.
        stage_ends: For each stage the 1-based number of its last tap.
        shapes: Shape of each tap's feature for one image, `[C, H, W]` where it is a map.
        num_classes: `K`.
        stage_paths: Module paths of the blocks at which stages end, where positions are compared.
        stage_shapes: Shape of what each of these gives for one image.
        missing: Why it has no taps, where it may do without.
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
        """Take the given taps, the network's own (`tap_paths`), or those that `find_taps` finds.

        Args:
            network: Left in the modes that its modules have.
            images: `[B, C, H, W]` real images, at least two that differ where taps are to be found.
            paths: Module paths in depth order.
            where: What the network is, for the message of an error: `"teacher"`.
            optional: Whether nothing must be read at its taps: where none is given, and none can be
                found or read, it has none, and `missing` says why.

        Raises:
            UserError: If it does not run on the images or gives no finite logits; if taps do not
                exist or are out of order, none is found, or a layout cannot be told.
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
        """Take taps that are known already, without any image.

        What the network gives is not judged: of a black image it is NaN where a network divides
        each image by its own deviation.

        Args:
            network: Left in the modes that its modules have.
            image_shape: `(C, H, W)`.
            paths: Module paths in depth order; none where `of` left them out.
            where: What the network is, for the message of an error.

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
        """Run the network once, in whatever modes it is, and read all of its taps and stages."""
        return self.read(images, self.paths, self.stage_paths)

    def read(self, images: Tensor, taps: Sequence[str], stages: Sequence[str] = ()) -> TapOutputs:
        """Run the network once, in whatever modes it is, and read some of its blocks.

        Args:
            images: `[B, C, H, W]`.
            taps: Module paths of those among its taps.
            stages: Of those among its stages.
        """
        outputs = run_tapped(self.network, taps, images, stages)
        logits = logits_of(outputs.logits)
        return TapOutputs(logits, outputs.features, outputs.stages, outputs.paths)

    def check_trainable(self, images: Tensor, where: str = "student") -> None:
        """Refuse a network that would be trained on outputs which are no logits.

        Args:
            images: `[B, C, H, W]`.
            where: What the network is, for the error.
        """
        inner = unwrapped(self.network)
        with evaluating(inner):
            refuse_bounded(inner, logits_of, images[:2].to(device_of(inner)), where)

    def without_stages(self) -> TappedNetwork:
        """Return the same network, read at its taps alone."""
        return replace(self, stage_paths=(), stage_shapes=())


def check_network(network: Any, where: str) -> None:
    """Refuse what is no network, or one without values.

    Args:
        network: What a user gave.
        where: What it should be, for the message: `"teacher"`.

    Raises:
        UserError: Says what it is.

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
    if device_of(network).type == "meta":  # some may be: accelerate brings those back
        raise UserError(f"{where}: its weights have no values: they are on the device 'meta'.")


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's first parameter, the CPU where it has none."""
    parameter = next(unwrapped(network).parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def logits_of(output: Any) -> Tensor:
    """Return the logits `[B, K]` within what a network returns."""
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
    """Return the logits of images; refuse a network that does not run on them, or gives none."""
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
    """Refuse what are no logits of these images."""
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
    """Return the taps, and the last tap of each stage where the network itself says it."""
    own: tuple[str, ...] | None = getattr(network, "tap_paths", None)
    if own is None and not given:
        return find_taps(network, images, logits_of).paths, None
    chosen = given or tuple(own or ())
    check_taps(network, chosen, where)
    if own is not None and chosen == tuple(own):
        return chosen, tuple(getattr(network, "stage_ends", range(1, len(own) + 2)))
    return chosen, None


def _stages_of(network: nn.Module, paths: tuple[str, ...], ends: Sequence[int]) -> tuple[str, ...]:
    """Return where the network itself says that its stages end, or the last tap of each stage."""
    own: tuple[str, ...] | None = getattr(network, "stage_paths", None)
    if own is not None and paths == tuple(getattr(network, "tap_paths", ())):
        return tuple(own)
    last = (paths[min(end, len(paths)) - 1] for end in ends) if paths else ()
    return tuple(dict.fromkeys(last))


def _shapes(features: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(feature.shape[1:]) for feature in features)


def _settle(network: nn.Module, paths: tuple[str, ...], images: Tensor, where: str) -> None:
    """Find out where the channels of the taps are; other taps' layouts stay known."""
    found = layouts_of(network, paths, tuple(images.shape[1:]), where=where)
    setattr(network, LAYOUTS_ATTRIBUTE, {**getattr(network, LAYOUTS_ATTRIBUTE, {}), **found})


def checked_paths(paths: object, where: str) -> tuple[str, ...]:
    """Return a list of module paths, which is read once: it may be one that ends, as of `map`.

    Raises:
        UserError: If it is none, such as a text, each character of which would be taken for a path.
    """
    if isinstance(paths, str):
        raise UserError(f"{where}: taps are a list of paths: [{paths!r}], not {paths!r}.")
    listed = tuple(paths) if isinstance(paths, Iterable) else None
    if listed is None or not all(isinstance(path, str) for path in listed):
        shown = paths if listed is None else list(listed)
        raise UserError(f"{where}: taps are a list of paths, such as ['layer1'], not {shown!r}.")
    return listed
