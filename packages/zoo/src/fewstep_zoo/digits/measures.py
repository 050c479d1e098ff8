"""Metrics of a set of clips: distance to real clips, motion, consistency over time, and noise."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from .clips import PIXELS_PER_FRAME
from .judge import DigitsJudge

INK = 0.1
"""Fainter pixels do not count for the centroid: a haze would pull it to the middle."""
PHASES = 8
"""Sub-pixel starts that `noise` tries along each axis."""


def frechet(ours: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (arXiv 1706.08500, equation 6).

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2)

    Raises:
        ValueError: a set has fewer than two members.
    """
    if min(len(ours), len(real)) < 2:
        raise ValueError("a Frechet distance needs at least two clips on each side")
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), x.T.cov()) for x in (ours.double(), real.double()))
    # the trace of the root of a product of covariances: its eigenvalues are real and not negative
    root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root)


def centroids(pixels: Float[Tensor, "b 1 f h w"]) -> Float[Tensor, "b f 2"]:
    """Row and column of the centre of the ink in each frame; the middle of the canvas where there is none."""
    ink = (pixels[:, 0].clamp(-1, 1) + 1) / 2
    ink = torch.where(ink < INK, 0.0, ink) + 1e-9
    rows, columns = torch.arange(ink.shape[-2]).to(ink), torch.arange(ink.shape[-1]).to(ink)
    total = ink.sum((-2, -1))
    return torch.stack([(ink.sum(-1) @ rows) / total, (ink.sum(-2) @ columns) / total], -1)


def motion(pixels: Float[Tensor, "b 1 f h w"]) -> dict[str, float]:
    """Mean speed of the centroid (pixels per frame), fraction of clips nearer to fast than slow, mean frame change."""
    speed = centroids(pixels).diff(dim=1).norm(dim=-1).mean(1)
    frames = pixels.clamp(-1, 1)
    return {
        "motion": speed.mean().item(),
        "fast_fraction": (speed > sum(PIXELS_PER_FRAME) / 2).float().mean().item(),
        "frame_change": frames.diff(dim=2).abs().mean().item(),
    }


def consistency(judge: DigitsJudge, pixels: Float[Tensor, "b 1 f h w"]) -> dict[str, float]:
    """Cosine similarity of the judge's features of neighbouring frames, and how often two neighbours show one digit.

    Frames are first rolled by whole pixels so that their centroids lie in the middle.
    """
    features = judge.frame_features(_centred(pixels))
    digit = judge.frame_digit(features).argmax(-1)
    similar = torch.cosine_similarity(features[:, 1:], features[:, :-1], dim=-1)
    return {
        "consistency": similar.mean().item(),
        "digit_agreement": (digit[:, 1:] == digit[:, :-1]).float().mean().item(),
    }


def _centred(pixels: Float[Tensor, "b 1 f h w"]) -> Float[Tensor, "b 1 f h w"]:
    *_, height, width = pixels.shape
    shift = (centroids(pixels) - torch.tensor([(height - 1) / 2, (width - 1) / 2])).round().long()
    rows = (torch.arange(height) + shift[..., :1]) % height
    columns = (torch.arange(width) + shift[..., 1:]) % width
    lines = pixels[:, 0].gather(2, rows[..., None].expand(-1, -1, -1, width))
    return lines.gather(3, columns[..., None, :].expand(-1, -1, height, -1))[:, None]


def noise(pixels: Float[Tensor, "b 1 f h w"]) -> Float[Tensor, " b"]:
    """Root mean square of the part that no single picture, drawn by `clips.render` along the clip's path, explains.

    Drawing at a corner p multiplies the spectrum of a picture by H(p), so the best picture and what it leaves have a
    closed form per frequency: sum |X_f|^2 - |sum conj(H_f) X_f|^2 / sum |H_f|^2, summed over the frames f. The path
    is that of the centroids; its sub-pixel start is searched. 0 for a rigidly moving picture, about 1 for pure noise.
    """
    frames = (pixels[:, 0] + 1) / 2
    spectrum = torch.fft.fft2(frames.double())
    path = centroids(pixels).double()
    path = path - path[:, :1]
    rows, columns = (_transfers(path[..., axis], frames.shape[axis - 2]) for axis in (0, 1))
    explained = torch.zeros(len(pixels), dtype=torch.float64)
    for row in rows:
        for column in columns:
            drawn = row[..., :, None] * column[..., None, :]
            match = (drawn.conj() * spectrum).sum(1).abs().square()
            energy = (match / drawn.abs().square().sum(1).clamp(min=1e-9)).sum((1, 2))
            explained = torch.maximum(explained, energy)
    left = spectrum.abs().square().sum((1, 2, 3)) - explained
    cells = frames[0].numel() * frames.shape[-2] * frames.shape[-1]  # Parseval: the transform is not normalised
    return 2 * (left.clamp(min=0) / cells).sqrt().float()


def _transfers(path: Float[Tensor, "b f"], size: int) -> list[Complex[Tensor, "b f size"]]:
    """Spectra of a bilinear dot along one axis, one for each sub-pixel start."""
    omega = 2 * torch.pi * torch.fft.fftfreq(size, dtype=torch.float64)
    spectra = []
    for phase in range(PHASES):
        at = path + phase / PHASES
        whole = at.floor()
        part = (at - whole)[..., None]
        step = torch.exp(-1j * omega)
        spectra.append(torch.exp(-1j * omega * whole[..., None]) * (1 - part + part * step))
    return spectra
