"""The losses of SGMD and of its ablations, on clean predictions.

``x`` is the student's sample, ``x_s`` its noised form *in the graph*, ``u`` the critic's and ``T`` the teacher's
clean prediction at ``x_s``, and ``n = mean |x - T|`` for each sample. The student's gradient goes ``u -> x_s -> x``.
"""

from __future__ import annotations

from typing import Literal

from fewstep.kernels.match_loss import Matched, carry, match_loss
from fewstep.kernels.match_loss.naive import EPSILON, match_weights
from jaxtyping import Float
from torch import Tensor

Weights = Literal["official", "paper"]
Clean = Float[Tensor, "b ..."]
Level = Float[Tensor, " b"]
BINS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Edges of the noise levels that the slope is reported for."""


def student_losses(
    x: Clean, u: Clean, teacher: Clean, sigma: Level, *, lam: float, weights: Weights
) -> tuple[dict[str, Float[Tensor, ""]], Matched]:
    """The parts of ``L_Fisher + lam L_NR`` (SGMD, arXiv 2605.30116), each a mean over all elements.

        L_Fisher = 1/2 w_F mean (u - T)^2          L_NR = -1/2 w_N mean (sg[x] - u)^2

    ``official`` weights are ``w_F = 1 / (n + 1e-8)``, ``w_N = 1 / sigma``; of the ``paper`` 1 for the residual and
    ``(1 - sigma)^2 / sigma^4``, which makes the squared difference of scores. ``lam = 0`` is TSG-Fisher.

    Returns:
        The parts, whose sum has the right value and gradient (all of it sits on ``fisher``), and what was found for
        each sample, for `figures`.
    """
    found = match_loss(x, u, teacher, sigma, lam=lam, weights=weights)
    parts = {"fisher": carry(found.fisher.mean(), found.gradient, u)}
    if lam:
        parts["negative_residual"] = -lam * found.residual.mean()
    return parts, found


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


def figures(found: Matched, sigma: Level, weights: Weights) -> dict[str, Float[Tensor, ""]]:
    """What is worth logging of a student step and comparable between objectives; found on the device, no gradient.

    ``dmd2`` is the loss of DMD2, ``1/2 mean ((u - T) / n)^2``; ``residual`` is ``1/2 w_N mean (x - u)^2``;
    ``slope[0.25-0.5]`` is ``mean |dL/du|`` of the samples of these noise levels, times the number of all elements.
    """
    w_f, _ = match_weights(sigma, found.normaliser, weights)
    gap = 2 * found.fisher / w_f.clamp(min=1e-30)
    dmd2 = (gap / (found.normaliser + EPSILON).square() / 2).mean()
    numbers = {"dmd2": dmd2, "residual": found.residual.mean(), "normaliser": found.normaliser.mean()}
    slope = found.gradient.abs().flatten(1).mean(1) * found.gradient.numel()
    for low, high in zip(BINS, BINS[1:], strict=False):
        inside = (sigma > low) & (sigma <= high)
        numbers[f"slope[{low:g}-{high:g}]"] = slope.where(inside, 0.0).sum() / inside.sum()  # NaN where none is
    return numbers
