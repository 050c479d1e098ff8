"""Gathered attention on a GPU: the rows of all heads of a KV head in one tile, keys split over programs and merged."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.kernels import Signature
from fewstep.kernels.attention import merge_attention
from fewstep.kernels.tiles import (
    LOG2_E,
    interpreting,
    load_rows,
    log_sum,
    on_gpu,
    online_step,
    strides,
    tile,
)
from fewstep.kernels.tuning import Launch, launch

LARGE = 1 << 20
"""Keys of all heads from which on a call is worth tuning."""


@triton.jit(do_not_specialize=["count", "share", "rows"])
def part_of_attention(
    out, lse, query, key, value, tokens, count, share, rows, groups, scale,
    query_b, query_g, query_m, key_b, key_g, key_n, value_b, value_g, value_n,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Output and LSE of ``M`` rows over the `share` tokens of one split."""
    split, head = tl.program_id(0), tl.program_id(2).to(tl.int64)
    batch, group = head // groups, head % groups
    row = tl.program_id(1) * M + tl.arange(0, M)
    own = load_rows(query + batch * query_b + group * query_g, row, query_m, row < rows, D, DP, WIDE)
    key += batch * key_b + group * key_g
    value += batch * value_b + group * value_g
    output, total = tl.zeros([M, DP], tl.float32), tl.zeros([M], tl.float32)
    most = tl.full([M], -float("inf"), tl.float32)
    end = tl.minimum(count, (split + 1) * share)
    for start in range(split * share, end, N):
        at = start + tl.arange(0, N)
        token = tl.load(tokens + batch * count + at, at < end, other=-1)
        there = token >= 0
        tile_keys = load_rows(key, token, key_n, there, D, DP, WIDE)
        tile_values = load_rows(value, token, value_n, there, D, DP, WIDE)
        output, most, total = online_step(output, most, total, own, tile_keys, tile_values, there, scale)
    dim = tl.arange(0, DP)
    at = (split * tl.num_programs(2) + head) * rows + row
    tl.store(lse + at, log_sum(most, total), row < rows)
    output = output / tl.where(total == 0, 1.0, total)[:, None]
    tl.store(out + at[:, None] * D + dim[None, :], output, (row < rows)[:, None] & (dim < D)[None, :])


def gathered_attention(
    query: Float[Tensor, "b h a d"],
    key: Float[Tensor, "b g n d"],
    value: Float[Tensor, "b g n d"],
    tokens: Int[Tensor, "b s"],
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> Float[Tensor, "b h a d"] | tuple[Float[Tensor, "b h a d"], Float[Tensor, "b h a"]]:
    """Same as `fewstep.kernels.gathered_attention.naive.gathered_attention`.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    (b, h, a, d), g = query.shape, key.shape[1]
    query, key, value = on_gpu(query.reshape(b, g, h // g * a, d), key, value)
    rows, count = query.shape[2], tokens.shape[1]
    sizes = tile(d, query.element_size(), rows)
    tiles = triton.cdiv(rows, sizes["M"])
    parts = splits(count, tiles * b * g, query.device)
    outputs = torch.empty(parts, b, g, rows, d, device=query.device)
    lses = torch.empty(outputs.shape[:-1], device=query.device)
    args = (
        outputs, lses, query, key, value, tokens.int().contiguous(), count, triton.cdiv(count, parts), rows, g,
        (d**-0.5 if scale is None else scale) * LOG2_E, *strides(query, key, value),
    )  # fmt: skip
    with torch.cuda.device_of(query):
        launch(
            part_of_attention,
            lambda sizes: (parts, tiles, b * g),
            args,
            (d, query.dtype, sizes["M"]),
            launches(sizes, query.element_size()),
            large=b * g * count >= LARGE,
            WIDE=interpreting(),
        )
    output, lse = merge_attention(outputs.unbind(), lses.unbind())
    output = output.view(b, h, a, d).to(query.dtype)
    return (output, lse.view(b, h, a)) if return_lse else output


def launches(sizes: dict[str, int | bool], size: int) -> list[Launch]:
    """Keys in a tile, warps and stages to choose from; the rows of a tile decide the grid and stay."""
    others = ((32, 4, 4), (64, 4, 3), (64, 8, 2), (128, 4, 2)) if size == 2 else ()
    return [Launch(constants=sizes), *(Launch(constants=sizes | {"N": n}, warps=w, stages=s) for n, w, s in others)]


def splits(count: int, programs: int, device: torch.device) -> int:
    """Parts of the keys that keep all multiprocessors busy, each of at least 256 keys."""
    busy = torch.cuda.get_device_properties(device).multi_processor_count * 2 if device.type == "cuda" else 4
    return max(1, min(-(-count // 256) if device.type == "cuda" else -(-count // 32), -(-busy // programs)))


def signatures() -> list[Signature]:
    """Specialisations to compile ahead of time: usual head sizes and dtypes, few rows and many, an odd head size."""
    entries = []
    for dim, dtype, rows in ((64, "bf16", 10), (128, "bf16", 70), (96, "fp16", 32), (80, "fp32", 8)):
        pointers = {name: f"*{dtype}" for name in ("query", "key", "value")}
        pointers |= {"out": "*fp32", "lse": "*fp32", "tokens": "*i32"}
        steps = tuple(f"{x}_{y}" for x, ys in (("query", "bgm"), ("key", "bgn"), ("value", "bgn")) for y in ys)
        size = 4 if dtype == "fp32" else 2
        entries.append(Signature(
            name=f"d{dim}-{dtype}-rows{rows}", function=part_of_attention, aligned=(*pointers, *steps),
            types=pointers | dict.fromkeys(("count", "share", "rows", "groups", *steps), "i32") | {"scale": "fp32"},
            constants=tile(dim, size, rows) | {"WIDE": False},
        ))  # fmt: skip
    return entries
