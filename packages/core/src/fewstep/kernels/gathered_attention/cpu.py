"""Gathered attention on a CPU: selected keys and values are copied one KV head at a time, which stays in cache."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def gathered_attention(
    query: Float[Tensor, "b h a d"],
    key: Float[Tensor, "b g n d"],
    value: Float[Tensor, "b g n d"],
    tokens: Int[Tensor, "b s"],
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> Float[Tensor, "b h a d"] | tuple[Float[Tensor, "b h a d"], Float[Tensor, "b h a"]]:
    """Same as `fewstep.kernels.gathered_attention.naive.gathered_attention`."""
    (b, h, a, d), g = query.shape, key.shape[1]
    rows = (query.float() * (d**-0.5 if scale is None else scale)).reshape(b, g, h // g * a, d)
    output, lse = torch.empty(rows.shape), torch.empty(rows.shape[:3])
    for i in range(b):
        chosen = tokens[i][tokens[i] >= 0]
        for j in range(g):
            scores = rows[i, j] @ key[i, j].index_select(0, chosen).float().T
            torch.logsumexp(scores, -1, out=lse[i, j])
            weights = scores.sub_(lse[i, j, :, None]).exp_()
            torch.mm(weights, value[i, j].index_select(0, chosen).float(), out=output[i, j])
    output = output.view(b, h, a, d).to(query.dtype)
    return (output, lse.view(b, h, a)) if return_lse else output
