"""Layers of Wan's decoder and of its student over frames ``[B, T, C, H, W]``; weights are named as in diffusers.

Each layer is a pure function of its input and of a `Memory`, which a stream carries from chunk to chunk; without one a
clip is decoded as a whole.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from fewstep.kernels.causal_depthwise import causal_depthwise
from fewstep.kernels.rms_silu import rms_silu
from fewstep.kernels.upsample_conv import upsample_conv
from torch import Tensor, nn
from torch.nn import functional as F

from .causal import Frames, Memory, causal_conv, remembered

Operator = Literal["dense", "separable", "frame"]
"""A causal 3x3x3 convolution; a depthwise one and a pointwise one; a 3x3 convolution of each frame."""


class Causal(nn.Module):
    """A dense causal convolution with a kernel of 3 frames and ``k x k`` pixels."""

    def __init__(self, inside: int, outside: int, size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outside, inside, 3, size, size))
        self.bias = nn.Parameter(torch.zeros(outside))
        self.name = ""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        """Convolve; needs and leaves two frames of history in `memory`."""
        whole, past = remembered(x, self.name, memory)
        return causal_conv(whole, self.weight, self.bias, past)


class Depthwise(nn.Module):
    """A causal 3x3x3 convolution of each channel by itself; with ``size=1`` a factor for each channel."""

    def __init__(self, channels: int, size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, size, size, size))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.name = ""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        """Convolve; needs and leaves two frames of history in `memory`."""
        if self.weight.shape[-1] == 1:
            return x * self.weight.view(-1, 1, 1) + self.bias[:, None, None]
        whole, past = remembered(x, self.name, memory)
        return causal_depthwise(whole, self.weight, self.bias, past=past)


class Pointwise(nn.Module):
    """A 1x1x1 convolution."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outside, inside, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outside))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        """Convolve; `memory` is neither needed nor changed."""
        return F.conv2d(x.flatten(0, 1), self.weight[:, :, 0], self.bias).unflatten(0, x.shape[:2])


class Separable(nn.Module):
    """`Depthwise`, then `Pointwise`, with nothing between them."""

    def __init__(self, inside: int, outside: int, size: int = 3) -> None:
        super().__init__()
        self.depthwise, self.pointwise = Depthwise(inside, size), Pointwise(inside, outside)

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        """Convolve."""
        return self.pointwise(self.depthwise(x, memory))


class Frame(nn.Conv2d):
    """A 3x3 convolution of each frame by itself: it needs no memory."""

    def __init__(self, inside: int, outside: int, size: int = 3) -> None:
        super().__init__(inside, outside, size, padding=size // 2)

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:  # type: ignore[override]
        """Convolve; `memory` is neither needed nor changed."""
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Norm(nn.Module):
    """RMS normalisation over channels."""

    def __init__(self, channels: int, dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * dims))

    def forward(self, x: Frames) -> Frames:
        """Normalise and activate (SiLU)."""
        return rms_silu(x.flatten(0, 1), self.gamma.flatten()).unflatten(0, x.shape[:2])


def convolution(operator: Operator, inside: int, outside: int) -> nn.Module:
    """The convolution of a residual block."""
    return {"dense": Causal, "separable": Separable, "frame": Frame}[operator](inside, outside)


def shortcut(operator: Operator, inside: int, outside: int, forced: bool) -> nn.Module:
    """What leads past a residual block: nothing where widths are equal, unless `forced`."""
    if operator == "frame" or (forced and operator != "separable"):
        return Frame(inside, outside, 1)
    if inside == outside:
        return nn.Identity()
    return Separable(inside, outside, 1) if operator == "separable" else Pointwise(inside, outside)


class Residual(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut."""

    def __init__(self, inside: int, outside: int, operator: Operator = "dense", forced: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(inside), Norm(outside)
        self.conv1 = convolution(operator, inside, outside)
        self.conv2 = convolution(operator, outside, outside)
        self.conv_shortcut = shortcut(operator, inside, outside, forced)

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        """Frames of the same size, perhaps other channels."""
        hidden = self.conv1(self.norm1(x), memory)
        return self.conv2(self.norm2(hidden), memory) + self.conv_shortcut(x)


class Attention(nn.Module):
    """Single-head attention over the pixels of each frame; keys and values may be means of squares of pixels."""

    def __init__(self, channels: int, pool: int = 1) -> None:
        super().__init__()
        self.pool = pool
        self.norm = Norm(channels, 2)
        self.to_qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Frames) -> Frames:
        """Frames with what other pixels say added."""
        flat = x.flatten(0, 1)
        exact = flat if flat.dtype.itemsize >= 4 else flat.float()
        normed = F.normalize(exact, dim=1).to(flat.dtype) * (flat.shape[1] ** 0.5 * self.norm.gamma)
        parts = list(self.to_qkv(normed).chunk(3, 1))
        if self.pool > 1:
            parts[1:] = (F.avg_pool2d(part, self.pool, ceil_mode=True) for part in parts[1:])
        query, key, value = (part.flatten(2).mT[:, None] for part in parts)
        found = F.scaled_dot_product_attention(query, key, value)[:, 0].mT.unflatten(2, flat.shape[2:])
        return x + self.proj(found).unflatten(0, x.shape[:2])


class Upsample(nn.Module):
    """Twice the height and width; with ``time``, two frames for each but the very first of a clip."""

    def __init__(self, inside: int, outside: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(inside, outside, 3)})
        self.time_conv = Causal(inside, 2 * inside, 1) if time else None

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        """Upsampled frames."""
        longer = x if self.time_conv is None else self._longer(x, memory)
        conv: Any = self.resample["1"]
        return upsample_conv(longer.flatten(0, 1), conv.weight, conv.bias).unflatten(0, longer.shape[:2])

    def _longer(self, x: Frames, memory: Memory | None) -> Frames:
        conv = self.time_conv
        assert conv is not None
        first = memory is None or conv.name not in memory
        if first and memory is not None:
            memory[conv.name] = x[:, :0]  # from now on there is no first frame
        rest = x[:, 1:] if first else x
        if not rest.shape[1]:
            return x
        both = conv(rest, memory).unflatten(2, (2, -1)).flatten(1, 2)
        return torch.cat([x[:, :1], both], 1) if first else both


def channels_last(x: Frames) -> Frames:
    """The same frames with channels innermost in memory."""
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])


def name_layers(decoder: nn.Module) -> None:
    """Give each convolution with history the name under which it remembers."""
    for name, module in decoder.named_modules():
        if isinstance(module, Causal | Depthwise):
            module.name = name


def with_zeros(weight: Tensor) -> Tensor:
    """A 3-D kernel that does to each frame what the 2-D kernel `weight` does."""
    return F.pad(weight[:, :, None], (0, 0, 0, 0, 2, 0))
