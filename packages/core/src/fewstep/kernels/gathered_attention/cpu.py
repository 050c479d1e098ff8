"""Gathered attention on a CPU: a KV head for each thread is copied to a tile that stays in cache, then its values."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.kernels.attention import softmax_


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
    rows = (query.float() * (d**-0.5 if scale is None else scale)).reshape(b, g, h // g * a, d)
    output, lse = torch.zeros_like(rows), torch.full(rows.shape[:3], -torch.inf)
    for i in range(b):
        chosen = tokens[i][tokens[i] >= 0]
        if chosen.numel():
            _sequence(rows[i], key[i], value[i], chosen, output[i], lse[i] if return_lse else None)
    output = output.view(b, h, a, d).to(query.dtype)
    return (output, lse.view(b, h, a)) if return_lse else output


def _sequence(
    rows: Float[Tensor, "g m d"],
    key: Float[Tensor, "g n d"],
    value: Float[Tensor, "g n d"],
    chosen: Int[Tensor, " s"],
    output: Float[Tensor, "g m d"],
    lse: Float[Tensor, "g m"] | None,
) -> None:
    """Write the attention of scaled rows to the chosen keys, and its LSE."""
    g, m, d = rows.shape
    heads = min(g, torch.get_num_threads())
    tile = key.new_empty(heads, chosen.numel(), d)
    wide = tile if key.dtype == torch.float32 else torch.empty(tile.shape)
    scores = torch.empty(heads, m, chosen.numel())
    for j in range(0, g, heads):
        some = slice(j, min(g, j + heads))
        count = some.stop - j
        torch.bmm(rows[some], _gather(key[some], chosen, tile, wide).mT, out=scores[:count])
        found = softmax_(scores[:count], lse is not None)
        if lse is not None and found is not None:
            lse[some] = found
        torch.bmm(scores[:count], _gather(value[some], chosen, tile, wide), out=output[some])


def _gather(source: Float[Tensor, "p n d"], chosen: Int[Tensor, " s"], tile: Tensor, wide: Tensor) -> Tensor:
    """Rows of each head in fp32; memory that was just written is in cache, fresh memory is not."""
    for head, out in zip(source, tile, strict=False):
        torch.index_select(head, 0, chosen, out=out)
    if wide is not tile:
        wide.copy_(tile)
    return wide[: len(source)]
