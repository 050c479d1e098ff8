"""The losses of SGMD and of its ablations, on clean predictions.

``x`` is the student's sample, ``x_s`` its noised form *in the graph*, ``u`` the critic's and ``T`` the teacher's
clean prediction at ``x_s``, and ``n = mean |x - T|`` for each sample. The student's gradient goes ``u -> x_s -> x``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from fewstep.kernels.mean_abs_difference import mean_abs_difference
from fewstep.kernels.weighted_residuals import weighted_residuals, with_gradient
from jaxtyping import Float
from torch import Tensor

Weights = Literal["official", "paper"]
Clean = Float[Tensor, "b ..."]
Level = Float[Tensor, " b"]
BINS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Edges of the noise levels that the slope is reported for."""
EPSILON = 1e-8
"""Added to the normaliser and the least `sigma` that a weight is divided by."""


class Matched(NamedTuple):
    """Terms of `student_losses` for each sample; nothing of it is differentiable."""

    normaliser: Float[Tensor, " b"]
    """``n``, the mean of ``|x - T|``."""
    gap: Float[Tensor, " b"]
    """``mean (u - T)^2``."""
    residual: Float[Tensor, " b"]
    """``1/2 w_N mean (x - u)^2``; the negative residual is minus this."""
    gradient: Float[Tensor, "b ..."]
    """Of ``L_Fisher + lam L_NR`` with respect to the critic's prediction."""


def match_weights(
    sigma: Level, normaliser: Float[Tensor, " b"], weights: Weights
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Weights ``(w_F, w_N)`` of the Fisher and the residual loss.

    ``official``, as the released code has them: ``w_F = 1 / (n + 1e-8)``, ``w_N = 1 / sigma``. ``paper``:
    ``w_F = (1 - sigma)^2 / sigma^4``, which makes the squared difference of scores, and ``w_N = 1``.

    Raises:
        ValueError: `weights` has no such name.
    """
    if weights == "official":
        return 1 / (normaliser + EPSILON), 1 / sigma.clamp(min=EPSILON)
    if weights == "paper":
        return ((1 - sigma) / sigma.square()).square(), torch.ones_like(sigma)
    raise ValueError(f"unknown weights {weights!r}; supported: {', '.join(get_args(Weights))}")


def student_losses(
    x: Clean, u: Clean, teacher: Clean, sigma: Level, *, lam: float, weights: Weights
) -> tuple[dict[str, Float[Tensor, ""]], Matched]:
    """The parts of ``L_Fisher + lam L_NR`` (SGMD, arXiv 2605.30116), each a mean over all elements.

        L_Fisher = 1/2 w_F mean (u - T)^2          L_NR = -1/2 w_N mean (sg[x] - u)^2

    with the weights of `match_weights`. ``lam = 0`` is TSG-Fisher; with official weights its gradient with respect to
    ``u`` is that of DMD2 (arXiv 2405.14867) with respect to ``x``.

    Returns:
        The parts, whose sum has the right value and gradient (all of it sits on ``fisher``), and the terms of each
        sample, for `figures`.

    Raises:
        ValueError: shapes do not fit, or `weights` has no such name, in one sentence.
    """
    normaliser = mean_abs_difference(x, teacher)
    w_f, w_n = match_weights(sigma.to(normaliser), normaliser, weights)
    gap, tracking, gradient = weighted_residuals(u, teacher, x, w_f, -lam * w_n)
    matched = Matched(normaliser, gap, w_n * tracking / 2, gradient)
    parts = {"fisher": with_gradient((w_f * gap / 2).mean(), gradient, u)}
    if lam:
        parts["negative_residual"] = -lam * matched.residual.mean()
    return parts, matched


def critic_loss(
    velocity: Clean, target: Clean, sigma: Level, *, lam: float = 0.1, weights: Weights = "official"
) -> Float[Tensor, ""]:
    """Residual contraction, ``L_RC = 1/2 w_R mean (sg[x] - u)^2``, from velocities: ``u - x = -sigma (v - v*)``.

    ``official``: ``w_R = 1 / sigma^2``, the plain velocity error. ``paper``: ``w_R = 1``, times ``lam`` where not 0.

    Args:
        velocity: what the critic predicts at the noised sample.
        target: ``v* = eps - x``, without gradient.
        sigma: noise levels.
    """
    error = (velocity.to(target.dtype) - target).square().flatten(1).mean(1) / 2
    if weights == "official":
        return error.mean()
    return (lam or 1.0) * (sigma.to(error).square() * error).mean()


def sid_loss(x: Clean, u: Clean, teacher: Clean, *, alpha: float = 1.0) -> Float[Tensor, ""]:
    """Score identity distillation: ``mean((T - u) ((T - x) - alpha (T - u)) / n)`` (SiD, arXiv 2404.04057).

    Gradients go through all three, and where the caller kept the graph of the teacher, through its input too.
    """
    dims = tuple(range(1, x.ndim))
    normaliser = (x - teacher).detach().abs().mean(dims, keepdim=True)
    gap = teacher - u
    return (gap * ((teacher - x) - alpha * gap) / (normaliser + EPSILON)).mean()


def figures(matched: Matched, sigma: Level) -> dict[str, Float[Tensor, ""]]:
    """Numbers of a student step that are worth logging and comparable between objectives; on the device, no gradient.

    ``dmd2`` is the loss of DMD2, ``1/2 mean ((u - T) / n)^2``; ``residual`` is ``1/2 w_N mean (x - u)^2``;
    ``slope[0.25-0.5]`` is ``mean |dL/du|`` of the samples of these noise levels, times the number of all elements.
    """
    dmd2 = (matched.gap / (matched.normaliser + EPSILON).square() / 2).mean()
    numbers = {"dmd2": dmd2, "residual": matched.residual.mean(), "normaliser": matched.normaliser.mean()}
    slope = matched.gradient.abs().flatten(1).mean(1) * matched.gradient.numel()
    for low, high in zip(BINS, BINS[1:], strict=False):
        inside = (sigma > low) & (sigma <= high)
        numbers[f"slope[{low:g}-{high:g}]"] = slope.where(inside, 0.0).sum() / inside.sum()  # NaN where none is
    return numbers
