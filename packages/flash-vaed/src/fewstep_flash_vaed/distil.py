"""Objective of the distillation: the student decodes what the teacher's encoder makes of real clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from fewstep.data import clips as clip_data
from fewstep.families import wan_vae
from fewstep.train.objective import Batch
from fewstep.train.roles import Roles
from torch import Tensor

from .decoder import WanDecoder, of_vae
from .loss import Perceptual, alignment, ssim
from .phases import phase
from .prune import Choice

KINDS = ((1, 8, 0.1), (5, 4, 0.4), (9, 2, 0.25), (17, 1, 0.25))
"""Frames of a crop, how many there are for each 4 that are drawn, and how often."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of the parts of the loss."""

    l1: float = 10.0
    ssim: float = 5.0
    perceptual: float = 2.0
    feature: float = 1.0
    squared: float = 0.0
    """Of the squared error, which PSNR measures; not in the paper."""


@dataclass(eq=False, kw_only=True)
class Distillation:
    """``10 L1 + 5 (1 - SSIM) + 2 perceptual + lam(t) features`` against the clip and the teacher's decoding of it."""

    roles: Roles
    """``student``: a `WanDecoder`."""
    vae: Any
    """The teacher, frozen."""
    steps: int
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Channels of the teacher that the output of a narrowed up-block stands for, by its name: ``up2``."""
    choices: Sequence[Choice] = ()
    """All channels that were kept, to be saved with the student."""
    weights: Weights = Weights()
    mix: float = 0.5
    """Share of the teacher's pixels in the target, the rest is the clip."""
    features: bool = True
    cast: torch.dtype | None = None
    """Of autocast for encoder and teacher; None for their own."""

    def __post_init__(self) -> None:
        self.vae.eval().requires_grad_(False)
        self.teacher = of_vae(self.vae)
        self.perceptual = Perceptual()

    def phases(self, step: int) -> tuple[str, ...]:
        return ("student",)

    def losses(self, role: str, batch: Batch, step: int) -> Mapping[str, Tensor]:
        if batch.x0 is None:
            raise ValueError("distilling a decoder needs clips")
        now = phase(step, self.steps, self.features)
        clips = clip_data.pieces(batch.x0, KINDS, batch.shared)
        student: Any = self.roles.student.network
        cast = self.cast if clips.device.type != "meta" else None  # plans compute nothing
        with torch.no_grad(), torch.autocast(clips.device.type, cast) if cast else nullcontext():
            latents = wan_vae.encode(self.vae, clips)
            theirs, known = watched(self.teacher, latents)
        dtype = next(student.parameters()).dtype  # float32, but for plans
        latents, theirs = latents.to(dtype), theirs.to(dtype)
        known = {name: features.to(dtype) for name, features in known.items()}
        found, ours = watched(student, latents)
        parts = {}
        if now.feature:
            parts["feature"] = now.feature * self.weights.feature * self._feature(ours, known)
        if now.pixel:
            parts |= self._pixels(found, self.mix * theirs + (1 - self.mix) * clips)
        else:
            parts["l1"] = self.weights.l1 * (found - theirs).abs().mean()
        batch.metrics["psnr_teacher"] = _psnr(found, theirs)
        batch.metrics["psnr"] = _psnr(found, clips)
        return parts

    def _pixels(self, found: Tensor, target: Tensor) -> dict[str, Tensor]:
        weights = self.weights
        parts = {
            "l1": weights.l1 * (found - target).abs().mean(),
            "ssim": weights.ssim * (1 - ssim(found, target)),
            "perceptual": weights.perceptual * self.perceptual(found, target),
        }
        return parts | ({"squared": weights.squared * (found - target).square().mean()} if weights.squared else {})

    def _feature(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
        terms = []
        for name, features in ours.items():
            known = theirs[name]
            if (kept := self.kept.get(name)) is not None:
                known = known[:, :, list(kept)]
            if known.shape == features.shape:  # of a student that was not pruned here, narrow stages stand for nothing
                terms.append(alignment(features, known))
        return torch.stack(terms).mean()


def watched(decoder: WanDecoder, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Pixels, and the outputs of the middle block (``mid``) and of each up-block's last residual block (``up0``).

    Of a frame-by-frame student only while gradients are recorded, since else its frames pass few at a time.
    """
    seen: dict[str, Tensor] = {}
    inner = decoder.decoder
    places: dict[str, Any] = {"mid": inner.mid_block}
    blocks: Any = enumerate(inner.up_blocks)
    places |= {f"up{number}": block.resnets[-1] for number, block in blocks}
    handles = [module.register_forward_hook(_into(seen, name)) for name, module in places.items()]
    try:
        return decoder(latents), seen
    finally:
        for handle in handles:
            handle.remove()


def _into(seen: dict[str, Tensor], name: str) -> Any:
    def note(_module: Any, _args: Any, out: Tensor) -> None:
        seen[name] = out

    return note


def _psnr(found: Tensor, wanted: Tensor) -> Tensor:
    return 10 * torch.log10(4 / (found.detach() - wanted).square().mean().clamp(min=1e-10))
