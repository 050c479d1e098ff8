"""Gathered attention on a CPU: flash attention over a copy of the selection, all rows of a KV head in one product.

A call takes a millisecond and starts with cold caches, so that every small operation costs: numbers are looked at only
where gathering refuses them, which also finds the -1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.kernels.attention import CPU_FLASH, check_places

DENSE_FROM = 0.4
"""Share of the tokens from which all are read under a mask: at half of them that was twice as fast as a copy."""


def gathered_attention(
    query: Float[Tensor, "b h a d"],
    key: Float[Tensor, "b g n d"],
    value: Float[Tensor, "b g n d"],
    tokens: Int[Tensor, "b s"],
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> Float[Tensor, "b h a d"] | tuple[Float[Tensor, "b h a d"], Float[Tensor, "b h a"]]:
    """Same as `fewstep.kernels.gathered_attention.naive.gathered_attention`; refuses positions out of range."""
    (b, h, a, d), (g, n) = query.shape, key.shape[1:3]
    rows = query.reshape(b, g, h // g * a, d)
    attend = masked if tokens.shape[1] >= DENSE_FROM * n else gathered
    # one sequence at a time: selections may differ in length
    parts = [attend(rows[i : i + 1], key[i : i + 1], value[i : i + 1], tokens[i], scale) for i in range(b)]
    output, lse = parts[0] if b == 1 else (torch.cat(part) for part in zip(*parts, strict=True))
    output = output.reshape(b, h, a, d)
    return (output, lse.reshape(b, h, a)) if return_lse else output


def gathered(
    rows: Float[Tensor, "1 g r d"],
    key: Float[Tensor, "1 g n d"],
    value: Float[Tensor, "1 g n d"],
    tokens: Int[Tensor, " s"],
    scale: float | None,
) -> tuple[Float[Tensor, "1 g r d"], Float[Tensor, "1 g r"]]:
    """Attention over a copy of the keys and values at `tokens`."""
    if not tokens.numel():
        return torch.zeros_like(rows), rows.new_full(rows.shape[:3], -torch.inf, dtype=torch.float32)
    try:
        keys, values = key.index_select(2, tokens), value.index_select(2, tokens)
    except IndexError:
        check_places(tokens, key.shape[2], "tokens")
        return gathered(rows, key, value, tokens[tokens >= 0], scale)
    return CPU_FLASH(rows, keys, values, scale=scale)


def masked(
    rows: Float[Tensor, "1 g r d"],
    key: Float[Tensor, "1 g n d"],
    value: Float[Tensor, "1 g n d"],
    tokens: Int[Tensor, " s"],
    scale: float | None,
) -> tuple[Float[Tensor, "1 g r d"], Float[Tensor, "1 g r"]]:
    """Attention to all keys under a mask, which reads them where they are."""
    check_places(tokens, key.shape[2], "tokens")
    chosen = tokens[tokens >= 0]
    if not chosen.numel():
        return gathered(rows, key, value, chosen, scale)
    mask = rows.new_full((key.shape[2],), -torch.inf).index_fill_(0, chosen.long(), 0)
    return CPU_FLASH(rows, key, value, attn_mask=mask.expand(*rows.shape[:3], -1), scale=scale)
