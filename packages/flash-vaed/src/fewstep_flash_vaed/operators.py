"""Cheaper operators that start as close as possible to a dense causal convolution (arXiv:2602.19161, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .causal import Frames

Kernel3d = Float[Tensor, "o c 3 3 3"]


def conv3d_to_dw(weight: Kernel3d) -> tuple[Float[Tensor, "c 1 3 3 3"], Float[Tensor, "o c 1 1 1"]]:
    """Depthwise and pointwise kernels of least squared error, by an SVD of each input channel's ``[o, 27]`` matrix.

    Exact where all of these have rank 1. The error of channel ``i`` is the norm of its other singular values.
    """
    per_channel = weight.double().movedim(1, 0).flatten(2)  # [c, o, 27]
    left, values, right = torch.linalg.svd(per_channel, full_matrices=False)
    root = values[:, 0].sqrt()
    depthwise = (right[:, 0] * root[:, None]).view(-1, 1, *weight.shape[2:])
    pointwise = (left[:, :, 0] * root[:, None]).T[:, :, None, None, None]
    return depthwise.to(weight.dtype), pointwise.to(weight.dtype)


def fit_separable(
    x: Sequence[Float[Tensor, "_ _ c _ _"]],
    y: Sequence[Float[Tensor, "_ _ o _ _"]],
    depthwise: Float[Tensor, "c 1 3 3 3"],
    sweeps: int = 3,
) -> tuple[Float[Tensor, "c 1 3 3 3"], Float[Tensor, "o c 1 1 1"], Float[Tensor, " o"]]:
    """Depthwise and pointwise kernels, and a bias, whose causal convolution of `x` comes close to `y`.

    Alternating least squares, ours: all pointwise weights at once, then the kernel of one channel after the other.

    Args:
        x: features of calibration clips, ``[B, F, C, H, W]``.
        y: what is wanted, ``[B, F, O, H, W]``.
        depthwise: to begin with.
        sweeps: over all channels.
    """
    wanted = torch.cat([clip.movedim(2, -1).flatten(0, -2) for clip in y]).double()
    kernels = depthwise.flatten(1).double().clone()
    found = torch.stack([_patches(x, channel) @ kernel for channel, kernel in enumerate(kernels)], 1)
    for sweep in range(sweeps + 1):
        squares = LeastSquares()
        squares.add(found, wanted)
        mixed, offset = squares.solve()
        if sweep == sweeps:
            break
        rest = wanted - offset - found @ mixed
        for channel in range(len(kernels)):  # patches are 27 times the features: never those of two channels
            exact, weight = _patches(x, channel), mixed[channel]
            rest += found[:, channel, None] * weight
            inside = exact.T @ exact
            damping = 1e-6 * inside.diagonal().mean().clamp(min=1e-30) * torch.eye(len(inside), dtype=inside.dtype)
            target = rest @ weight / weight.square().sum().clamp(min=1e-30)
            kernels[channel] = torch.linalg.solve(inside + damping, exact.T @ target)
            found[:, channel] = exact @ kernels[channel]
            rest -= found[:, channel, None] * weight
    dtype = depthwise.dtype
    return kernels.view_as(depthwise).to(dtype), mixed.T[:, :, None, None, None].to(dtype), offset.to(dtype)


def _patches(x: Sequence[Frames], channel: int) -> Float[Tensor, "n 27"]:
    """The 27 positions that a causal 3x3x3 kernel sees of one channel, for each output."""
    found = []
    for clip in x:
        padded = F.pad(clip[:, :, channel], (1, 1, 1, 1, 2, 0))
        found.append(padded.unfold(1, 3, 1).unfold(2, 3, 1).unfold(3, 3, 1).flatten(-3).flatten(0, -2))
    return torch.cat(found).double()


def conv3d_to_2d(weight: Float[Tensor, "o c t h w"], first: bool = False) -> Float[Tensor, "o c h w"]:
    """One kernel for each frame by itself.

    The sum over time is exact on a video that stands still, from the third frame on; with ``first`` the last frame of
    the kernel, which is exact on the first frame of any video.
    """
    return weight[:, :, -1].clone() if first else weight.sum(2)


def fold_consumer(
    weight: Float[Tensor, "o c ..."],
    bias: Float[Tensor, " o"],
    recovery: Float[Tensor, "k c"],
    offset: Float[Tensor, " c"],
) -> tuple[Float[Tensor, "o k ..."], Float[Tensor, " o"]]:
    """Kernel and bias of a convolution of k channels, not C: ``x ~ recovery^T x~ + offset``.

    ``W' = W M^T`` over input channels, ``b' = b + (sum of W over taps) m``; at borders, which are padded with zeros,
    the offset is slightly wrong.
    """
    exact = weight.double()
    folded = torch.einsum("oc...,kc->ok...", exact, recovery.double())
    taps = exact.flatten(2).sum(2) if exact.ndim > 2 else exact
    return folded.to(weight.dtype), (bias.double() + taps @ offset.double()).to(bias.dtype)


class LeastSquares:
    """``y ~ M^T x + m`` from sums over positions, in float64, with a ridge of 1e-6 of the mean variance."""

    def __init__(self) -> None:
        self.count = 0
        self.x: Tensor | float = 0.0
        self.y: Tensor | float = 0.0
        self.xx: Tensor | float = 0.0
        self.xy: Tensor | float = 0.0

    def add(self, x: Float[Tensor, "n k"], y: Float[Tensor, "n c"]) -> None:
        """Take in positions."""
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)
        self.xx, self.xy = self.xx + x.T @ x, self.xy + x.T @ y

    def solve(self, ridge: float = 1e-6) -> tuple[Float[Tensor, "k c"], Float[Tensor, " c"]]:
        """``M`` and ``m``.

        Raises:
            ValueError: nothing was added, or a sum is not finite.
        """
        if not self.count:
            raise ValueError("no calibration features: give at least one clip")
        mean_x, mean_y = torch.as_tensor(self.x) / self.count, torch.as_tensor(self.y) / self.count
        inside = torch.as_tensor(self.xx) / self.count - mean_x[:, None] * mean_x[None, :]
        across = torch.as_tensor(self.xy) / self.count - mean_x[:, None] * mean_y[None, :]
        if not torch.isfinite(across).all() or not torch.isfinite(inside).all():
            raise ValueError("the calibration features are not finite")
        damping = ridge * inside.diagonal().mean().clamp(min=1e-30)
        found = torch.linalg.solve(inside + damping * torch.eye(len(inside), dtype=inside.dtype), across)
        return found, mean_y - mean_x @ found
