"""Optimiser and schedule of a training, by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from krscale.config import TrainConfig
from krscale.config.training import optimiser_key
from krscale.errors import UserError, nearest, unknown_name

_UNFIT = {
    "lbfgs": "it evaluates the loss several times a step",
    "sparseadam": "it takes sparse gradients only",
    "muon": "it takes matrices only, and networks have vectors too",
}
"""Classes of torch.optim that a plain training loop cannot use, and why."""
_SET_ELSEWHERE = {
    "lr": "train.learning_rate",
    "weight_decay": "train.weight_decay",
    "params": "krscale itself",
    "maximize": "krscale itself, as every loss is minimised",
}
HALF_PRECISION = (torch.bfloat16, torch.float16)
"""Types of weights with so few digits that sums of many small steps are lost in them."""
_IN_PLACE_OF_FUSED = ("dampening", "differentiable", "foreach", "fused")
"""Options that exclude krscale's own `fused`."""


def check_optimiser(settings: TrainConfig) -> None:
    """Refuse an optimiser or options that torch cannot step with, before any training starts.

    Raises:
        UserError: With the setting, what is allowed, and the nearest name.

    Example:
        >>> check_optimiser(TrainConfig(optimizer="sgd", optimizer_options={"nesterof": True}))
        Traceback (most recent call last):
        krscale.errors.UserError: ...: unknown option 'nesterof' of SGD. Did you mean 'nesterov'...
    """
    _class_of(settings.optimizer)
    if problem := settings.missing_rate:
        raise UserError(f"{problem}.")
    layer = nn.Linear(1, 1, device="meta").to_empty(device="cpu")  # draws no random numbers
    # Moderate rates, since a rate that is too large is not an error in the options.
    rates = {"learning_rate": 1e-3, "weight_decay": min(settings.weight_decay, 0.1)}
    modest = settings.model_copy(update=rates)
    optimiser = build_optimiser(layer, modest)
    try:
        for parameter in layer.parameters():
            parameter.grad = torch.ones_like(parameter)
            parameter.data.fill_(1.0)
        for _ in range(2):  # the second step continues from a state
            optimiser.step()
    except Exception as error:
        raise _refused(type(optimiser), settings, error) from error
    if not all(bool(parameter.isfinite().all()) for parameter in layer.parameters()):
        raise _refused(type(optimiser), settings, "it gives NaN or infinity in its first steps")


def build_optimiser(learner: nn.Module, settings: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of a learner; norms and biases have no weight decay (as in timm).

    Raises:
        UserError: As in `check_optimiser`.

    Example:
        >>> learner = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        >>> optimiser = build_optimiser(learner, TrainConfig(weight_decay=0.01))
        >>> [(group["weight_decay"], len(group["params"])) for group in optimiser.param_groups]
        [(0.01, 1), (0.0, 3)]
    """
    decayed = [p for p in learner.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in learner.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    kind = _class_of(settings.optimizer)
    if problem := settings.missing_rate:
        raise UserError(f"{problem}.")
    options = _options(kind, settings)
    if options.get("fused") and (problem := _problem_of_fused(kind, learner)):
        if settings.optimizer_options.get("fused"):
            raise UserError(f"train.optimizer_options: fused: {problem}; leave it out.")
        del options["fused"]
    try:
        found: torch.optim.Optimizer = kind(groups, lr=settings.learning_rate, **options)
    except Exception as error:
        raise _refused(kind, settings, error) from error
    if kind is torch.optim.SGD and found.defaults["fused"] and settings.momentum > 0.0:
        found.register_step_pre_hook(_begin_momentum)
    return found


def restore_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser that was built by `build_optimiser` with the same settings.

    Whether its step is fused stays as it was built: the state may be of another device.
    """
    fused = [group.get("fused") for group in optimiser.param_groups]
    optimiser.load_state_dict(state)
    for group, own in zip(optimiser.param_groups, fused, strict=True):
        if "fused" in group:
            group["fused"] = own


def _problem_of_fused(kind: Any, learner: nn.Module) -> str:
    """Return why the fused step of an optimiser cannot be used; empty if it can."""
    weights = [weight for weight in learner.parameters() if weight.requires_grad]
    if any(weight.is_complex() for weight in weights):
        return "torch has no fused step for complex weights"
    on_cpu = any(
        weight.device.type == "cpu" and weight.dtype in HALF_PRECISION for weight in weights
    )
    if kind is torch.optim.SGD and on_cpu:  # so torch 2.13, but for their last few numbers
        return "on a CPU, torch's fused SGD leaves weights in bf16 and fp16 as they are"
    return ""


def _begin_momentum(optimiser: torch.optim.Optimizer, *_: Any) -> None:
    """Give weights with their first gradient a momentum of 0, which becomes that gradient.

    The fused SGD of torch 2.13 fails if some weights have a momentum and others do not: those of
    blocks that the first step skipped, as in stochastic depth.
    """
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    if len(optimiser.state) == len(weights):  # normally the case after the first step
        return
    for weight in weights:
        known = optimiser.state.get(weight, {}).get("momentum_buffer")
        if weight.grad is not None and known is None:
            optimiser.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def _refused(kind: Any, settings: TrainConfig, why: Exception | str) -> UserError:
    own = _own(kind, settings)
    beside = f" (beside {own}, which krscale sets where it is not given)" if own else ""
    reason = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else why
    return UserError(
        f"train.optimizer_options: torch.optim.{kind.__name__} refuses "
        f"{settings.optimizer_options}{beside}: {reason}"
    )


def learning_rate_factor(settings: TrainConfig, num_steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate per step: linear warm-up, then the schedule.

    Args:
        settings: Epochs, warm-up and the name of the schedule.
        num_steps: Steps of an epoch.

    Example:
        >>> settings = TrainConfig(num_epochs=4, warmup_epochs=2, schedule="linear")
        >>> factor = learning_rate_factor(settings, num_steps=1)
        >>> [round(factor(step), 2) for step in range(4)]
        [0.33, 0.67, 1.0, 0.5]
    """
    total = max(1, settings.num_epochs * num_steps)
    warmup = min(total - 1, round(settings.warmup_epochs * num_steps))
    decay = SCHEDULES[settings.schedule]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return decay(min(1.0, (step - warmup) / max(1, total - warmup)))

    return factor


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _step(progress: float) -> float:
    return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": lambda progress: 1.0 - progress,
    "step": _step,
    "constant": lambda progress: 1.0,
}
"""Factor of the learning rate by name, for the progress from the end of the warm-up (0) to the end
of the training (1)."""


def _classes() -> dict[str, Any]:
    """Return the usable classes of torch.optim by lower-case name."""
    found = {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
    }
    return {name: found[name] for name in found if name not in (*_UNFIT, "optimizer")}


def _class_of(name: str) -> Any:
    known = optimiser_key(name)
    if known in _UNFIT:
        raise UserError(f"train.optimizer: {name!r} cannot be used here: {_UNFIT[known]}.")
    classes = _classes()
    if known not in classes:
        raise unknown_name("optimizer", name, classes, "train.optimizer")
    return classes[known]


def _options(kind: Any, settings: TrainConfig) -> dict[str, Any]:
    """Return an optimiser's keyword arguments other than parameters, rate and weight decay."""
    known = inspect.signature(kind).parameters
    elsewhere = _SET_ELSEWHERE | ({"momentum": "train.momentum"} if kind is torch.optim.SGD else {})
    for name in settings.optimizer_options:
        if name in elsewhere:
            raise UserError(f"train.optimizer_options: {name!r} is set by {elsewhere[name]}.")
        if name not in known:
            allowed = _own_options(known)
            guess = nearest(name, allowed)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise UserError(
                f"train.optimizer_options: unknown option {name!r} of {kind.__name__}.{hint} "
                f"Allowed: {', '.join(allowed)}."
            )
    if "weight_decay" not in known and settings.weight_decay > 0.0:
        raise UserError(
            f"train.weight_decay: {kind.__name__} has none; set it to 0 (got "
            f"{settings.weight_decay:g})."
        )
    default = TrainConfig.model_fields["momentum"].default
    if kind is not torch.optim.SGD and settings.momentum != default:
        raise UserError(
            f"train.momentum: {settings.momentum:g} is for SGD; what {kind.__name__} takes of this "
            f"kind goes into train.optimizer_options (it has: {', '.join(_own_options(known))})."
        )
    return _own(kind, settings) | settings.optimizer_options


def _own(kind: Any, settings: TrainConfig) -> dict[str, Any]:
    """Return the options that krscale sets unless the user gives them."""
    own: dict[str, Any] = {}
    if kind is torch.optim.SGD:
        own = {"momentum": settings.momentum, "nesterov": settings.momentum > 0.0}
    given = settings.optimizer_options
    if kind in (torch.optim.SGD, torch.optim.AdamW) and not any(
        given.get(name) is not None for name in _IN_PLACE_OF_FUSED
    ):
        own["fused"] = True
    return {name: value for name, value in own.items() if name not in given}


def _own_options(known: Iterable[str]) -> list[str]:
    return [option for option in known if option not in _SET_ELSEWHERE]
