"""The specification of `fewstep.kernels.block_sparse_attention`, in plain PyTorch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewstep.kernels.attention import masked_attention


def block_sparse_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g n d"],
    value: Float[Tensor, "b g n d"],
    blocks: Int[Tensor, "b h q k"],
    *,
    query_block: int,
    key_block: int,
    scale: float | None = None,
    return_lse: bool = False,
) -> Float[Tensor, "b h t d"] | tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h t"]]:
    """Attention in which each block of queries looks at the key blocks of its own list; -1 stands for no block.

    o_i = softmax_j(scale <q_i, k_j>) v_j      j with  j // key_block  in  blocks[i // query_block]
    """
    chosen = block_mask(blocks, -(-key.shape[2] // key_block))
    mask = chosen.repeat_interleave(query_block, 2)[:, :, : query.shape[2]]
    mask = mask.repeat_interleave(key_block, 3)[..., : key.shape[2]]
    output, lse = masked_attention(query, key, value, mask, scale)
    return (output, lse) if return_lse else output


def block_mask(blocks: Int[Tensor, "b h q k"], key_blocks: int) -> Bool[Tensor, "b h q m"]:
    """True where a query block has a key block in its list."""
    mask = torch.zeros(*blocks.shape[:3], key_blocks + 1, dtype=torch.bool, device=blocks.device)
    at = blocks.long()
    return mask.scatter_(3, at.masked_fill(at < 0, key_blocks), True)[..., :key_blocks]
