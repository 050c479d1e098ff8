"""Which channels to keep: forward greedy selection by R^2 and what it is compared with (arXiv:2602.19161, section 3).

``X`` is ``[N, C]``: N positions of a feature map. Everything is computed from moments that are accumulated in one pass.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Select = Literal["greedy", "qr", "variance", "l1", "random"]
Score = Literal["corr", "cov", "act"]
EXPLAINED = 1e-6
"""Channels with less residual variance than this share of the largest variance are spanned already."""


class Moments:
    """Sums over positions of ``x``, ``|x|`` and ``x x^T``, in float64; batches are not kept."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.absolute: Tensor | float = 0.0
        self.outer: Tensor | float = 0.0

    def add(self, rows: Float[Tensor, "n c"]) -> None:
        """Take in positions."""
        exact = rows.double()
        self.count += len(exact)
        self.total = self.total + exact.sum(0)
        self.absolute = self.absolute + exact.abs().sum(0)
        self.outer = self.outer + exact.T @ exact

    def gram(self, standardised: bool = False) -> Float[Tensor, "c c"]:
        """Covariance, or with `standardised` correlation (channels without variance are zero).

        Raises:
            ValueError: nothing was added, or a sum is not finite.
        """
        if not self.count:
            raise ValueError("no calibration features: give at least one clip")
        mean = torch.as_tensor(self.total) / self.count
        found = torch.as_tensor(self.outer) / self.count - mean[:, None] * mean[None, :]
        if not torch.isfinite(found).all():
            raise ValueError("the calibration features are not finite")
        if not standardised:
            return found
        scale = found.diagonal().clamp(min=0).sqrt()
        inverse = torch.where(scale > 1e-8 * scale.max(), 1 / scale.clamp(min=1e-300), torch.zeros_like(scale))
        return found * inverse[:, None] * inverse[None, :]


def rows(x: Float[Tensor, "... c h w"]) -> Float[Tensor, "n c"]:
    """Positions of a feature map as rows."""
    return x.movedim(-3, -1).flatten(0, -2)


def r2(gram: Float[Tensor, "c c"], kept: Int[Tensor, " k"]) -> float:
    """``1 - tr(G - G_{:,S} G_SS^+ G_{S,:}) / tr(G)``: share of the variance of all channels that `kept` explain."""
    inside, across = gram[kept][:, kept], gram[:, kept]
    explained = (across @ torch.linalg.pinv(inside, hermitian=True) * across).sum()
    return float(explained / gram.trace())


def gains(residual: Float[Tensor, "c c"], largest: float) -> Float[Tensor, " c"]:
    """Decrease of ``tr R`` when a channel is added: ``|R_:j|^2 / R_jj``; minus infinity where it is spanned already."""
    diagonal = residual.diagonal()
    gain = residual.square().sum(0) / diagonal.clamp(min=1e-300)
    return torch.where(diagonal > EXPLAINED * largest, gain, -torch.inf)


def select_channels(
    gram: Float[Tensor, "c c"],
    k: int,
    method: Select = "greedy",
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
        ValueError: `k` is out of range, or there is no such method.
    """
    channels = gram.shape[0]
    if not 1 <= k <= channels:
        raise ValueError(f"{k} of {channels} channels cannot be kept")
    if method == "random":
        return torch.randperm(channels, generator=generator)[:k]
    if method == "l1" and magnitude is None:
        raise ValueError("l1 needs the mean magnitude of each channel")
    if method in ("variance", "l1"):
        loud = gram.diagonal() if method == "variance" else magnitude
        return loud.argsort(descending=True, stable=True)[:k]  # type: ignore[union-attr]
    if method not in ("greedy", "qr"):
        raise ValueError(f"unknown selection {method!r}; there are greedy, qr, variance, l1 and random")
    return _forward(gram, k, method)


def _forward(gram: Float[Tensor, "c c"], k: int, method: str) -> Int[Tensor, " k"]:
    residual, largest = gram.clone(), float(gram.diagonal().max())
    chosen: list[int] = []
    while len(chosen) < k:
        gain = gains(residual, largest)
        score = gain if method == "greedy" else torch.where(gain.isinf(), gain, residual.diagonal())
        best = int(score.argmax())
        if score[best].isinf():  # everything is explained
            left = [int(j) for j in gram.diagonal().argsort(descending=True, stable=True) if int(j) not in chosen]
            chosen += left[: k - len(chosen)]
            break
        chosen.append(best)
        residual = residual - residual[:, best, None] * residual[None, best] / residual[best, best]
    return torch.tensor(chosen)


def pca_bound(gram: Float[Tensor, "c c"], k: int) -> float:
    """R^2 of the best `k` linear combinations: no choice of `k` channels explains more."""
    values = torch.linalg.eigvalsh(gram)
    return float(values[-k:].sum() / values.sum())
