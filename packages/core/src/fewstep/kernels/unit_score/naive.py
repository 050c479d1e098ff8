"""The specification of `fewstep.kernels.unit_score`, in plain PyTorch."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def unit_score(
    query: Float[Tensor, "h d"],
    keys: Float[Tensor, "g t d"],
    *,
    block: int,
    unit: int,
    score: Literal["dot", "abs_dot", "unit_softmax"] = "dot",
) -> Float[Tensor, " n"]:
    """Score each block of ``block`` keys by its best unit of ``unit`` keys.

        k_u = mean of the keys of unit u          r(j) = max_{u in block j}  1/h sum_i f(<q_i, k_{g(i), u}>)

    ``f`` is the identity (``dot``), the absolute value (``abs_dot``) or, per head, the softmax over all units of
    ``<q, k> / sqrt(d)`` (``unit_softmax``). Head ``i`` reads KV head ``i // (h / g)``; a ragged last unit is the mean
    of the keys it has; a unit without keys never wins. Returns ``ceil(t / block)`` scores in fp32.
    """
    g, t, d = keys.shape
    units = -(-t // block) * (block // unit)
    padded = F.pad(keys.float(), (0, 0, 0, units * unit - t))
    count = (t - unit * torch.arange(units, device=keys.device)).clamp(0, unit)
    mean = padded.view(g, units, unit, d).sum(2) / count.clamp(min=1)[:, None]
    dots = torch.einsum("grd,gud->gru", query.float().view(g, -1, d), mean)
    if score == "abs_dot":
        dots = dots.abs()
    if score == "unit_softmax":
        dots = (dots / d**0.5).masked_fill(count == 0, -torch.inf).softmax(-1)
    return dots.mean((0, 1)).masked_fill(count == 0, -torch.inf).view(-1, block // unit).amax(1)
