"""Block scores on a CPU: K is read once, in its own dtype and layout, and only the unit sums are fp32."""

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
    g, _, d = keys.shape
    # every scale goes into the query, the smallest tensor
    scale = unit * d**0.5 if score == "unit_softmax" else unit
    dots = torch.bmm(query.float().view(g, -1, d) / scale, unit_sums(keys, unit).transpose(1, 2))
    if score == "abs_dot":
        dots = dots.abs_()
    if score == "unit_softmax":
        dots = dots.softmax(-1)
    scores = dots.mean((0, 1))
    if unit == block:
        return scores
    missing = -scores.numel() % (block // unit)
    return F.pad(scores, (0, missing), value=-torch.inf).view(-1, block // unit).amax(1)


def unit_sums(keys: Float[Tensor, "g t d"], unit: int) -> Float[Tensor, "g u d"]:
    """``unit`` times the mean key of each run of ``unit`` tokens, in fp32; the last run may be shorter."""
    if unit == 1:
        return keys.float()
    g, t, d = keys.shape
    full = t // unit
    sums = torch.empty(g, -(-t // unit), d, device=keys.device)
    # head by head: torch widens a 16-bit input before it sums, and the copy of one head stays in cache
    for head, out in zip(keys, sums, strict=True):
        torch.sum(head[: full * unit].unflatten(0, (full, unit)), 1, dtype=torch.float32, out=out[:full])
    if t % unit:
        sums[:, full] = keys[:, full * unit :].mean(1, dtype=torch.float32) * unit
    return sums
