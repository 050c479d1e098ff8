"""Means of runs of tokens on a GPU: keys are read once, sums are fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Signature
from fewstep.kernels.tiles import on_gpu, strides

TILE = 4096
"""Key elements that one program holds at a time: 32 fp32 registers a thread with 4 warps."""


@triton.jit
def unit_means(keys, units, tokens, stride_t, D: tl.constexpr, UNIT: tl.constexpr, T: tl.constexpr, DP: tl.constexpr):
    """Mean keys ``[len(units), DP]`` of the given units of one KV head, ``T`` tokens at a time; 0 for an empty unit."""
    dim = tl.arange(0, DP)
    total = tl.zeros([units.shape[0], DP], tl.float32)
    for start in range(0, UNIT, T):
        within = start + tl.arange(0, T)
        token = units[:, None] * UNIT + within[None, :]
        there = (within[None, :] < UNIT) & (token < tokens)
        at = keys + token.to(tl.int64)[:, :, None] * stride_t + dim[None, None, :]
        total += tl.sum(tl.load(at, there[:, :, None] & (dim < D)[None, None, :], other=0.0).to(tl.float32), 1)
    count = tl.minimum(tokens - units * UNIT, UNIT)
    return total / tl.maximum(count, 1)[:, None]


@triton.jit(do_not_specialize=["tokens", "runs"])
def run_means(
    out, keys, tokens, runs, groups, stride_b, stride_g, stride_t,
    D: tl.constexpr, UNIT: tl.constexpr, T: tl.constexpr, U: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Means of ``U`` runs of one KV head."""
    run, head = tl.program_id(0) * U + tl.arange(0, U), tl.program_id(1).to(tl.int64)
    start = keys + head // groups * stride_b + head % groups * stride_g
    means = unit_means(start, run, tokens, stride_t, D, UNIT, T, DP)
    dim = tl.arange(0, DP)
    at = (head * runs + run)[:, None] * D + dim[None, :]
    tl.store(out + at, means, (run < runs)[:, None] & (dim < D)[None, :])


def block_means(keys: Float[Tensor, "b g n d"], *, block: int) -> Float[Tensor, "b g m d"]:
    """Same as `fewstep.kernels.block_means.naive.block_means`.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    (keys,) = on_gpu(keys)
    b, g, n, d = keys.shape
    runs = triton.cdiv(n, block)
    means = torch.empty(b, g, runs, d, device=keys.device)
    sizes = tile(d, block, runs)
    with torch.cuda.device_of(keys):
        run_means[(triton.cdiv(runs, sizes["U"]), b * g)](means, keys, n, runs, g, *strides(keys), **sizes)
    return means


def tile(dim: int, unit: int, units: int) -> dict[str, int]:
    """Constants of the kernels: head dim and unit size, and powers of two whose product is at most about `TILE`."""
    padded = triton.next_power_of_2(dim)
    tokens = min(triton.next_power_of_2(unit), TILE // padded)
    fit = min(triton.next_power_of_2(units), max(1, TILE // (padded * tokens)), 64)
    return {"D": dim, "UNIT": unit, "T": tokens, "U": fit, "DP": padded}


def signatures() -> list[Signature]:
    """Specialisations to compile ahead of time: usual head sizes, long runs and runs of one token, an odd head size."""
    entries = []
    for dim, block, dtype in ((128, 64, "bf16"), (64, 64, "fp16"), (80, 32, "fp32"), (128, 1, "bf16")):
        types = {"out": "*fp32", "keys": f"*{dtype}"}
        steps = ("stride_b", "stride_g", "stride_t")
        numbers = dict.fromkeys(("tokens", "runs", "groups", *steps), "i32")
        entries.append(Signature(name=f"d{dim}-block{block}-{dtype}", function=run_means, types=types | numbers,
                                 constants=tile(dim, block, 512), aligned=(*types, *steps)))  # fmt: skip
    return entries
