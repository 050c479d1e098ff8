"""Block scores on a CPU: K is read once, in its own dtype and layout, and only the unit sums are fp32."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewstep.kernels.block_means.cpu import block_sums


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
    dots = torch.bmm(query.float().view(g, -1, d) / scale, block_sums(keys, unit).transpose(1, 2))
    if score == "abs_dot":
        dots = dots.abs_()
    if score == "unit_softmax":
        dots = dots.softmax(-1)
    scores = dots.mean((0, 1))
    if unit == block:
        return scores
    missing = -scores.numel() % (block // unit)
    return F.pad(scores, (0, missing), value=-torch.inf).view(-1, block // unit).amax(1)
