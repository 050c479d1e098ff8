"""Causal depthwise convolution on a CPU: three 2-D ones, one for each frame of the kernel, in the layout of `x`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def causal_depthwise(
    x: Float[Tensor, "b t c h w"], weight: Float[Tensor, "c 1 3 3 3"], bias: Float[Tensor, " c"], past: int
) -> Float[Tensor, "b T c h w"]:
    """Same as `fewstep.kernels.causal_depthwise.naive.causal_depthwise`, with gradients."""
    batch, frames, channels = x.shape[:3]
    out = _frame(x[:, past:], weight[:, :, 2], bias)
    for tap in (1, 0):
        skipped = max(0, 2 - tap - past)  # frames of the output whose input lies before the first frame
        if skipped < frames - past:
            source = x[:, past + skipped - 2 + tap : frames - 2 + tap]
            out[:, skipped:] += _frame(source, weight[:, :, tap], None)
    return out


def _frame(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    flat = F.conv2d(x.flatten(0, 1), weight, bias, padding=1, groups=x.shape[2])
    return flat.unflatten(0, x.shape[:2])
