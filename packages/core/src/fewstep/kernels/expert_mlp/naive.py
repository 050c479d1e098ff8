"""Experts of a mixture on the tokens routed to them: the specification, expert by expert, with float32 sums."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def expert_mlp(
    x: Float[Tensor, "t h"],
    index: Int[Tensor, "t k"],
    weight: Float[Tensor, "t k"],
    gate_up: Float[Tensor, "e f2 h"],
    down: Float[Tensor, "e h f"],
) -> Float[Tensor, "t h"]:
    """See `fewstep.kernels.expert_mlp.expert_mlp`."""
    out = torch.zeros(x.shape, device=x.device)
    for expert in range(len(gate_up)):
        token, place = torch.where(index == expert)
        if len(token):
            gate, up = F.linear(x[token].float(), gate_up[expert].float()).chunk(2, -1)
            hidden = (F.silu(gate) * up).to(x.dtype)  # what a GPU keeps between the two products
            made = F.linear(hidden.float(), down[expert].float())
            out.index_add_(0, token, made * weight[token, place, None].float())
    return out.to(x.dtype)
