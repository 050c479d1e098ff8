"""Linear algebra of pruning: channels that span the others, and operators closest to a dense convolution.

Source: arXiv:2602.19161, section 3, greedy selection by R^2; the formulas are derived from that criterion. A feature
map is ``[N, C]``: its N positions, one row each. All sums are in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .layers import Frames

Selection = Literal["greedy", "qr", "variance", "l1", "random"]
SELECTIONS: tuple[Selection, ...] = ("greedy", "qr", "variance", "l1", "random")
Gram = Float[Tensor, "c c"]
DenseKernel = Float[Tensor, "o c 3 3 3"]
EXPLAINED = 1e-6
"""Channels with less residual variance than this share of the largest variance are spanned already."""
RIDGE = 1e-6
"""Damping of regressions as a share of the mean variance."""


def rows(x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "N c"]:
    """Positions of a feature map as rows."""
    return x.movedim(-3, -1).flatten(0, -2)


def _finite(*sums: Tensor) -> None:
    if not all(torch.isfinite(part).all() for part in sums):
        raise ValueError("the calibration features are not finite")


def moments(batches: Iterable[Float[Tensor, "_ c"]], standardised: bool = False) -> tuple[Gram, Float[Tensor, " c"]]:
    """Covariance of channels (with `standardised` correlation, 0 without variance), and their mean magnitude.

    Raises:
        ValueError: there are no positions, or they are not finite.
    """
    count, sums = 0, [torch.zeros((), dtype=torch.float64)] * 3
    for batch in batches:
        x = batch.double()
        count += len(x)
        sums = [total + part for total, part in zip(sums, (x.sum(0), x.abs().sum(0), x.T @ x), strict=True)]
    if not count:
        raise ValueError("no calibration features: give at least one clip")
    mean, magnitude, second = (total / count for total in sums)
    gram = second - torch.outer(mean, mean)
    _finite(gram)
    if standardised:
        scale = gram.diagonal().clamp(min=0).sqrt()
        inverse = torch.where(scale > 1e-8 * scale.max(), 1 / scale.clamp(min=1e-300), torch.zeros_like(scale))
        gram = gram * inverse[:, None] * inverse[None, :]
    return gram, magnitude


def r2(gram: Gram, kept: Int[Tensor, " k"]) -> float:
    """Share of the variance of all channels that those of `kept` explain, ``R2(S)``."""
    # R2(S) = 1 - tr(G - G[:,S] G[S,S]^+ G[S,:]) / tr(G)
    inside, across = gram[kept][:, kept], gram[:, kept]
    return float((across @ torch.linalg.pinv(inside, hermitian=True) * across).sum() / gram.trace())


def pca_bound(gram: Gram, k: int) -> float:
    """R^2 of the best `k` linear combinations: no choice of `k` channels explains more."""
    values = torch.linalg.eigvalsh(gram)
    return float(values[-k:].sum() / values.sum())


def gains(residual: Gram, largest: float) -> Float[Tensor, " c"]:
    """Decrease of ``tr R`` by each channel that is added; minus infinity where it is spanned already."""
    # gain_j = |R[:,j]|^2 / R[j,j], the exact difference of tr(G) R2(S + j) and tr(G) R2(S)
    diagonal = residual.diagonal()
    gain = residual.square().sum(0) / diagonal.clamp(min=1e-300)
    return torch.where(diagonal > EXPLAINED * largest, gain, -torch.inf)


def select_channels(
    gram: Gram,
    k: int,
    method: Selection = "greedy",
    *,
    magnitude: Float[Tensor, " c"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " k"]:
    """Choose `k` of C channels.

    Args:
        gram: covariance or correlation of the channels, float64.
        k: how many, 1 to C.
        method: ``greedy``: largest gain of R^2 in each step; ``qr``: largest residual variance (pivoted QR);
            ``variance``; ``l1``: largest `magnitude`; ``random``.
        magnitude: mean of ``|x|`` of each channel, for ``l1``.
        generator: of ``random``.

    Returns:
        Channels in the order in which they were chosen. Where fewer than `k` are independent, the rest are those of
        most variance.

    Raises:
        ValueError: `k` is out of range, there is no such method, or ``l1`` has no magnitudes.
    """
    if not 1 <= k <= len(gram):
        raise ValueError(f"{k} of {len(gram)} channels cannot be kept")
    if method == "random":
        return torch.randperm(len(gram), generator=generator)[:k]
    if method in ("greedy", "qr"):
        return _forward(gram, k, method)
    loudness = {"variance": gram.diagonal(), "l1": magnitude}.get(method)
    if loudness is None:
        raise ValueError(f"unknown selection {method!r} (there are {', '.join(SELECTIONS)}), or l1 without magnitudes")
    return loudness.argsort(descending=True, stable=True)[:k]


def _forward(gram: Gram, k: int, method: str) -> Int[Tensor, " k"]:
    residual, largest = gram.clone(), float(gram.diagonal().max())
    chosen: list[int] = []
    while len(chosen) < k:
        gain = gains(residual, largest)
        score = gain if method == "greedy" else torch.where(gain.isinf(), gain, residual.diagonal())
        best = int(score.argmax())
        if score[best].isinf():  # everything is explained
            left = [j for j in gram.diagonal().argsort(descending=True, stable=True).tolist() if j not in chosen]
            return torch.tensor([*chosen, *left][:k])
        chosen.append(best)
        # R <- R - R[:,j] R[j,:] / R[j,j]
        residual = residual - torch.outer(residual[:, best], residual[best]) / residual[best, best]
    return torch.tensor(chosen)


def regress(
    pairs: Iterable[tuple[Float[Tensor, "_ k"], Float[Tensor, "_ c"]]], ridge: float = RIDGE
) -> tuple[Float[Tensor, "k c"], Float[Tensor, " c"]]:
    """Solve ``y ~ M^T x + m`` by least squares over all positions; returns ``M`` and ``m``.

    Raises:
        ValueError: there are no positions, or they are not finite.
    """
    count, sums = 0, [torch.zeros((), dtype=torch.float64)] * 4
    for pair in pairs:
        x, y = (part.double() for part in pair)
        count += len(x)
        sums = [total + part for total, part in zip(sums, (x.sum(0), y.sum(0), x.T @ x, x.T @ y), strict=True)]
    if not count:
        raise ValueError("no calibration features: give at least one clip")
    mean_x, mean_y, inside, across = (total / count for total in sums)
    inside, across = inside - torch.outer(mean_x, mean_x), across - torch.outer(mean_x, mean_y)
    _finite(inside, across)
    damping = ridge * inside.diagonal().mean().clamp(min=1e-30)
    recovery = torch.linalg.solve(inside + damping * torch.eye(len(inside), dtype=inside.dtype), across)
    return recovery, mean_y - mean_x @ recovery


def fold_consumer(
    weight: Float[Tensor, "o c *taps"],
    bias: Float[Tensor, " o"],
    recovery: Float[Tensor, "k c"],
    offset: Float[Tensor, " c"],
) -> tuple[Float[Tensor, "o k *taps"], Float[Tensor, " o"]]:
    """Kernel and bias of a convolution of k channels, not C: ``x ~ recovery^T x~ + offset``.

    At borders, which are padded with zeros, the offset is slightly wrong.
    """
    # W' = W M^T over input channels, b' = b + (sum of W over taps) m
    exact = weight.double()
    folded = torch.einsum("oc...,kc->ok...", exact, recovery.double())
    return folded.to(weight.dtype), (bias.double() + exact.reshape(*exact.shape[:2], -1).sum(2) @ offset.double()).to(
        bias.dtype
    )


def conv3d_to_2d(weight: Float[Tensor, "o c t h w"]) -> Float[Tensor, "o c h w"]:
    """One kernel for each frame by itself: the sum over time, exact on a still video from the third frame on."""
    return weight.sum(2)


def conv3d_to_dw(weight: DenseKernel) -> tuple[Float[Tensor, "c 1 3 3 3"], Float[Tensor, "o c 1 1 1"]]:
    """Depthwise and pointwise kernels of least squared error, by an SVD for each input channel.

    Exact where all of these have rank 1. The error of channel ``i`` is the norm of its other singular values.
    """
    # W[:,i,:] ~ (u1 sqrt(s1)) (v1 sqrt(s1))^T for input channel i, as a matrix [o, 27]
    left, values, right = torch.linalg.svd(rearrange(weight.double(), "o c f h w -> c o (f h w)"), full_matrices=False)
    root = values[:, :1].sqrt()
    depthwise = (right[:, 0] * root).view(-1, 1, *weight.shape[2:])
    pointwise = rearrange(left[:, :, 0] * root, "c o -> o c 1 1 1")
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
    wanted = torch.cat([rows(clip) for clip in y]).double()
    kernels = depthwise.flatten(1).double().clone()
    features = torch.stack([_patches(x, channel) @ kernel for channel, kernel in enumerate(kernels)], 1)
    pointwise, offset = regress([(features, wanted)])
    for _ in range(sweeps):
        rest = wanted - offset - features @ pointwise
        for channel in range(len(kernels)):  # patches are 27 times the features: never those of two channels
            patches, weight = _patches(x, channel), pointwise[channel]
            rest += torch.outer(features[:, channel], weight)
            inside = patches.T @ patches
            damping = RIDGE * inside.diagonal().mean().clamp(min=1e-30) * torch.eye(len(inside), dtype=inside.dtype)
            target = rest @ weight / weight.square().sum().clamp(min=1e-30)
            kernels[channel] = torch.linalg.solve(inside + damping, patches.T @ target)
            features[:, channel] = patches @ kernels[channel]
            rest -= torch.outer(features[:, channel], weight)
        pointwise, offset = regress([(features, wanted)])
    dtype = depthwise.dtype
    return kernels.view_as(depthwise).to(dtype), rearrange(pointwise, "c o -> o c 1 1 1").to(dtype), offset.to(dtype)


def _patches(x: Sequence[Frames], channel: int) -> Float[Tensor, "n 27"]:
    """The 27 positions that a causal 3x3x3 kernel sees of one channel, for each output."""
    padded = (F.pad(clip[:, :, channel], (1, 1, 1, 1, 2, 0)) for clip in x)
    unfolded = (clip.unfold(1, 3, 1).unfold(2, 3, 1).unfold(3, 3, 1) for clip in padded)
    return torch.cat([clip.flatten(-3).flatten(0, -2) for clip in unfolded]).double()
