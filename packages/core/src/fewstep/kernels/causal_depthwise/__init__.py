"""Causal 3x3x3 convolution of each channel by itself: the student's cheap replacement of a dense one."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive


def chosen_backend(device: torch.device | str) -> str:
    """Backend that `causal_depthwise` takes for tensors on this device where no gradient is asked for."""
    kind = torch.device(device).type
    if kind == "cuda" and importlib.util.find_spec("triton"):
        return "triton"
    return "cpu" if kind == "cpu" else "naive"


def causal_depthwise(
    x: Float[Tensor, "b t c h w"],
    weight: Float[Tensor, "c 1 3 3 3"],
    bias: Float[Tensor, " c"],
    *,
    past: int = 0,
    backend: str | None = None,
) -> Float[Tensor, "b T c h w"]:
    """Convolve each channel with its own kernel, causal in time, zero-padded by one pixel in space.

    Args:
        x: frames, ``[B, t, C, H, W]``; the first `past` of them (0 to 2) are history that has been decoded before.
        weight: kernels; ``weight[:, 0, 2]`` meets the frame itself, ``weight[:, 0, 0]`` the one two before.
        bias: of each channel.
        past: frames of history; missing ones are zero.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device, and only one with gradients where needed.

    Returns:
        ``[B, t - past, C, H, W]``.

    Raises:
        ValueError: the shapes do not fit, or there is no such backend.
    """
    if x.ndim != 5 or weight.shape != (x.shape[2], 1, 3, 3, 3) or not 0 <= past < x.shape[1]:
        found = f"{tuple(x.shape)}, {tuple(weight.shape)} and past={past}"
        raise ValueError(f"x must be [b, t, c, h, w], weight [c, 1, 3, 3, 3] and past < t, found {found}")
    chosen = backend or chosen_backend(x.device)
    if backend is None and chosen == "triton" and torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        chosen = "naive"
    return KERNEL.function(chosen)(x, weight, bias, past)


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
