"""The specification of `fewstep.kernels.match_loss`, in plain PyTorch."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-8
"""Added to the normaliser and the least `sigma` that a weight is divided by."""


def match_loss(
    x: Float[Tensor, "b ..."],
    critic: Float[Tensor, "b ..."],
    teacher: Float[Tensor, "b ..."],
    sigma: Float[Tensor, " b"],
    *,
    lam: float,
    weights: Literal["official", "paper"] = "official",
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, "b ..."]]:
    """Fisher and residual losses of three clean predictions, and their gradient (SGMD, arXiv 2605.30116).

        n = mean |x - T|      F = 1/2 w_F mean (u - T)^2      R = 1/2 w_N mean (x - u)^2
        d mean(F - lam R) / du = (w_F (u - T) + lam w_N (x - u)) / N

    with ``u`` the critic's and ``T`` the teacher's prediction, means over all but the batch, and ``N`` the number of
    all elements. Computed in float32, or in float64 where `x` is. Returns ``n``, ``F``, ``R`` and the gradient.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x, critic, teacher, sigma = (tensor.to(wide) for tensor in (x, critic, teacher, sigma))
    across = tuple(range(1, x.ndim))
    gap, residual = critic - teacher, x - critic
    normaliser = (x - teacher).abs().mean(across)
    fisher, negative = match_weights(sigma, normaliser, weights)
    broadcast = (-1, *(1 for _ in across))
    gradient = (fisher.view(broadcast) * gap + (lam * negative).view(broadcast) * residual) / x.numel()
    return normaliser, fisher * gap.square().mean(across) / 2, negative * residual.square().mean(across) / 2, gradient


def match_weights(
    sigma: Float[Tensor, " b"], normaliser: Float[Tensor, " b"], weights: Literal["official", "paper"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """``(w_F, w_N)``: ``(1 / (n + 1e-8), 1 / sigma)`` as the official code has it, or the paper's
    ``((1 - sigma)^2 / sigma^4, 1)``, which is the squared difference of scores."""
    if weights == "official":
        return 1 / (normaliser + EPSILON), 1 / sigma.clamp(min=EPSILON)
    return ((1 - sigma) / sigma.square()).square(), torch.ones_like(sigma)
