"""Upsampling and convolution on a GPU by phases: the large image is never read, products run on tensor cores."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Signature
from fewstep.kernels.tiles import check_device

from .cpu import phases

PIXELS, IN, OUT = 64, 32, 32


@triton.jit(do_not_specialize=["height", "width"])
def convolve(
    out, x, kernels, bias, height, width, C: tl.constexpr, D: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
    Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``P`` pixels of the small image for ``Q`` output channels of one phase; channels-last rows.

    ``kernels`` is ``[phase, row, column, C, D]``; ``program_id(2)`` counts images and phases.
    """
    pixel = tl.program_id(0) * P + tl.arange(0, P)
    channel = tl.program_id(1) * Q + tl.arange(0, Q)
    image, phase = tl.program_id(2) // 4, tl.program_id(2) % 4
    row, column, there = pixel // width, pixel % width, pixel < height * width
    total = tl.zeros([P, Q], tl.float32) + tl.load(bias + channel, channel < D, other=0.0).to(tl.float32)[None, :]
    for tap in range(0, 4):
        y, z = row + tap // 2 - 1 + phase // 2, column + tap % 2 - 1 + phase % 2
        inside = there & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        at = (tl.cast(image, tl.int64) * height + y) * width + z
        for start in range(0, C, K):
            inner = start + tl.arange(0, K)
            values = tl.load(x + at[:, None] * C + inner[None, :], inside[:, None] & (inner < C)[None, :], other=0.0)
            place = ((phase * 4 + tap) * C + inner)[:, None] * D + channel[None, :]
            factors = tl.load(kernels + place, (inner < C)[:, None] & (channel < D)[None, :], other=0.0)
            # tf32 holds every bf16 and fp16 number, so their products are exact
            total = tl.dot(values.to(tl.float32), factors.to(tl.float32), total, input_precision=PRECISION)
    at = (tl.cast(image, tl.int64) * 2 * height + 2 * row + phase // 2) * 2 * width + 2 * column + phase % 2
    tl.store(out + at[:, None] * D + channel[None, :], total.to(out.dtype.element_ty),
             there[:, None] & (channel < D)[None, :])  # fmt: skip


def upsample_conv(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "o c 3 3"], bias: Float[Tensor, " o"]
) -> Float[Tensor, "n o H W"]:
    """Same as `fewstep.kernels.upsample_conv.naive.upsample_conv`; the output is channels-last.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    check_device(x)
    (n, c, h, w), o = x.shape, weight.shape[0]
    rows = x.permute(0, 2, 3, 1).contiguous()
    kernels = phases(weight).permute(0, 3, 4, 2, 1).contiguous()
    out = torch.empty(n, 2 * h, 2 * w, o, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(h * w, PIXELS), triton.cdiv(o, OUT), 4 * n)
    with torch.cuda.device_of(x):
        convolve[grid](out, rows, kernels, bias, h, w, **constants(c, o, x.dtype == torch.float32))
    return out.permute(0, 3, 1, 2)


def constants(inside: int, outside: int, exact: bool) -> dict[str, int | str]:
    """Constants of the kernel; `exact`: the inputs are float32, which tf32 would round."""
    return {"C": inside, "D": outside, "P": PIXELS, "K": IN, "Q": OUT, "PRECISION": "ieee" if exact else "tf32"}


def signatures() -> list[Signature]:
    """Specialisations to compile ahead of time: wide and narrow layers in three dtypes."""
    entries = []
    for inside, outside, kind in ((384, 192, "*bf16"), (384, 24, "*bf16"), (24, 12, "*fp16"), (48, 16, "*fp32")):
        types = dict.fromkeys(("out", "x", "kernels", "bias"), kind) | {"height": "i32", "width": "i32"}
        name = f"{inside}-{outside}-{kind[1:]}"
        entries.append(Signature(name=name, function=convolve, types=types,
                                 constants=constants(inside, outside, kind == "*fp32"),
                                 aligned=("out", "x", "kernels")))  # fmt: skip
    return entries
