"""Block-sparse attention on a CPU: each thread gathers the blocks of a list into its own L2 cache and runs flash there.

On two threads, a fifth of 8192 to 32768 tokens in fp32, the threads of PyTorch in each operation were slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from fewstep.kernels.attention import CPU_FLASH

TILE = 1 << 18
"""Elements of keys that a thread gathers at a time where a list is shorter: 1 MiB, the fastest of powers of two."""

Job = tuple[Int[Tensor, " r"], Int[Tensor, "r c"], int]
"""Rows with lists of one length, the blocks in them, and the tokens that the last block of each lacks."""


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
    if blocks.shape[3] >= m and bool(((blocks >= 0).sum(3) == m).all()):
        output, lse = dense(query, key, value, scale)
        return (output, lse) if return_lse else output
    # a row for each head and query block; KV blocks are counted over all heads
    rows = padded(query, query_block).reshape(-1, query_block, d)
    keys, values = (padded(x, key_block).reshape(b * g * m, -1) for x in (key, value))
    first = torch.arange(b * g).repeat_interleave(h // g).view(b, h, 1, 1) * m
    output, lse = torch.zeros_like(rows), torch.full(rows.shape[:2], -torch.inf)
    todo = list(jobs(blocks, first, m, -n % key_block, key_block * d))
    longest = max((places.numel() for _, places, _ in todo), default=0)
    queue, inference = iter(todo), torch.is_inference_mode_enabled()

    def work() -> None:
        tiles = torch.empty(2, longest, keys.shape[1])
        # modes belong to a thread
        with torch.inference_mode(inference), torch.no_grad():
            for some, places, missing in queue:
                own = rows.index_select(0, some)[:, None].float()
                tokens = [gather(x, places, tile, d, missing) for x, tile in zip((keys, values), tiles, strict=True)]
                attended, sums = CPU_FLASH(own, *tokens, scale=scale)
                output.index_copy_(0, some, attended[:, 0].to(output.dtype))
                if return_lse:
                    lse.index_copy_(0, some, sums[:, 0])

    in_threads(work, min(torch.get_num_threads(), len(todo)))
    output, lse = output.view(b, h, -1, d)[:, :, :t], lse.view(b, h, -1)[:, :, :t]
    return (output, lse) if return_lse else output


def padded(tensor: Float[Tensor, "b h t d"], block: int) -> Float[Tensor, "b h u d"]:
    """The tensor with zeros up to a multiple of `block` rows; itself, not a copy, where it has that already."""
    missing = -tensor.shape[2] % block
    return F.pad(tensor, (0, 0, 0, missing)) if missing else tensor


def jobs(
    blocks: Int[Tensor, "b h q k"], first: Int[Tensor, "b h 1 1"], m: int, missing: int, size: int
) -> Iterator[Job]:
    """Split lists, counted from `first`, into jobs of about a tile of blocks of `size` elements; the longest first."""
    lists = blocks.long()
    lists = lists.masked_fill(lists < 0, m).sort(-1).values  # the ragged block is the last of a list that has it
    count = (lists < m).sum(-1).flatten()
    ragged = (lists == m - 1).any(-1).flatten() if missing else torch.zeros_like(count, dtype=torch.bool)
    lists = (lists + first).flatten(0, 2)
    kind = count * 2 + ragged
    for one in kind.unique().flip(0).tolist():
        if one > 1:
            chosen, step = (kind == one).nonzero()[:, 0], max(1, TILE // (one // 2 * size))
            of_one = lists[chosen, : one // 2]
            for some, places in zip(chosen.split(step), of_one.split(step), strict=True):
                yield some, places, missing * (one % 2)


def gather(
    blocks: Float[Tensor, "m e"], places: Int[Tensor, "r c"], tile: Float[Tensor, "x e"], d: int, missing: int
) -> Float[Tensor, "r 1 s d"]:
    """Copy blocks into the tile in fp32; tokens of each row but the last `missing`."""
    at = places.flatten()
    tile = tile[: len(at)]
    if blocks.dtype == tile.dtype:
        torch.index_select(blocks, 0, at, out=tile)
    else:
        tile.copy_(blocks.index_select(0, at))
    tokens = tile.view(len(places), 1, -1, d)
    return tokens[:, :, : tokens.shape[2] - missing]


def in_threads(work: Callable[[], None], threads: int) -> None:
    """Do `work` in each of so many Python threads, whose operations run in one thread each."""
    if threads < 2:
        return work()
    mine = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for done in [pool.submit(work) for _ in range(threads)]:
                done.result()
    finally:
        torch.set_num_threads(mine)  # MKL has one number for all threads


def dense(
    query: Float[Tensor, "b h t d"], key: Float[Tensor, "b g n d"], value: Float[Tensor, "b g n d"], scale: float | None
) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h t"]]:
    """Attention to all keys, and its LSE; the query heads of a KV head are rows of one product."""
    (b, h, t, d), g = query.shape, key.shape[1]
    output, lse = CPU_FLASH(query.reshape(b, g, h // g * t, d), key, value, scale=scale)
    return output.reshape(b, h, t, d), lse.reshape(b, h, t)
