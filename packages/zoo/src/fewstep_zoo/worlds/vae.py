"""``worlds-wan``'s video VAE: a narrow `AutoencoderKLWan` with the factors of Wan 2.1, and its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fewstep.train.objective import MetaData
from fewstep.train.optim import AdamW, Muon
from fewstep.train.parallel import World
from fewstep.train.recipe import Job, Recipe, free
from fewstep.train.roles import Role, Roles
from jaxtyping import Float
from torch import Tensor

from ..clips import model
from ..clips.recipes import Reconstruction, statistics
from . import clips, start

KINDS = ((1, 8, 0.1), (5, 4, 0.6), (9, 2, 0.3))
"""Frames of a crop, their number for each 4 that are drawn, and their frequency."""
CONFIG = {
    "base_dim": 8,
    "dim_mult": [1, 2, 4, 8],
    "temperal_downsample": [False, True, True],
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
}
"""Narrow: textures are smooth, and decoding is part of what a viewer of a stream waits for."""


def vae(seed: int = 0) -> Any:
    """The `AutoencoderKLWan` before training."""
    return model.vae(seed, **CONFIG)


@dataclass(eq=False, kw_only=True)
class Crops:
    """Square crops of panning worlds, some of which turn: the data of the VAE."""

    size: int = 32
    """Pixels each way."""
    frames: int = 9
    split: clips.Split = "train"
    uncond: None = None
    shape: tuple[int, ...] = field(init=False)
    """Shape of one crop."""

    def __post_init__(self) -> None:
        self.shape = 3, self.frames, self.size, self.size

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Float[Tensor, "b 3 f h w"]]:
        """Numbers of the crops, and crops with values from -1 to 1, from anywhere in clips."""
        turns = torch.randint(2 * self.frames, (size,), generator=generator)
        made = clips.make(clips.draw_scenes(size, generator), self.split, generator, frames=self.frames, turns=turns)
        room = torch.randint(clips.SIDE - self.size + 1, (2,), generator=generator).tolist()
        top, left = room
        return torch.arange(size), made.pixels[..., top : top + self.size, left : left + self.size]


@dataclass(frozen=True, kw_only=True)
class WorldsVAE(Recipe):
    """Reconstruct crops of panning worlds of 1 to 9 frames: squared error, no sampling, no adversary."""

    steps: int = 2400
    batch: int = 8
    clip: float = 1.0
    ema: float = 0.99
    save_every: int = free(200)
    student: Muon = Muon(lr=4e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup=50, schedule="cosine")
    """Optimiser."""
    size: int = 32
    """Side of a crop in pixels."""
    images: int = 300
    """Number of first steps that see single frames only."""

    def build(self, world: World) -> Job:
        data, network = Crops(size=self.size), vae(self.seed).train()
        start.principal(network, data.draw(64, torch.Generator().manual_seed(self.seed))[1])
        return Job(objective=self._objective(network.to(world.device)), data=data)

    def skeleton(self) -> Job:
        with torch.device("meta"):
            network = vae(self.seed)
        return Job(objective=self._objective(network), data=MetaData(Crops(size=self.size).shape, x0=True))

    def _objective(self, network: Any) -> Reconstruction:
        return Reconstruction(roles=Roles(student=Role(network)), images=self.images, kinds=KINDS)

    def optimisers(self) -> Mapping[str, AdamW]:
        return {"student": self.student}

    def finish(self, job: Job, network: Any, folder: Path) -> None:
        mean, std = statistics(network, job.data)
        network.register_to_config(latents_mean=mean, latents_std=std)
        network.eval().save_pretrained(folder)

    def what_is_saved(self) -> str:
        return "an AutoencoderKLWan in diffusers' format"
