"""The specification of `fewstep.kernels.expert_mlp`, in plain PyTorch, expert by expert with float32 sums."""

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
    """Weighted sum of SwiGLU experts for each token; index ``E`` marks a pair that is skipped.

    y_t = sum over i with e_ti < E of  w_ti  W_down[e_ti] (silu(W_gate[e_ti] x_t) * (W_up[e_ti] x_t))
    """
    out = torch.zeros(x.shape, device=x.device)
    for expert in range(len(gate_up)):
        token, place = torch.where(index == expert)
        if len(token):
            gate, up = F.linear(x[token].float(), gate_up[expert].float()).chunk(2, -1)
            hidden = (F.silu(gate) * up).to(x.dtype)  # rounded as a GPU does between the two products
            made = F.linear(hidden.float(), down[expert].float())
            out.index_add_(0, token, made * weight[token, place, None].float())
    return out.to(x.dtype)
