"""Training recipes of ``worlds-wan``, the bidirectional teacher, and ``worlds-causal-wan``, made causal from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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

    steps: int = 1200
    batch: int = 8
    clip: float = 1.0
    ema: float = 0.99
    save_every: int = free(100)
    student: Muon = Muon(lr=6e-3, betas=(0.9, 0.99), warmup=50, schedule="cosine")
    """Optimiser."""
    start: str = ""
    """Pipeline whose weights the training begins with: a name from `fewstep list`, or a folder; empty: random ones."""
    clips: int = 1600
    """Clips of the training split; they are encoded once and kept in the cache."""
    frames: int = LATENT[1]
    """First latent frames of each clip that are used: fewer of them teach most of it in half of the time."""
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

    def skeleton(self) -> Job:
        with torch.device("meta"):
            network = model.transformer(self.seed)
        sizes = MetaData(
            (LATENT[0], self.frames, *LATENT[2:]), cond=(model.TOKENS, model.TEXT_WIDTH), uncond=True, x0=True
        )
        return Job(objective=self.objective(network), data=sizes)

    def objective(self, network: Any) -> Objective:
        """The loss; may change the network."""
        raise NotImplementedError

    def optimisers(self) -> Mapping[str, AdamW]:
        return {"student": self.student}

    def what_is_saved(self) -> str:
        return "a diffusers pipeline folder"

    def finish(self, job: Job, network: Any, folder: Path) -> None:
        job.pipe.transformer = network
        for part in (job.pipe, network, job.pipe.vae):
            part.register_to_config(_name_or_path="")  # the folder of the VAE on this machine
        job.pipe.save_pretrained(folder)

    def job(self, world: World, worlds: type[data.Worlds]) -> Job:
        """The parts of a run on `worlds`."""
        vae = load(self.vae).model
        network = load(self.start).model.transformer if self.start else model.transformer(self.seed)
        pipe = model.pipeline(network.train().requires_grad_(True).to(world.device), vae)
        encoded = data.encoded(vae, self.clips, "train", self.seed)
        encoded = replace(encoded, latents=encoded.latents[:, :, : self.frames])
        source = worlds(clips=encoded, embed=data.Embeddings(pipe), open=self.open)
        return Job(objective=self.objective(network), data=source, pipe=pipe)


@dataclass(frozen=True, kw_only=True)
class Causal(WorldsRecipe):
    """Teacher forcing: each chunk is denoised given the clean ones before it."""

    def build(self, world: World) -> Job:
        return self.job(world, data.TurningWorlds)

    def objective(self, network: Any) -> Objective:
        wan_causal.make_causal(network, Applied())
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
        cond = worlds.embed([scene.prompt() for scene in worlds.clips.scenes[: self.show]])
        options = StreamOptions(grid=StepGrid(even_steps(8), self.shift), chunk=model.CHUNK, eta=0.0)
        made = continued(job.pipe.transformer, given, cond, self.frames, options, generator)
        return sample_grid(wan.decode(job.pipe, made)[:, ::8])


@dataclass(frozen=True, kw_only=True)
class Teacher(WorldsRecipe):
    """Flow matching on whole clips, with prompts that leave things open or are dropped."""

    start: str = "worlds-causal-wan"
    """Pipeline whose weights the training begins with: a name from `fewstep list`, or a folder; empty: random ones."""

    def build(self, world: World) -> Job:
        return self.job(world, data.Worlds)

    def objective(self, network: Any) -> Objective:
        return FlowMatching(roles=Roles(student=Role(network)), shift=self.shift, drop=self.drop)

    @torch.no_grad()
    def sample_grid(self, job: Job) -> Any:
        generator = torch.Generator().manual_seed(self.seed)
        made = job.pipe(
            [scene.prompt() for scene in clips.draw_scenes(self.show, generator)],
            latents=torch.randn(self.show, *job.data.shape, generator=generator),
            num_frames=data.FRAME * (self.frames - 1) + 1,
            height=clips.SIDE,
            width=clips.SIDE,
            num_inference_steps=model.STEPS,
            guidance_scale=model.GUIDANCE,
            max_sequence_length=model.TOKENS,
            output_type="latent",
        ).frames
        return sample_grid(wan.decode(job.pipe, made)[:, ::8])
