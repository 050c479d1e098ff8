"""Nearest-neighbour upsampling by two and a 3x3 convolution in one: the resamplers of video VAEs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive


def chosen_backend(device: torch.device | str) -> str:
    """Backend that `upsample_conv` takes for tensors on this device where no gradient is asked for."""
    kind = torch.device(device).type
    if kind == "cuda" and importlib.util.find_spec("triton"):
        return "triton"
    return "cpu" if kind == "cpu" else "naive"


def upsample_conv(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "o c 3 3"],
    bias: Float[Tensor, " o"],
    *,
    backend: str | None = None,
) -> Float[Tensor, "n o H W"]:
    """Double height and width by repetition, then convolve with one pixel of zeros around.

    Args:
        x: feature maps, contiguous or channels-last.
        weight: kernels.
        bias: of each output channel.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device, and only one with gradients where needed.

    Raises:
        ValueError: the shapes do not fit, or there is no such backend.
    """
    if x.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"x must be [n, c, h, w] and weight [o, c, 3, 3], found {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    chosen = backend or chosen_backend(x.device)
    if backend is None and chosen == "triton" and torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        chosen = "naive"
    return KERNEL.function(chosen)(x, weight, bias)


def _cases() -> Iterator[Case]:
    """Odd sizes, one pixel, one channel, channels that fill no tile, dtypes, both layouts."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 1, 1, 3, 5), (2, 5, 3, 1, 1), (1, 40, 33, 4, 3), (3, 7, 2, 9, 1))
    for number, (n, c, o, h, w) in enumerate(sizes):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.randn(n, c, h, w, generator=generator).to(dtype)
            if number % 2:
                x = x.contiguous(memory_format=torch.channels_last)
            weight = torch.randn(o, c, 3, 3, generator=generator).to(dtype) / (3 * c**0.5)
            bias = torch.randn(o, generator=generator).to(dtype)
            yield Case(f"{c}->{o} {h}x{w} {str(dtype)[6:]}", (x, weight, bias), {})


KERNEL = Kernel(
    name="upsample-conv",
    target=f"{__name__}:KERNEL",
    naive=naive.upsample_conv,
    fast={"cpu": f"{__name__}.cpu:upsample_conv", "triton": f"{__name__}.triton:upsample_conv"},
    cases=_cases,
    signatures=f"{__name__}.triton:signatures",
    tolerance=1e-2,
)
