"""Gathered attention on a CPU: flash attention over a copy of the selection, all rows of a KV head in one product."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.kernels.attention import CPU_FLASH


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
    rows = query.reshape(b, g, h // g * a, d)
    output, lse = torch.zeros_like(rows), torch.full(rows.shape[:3], -torch.inf)
    for i in range(b):
        chosen = tokens[i][tokens[i] >= 0]
        if chosen.numel():
            # one sequence at a time: selections may differ in length, and a mask would cost more
            keys, values = (x[i : i + 1].index_select(2, chosen) for x in (key, value))
            found = CPU_FLASH(rows[i : i + 1], keys, values, scale=scale)
            output[i], lse[i] = found[0][0], found[1][0]
    output = output.view(b, h, a, d)
    return (output, lse.view(b, h, a)) if return_lse else output
