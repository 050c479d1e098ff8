"""Block scores on a GPU: K is read once, all sums are fp32."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Signature
from fewstep.kernels.block_means.triton import tile, unit_means
from fewstep.kernels.tiles import on_gpu


@triton.jit
def head_dots(query, means, head, stride_h, D: tl.constexpr, DP: tl.constexpr):
    """``<q_head, mean_u>`` for every unit of ``means``."""
    dim = tl.arange(0, DP)
    row = tl.load(query + head * stride_h + dim, dim < D, other=0.0).to(tl.float32)
    return tl.sum(means * row[None, :], 1)


@triton.jit(do_not_specialize=["tokens"])
def block_scores(
    out, query, keys, tokens, groups, rep, stride_h, stride_g, stride_t, D: tl.constexpr, UNIT: tl.constexpr,
    UNITS: tl.constexpr, ABS: tl.constexpr, T: tl.constexpr, U: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """``out[j] = max`` over units of block ``j`` of the head mean of ``<q, k>`` or ``|<q, k>|``; a program a block."""
    block = tl.program_id(0)
    best = -float("inf")
    for start in range(0, UNITS, U):
        slot = start + tl.arange(0, U)
        units = block * UNITS + slot
        total = tl.zeros([U], tl.float32)
        for group in range(0, groups):
            head_keys = keys + tl.cast(group, tl.int64) * stride_g
            means = unit_means(head_keys, units, tokens, stride_t, D, UNIT, T, DP)
            for member in range(0, rep):
                dots = head_dots(query, means, group * rep + member, stride_h, D, DP)
                total += tl.abs(dots) if ABS else dots
        has_keys = (slot < UNITS) & (units * UNIT < tokens)
        best = tl.maximum(best, tl.max(tl.where(has_keys, total / (groups * rep), -float("inf")), 0))
    tl.store(out + block, best)


@triton.jit(do_not_specialize=["tokens", "units"])
def unit_dots(
    out, query, keys, tokens, units, rep, stride_h, stride_g, stride_t, D: tl.constexpr, UNIT: tl.constexpr,
    T: tl.constexpr, U: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """``out[h, u] = <q_h, mean_u>``; one program makes ``U`` units of all query heads of one KV head."""
    unit = tl.program_id(0) * U + tl.arange(0, U)
    group = tl.program_id(1)
    means = unit_means(keys + group.to(tl.int64) * stride_g, unit, tokens, stride_t, D, UNIT, T, DP)
    for member in range(0, rep):
        head = group * rep + member
        dots = head_dots(query, means, head, stride_h, D, DP)
        tl.store(out + head.to(tl.int64) * units + unit, dots, unit < units)


def unit_score(
    query: Float[Tensor, "h d"],
    keys: Float[Tensor, "g t d"],
    *,
    block: int,
    unit: int,
    score: Literal["dot", "abs_dot", "unit_softmax"] = "dot",
) -> Float[Tensor, " n"]:
    """Same as `fewstep.kernels.unit_score.naive.unit_score`.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    query, keys = on_gpu(query, keys)
    with torch.cuda.device_of(keys):
        if score == "unit_softmax":
            return _softmax_scores(query, keys, block, unit)
        out = torch.empty(-(-keys.shape[1] // block), device=keys.device)
        slots = block // unit
        sizes = tile(query.shape[1], unit, slots)
        block_scores[out.shape](
            out, query, keys, keys.shape[1], *_layout(query, keys), UNITS=slots, ABS=score == "abs_dot", **sizes
        )
    return out


def _softmax_scores(query: Tensor, keys: Tensor, block: int, unit: int) -> Tensor:
    (h, d), (g, t, _) = query.shape, keys.shape
    dots = torch.empty(h, -(-t // unit), device=keys.device)
    sizes = tile(d, unit, dots.shape[1])
    grid = (triton.cdiv(dots.shape[1], sizes["U"]), g)
    unit_dots[grid](dots, query, keys, t, dots.shape[1], *_layout(query, keys)[1:], **sizes)
    scores = (dots / d**0.5).softmax(-1).mean(0)
    missing = -scores.numel() % (block // unit)
    return torch.nn.functional.pad(scores, (0, missing), value=-torch.inf).view(-1, block // unit).amax(1)


def _layout(query: Tensor, keys: Tensor) -> tuple[int, ...]:
    """Arguments that both kernels take in this order: KV heads, query heads of each, strides."""
    return keys.shape[0], query.shape[0] // keys.shape[0], query.stride(0), keys.stride(0), keys.stride(1)


def signatures() -> list[Signature]:
    """Specialisations to compile ahead of time: units of 8, one-token units, a head dim that is no power of two."""
    common = {"query": "*bf16", "keys": "*bf16", "tokens": "i32", "rep": "i32"}
    common |= {"out": "*fp32", "stride_h": "i32", "stride_g": "i32", "stride_t": "i32"}
    aligned = ("out", "query", "keys", "stride_h", "stride_g", "stride_t")
    entries = []
    for dim, unit, keys in ((128, 8, "*bf16"), (64, 8, "*fp16"), (80, 8, "*fp32"), (128, 1, "*bf16")):
        types = common | {"query": keys, "keys": keys}
        slots = 64 // unit
        name = f"d{dim}-unit{unit}-{keys[1:]}"
        scores = {"UNITS": slots, "ABS": unit == 8} | tile(dim, unit, slots)
        entries.append(Signature(name=f"block-{name}", function=block_scores, types=types | {"groups": "i32"},
                                 constants=scores, aligned=aligned))  # fmt: skip
        entries.append(Signature(name=f"dots-{name}", function=unit_dots, types=types | {"units": "i32"},
                                 constants=tile(dim, unit, 4096), aligned=aligned))  # fmt: skip
    return entries
