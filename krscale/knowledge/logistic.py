"""Multinomial logistic regression with an L2 penalty, solved in float64 to its one optimum.

The objective is strictly convex, so its optimum depends on the data alone. The solver stops when
the gradient shows that the optimum is reached, not when rounding prevents further progress. Two
processors that round differently therefore reach the same weights.

The solver is Newton's method. Each step is solved by conjugate gradients, so the Hessian is never
stored. The preconditioner is the Hessian for the case that a sample's class is independent of its
features: it then separates by class, and all classes share the axes of the features' covariance.
Weights that sum to 0 over the classes are sufficient, since the loss depends only on differences.
Restricting every step to them removes the one direction with almost no curvature from the conjugate
gradients.

Source: Lin, Weng and Keerthi, Trust region Newton method for large-scale logistic regression, JMLR
2008 (Newton with conjugate gradients); Nocedal and Wright, Numerical Optimization, 2006, chapter 7
(the precision to which each step is solved).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from krscale.errors import KrscaleError, UserError

GRADIENT_TOLERANCE = 1e-10
"""Euclidean norm of the gradient at which the optimum counts as reached. The distance of the
weights from it is then at most this value divided by the weight decay, as the objective is strongly
convex in them."""
BIAS_PENALTY = 1e-5
"""Penalty of the biases, in samples. It alone determines what the loss leaves undetermined (a
constant added to all biases) or sends to minus infinity (the bias of a class without samples)."""
MAX_CONJUGATE_STEPS = 1000


@dataclass(frozen=True)
class _Problem:
    """The objective over weights `[K, F + 1]`, whose last column holds the biases.

    Attributes:
        inputs: `[N, F + 1]` fp64, standardised features and a final column of ones.
        labels: `[N, 1]` int64.
        penalty: `[F + 1]`, the factor of half the squared weights of each column.
        variances: `[F]`, eigenvalues of the features' covariance.
        axes: `[F, F]`, the eigenvectors, one per column.
    """

    inputs: Tensor
    labels: Tensor
    penalty: Tensor
    variances: Tensor
    axes: Tensor

    def value(self, weights: Tensor, logits: Tensor) -> float:
        loss = logits.logsumexp(dim=1).mean() - logits.gather(1, self.labels).mean()
        return float(loss + 0.5 * (self.penalty * weights.square()).sum())

    def gradient(self, weights: Tensor, probabilities: Tensor) -> Tensor:
        residual = probabilities.clone()
        residual.scatter_add_(1, self.labels, -torch.ones_like(residual[:, :1]))
        return residual.T @ self.inputs / len(residual) + self.penalty * weights

    def hessian_times(self, direction: Tensor, probabilities: Tensor) -> Tensor:
        change = (self.inputs @ direction.T).mul_(probabilities)
        change -= probabilities * change.sum(dim=1, keepdim=True)
        return change.T @ self.inputs / len(change) + self.penalty * direction

    def precondition(self, gradient: Tensor, spread: Tensor) -> Tensor:
        """Divide by the simplified Hessian; `spread` `[K, 1]` is the mean of `p (1 - p)`."""
        rotated = gradient[:, :-1] @ self.axes / (spread * self.variances + self.penalty[:-1])
        biases = gradient[:, -1:] / (spread + self.penalty[-1])
        divided = torch.cat([rotated @ self.axes.T, biases], dim=1)
        return divided - divided.mean(dim=0)


@torch.no_grad()
def fit_logistic(
    inputs: Tensor, labels: Tensor, num_classes: int, weight_decay: float, max_steps: int = 100
) -> Tensor:
    """Return the weights `[K, F + 1]` fp64 that minimise cross-entropy plus penalties.

    The loss is the mean cross-entropy, plus `weight_decay / 2` times the squared weights, plus
    `BIAS_PENALTY / N / 2` times the squared biases.

    Args:
        inputs: `[N, F + 1]` fp64: standardised features, and a final column of ones for the biases.
        labels: `[N]` int64.
        num_classes: `K`.
        weight_decay: More than 0.
        max_steps: Maximum number of Newton steps.

    Raises:
        KrscaleError: If `weight_decay` is not positive, as there might be no optimum.
        UserError: If the norm of the gradient still exceeds `GRADIENT_TOLERANCE` after `max_steps`.

    Example:
        >>> inputs = torch.tensor([[-1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
        >>> decay = 1.0 / (1.0 + math.exp(2.0))  # with which the gradient is 0 at the weights -1, 1
        >>> fit_logistic(inputs, torch.tensor([0, 1]), 2, decay)[:, 0].round(decimals=6)
        tensor([-1.,  1.], dtype=torch.float64)
    """
    if not weight_decay > 0.0:
        raise KrscaleError(f"a logistic regression needs a weight decay above 0: {weight_decay}")
    problem = _problem(inputs, labels, weight_decay)
    weights = inputs.new_zeros(num_classes, inputs.shape[1])
    weights[:, -1] = (torch.bincount(labels, minlength=num_classes).double() + 0.01).log()
    weights[:, -1] -= weights[:, -1].mean()
    logits = inputs @ weights.T
    norm = math.inf
    for _ in range(max_steps + 1):
        probabilities = logits.softmax(dim=1)
        gradient = problem.gradient(weights, probabilities)
        norm = float(gradient.norm())
        if norm <= GRADIENT_TOLERANCE:
            return weights
        direction = _newton_direction(problem, gradient, probabilities)
        moved = _step(problem, weights, logits, gradient, direction)
        if moved is None:
            break
        weights, logits = moved
    raise UserError(
        f"a probe did not reach its optimum: its gradient still has the norm {norm:.1e} after at "
        f"most {max_steps} Newton steps, and {GRADIENT_TOLERANCE:.0e} is allowed. One of the taps "
        "gives features that cannot be fitted; look for activations that explode."
    )


def _problem(inputs: Tensor, labels: Tensor, weight_decay: float) -> _Problem:
    penalty = inputs.new_full((inputs.shape[1],), weight_decay)
    penalty[-1] = BIAS_PENALTY / len(inputs)
    features = inputs[:, :-1]
    variances, axes = torch.linalg.eigh(features.T @ features / len(inputs))
    return _Problem(inputs, labels.view(-1, 1), penalty, variances.clamp_min(0.0), axes)


def _newton_direction(problem: _Problem, gradient: Tensor, probabilities: Tensor) -> Tensor:
    """Return `-H^-1 g`, by conjugate gradients, to a tenth of the gradient's norm."""
    spread = (probabilities * (1.0 - probabilities)).mean(dim=0).unsqueeze(1)
    # More precision is wasted while the Hessian still changes; the last step needs no more.
    goal = max(0.1 * float(gradient.norm()), 0.1 * GRADIENT_TOLERANCE)
    solution = torch.zeros_like(gradient)
    residual = -gradient
    search = preconditioned = problem.precondition(residual, spread)
    product = (residual * preconditioned).sum()
    for _ in range(MAX_CONJUGATE_STEPS):
        curved = problem.hessian_times(search, probabilities)
        length = product / (search * curved).sum()
        solution += length * search
        residual = residual - length * curved
        if float(residual.norm()) <= goal:
            break
        preconditioned = problem.precondition(residual, spread)
        previous, product = product, (residual * preconditioned).sum()
        search = preconditioned + (product / previous) * search
    return solution


def _step(
    problem: _Problem, weights: Tensor, logits: Tensor, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return weights and logits after the longest sufficient step of 1, 1/2, 1/4, ...; or None."""
    value = problem.value(weights, logits)
    slope = float((gradient * direction).sum())
    change = problem.inputs @ direction.T
    length = 1.0
    while length > 1e-10:
        moved, moved_logits = weights + length * direction, logits + length * change
        # Near the optimum, the gain of a step is smaller than the rounding of the value.
        allowed = value + 1e-4 * length * slope + 1e-13 * abs(value)
        if problem.value(moved, moved_logits) <= allowed:
            return moved, problem.inputs @ moved.T  # summed changes would accumulate rounding
        length /= 2.0
    return None
