"""Causal depthwise convolution on a GPU: a tile of pixels and channels for all frames, without padded copies."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Signature
from fewstep.kernels.tiles import check_device

PIXELS, CHANNELS = 32, 32


@triton.jit(do_not_specialize=["frames", "past", "height", "width"])
def convolve(
    out, x, weight, bias, frames, past, height, width, C: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Frame ``program_id(1)`` of the outputs of all clips; rows are channels-last ``[b, t, h, w, C]``."""
    pixel = tl.program_id(0) * P + tl.arange(0, P)
    kept = frames - past
    clip, frame = tl.program_id(1) // kept, tl.program_id(1) % kept + past
    channel = tl.program_id(2) * K + tl.arange(0, K)
    row, column, known = pixel // width, pixel % width, channel < C
    total = tl.zeros([P, K], tl.float32) + tl.load(bias + channel, known, other=0.0).to(tl.float32)[None, :]
    for tap in range(0, 27):
        t, y, z = pixel * 0 + frame + tap // 9 - 2, row + tap // 3 % 3 - 1, column + tap % 3 - 1
        inside = (y >= 0) & (y < height) & (z >= 0) & (z < width) & (t >= 0) & (pixel < height * width)
        at = ((tl.cast(clip, tl.int64) * frames + t) * height + y) * width + z
        values = tl.load(x + at[:, None] * C + channel[None, :], inside[:, None] & known[None, :], other=0.0)
        factor = tl.load(weight + channel * 27 + tap, known, other=0.0)
        total += values.to(tl.float32) * factor.to(tl.float32)[None, :]
    at = (tl.program_id(1).to(tl.int64) * height * width + pixel)[:, None] * C + channel[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), (pixel < height * width)[:, None] & known[None, :])


def causal_depthwise(
    x: Float[Tensor, "b t c h w"], weight: Float[Tensor, "c 1 3 3 3"], bias: Float[Tensor, " c"], past: int
) -> Float[Tensor, "b T c h w"]:
    """Same as `fewstep.kernels.causal_depthwise.naive.causal_depthwise`; the output is channels-last.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    check_device(x)
    b, t, c, h, w = x.shape
    rows = x.permute(0, 1, 3, 4, 2).contiguous()
    out = torch.empty(b, t - past, h, w, c, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(h * w, PIXELS), b * (t - past), triton.cdiv(c, CHANNELS))
    with torch.cuda.device_of(x):
        convolve[grid](out, rows, weight.contiguous(), bias, t, past, h, w, C=c, P=PIXELS, K=CHANNELS)
    return out.permute(0, 1, 4, 2, 3)


def signatures() -> list[Signature]:
    """Specialisations to compile ahead of time: usual widths, and one that is no multiple of a tile."""
    entries = []
    for channels, kind in ((384, "*bf16"), (192, "*fp16"), (40, "*fp32")):
        types = dict.fromkeys(("out", "x", "weight", "bias"), kind)
        types |= dict.fromkeys(("frames", "past", "height", "width"), "i32")
        constants = {"C": channels, "P": PIXELS, "K": CHANNELS}
        name = f"c{channels}-{kind[1:]}"
        entries.append(Signature(name=name, function=convolve, types=types, constants=constants, aligned=("out", "x")))
    return entries
