"""RMS normalisation over channels and SiLU in one pass: what stands before every convolution of a video VAE."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive


def chosen_backend(device: torch.device | str) -> str:
    """Backend that `rms_silu` takes for tensors on this device where no gradient is asked for."""
    kind = torch.device(device).type
    if kind == "cuda" and importlib.util.find_spec("triton"):
        return "triton"
    return "cpu" if kind == "cpu" else "naive"


def rms_silu(
    x: Float[Tensor, "n c h w"], gamma: Float[Tensor, " c"], *, backend: str | None = None
) -> Float[Tensor, "n c h w"]:
    """``SiLU(sqrt(c) x / |x| * gamma)``: the norm and the activation of ``WanResidualBlock``.

    Args:
        x: feature maps, contiguous or channels-last.
        gamma: weight of each channel.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device, and only one with gradients where needed.

    Raises:
        ValueError: the shapes do not fit, or there is no such backend.
    """
    if x.ndim != 4 or gamma.shape != x.shape[1:2]:
        raise ValueError(f"x must be [n, c, h, w] and gamma [c], found {tuple(x.shape)} and {tuple(gamma.shape)}")
    chosen = backend or chosen_backend(x.device)
    if backend is None and chosen == "triton" and torch.is_grad_enabled() and (x.requires_grad or gamma.requires_grad):
        chosen = "naive"
    return KERNEL.function(chosen)(x, gamma)


def _cases() -> Iterator[Case]:
    """Odd sizes, one channel, layouts, dtypes, and pixels whose channels are all zero."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 1, 3, 5), (1, 6, 7, 9), (3, 24, 5, 3), (1, 97, 1, 2), (2, 384, 3, 3))
    for number, size in enumerate(sizes):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.randn(size, generator=generator).to(dtype)
            x[:, :, 0, 0] = 0
            if number % 2:
                x = x.contiguous(memory_format=torch.channels_last)
            gamma = torch.rand(size[1], generator=generator).to(dtype)
            yield Case(f"{size} {str(dtype)[6:]}", (x, gamma), {})


KERNEL = Kernel(
    name="rms-silu",
    target=f"{__name__}:KERNEL",
    naive=naive.rms_silu,
    fast={"cpu": f"{__name__}.cpu:rms_silu", "triton": f"{__name__}.triton:rms_silu"},
    cases=_cases,
    signatures=f"{__name__}.triton:signatures",
    tolerance=1e-2,
)
