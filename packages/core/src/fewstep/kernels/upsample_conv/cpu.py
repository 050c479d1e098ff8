"""Upsampling and convolution on a CPU as four 2x2 convolutions of the small image, one for each phase of the large one.

Two of the three rows of a 3x3 kernel meet the same row of the small image, so their weights add up: 4/9 of the
multiplications, and the large image is written once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def upsample_conv(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "o c 3 3"], bias: Float[Tensor, " o"]
) -> Float[Tensor, "n o H W"]:
    """Same as `fewstep.kernels.upsample_conv.naive.upsample_conv`, with gradients; the layout is that of `x`."""
    n, _, h, w = x.shape
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    kernels = phases(weight).flatten(0, 1).contiguous(memory_format=layout)
    each = F.conv2d(x, kernels, bias.repeat(4), padding=1).unflatten(1, (2, 2, -1))
    out = torch.empty(n, weight.shape[0], 2 * h, 2 * w, dtype=x.dtype, device=x.device, memory_format=layout)
    for i in (0, 1):
        for j in (0, 1):
            out[:, :, i::2, j::2] = each[:, i, j, :, i : i + h, j : j + w]
    return out


def phases(weight: Float[Tensor, "o c 3 3"]) -> Float[Tensor, "4 o c 2 2"]:
    """Kernels of the four phases: (0, 0), (0, 1), (1, 0), (1, 1)."""
    rows = [_merged(weight, 2, phase) for phase in (0, 1)]
    return torch.stack([_merged(row, 3, phase) for row in rows for phase in (0, 1)])


def _merged(weight: Tensor, dim: int, phase: int) -> Tensor:
    first, middle, last = weight.unbind(dim)
    return torch.stack([first, middle + last] if phase == 0 else [first + middle, last], dim)
