"""Block-sparse attention on a CPU: blocks of a few lists of one length are gathered into a tile that stays in cache.

Flash attention over the tile, a tile for each call of `torch.empty`, and compiled FlexAttention were slower.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from fewstep.kernels.attention import CPU_FLASH

TILE = 1 << 20
"""Elements of keys to gather at a time: 4 MiB, the fastest of 1, 2, 4 and 8."""


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
    """Same as `fewstep.kernels.block_sparse_attention.naive.block_sparse_attention`."""
    (b, h, t, d), (g, n) = query.shape, key.shape[1:3]
    m = -(-n // key_block)
    scale = d**-0.5 if scale is None else scale
    if blocks.shape[3] >= m and bool(((blocks >= 0).sum(3) == m).all()):
        output, lse = dense(query, key, value, scale)
        return (output, lse) if return_lse else output
    # a row for each head and query block; KV blocks are counted over all heads
    rows = whole(query, query_block).reshape(-1, query_block, d)
    keys, values = (whole(x, key_block).reshape(b * g * m, -1) for x in (key, value))
    first = torch.arange(b * g).repeat_interleave(h // g).view(b, h, 1, 1) * m
    output, lse = torch.zeros_like(rows), torch.full(rows.shape[:2], -torch.inf)
    threads = torch.get_num_threads()
    tile = torch.empty(max(TILE, threads * m * key_block * d))
    scores = torch.empty(tile.numel() // d * query_block)
    for chosen, lists, missing in groups(blocks, first, m, -n % key_block):
        # a multiple of the threads, so that none waits
        step = max(1, TILE // (lists.shape[1] * key_block * d * threads)) * threads
        for some, places in zip(chosen.split(step), lists.split(step), strict=True):
            own = rows.index_select(0, some).mul_(scale)
            found, sums = attend(own, keys, values, places, missing, tile, scores, return_lse)
            output.index_copy_(0, some, found)
            if sums is not None:
                lse.index_copy_(0, some, sums)
    output, lse = output.to(query.dtype).view(b, h, -1, d)[:, :, :t], lse.view(b, h, -1)[:, :, :t]
    return (output, lse) if return_lse else output


def whole(tensor: Float[Tensor, "b h t d"], block: int) -> Float[Tensor, "b h u d"]:
    """The tensor in fp32, padded to a multiple of `block` rows; itself, not a copy, where it is that already."""
    missing = -tensor.shape[2] % block
    return F.pad(tensor.float(), (0, 0, 0, missing)) if missing else tensor.float()


def groups(
    blocks: Int[Tensor, "b h q k"], first: Int[Tensor, "b h 1 1"], m: int, missing: int
) -> Iterator[tuple[Int[Tensor, " r"], Int[Tensor, "r c"], int]]:
    """Rows whose lists have one length, those lists counted from `first`, and tokens that their last block lacks."""
    lists = blocks.long()
    lists = lists.masked_fill(lists < 0, m).sort(-1).values  # the ragged block is the last of a list that has it
    count = (lists < m).sum(-1).flatten()
    ragged = (lists == m - 1).any(-1).flatten() if missing else torch.zeros_like(count, dtype=torch.bool)
    lists = (lists + first).flatten(0, 2)
    kind = count * 2 + ragged
    for one in kind.unique().tolist():
        if one > 1:
            chosen = (kind == one).nonzero()[:, 0]
            yield chosen, lists[chosen, : one // 2], missing * (one % 2)


def attend(
    rows: Float[Tensor, "r t d"],
    keys: Float[Tensor, "m e"],
    values: Float[Tensor, "m e"],
    places: Int[Tensor, "r c"],
    missing: int,
    tile: Float[Tensor, " x"],
    scores: Float[Tensor, " y"],
    return_lse: bool,
) -> tuple[Float[Tensor, "r t d"], Float[Tensor, "r t"] | None]:
    """Attention of scaled rows to the blocks at their places but the last `missing` tokens; two buffers to work in."""
    (r, t, d), at = rows.shape, places.flatten()
    size = at.numel() * keys.shape[1] // (r * d) - missing
    tile = tile[: at.numel() * keys.shape[1]].view(at.numel(), -1)
    tokens = tile.view(r, -1, d)[:, :size]
    scores = scores[: r * t * size].view(r, t, size)
    torch.index_select(keys, 0, at, out=tile)
    torch.bmm(rows, tokens.mT, out=scores)
    lse = softmax_(scores, return_lse)
    torch.index_select(values, 0, at, out=tile)
    return torch.bmm(scores, tokens), lse


def dense(
    query: Float[Tensor, "b h t d"], key: Float[Tensor, "b g n d"], value: Float[Tensor, "b g n d"], scale: float
) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h t"]]:
    """Attention to all keys, and its LSE; the query heads of a KV head are rows of one product."""
    (b, h, t, d), g = query.shape, key.shape[1]
    output, lse = CPU_FLASH(query.reshape(b, g, h // g * t, d), key, value, scale=scale)
    return output.reshape(b, h, t, d), lse.reshape(b, h, t)


def softmax_(scores: Float[Tensor, "... n"], return_lse: bool) -> Float[Tensor, ...] | None:
    """Softmax over the last dimension in place; the logarithm of the sum of exponentials where it is asked for."""
    most = scores.amax(-1) if return_lse else None
    torch.softmax(scores, -1, out=scores)
    # p = exp(s - lse) of the greatest score, instead of a pass of exponentials
    return None if most is None else most.sub_(scores.amax(-1).log_())
