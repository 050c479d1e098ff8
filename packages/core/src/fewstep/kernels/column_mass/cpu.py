"""Attention mass on a CPU: one KV head at a time, so that its scores stay in cache from product to sum."""

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
    """Same as `fewstep.kernels.column_mass.naive.column_mass`."""
    (b, h, a, d), (g, n) = query.shape, key.shape[1:3]
    rows = (query.float() * (d**-0.5 if scale is None else scale)).reshape(b, g, h // g * a, d)
    weights = torch.full((b, a), 1 / a) if row_weights is None else row_weights.float()
    weights = (weights / h).repeat(1, h // g)
    mass = torch.zeros(b, n)
    for i in range(b):
        keep = None if key_mask is None else key_mask[i].nonzero()[:, 0]
        if keep is None or keep.numel() == n:
            _add(mass[i], rows[i], key[i], weights[i])
        elif keep.numel():
            _add(some := torch.zeros(keep.numel()), rows[i], key[i].index_select(1, keep), weights[i])
            mass[i, keep] = some
    return mass


def _add(
    mass: Float[Tensor, " n"], rows: Float[Tensor, "g m d"], keys: Float[Tensor, "g n d"], weights: Tensor
) -> None:
    for own, head in zip(rows, keys, strict=True):
        mass.addmv_((own @ head.float().T).softmax(-1).T, weights)
