"""Layers of Wan's decoder and of its student; weights are named as in diffusers.

Feature maps are frames ``[B, T, C, H, W]``, channels innermost in memory: a clip is a batch of channels-last images
without a copy, and 2-D convolutions of those are the fastest that a CPU has. A layer is a pure function of its input
and of a `Memory`, which a stream carries from chunk to chunk; without one a clip is decoded as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from fewstep.kernels.causal_depthwise import causal_depthwise
from fewstep.kernels.rms_silu import rms_silu
from fewstep.kernels.upsample_conv import upsample_conv
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Frames = Float[Tensor, "b t c h w"]
CausalKernel = Float[Tensor, "o c 3 k k"]
Memory = dict[nn.Module, Tensor]
"""The last inputs of each layer that looks back, by the layer."""
Operator = Literal["dense", "separable", "frame"]
"""A causal 3x3x3 convolution; a depthwise one and a pointwise one; a 3x3 convolution of each frame."""
HISTORY = 2
"""Frames that a kernel of three sees before its own."""
NARROW = 5
"""Output channels up to which the results of all three frames of a kernel fit in one vector register."""


def channels_last(x: Frames) -> Frames:
    """The same frames with channels innermost in memory."""
    return framewise(lambda images: images.contiguous(memory_format=torch.channels_last), x)


def framewise(layer: Callable[[Tensor], Tensor], x: Frames) -> Frames:
    """Apply a layer of images to each frame."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def naive(x: Frames, weight: CausalKernel, bias: Float[Tensor, " o"], past: int = 0) -> Frames:
    """Causal 3-D convolution, zero-padded: `F.conv3d`, the specification of the fast ones.

    Args:
        x: the first `past` of the frames are history: they are seen, and nothing is computed for them.
        weight: ``weight[:, :, 2]`` meets the frame itself, ``weight[:, :, 0]`` the one two before.
        bias: of the output channels.
        past: 0 to 2; missing history is zero.
    """
    edge = weight.shape[-1] // 2
    padded = F.pad(x.transpose(1, 2), (edge, edge, edge, edge, HISTORY - past, 0))
    return F.conv3d(padded, weight, bias).transpose(1, 2)


def by_taps(x: Frames, weight: CausalKernel, bias: Float[Tensor, " o"], past: int = 0) -> Frames:
    """The same as the sum of three 2-D convolutions, one for each frame of the kernel."""

    def tap(number: int, frames: slice) -> Frames:
        kernel = weight[:, :, number].contiguous(memory_format=torch.channels_last)
        offset = bias if number == HISTORY else None
        return framewise(lambda images: F.conv2d(images, kernel, offset, padding=weight.shape[-1] // 2), x[:, frames])

    return _summed(tap, x.shape[1], past)


def at_once(x: Frames, weight: CausalKernel, bias: Float[Tensor, " o"], past: int = 0) -> Frames:
    """The same with one 2-D convolution for all three frames of the kernel: faster for few output channels."""
    kernels = rearrange(weight, "o c tap h w -> (tap o) c h w").contiguous(memory_format=torch.channels_last)
    results = framewise(lambda images: F.conv2d(images, kernels, padding=weight.shape[-1] // 2), x)
    each = results.unflatten(2, (3, -1))

    def tap(number: int, frames: slice) -> Frames:
        return each[:, frames, number] + bias[:, None, None] if number == HISTORY else each[:, frames, number]

    return _summed(tap, x.shape[1], past)


def _summed(tap: Callable[[int, slice], Frames], seen: int, past: int) -> Frames:
    """Add the results of the three frames of a kernel, shifted; frames before the first one are zero: left out."""
    out = tap(HISTORY, slice(past, seen))
    for number in (1, 0):
        skipped = max(0, HISTORY - number - past)
        if skipped < seen - past:
            out[:, skipped:] += tap(number, slice(past + skipped - HISTORY + number, seen - HISTORY + number))
    return out


def causal_conv(x: Frames, weight: CausalKernel, bias: Float[Tensor, " o"], past: int = 0) -> Frames:
    """Causal 3-D convolution, see `naive`, in the fastest way: off the CPU that is cuDNN's."""
    if x.device.type != "cpu":
        return naive(x, weight, bias, past)
    return (at_once if weight.shape[0] <= NARROW else by_taps)(x, weight, bias, past)


def remembered(x: Frames, layer: nn.Module, memory: Memory | None) -> tuple[Frames, int]:
    """`x` behind what `memory` holds for `layer`, and how many frames that is; `memory` is brought up to date."""
    if memory is None:
        return x, 0
    known = memory.get(layer)
    seen = x if known is None else torch.cat([known.to(x), x], 1)
    memory[layer] = seen[:, -HISTORY:].clone()  # a view would keep the whole clip
    return seen, seen.shape[1] - x.shape[1]


class CausalConv(nn.Conv3d):
    """Convolution that sees no later frames: dense, of each channel by itself (`groups`), or of single pixels."""

    bias: Tensor  # type: ignore[assignment]  # always there

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:  # type: ignore[override]
        """Convolve; kernels of three frames keep two in `memory`."""
        if self.kernel_size[0] == 1 and self.groups > 1:
            return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
        if self.kernel_size[0] == 1:
            return framewise(lambda images: F.conv2d(images, self.weight[:, :, 0], self.bias), x)
        seen, past = remembered(x, self, memory)
        convolve = causal_conv if self.groups == 1 else causal_depthwise
        return convolve(seen, self.weight, self.bias, past=past)


class Separable(nn.Module):
    """Depthwise 3x3x3 convolution, then a pointwise one, with nothing between (arXiv:2602.19161, section 3)."""

    def __init__(self, inside: int, outside: int, size: int = 3) -> None:
        super().__init__()
        self.depthwise = CausalConv(inside, inside, size, groups=inside)
        self.pointwise = CausalConv(inside, outside, 1)

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        """Convolve; `memory` keeps two frames."""
        return self.pointwise(self.depthwise(x, memory))


class FrameConv(nn.Conv2d):
    """2-D convolution of each frame by itself."""

    def __init__(self, inside: int, outside: int, size: int) -> None:
        super().__init__(inside, outside, size, padding=size // 2)

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:  # type: ignore[override]
        """Convolve; `memory` is neither needed nor changed."""
        return framewise(super().forward, x)


class NormSilu(nn.Module):
    """RMS normalisation over channels and SiLU in one pass."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Frames) -> Frames:
        """Normalise and activate."""
        return framewise(lambda images: rms_silu(images, self.gamma.flatten()), x)


class Residual(nn.Module):
    """`NormSilu` and a convolution, twice, with a shortcut past both; `narrow` blocks have one even at equal width."""

    def __init__(self, inside: int, outside: int, operator: Operator = "dense", narrow: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = NormSilu(inside), NormSilu(outside)
        conv = {"dense": CausalConv, "separable": Separable, "frame": FrameConv}[operator]
        self.conv1, self.conv2 = conv(inside, outside, 3), conv(outside, outside, 3)
        if operator == "frame" or (narrow and operator != "separable"):
            conv = FrameConv
        elif inside == outside:
            conv = nn.Identity
        self.conv_shortcut = conv(inside, outside, 1)

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        """Frames of the same size, perhaps other channels."""
        hidden = self.conv1(self.norm1(x), memory)
        return self.conv2(self.norm2(hidden), memory) + self.conv_shortcut(x)


class Attention(nn.Module):
    """Single-head attention over the pixels of each frame; with `pool` (ours) keys and values are means of squares."""

    def __init__(self, channels: int, pool: int = 1) -> None:
        super().__init__()
        self.pool = pool
        self.norm = nn.ParameterDict({"gamma": torch.ones(channels, 1, 1)})
        self.to_qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Frames) -> Frames:
        """Add to each pixel the values of the pixels that it attends to."""
        images = x.flatten(0, 1)
        exact = images if images.dtype.itemsize >= 4 else images.float()
        normed = F.normalize(exact, dim=1).to(images.dtype) * (images.shape[1] ** 0.5 * self.norm["gamma"])
        parts = list(self.to_qkv(normed).chunk(3, 1))
        if self.pool > 1:
            parts[1:] = (F.avg_pool2d(part, self.pool, ceil_mode=True) for part in parts[1:])
        query, key, value = (rearrange(part, "n c h w -> n 1 (h w) c") for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj(rearrange(mixed, "n 1 (h w) c -> n c h w", h=images.shape[2])).unflatten(0, x.shape[:2])


class UpsampleConv(nn.Conv2d):
    """Nearest-neighbour upsampling by two and a 3x3 convolution in one pass over images."""

    bias: Tensor  # type: ignore[assignment]  # always there

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o H W"]:  # type: ignore[override]
        """Twice the height and width."""
        return upsample_conv(images, self.weight, self.bias)


class Upsample(nn.Module):
    """Twice the height and width; with `time`, two frames for each but the very first of a clip."""

    def __init__(self, inside: int, outside: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": UpsampleConv(inside, outside, 3)})  # diffusers has the upsampling at 0
        self.time_conv = CausalConv(inside, 2 * inside, (3, 1, 1)) if time else None

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        """Upsample; `memory` keeps two frames."""
        return framewise(self.resample["1"], x if self.time_conv is None else self._doubled(self.time_conv, x, memory))

    @staticmethod
    def _doubled(conv: CausalConv, x: Frames, memory: Memory | None) -> Frames:
        first = memory is None or conv not in memory
        if first and memory is not None:
            memory[conv] = x[:, :0]  # from now on there is no first frame
        rest = x[:, 1:] if first else x
        if not rest.shape[1]:
            return x
        both = rearrange(conv(rest, memory), "b t (two c) h w -> b (t two) c h w", two=2)
        return torch.cat([x[:, :1], both], 1) if first else both
