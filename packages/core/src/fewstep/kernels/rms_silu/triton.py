"""Normalisation and activation on a GPU: each pixel is read once and written once, sums are fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Signature
from fewstep.kernels.tiles import check_device

TILE = 4096
"""Elements that one program holds."""


@triton.jit(do_not_specialize=["pixels"])
def normalise(out, x, gamma, pixels, root, C: tl.constexpr, CP: tl.constexpr, P: tl.constexpr):
    """``P`` pixels of channels-last rows ``[pixels, C]``."""
    pixel = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    channel = tl.arange(0, CP)
    at = pixel[:, None] * C + channel[None, :]
    there = (pixel < pixels)[:, None] & (channel < C)[None, :]
    values = tl.load(x + at, there, other=0.0).to(tl.float32)
    norm = tl.maximum(tl.sqrt(tl.sum(values * values, 1)), 1e-12)
    weight = tl.load(gamma + channel, channel < C, other=0.0).to(tl.float32)
    scaled = values / norm[:, None] * root * weight[None, :]
    activated = scaled / (1 + tl.exp(-scaled))
    tl.store(out + at, activated.to(out.dtype.element_ty), there)


def rms_silu(x: Float[Tensor, "n c h w"], gamma: Float[Tensor, " c"]) -> Float[Tensor, "n c h w"]:
    """Same as `fewstep.kernels.rms_silu.naive.rms_silu`; the output is channels-last.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    check_device(x)
    n, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).contiguous()
    out = torch.empty_like(rows)
    sizes = tile(c)
    pixels = n * h * w
    with torch.cuda.device_of(x):
        normalise[(triton.cdiv(pixels, sizes["P"]),)](out, rows, gamma, pixels, c**0.5, **sizes)
    return out.permute(0, 3, 1, 2)


def tile(channels: int) -> dict[str, int]:
    """Constants of the kernel: channels, padded to a power of two, and pixels for about `TILE` elements."""
    padded = triton.next_power_of_2(channels)
    return {"C": channels, "CP": padded, "P": max(1, TILE // padded)}


def signatures() -> list[Signature]:
    """Specialisations to compile ahead of time: usual widths, narrow ones, and some that are no power of two."""
    entries = []
    for channels, kind in ((384, "*bf16"), (96, "*fp16"), (12, "*bf16"), (24, "*fp32")):
        types = {"out": kind, "x": kind, "gamma": kind, "pixels": "i32", "root": "fp32"}
        name = f"c{channels}-{kind[1:]}"
        constants = tile(channels)
        entries.append(Signature(name=name, function=normalise, types=types, constants=constants, aligned=("out", "x")))
    return entries
