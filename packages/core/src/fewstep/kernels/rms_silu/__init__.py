"""RMS normalisation over channels and SiLU in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive


def rms_silu(
    x: Float[Tensor, "n c h w"], gamma: Float[Tensor, " c"], *, backend: str | None = None
) -> Float[Tensor, "n c h w"]:
    """Normalise the channels of each pixel to unit RMS, scale them, and apply SiLU.

        y = SiLU(sqrt(c) x / max(|x|, 1e-12) * gamma)      |x|: Euclidean norm over channels; SiLU(z) = z / (1 + e^-z)

    (RMSNorm, arXiv 1910.07467, equation 4; SiLU, arXiv 1702.03118.)

    Args:
        x: feature maps, contiguous or channels-last.
        gamma: weight of each channel.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device, and only one with gradients where needed.

    Returns:
        The shape and dtype of `x`.

    Raises:
        ValueError: the shapes do not fit, or there is no such backend, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    if x.ndim != 4 or gamma.shape != x.shape[1:2]:
        raise ValueError(f"x must be [n, c, h, w] and gamma [c], found {tuple(x.shape)} and {tuple(gamma.shape)}")
    return KERNEL.function(backend or KERNEL.trainable_backend(x, gamma))(x, gamma)


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
