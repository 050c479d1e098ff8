"""The specification of `fewstep.kernels.column_mass`, in plain PyTorch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def column_mass(
    query: Float[Tensor, "b h a d"],
    key: Float[Tensor, "b g n d"],
    *,
    row_weights: Float[Tensor, "b a"] | None = None,
    key_mask: Bool[Tensor, "b n"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b n"]:
    """Attention that each key receives: sum over rows of weight times mean over heads of the softmax, in fp32.

        S_j = sum_a w_a  1/h sum_i softmax_j(scale <q_{i,a}, k_{g(i),j}>)

    Weights are ``1 / a`` unless given; the softmax runs over the keys where `key_mask` is True, others receive 0.
    """
    h, a, d = query.shape[1:]
    scaled = query.float() * (d**-0.5 if scale is None else scale)
    grouped = scaled.unflatten(1, (key.shape[1], -1))
    scores = torch.einsum("bgrad,bgnd->bgran", grouped, key.float()).flatten(1, 2)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None], -torch.inf)
    mass = scores.softmax(-1).mean(1)
    if key_mask is not None:  # a sequence without keys has no softmax
        mass = mass.masked_fill(~key_mask[:, None], 0)
    weights = query.new_full(query.shape[:1] + (a,), 1 / a, dtype=torch.float32) if row_weights is None else row_weights
    return torch.einsum("ba,ban->bn", weights.float(), mass)
