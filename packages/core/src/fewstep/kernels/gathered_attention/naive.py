"""The specification of `fewstep.kernels.gathered_attention`, in plain PyTorch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.kernels.attention import masked_attention


def gathered_attention(
    query: Float[Tensor, "b h a d"],
    key: Float[Tensor, "b g n d"],
    value: Float[Tensor, "b g n d"],
    tokens: Int[Tensor, "b s"],
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> Float[Tensor, "b h a d"] | tuple[Float[Tensor, "b h a d"], Float[Tensor, "b h a"]]:
    """Attention of a few rows to the keys at `tokens`, which all heads and rows share; -1 stands for no token.

    o = softmax_j(scale <q, k_j>) v_j      j over the tokens of the sequence that are not -1
    """
    at = tokens.clamp(min=0)[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
    keys, values = (torch.gather(tensor, 2, at) for tensor in (key, value))
    output, lse = masked_attention(query, keys, values, (tokens >= 0)[:, None, None], scale)
    return (output, lse) if return_lse else output
