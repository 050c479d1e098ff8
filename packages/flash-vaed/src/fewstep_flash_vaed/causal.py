"""Causal 3-D convolution over frames ``[B, T, C, H, W]``: the specification, and the fastest exact way on a CPU.

Frames stand before channels, so that a clip is a batch of images without a copy; 2-D convolutions of channels-last
images are what CPUs are best at.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Frames = Float[Tensor, "b t c h w"]
Memory = dict[str, Tensor]
"""What a causal decoder must remember of the frames it has seen: the last inputs of each convolution, by its name."""
NARROW = 5
"""Output channels up to which the results of all three frames of a kernel fit in one vector register."""
HISTORY = 2
"""Frames that a kernel of three sees before its own."""


def naive(x: Frames, weight: Float[Tensor, "o c 3 k k"], bias: Float[Tensor, " o"], past: int = 0) -> Frames:
    """``F.conv3d`` with two frames of zeros in front; the first `past` of `x` are history, not repeated."""
    edge = weight.shape[-1] // 2
    padded = F.pad(x.transpose(1, 2), (edge, edge, edge, edge, HISTORY - past, 0))
    return F.conv3d(padded, weight, bias).transpose(1, 2)


def stacked(x: Frames, weight: Float[Tensor, "o c 3 k k"], bias: Float[Tensor, " o"], past: int = 0) -> Frames:
    """The same as one 2-D convolution of three frames stacked along channels."""
    frames, edge = x.shape[1] - past, weight.shape[-1] // 2
    padded = F.pad(x, (0, 0, 0, 0, 0, 0, HISTORY - past, 0))
    taps = torch.cat([padded[:, tap : tap + frames] for tap in range(3)], 2)
    out = F.conv2d(taps.flatten(0, 1), weight.transpose(1, 2).flatten(1, 2), bias, padding=edge)
    return out.unflatten(0, (x.shape[0], frames))


def by_taps(x: Frames, weight: Float[Tensor, "o c 3 k k"], bias: Float[Tensor, " o"], past: int = 0) -> Frames:
    """The same as the sum of three 2-D convolutions, one for each frame of the kernel; zeros are not multiplied."""
    frames, edge = x.shape[1] - past, weight.shape[-1] // 2
    kernels = [weight[:, :, tap].contiguous(memory_format=torch.channels_last) for tap in range(3)]
    out = _convolved(x[:, past:], kernels[2], bias, edge)
    for tap in (1, 0):
        skipped = max(0, HISTORY - tap - past)  # frames whose input lies before the first frame
        if skipped < frames:
            start = past + skipped - HISTORY + tap
            out[:, skipped:] += _convolved(x[:, start : start + frames - skipped], kernels[tap], None, edge)
    return out


def at_once(x: Frames, weight: Float[Tensor, "o c 3 k k"], bias: Float[Tensor, " o"], past: int = 0) -> Frames:
    """The same with one 2-D convolution for all three frames of the kernel; their results are shifted and added."""
    frames, edge = x.shape[1] - past, weight.shape[-1] // 2
    kernels = weight.movedim(2, 0).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    each = _convolved(x, kernels, None, edge).unflatten(2, (3, -1))
    out = each[:, past:, 2] + bias[:, None, None]
    for tap in (1, 0):
        skipped = max(0, HISTORY - tap - past)
        if skipped < frames:
            start = past + skipped - HISTORY + tap
            out[:, skipped:] += each[:, start : start + frames - skipped, tap]
    return out


def _convolved(x: Frames, kernel: Tensor, bias: Tensor | None, edge: int) -> Frames:
    return F.conv2d(x.flatten(0, 1), kernel, bias, padding=edge).unflatten(0, x.shape[:2])


def causal_conv(x: Frames, weight: Float[Tensor, "o c 3 k k"], bias: Float[Tensor, " o"], past: int = 0) -> Frames:
    """On a CPU `by_taps`, or `at_once` for few output channels; elsewhere `naive`, which cuDNN does well."""
    if x.device.type != "cpu":
        return naive(x, weight, bias, past)
    return (at_once if weight.shape[0] <= NARROW else by_taps)(x, weight, bias, past)


def remembered(x: Frames, name: str, memory: Memory | None) -> tuple[Frames, int]:
    """`x` behind what `memory` holds under `name`, and how many frames that is; `memory` is brought up to date."""
    if memory is None:
        return x, 0
    known = memory.get(name)
    whole = x if known is None else torch.cat([known.to(x), x], 1)
    memory[name] = whole[:, -HISTORY:].clone()  # a view would keep the whole clip in memory
    return whole, whole.shape[1] - x.shape[1]
