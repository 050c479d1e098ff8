"""Nearest-neighbour upsampling by two and a 3x3 convolution in one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive


def upsample_conv(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "o c 3 3"],
    bias: Float[Tensor, " o"],
    *,
    backend: str | None = None,
) -> Float[Tensor, "n o H W"]:
    """Double height and width by repetition, then convolve with one pixel of zeros around.

        up(x)[i, j] = x[i // 2, j // 2]
        y_o[i, j] = b_o + sum_c sum_{r, s in 0..2} W_oc[r, s] up(x_c)[i + r - 1, j + s - 1]

    (Deconvolution and checkerboard artifacts, Distill 2016, doi:10.23915/distill.00003: resize-convolution.)

    Args:
        x: feature maps, contiguous or channels-last.
        weight: ``W``, a kernel for each pair of output and input channel.
        bias: ``b``, of each output channel.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device, and only one with gradients where needed.

    Returns:
        ``[n, o, 2 h, 2 w]`` in the dtype of `x`.

    Raises:
        ValueError: the shapes do not fit, or there is no such backend, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    if x.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"x must be [n, c, h, w] and weight [o, c, 3, 3], found {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    return KERNEL.function(backend or KERNEL.trainable_backend(x, weight, bias))(x, weight, bias)


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
