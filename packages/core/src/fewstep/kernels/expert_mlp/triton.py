"""Experts on a GPU: two grouped matrix products over the kept pairs alone, and a sum by token; the host never waits."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.kernels import Signature
from fewstep.kernels.tiles import check_device
from fewstep.kernels.tuning import Launch, launch

LARGE = 1 << 30
"""Products of all pairs from which on a call is worth tuning."""


@triton.jit
def product(rows, columns, WIDE: tl.constexpr):
    """``rows columns`` in float32; `WIDE` casts first, because the interpreter takes bfloat16 for whole numbers."""
    if WIDE:
        return tl.dot(rows.to(tl.float32), columns.to(tl.float32), input_precision="ieee")
    return tl.dot(rows, columns, input_precision="ieee")


@triton.jit
def gated_rows(
    out, x, gate_up, order, tile_expert, tile_start, tile_end, H, F, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``out[p] = silu(W_gate x_t) * (W_up x_t)`` for the sorted pairs p of one tile, ``BN`` features of it."""
    tile = tl.program_id(0)
    expert = tl.load(tile_expert + tile)
    end = tl.load(tile_end + tile)
    if end == 0:
        return
    row = tl.load(tile_start + tile) + tl.arange(0, BM)
    there = row < end
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = column < F
    token = tl.load(order + row, there, other=0) // K
    matrix = gate_up + expert.to(tl.int64) * 2 * F * H
    gate = tl.zeros([BM, BN], tl.float32)
    up = tl.zeros([BM, BN], tl.float32)
    for start in range(0, H, BK):
        inner = start + tl.arange(0, BK)
        within = inner < H
        rows = tl.load(x + token[:, None] * H + inner[None, :], there[:, None] & within[None, :], other=0.0)
        at = matrix + column[None, :] * H + inner[:, None]
        both = within[:, None] & inside[None, :]
        gate += product(rows, tl.load(at, both, other=0.0), WIDE)
        up += product(rows, tl.load(at + F * H, both, other=0.0), WIDE)
    made = (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty)
    tl.store(out + row[:, None].to(tl.int64) * F + column[None, :], made, there[:, None] & inside[None, :])


@triton.jit
def weighted_rows(
    out, hidden, down, weight, order, tile_expert, tile_start, tile_end, H, F,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``out[slot of p] = w_p W_down hidden_p`` for the sorted pairs p of one tile, ``BN`` features of it."""
    tile = tl.program_id(0)
    expert = tl.load(tile_expert + tile)
    end = tl.load(tile_end + tile)
    if end == 0:
        return
    row = tl.load(tile_start + tile) + tl.arange(0, BM)
    there = row < end
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = column < H
    slot = tl.load(order + row, there, other=0)
    matrix = down + expert.to(tl.int64) * H * F
    total = tl.zeros([BM, BN], tl.float32)
    for start in range(0, F, BK):
        inner = start + tl.arange(0, BK)
        within = inner < F
        at = hidden + row[:, None].to(tl.int64) * F + inner[None, :]
        rows = tl.load(at, there[:, None] & within[None, :], other=0.0)
        both = within[:, None] & inside[None, :]
        part = tl.load(matrix + column[None, :] * F + inner[:, None], both, other=0.0)
        total += product(rows, part, WIDE)
    total *= tl.load(weight + slot, there, other=0.0).to(tl.float32)[:, None]
    tl.store(out + slot[:, None].to(tl.int64) * H + column[None, :], total, there[:, None] & inside[None, :])


@triton.jit
def token_sums(out, parts, index, E, H, K, BN: tl.constexpr):
    """``out[t]`` = sum over the kept places of token t, always in the same order."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = column < H
    total = tl.zeros([BN], tl.float32)
    for place in range(0, K):
        pair = token * K + place + tl.zeros([BN], tl.int64)
        kept = tl.load(index + pair) < E
        total += tl.load(parts + pair * H + column, inside & kept, other=0.0)
    tl.store(out + token * H + column, total.to(out.dtype.element_ty), inside)


def expert_mlp(
    x: Float[Tensor, "t h"],
    index: Int[Tensor, "t k"],
    weight: Float[Tensor, "t k"],
    gate_up: Float[Tensor, "e f2 h"],
    down: Float[Tensor, "e h f"],
) -> Float[Tensor, "t h"]:
    """Same as `fewstep.kernels.expert_mlp.naive.expert_mlp`.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    check_device(x)
    x, index, weight, gate_up, down = (tensor.contiguous() for tensor in (x, index, weight, gate_up, down))
    (tokens, h), k, (experts, _, f) = x.shape, index.shape[1], (*down.shape[:2], down.shape[2])
    sizes = blocks(tokens * k, experts, x.element_size())
    order, tiles = plan(index, experts, sizes["BM"])
    hidden = torch.empty(tokens * k, f, dtype=x.dtype, device=x.device)
    parts = torch.empty(tokens * k, h, device=x.device)
    out = torch.empty_like(x)
    many, large = len(tiles[0]), tokens * k * h * f >= LARGE
    kind = h, f, x.dtype, sizes["BM"]
    options: dict[str, Any] = {"launches": launches(sizes, x.element_size()), "large": large, "kind": kind}
    options["WIDE"] = sizes["WIDE"]
    with torch.cuda.device_of(x):
        first = hidden, x, gate_up, order, *tiles, h, f, k
        launch(gated_rows, lambda chosen: (many, triton.cdiv(f, chosen["BN"])), first, **options)
        second = parts, hidden, down, weight, order, *tiles, h, f
        launch(weighted_rows, lambda chosen: (many, triton.cdiv(h, chosen["BN"])), second, **options)
        token_sums[(tokens, triton.cdiv(h, 128))](out, parts, index, experts, h, k, BN=128)
    return out


def launches(sizes: dict[str, int], size: int) -> list[Launch]:
    """Columns and depth of a tile, warps and stages to choose from; its rows are those that the plan was made for."""
    usual = {name: sizes[name] for name in ("BM", "BN", "BK")}
    others = ((64, 64, 4, 3), (128, 32, 4, 4), (128, 64, 8, 3), (32, 64, 4, 4)) if size == 2 else ()
    tuned = (Launch(constants=usual | {"BN": n, "BK": k}, warps=w, stages=s) for n, k, w, s in others)
    return [Launch(constants=usual), *tuned]


def plan(index: Int[Tensor, "t k"], experts: int, rows: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Sort the pairs by expert and cut each expert's pairs into tiles; nothing here waits for the device.

    Returns:
        Pair numbers ``t k + i``, sorted, the skipped ones last; and expert, first row and end row of each tile. The
        tiles beyond those that are needed have expert 0 and no rows.
    """
    flat = index.reshape(-1)
    order = flat.argsort(stable=True).int()
    # not bincount, which waits for the device
    counts = torch.zeros(experts + 1, dtype=torch.int32, device=index.device)
    counts.index_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
    counts = counts[:experts]
    ends, needed = counts.cumsum(0), (counts + rows - 1) // rows
    last = needed.cumsum(0)
    tile = torch.arange(triton.cdiv(len(flat), rows) + experts, device=index.device)
    expert = torch.searchsorted(last, tile, right=True)
    real = expert < experts
    expert = expert.where(real, 0)
    start = (ends - counts)[expert] + (tile - (last - needed)[expert]) * rows
    end = torch.minimum(start + rows, ends[expert])
    return order, (expert.int(), start.where(real, 0).int(), end.where(real, 0).int())


def blocks(pairs: int, experts: int, width: int) -> dict[str, int]:
    """Sizes of tiles: rows for the pairs that an expert has on average; smaller ones for numbers of 4 bytes."""
    rows, most = triton.next_power_of_2(max(1, pairs // experts)), 64 if width == 2 else 32
    wide = not isinstance(gated_rows, triton.JITFunction)
    return {"BM": min(most, max(16, rows)), "BN": most, "BK": 32, "WIDE": wide}


def signatures() -> list[Signature]:
    """Specialisations to compile ahead of time: prefill and decode tiles, in three dtypes."""
    tiles: dict[str, Any] = {"order": "*i32", "tile_expert": "*i32", "tile_start": "*i32", "tile_end": "*i32"}
    sizes = {"H": "i32", "F": "i32"}
    entries = []
    for dtype, pairs in (("bf16", 4096), ("bf16", 8), ("fp16", 4096), ("fp32", 4096)):
        constants, at = blocks(pairs, 32, int(dtype[2:]) // 8), f"*{dtype}"
        name = f"{dtype}-rows{constants['BM']}"
        aligned = ("out", "order", "H", "F")
        entries.append(Signature(name=f"gated-{name}", function=gated_rows, constants=constants,
                                 types={"out": at, "x": at, "gate_up": at, "K": "i32"} | tiles | sizes,
                                 aligned=(*aligned, "x", "gate_up")))  # fmt: skip
        entries.append(Signature(name=f"weighted-{name}", function=weighted_rows, constants=constants,
                                 types={"out": "*fp32", "hidden": at, "down": at, "weight": at} | tiles | sizes,
                                 aligned=(*aligned, "hidden", "down")))  # fmt: skip
    sums = {"out": "*bf16", "parts": "*fp32", "index": "*i64", "E": "i32", "H": "i32", "K": "i32"}
    entries.append(Signature(name="sums", function=token_sums, types=sums, constants={"BN": 128},
                           aligned=("out", "parts", "H")))  # fmt: skip
    return entries
