"""Block-sparse attention on a GPU: one program for a tile of queries, online softmax over the blocks of its list."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.kernels import Signature
from fewstep.kernels.tiles import LOG2_E, interpreting, load_rows, log_sum, on_gpu, online_step, strides, tile, warps
from fewstep.kernels.tuning import Launch, launch

LARGE = 1 << 24
"""Scores of all heads from which on a call is worth tuning: some 50 microseconds of a large card."""


@triton.jit(do_not_specialize=["tokens", "keys", "places"])
def listed_attention(
    out, lse, query, key, value, lists, counts, tokens, keys, places, heads, rep, scale,
    query_b, query_h, query_t, key_b, key_g, key_n, value_b, value_g, value_n,
    QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Output and LSE of ``M`` rows of one query block; `counts` says how many of its `places` hold a block."""
    within: tl.constexpr = (QUERY_BLOCK + M - 1) // M
    steps: tl.constexpr = (KEY_BLOCK + N - 1) // N
    block, head = tl.program_id(0) // within, tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) % within * M + tl.arange(0, M)
    here = (row < QUERY_BLOCK) & (block * QUERY_BLOCK + row < tokens)
    row += block * QUERY_BLOCK
    batch, group = head // heads, head % heads // rep
    rows = load_rows(query + batch * query_b + head % heads * query_h, row, query_t, here, D, DP, WIDE)
    key += batch * key_b + group * key_g
    value += batch * value_b + group * value_g
    index = head * (tl.num_programs(0) // within) + block
    output, total = tl.zeros([M, DP], tl.float32), tl.zeros([M], tl.float32)
    most = tl.full([M], -float("inf"), tl.float32)
    for step in range(0, tl.load(counts + index) * steps):
        token = step % steps * N + tl.arange(0, N)
        start = tl.load(lists + index * places + step // steps) * KEY_BLOCK
        there = (token < KEY_BLOCK) & (start + token < keys)
        tile_keys = load_rows(key, start + token, key_n, there, D, DP, WIDE)
        tile_values = load_rows(value, start + token, value_n, there, D, DP, WIDE)
        output, most, total = online_step(output, most, total, rows, tile_keys, tile_values, there, scale)
    dim = tl.arange(0, DP)
    at = head * tokens + row
    tl.store(lse + at, log_sum(most, total), here)
    output = output / tl.where(total == 0, 1.0, total)[:, None]
    tl.store(out + at[:, None] * D + dim[None, :], output, here[:, None] & (dim < D)[None, :])


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
    """Same as `fewstep.kernels.block_sparse_attention.naive.block_sparse_attention`.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    query, key, value = on_gpu(query, key, value)
    b, h, t, d = query.shape
    counts = (blocks >= 0).sum(3, dtype=torch.int32).contiguous()
    lists = blocks.int().sort(3, descending=True).values.contiguous()  # -1, which is no block, comes last
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(query.shape[:3], device=query.device)
    args = (
        out, lse, query, key, value, lists, counts, t, key.shape[2], lists.shape[3], h, h // key.shape[1],
        (d**-0.5 if scale is None else scale) * LOG2_E, *strides(query, key, value),
    )  # fmt: skip
    with torch.cuda.device_of(query):
        launch(
            listed_attention,
            lambda sizes: (blocks.shape[2] * triton.cdiv(query_block, sizes["M"]), b * h),
            args,
            (d, query.dtype, query_block, key_block),
            launches(d, query.element_size(), query_block, key_block),
            large=b * h * t * lists.shape[3] * key_block >= LARGE,
            QUERY_BLOCK=query_block, KEY_BLOCK=key_block, WIDE=interpreting(),
        )  # fmt: skip
    return (out, lse) if return_lse else out


def launches(dim: int, size: int, query_block: int, key_block: int) -> list[Launch]:
    """Rows of queries and of keys in a tile, warps and stages to choose from, in elements of `size` bytes."""
    usual = tile(dim, size, query_block)
    made = [Launch(constants=usual, warps=warps(dim, size))]
    if size == 4:
        return made
    for rows, keys, many, stages in (
        (64, 64, 4, 3),
        (64, 32, 4, 4),
        (128, 64, 8, 3),
        (128, 128, 8, 2),
    ):
        if rows <= query_block and keys <= key_block:
            made.append(Launch(constants=usual | {"M": rows, "N": keys}, warps=many, stages=stages))
    return made


def signatures() -> list[Signature]:
    """Specialisations to compile ahead of time: usual head sizes and dtypes, an odd head size, blocks of 64 and 128."""
    entries = []
    for dim, dtype, block in ((64, "bf16", 64), (128, "fp16", 128), (96, "bf16", 64), (80, "fp32", 32)):
        pointers = {name: f"*{dtype}" for name in ("out", "query", "key", "value")}
        pointers |= {"lse": "*fp32", "lists": "*i32", "counts": "*i32"}
        numbers = ("tokens", "keys", "places", "heads", "rep")
        steps = tuple(f"{x}_{y}" for x, ys in (("query", "bht"), ("key", "bgn"), ("value", "bgn")) for y in ys)
        size = 4 if dtype == "fp32" else 2
        entries.append(Signature(
            name=f"d{dim}-{dtype}-block{block}", function=listed_attention, aligned=(*pointers, *steps),
            warps=warps(dim, size),
            types=pointers | dict.fromkeys((*numbers, *steps), "i32") | {"scale": "fp32"},
            constants=tile(dim, size, block)
            | {"QUERY_BLOCK": block, "KEY_BLOCK": block, "WIDE": False},
        ))  # fmt: skip
    return entries
