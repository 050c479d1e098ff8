"""The specification of `fewstep.kernels.weighted_residuals`, in plain PyTorch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def weighted_residuals(
    u: Float[Tensor, "b *dims"],
    first: Float[Tensor, "b *dims"],
    second: Float[Tensor, "b *dims"],
    first_weight: Float[Tensor, " b"],
    second_weight: Float[Tensor, " b"],
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, "b *dims"]]:
    """Mean squares of ``u - first`` and ``u - second``, and the gradient of half their weighted sum.

        r_i = mean (u - a_i)^2      d/du mean_b 1/2 (w_1 r_1 + w_2 r_2) = (w_1 (u - a_1) + w_2 (u - a_2)) / N

    Means are over all but the batch, ``N`` is the number of all elements. Computed in float32, or in float64 where `u`
    is. Returns ``r_1``, ``r_2`` and the gradient.
    """
    wide = torch.promote_types(u.dtype, torch.float32)
    u, first, second = (tensor.to(wide) for tensor in (u, first, second))
    one, two = u - first, u - second
    column = (-1, *(1 for _ in u.shape[1:]))
    gradient = (first_weight.to(wide).view(column) * one + second_weight.to(wide).view(column) * two) / u.numel()
    return one.square().flatten(1).mean(1), two.square().flatten(1).mean(1), gradient
