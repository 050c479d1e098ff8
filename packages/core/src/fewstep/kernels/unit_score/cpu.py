"""Block scores on a CPU: K is read once, in its own dtype and layout, and only the unit means are fp32."""

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
    """Same as `fewstep.kernels.unit_score.naive.unit_score`."""
    g, t, d = keys.shape
    grouped = query.float().view(g, -1, d)
    if score == "dot":
        # the head mean is linear: one mean query per KV head gives the same sum
        grouped = grouped.mean(1, keepdim=True)
    if score == "unit_softmax":
        grouped = grouped / d**0.5
    dots = torch.bmm(grouped, unit_means(keys, unit).transpose(1, 2))
    if score == "abs_dot":
        dots = dots.abs_()
    if score == "unit_softmax":
        dots = dots.softmax(-1)
    scores = dots.mean((0, 1))
    if unit == block:
        return scores
    missing = -scores.numel() % (block // unit)
    return F.pad(scores, (0, missing), value=-torch.inf).view(-1, block // unit).amax(1)


def unit_means(keys: Float[Tensor, "g t d"], unit: int) -> Float[Tensor, "g u d"]:
    """Mean key of each run of ``unit`` tokens in fp32; the last run may be shorter."""
    if unit == 1:
        return keys.float()
    g, t, d = keys.shape
    full = t // unit
    means = torch.empty(g, -(-t // unit), d, device=keys.device)
    # head by head: torch widens a 16-bit input before it sums, and the copy of one head stays in cache
    for head, out in zip(keys, means, strict=True):
        torch.mean(head[: full * unit].unflatten(0, (full, unit)), 1, dtype=torch.float32, out=out[:full])
    if t % unit:
        torch.mean(keys[:, full * unit :], 1, dtype=torch.float32, out=means[:, full])
    return means
