"""Causal 3x3x3 convolution of each channel by itself, with history."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive


def causal_depthwise(
    x: Float[Tensor, "b t c h w"],
    weight: Float[Tensor, "c 1 3 3 3"],
    bias: Float[Tensor, " c"],
    *,
    past: int = 0,
    backend: str | None = None,
) -> Float[Tensor, "b T c h w"]:
    """Convolve each channel with its own kernel, causal in time, zero-padded by one pixel in space.

        y_{t,c} = b_c + sum_{i in 0..2} W_{c,i} * x_{t+i-2,c}      * is the two-dimensional 3x3 convolution

    (Depthwise separable convolution, arXiv 1704.04861, equation 3, with the causal time axis of video VAEs.)

    Args:
        x: frames, ``[B, t, C, H, W]``; the first `past` of them (0 to 2) are history that has been decoded before.
        weight: ``W``; ``weight[:, 0, 2]`` meets the frame itself, ``weight[:, 0, 0]`` the one two before.
        bias: ``b``, of each channel.
        past: frames of history; missing ones are zero.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device, and only one with gradients where needed.

    Returns:
        ``[B, t - past, C, H, W]`` in the dtype of `x`; CPU and naive backends have gradients.

    Raises:
        ValueError: the shapes do not fit, or there is no such backend, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    if x.ndim != 5 or weight.shape != (x.shape[2], 1, 3, 3, 3) or not 0 <= past < x.shape[1]:
        shapes = f"{tuple(x.shape)}, {tuple(weight.shape)} and past={past}"
        raise ValueError(f"x must be [b, t, c, h, w], weight [c, 1, 3, 3, 3] and past < t, found {shapes}")
    return KERNEL.function(backend or KERNEL.trainable_backend(x, weight, bias))(x, weight, bias, past)


def _cases() -> Iterator[Case]:
    """Odd sizes, one frame, one to two frames of history, one channel, dtypes, both layouts."""
    generator = torch.Generator().manual_seed(0)
    sizes = (((1, 1, 3, 5, 7), 0), ((2, 4, 5, 3, 3), 1), ((1, 5, 1, 4, 9), 2), ((1, 2, 70, 3, 1), 1))
    for number, (size, past) in enumerate(sizes):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.randn(size, generator=generator).to(dtype)
            if number % 2:
                x = x.transpose(2, 3).contiguous().transpose(2, 3)
            weight = torch.randn(size[2], 1, 3, 3, 3, generator=generator).to(dtype)
            bias = torch.randn(size[2], generator=generator).to(dtype)
            yield Case(f"{size} past {past} {str(dtype)[6:]}", (x, weight, bias), {"past": past})


KERNEL = Kernel(
    name="causal-depthwise",
    target=f"{__name__}:KERNEL",
    naive=naive.causal_depthwise,
    fast={"cpu": f"{__name__}.cpu:causal_depthwise", "triton": f"{__name__}.triton:causal_depthwise"},
    cases=_cases,
    signatures=f"{__name__}.triton:signatures",
    tolerance=1e-2,
)
