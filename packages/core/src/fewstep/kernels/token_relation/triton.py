"""Token relations on a GPU: tiles of both similarities live in registers, the gradient gathers over them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Signature
from fewstep.kernels.tiles import check_device, interpreting

from .naive import gradient_dtype, inverse_lengths

ROWS = 64
"""Rows and columns of a tile."""


@triton.jit
def load_tile(start, rows, channels, tokens, dim, WIDE: tl.constexpr):
    """Some channels of some tokens, 0 beyond the last; `WIDE` for an interpreter without bf16 products."""
    there = (rows < tokens)[:, None] & (channels < dim)[None, :]
    values = tl.load(start + rows[:, None] * dim + channels[None, :], there, other=0.0)
    return values.to(tl.float32) if WIDE else values


@triton.jit
def similarities(
    start, rows, columns, tokens, dim, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr
):
    """Inner products ``[M, N]`` of tokens of one frame."""
    products = tl.zeros([M, N], tl.float32)
    for first in range(0, dim, K):
        channels = first + tl.arange(0, K)
        left = load_tile(start, rows, channels, tokens, dim, WIDE)
        right = load_tile(start, columns, channels, tokens, dim, WIDE)
        products = tl.dot(left, tl.trans(right), products, input_precision="ieee")
    return products


@triton.jit
def relation_rows(
    values, gradient, slopes, own, other, own_inverse, other_inverse, tokens, dim, margin,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``M`` rows of one frame: their share of the sum, and their gradient, which is gathered in ``slopes``."""
    frame = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * M + tl.arange(0, M)
    mine, theirs = own + frame * tokens * dim, other + frame * tokens * dim
    gathered = slopes + frame * tokens * dim
    scale = tl.load(own_inverse + frame * tokens + rows, rows < tokens, other=0.0)
    like = tl.load(other_inverse + frame * tokens + rows, rows < tokens, other=0.0)
    total = tl.zeros([M], tl.float32)
    for first in range(0, tokens, N):
        columns = first + tl.arange(0, N)
        across = tl.load(own_inverse + frame * tokens + columns, columns < tokens, other=0.0)
        along = tl.load(other_inverse + frame * tokens + columns, columns < tokens, other=0.0)
        difference = similarities(mine, rows, columns, tokens, dim, M, N, K, WIDE) * (scale[:, None] * across[None, :])
        difference -= similarities(theirs, rows, columns, tokens, dim, M, N, K, WIDE) * (like[:, None] * along[None, :])
        beyond = tl.abs(difference) - margin
        total += tl.sum(tl.where(beyond <= 0, 0.0, beyond), 1)  # NaN stays
        sign = tl.where(beyond <= 0, 0.0, tl.where(difference > 0, 1.0, -1.0))
        for start in range(0, dim, K):
            channels = start + tl.arange(0, K)
            part = load_tile(mine, columns, channels, tokens, dim, WIDE)
            unit = (part.to(tl.float32) * across[:, None]).to(part.dtype)
            at = gathered + rows[:, None] * dim + channels[None, :]
            there = (rows < tokens)[:, None] & (channels < dim)[None, :]
            before = tl.load(at, there & (first > 0), other=0.0)
            tl.store(at, before + tl.dot(sign.to(unit.dtype), unit, input_precision="ieee"), there)
        tl.debug_barrier()  # the next round reads what other threads wrote
    tl.store(values + frame * tl.num_programs(0) + tl.program_id(0), tl.sum(total, 0))
    radial = tl.zeros([M], tl.float32)
    for start in range(0, dim, K):
        channels = start + tl.arange(0, K)
        unit = load_tile(mine, rows, channels, tokens, dim, WIDE).to(tl.float32) * scale[:, None]
        radial += tl.sum(unit * load_tile(gathered, rows, channels, tokens, dim, WIDE), 1)
    factor = scale * (2.0 / tokens / tokens)
    for start in range(0, dim, K):
        channels = start + tl.arange(0, K)
        unit = load_tile(mine, rows, channels, tokens, dim, WIDE).to(tl.float32) * scale[:, None]
        tangent = load_tile(gathered, rows, channels, tokens, dim, WIDE) - unit * radial[:, None]
        there = (rows < tokens)[:, None] & (channels < dim)[None, :]
        at = gradient + frame * tokens * dim + rows[:, None] * dim + channels[None, :]
        tl.store(at, tangent * factor[:, None], there)


def token_relation(
    tokens: Float[Tensor, "n s d"], reference: Float[Tensor, "n s d"], *, margin: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n s d"]]:
    """Same as `fewstep.kernels.token_relation.naive.token_relation`, in float32.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    check_device(tokens)
    kind = torch.promote_types(tokens.dtype, reference.dtype)
    own, other = tokens.to(kind).contiguous(), reference.to(kind).contiguous()
    frames, size, dim = own.shape
    gradient = torch.empty(own.shape, dtype=gradient_dtype(own), device=own.device)
    slopes = gradient if gradient.dtype == torch.float32 else torch.empty(own.shape, device=own.device)
    values = torch.empty(frames, triton.cdiv(size, ROWS), device=own.device)
    inverses = inverse_lengths(own), inverse_lengths(other)
    with torch.cuda.device_of(own):
        relation_rows[values.shape[::-1]](
            values, gradient, slopes, own, other, *inverses, size, dim, margin,
            **tile(own.element_size()), WIDE=interpreting(), num_warps=warps(own.element_size()),
        )  # fmt: skip
    return values.sum(1) / size**2, gradient.to(gradient_dtype(tokens))


def tile(size: int) -> dict[str, int]:
    """Rows, columns and channels of a tile, by the bytes of an element: exact fp32 products need more registers."""
    return {"M": ROWS, "N": ROWS, "K": 64 // size}


def warps(size: int) -> int:
    """Warps of a program, by the bytes of an element."""
    return 2 * size


def signatures() -> list[Signature]:
    """Specialisations to compile ahead of time, one for each dtype of the features."""
    scratch = ("values", "slopes", "own_inverse", "other_inverse")
    return [
        Signature(
            name=dtype,
            function=relation_rows,
            types=dict.fromkeys(("own", "other"), f"*{dtype}")
            | dict.fromkeys(scratch, "*fp32")
            | {"gradient": "*bf16" if dtype == "bf16" else "*fp32"}
            | {"tokens": "i32", "dim": "i32", "margin": "fp32"},
            constants={**tile(size), "WIDE": False},
            aligned=(*scratch, "gradient", "own", "other", "dim"),
            warps=warps(size),
        )
        for dtype, size in (("bf16", 2), ("fp16", 2), ("fp32", 4))
    ]
