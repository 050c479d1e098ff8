"""Losses of the distillation and measures of a decoded clip; all pixels are from -1 to 1."""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Clip = Float[Tensor, "b c f h w"]
WINDOW, SIGMA = 11, 1.5
RANGE = 2.0
"""Between the darkest and the brightest pixel."""


def psnr(found: Tensor, wanted: Tensor) -> float:
    """``20 log10(2 / rms)`` in dB, at most 100."""
    error = float((found.double() - wanted.double()).square().mean())
    return 20 * math.log10(RANGE) - 10 * math.log10(max(error, RANGE**2 * 1e-10))


def ssim(found: Clip, wanted: Clip) -> Tensor:
    """Mean structural similarity of frames: a Gaussian window of 11 pixels, no padding (Wang et al. 2004).

    Frames with fewer than 11 rows or columns are padded by repetition of their edge pixels.
    """
    x, y = (_images(clip) for clip in (found, wanted))
    kernel = _gaussian(x.dtype).to(x.device)
    mean_x, mean_y = _blur(x, kernel), _blur(y, kernel)
    var_x = _blur(x * x, kernel) - mean_x * mean_x
    var_y = _blur(y * y, kernel) - mean_y * mean_y
    both = _blur(x * y, kernel) - mean_x * mean_y
    first, second = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    top = (2 * mean_x * mean_y + first) * (2 * both + second)
    return (top / ((mean_x**2 + mean_y**2 + first) * (var_x + var_y + second))).mean()


def _images(clip: Clip) -> Float[Tensor, "n 1 H W"]:
    images = clip.transpose(1, 2).flatten(0, 2)[:, None]
    down, right = (max(0, WINDOW - size) for size in images.shape[2:])
    return F.pad(images, (0, right, 0, down), mode="replicate") if down or right else images


@cache
def _gaussian(dtype: torch.dtype) -> Float[Tensor, " k"]:
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weight = torch.exp(-(at**2) / (2 * SIGMA**2))
    return (weight / weight.sum()).to(dtype)


def _blur(images: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(F.conv2d(images, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def sharpness(found: Clip, wanted: Clip) -> float:
    """Energy of the Laplacian of `found` as a share of that of `wanted`: below 1 is softer, above 1 is noisier."""
    kernel = found.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    energy = [F.conv2d(clip.transpose(1, 2).flatten(0, 2)[:, None], kernel).square().mean() for clip in (found, wanted)]
    return float(energy[0] / energy[1].clamp(min=1e-12))


class Perceptual:
    """Distance of features of a fixed random pyramid of convolutions, for want of LPIPS: no package ships its weights.

    Not LPIPS: figures of the two cannot be compared.
    """

    def __init__(self, seed: int = 0, width: int = 16) -> None:
        generator = torch.Generator().manual_seed(seed)
        sizes = [(3, width), (width, 2 * width), (2 * width, 2 * width)]
        self.kernels = [torch.randn(o, c, 3, 3, generator=generator) * (2 / (9 * c)) ** 0.5 for c, o in sizes]

    def __call__(self, found: Clip, wanted: Clip) -> Tensor:
        """Mean over three scales of the squared distance of features, each pixel's normalised to length 1."""
        x, y = (clip.transpose(1, 2).flatten(0, 1) for clip in (found, wanted))
        total = x.new_zeros(())
        for kernel in self.kernels:
            x, y = (F.leaky_relu(F.conv2d(z, kernel.to(z), padding=1), 0.2) for z in (x, y))
            total = total + (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()
            x, y = F.avg_pool2d(x, 2, ceil_mode=True), F.avg_pool2d(y, 2, ceil_mode=True)
        return total / len(self.kernels)


def alignment(ours: Float[Tensor, "b t k h w"], theirs: Float[Tensor, "b t k h w"]) -> Tensor:
    """``|F_s - F_t|^2 / Var(F_t)``: 0 for equal features, 1 for features that say nothing."""
    return (ours - theirs).square().mean() / theirs.var().clamp(min=1e-8)
