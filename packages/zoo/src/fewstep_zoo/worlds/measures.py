"""Measures of clips of panning worlds that need no judge: against the truth, against the prompt, against themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .clips import PIXELS_PER_FRAME, WAYS
from .data import encode
from .model import CHUNK
from .words import Scene

Frames = Float[Tensor, "b f 3 h w"]
"""Clips with values in [0, 1]."""
GAP = 8
"""Frames between two pictures whose shift is measured."""
PER_CHUNK = 4 * CHUNK
"""Frames of a chunk after the first, which has three fewer."""


def chunks(clip: Frames) -> list[Frames]:
    """Cut clips where chunks begin: the first latent frame is one frame, each other four."""
    first = PER_CHUNK - 3
    rest = clip[:, first:]
    return [clip[:, :first], *(rest.split(PER_CHUNK, 1) if rest.shape[1] else ())]


def psnr_by_chunk(made: Frames, truth: Frames) -> Float[Tensor, "b n"]:
    """PSNR in decibels of each chunk of each clip."""
    pairs = zip(chunks(made), chunks(truth), strict=True)
    return torch.stack([-10 * (a - b).square().mean((1, 2, 3, 4)).clamp(min=1e-10).log10() for a, b in pairs], 1)


def motion(clip: Float[Tensor, "f 3 h w"]) -> tuple[int, int]:
    """Direction and speed of the window: those under which pictures `GAP` frames apart fit best where they overlap.

    Phase correlation finds nothing here: smooth textures have no high frequencies to whiten.

    Returns:
        Index into `DIRECTIONS` and into `SPEEDS`, as `fewstep_zoo.worlds.words` has them.
    """
    before, after = clip[:-GAP], clip[GAP:]
    errors = {
        (way, speed): (_shifted(before, rows * step, columns * step) - _shifted(after, -rows * step, -columns * step))
        .square()
        .mean()
        .item()
        for way, (rows, columns) in enumerate(WAYS)
        for speed, step in enumerate(round(GAP * pixels) for pixels in PIXELS_PER_FRAME)
    }
    return min(errors, key=errors.__getitem__)


def _shifted(pictures: Float[Tensor, "f 3 h w"], rows: int, columns: int) -> Tensor:
    """Pictures cut to what still shows when a window over them moves."""
    height, width = pictures.shape[2:]
    down, right = slice(max(0, rows), height + min(0, rows)), slice(max(0, columns), width + min(0, columns))
    return pictures[:, :, down, right]


def agreement(made: Frames, scenes: Sequence[Scene]) -> dict[str, float]:
    """Shares of clips whose direction, and whose speed, are those of their scene."""
    seen = [motion(clip) for clip in made]
    way = [found == scene.direction for (found, _), scene in zip(seen, scenes, strict=True)]
    speed = [found == scene.speed for (_, found), scene in zip(seen, scenes, strict=True)]
    return {"direction_accuracy": float(np.mean(way)), "speed_accuracy": float(np.mean(speed))}


def steadiness(made: Frames) -> dict[str, float]:
    """Change from frame to frame, change across borders of chunks over change within, and drift of contrast and detail.

    Drifts are the last chunk's value over the first's, less 1: 0 for a video that stays as it began.
    """
    change = (made[:, 1:] - made[:, :-1]).abs().mean((0, 2, 3, 4))
    border = torch.zeros(len(change), dtype=torch.bool)
    border[PER_CHUNK - 4 :: PER_CHUNK] = True
    parts = chunks(made)
    contrast = [part.std((2, 3, 4)).mean() for part in (parts[0], parts[-1])]
    detail = [_detail(part) for part in (parts[0], parts[-1])]
    return {
        "motion": change.mean().item(),
        **({"border_change": (change[border].mean() / change[~border].mean()).item()} if border.any() else {}),
        "contrast_drift": (contrast[1] / contrast[0] - 1).item(),
        "detail_drift": (detail[1] / detail[0] - 1).item(),
    }


def _detail(part: Frames) -> Tensor:
    """Mean absolute difference of neighbouring pixels."""
    return (part[..., 1:] - part[..., :-1]).abs().mean() + (part[..., 1:, :] - part[..., :-1, :]).abs().mean()


class LatentFeatures(nn.Module):
    """Features of pictures for the kernel distance: latents of the VAE of these worlds, one picture a clip."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        self.num_features = 1024

    def forward(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Latents of each picture, flattened, scaled to unit variance by the VAE's statistics."""
        return encode(self.vae, 2 * pictures[:, :, None] - 1).flatten(1)


@torch.no_grad()
def kernel_distance(vae: nn.Module, made: Frames, real: Frames, every: int = 8) -> float:
    """Kernel distance (KID's polynomial kernel) between pictures of clips, on latents instead of Inception features."""
    from torchmetrics.image.kid import KernelInceptionDistance

    pictures = [clip[:, ::every].flatten(0, 1) for clip in (made, real)]
    metric = KernelInceptionDistance(
        feature=LatentFeatures(vae), subsets=20, subset_size=min(100, *map(len, pictures)), normalize=True
    )
    for clip, is_real in zip(pictures, (False, True), strict=True):
        for part in clip.split(64):
            metric.update(part, real=is_real)
    return metric.compute()[0].item()
