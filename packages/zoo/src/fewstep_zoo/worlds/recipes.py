"""Training recipes of ``worlds-wan``, the bidirectional teacher, and ``worlds-causal-wan``, made causal from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.applied import Applied
from fewstep.data.images import sample_grid
from fewstep.families import wan, wan_causal
from fewstep.families.wan_stream import StreamOptions
from fewstep.flow import StepGrid, even_steps
from fewstep.loaders import load
from fewstep.train.flow_matching import FlowMatching
from fewstep.train.objective import MetaData, Objective
from fewstep.train.optim import AdamW, Muon
from fewstep.train.parallel import World
from fewstep.train.recipe import Job, Recipe, free
from fewstep.train.roles import Role, Roles
from fewstep.train.teacher_forcing import TeacherForcing

from . import clips, data, model
from .continuation import continued

LATENT = (16, 21, clips.SIDE // 8, clips.SIDE // 8)


@dataclass(frozen=True, kw_only=True)
class WorldsRecipe(Recipe):
    """Fields that the models of panning worlds share."""

    steps: int = 2400
    batch: int = 16
    clip: float = 1.0
    ema: float = 0.995
    save_every: int = free(100)
    student: Muon = Muon(lr=4e-3, betas=(0.9, 0.99), warmup=50, schedule="cosine")
    """Optimiser."""
    clips: int = 1600
    """Clips of the training split; they are encoded once and kept in the cache."""
    vae: str = "worlds-vae"
    """VAE of the latents: a name from `fewstep list`, or a folder."""
    shift: float = model.SHIFT
    """Time shift of the noise levels."""
    drop: float = 0.1
    """Share of the clips whose prompt is dropped."""
    open: float = 0.2
    """Chance that a prompt leaves the direction open; independently, the speed and the digits."""
    show: int = free(6)
    """Clips on a sample grid."""

    def optimisers(self) -> Mapping[str, AdamW]:
        return {"student": self.student}

    def what_is_saved(self) -> str:
        return "a diffusers pipeline folder"

    def finish(self, job: Job, network: torch.nn.Module, folder: Path) -> None:
        job.pipe.transformer = network
        for part in (job.pipe, network, job.pipe.vae):
            part.register_to_config(_name_or_path="")  # the folder of the VAE on this machine
        job.pipe.save_pretrained(folder)

    def _encoded(self, vae: Any) -> data.Encoded:
        return data.encoded(vae, self.clips, "train", self.seed)


@dataclass(frozen=True, kw_only=True)
class Teacher(WorldsRecipe):
    """Flow matching on whole clips, with prompts that leave things open or are dropped."""

    def build(self, world: World) -> Job:
        vae = load(self.vae).model
        pipe = model.pipeline(model.transformer(self.seed).train().to(world.device), vae)
        worlds = data.Worlds(clips=self._encoded(vae), embed=data.Embeddings(pipe), open=self.open)
        return Job(objective=self._objective(pipe.transformer), data=worlds, pipe=pipe)

    def skeleton(self) -> Job:
        with torch.device("meta"):
            network = model.transformer(self.seed)
        sizes = MetaData(LATENT, cond=(model.TOKENS, model.TEXT_WIDTH), uncond=True, x0=True)
        return Job(objective=self._objective(network), data=sizes)

    def _objective(self, network: Any) -> Objective:
        return FlowMatching(roles=Roles(student=Role(network)), shift=self.shift, drop=self.drop)

    @torch.no_grad()
    def sample_grid(self, job: Job) -> Any:
        generator = torch.Generator().manual_seed(self.seed)
        prompts = [scene.prompt() for scene in clips.draw_scenes(self.show, generator)]
        made = job.pipe(
            prompts,
            latents=torch.randn(self.show, *LATENT, generator=generator),
            num_inference_steps=model.STEPS,
            guidance_scale=model.GUIDANCE,
            max_sequence_length=model.TOKENS,
            output_type="latent",
        ).frames
        return sample_grid(wan.decode(job.pipe, made))


@dataclass(frozen=True, kw_only=True)
class Causal(WorldsRecipe):
    """Teacher forcing from the weights of the teacher: each chunk is denoised given the clean ones before it."""

    batch: int = 8
    steps: int = 1600
    teacher: str = "worlds-wan"
    """Pipeline to begin with: a name from `fewstep list`, or a folder."""

    def build(self, world: World) -> Job:
        pipe = load(self.teacher).model
        network = pipe.transformer.train().requires_grad_(True).to(world.device)
        worlds = data.TurningWorlds(clips=self._encoded(pipe.vae), embed=data.Embeddings(pipe), open=self.open)
        wan_causal.make_causal(network, Applied())
        return Job(objective=self._objective(network), data=worlds, pipe=pipe)

    def skeleton(self) -> Job:
        with torch.device("meta"):
            network = model.transformer(self.seed)
        wan_causal.make_causal(network, Applied())
        sizes = MetaData(LATENT, cond=(model.TOKENS, model.TEXT_WIDTH), uncond=True, x0=True)
        return Job(objective=self._objective(network), data=sizes)

    def _objective(self, network: Any) -> Objective:
        return TeacherForcing(
            roles=Roles(student=Role(network)),
            predict=wan_causal.teacher_forced,
            chunk=model.CHUNK,
            shift=self.shift,
            drop=self.drop,
        )

    @torch.no_grad()
    def sample_grid(self, job: Job) -> Any:
        generator = torch.Generator().manual_seed(self.seed)
        worlds: Any = job.data
        given = worlds.clips.latents[: self.show, :, : model.CHUNK]
        prompts = [scene.prompt() for scene in worlds.clips.scenes[: self.show]]
        options = StreamOptions(grid=StepGrid(even_steps(8), self.shift), chunk=model.CHUNK, eta=0.0)
        made = continued(job.pipe.transformer, given, worlds.embed(prompts), LATENT[1], options, generator)
        return sample_grid(wan.decode(job.pipe, made))
