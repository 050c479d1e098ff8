"""Attention mass on a GPU: one pass over the keys for the sums of exponentials, one that adds up all heads and rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.kernels import Signature
from fewstep.kernels.tiles import (
    LOG2_E,
    dot_scores,
    interpreting,
    load_rows,
    log_sum,
    on_gpu,
    online_sum,
    splits,
    strides,
    tile,
    warps,
)


@triton.jit(do_not_specialize=["tokens", "share", "rows"])
def sums(
    lse, query, key, mask, tokens, share, rows, groups, scale, query_b, query_g, query_m, key_b, key_g, key_n,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """LSE of ``M`` rows over the `share` keys of one split."""
    split, head = tl.program_id(0), tl.program_id(2).to(tl.int64)
    batch, group = head // groups, head % groups
    row = tl.program_id(1) * M + tl.arange(0, M)
    own = load_rows(query + batch * query_b + group * query_g, row, query_m, row < rows, D, DP, WIDE)
    total, most = tl.zeros([M], tl.float32), tl.full([M], -float("inf"), tl.float32)
    end = tl.minimum(tokens, (split + 1) * share)
    for start in range(split * share, end, N):
        at = start + tl.arange(0, N)
        there = at < end
        if MASKED:
            there = there & (tl.load(mask + batch * tokens + at, there, other=0) != 0)
        keys = load_rows(key + batch * key_b + group * key_g, at, key_n, there, D, DP, WIDE)
        most, total, _, _ = online_sum(dot_scores(own, keys, there, scale), most, total)
    at = (split * tl.num_programs(2) + head) * rows + row
    tl.store(lse + at, log_sum(most, total), row < rows)


@triton.jit(do_not_specialize=["tokens", "rows"])
def masses(
    out, query, key, lse, weights, mask, tokens, rows, groups, scale, query_b, query_g, query_m, key_b, key_g, key_n,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What ``N`` keys receive: weights times exponentials, over all KV heads and all rows."""
    batch = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * N + tl.arange(0, N)
    there = at < tokens
    if MASKED:
        there = there & (tl.load(mask + batch * tokens + at, there, other=0) != 0)
    mass = tl.zeros([N], tl.float32)
    for group in range(0, groups):
        keys = load_rows(key + batch * key_b + tl.cast(group, tl.int64) * key_g, at, key_n, there, D, DP, WIDE)
        for start in range(0, rows, M):
            row = start + tl.arange(0, M)
            own = load_rows(query + batch * query_b + group * query_g, row, query_m, row < rows, D, DP, WIDE)
            most = tl.load(lse + (batch * groups + group) * rows + row, row < rows, other=0.0)
            weight = tl.load(weights + batch * rows + row, row < rows, other=0.0)
            scores = dot_scores(own, keys, there, scale) - most[:, None] * 1.4426950408889634
            mass += tl.sum(tl.where(there[None, :], tl.exp2(scores) * weight[:, None], 0.0), 0)
    tl.store(out + batch * tokens + at, mass, at < tokens)


def column_mass(
    query: Float[Tensor, "b h a d"],
    key: Float[Tensor, "b g n d"],
    *,
    row_weights: Float[Tensor, "b a"] | None = None,
    key_mask: Bool[Tensor, "b n"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b n"]:
    """Same as `fewstep.kernels.column_mass.naive.column_mass`.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    (b, h, a, d), (g, n) = query.shape, key.shape[1:3]
    query, key = on_gpu(query.reshape(b, g, h // g * a, d), key)
    weights = query.new_full((b, a), 1 / a, dtype=torch.float32) if row_weights is None else row_weights.float()
    weights = (weights / h).repeat(1, h // g).contiguous()
    mask = weights if key_mask is None else key_mask.contiguous().view(torch.uint8)
    rows = query.shape[2]
    size = query.element_size()
    constants = {**sizes(d, size, rows), "WIDE": interpreting(), "MASKED": key_mask is not None}
    tiles = triton.cdiv(rows, constants["M"])
    parts = splits(n, tiles * b * g, query.device)
    lse = torch.empty(parts, b, g, rows, device=query.device)
    out = torch.empty(b, n, device=query.device)
    options = {**constants, "num_warps": warps(d, size)}
    rest = (g, (d**-0.5 if scale is None else scale) * LOG2_E, *strides(query, key))
    with torch.cuda.device_of(query):
        sums[(parts, tiles, b * g)](lse, query, key, mask, n, triton.cdiv(n, parts), rows, *rest, **options)
        lse = lse.logsumexp(0)
        masses[(triton.cdiv(n, constants["N"]), b)](out, query, key, lse, weights, mask, n, rows, *rest, **options)
    return out


def sizes(dim: int, size: int, rows: int) -> dict[str, int | bool]:
    """Constants of both kernels; fewer rows of fp32, because the loop over them holds a tile of keys in registers."""
    return tile(dim, size, rows) | ({"M": 16} if size == 4 else {})


def signatures() -> list[Signature]:
    """What to compile ahead of time: usual head sizes and dtypes, with and without a mask, an odd head size."""
    found = []
    for dim, dtype, rows, masked in ((64, "bf16", 10, False), (128, "fp16", 70, True), (80, "fp32", 8, True)):
        size = 4 if dtype == "fp32" else 2
        steps = tuple(f"{x}_{y}" for x, ys in (("query", "bgm"), ("key", "bgn")) for y in ys)
        pointers = {"query": f"*{dtype}", "key": f"*{dtype}", "lse": "*fp32", "mask": "*u8" if masked else "*fp32"}
        numbers = dict.fromkeys(("tokens", "rows", "groups", *steps), "i32") | {"scale": "fp32"}
        constants = sizes(dim, size, rows) | {"WIDE": False, "MASKED": masked}
        name = f"d{dim}-{dtype}-rows{rows}"
        found.append(Signature(name=f"sums-{name}", function=sums, types=pointers | numbers | {"share": "i32"},
                               constants=constants, warps=warps(dim, size), aligned=(*pointers, *steps)))  # fmt: skip
        pointers |= {"out": "*fp32", "weights": "*fp32"}
        found.append(Signature(name=f"masses-{name}", function=masses, types=pointers | numbers,
                               constants=constants, warps=warps(dim, size), aligned=(*pointers, *steps)))  # fmt: skip
    return found
